"""Runs SMTP dialogues on a socket.

`SmtpConnection.run` takes a dialogue of `smtp_client.py` and moves it on inside the loop's callbacks, so that whoever
awaits it is woken once, when it is done. Timeouts are one deadline per connection, looked at by one coarse timer for
all of them (`DeadlineWatch`), because a timer per reply costs more than the reply.

What the server sends without being asked makes the connection unusable, and is a fault only where it comes inside a
dialogue. What it sends between its 220 to STARTTLS and the handshake is treated as the attack that it is (RFC 3207
section 6; threats: response injection). After TLS nothing that was read before is kept.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from posthouse.model.outcome import Reply, Stage
from posthouse.model.tls import Verification
from posthouse.protocol.faults import DeliveryFault, opening_fault, refused, translate
from posthouse.protocol.smtp_client import Dialogue, Interrupted, Pause, Send, Step, Stream, Unsafe, quit_
from posthouse.protocol.smtp_reply import ReplyFault, ReplyReader
from posthouse.protocol.tls_context import TlsFacts, tls_facts
from posthouse.protocol.transcript import Mask, Transcript

T = TypeVar("T")
log = logging.getLogger(__name__)

TICK_S = 0.1
# Politeness at the end is worth this much and no more.
QUIT_TIMEOUT_S = 5.0
TLS_SHUTDOWN_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long the server may take, in seconds: for its greeting, a reply, 354, a block of content, the last reply."""

    greeting: float = 60.0
    command: float = 60.0
    data_start: float = 60.0
    # RFC 5321 section 4.5.3.2.5.
    data_block: float = 180.0
    # RFC 5321 section 4.5.3.2.6: less makes second copies.
    data_end: float = 600.0


class DeadlineWatch:
    """One timer for many connections. Runs only while one of them waits; late by at most a tick."""

    def __init__(self, loop: asyncio.AbstractEventLoop, tick_s: float = TICK_S) -> None:
        self._loop = loop
        self._tick_s = tick_s
        self._waiting: set[SmtpConnection] = set()
        self._handle: asyncio.TimerHandle | None = None

    def add(self, connection: "SmtpConnection") -> None:
        self._waiting.add(connection)
        if self._handle is None:
            self._handle = self._loop.call_later(self._tick_s, self._tick)

    def discard(self, connection: "SmtpConnection") -> None:
        # The timer ends by itself at its next tick: starting and stopping it for each message would cost more.
        self._waiting.discard(connection)

    def _tick(self) -> None:
        self._handle = None
        now = self._loop.time()
        for connection in [c for c in self._waiting if c.deadline <= now]:
            connection.deadline_passed()
        if self._waiting:
            self._handle = self._loop.call_later(self._tick_s, self._tick)


