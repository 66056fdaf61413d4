"""The SMTP transport against servers that behave and servers that do not: what arrived there, and what was reported."""

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import quote

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP as AiosmtpdServer
from aiosmtpd.smtp import AuthResult, LoginPassword

from posthouse.model.auth import Mechanism
from posthouse.model.message import Envelope, EnvelopeRecipient, Traits
from posthouse.model.outcome import Outcome, Result, Scope, Stage
from posthouse.protocol import smtp_connection
from posthouse.protocol.dial import resolve
from posthouse.protocol.faults import DeliveryFault
from posthouse.protocol.transcript import Transcript
from posthouse.testing import smtp_misbehaviours as wrong
from posthouse.testing.smtp import MisbehavingServer
from posthouse.testing.smtp_misbehaviours import AuthOffer, Misbehaviour, Tls
from posthouse.transports.base import Unguarded
from posthouse.transports.smtp import ehlo_argument
from tests.support.certificates import CertificateAuthority
from tests.support.processes import free_port
from tests.support.sink import CaptureServer, CountingSink
from tests.transports.support import (
    BODY,
    DELIVERED,
    HEADER,
    PASSWORD,
    Held,
    Letter,
    ScriptedServer,
    brief,
    follows,
    greets_with,
    letter_to,
    opened,
    password,
    say,
    sent,
    server_value,
    transport,
)

At = wrong.Stage


async def fault_of(port: int, tls_mode: str = "none", **fields: Any) -> DeliveryFault:
    """Open a session that must not come about, and give the fault."""
    with pytest.raises(DeliveryFault) as raised:
        await transport(server_value(port, tls_mode, **fields)).open()
    return raised.value


# --- mail arrives


@pytest.mark.parametrize("misbehaviour", [None, wrong.without("PIPELINING"), wrong.without("SIZE", "8BITMIME", "DSN")])
async def test_a_message_arrives_octet_for_octet(misbehaviour: Misbehaviour | None) -> None:
    server = MisbehavingServer(*[misbehaviour] if misbehaviour else [])
    async with server, opened(server_value(server.port)) as session:
        for _ in range(3):
            assert brief(await sent(session, "b@example.net", "c@example.net")) == [DELIVERED, DELIVERED]
        assert session.usable and session.messages == 3
    assert len(server.sessions) == 1
    assert server.sessions[0].clear_lines[-1] == b"QUIT"
    for message in server.messages:
        assert message.content == HEADER + BODY
        assert (message.mail_from, message.recipients) == ("a@example.org", ("b@example.net", "c@example.net"))


async def test_a_strict_sink_has_nothing_to_object_to(sink: CaptureServer) -> None:
    async with opened(server_value(sink.port)) as session:
        eight_bit = Letter(body="Grüße\r\n".encode(), traits=Traits.EIGHT_BIT)
        utf8 = Letter(header="Subject: Grüße\r\n\r\n".encode(), traits=Traits.UTF8_HEADER)
        for content in (Letter(), eight_bit, utf8):
            assert brief(await sent(session, content=content)) == [DELIVERED]
        assert brief(await sent(session, "jörg@exämple.org")) == [DELIVERED]
    messages = await asyncio.to_thread(sink.wait_for, 4)
    assert [message.objections for message in messages] == [()] * 4
    assert [message.content for message in messages[:2]] == [HEADER + BODY, eight_bit.header + "Grüße\r\n".encode()]


class Mailbox:
    """Keeps what aiosmtpd took."""

    def __init__(self) -> None:
        self.envelopes: list[Any] = []

    async def handle_DATA(self, server: object, session: object, envelope: object) -> str:
        self.envelopes.append(envelope)
        return "250 Kept"


class Relay(Controller):
    """aiosmtpd with AUTH, as an independent reader of what we send."""

    def factory(self) -> AiosmtpdServer:
        def authenticate(server: object, session: object, envelope: object, mechanism: str, data: Any) -> AuthResult:
            good = LoginPassword(b"user", PASSWORD.encode())
            return AuthResult(success=isinstance(data, LoginPassword) and data == good)

        return AiosmtpdServer(self.handler, authenticator=authenticate, auth_require_tls=False, enable_SMTPUTF8=True)


@pytest.mark.parametrize("mechanism", [Mechanism.PLAIN, Mechanism.LOGIN, Mechanism.AUTO])
async def test_aiosmtpd_agrees(mechanism: Mechanism) -> None:
    mailbox = Mailbox()
    relay = Relay(mailbox, hostname="127.0.0.1", port=free_port())
    relay.start()
    try:
        value = server_value(relay.port, auth=password(mechanism=mechanism), allow_cleartext_password=True)
        async with opened(value) as session:
            assert session.facts.signed_in is not None
            assert brief(await sent(session, "b@example.net", "c@example.net")) == [DELIVERED] * 2
    finally:
        relay.stop()
    (envelope,) = mailbox.envelopes
    assert envelope.content == HEADER + BODY
    assert (envelope.mail_from, envelope.rcpt_tos) == ("a@example.org", ["b@example.net", "c@example.net"])


async def test_smtp_sink_takes_many_on_one_connection(counting_sink: CountingSink) -> None:
    async with opened(server_value(counting_sink.port)) as session:
        for _ in range(200):
            assert brief(await sent(session)) == [DELIVERED]


@pytest.mark.servers
@pytest.mark.parametrize("tls_mode", ["none", "starttls_required", "implicit"])
async def test_a_real_postfix_takes_it(start_postfix: Any, authority: CertificateAuthority, tls_mode: str) -> None:
    from tests.support.postfix import PostfixOptions

    postfix = start_postfix(PostfixOptions(tls=authority.issue()))
    port = postfix.tls_port if tls_mode == "implicit" else postfix.port
    value = server_value(port, tls_mode, host="localhost", verification="added")
    async with opened(value, added_pem=(authority.pem,)) as session:
        assert (session.facts.tls is not None) == (tls_mode != "none")
        assert session.facts.capabilities.pipelining
        outcomes = await sent(session, "anna@example.test", "nobody@example.test", "bert@example.test")
        assert [outcome.result for outcome in outcomes] == [Result.DELIVERED, Result.REJECTED, Result.DELIVERED]
        assert outcomes[1].reply is not None and outcomes[1].reply.enhanced == "5.1.1"
        large = Letter(body=b"x" * 70 + b"\r\n" + (b".line\r\n" * 40_000))
        assert brief(await sent(session, "anna@example.test", content=large)) == [DELIVERED]


