"""The way out by SMTP: opens sessions as a server's value says, and sends over them.

`SmtpTransport.open` is a chain of stages that diagnosis calls one by one: resolve, connect, greet, hello, secure,
sign_in. TLS modes are exactly what they are named (design.md promise 5):

- none: never TLS.
- starttls_optional: STARTTLS where it is offered. Where it is not offered or refused, on in clear text; where the
  handshake fails, on a new connection in clear text, never on the same one. The fallback stands in the facts of the
  session. A password stays at home unless the administrator ticked that it may travel in clear text.
- starttls_required: no command but EHLO, STARTTLS and QUIT before TLS stands and the certificate is verified.
- implicit: TLS before the first octet of SMTP.
"""

import asyncio
import dataclasses
import ipaddress
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from posthouse.model.address import AddressFault, check_host
from posthouse.model.auth import PasswordAuth
from posthouse.model.message import Envelope, Traits
from posthouse.model.outcome import Outcome, Reply, Result, Stage
from posthouse.model.server import SmtpServer, Utf8Headers
from posthouse.model.tls import TlsMode
from posthouse.protocol import dial, smtp_client
from posthouse.protocol.dial import Attempt, Resolution
from posthouse.protocol.egress import EgressRule, administrator_egress
from posthouse.protocol.faults import DeliveryFault
from posthouse.protocol.smtp_client import Capabilities, Content, SignedIn, transaction
from posthouse.protocol.smtp_connection import DeadlineWatch, SmtpConnection, Timeouts
from posthouse.protocol.tls_context import (
    TlsContexts,
    TlsFacts,
    TlsSettings,
    check_pin,
    explain_refusal,
    inspection_context,
)
from posthouse.protocol.transcript import Transcript
from posthouse.transports.base import Guard, OutgoingContent

# A look at a refused certificate, or at whether a silent port speaks TLS, is worth no more than this.
LOOK_TIMEOUT_S = 5.0
# A transaction as a whole may take its replies' timeouts, and the content at this rate; no server crawls slower.
SLOWEST_OCTETS_PER_S = 1024
# Re-encoding more than this would hold up the event loop.
_INLINE_REENCODE_OCTETS = 64 * 1024

_STARTTLS_MODES = frozenset({TlsMode.STARTTLS_OPTIONAL, TlsMode.STARTTLS_REQUIRED})
# Optional TLS does not go on in clear text after a mistake in our own settings: that is to be mended.
_NO_FALLBACK = frozenset({"certificate-settings"})
_LOOKED_AT = frozenset(
    {
        "certificate-name",
        "certificate-unknown-authority",
        "certificate-expired",
        "certificate-not-yet-valid",
        "tls-handshake-failed",
    }
)


@dataclass(frozen=True, slots=True)
class SmtpFacts:
    """What was found out about the other end of a session. `fallback_cause` says why TLS was done without."""

    host: str
    port: int
    peer: str
    tls: TlsFacts | None
    tls_fell_back: bool
    fallback_cause: str
    greeting: Reply
    capabilities: Capabilities
    signed_in: SignedIn | None
    attempts: tuple[Attempt, ...]

    @property
    def remote(self) -> str:
        """The address that was spoken to, with its port."""
        return f"[{self.peer}]:{self.port}" if ":" in self.peer else f"{self.peer}:{self.port}"

    @property
    def passes_on_dsn(self) -> bool:
        """Whether the server offers DSN, and so was told who wants to hear of what."""
        return self.capabilities.dsn

    @property
    def tls_version(self) -> str:
        """The TLS version, "" in clear text."""
        return self.tls.version if self.tls is not None else ""


