"""What an added certificate says of itself: read when it is added and when it is shown. Pure; nothing is fetched."""

import re
import warnings
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from posthouse.errors import InvalidInput

# What one entry may hold: an authority's chain, not a whole trust store, which every connection would have to read.
MAX_CERTIFICATES = 200
_PRIVATE = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----|PuTTY-User-Key-File")
_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """One certificate as shown. Names are RFC 4514 texts; the fingerprint is 64 hexadecimal digits."""

    subject: str
    issuer: str
    sha256: str
    not_before_at: datetime
    not_after_at: datetime
    is_authority: bool


def certificate_facts(pem: str) -> tuple[CertificateFacts, ...]:
    """The certificates of a PEM text, in order. Raises InvalidInput naming `pem`, without repeating any of it."""
    return tuple(_facts(certificate) for certificate in _read(pem))


def normalised_pem(pem: str) -> str:
    """The certificates alone: what stands around them in the text is dropped. Raises InvalidInput naming `pem`."""
    return "".join(c.public_bytes(Encoding.PEM).decode() for c in _read(pem))


def _read(pem: str) -> list[x509.Certificate]:
    if _PRIVATE.search(pem):
        raise InvalidInput.of(
            "pem",
            "private-key",
            "This holds a private key. Enter the certificate alone, and replace the key: it was seen.",
        )
    blocks = [part.partition(_END)[0] for part in pem.split(_BEGIN)[1:] if _END in part]
    if not blocks:
        raise InvalidInput.of(
            "pem", "not-a-certificate", "There is no certificate in PEM form here. One begins with BEGIN CERTIFICATE."
        )
    if len(blocks) > MAX_CERTIFICATES:
        raise InvalidInput.of("pem", "too-many", f"At most {MAX_CERTIFICATES} certificates are taken at once.")
    return [_load(block, number) for number, block in enumerate(blocks, 1)]


def _load(block: str, number: int) -> x509.Certificate:
    try:
        with warnings.catch_warnings():
            # Old internal authorities bend the rules of RFC 5280; whether they can be used shows at the connection.
            warnings.simplefilter("ignore")
            return x509.load_pem_x509_certificate(f"{_BEGIN}{block}{_END}\n".encode())
    except ValueError:
        pass
    raise InvalidInput.of(
        "pem", "not-a-certificate", f"Certificate {number} cannot be read. Export it again as PEM (Base64)."
    )


def _facts(certificate: x509.Certificate) -> CertificateFacts:
    return CertificateFacts(
        subject=_name(certificate.subject),
        issuer=_name(certificate.issuer),
        sha256=certificate.fingerprint(SHA256()).hex(),
        not_before_at=certificate.not_valid_before_utc,
        not_after_at=certificate.not_valid_after_utc,
        is_authority=_is_authority(certificate),
    )


def _name(name: x509.Name) -> str:
    try:
        return name.rfc4514_string()
    except ValueError:
        return ""


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except (x509.ExtensionNotFound, ValueError):
        return False