# --- TLS modes (threats A3, A4)


# Each way in which STARTTLS can go wrong, and its cause. Garbage may come before the handshake is begun or after.
TLS_FAULTS: dict[Tls, set[str]] = {
    Tls.NOT_OFFERED: {"starttls-missing"},
    Tls.STRIPPED: {"starttls-missing"},
    Tls.REFUSED: {"starttls-refused"},
    Tls.THEN_GARBAGE: {"tls-wrong-port", "starttls-injection", "tls-handshake-failed"},
    Tls.THEN_CLOSE: {"tls-handshake-failed"},
    Tls.INJECTS_REPLY: {"starttls-injection"},
}
HARMLESS = {b"EHLO client.example.org", b"STARTTLS", b"QUIT"}


@pytest.mark.parametrize("what", TLS_FAULTS)
async def test_required_sends_nothing_in_clear_text(what: Tls) -> None:
    """Threat A4: not one byte of AUTH or MAIL, on the first connection and on each later one."""
    async with MisbehavingServer(wrong.starttls(what)) as server:
        value = server_value(server.port, "starttls_required", verification="none", auth=password())
        for _ in range(2):
            with pytest.raises(DeliveryFault) as raised:
                await transport(value).open()
            fault = raised.value
            assert fault.cause in TLS_FAULTS[what]
            assert (fault.stage, fault.scope) == (Stage.TLS, Scope.SERVER)
    lines = [line for session in server.sessions for line in session.clear_lines]
    # What follows a broken handshake may be octets of TLS, never a command.
    assert {line for line in lines if line[:4] in (b"EHLO", b"QUIT", b"AUTH", b"MAIL", b"STAR")} <= HARMLESS
    assert not any(word in b" ".join(lines) for word in (b"AUTH", b"MAIL", base64.b64encode(PASSWORD.encode())[:8]))
    assert all(not session.logins for session in server.sessions)


async def test_required_does_not_fall_back_when_the_server_changes_its_mind() -> None:
    """Threat A4: a pool that worked under TLS opens its next connection under the same rule."""
    async with MisbehavingServer() as server:
        way = transport(server_value(server.port, "starttls_required", verification="none", auth=password()))
        session = await way.open()
        assert brief(await sent(session)) == [DELIVERED] and session.facts.tls is not None
        server.misbehave(wrong.starttls(Tls.STRIPPED))
        # The pooled connection is still under TLS; a new one is refused.
        assert brief(await sent(session)) == [DELIVERED]
        with pytest.raises(DeliveryFault) as raised:
            await way.open()
        assert raised.value.cause == "starttls-missing"
        await session.close()
    assert all(message.under_tls for message in server.messages)
    assert set(server.sessions[0].clear_lines) == {b"EHLO client.example.org", b"STARTTLS"}
    assert set(server.sessions[1].clear_lines) <= HARMLESS


@pytest.mark.parametrize("what", TLS_FAULTS)
async def test_optional_goes_on_in_clear_text_as_its_name_says(what: Tls) -> None:
    async with MisbehavingServer(wrong.starttls(what)) as server:
        value = server_value(server.port, "starttls_optional", verification="none")
        async with opened(value) as session:
            assert session.facts.tls_fell_back and session.facts.fallback_cause in TLS_FAULTS[what]
            assert session.facts.tls is None and session.facts.tls_version == ""
            assert brief(await sent(session)) == [DELIVERED]
    # A connection on which the handshake failed is never used again.
    is_second = what in (Tls.THEN_CLOSE, Tls.THEN_GARBAGE, Tls.INJECTS_REPLY)
    assert [message.session_number for message in server.messages] == [2 if is_second else 1]


@pytest.mark.parametrize("what", TLS_FAULTS)
async def test_optional_keeps_the_password_at_home(what: Tls) -> None:
    async with MisbehavingServer(wrong.starttls(what)) as server:
        fault = await fault_of(server.port, "starttls_optional", verification="none", auth=password())
        assert (fault.cause, fault.stage, fault.scope) == (
            "auth-cleartext-forbidden", Stage.AUTHENTICATE, Scope.SERVER,
        )  # fmt: skip
    assert all(not session.logins for session in server.sessions)
    assert not any(line.startswith((b"AUTH", b"MAIL")) for session in server.sessions for line in session.clear_lines)


async def test_optional_sends_the_password_in_clear_text_where_that_is_ticked() -> None:
    async with MisbehavingServer(wrong.starttls(Tls.NOT_OFFERED)) as server:
        value = server_value(server.port, "starttls_optional", auth=password(), allow_cleartext_password=True)
        async with opened(value) as session:
            assert session.facts.tls_fell_back
    assert server.sessions[0].logins == [("user", PASSWORD)]


async def test_optional_uses_tls_where_it_works() -> None:
    async with MisbehavingServer() as server:
        value = server_value(server.port, "starttls_optional", verification="none", auth=password())
        async with opened(value) as session:
            assert session.facts.tls is not None and not session.facts.tls_fell_back
            assert session.facts.tls_version.startswith("TLS")
            assert brief(await sent(session)) == [DELIVERED]
    assert server.sessions[0].clear_lines == [b"EHLO client.example.org", b"STARTTLS"]
    assert server.messages[0].under_tls


async def test_none_never_starts_tls() -> None:
    async with MisbehavingServer() as server, opened(server_value(server.port)) as session:
        assert session.facts.capabilities.starttls and session.facts.tls is None
        assert not session.facts.tls_fell_back
    assert b"STARTTLS" not in server.sessions[0].clear_lines


@pytest.mark.parametrize("when", [AuthOffer.BEFORE_TLS, AuthOffer.AFTER_TLS])
async def test_what_was_offered_before_tls_is_forgotten(when: AuthOffer) -> None:
    """Threat A3: capabilities are asked for again, and only the second answer counts."""
    async with MisbehavingServer(wrong.auth(when)) as server:
        value = server_value(server.port, "starttls_required", verification="none", auth=password())
        if when is AuthOffer.BEFORE_TLS:
            assert (await fault_of(server.port, "starttls_required", verification="none", auth=password())).cause == (
                "auth-not-offered"
            )
        else:
            async with opened(value) as session:
                assert session.facts.signed_in is not None
    assert server.sessions[0].tls_lines[0] == b"EHLO client.example.org"


