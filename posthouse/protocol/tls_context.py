"""The one place that makes TLS contexts for connections to servers, and reads what a handshake showed.

How TLS starts is asked elsewhere (`TlsMode`); here it is only what is verified (`Verification`). A context is made from
settings alone and kept by them, so that an added certificate counts for the servers that it was added for and no other.

Not verified: revocation, because no mail client asks for it and its answers fail open; what an administrator wants gone
is pinned or removed.
"""

import hashlib
import os
import re
import ssl
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtensionOID, NameOID

from posthouse.model.tls import TlsVersion, Verification
from posthouse.protocol.faults import DeliveryFault

# Where distributions keep the bundle, for a Python that was built elsewhere and looks in a place that does not exist.
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_HASHED_NAME = re.compile(r"[0-9a-f]{8}\.\d+")
# Contexts hold parsed trust stores of some hundred KiB each.
_MAX_CONTEXTS = 256


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """What a context is made from. `added_pem` holds one or more certificates each."""

    verification: Verification = Verification.SYSTEM
    added_pem: tuple[str, ...] = ()
    pin_sha256: str | None = None
    minimum_version: TlsVersion = TlsVersion.TLS_1_2


class TlsContexts:
    """Makes contexts and keeps them by their settings. Not thread-safe: one per event loop."""

    def __init__(self) -> None:
        self._contexts: dict[TlsSettings, ssl.SSLContext] = {}

    def get(self, settings: TlsSettings) -> ssl.SSLContext:
        """The context for these settings. Raises DeliveryFault (certificate-settings)."""
        context = self._contexts.get(settings)
        if context is None:
            if len(self._contexts) >= _MAX_CONTEXTS:
                self._contexts.clear()
            context = self._contexts[settings] = client_context(settings)
        return context


def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """Make a context. Raises DeliveryFault (certificate-settings) where the added certificates cannot be read."""
    verification = settings.verification
    context = _new_context(verification)
    if verification in (Verification.PINNED, Verification.NONE):
        # A pin is compared by `check_pin` after the handshake, before anything is sent.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.check_hostname = True
        # RFC 9525 section 6.3: the subject's CN is no name any more; Python would still look there.
        context.hostname_checks_common_name = False
        context.verify_mode = ssl.CERT_REQUIRED
        # A server's own certificate, added here, is trust enough: it need not be an authority's. The flag of strict
        # RFC 5280 checking stays off, so that all Python versions judge old internal authorities alike.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if verification in (Verification.ADDED, Verification.SYSTEM_AND_ADDED):
        _load_added(context, settings.added_pem)
    _set_versions(context, settings.minimum_version)
    return context


def inspection_context() -> ssl.SSLContext:
    """A context that verifies nothing and takes every version, to look at a certificate. No mail ever goes over it."""
    context = _new_context(Verification.NONE)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _set_versions(context, TlsVersion.TLS_1_0)
    return context


def _new_context(verification: Verification) -> ssl.SSLContext:
    uses_system = verification in (Verification.SYSTEM, Verification.SYSTEM_AND_ADDED)
    if uses_system and sys.platform in ("darwin", "win32"):
        import truststore  # the system's store is no file there

        return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if uses_system:
        _load_system(context)
    return context


def _load_system(context: ssl.SSLContext) -> None:
    paths = ssl.get_default_verify_paths()
    # The stubs call both strings; where nothing exists they are None.
    file: str | None = paths.cafile
    folder: str | None = paths.capath
    if file or (folder and any(_HASHED_NAME.fullmatch(name) for name in os.listdir(folder))):
        context.set_default_verify_paths()
        return
    for bundle in _BUNDLES:
        if os.path.isfile(bundle):
            context.load_verify_locations(cafile=bundle)
            return


def _load_added(context: ssl.SSLContext, added: Iterable[str]) -> None:
    for pem in added:
        try:
            context.load_verify_locations(cadata=pem)
        except (ssl.SSLError, ValueError) as error:
            raise DeliveryFault("certificate-settings") from error


_VERSIONS = {TlsVersion.TLS_1_2: ssl.TLSVersion.TLSv1_2, TlsVersion.TLS_1_3: ssl.TLSVersion.TLSv1_3}


def _set_versions(context: ssl.SSLContext, minimum: TlsVersion) -> None:
    context.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
    if minimum in _VERSIONS:
        context.minimum_version = _VERSIONS[minimum]
        return
    # RFC 8996 retired these; OpenSSL offers them at security level 0 only, and Python warns of it.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1 if minimum is TlsVersion.TLS_1_0 else ssl.TLSVersion.TLSv1_1