class SmtpConnection(asyncio.Protocol):
    """One connection to a server. Runs one dialogue at a time; of no use any more once `fault` is set."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        watch: DeadlineWatch,
        timeouts: Timeouts,
        transcript: Transcript | None = None,
    ) -> None:
        self.deadline = 0.0
        # Why the connection ended; None while it lives.
        self.fault: DeliveryFault | None = None
        self.tls: TlsFacts | None = None
        self.transcript = transcript
        self.mask = transcript.mask if transcript is not None else Mask()
        self._loop = loop
        self._watch = watch
        self._timeouts = {name: getattr(timeouts, name) for name in Timeouts.__slots__}
        self._transport: asyncio.Transport | None = None
        self._write: Any = None
        self._reader = ReplyReader()
        self._closed: asyncio.Future[None] = loop.create_future()
        # The dialogue under way, the step it waits in, and the replies of that step so far.
        self._dialogue: Dialogue[Any] | None = None
        self._future: asyncio.Future[Any] | None = None
        self._step: Step | None = None
        self._awaited = 0
        self._group: list[Reply] = []
        self._ends_by = float("inf")
        # Replies that came before they were asked for: the greeting rightly, all others not.
        self._early: list[Reply] = []
        self._is_greeted = False
        self._task: asyncio.Task[None] | None = None
        self._is_paused = False
        self._drained: asyncio.Future[None] | None = None

    # --- for whoever holds the connection

    @property
    def is_usable(self) -> bool:
        """Whether another dialogue can be run: alive, idle, and in step."""
        return self.fault is None and self._dialogue is None and not self._early and self._reader.is_idle

    @property
    def is_encrypted(self) -> bool:
        return self.tls is not None

    @property
    def peer(self) -> str:
        """The IP address at the other end."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(name[0]) if name else ""

    def run(self, dialogue: Dialogue[T], *, total_s: float | None = None) -> asyncio.Future[T]:
        """Run a dialogue; the future gets what it returns or the DeliveryFault that it raises.

        `total_s` bounds it as a whole, beside the timeout of each reply.
        """
        if self._dialogue is not None:
            raise RuntimeError("a connection runs one dialogue at a time")
        future = self._future = self._loop.create_future()
        self._dialogue = dialogue
        self._ends_by = float("inf") if total_s is None else self._loop.time() + total_s
        if self._is_greeted and not self._reader.is_idle:
            self._end(DeliveryFault("out-of-step", stage=Stage.CAPABILITY))
        self._watch.add(self)
        self._advance(None)
        return future

    def hide(self, secrets: Iterable[str]) -> None:
        """Let no reply and no transcript show these from now on, should the server echo them."""
        self.mask.add(secrets)
        self._reader.hide(self.mask)

    async def start_tls(
        self,
        context: ssl.SSLContext,
        server_hostname: str,
        verification: Verification,
        *,
        timeout_s: float,
        is_implicit: bool = False,
    ) -> TlsFacts:
        """Make the connection TLS: right after the 220 to STARTTLS, or at once where `is_implicit`.

        Whatever came before the handshake is refused: what was read in clear text never counts afterwards. Raises
        DeliveryFault; the connection is then of no use any more.
        """
        if self._early or not self._reader.is_idle or (self.fault is not None and self.fault.cause == "out-of-step"):
            fault = DeliveryFault("tls-wrong-port" if is_implicit else "starttls-injection")
            self._end(fault)
            raise fault
        if self.fault is not None or self._transport is None:
            raise translate(ConnectionResetError(), Stage.TLS)
        self._reader = ReplyReader()
        if self.mask:
            self._reader.hide(self.mask)
        try:
            async with asyncio.timeout(timeout_s):
                transport = await self._loop.start_tls(
                    self._transport,
                    self,
                    context,
                    server_hostname=server_hostname,
                    ssl_handshake_timeout=timeout_s + 1.0,  # so that our own limit comes first, and is named as such
                    ssl_shutdown_timeout=TLS_SHUTDOWN_TIMEOUT_S,
                )
        except (OSError, ssl.SSLError, EOFError, ValueError) as error:
            fault = translate(error, Stage.TLS)
            self._end(fault)
            raise fault from error
        if transport is None:  # the stubs allow it
            raise translate(ConnectionResetError(), Stage.TLS)
        self._use(transport)
        self.tls = tls_facts(cast(ssl.SSLObject, transport.get_extra_info("ssl_object")), verification)
        if self.transcript is not None:
            self.transcript.note(f"{self.tls.version} {self.tls.cipher}")
        return self.tls

    async def close(self) -> None:
        """Say QUIT where that is possible, and close. Bounded; raises nothing but CancelledError."""
        try:
            if self.is_usable and self._is_greeted:
                with contextlib.suppress(DeliveryFault):
                    await self.run(quit_(), total_s=QUIT_TIMEOUT_S)
            if self._transport is not None and self.fault is None:
                self._transport.close()
                await asyncio.wait({self._closed}, timeout=TLS_SHUTDOWN_TIMEOUT_S)
        finally:
            self.abort()

    def abort(self) -> None:
        """End the connection at once, whatever it is doing. A dialogue under way is interrupted."""
        self._end(DeliveryFault("closed", stage=Stage.CONNECT, detail="The connection was given up here."))
        self._interrupt(sent=True)

    # --- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._use(cast(asyncio.Transport, transport))

    def _use(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._write = transport.write

    def data_received(self, data: bytes) -> None:
        if self.fault is not None:
            return
        if self.transcript is not None:
            self.transcript.received(data)
        try:
            replies = self._reader.feed(data)
        except ReplyFault as fault:
            self._garbled(fault)
            return
        if replies:
            if len(replies) == self._awaited and not self._group:
                self._awaited = 0
                self._advance(replies)
            else:
                self._take(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.fault is None:
            # Without an exception the server has closed in the proper way.
            stage = self._stage
            self.fault = opening_fault("closed", stage) if exc is None else translate(exc, stage)
            if stage is Stage.GREETING and self._reader.unread.startswith(b"\x15\x03"):
                self.fault = DeliveryFault("tls-wrong-port")
        if not self._closed.done():
            self._closed.set_result(None)
        self.resume_writing()
        self._interrupt(sent=True)

    def pause_writing(self) -> None:
        self._is_paused = True

    def resume_writing(self) -> None:
        self._is_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    # --- called by the watch

    def deadline_passed(self) -> None:
        """End the connection, because the server has not done in time what the present step waits for."""
        stage = self._stage
        self._end(opening_fault("greeting-timeout" if stage is Stage.GREETING else "reply-timeout", stage))
        self._interrupt(sent=True)

    # --- moving the dialogue on

    @property
    def _stage(self) -> Stage:
        return self._step.stage if self._step is not None else Stage.GREETING

    def _advance(self, replies: list[Reply] | None) -> None:
        """Give the dialogue what it waits for, and begin its next step."""
        dialogue = self._dialogue
        if dialogue is None:
            return
        try:
            step = dialogue.send(replies)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            self._finish(end.value)
        except Exception as error:
            self._fail(error)
        else:
            self._begin(step)

    def _throw(self, error: Exception) -> None:
        dialogue = self._dialogue
        if dialogue is None:
            return
        try:
            step = dialogue.throw(error)
        except StopIteration as end:
            self._finish(end.value)
        except Exception as raised:
            self._fail(raised)
        else:
            self._begin(step)

    def _begin(self, step: Step) -> None:
        self._step = step
        if self.fault is not None:
            self._throw(Interrupted(self._fault_in(step.stage), sent=False))
        elif type(step) is Send:
            data, self._awaited, patience, _, secret = step
            deadline = self._loop.time() + self._timeouts[patience]
            self.deadline = deadline if deadline < self._ends_by else self._ends_by
            if self._early:
                self._begin_late(step)
                return
            if self.transcript is not None:
                self._write_down(step)
            if secret:
                self.hide((data.rpartition(b" ")[2].strip().decode("ascii"),))
            if data:
                self._write(data)
        else:
            self.deadline = self._ends_by
            work = self._stream(step) if isinstance(step, Stream) else self._pause(cast(Pause, step))
            self._task = self._loop.create_task(work)

    def _begin_late(self, step: Send) -> None:
        """Replies are there before the step is written: rightly only the greeting, which nothing asks for."""
        early, self._early = self._early, []
        if step.stage is Stage.GREETING and not self._is_greeted and len(early) == 1:
            self._awaited = 0
            self._advance(early)
            return
        negative = next((reply for reply in early if reply.code >= 400), None)
        fault = refused(step.stage, negative) if negative else opening_fault("out-of-step", step.stage)
        self._end(fault)
        self._throw(Interrupted(fault, sent=False))

    def _take(self, replies: list[Reply]) -> None:
        """Replies that are not exactly those waited for: a part of a group, more than asked for, or unasked."""
        awaited = self._awaited
        if awaited == 0:
            self._surprised(replies)
            return
        group = self._group = self._group + replies
        if len(group) < awaited:
            for position, reply in enumerate(group):
                if reply.code == 421:
                    # RFC 5321 section 3.8: the server closes; it need not answer the rest of the group.
                    self._group = group[:position]
                    self._end(refused(self._stage, reply))
                    self._interrupt(sent=True)
                    return
            if type(self._step) is Send:
                self.deadline = min(self._loop.time() + self._timeouts[self._step.timeout], self._ends_by)
            return
        self._group, self._awaited = [], 0
        self._early = group[awaited:]
        self._advance(group[:awaited])

    def _surprised(self, replies: list[Reply]) -> None:
        """Replies that nothing waits for."""
        self._early += replies
        if self._dialogue is None:
            if self._is_greeted:
                self._end_out_of_step()
        elif self._drained is not None and not self._drained.done():
            # The server answers before the content is through: no use in sending the rest.
            self._drained.set_result(None)

    def _end_out_of_step(self) -> None:
        """The server spoke though nothing was asked: mostly 421 before it closes an idle connection."""
        closing = next((reply for reply in self._early if reply.code == 421), None)
        self._end(
            DeliveryFault("closed", stage=Stage.SENDER, reply=closing)
            if closing is not None
            else DeliveryFault("out-of-step", stage=Stage.SENDER)
        )

    def _garbled(self, found: ReplyFault) -> None:
        stage = self._stage
        self._group += found.replies
        if 0 < self._awaited <= len(self._group):
            # What was waited for did come, and the garbage behind it belongs to nothing.
            group, self._group, self._awaited = self._group[: self._awaited], [], 0
            self._end(DeliveryFault("out-of-step", stage=stage))
            self._advance(group)
            return
        if self._is_greeted and self._dialogue is None:
            self._end(DeliveryFault("out-of-step", stage=Stage.SENDER))
        elif stage is Stage.GREETING:
            self._end(_not_smtp(found.line))
        else:
            detail = f"The server's reply is not SMTP: {found.reason}."
            self._end(opening_fault("reply-garbled", stage, detail=detail))
        self._interrupt(sent=True)

    def _interrupt(self, *, sent: bool) -> None:
        """Tell the dialogue under way, if any, that the conversation has ended. A task of ours tells it itself."""
        if self._dialogue is None or self._task is not None:
            self.resume_writing()
            return
        group, self._group, self._awaited = self._group, [], 0
        self._throw(Interrupted(self._fault_in(self._stage), group, sent=sent))

    def _fault_in(self, stage: Stage) -> DeliveryFault:
        """The fault that ended the connection, as it looks from this stage."""
        fault = self.fault
        if fault is None or fault.stage is stage:
            return fault or DeliveryFault("connection-lost", stage=stage)
        if fault.reply is not None:
            return refused(stage, fault.reply)
        return opening_fault(fault.cause, stage, detail=fault.detail)

    def _finish(self, value: Any) -> None:
        future = self._release()
        if self._early and self.fault is None:
            self._end_out_of_step()
        if future is not None and not future.done():
            future.set_result(value)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, Interrupted):
            error = error.fault
        elif not isinstance(error, (DeliveryFault, Unsafe)):
            log.error("an SMTP dialogue failed", exc_info=error)
            self._end(DeliveryFault("internal", stage=self._stage))
        future = self._release()
        if future is not None and not future.done():
            future.set_exception(error)

    def _release(self) -> asyncio.Future[Any] | None:
        future, self._future, self._dialogue, self._step = self._future, None, None, None
        self._is_greeted = True
        self._watch.discard(self)
        return future

    def _end(self, fault: DeliveryFault) -> None:
        """Let the connection be of no use any more. The first reason counts."""
        if self.fault is None:
            self.fault = fault
        if self._transport is not None:
            self._transport.abort()

    # --- steps that take time of our own

    async def _stream(self, step: Stream) -> None:
        """Write content as fast as the server takes it, with at most a piece and the transport's buffer in memory."""
        try:
            async for piece in step.pieces():
                await self._write_piece(step.stuffer.feed(piece))
                if self.fault is not None or self._early:
                    break
        except Unsafe as unsafe:
            self._task = None
            self._end(DeliveryFault("content-unsafe"))
            self._throw(unsafe)
            return
        except Exception as error:
            log.error("stored content could not be read", exc_info=error)
            self._end(DeliveryFault("content-unreadable"))
        if self.transcript is not None:
            self.transcript.content(step.stuffer.octets)
        self._go_on(step.stage)

    async def _write_piece(self, wire: bytes) -> None:
        if self.fault is not None:
            return
        self._write(wire)
        if self._is_paused:
            self._drained = self._loop.create_future()
            self.deadline = min(self._loop.time() + self._timeouts["data_block"], self._ends_by)
            await self._drained
            self._drained = None
            self.deadline = self._ends_by
        else:
            # Others want to run, too, and the transport writes between two turns of the loop.
            await asyncio.sleep(0)

    async def _pause(self, step: Pause) -> None:
        try:
            await step.until()
        except Exception as error:
            log.error("the mark before the end of a message could not be kept", exc_info=error)
            self._end(DeliveryFault("mark-failed"))
        self._go_on(step.stage)

    def _go_on(self, stage: Stage) -> None:
        """A task of ours is done: on with the dialogue, unless the conversation has ended meanwhile."""
        self._task = None
        if self.fault is None and self._early:
            self._begin_late(Send(b"", 1, "command", stage))
        elif self.fault is not None:
            self._throw(Interrupted(self._fault_in(stage), sent=False))
        else:
            self._advance([])

    def _write_down(self, step: Send) -> None:
        if self.transcript is None:
            return
        if step.timeout == "data_end" and len(step.data) > len(b"\r\n.\r\n"):
            self.transcript.content(len(step.data))
        elif step.data:
            self.transcript.sent(step.data, secret=step.secret)


# What other services say first; the banner itself is not shown, so that a test does not become a port scanner.
_BANNERS = (
    (b"\x15\x03", "tls-wrong-port", ""),
    (b"SSH-", "not-smtp", "an SSH server"),
    (b"* OK", "not-smtp", "an IMAP server"),
    (b"* PREAUTH", "not-smtp", "an IMAP server"),
    (b"+OK", "not-smtp", "a POP3 server"),
    (b"HTTP/", "not-smtp", "a web server"),
    (b"<", "not-smtp", "a web server"),
    (b"RFB ", "not-smtp", "a VNC server"),
)


def _not_smtp(line: bytes) -> DeliveryFault:
    """The fault for a greeting that is none, naming what seems to be there."""
    for start, cause, name in _BANNERS:
        if line.startswith(start):
            detail = f"What answers on this port is {name}, not an SMTP server." if name else ""
            return DeliveryFault(cause, detail=detail)
    return DeliveryFault("not-smtp")