async def test_replies_injected_late_are_never_read_as_if_under_tls(authority: CertificateAuthority) -> None:
    """Threat A3: a reply that arrives between the 220 and the handshake ends the connection, however it is cut."""
    for injected in (b"250 AUTH PLAIN\r\n", b"250-unfinished", b"2"):

        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, injected: bytes = injected) -> None:
            await say(writer, "220 hello")
            await reader.readuntil(b"\n")
            await say(writer, "250-hello", "250 STARTTLS")
            await reader.readuntil(b"\n")
            writer.write(b"220 go\r\n" + injected)
            await reader.read()

        async with ScriptedServer(talk) as server:
            fault = await fault_of(server.port, "starttls_required", verification="none", auth=password())
            assert fault.cause == "starttls-injection"
            assert b"AUTH" not in server.text and b"MAIL" not in server.text


@pytest.mark.parametrize("password_sent", [True, False])
async def test_implicit_tls_speaks_tls_from_the_first_octet(
    authority: CertificateAuthority, password_sent: bool
) -> None:
    leaf = authority.issue()
    async with MisbehavingServer(tls=leaf.server_context(), implicit_tls=True) as server:
        fields: dict[str, Any] = {"auth": password()} if password_sent else {}
        value = server_value(server.port, "implicit", verification="added", **fields)
        async with opened(value, added_pem=(authority.pem,)) as session:
            assert session.facts.tls is not None
            assert session.facts.tls.fingerprint_sha256 == leaf.sha256
            assert brief(await sent(session)) == [DELIVERED]
    assert server.sessions[0].clear_lines == [] and server.messages[0].under_tls


async def test_clear_text_on_an_implicit_port_is_named(authority: CertificateAuthority) -> None:
    async with MisbehavingServer() as server:
        fault = await fault_of(server.port, "implicit", verification="none", auth=password())
        assert (fault.cause, fault.stage) == ("tls-wrong-port", Stage.TLS)
    assert not any(b"AUTH" in line for session in server.sessions for line in session.clear_lines)


@pytest.mark.parametrize("tls_mode", ["none", "starttls_optional", "starttls_required"])
async def test_tls_on_a_clear_text_port_is_named(authority: CertificateAuthority, tls_mode: str) -> None:
    leaf = authority.issue()
    async with MisbehavingServer(tls=leaf.server_context(), implicit_tls=True) as server:
        fault = await fault_of(server.port, tls_mode, reply_timeout_s=0.3)
        assert fault.cause == "tls-wrong-port"
        assert "Implicit TLS" in fault.detail


# --- what opens wrongly


SERVICES: dict[str, tuple[bytes, str]] = {
    "SSH": (b"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH"),
    "IMAP": (b"* OK [CAPABILITY IMAP4rev1] Dovecot ready.\r\n", "IMAP"),
    "POP3": (b"+OK POP3 ready\r\n", "POP3"),
    "HTTP": (b"HTTP/1.1 408 Request Timeout\r\n\r\n", "web"),
    "HTML": (b"<html>captive portal</html>\r\n", "web"),
    "garbage": (b"\x00\xff\x16\x03garbage\r\n", ""),
}


@pytest.mark.parametrize("name", SERVICES)
async def test_what_is_no_mail_server_is_named_and_its_banner_not_shown(name: str) -> None:
    octets, word = SERVICES[name]
    async with ScriptedServer(greets_with(octets)) as server:
        fault = await fault_of(server.port)
    assert (fault.cause, fault.stage, fault.scope) == ("not-smtp", Stage.GREETING, Scope.SERVER)
    assert word in fault.detail
    assert "OpenSSH" not in str(fault) and "Dovecot" not in str(fault) and "captive" not in str(fault)


async def test_a_tls_alert_instead_of_a_greeting_is_named() -> None:
    async with ScriptedServer(greets_with(b"\x15\x03\x01\x00\x02\x02\x0a", then_hang=False)) as server:
        assert (await fault_of(server.port)).cause == "tls-wrong-port"


@pytest.mark.parametrize("action", ["silent", "closes", "half a line", "never ends"])
async def test_a_server_that_does_not_greet_is_given_up(action: str) -> None:
    async def never_ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"220-still here\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    talk = {
        "silent": greets_with(b""),
        "closes": greets_with(b"", then_hang=False),
        "half a line": greets_with(b"220 hel"),
        "never ends": never_ends,
    }[action]
    async with ScriptedServer(talk) as server:
        loop = asyncio.get_running_loop()
        started = loop.time()
        fault = await fault_of(server.port, reply_timeout_s=0.4)
        assert loop.time() - started < 4
    assert fault.stage is Stage.GREETING and fault.scope is Scope.SERVER
    expected = {"silent": {"greeting-timeout"}, "closes": {"closed", "reset"}, "half a line": {"greeting-timeout"}}
    assert fault.cause in expected.get(action, {"greeting-timeout", "not-smtp"})


