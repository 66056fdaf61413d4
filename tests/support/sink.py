"""Servers that take every mail and tell the test what arrived: the judge of what Posthouse delivered.

`CaptureServer` reads SMTP with a parser of its own that shares no line with the program under test, keeps each message
byte for byte with envelope, time and session, and notes what a strict server would have objected to. `CountingSink` is
Postfix's `smtp-sink`, for numbers. For servers that misbehave, see `posthouse.testing.smtp`.
"""

import asyncio
import base64
import re
import ssl
import threading
import time
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.support.certificates import Leaf
from tests.support.processes import Child, free_port, listens, program, wait_until

# RFC 5321 4.5.3.1.6: 1,000 octets with CRLF.
LONGEST_LINE = 1000
_PATH = re.compile(rb"^(?:MAIL FROM|RCPT TO):[ ]?<((?:[^<>\"]|\"(?:[^\"\\]|\\.)*\")*)>((?: [^ ]+)*)$", re.IGNORECASE)


@dataclass(slots=True)
class Session:
    """One connection, as the server saw it."""

    number: int
    client: tuple[str, int]
    ehlo: str | None = None
    tls_version: str | None = None
    user: str | None = None
    commands: list[bytes] = field(default_factory=list)
    messages: int = 0
    ended_with_quit: bool = False
    closed: bool = False