class SmtpTransport:
    """Opens sessions with one server. Holds no connection itself."""

    def __init__(
        self,
        server: SmtpServer,
        *,
        added_pem: tuple[str, ...] = (),
        ehlo_name: str,
        egress: EgressRule = administrator_egress,
        clock: Callable[[], float] = time.monotonic,
        contexts: TlsContexts | None = None,
        watch: DeadlineWatch | None = None,
    ) -> None:
        self.server = server
        self.clock = clock
        self._egress = egress
        self._ehlo_name = ehlo_argument(server.ehlo_name or ehlo_name)
        self._contexts = contexts or TlsContexts()
        self._watch = watch
        self._tls = TlsSettings(server.verification, added_pem, server.pin_sha256, server.minimum_tls_version)
        self.timeouts = Timeouts(
            greeting=server.reply_timeout_s,
            command=server.reply_timeout_s,
            data_start=server.reply_timeout_s,
            data_block=max(server.reply_timeout_s, Timeouts().data_block),
            data_end=server.data_end_timeout_s,
        )

    # --- the chain

    async def open(self, *, transcript: Transcript | None = None) -> "SmtpSession":
        """Reach the server, start TLS as the mode says, sign in. Raises DeliveryFault, with nothing left open."""
        resolution = await self.resolve()
        uses_tls = self.server.tls_mode is not TlsMode.NONE
        try:
            return await self._open(resolution, transcript, uses_tls=uses_tls)
        except DeliveryFault as fault:
            if self._falls_back_after(fault):
                note = f"TLS failed ({fault.cause}); once more on a new connection in clear text"
                if transcript is not None:
                    transcript.note(note)
                return await self._open(resolution, transcript, uses_tls=False, fallback_cause=fault.cause)
            raise await self.explain(fault, resolution) from fault

    async def _open(
        self, resolution: Resolution, transcript: Transcript | None, *, uses_tls: bool, fallback_cause: str = ""
    ) -> "SmtpSession":
        connection, attempts = await self.connect(resolution, transcript=transcript)
        try:
            if uses_tls and self.server.tls_mode is TlsMode.IMPLICIT:
                await self.secure(connection)
            greeting = await self.greet(connection)
            capabilities = await self.hello(connection)
            if uses_tls and self.server.tls_mode in _STARTTLS_MODES:
                fallback_cause = await self._upgrade(connection, capabilities)
                if not fallback_cause:
                    # RFC 3207 section 4.2: what was learned before TLS is forgotten.
                    capabilities = await self.hello(connection)
            signed_in = await self.sign_in(connection, capabilities)
        except DeliveryFault:
            await connection.close()
            raise
        except BaseException:
            connection.abort()
            raise
        facts = SmtpFacts(
            host=resolution.host,
            port=self.server.effective_port,
            peer=connection.peer,
            tls=connection.tls,
            tls_fell_back=bool(fallback_cause),
            fallback_cause=fallback_cause,
            greeting=greeting,
            capabilities=capabilities,
            signed_in=signed_in,
            attempts=attempts,
        )
        return SmtpSession(connection, facts, self)

    async def _upgrade(self, connection: SmtpConnection, capabilities: Capabilities) -> str:
        """STARTTLS as the mode says; returns why the connection stays in clear text, "" where it does not."""
        is_optional = self.server.tls_mode is TlsMode.STARTTLS_OPTIONAL
        if not capabilities.starttls:
            if is_optional:
                return "starttls-missing"
            raise DeliveryFault("starttls-missing")
        try:
            await self.ask_for_tls(connection)
        except DeliveryFault as fault:
            if is_optional and fault.cause == "starttls-refused" and connection.is_usable:
                return fault.cause
            raise
        await self.secure(connection)
        return ""

    def _falls_back_after(self, fault: DeliveryFault) -> bool:
        return (
            self.server.tls_mode is TlsMode.STARTTLS_OPTIONAL
            and fault.stage is Stage.TLS
            and fault.cause not in _NO_FALLBACK
        )

    # --- the stages, each to be called by itself as well

    async def resolve(self) -> Resolution:
        """Find the server's addresses."""
        return await dial.resolve(self.server.host, timeout_s=self.server.connect_timeout_s)

    async def connect(
        self, resolution: Resolution, *, transcript: Transcript | None = None
    ) -> tuple[SmtpConnection, tuple[Attempt, ...]]:
        """Connect to the first address that answers; nothing has been said on the connection yet."""
        loop = asyncio.get_running_loop()
        if self._watch is None:
            self._watch = DeadlineWatch(loop)
        watch = self._watch
        _, connection, attempts = await dial.connect(
            lambda: SmtpConnection(loop, watch, self.timeouts, transcript),
            resolution.addresses,
            self.server.effective_port,
            connect_timeout_s=self.server.connect_timeout_s,
            egress=self._egress,
        )
        if transcript is not None:
            transcript.note(f"connected to {attempts[-1].address} port {self.server.effective_port}")
        return connection, attempts

    async def greet(self, connection: SmtpConnection) -> Reply:
        """Wait for the greeting."""
        return await connection.run(smtp_client.greeting())

    async def hello(self, connection: SmtpConnection) -> Capabilities:
        """Say EHLO and hear what the server offers."""
        return await connection.run(smtp_client.ehlo(self._ehlo_name))

    async def ask_for_tls(self, connection: SmtpConnection) -> Reply:
        """Say STARTTLS; `secure` must follow at once."""
        return await connection.run(smtp_client.starttls())

    async def secure(self, connection: SmtpConnection) -> TlsFacts:
        """Make the TLS handshake and verify the server as its value says, before anything more is sent."""
        context = self._contexts.get(self._tls)
        facts = await connection.start_tls(
            context,
            self._tls_name(),
            self.server.verification,
            timeout_s=self.server.reply_timeout_s,
            is_implicit=self.server.tls_mode is TlsMode.IMPLICIT,
        )
        try:
            check_pin(facts, self._tls)
        except DeliveryFault:
            connection.abort()
            raise
        return facts

    async def sign_in(self, connection: SmtpConnection, capabilities: Capabilities) -> SignedIn | None:
        """Sign in, where the server's value says so."""
        auth = self.server.auth
        if not isinstance(auth, PasswordAuth):
            return None
        if auth.password is not None:
            connection.hide((auth.password.get_secret_value(),))
        return await connection.run(
            smtp_client.authenticate(
                auth,
                capabilities,
                is_encrypted=connection.is_encrypted,
                allow_cleartext=self.server.allow_cleartext_password,
            )
        )

    def _tls_name(self) -> str:
        """The name that is asked for (SNI) and that the certificate must have."""
        try:
            return check_host(self.server.host)
        except AddressFault as fault:
            raise DeliveryFault("host-unusable", detail=str(fault)) from None

    # --- looking closer at what failed

    async def explain(self, fault: DeliveryFault, resolution: Resolution) -> DeliveryFault:
        """Find out more about a fault by a second connection, over which no mail or secret goes."""
        try:
            async with asyncio.timeout(min(LOOK_TIMEOUT_S, self.server.reply_timeout_s)):
                if fault.cause in _LOOKED_AT:
                    return explain_refusal(fault, await self.inspect_certificate(resolution), self._tls)
                is_silent = fault.cause in ("greeting-timeout", "closed", "reset") and fault.stage is Stage.GREETING
                if is_silent and self.server.tls_mode is not TlsMode.IMPLICIT:
                    await self._handshake_at_once(resolution)
                    return DeliveryFault(
                        "tls-wrong-port",
                        detail="The port speaks TLS at once, but the TLS mode is STARTTLS or none. "
                        "Implicit TLS fits this port.",
                    )
        except (DeliveryFault, TimeoutError):
            pass
        return fault

    async def inspect_certificate(self, resolution: Resolution | None = None) -> TlsFacts:
        """Make a handshake that verifies nothing, to see the certificate. Raises DeliveryFault."""
        resolution = resolution or await self.resolve()
        if self.server.tls_mode is TlsMode.IMPLICIT:
            return await self._handshake_at_once(resolution)
        connection, _ = await self.connect(resolution)
        try:
            await self.greet(connection)
            await self.hello(connection)
            await self.ask_for_tls(connection)
            return await self._look(connection, is_implicit=False)
        finally:
            connection.abort()

    async def _handshake_at_once(self, resolution: Resolution) -> TlsFacts:
        connection, _ = await self.connect(resolution)
        try:
            return await self._look(connection, is_implicit=True)
        finally:
            connection.abort()

    async def _look(self, connection: SmtpConnection, *, is_implicit: bool) -> TlsFacts:
        return await connection.start_tls(
            inspection_context(),
            self._tls_name(),
            self.server.verification,
            timeout_s=LOOK_TIMEOUT_S,
            is_implicit=is_implicit,
        )