OPENING_FAULTS: list[tuple[Misbehaviour, Stage, str, Scope]] = [
    (wrong.permanent_at(At.GREETING), Stage.GREETING, "reply", Scope.SERVER),
    (wrong.shutting_down_at(At.GREETING), Stage.GREETING, "reply", Scope.SERVER),
    (wrong.garbage_at(At.GREETING), Stage.GREETING, "not-smtp", Scope.SERVER),
    (wrong.close_at(At.EHLO), Stage.CAPABILITY, "closed", Scope.SERVER),
    (wrong.hang_at(At.EHLO), Stage.CAPABILITY, "reply-timeout", Scope.SERVER),
    (wrong.unfinished_at(At.EHLO), Stage.CAPABILITY, "reply-timeout", Scope.SERVER),
    (wrong.garbage_at(At.EHLO), Stage.CAPABILITY, "reply-garbled", Scope.SERVER),
    (wrong.permanent_at(At.EHLO), Stage.CAPABILITY, "reply", Scope.SERVER),
    (wrong.close_at(At.STARTTLS), Stage.TLS, "closed", Scope.SERVER),
    (wrong.hang_at(At.STARTTLS), Stage.TLS, "reply-timeout", Scope.SERVER),
    (wrong.non_numeric_at(At.STARTTLS), Stage.TLS, "reply-garbled", Scope.SERVER),
    (wrong.close_at(At.EHLO_AFTER_TLS), Stage.CAPABILITY, "closed", Scope.SERVER),
    (wrong.auth_refused(), Stage.AUTHENTICATE, "auth-failed", Scope.ACCOUNT),
    (wrong.auth_refused("454 4.7.0 Temporary"), Stage.AUTHENTICATE, "reply", Scope.SERVER),
    (wrong.auth_refused("550 5.7.30 Basic authentication"), Stage.AUTHENTICATE, "basic-auth-retired", Scope.ACCOUNT),
    (wrong.close_at(At.AUTH), Stage.AUTHENTICATE, "closed", Scope.SERVER),
    (wrong.hang_at(At.AUTH), Stage.AUTHENTICATE, "reply-timeout", Scope.SERVER),
    (wrong.garbage_at(At.AUTH), Stage.AUTHENTICATE, "reply-garbled", Scope.SERVER),
    (wrong.auth(AuthOffer.NEVER), Stage.AUTHENTICATE, "auth-not-offered", Scope.ACCOUNT),
    (wrong.auth(AuthOffer.ALWAYS, "GSSAPI NTLM"), Stage.AUTHENTICATE, "mechanism-not-offered", Scope.ACCOUNT),
]


@pytest.mark.parametrize(("misbehaviour", "stage", "cause", "scope"), OPENING_FAULTS)
async def test_each_fault_of_opening_has_its_stage_and_cause(
    misbehaviour: Misbehaviour, stage: Stage, cause: str, scope: Scope
) -> None:
    async with MisbehavingServer(misbehaviour) as server:
        fault = await fault_of(
            server.port, "starttls_required", verification="none", auth=password(), reply_timeout_s=1.0
        )
        assert (fault.stage, fault.cause, fault.scope, fault.result) == (stage, cause, scope, Result.DEFERRED)
        async with asyncio.timeout(5):
            while server.open_connections:
                await asyncio.sleep(0.01)
    assert server.messages == []


async def test_too_many_connections_are_told_from_a_broken_server() -> None:
    async with MisbehavingServer(wrong.connections_at_most(1)) as server, opened(server_value(server.port)) as session:
        fault = await fault_of(server.port)
        assert (fault.cause, fault.scope) == ("connection-limit", Scope.CONNECTION)
        assert brief(await sent(session)) == [DELIVERED]


async def test_a_slow_server_is_waited_for() -> None:
    async with MisbehavingServer(wrong.slow(0.15)) as server, opened(server_value(server.port)) as session:
        assert brief(await sent(session)) == [DELIVERED]


# --- what goes wrong with a message (fault F11)


UNCERTAIN = (Result.UNCERTAIN, Scope.CONNECTION)
LOST = (Result.DEFERRED, Scope.CONNECTION)
SENDING_FAULTS: list[tuple[Misbehaviour, tuple[Result, Scope], Stage, str, bool]] = [
    (wrong.temporary_at(At.MAIL), (Result.DEFERRED, Scope.SERVER), Stage.SENDER, "server-trouble", True),
    (wrong.permanent_at(At.MAIL), (Result.REJECTED, Scope.MESSAGE), Stage.SENDER, "reply", True),
    (wrong.shutting_down_at(At.MAIL), (Result.DEFERRED, Scope.SERVER), Stage.SENDER, "reply", False),
    (wrong.close_at(At.MAIL), LOST, Stage.SENDER, "closed", False),
    (wrong.hang_at(At.MAIL), LOST, Stage.SENDER, "reply-timeout", False),
    (wrong.garbage_at(At.MAIL), LOST, Stage.SENDER, "reply-garbled", False),
    (wrong.unfinished_at(At.MAIL), LOST, Stage.SENDER, "reply-timeout", False),
    (wrong.temporary_at(At.RCPT), (Result.DEFERRED, Scope.RECIPIENT), Stage.RECIPIENT, "reply", True),
    (wrong.permanent_at(At.RCPT), (Result.REJECTED, Scope.RECIPIENT), Stage.RECIPIENT, "reply", True),
    (wrong.close_at(At.RCPT), LOST, Stage.RECIPIENT, "closed", False),
    (wrong.hang_at(At.RCPT), LOST, Stage.RECIPIENT, "reply-timeout", False),
    (wrong.non_numeric_at(At.RCPT), LOST, Stage.RECIPIENT, "reply-garbled", False),
    (wrong.temporary_at(At.DATA), (Result.DEFERRED, Scope.MESSAGE), Stage.DATA, "reply", True),
    (wrong.permanent_at(At.DATA), (Result.REJECTED, Scope.MESSAGE), Stage.DATA, "reply", True),
    (wrong.close_at(At.DATA), LOST, Stage.DATA, "closed", False),
    (wrong.hang_at(At.DATA), LOST, Stage.DATA, "reply-timeout", False),
    (wrong.garbage_at(At.DATA), LOST, Stage.DATA, "reply-garbled", False),
    (wrong.temporary_at(At.DOT), (Result.DEFERRED, Scope.MESSAGE), Stage.DATA, "reply", True),
    (wrong.permanent_at(At.DOT), (Result.REJECTED, Scope.MESSAGE), Stage.DATA, "reply", True),
    (wrong.close_at(At.DOT), UNCERTAIN, Stage.DATA, "closed", False),
    (wrong.hang_at(At.DOT), UNCERTAIN, Stage.DATA, "reply-timeout", False),
    (wrong.garbage_at(At.DOT), UNCERTAIN, Stage.DATA, "reply-garbled", False),
    (wrong.unfinished_at(At.DOT), UNCERTAIN, Stage.DATA, "reply-timeout", False),
    (wrong.shutting_down_at(At.DOT), (Result.DEFERRED, Scope.SERVER), Stage.DATA, "reply", False),
]


