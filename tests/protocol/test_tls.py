"""TLS contexts and certificates: each flaw is refused under its own name, and each trust counts only where it was put.

Threat A5, with handshakes against a real server on loopback.
"""

import asyncio
import contextlib
import datetime as dt
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import AuthorityInformationAccessOID, NameOID

from posthouse.model.outcome import Scope, Stage
from posthouse.model.server import SmtpServer
from posthouse.model.tls import TlsMode, TlsVersion, Verification
from posthouse.protocol.faults import DeliveryFault
from posthouse.protocol.tls_context import (
    TlsContexts,
    TlsFacts,
    TlsSettings,
    check_pin,
    client_context,
    describe,
    explain_refusal,
)
from posthouse.testing.smtp import MisbehavingServer
from posthouse.transports.smtp import SmtpSession, SmtpTransport
from tests.support.certificates import CertificateAuthority, Flaw, Leaf
from tests.transports.support import ScriptedServer, greets_with

ADDED = Verification.ADDED


@contextlib.asynccontextmanager
async def serving(leaf: Leaf, *, implicit: bool = False, maximum: ssl.TLSVersion | None = None) -> AsyncIterator[Any]:
    async with MisbehavingServer(tls=leaf.server_context(maximum=maximum), implicit_tls=implicit) as server:
        yield server


def way_to(port: int, *added: str, host: str = "localhost", implicit: bool = False, **fields: Any) -> SmtpTransport:
    fields = {"verification": ADDED, "reply_timeout_s": 5.0, **fields}
    mode = TlsMode.IMPLICIT if implicit else TlsMode.STARTTLS_REQUIRED
    value = SmtpServer(name="test", host=host, port=port, tls_mode=mode, **fields)
    return SmtpTransport(value, added_pem=added, ehlo_name="client.example.org")


async def opened(way: SmtpTransport) -> SmtpSession:
    session = await way.open()
    await session.close()
    return session


async def refused(way: SmtpTransport) -> DeliveryFault:
    with pytest.raises(DeliveryFault) as raised:
        await way.open()
    fault = raised.value
    assert (fault.stage, fault.scope) == (Stage.TLS, Scope.SERVER)
    return fault


# --- each flaw under its own name


FLAWS = {
    Flaw.EXPIRED: "certificate-expired",
    Flaw.NOT_YET_VALID: "certificate-not-yet-valid",
    Flaw.WRONG_NAME: "certificate-name",
    Flaw.CN_ONLY: "certificate-name-cn-only",
    Flaw.SELF_SIGNED: "certificate-self-signed",
    Flaw.MISSING_INTERMEDIATE: "certificate-incomplete-chain",
    Flaw.WEAK_KEY: "certificate-weak",
    Flaw.UNKNOWN_AUTHORITY: "certificate-unknown-authority",
}


def test_every_flaw_is_tried() -> None:
    assert set(FLAWS) == set(Flaw) - {Flaw.NONE} and len(set(FLAWS.values())) == len(FLAWS)


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
@pytest.mark.parametrize("verification", [ADDED, Verification.SYSTEM_AND_ADDED])
@pytest.mark.parametrize("flaw", FLAWS)
async def test_a_flawed_certificate_is_refused_under_its_own_name(
    authority: CertificateAuthority, flaw: Flaw, verification: Verification, implicit: bool
) -> None:
    leaf = authority.issue(flaw)
    async with serving(leaf, implicit=implicit) as server:
        fault = await refused(way_to(server.port, authority.pem, implicit=implicit, verification=verification))
    assert fault.cause == FLAWS[flaw]
    assert not any(
        line.startswith((b"AUTH", b"MAIL"))
        for session in server.sessions
        for line in session.clear_lines + session.tls_lines
    )


@pytest.mark.parametrize("flaw", FLAWS)
async def test_the_system_alone_trusts_none_of_them(authority: CertificateAuthority, flaw: Flaw) -> None:
    leaf = authority.issue(flaw)
    async with serving(leaf) as server:
        fault = await refused(way_to(server.port, verification=Verification.SYSTEM))
    assert fault.cause.startswith("certificate-")