@dataclass(frozen=True, slots=True)
class CapturedRecipient:
    """An address of the envelope and the parameters that came with it."""

    address: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CapturedMessage:
    """One message that was answered with 250."""

    mail_from: str
    parameters: Mapping[str, str]
    recipients: tuple[CapturedRecipient, ...]
    # The bytes after removal of the dots that RFC 5321 4.5.2 adds, with the line ends as they came.
    content: bytes
    session: Session
    # Which message of its session this was, from 1.
    ordinal: int
    arrived_at: float
    arrived_monotonic: float
    # What breaks RFC 5321, 5322 or 6152, in words; empty for clean mail.
    objections: tuple[str, ...]

    @property
    def addresses(self) -> list[str]:
        return [recipient.address for recipient in self.recipients]

    @property
    def header(self) -> bytes:
        return self.content.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.content.partition(b"\r\n\r\n")[2]

    def header_values(self, name: str) -> list[str]:
        """Give the unfolded values of a header field, first one first; bytes above 127 as UTF-8."""
        unfolded = re.sub(rb"\r\n(?=[ \t])", b"", self.header)
        wanted = name.lower().encode() + b":"
        lines = [line for line in unfolded.split(b"\r\n") if line.lower().startswith(wanted)]
        return [line[len(wanted) :].strip().decode("utf-8", "surrogateescape") for line in lines]


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """What the server offers; it takes all mail whatever is set here."""

    tls: Leaf | None = None
    implicit_tls: bool = False
    # Names and passwords; where given, MAIL needs AUTH first.
    users: Mapping[str, str] = field(default_factory=dict)
    extensions: tuple[str, ...] = ("PIPELINING", "SIZE 104857600", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN")


class CaptureServer:
    """Listens on `port` in a thread of its own from `start()` to `stop()`; also a context manager."""

    def __init__(self, options: CaptureOptions | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.options = options or CaptureOptions()
        self.host = host
        self.port = port or free_port(host)
        self.sessions: list[Session] = []
        self._messages: list[CapturedMessage] = []
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; returns when connections are taken."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"sink-{self.port}", daemon=True)
        self._thread.start()
        self._call(self._listen()).result(10)

    def stop(self) -> None:
        """Close every connection and stop listening; what was captured stays. May be started again."""
        if self._thread is None or self._loop is None:
            return
        self._call(self._close()).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self._thread = None

    @property
    def messages(self) -> list[CapturedMessage]:
        """Give a copy of what arrived so far, in order of arrival."""
        with self._changed:
            return list(self._messages)

    def clear(self) -> None:
        """Forget what arrived."""
        with self._changed:
            self._messages.clear()

    def wait_for(self, count: int, *, timeout_s: float = 20.0) -> list[CapturedMessage]:
        """Wait until at least `count` messages are here and return all. Fails, saying how many came."""
        with self._changed:
            arrived = self._changed.wait_for(lambda: len(self._messages) >= count, timeout_s)
            if not arrived:
                raise AssertionError(f"{len(self._messages)} of {count} messages arrived within {timeout_s:g} s.")
            return list(self._messages)

    def wait_for_one(self, *, timeout_s: float = 20.0) -> CapturedMessage:
        """Wait for the one message that the test sent. Fails when there are more."""
        messages = self.wait_for(1, timeout_s=timeout_s)
        assert len(messages) == 1, f"{len(messages)} messages arrived, one was expected."
        return messages[0]

    def keep(self, message: CapturedMessage) -> None:
        """Take a message of one of the conversations."""
        with self._changed:
            self._messages.append(message)
            self._changed.notify_all()

    def _call(self, coroutine: Coroutine[Any, Any, None]) -> "Future[None]":
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _listen(self) -> None:
        context = self.options.tls.server_context() if self.options.tls and self.options.implicit_tls else None
        self._server = await asyncio.start_server(
            self._converse, self.host, self.port, limit=1 << 20, ssl=context, backlog=1024
        )

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        session = Session(len(self.sessions) + 1, writer.get_extra_info("peername")[:2])
        self.sessions.append(session)
        try:
            await _Conversation(self, session, reader, writer).run()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ssl.SSLError):
            pass
        finally:
            session.closed = True
            self._writers.discard(writer)
            writer.transport.abort()


class _Refused(Exception):
    """A command that gets a 5yz reply."""


class _Conversation:
    """The server's half of one SMTP session (RFC 5321)."""

    def __init__(
        self, server: CaptureServer, session: Session, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._server = server
        self._options = server.options
        self._session = session
        self._reader = reader
        self._writer = writer
        self._mail_from: tuple[str, dict[str, str]] | None = None
        self._recipients: list[CapturedRecipient] = []
        self._objections: list[str] = []
        self._note_tls()

    async def run(self) -> None:
        await self._reply("220 sink.example.test ESMTP")
        while True:
            line = await self._reader.readuntil(b"\n")
            if not line.endswith(b"\r\n"):
                self._objections.append("a command ends with a bare LF")
            command = line.rstrip(b"\r\n")
            self._session.commands.append(command)
            verb = command.split(b" ", 1)[0].upper()
            if verb == b"QUIT":
                self._session.ended_with_quit = True
                await self._reply("221 2.0.0 bye")
                return
            try:
                await self._carry_out(verb, command)
            except _Refused as refusal:
                await self._reply(str(refusal))

    async def _carry_out(self, verb: bytes, command: bytes) -> None:
        match verb:
            case b"EHLO" | b"HELO":
                await self._greet(verb, command)
            case b"STARTTLS":
                await self._start_tls()
            case b"AUTH":
                await self._authenticate(command)
            case b"MAIL":
                await self._take_sender(command)
            case b"RCPT":
                await self._take_recipient(command)
            case b"DATA":
                await self._take_content()
            case b"RSET":
                self._forget()
                await self._reply("250 2.0.0 forgotten")
            case b"NOOP":
                await self._reply("250 2.0.0 here")
            case _:
                raise _Refused("500 5.5.2 no such command")

    async def _greet(self, verb: bytes, command: bytes) -> None:
        self._forget()
        self._session.ehlo = command.partition(b" ")[2].decode("utf-8", "replace")
        if verb == b"HELO":
            await self._reply("250 sink.example.test")
            return
        offers = list(self._options.extensions)
        if self._options.tls and not self._session.tls_version:
            offers.append("STARTTLS")
        if self._options.users:
            offers.append("AUTH PLAIN LOGIN")
        lines = ["sink.example.test", *offers]
        marked = [f"250-{line}" for line in lines[:-1]] + [f"250 {lines[-1]}"]
        await self._reply("\r\n".join(marked))

    async def _start_tls(self) -> None:
        if not self._options.tls or self._session.tls_version:
            raise _Refused("503 5.5.1 no TLS here")
        await self._reply("220 2.0.0 go ahead")
        await self._writer.start_tls(self._options.tls.server_context())
        self._note_tls()
        self._session.ehlo = None

    def _note_tls(self) -> None:
        tls = self._writer.get_extra_info("ssl_object")
        if tls is not None:
            self._session.tls_version = tls.version()

    async def _authenticate(self, command: bytes) -> None:
        _, mechanism, initial = (*command.split(b" ", 2), b"")[:3]
        if mechanism.upper() == b"PLAIN":
            answer = initial or await self._challenge("")
            _, user, password = base64.b64decode(answer).split(b"\0")
        elif mechanism.upper() == b"LOGIN":
            user = base64.b64decode(initial or await self._challenge(base64.b64encode(b"Username:").decode()))
            password = base64.b64decode(await self._challenge(base64.b64encode(b"Password:").decode()))
        else:
            raise _Refused("504 5.5.4 no such mechanism")
        if self._options.users.get(user.decode()) != password.decode():
            raise _Refused("535 5.7.8 wrong name or password")
        self._session.user = user.decode()
        await self._reply("235 2.7.0 welcome")

    async def _challenge(self, text: str) -> bytes:
        await self._reply(f"334 {text}")
        answer = (await self._reader.readuntil(b"\r\n")).rstrip(b"\r\n")
        if answer == b"*":
            raise _Refused("501 5.7.0 cancelled")
        return answer

    async def _take_sender(self, command: bytes) -> None:
        if self._session.ehlo is None:
            raise _Refused("503 5.5.1 say EHLO first")
        if self._options.users and self._session.user is None:
            raise _Refused("530 5.7.0 log in first")
        if self._mail_from is not None:
            raise _Refused("503 5.5.1 one sender only")
        self._mail_from = self._path(command)
        await self._reply("250 2.1.0 sender ok")

    async def _take_recipient(self, command: bytes) -> None:
        if self._mail_from is None:
            raise _Refused("503 5.5.1 say MAIL first")
        address, parameters = self._path(command)
        if not address:
            raise _Refused("501 5.1.3 an empty recipient")
        self._recipients.append(CapturedRecipient(address, parameters))
        await self._reply("250 2.1.5 recipient ok")

    def _path(self, command: bytes) -> tuple[str, dict[str, str]]:
        found = _PATH.match(command)
        if not found:
            raise _Refused("501 5.5.4 that is no path")
        words = found[2].decode("utf-8", "surrogateescape").split()
        pairs = [word.partition("=") for word in words]
        return found[1].decode("utf-8", "surrogateescape"), {name.upper(): value for name, _, value in pairs}

    async def _take_content(self) -> None:
        if self._mail_from is None or not self._recipients:
            raise _Refused("503 5.5.1 say MAIL and RCPT first")
        await self._reply("354 go ahead")
        content = await self._read_content()
        self._session.messages += 1
        mail_from, parameters = self._mail_from
        message = CapturedMessage(
            mail_from=mail_from,
            parameters=parameters,
            recipients=tuple(self._recipients),
            content=content,
            session=self._session,
            ordinal=self._session.messages,
            arrived_at=time.time(),
            arrived_monotonic=time.monotonic(),
            objections=(*self._objections, *self._faults(content)),
        )
        self._server.keep(message)
        self._forget()
        await self._reply(f"250 2.0.0 kept as {self._session.number}.{message.ordinal}")

    async def _read_content(self) -> bytes:
        """Read up to CRLF.CRLF and nothing else (RFC 5321 4.1.1.4), taking doubled dots away."""
        lines: list[bytes] = []
        while True:
            line = await self._read_line()
            if line == b".\r\n":
                return b"".join(lines)
            lines.append(line[1:] if line.startswith(b".") else line)

    async def _read_line(self) -> bytes:
        pieces: list[bytes] = []
        while True:
            try:
                pieces.append(await self._reader.readuntil(b"\r\n"))
                return b"".join(pieces)
            except asyncio.LimitOverrunError as problem:
                # Keep the last octet back: it may be the CR of the line's end.
                pieces.append(await self._reader.readexactly(max(problem.consumed - 1, 1)))

    def _faults(self, content: bytes) -> list[str]:
        assert self._mail_from is not None
        parameters = self._mail_from[1]
        faults = []
        bare = content.replace(b"\r\n", b"")
        if b"\n" in bare or b"\r" in bare:
            faults.append("a bare CR or LF in the content")
        if b"\0" in content:
            faults.append("a NUL in the content")
        longest = max((len(line) + 2 for line in content.split(b"\r\n")), default=0)
        if longest > LONGEST_LINE:
            faults.append(f"a line of {longest} octets")
        header, _, body = content.partition(b"\r\n\r\n")
        if not header.isascii() and "SMTPUTF8" not in parameters:
            faults.append("octets above 127 in the header without SMTPUTF8")
        if not body.isascii() and parameters.get("BODY", "").upper() != "8BITMIME":
            faults.append("octets above 127 in the body without BODY=8BITMIME")
        addresses = [self._mail_from[0], *(recipient.address for recipient in self._recipients)]
        if not all(address.isascii() for address in addresses) and "SMTPUTF8" not in parameters:
            faults.append("an address beyond ASCII without SMTPUTF8")
        announced = parameters.get("SIZE")
        if announced is not None and (not announced.isdigit() or int(announced) < len(content)):
            faults.append(f"SIZE={announced} announced for {len(content)} octets")
        return faults

    def _forget(self) -> None:
        self._mail_from = None
        self._recipients = []
        self._objections = []

    async def _reply(self, text: str) -> None:
        self._writer.write(text.encode() + b"\r\n")
        await self._writer.drain()


class CountingSink:
    """Postfix's `smtp-sink` on `port`, counting what it takes in a file that is cheap to look at."""

    def __init__(self, folder: Path, *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        self._folder = folder
        self._options = options
        self._child: Child | None = None
        # Messages that arrived before the last restart.
        self._before = 0

    def start(self) -> None:
        """Start it and return when it takes connections."""
        arguments = [program("smtp-sink"), "-c", *self._options, "-u", "nobody", f"127.0.0.1:{self.port}", "1024"]
        log = self._folder / f"smtp-sink-{self.port}.log"
        log.unlink(missing_ok=True)
        self._child = Child(arguments, log)
        self._child.wait_for(lambda: listens(self.port), "smtp-sink's port")

    def stop(self) -> None:
        """End it; the count stays."""
        if self._child is not None:
            self._before = self.count()
            self._child.end()
            self._child = None

    def count(self) -> int:
        """Give how many messages arrived since the first start."""
        if self._child is None:
            return self._before
        with self._child.log_path.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - 400))
            tail = log.read()
        counts = re.findall(rb"mesg=(\d+)\r", tail)
        return self._before + (int(counts[-1]) if counts else 0)

    def wait_for(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Wait until at least `count` messages arrived."""
        wait_until(lambda: self.count() >= count, f"{count} messages at smtp-sink", timeout_s=timeout_s, every_s=0.002)