@pytest.mark.parametrize("pipelining", [True, False], ids=["pipelined", "stepwise"])
@pytest.mark.parametrize(("misbehaviour", "ends", "stage", "cause", "usable"), SENDING_FAULTS)
async def test_each_fault_of_sending_has_its_outcome(
    misbehaviour: Misbehaviour, ends: tuple[Result, Scope], stage: Stage, cause: str, usable: bool, pipelining: bool
) -> None:
    others = [] if pipelining else [wrong.without("PIPELINING")]
    async with MisbehavingServer(misbehaviour, *others) as server:
        value = server_value(server.port, reply_timeout_s=0.5, data_end_timeout_s=0.5)
        async with opened(value) as session:
            (outcome,) = await sent(session)
            assert ((outcome.result, outcome.scope), outcome.cause) == (ends, cause)
            assert session.usable is usable
            # In a group that was cut off, the server may have closed before it said what it thought of MAIL.
            assert outcome.stage is stage or (pipelining and ends is LOST)
    if ends[0] is Result.UNCERTAIN:
        assert len(server.messages) == 1
    assert b"MAIL FROM:<a@example.org> SIZE=%d" % Letter().size in server.sessions[0].clear_lines


@pytest.mark.parametrize(
    "misbehaviour",
    [
        make(stage)
        for stage in (At.MAIL, At.RCPT, At.DATA, At.DOT)
        for make in (wrong.long_line_at, wrong.multi_line_at, wrong.eight_bit_at)
    ],
)
async def test_odd_but_right_replies_deliver(misbehaviour: Misbehaviour) -> None:
    async with MisbehavingServer(misbehaviour) as server, opened(server_value(server.port)) as session:
        assert brief(await sent(session)) == [DELIVERED] and session.usable


async def test_recipients_get_their_own_outcomes() -> None:
    replies = {"gone@example.net": "550 5.1.1 Unknown", "full@example.net": "452 4.2.2 Full"}
    server = MisbehavingServer(wrong.replies_by_recipient(replies))
    async with (
        server,
        opened(server_value(server.port)) as session,
    ):
        outcomes = await sent(session, "b@example.net", "gone@example.net", "full@example.net", "c@example.net")
        assert brief(outcomes) == [
            DELIVERED, (Result.REJECTED, Scope.RECIPIENT, "reply"), (Result.DEFERRED, Scope.RECIPIENT, "reply"),
            DELIVERED,
        ]  # fmt: skip
        assert str(outcomes[1].reply) == "550 5.1.1 Unknown"
    assert server.messages[0].recipients == ("b@example.net", "c@example.net")


async def test_a_greylisted_message_is_delivered_at_the_second_try() -> None:
    async with MisbehavingServer(wrong.greylisting()) as server, opened(server_value(server.port)) as session:
        (first,) = await sent(session)
        assert (first.result, first.cause, first.retry_after_s) == (Result.DEFERRED, "greylisted", None)
        assert session.usable
        assert brief(await sent(session)) == [DELIVERED]


async def test_a_loss_within_large_content_is_certain() -> None:
    async with (
        MisbehavingServer(wrong.close_within_content(100_000)) as server,
        opened(server_value(server.port)) as session,
    ):
        (outcome,) = await sent(session, content=Letter(body=b"x" * 70 + b"\r\n" + b"y\r\n" * 2_000_000))
        assert (outcome.result, outcome.scope, outcome.stage) == (*LOST, Stage.DATA)
    assert server.messages == []


async def test_a_thousand_recipients_go_in_one_transaction() -> None:
    recipients = [f"r{number}@example.net" for number in range(1000)]
    async with MisbehavingServer() as server, opened(server_value(server.port)) as session:
        outcomes = await sent(session, *recipients)
    assert brief(outcomes) == [DELIVERED] * 1000
    assert server.messages[0].recipients == tuple(recipients)


async def test_the_announced_size_is_kept_to_without_sending() -> None:
    async with MisbehavingServer(wrong.announcing_size(50)) as server, opened(server_value(server.port)) as session:
        (outcome,) = await sent(session)
        assert (outcome.result, outcome.scope, outcome.cause) == (
            Result.REJECTED, Scope.MESSAGE, "message-too-large",
        )  # fmt: skip
        assert session.usable
    assert not any(line.startswith(b"MAIL") for line in server.sessions[0].clear_lines)


# --- kept connections


async def test_a_connection_that_the_server_ended_while_idle_costs_no_message() -> None:
    async with (
        MisbehavingServer(wrong.messages_per_connection(1)) as server,
        opened(server_value(server.port)) as session,
    ):
        assert brief(await sent(session)) == [DELIVERED]
        assert brief(await sent(session)) == [(Result.DEFERRED, Scope.CONNECTION, "stale-connection")]
        assert not session.usable


@pytest.mark.parametrize("farewell", [b"421 4.4.2 Timeout, closing connection\r\n", b"250 Hello again\r\n", b"", b"42"])
async def test_words_that_nobody_asked_for_make_a_kept_connection_unusable(farewell: bytes) -> None:
    spoken = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(writer, "220 hello")
        for reply in ("250 PIPELINING", "250 Ok", "250 Ok", "354 Go"):
            await reader.readuntil(b"\n")
            await say(writer, reply)
        await reader.readuntil(b"\r\n.\r\n")
        await say(writer, "250 2.0.0 Taken")
        await spoken.wait()
        writer.write(farewell)
        await writer.drain()
        if farewell:
            await reader.read()

    async with ScriptedServer(talk) as server:
        session = await transport(server_value(server.port)).open()
        assert brief(await sent(session)) == [DELIVERED]
        spoken.set()
        async with asyncio.timeout(5):
            while session.usable:
                await asyncio.sleep(0.005)
        assert brief(await sent(session)) == [(Result.DEFERRED, Scope.CONNECTION, "stale-connection")]
        await session.close()


async def test_a_connection_that_breaks_as_mail_begins_costs_nothing() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(writer, "220 hello")
        for reply in ("250 hello", "250 Ok", "250 Ok", "354 Go"):
            await reader.readuntil(b"\n")
            await say(writer, reply)
        await reader.readuntil(b"\r\n.\r\n")
        await say(writer, "250 2.0.0 Taken")
        await reader.readuntil(b"\n")

    async with ScriptedServer(talk) as server, opened(server_value(server.port)) as session:
        assert brief(await sent(session)) == [DELIVERED]
        assert brief(await sent(session)) == [(Result.DEFERRED, Scope.CONNECTION, "stale-connection")]