async def test_a_flaw_is_explained(authority: CertificateAuthority) -> None:
    async with serving(authority.issue(Flaw.WRONG_NAME)) as server:
        fault = await refused(way_to(server.port, authority.pem))
        assert "mail.elsewhere.example" in fault.detail and "localhost" in fault.detail
    async with serving(authority.issue(Flaw.EXPIRED)) as server:
        fault = await refused(way_to(server.port, authority.pem))
        yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
        assert f"{yesterday:%Y-%m-%d}" in fault.detail
    async with serving(authority.issue(Flaw.UNKNOWN_AUTHORITY)) as server:
        fault = await refused(way_to(server.port, authority.pem))
        assert "Unknown authority" in fault.detail


@pytest.mark.parametrize("flaw", [*FLAWS, Flaw.NONE])
async def test_without_verification_everything_is_taken(authority: CertificateAuthority, flaw: Flaw) -> None:
    leaf = authority.issue(flaw)
    async with serving(leaf) as server:
        session = await opened(way_to(server.port, verification=Verification.NONE))
    assert session.facts.tls is not None and session.facts.tls.fingerprint_sha256 == leaf.sha256


# --- trust counts where it was put


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
async def test_an_added_authority_is_trusted(authority: CertificateAuthority, host: str, implicit: bool) -> None:
    leaf = authority.issue()
    bound = "::1" if host == "::1" else "127.0.0.1"
    async with MisbehavingServer(tls=leaf.server_context(), implicit_tls=implicit, host=bound) as server:
        session = await opened(way_to(server.port, authority.pem, host=host, implicit=implicit))
    facts = session.facts.tls
    assert facts is not None
    assert facts.version in ("TLSv1.2", "TLSv1.3") and facts.bits >= 128 and len(facts.chain_der) >= 1
    assert facts.fingerprint_sha256 == leaf.sha256
    assert {"localhost", "127.0.0.1", "::1"} <= set(facts.names)
    assert facts.expires_at is not None and facts.expires_at > dt.datetime.now(dt.UTC)
    shown = describe(facts)
    assert shown["verification"] == "added" and shown["fingerprint_sha256"] == leaf.sha256


async def test_an_added_authority_counts_only_for_the_server_it_was_added_to(
    authority: CertificateAuthority, tmp_path: Path
) -> None:
    other = CertificateAuthority(tmp_path, name="Another authority")
    async with serving(authority.issue()) as server:
        contexts = TlsContexts()
        right, wrong = way_to(server.port, authority.pem), way_to(server.port, other.pem)
        right._contexts = wrong._contexts = contexts
        await opened(right)
        assert (await refused(wrong)).cause == "certificate-unknown-authority"
        await opened(right)


