"""A certificate authority made for one test run, and leaves with every fault that a mail server's certificate may have.

The files are written where the caller says; nothing touches the system's trust. Leaves are for localhost, 127.0.0.1,
127.0.0.2 and ::1 unless told otherwise.
"""

import datetime as dt
import ipaddress
import ssl
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
LOCAL_NAMES = ("localhost", "127.0.0.1", "127.0.0.2", "::1")


class Flaw(StrEnum):
    """What is wrong with a leaf."""

    NONE = "none"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    WRONG_NAME = "wrong_name"
    SELF_SIGNED = "self_signed"
    # The name stands in the subject's CN alone, as before RFC 2818.
    CN_ONLY = "cn_only"
    # Signed by an intermediate authority that the server forgets to send.
    MISSING_INTERMEDIATE = "missing_intermediate"
    WEAK_KEY = "weak_key"
    # Signed by an authority that nobody was told of.
    UNKNOWN_AUTHORITY = "unknown_authority"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A server's certificate: files for the server, facts for the test."""

    certificate: x509.Certificate
    # PEM: the leaf, then what the server sends with it.
    chain_file: Path
    key_file: Path

    @property
    def sha256(self) -> str:
        """Give the fingerprint as lowercase hex, as it is pinned."""
        return self.certificate.fingerprint(hashes.SHA256()).hex()

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server_context(self, *, maximum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        """Give a context that a test's own server can listen with."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # So that the weak key can be presented at all.
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.load_cert_chain(self.chain_file, self.key_file)
        if maximum is not None:
            context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            context.maximum_version = maximum
        return context


@dataclass(frozen=True, slots=True)
class _Issuer:
    certificate: x509.Certificate
    key: Key


class CertificateAuthority:
    """An authority with an intermediate, writing what it issues into `folder`."""

    def __init__(self, folder: Path, *, name: str = "Test authority") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._root = _authority(name, None)
        self._intermediate = _authority(f"{name}, intermediate", self._root)
        self._stranger = _authority("Unknown authority", None)
        self._issued = 0
        self.pem = self._root.certificate.public_bytes(serialization.Encoding.PEM).decode()
        # What a client trusts in order to trust the leaves.
        self.file = folder / "authority.pem"
        self.file.write_text(self.pem)

    def client_context(self) -> ssl.SSLContext:
        """Give a context that trusts this authority alone and checks names."""
        return ssl.create_default_context(cafile=str(self.file))

    def issue(self, flaw: Flaw = Flaw.NONE, *, names: tuple[str, ...] = LOCAL_NAMES) -> Leaf:
        """Issue a leaf for the names, with the flaw asked for."""
        key = _rsa_key(1024) if flaw is Flaw.WEAK_KEY else ec.generate_private_key(ec.SECP256R1())
        issuer, sent_along = self._issuer_for(flaw)
        if flaw is Flaw.WRONG_NAME:
            names = ("mail.elsewhere.example",)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
        starts, ends = _validity(flaw)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(starts)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if issuer:
            builder = builder.add_extension(_authority_key(issuer), critical=False)
        if flaw is not Flaw.CN_ONLY:
            alternatives = x509.SubjectAlternativeName([_name(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        certificate = builder.sign(issuer.key if issuer else key, hashes.SHA256())
        return self._write(flaw, certificate, key, sent_along)

    def _issuer_for(self, flaw: Flaw) -> tuple[_Issuer | None, list[x509.Certificate]]:
        if flaw is Flaw.SELF_SIGNED:
            return None, []
        if flaw is Flaw.UNKNOWN_AUTHORITY:
            return self._stranger, []
        if flaw is Flaw.MISSING_INTERMEDIATE:
            return self._intermediate, []
        return self._intermediate, [self._intermediate.certificate]

    def _write(self, flaw: Flaw, certificate: x509.Certificate, key: Key, sent_along: list[x509.Certificate]) -> Leaf:
        self._issued += 1
        stem = f"{self._issued}-{flaw}"
        chain_file, key_file = self.folder / f"{stem}.pem", self.folder / f"{stem}.key"
        chain = [certificate, *sent_along]
        chain_file.write_bytes(b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return Leaf(certificate, chain_file, key_file)


def _rsa_key(bits: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


def _authority(name: str, signer: _Issuer | None) -> _Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    starts, ends = _validity(Flaw.NONE)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.certificate.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if signer:
        builder = builder.add_extension(_authority_key(signer), critical=False)
    return _Issuer(builder.sign(signer.key if signer else key, hashes.SHA256()), key)


def _authority_key(issuer: _Issuer) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())


def _validity(flaw: Flaw) -> tuple[dt.datetime, dt.datetime]:
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    if flaw is Flaw.EXPIRED:
        return now - 30 * day, now - day
    if flaw is Flaw.NOT_YET_VALID:
        return now + day, now + 30 * day
    return now - day, now + 30 * day


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