# --- what a handshake showed ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TlsFacts:
    """What was negotiated and what the server showed. `chain_der` holds the leaf first, then what came with it."""

    version: str
    cipher: str
    bits: int
    server_name: str
    verification: Verification
    chain_der: tuple[bytes, ...] = field(repr=False, default=())

    @cached_property
    def fingerprint_sha256(self) -> str:
        """Of the leaf, lower-case hexadecimal; "" where the server showed none."""
        return hashlib.sha256(self.chain_der[0]).hexdigest() if self.chain_der else ""

    @cached_property
    def leaf(self) -> x509.Certificate | None:
        """The server's certificate; None where it has none or none that can be read."""
        if not self.chain_der:
            return None
        try:
            return x509.load_der_x509_certificate(self.chain_der[0])
        except ValueError:
            return None

    @property
    def subject(self) -> str:
        return self.leaf.subject.rfc4514_string() if self.leaf is not None else ""

    @property
    def issuer(self) -> str:
        return self.leaf.issuer.rfc4514_string() if self.leaf is not None else ""

    @property
    def expires_at(self) -> datetime | None:
        return self.leaf.not_valid_after_utc if self.leaf is not None else None

    @property
    def valid_from_at(self) -> datetime | None:
        return self.leaf.not_valid_before_utc if self.leaf is not None else None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names that the certificate is for: its subject alternative names, DNS and IP."""
        if self.leaf is None:
            return ()
        try:
            extension = self.leaf.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
        except (x509.ExtensionNotFound, ValueError):
            return ()
        if not isinstance(extension, x509.SubjectAlternativeName):
            return ()
        addresses = extension.get_values_for_type(x509.IPAddress)
        return (*extension.get_values_for_type(x509.DNSName), *map(str, addresses))


def tls_facts(ssl_object: ssl.SSLObject, verification: Verification) -> TlsFacts:
    """Read the facts of a finished handshake."""
    cipher = ssl_object.cipher() or ("", "", 0)
    return TlsFacts(
        version=ssl_object.version() or "",
        cipher=cipher[0],
        bits=cipher[2],
        server_name=ssl_object.server_hostname or "",
        verification=verification,
        chain_der=_chain(ssl_object),
    )


def _chain(ssl_object: ssl.SSLObject) -> tuple[bytes, ...]:
    leaf = ssl_object.getpeercert(binary_form=True)
    if leaf is None:
        return ()
    # Public from Python 3.13; before, the same function stands one level deeper and gives objects.
    get_chain = getattr(ssl_object, "get_unverified_chain", None)
    if get_chain is None:
        get_chain = getattr(getattr(ssl_object, "_sslobj", None), "get_unverified_chain", None)
    try:
        found = get_chain() if get_chain is not None else None
        chain = tuple(c if isinstance(c, bytes) else c.public_bytes(_DER) for c in found or ())
    except (ssl.SSLError, ValueError, TypeError, AttributeError):
        chain = ()
    return chain or (leaf,)


_DER = 2  # _ssl.ENCODING_DER


def check_pin(facts: TlsFacts, settings: TlsSettings) -> None:
    """Compare the leaf with the pin, where one is set. Raises DeliveryFault (certificate-pin)."""
    if settings.verification is not Verification.PINNED:
        return
    if not settings.pin_sha256 or facts.fingerprint_sha256 != settings.pin_sha256:
        raise DeliveryFault(
            "certificate-pin",
            detail=f"The server's certificate is not the pinned one; its SHA-256 is {facts.fingerprint_sha256}.",
        )


# --- why a certificate was refused ------------------------------------------------------------------------------------


def explain_refusal(fault: DeliveryFault, facts: TlsFacts, settings: TlsSettings) -> DeliveryFault:
    """Look again at a refused certificate, seen without verification, and name the cause more closely.

    OpenSSL gives one number for a missing intermediate and for an unknown authority, and one for a wrong name and for a
    name in CN only. Where the certificate alone cannot tell, the sentence names both possibilities.
    """
    if fault.cause == "tls-handshake-failed":
        return _explain_handshake(fault, facts, settings)
    leaf = facts.leaf
    if leaf is None:
        return fault
    if fault.cause == "certificate-name":
        return _explain_name(fault, facts, leaf)
    if fault.cause in ("certificate-expired", "certificate-not-yet-valid"):
        detail = (
            f"{fault.detail} Valid from {leaf.not_valid_before_utc:%Y-%m-%d} to {leaf.not_valid_after_utc:%Y-%m-%d}."
        )
        return _instead(fault, fault.cause, detail)
    if fault.cause == "certificate-unknown-authority":
        return _explain_authority(fault, facts, leaf, settings)
    return fault


def _explain_handshake(fault: DeliveryFault, facts: TlsFacts, settings: TlsSettings) -> DeliveryFault:
    """Servers that end a handshake without a word mostly miss a version that they speak."""
    spoken = _SPOKEN.get(facts.version)
    if spoken is None or spoken >= settings.minimum_version:
        return fault
    detail = f"The server speaks TLS {spoken} at most; the oldest version permitted here is {settings.minimum_version}."
    return _instead(fault, "tls-version", detail)


_SPOKEN = {
    "TLSv1": TlsVersion.TLS_1_0,
    "TLSv1.1": TlsVersion.TLS_1_1,
    "TLSv1.2": TlsVersion.TLS_1_2,
    "TLSv1.3": TlsVersion.TLS_1_3,
}


def _explain_name(fault: DeliveryFault, facts: TlsFacts, leaf: x509.Certificate) -> DeliveryFault:
    common = [str(a.value).lower() for a in leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if not facts.names and facts.server_name.lower() in common:
        return _instead(fault, "certificate-name-cn-only")
    shown = ", ".join((facts.names or tuple(common))[:5]) or "no name at all"
    return _instead(fault, fault.cause, f"The server's certificate is for {shown}, not for {facts.server_name}.")


def _explain_authority(
    fault: DeliveryFault, facts: TlsFacts, leaf: x509.Certificate, settings: TlsSettings
) -> DeliveryFault:
    if leaf.subject == leaf.issuer:
        return _instead(fault, "certificate-self-signed")
    issuer = leaf.issuer.rfc4514_string()
    if len(facts.chain_der) == 1 and (_names_its_issuers_certificate(leaf) or _is_related(leaf.issuer, settings)):
        return _instead(
            fault,
            "certificate-incomplete-chain",
            f"The server sends its own certificate only, without that of its issuer ({issuer}), so that no trusted "
            "authority can be reached.",
        )
    return _instead(fault, fault.cause, f"The server's certificate was issued by {issuer}, which is not trusted here.")


def _names_its_issuers_certificate(leaf: x509.Certificate) -> bool:
    """Whether the leaf says where its issuer's certificate is to be had (RFC 5280 section 4.2.2.1)."""
    try:
        access = leaf.extensions.get_extension_for_oid(ExtensionOID.AUTHORITY_INFORMATION_ACCESS).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return isinstance(access, x509.AuthorityInformationAccess) and any(
        entry.access_method == AuthorityInformationAccessOID.CA_ISSUERS for entry in access
    )