async def test_added_alone_leaves_the_system_out(
    authority: CertificateAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's authority is made the system's by its variable, as OpenSSL reads it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    other = CertificateAuthority(tmp_path, name="Another authority")
    async with serving(authority.issue()) as server:
        await opened(way_to(server.port, verification=Verification.SYSTEM))
        await opened(way_to(server.port, other.pem, verification=Verification.SYSTEM_AND_ADDED))
        assert (await refused(way_to(server.port, other.pem))).cause == "certificate-unknown-authority"
        assert (await refused(way_to(server.port))).cause == "certificate-unknown-authority"


async def test_a_servers_own_certificate_can_be_added(authority: CertificateAuthority) -> None:
    """Neither a self-signed one nor one whose authority is unknown needs an authority then."""
    for flaw in (Flaw.SELF_SIGNED, Flaw.UNKNOWN_AUTHORITY, Flaw.MISSING_INTERMEDIATE):
        leaf = authority.issue(flaw)
        async with serving(leaf) as server:
            await opened(way_to(server.port, leaf.pem))
            # It stands for itself, not for the next one that somebody makes.
        async with serving(authority.issue(Flaw.SELF_SIGNED)) as server:
            assert (await refused(way_to(server.port, leaf.pem))).cause == "certificate-self-signed"


async def test_an_added_certificate_is_still_checked_for_name_and_time(authority: CertificateAuthority) -> None:
    for flaw, cause in ((Flaw.WRONG_NAME, "certificate-name"), (Flaw.EXPIRED, "certificate-expired")):
        leaf = authority.issue(flaw)
        async with serving(leaf) as server:
            assert (await refused(way_to(server.port, leaf.pem))).cause == cause


async def test_several_certificates_in_one_text_are_all_added(authority: CertificateAuthority, tmp_path: Path) -> None:
    other = CertificateAuthority(tmp_path, name="Another authority")
    async with serving(authority.issue()) as server:
        await opened(way_to(server.port, other.pem + authority.pem))


# --- pins


@pytest.mark.parametrize("flaw", [*FLAWS, Flaw.NONE])
@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
async def test_the_pinned_certificate_is_taken_whatever_else_is_wrong_with_it(
    authority: CertificateAuthority, flaw: Flaw, implicit: bool
) -> None:
    leaf = authority.issue(flaw)
    async with serving(leaf, implicit=implicit) as server:
        await opened(
            way_to(server.port, implicit=implicit, verification=Verification.PINNED, pin_sha256=leaf.sha256.upper())
        )


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
async def test_any_other_certificate_is_refused_before_anything_is_sent(
    authority: CertificateAuthority, implicit: bool
) -> None:
    pinned, shown = authority.issue(), authority.issue()
    async with serving(shown, implicit=implicit) as server:
        fault = await refused(
            way_to(
                server.port,
                authority.pem,
                implicit=implicit,
                verification=Verification.PINNED,
                pin_sha256=pinned.sha256,
            )
        )
        assert fault.cause == "certificate-pin" and shown.sha256 in fault.detail
        async with asyncio.timeout(5):
            while server.open_connections:
                await asyncio.sleep(0.01)
    assert all(session.tls_lines == [] for session in server.sessions)


def test_a_pin_of_nothing_matches_nothing() -> None:
    nothing = TlsFacts("TLSv1.3", "x", 256, "localhost", Verification.PINNED, ())
    for pin in (None, "", "0" * 64):
        with pytest.raises(DeliveryFault):
            check_pin(nothing, TlsSettings(Verification.PINNED, pin_sha256=pin))


# --- versions


OLD = [(ssl.TLSVersion.TLSv1, TlsVersion.TLS_1_0), (ssl.TLSVersion.TLSv1_1, TlsVersion.TLS_1_1)]


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize(("spoken", "minimum"), OLD)
async def test_old_versions_are_spoken_only_when_asked_for(
    authority: CertificateAuthority, spoken: ssl.TLSVersion, minimum: TlsVersion
) -> None:
    async with serving(authority.issue(), maximum=spoken) as server:
        for refusing in (TlsVersion.TLS_1_2, TlsVersion.TLS_1_3):
            fault = await refused(way_to(server.port, authority.pem, minimum_tls_version=refusing))
            assert fault.cause == "tls-version"
        session = await opened(way_to(server.port, authority.pem, minimum_tls_version=minimum))
        assert session.facts.tls_version == ("TLSv1" if minimum is TlsVersion.TLS_1_0 else "TLSv1.1")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_1_0_is_not_meant_by_1_1(authority: CertificateAuthority) -> None:
    async with serving(authority.issue(), maximum=ssl.TLSVersion.TLSv1) as server:
        fault = await refused(way_to(server.port, authority.pem, minimum_tls_version=TlsVersion.TLS_1_1))
    assert fault.cause == "tls-version"


async def test_1_3_can_be_demanded(authority: CertificateAuthority) -> None:
    async with serving(authority.issue(), maximum=ssl.TLSVersion.TLSv1_2) as server:
        fault = await refused(way_to(server.port, authority.pem, minimum_tls_version=TlsVersion.TLS_1_3))
        assert fault.cause == "tls-version"
        assert (await opened(way_to(server.port, authority.pem))).facts.tls_version == "TLSv1.2"


def test_security_is_lowered_only_for_old_versions() -> None:
    ordinary = client_context(TlsSettings())
    assert ordinary.minimum_version is ssl.TLSVersion.TLSv1_2 and ordinary.security_level >= 1
    assert client_context(TlsSettings(minimum_version=TlsVersion.TLS_1_0)).security_level == 0
    assert ordinary.check_hostname and ordinary.verify_mode is ssl.CERT_REQUIRED


async def test_a_server_without_a_common_cipher_is_named(authority: CertificateAuthority) -> None:
    context = authority.issue().server_context(maximum=ssl.TLSVersion.TLSv1_2)
    context.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")  # its key is not an RSA one
    async with MisbehavingServer(tls=context) as server:
        assert (await refused(way_to(server.port, authority.pem))).cause == "tls-handshake-failed"


async def test_a_silent_handshake_is_given_up() -> None:
    async with ScriptedServer(greets_with(b"")) as server:
        way = way_to(server.port, host="127.0.0.1", implicit=True, reply_timeout_s=0.3)
        assert (await refused(way)).cause == "tls-timeout"


# --- contexts


def test_contexts_are_kept_by_their_settings(authority: CertificateAuthority) -> None:
    contexts = TlsContexts()
    one = contexts.get(TlsSettings(ADDED, (authority.pem,)))
    assert contexts.get(TlsSettings(ADDED, (authority.pem,))) is one
    assert contexts.get(TlsSettings(ADDED, ())) is not one
    assert contexts.get(TlsSettings(Verification.NONE)) is not one


@pytest.mark.parametrize("pem", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"])
def test_added_text_that_is_no_certificate_is_a_mistake_in_the_settings(pem: str) -> None:
    with pytest.raises(DeliveryFault) as raised:
        client_context(TlsSettings(ADDED, (pem,)))
    assert raised.value.cause == "certificate-settings"


async def test_optional_tls_does_not_hide_a_mistake_in_the_settings() -> None:
    async with MisbehavingServer() as server:
        value = SmtpServer(
            name="t", host="localhost", port=server.port, tls_mode=TlsMode.STARTTLS_OPTIONAL, verification=ADDED
        )
        with pytest.raises(DeliveryFault) as raised:
            await SmtpTransport(value, added_pem=("no certificate",), ehlo_name="c.example").open()
    assert raised.value.cause == "certificate-settings"


# --- what a certificate alone tells


def made(issuer: str, *, organisation: str = "", with_aia: bool = False) -> bytes:
    """Make a leaf of an issuer that nobody has, in DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    names = [x509.NameAttribute(NameOID.COMMON_NAME, issuer)]
    names += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)] if organisation else []
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.org")]))
        .issuer_name(x509.Name(names))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
    )
    if with_aia:
        where = x509.UniformResourceIdentifier("http://ca.example.org/issuing.crt")
        access = x509.AccessDescription(AuthorityInformationAccessOID.CA_ISSUERS, where)
        builder = builder.add_extension(x509.AuthorityInformationAccess([access]), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


@pytest.mark.parametrize(
    ("chain", "cause"),
    [
        ([made("Public issuing CA 7", with_aia=True)], "certificate-incomplete-chain"),
        ([made("Test issuing CA")], "certificate-incomplete-chain"),
        ([made("Somebody else")], "certificate-unknown-authority"),
        ([made("Public issuing CA 7", with_aia=True), made("Root")], "certificate-unknown-authority"),
        ([b"not DER"], "certificate-unknown-authority"),
        ([], "certificate-unknown-authority"),
    ],
    ids=["says where its issuer is", "kin of an added one", "stranger", "sends more", "unreadable", "none"],
)
def test_a_missing_intermediate_is_told_from_an_unknown_authority(
    authority: CertificateAuthority, chain: list[bytes], cause: str
) -> None:
    facts = TlsFacts("TLSv1.3", "x", 256, "mail.example.org", ADDED, tuple(chain))
    fault = DeliveryFault("certificate-unknown-authority")
    assert explain_refusal(fault, facts, TlsSettings(ADDED, (authority.pem,))).cause == cause


def test_facts_of_an_unreadable_certificate_are_empty_not_an_error() -> None:
    facts = TlsFacts("TLSv1.3", "x", 256, "localhost", Verification.NONE, (b"rubbish",))
    assert (facts.leaf, facts.names, facts.subject, facts.expires_at) == (None, (), "", None)
    assert describe(facts)["certificates_sent"] == 1