class SmtpSession:
    """An open session with an SMTP server (`transports.base.Session`)."""

    def __init__(self, connection: SmtpConnection, facts: SmtpFacts, transport: SmtpTransport) -> None:
        self.connection = connection
        self.messages = 0
        self._facts = facts
        self._transport = transport
        capabilities = facts.capabilities
        server = transport.server
        if server.utf8_headers is Utf8Headers.NO:
            capabilities = dataclasses.replace(capabilities, smtputf8=False)
        self._capabilities = capabilities
        self._assumes_utf8 = server.utf8_headers is Utf8Headers.YES
        self._must_reencode = Traits.LONG_LINES | (Traits.NONE if capabilities.eight_bit else Traits.EIGHT_BIT)
        self._most_messages = (capabilities.limit("MAILMAX") if capabilities.limits else None) or 1 << 62
        self._base_total_s = server.data_end_timeout_s + 10 * server.reply_timeout_s

    @property
    def usable(self) -> bool:
        """Whether another message can be sent."""
        return self.messages < self._most_messages and self.connection.is_usable

    @property
    def facts(self) -> SmtpFacts:
        """What was found out when the session was opened."""
        return self._facts

    async def send(self, envelope: Envelope, content: OutgoingContent, guard: Guard) -> list[Outcome]:
        """Hand one message over. One outcome per recipient; raises only CancelledError (see `transports.base`)."""
        connection = self.connection
        if not connection.is_usable:
            return self._all(envelope, self._stale())
        traits = content.traits
        sent: Content = content
        changes: tuple[str, ...] = ()
        if traits & self._must_reencode:
            try:
                sent, changes = await self._reencoded(content)
            except DeliveryFault as fault:
                return self._all(envelope, fault)
        dialogue = transaction(
            envelope,
            sent,
            self._capabilities,
            eight_bit=traits & Traits.EIGHT_BIT != 0,
            utf8_header=traits & Traits.UTF8_HEADER != 0,
            alive=guard.alive,
            mark=guard.mark,
            is_kept=self.messages > 0,
            assume_utf8=self._assumes_utf8,
        )
        self.messages += 1
        total_s = self._base_total_s + sent.size / SLOWEST_OCTETS_PER_S + 2.0 * len(envelope.recipients)
        try:
            result = await connection.run(dialogue, total_s=total_s)
        except asyncio.CancelledError:
            connection.abort()
            raise
        except Exception:
            # The dialogue turns all that it knows into outcomes: this is a mistake of ours, and the log has it.
            connection.abort()
            return self._all(envelope, DeliveryFault("internal", stage=Stage.DATA))
        if not result.is_usable:
            connection.abort()
        return _with_changes(result.outcomes, changes) if changes else result.outcomes

    async def close(self) -> None:
        """Say QUIT and close; at most some seconds."""
        await self.connection.close()

    @staticmethod
    def _all(envelope: Envelope, fault: DeliveryFault) -> list[Outcome]:
        return [fault.outcome()] * len(envelope.recipients)

    def _stale(self) -> DeliveryFault:
        fault = self.connection.fault
        return DeliveryFault("stale-connection", stage=Stage.SENDER, reply=fault.reply if fault is not None else None)

    async def _reencoded(self, content: OutgoingContent) -> tuple[Content, tuple[str, ...]]:
        """The message as this server can take it, and what was changed. Raises DeliveryFault."""
        from posthouse.protocol.reencode import CannotReencode, reencode

        body = content.body
        if body is None:
            try:
                body = b"".join([chunk async for chunk in content.chunks()])
            except OSError as error:
                raise DeliveryFault("content-unreadable") from error
        # The empty line that ends our header belongs neither to the fields nor to the body that are rewritten.
        fields, keep = content.header[:-2], self._capabilities.eight_bit
        try:
            if len(body) <= _INLINE_REENCODE_OCTETS:
                result = reencode(fields, body, keep_eight_bit=keep)
            else:
                result = await asyncio.to_thread(reencode, fields, body, keep_eight_bit=keep)
        except CannotReencode as problem:
            raise DeliveryFault("cannot-reencode", detail=str(problem)) from None
        return Reencoded(result.header + b"\r\n", result.body), result.changes


@dataclass(frozen=True, slots=True)
class Reencoded:
    """A message in memory that was changed for one server."""

    header: bytes
    body: bytes

    @property
    def size(self) -> int:
        return len(self.header) + len(self.body)

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.body


def _with_changes(outcomes: list[Outcome], changes: tuple[str, ...]) -> list[Outcome]:
    """Say in the outcome of whoever got the message what was changed in it."""
    detail = " ".join(changes)
    return [dataclasses.replace(o, detail=detail) if o.result is Result.DELIVERED else o for o in outcomes]


def ehlo_argument(name: str) -> str:
    """The name as it stands behind EHLO: a literal for an IP address (RFC 5321 section 4.1.3), else A-labels."""
    try:
        address = ipaddress.ip_address(name.strip("[]").removeprefix("IPv6:"))
    except ValueError:
        pass
    else:
        return f"[{address}]" if address.version == 4 else f"[IPv6:{address}]"
    try:
        return check_host(name)
    except AddressFault:
        # A machine may be called anything; an unusable name is refused where the command is built.
        return name