def _is_related(issuer: x509.Name, settings: TlsSettings) -> bool:
    """Whether an added certificate looks like the root above `issuer`: same organisation, or names that start alike."""
    for pem in settings.added_pem:
        try:
            trusted = x509.load_pem_x509_certificates(pem.encode())
        except ValueError:
            continue
        if any(_kinship(issuer) & _kinship(certificate.subject) for certificate in trusted):
            return True
    return False


def _kinship(name: x509.Name) -> frozenset[tuple[str, str]]:
    values = [("O", str(a.value)) for a in name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)]
    values += [("CN", str(a.value).split()[0]) for a in name.get_attributes_for_oid(NameOID.COMMON_NAME) if a.value]
    return frozenset((kind, value.lower()) for kind, value in values)


def _instead(fault: DeliveryFault, cause: str, detail: str = "") -> DeliveryFault:
    explained = DeliveryFault(cause, stage=fault.stage, detail=detail)
    explained.attempts = fault.attempts
    return explained


def describe(facts: TlsFacts) -> Mapping[str, str | int | tuple[str, ...] | None]:
    """The facts as plain values, for timelines and findings."""
    return {
        "version": facts.version,
        "cipher": facts.cipher,
        "bits": facts.bits,
        "server_name": facts.server_name,
        "verification": str(facts.verification),
        "subject": facts.subject,
        "issuer": facts.issuer,
        "names": facts.names,
        "expires_at": facts.expires_at.isoformat() if facts.expires_at is not None else None,
        "fingerprint_sha256": facts.fingerprint_sha256,
        "certificates_sent": len(facts.chain_der),
    }