async def test_a_421_behind_the_last_reply_does_not_undo_it() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(writer, "220 hello")
        for reply in ("250 hello", "250 Ok", "250 Ok", "354 Go"):
            await reader.readuntil(b"\n")
            await say(writer, reply)
        await reader.readuntil(b"\r\n.\r\n")
        await say(writer, "250 2.0.0 Taken", "421 4.3.2 Closing")

    async with ScriptedServer(talk) as server, opened(server_value(server.port)) as session:
        assert brief(await sent(session)) == [DELIVERED] and not session.usable


async def test_a_reply_too_many_is_never_taken_for_that_of_the_content() -> None:
    """A server that says one 250 too many must not make us believe that it has the message."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(writer, "220 hello")
        await reader.readuntil(b"\n")
        await say(writer, "250-hello", "250 PIPELINING")
        await reader.readuntil(b"DATA\r\n")
        await say(writer, "250 Ok", "250 Ok", "354 Go", "250 2.0.0 Taken")
        await reader.read()

    async with ScriptedServer(talk) as server, opened(server_value(server.port)) as session:
        assert brief(await sent(session)) == [(Result.DEFERRED, Scope.CONNECTION, "out-of-step")]
        assert not session.usable
    assert b"Subject" not in server.text


async def test_the_servers_limit_of_messages_ends_a_session() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(writer, "220 hello")
        await reader.readuntil(b"\n")
        await say(writer, "250-hello", "250 LIMITS MAILMAX=2")
        while True:
            for reply in ("250 Ok", "250 Ok", "354 Go"):
                await reader.readuntil(b"\n")
                await say(writer, reply)
            await reader.readuntil(b"\r\n.\r\n")
            await say(writer, "250 2.0.0 Taken")

    async with ScriptedServer(talk) as server, opened(server_value(server.port)) as session:
        assert brief(await sent(session)) == [DELIVERED] and session.usable
        assert brief(await sent(session)) == [DELIVERED] and not session.usable


# --- leases, marks, cancelling


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("looks", [0, 1])
async def test_without_its_lease_a_message_is_not_ended(looks: int, large: bool) -> None:
    async with MisbehavingServer() as server:
        async with opened(server_value(server.port)) as session:
            content = Letter(body=b"line\r\n" * 100_000) if large else Letter()
            outcomes = await sent(session, content=content, guard=Held(looks))
            assert brief(outcomes) == [(Result.DEFERRED, Scope.NOBODY, "lease-lost")] and not session.usable
        async with asyncio.timeout(5):
            while server.open_connections:
                await asyncio.sleep(0.01)
    assert server.messages == []


async def test_the_mark_is_durable_before_the_final_dot() -> None:
    async with MisbehavingServer() as server, opened(server_value(server.port)) as session:
        at_mark: list[int] = []

        async def mark() -> None:
            await asyncio.sleep(0.05)
            at_mark.append(len(server.messages))

        assert brief(await sent(session, guard=Held(mark=mark))) == [DELIVERED]
    assert at_mark == [0] and len(server.messages) == 1


async def test_a_mark_that_fails_stops_the_message() -> None:
    async def mark() -> None:
        raise OSError("the database is gone")

    async with MisbehavingServer() as server, opened(server_value(server.port)) as session:
        outcomes = await sent(session, guard=Held(mark=mark))
        assert brief(outcomes) == [(Result.DEFERRED, Scope.NOBODY, "mark-failed")] and not session.usable
    assert server.messages == []


async def test_a_cancelled_sending_ends_its_connection() -> None:
    async with MisbehavingServer(wrong.hang_at(At.DOT)) as server:
        session = await transport(server_value(server.port)).open()
        task = asyncio.ensure_future(sent(session))
        async with asyncio.timeout(5):
            while not server.messages:
                await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not session.usable
        await session.close()


@pytest.mark.parametrize("at", [At.GREETING, At.EHLO, At.STARTTLS, At.AUTH])
async def test_a_cancelled_opening_leaves_nothing_open(at: wrong.Stage) -> None:
    async with MisbehavingServer(wrong.hang_at(at)) as server:
        value = server_value(server.port, "starttls_required", verification="none", auth=password())
        task = asyncio.ensure_future(transport(value).open())
        async with asyncio.timeout(5):
            while not server.open_connections:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5):
            while server.open_connections:
                await asyncio.sleep(0.005)


async def test_closing_is_bounded() -> None:
    async with MisbehavingServer(wrong.hang_at(At.QUIT)) as server:
        session = await transport(server_value(server.port, reply_timeout_s=0.2)).open()
        async with asyncio.timeout(4):
            await session.close()
        assert not session.usable


# --- large content (fault F22)


async def test_large_content_streams_from_where_it_lies_in_flat_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    piece = (b"." + b"x" * 76 + b"\r\n") * 800
    count = 300
    most_buffered = 0

    async with MisbehavingServer() as server, opened(server_value(server.port)) as session:
        wire = session.connection._transport
        assert wire is not None

        async def stored() -> AsyncIterator[bytes]:
            nonlocal most_buffered
            for _ in range(count):
                most_buffered = max(most_buffered, wire.get_write_buffer_size())
                yield piece

        content = Letter(body=None, stored=stored, size=len(HEADER) + count * len(piece))
        assert brief(await sent(session, content=content)) == [DELIVERED]
    assert server.messages[0].content == HEADER + piece * count
    assert most_buffered <= 4 * len(piece)


@pytest.mark.parametrize("failure", ["store", "bare line feed"])
async def test_content_that_cannot_be_read_or_sent_is_not_ended(failure: str) -> None:
    async def stored() -> AsyncIterator[bytes]:
        yield b"one\r\n"
        if failure == "store":
            raise OSError("disk error")
        yield b"two\n.\nMAIL FROM:<evil@example.org>\r\n"

    async with MisbehavingServer() as server, opened(server_value(server.port)) as session:
        outcomes = await sent(session, content=Letter(body=None, stored=stored, size=1000))
        expected = (
            (Result.DEFERRED, Scope.NOBODY, "content-unreadable")
            if failure == "store"
            else (Result.REJECTED, Scope.MESSAGE, "content-unsafe")
        )
        assert brief(outcomes) == [expected] and not session.usable
    assert server.messages == []


async def test_a_server_that_stops_reading_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_connection.Timeouts, "__init__", _patient_but_for_blocks)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(writer, "220 hello")
        for reply in ("250 hello", "250 Ok", "250 Ok", "354 Go"):
            await reader.readuntil(b"\n")
            await say(writer, reply)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.get_running_loop().create_future()

    async with ScriptedServer(talk) as server, opened(server_value(server.port)) as session:
        (outcome,) = await sent(session, content=Letter(body=b"x\r\n" * 10_000_000))
        assert (outcome.result, outcome.cause, outcome.stage) == (Result.DEFERRED, "reply-timeout", Stage.DATA)


def _patient_but_for_blocks(self: Any, **options: float) -> None:
    for name in ("greeting", "command", "data_start", "data_end"):
        object.__setattr__(self, name, 5.0)
    object.__setattr__(self, "data_block", 0.5)


async def test_a_refusal_in_the_middle_of_large_content_is_heard() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(writer, "220 hello")
        for reply in ("250 hello", "250 Ok", "250 Ok", "354 Go"):
            await reader.readuntil(b"\n")
            await say(writer, reply)
        await reader.readexactly(100_000)
        await say(writer, "552 5.3.4 Too large")
        await reader.read()

    async with ScriptedServer(talk) as server, opened(server_value(server.port)) as session:
        (outcome,) = await sent(session, content=Letter(body=b"x\r\n" * 5_000_000))
        assert (outcome.result, outcome.scope) == (Result.REJECTED, Scope.MESSAGE)
        assert outcome.reply is not None and outcome.reply.code == 552
    assert not server.text.endswith(b"\r\n.\r\n")


# --- content that the server cannot take as it is


async def test_eight_bit_text_is_re_encoded_where_8bitmime_is_missing() -> None:
    content = Letter(
        header=b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Transfer-Encoding: 8bit\r\n\r\n",
        body="Grüße\r\n".encode(),
        traits=Traits.EIGHT_BIT,
    )
    async with MisbehavingServer(wrong.without("8BITMIME")) as server, opened(server_value(server.port)) as session:
        (outcome,) = await sent(session, content=content)
        assert outcome.result is Result.DELIVERED and outcome.detail
    (message,) = server.messages
    assert message.content.isascii() and "BODY" not in message.mail_parameters
    assert message.mail_parameters == f"SIZE={len(message.content)}"


async def test_long_lines_are_made_legal() -> None:
    content = Letter(
        header=b"Subject: x\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n",
        body=b"x" * 5000 + b"\r\n",
        traits=Traits.LONG_LINES,
    )
    async with MisbehavingServer() as server, opened(server_value(server.port)) as session:
        assert [outcome.result for outcome in await sent(session, content=content)] == [Result.DELIVERED]
    assert max(map(len, server.messages[0].content.split(b"\r\n"))) <= 998


async def test_signed_content_that_would_have_to_change_is_rejected_before_a_byte_is_sent() -> None:
    content = Letter(
        header=b'MIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary="b"; micalg=pgp-sha256;\r\n'
        b' protocol="application/pgp-signature"\r\n\r\n',
        body="--b\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGrüße\r\n"
        "--b\r\nContent-Type: application/pgp-signature\r\n\r\nx\r\n--b--\r\n".encode(),
        traits=Traits.EIGHT_BIT | Traits.SIGNED,
    )
    async with MisbehavingServer(wrong.without("8BITMIME")) as server, opened(server_value(server.port)) as session:
        assert brief(await sent(session, content=content)) == [(Result.REJECTED, Scope.MESSAGE, "cannot-reencode")]
        assert session.usable
    assert not any(line.startswith(b"MAIL") for line in server.sessions[0].clear_lines)


@pytest.mark.parametrize(
    ("utf8_headers", "offered", "delivered"),
    [("auto", True, True), ("auto", False, False), ("no", True, False), ("yes", False, True)],
)
async def test_utf8_goes_where_the_server_takes_it(utf8_headers: str, offered: bool, delivered: bool) -> None:
    others = [] if offered else [wrong.without("SMTPUTF8")]
    async with (
        MisbehavingServer(*others) as server,
        opened(server_value(server.port, utf8_headers=utf8_headers)) as session,
    ):
        (outcome,) = await sent(
            session, content=Letter(header="Subject: ü\r\n\r\n".encode(), traits=Traits.UTF8_HEADER)
        )
        assert outcome.result is (Result.DELIVERED if delivered else Result.REJECTED)
        if not delivered:
            assert outcome.reply is not None and outcome.reply.enhanced == "5.6.7"
    assert [message for message in server.messages if ("SMTPUTF8" in message.mail_parameters) is not offered] == []


# --- secrets and injection (threats A7, A12)


async def test_an_echoed_password_is_shown_nowhere() -> None:
    transcript = Transcript(asyncio.get_running_loop().time)
    async with MisbehavingServer(wrong.echoing_credentials()) as server:
        with pytest.raises(DeliveryFault) as raised:
            await transport(server_value(server.port, "starttls_required", verification="none", auth=password())).open(
                transcript=transcript
            )
    fault = raised.value
    shown = "\n".join(
        [str(fault), repr(fault), repr(fault.outcome()), repr(fault.reply), *(line.text for line in transcript.lines)]
    )
    assert server.sessions[0].logins == [("user", PASSWORD)], "the server did see it"
    assert "Not accepted" in shown and "AUTH PLAIN [hidden]" in shown
    for form in (PASSWORD, quote(PASSWORD), base64.b64encode(PASSWORD.encode()).decode()[:-2], "c4nary", "YzRuYXJ5"):
        assert form not in shown
    for offset in range(3):
        core = base64.b64encode(b"\0" * offset + PASSWORD.encode()).decode()[4:-4]
        assert core not in shown


async def test_a_password_echoed_later_is_hidden_from_outcomes() -> None:
    replies = [
        "250 AUTH PLAIN", "235 Welcome", f"550 5.7.1 {PASSWORD} is not a sender", "250 Bye",
    ]  # fmt: skip

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(writer, "220 hello")
        await reader.readuntil(b"\n")
        await say(writer, "250-hello", replies[0])
        for reply in replies[1:]:
            await reader.readuntil(b"\n")
            await say(writer, reply)

    async with ScriptedServer(talk) as server:
        value = server_value(server.port, auth=password(), allow_cleartext_password=True)
        async with opened(value) as session:
            (outcome,) = await sent(session)
    assert outcome.result is Result.REJECTED and "is not a sender" in str(outcome.reply)
    assert PASSWORD not in repr(outcome)


async def test_hostile_addresses_put_no_line_of_their_own_on_the_wire() -> None:
    hostile = "x@y\r\nRCPT TO:<evil@example.org>"
    async with MisbehavingServer() as server, opened(server_value(server.port)) as session:
        outcomes = await session.send(letter_to("b@example.net", hostile), Letter(), Unguarded())
        assert brief(outcomes) == [DELIVERED, (Result.REJECTED, Scope.RECIPIENT, "address-unusable")]
        envelope = Envelope(
            "a@example.org",
            (EnvelopeRecipient("b@example.net", "NEVER\r\nRSET", "rfc822;x\r\nQUIT"),),
            ret="FULL\r\nRSET",
            envid="x\r\nRSET",
        )
        assert brief(await session.send(envelope, Letter(), Unguarded())) == [DELIVERED]
        assert brief(await session.send(letter_to(mail_from=hostile), Letter(), Unguarded())) == [
            (Result.REJECTED, Scope.MESSAGE, "sender-unusable")
        ]
    lines = server.sessions[0].clear_lines
    assert not any(line.startswith((b"RSET", b"RCPT TO:<evil")) for line in lines)


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("mail.example.org", "mail.example.org"),
        ("192.0.2.1", "[192.0.2.1]"),
        ("2001:db8::1", "[IPv6:2001:db8::1]"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("my_host", "my_host"),
    ],
)
def test_the_ehlo_name_is_written_as_rfc_5321_has_it(name: str, argument: str) -> None:
    assert ehlo_argument(name) == argument


async def test_an_unusable_machine_name_is_a_fault_and_no_injection() -> None:
    async with MisbehavingServer() as server:
        with pytest.raises(DeliveryFault) as raised:
            await transport(server_value(server.port)).open()
            await _open_as(server.port, "evil\r\nMAIL FROM:<x@y>")
        assert raised.value.cause == "ehlo-name-unusable"
    assert not any(line.startswith(b"MAIL") for session in server.sessions for line in session.clear_lines)


async def _open_as(port: int, name: str) -> None:
    from posthouse.transports.smtp import SmtpTransport

    await SmtpTransport(server_value(port), ehlo_name=name).open()


# --- stages by themselves, as a diagnosis walks them


async def test_each_stage_can_be_walked_alone() -> None:
    transcript = Transcript(asyncio.get_running_loop().time)
    async with MisbehavingServer() as server:
        value = server_value(server.port, "starttls_required", host="localhost", verification="none", auth=password())
        way = transport(value)
        resolution = await way.resolve()
        assert "127.0.0.1" in resolution.addresses
        connection, attempts = await way.connect(resolution, transcript=transcript)
        assert attempts[-1].cause == "" and attempts[-1].duration_s >= 0
        assert (await way.greet(connection)).code == 220
        before = await way.hello(connection)
        assert before.starttls
        await way.ask_for_tls(connection)
        facts = await way.secure(connection)
        assert facts.version.startswith("TLS") and facts.bits >= 128 and facts.names
        after = await way.hello(connection)
        assert not after.starttls
        signed_in = await way.sign_in(connection, after)
        assert signed_in is not None and signed_in.mechanism == "PLAIN"
        await connection.close()
    texts = [line.text for line in transcript.lines]
    assert "EHLO client.example.org" in texts and "QUIT" in texts and "AUTH PLAIN [hidden]" in texts
    assert any(text.startswith("TLSv1") for text in texts)


async def test_dead_addresses_before_the_right_one_cost_only_time() -> None:
    async with MisbehavingServer() as server:
        way = transport(server_value(server.port))
        resolution = await resolve("127.0.0.1", timeout_s=1)
        both = type(resolution)("localhost", ("::1", "127.0.0.1"), 0.0)
        connection, attempts = await way.connect(both)
        assert [attempt.address for attempt in attempts] == ["::1", "127.0.0.1"]
        assert (await way.greet(connection)).code == 220
        await connection.close()


# --- nothing is left behind


async def test_every_timer_ends_with_its_work() -> None:
    async with MisbehavingServer() as server:
        way = transport(server_value(server.port))
        session = await way.open()
        await sent(session)
        assert way._watch is not None and not way._watch._waiting
        async with asyncio.timeout(5):
            while way._watch._handle is not None:
                await asyncio.sleep(0.02)
        await session.close()


Build = Callable[[], Any]


async def test_two_dialogues_at_once_are_a_mistake_of_ours() -> None:
    async with MisbehavingServer(wrong.hang_at(At.DOT)) as server:
        session = await transport(server_value(server.port)).open()
        task = asyncio.ensure_future(sent(session))
        await asyncio.sleep(0.05)
        assert not session.usable
        outcomes: list[Outcome] = await sent(session)
        assert brief(outcomes) == [(Result.DEFERRED, Scope.CONNECTION, "stale-connection")]
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_contexts_of_different_servers_are_apart() -> None:
    one, two = transport(server_value(25)), transport(server_value(25))
    assert isinstance(one._contexts.get(one._tls), ssl.SSLContext)
    assert one._contexts.get(one._tls) is one._contexts.get(one._tls)
    assert one._contexts.get(one._tls) is not two._contexts.get(two._tls)


async def test_a_server_that_follows_another_script_is_read_right() -> None:
    async with (
        ScriptedServer(follows(["250 hello", "250 Ok", "250 Ok", "354 Go"])) as server,
        opened(server_value(server.port, data_end_timeout_s=0.3)) as session,
    ):
        (outcome,) = await sent(session)
        assert outcome.result is Result.UNCERTAIN
