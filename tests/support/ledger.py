"""The ledger: proves from outside that nothing acknowledged was lost, and that nothing arrived twice without a reason.

`Load` hands messages in over raw sockets, by SMTP and in REST lists, and writes a line for each that was acknowledged.
`LedgerSink` is the far side: it notes for each recipient when the final dot was seen. `compare` draws the line under
both. Each message carries a token of its own in its body and in its recipients. Nothing here shares a line with the
program under test; the times of both sides come from one monotonic clock.
"""

import asyncio
import contextlib
import itertools
import json
import random
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.support.processes import free_port

_TOKEN = re.compile(rb"^X-Token: ([0-9a-z-]+)\r$", re.MULTILINE)
_ANGLE = re.compile(rb"<([^>]*)>")


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A message for which Posthouse has taken responsibility."""

    token: str
    recipients: tuple[str, ...]
    at: float


@dataclass(frozen=True, slots=True)
class Arrival:
    """One recipient of one message at the far side; `at` is when its final dot was seen (monotonic)."""

    token: str
    recipient: str
    at: float
    session: int
    # Whether the sink answered with 2yz after the dot.
    answered: bool


class Ledger:
    """What was acknowledged and refused; one line per acknowledged message goes to `path`. Safe for several threads."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)
        self._guard = threading.Lock()
        self.acknowledged: dict[str, Acknowledged] = {}
        # Replies and statuses that were no acknowledgement, counted by their first line.
        self.refusals: dict[str, int] = {}
        # How long each refusal or acknowledgement took, in seconds; the slowest.
        self.slowest_answer_s = 0.0

    def acknowledge(self, token: str, recipients: Sequence[str]) -> None:
        entry = Acknowledged(token, tuple(recipients), time.monotonic())
        with self._guard:
            self.acknowledged[token] = entry
            self._file.write(f"{token} {' '.join(recipients)}\n")

    def refuse(self, answer: str) -> None:
        with self._guard:
            self.refusals[answer] = self.refusals.get(answer, 0) + 1

    def took(self, seconds: float) -> None:
        with self._guard:
            self.slowest_answer_s = max(self.slowest_answer_s, seconds)

    def count(self) -> int:
        with self._guard:
            return len(self.acknowledged)

    def entries(self) -> list[Acknowledged]:
        with self._guard:
            return list(self.acknowledged.values())

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The line under the ledger. Keys are (token, recipient)."""

    lost: list[tuple[str, str]]
    # Times of all copies, for those that arrived more than once.
    doubled: dict[tuple[str, str], list[float]]
    # Arrivals of what was never acknowledged: allowed once.
    unacknowledged: int

    def unexplained(self, losses: Sequence[float], *, window_s: float = 1.0) -> dict[tuple[str, str], list[float]]:
        """Give the doubled ones that promise 1 does not allow.

        An extra copy is explained by a loss (a kill, a cut) that followed the dot of the copy before it within
        `window_s`; each loss explains one copy per recipient.
        """
        bad = {}
        for key, times in self.doubled.items():
            unused = list(losses)
            for before, _ in itertools.pairwise(sorted(times)):
                cause = next((loss for loss in unused if before - 0.05 <= loss <= before + window_s), None)
                if cause is None:
                    bad[key] = [round(t, 3) for t in times]
                    break
                unused.remove(cause)
        return bad


def compare(ledger: Ledger, arrivals: Iterable[Arrival], *, until: float = float("inf")) -> Verdict:
    """Lost = acknowledged (before `until`) minus arrived; doubled = arrived more than once."""
    seen: dict[tuple[str, str], list[float]] = {}
    for arrival in arrivals:
        seen.setdefault((arrival.token, arrival.recipient), []).append(arrival.at)
    entries = [entry for entry in ledger.entries() if entry.at < until]
    owed = {(entry.token, recipient) for entry in entries for recipient in entry.recipients}
    return Verdict(
        sorted(owed - seen.keys()),
        {key: times for key, times in seen.items() if len(times) > 1},
        len(seen.keys() - owed),
    )


# ---------------------------------------------------------------- a thread with an event loop


class _Looped:
    """Runs coroutines in a thread of its own, so that tests stay plain functions that may block."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, None], timeout_s: float = 20.0) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def end(self) -> None:
        async def cancel_all() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(3):
                await asyncio.sleep(0)  # transports are closed in the turns after

        self.call(cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


# ---------------------------------------------------------------- the load


class Unanswered(Exception):
    """The connection ended, or what came was no acknowledgement."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How much, and how."""

    smtp_sessions: int = 6
    rest_sessions: int = 0
    # Messages of one REST call.
    list_length: int = 20
    api_key: str = ""
    # Each session waits this long after an acknowledgement, so that the number of messages stays within bounds.
    pause_s: float = 0.01
    # One message in so many has three recipients, one in so many a body above 256 KiB (0: none).
    three_recipients_every: int = 5
    large_every: int = 0
    body_octets: int = 2000
    # An SMTP session is used for so many messages, then opened anew.
    messages_per_session: int = 20
    domain: str = "example.org"


class Load:
    """Hands messages in until `stop`, through whatever happens to the other side; also a context manager."""

    def __init__(
        self, ledger: Ledger, smtp_ports: Sequence[int], http_ports: Sequence[int], options: LoadOptions
    ) -> None:
        self.ledger = ledger
        self._smtp_ports = smtp_ports
        self._http_ports = http_ports
        self._options = options
        self._numbers = itertools.count(1)
        self._prefix = f"{random.SystemRandom().getrandbits(40):010x}"
        self._looped = _Looped("load")
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        self._looped.begin()

        async def begin() -> None:
            for number in range(self._options.smtp_sessions):
                port = self._smtp_ports[number % len(self._smtp_ports)]
                self._tasks.append(asyncio.create_task(self._repeat(lambda p=port: self._smtp_session(p))))  # type: ignore[misc]
            for number in range(self._options.rest_sessions):
                port = self._http_ports[number % len(self._http_ports)]
                self._tasks.append(asyncio.create_task(self._repeat(lambda p=port: self._rest_session(p))))  # type: ignore[misc]

        self._looped.call(begin())

    def stop(self) -> None:
        """End after the messages that are on the way; what is not answered within some seconds is given up."""
        if self._stopping:
            return
        self._stopping = True

        async def wait() -> None:
            await asyncio.wait(self._tasks, timeout=8)

        self._looped.call(wait())
        self._looped.end()

    def token(self) -> str:
        return f"{self._prefix}-{next(self._numbers):06d}"

    async def _repeat(self, session: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while not self._stopping:
            try:
                await session()
            except (OSError, EOFError, Unanswered, TimeoutError, ValueError):
                await asyncio.sleep(0.03)

    def _message(self) -> tuple[str, list[str], str, int]:
        token = self.token()
        number = int(token.rpartition("-")[2])
        options = self._options
        count = 3 if options.three_recipients_every and number % options.three_recipients_every == 0 else 1
        recipients = [f"r{i}.{token}@{options.domain}" for i in range(count)]
        is_large = bool(options.large_every) and number % options.large_every == 0
        return token, recipients, f"Message {number}", 300_000 if is_large else options.body_octets

    async def _smtp_session(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await _reply(reader)
            await _say(reader, writer, "EHLO load.example.org", "2")
            for _ in range(self._options.messages_per_session):
                await self._smtp_message(reader, writer)
                if self._stopping:
                    break
                await asyncio.sleep(self._options.pause_s)
            await _say(reader, writer, "QUIT", "2")
        finally:
            writer.close()

    async def _smtp_message(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        token, recipients, subject, octets = self._message()
        commands = [f"MAIL FROM:<load@{self._options.domain}>", *(f"RCPT TO:<{r}>" for r in recipients), "DATA"]
        for command in commands:
            begun = time.monotonic()
            reply = await _command(reader, writer, command)
            self.ledger.took(time.monotonic() - begun)
            if reply[:1] not in "23":
                self.ledger.refuse(reply)
                raise Unanswered(reply)
        content = message_octets(token, recipients, subject, octets, self._options.domain)
        writer.write(content + b".\r\n")
        await writer.drain()
        begun = time.monotonic()
        reply = await _reply(reader)
        self.ledger.took(time.monotonic() - begun)
        if not reply.startswith("250"):
            self.ledger.refuse(reply)
            raise Unanswered(reply)
        self.ledger.acknowledge(token, recipients)

    async def _rest_session(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while not self._stopping:
                await self._rest_list(reader, writer)
                await asyncio.sleep(self._options.pause_s * self._options.list_length)
        finally:
            writer.close()

    async def _rest_list(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made = [self._message() for _ in range(self._options.list_length)]
        body = json.dumps(
            [
                {
                    "from": f"load@{self._options.domain}",
                    "to": recipients,
                    "subject": subject,
                    "text": "x" * min(octets, 2000),
                    "headers": {"X-Token": token},
                }
                for token, recipients, subject, octets in made
            ]
        ).encode()
        head = (
            "POST /api/v1/messages HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {self._options.api_key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        begun = time.monotonic()
        writer.write(head.encode() + body)
        status, answer = await _http_answer(reader)
        self.ledger.took(time.monotonic() - begun)
        if status != 202:
            self.ledger.refuse(f"{status} {answer[:200].decode(errors='replace')}")
            raise Unanswered
        for (token, recipients, _, _), item in zip(made, json.loads(answer)["items"], strict=True):
            if "id" in item:
                self.ledger.acknowledge(token, recipients)
            else:
                self.ledger.refuse(json.dumps(item)[:200])


def message_octets(
    token: str, recipients: Sequence[str], subject: str, octets: int, domain: str = "example.org"
) -> bytes:
    """Give a whole message that carries the token."""
    header = (
        f"From: load@{domain}\r\nTo: {', '.join(recipients[:20])}\r\nSubject: {subject}\r\n"
        f"X-Token: {token}\r\nMessage-ID: <{token}@load.{domain}>\r\nDate: Fri, 20 Nov 2026 10:00:00 +0000\r\n\r\n"
    )
    line = b"x" * 76 + b"\r\n"
    return header.encode() + line * max(1, octets // len(line))


async def _say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: str, wanted: str) -> None:
    reply = await _command(reader, writer, line)
    if reply[:1] not in wanted:
        raise Unanswered(reply)


async def _command(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: str) -> str:
    writer.write(line.encode() + b"\r\n")
    return await _reply(reader)


async def _reply(reader: asyncio.StreamReader) -> str:
    async with asyncio.timeout(30):
        while True:
            line = await reader.readuntil(b"\r\n")
            if line[3:4] != b"-":
                return line.decode(errors="replace").rstrip()


async def _http_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    async with asyncio.timeout(30):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"(?i)^content-length: (\d+)\r$", head, re.MULTILINE)
        body = await reader.readexactly(int(length[1])) if length else b""
        return int(head.split(" ", 2)[1]), body


# ---------------------------------------------------------------- the far side


@dataclass(slots=True)
class SinkRules:
    """How the sink behaves; may be changed while it runs."""

    # Between the final dot and its reply.
    dot_delay_s: float = 0.0
    # The reply to a recipient, by address and how often it was named before; None takes it.
    recipient_reply: Callable[[str, int], str | None] = field(default=lambda address, before: None)
    # The reply after the dot, by token and how often that token's dot was seen before; "" closes without one.
    dot_reply: Callable[[str, int], str | None] = field(default=lambda token, before: None)
    # The reply to MAIL; None takes it.
    mail_reply: Callable[[], str | None] = field(default=lambda: None)
    greeting: str = "220 sink.example.org ESMTP"


class LedgerSink:
    """A small SMTP server that notes arrivals. May be stopped and started again on its port; also a context manager."""

    def __init__(self, rules: SinkRules | None = None, *, port: int = 0) -> None:
        self.rules = rules or SinkRules()
        self.port = port or free_port()
        self._guard = threading.Lock()
        self._arrivals: list[Arrival] = []
        # Message-ID of each arrival's message, by token, in order.
        self.message_ids: dict[str, list[str]] = {}
        # The whole octets by token of the last copy, where they are wanted.
        self.keeps_content = False
        self.contents: dict[str, bytes] = {}
        self.connections = 0
        self.commands: list[tuple[float, str]] = []
        self._named: dict[str, int] = {}
        self._dots: dict[str, int] = {}
        self._looped: _Looped | None = None
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        self._looped = _Looped("ledger-sink")
        self._looped.begin()

        async def listen() -> None:
            self._server = await asyncio.start_server(
                self._converse, "127.0.0.1", self.port, limit=1 << 22, backlog=1024
            )

        self._looped.call(listen())

    def stop(self) -> None:
        """Stop listening and cut every connection."""
        if self._looped is None:
            return

        async def close() -> None:
            assert self._server is not None
            self._server.close()
            for writer in list(self._writers):
                writer.transport.abort()

        self._looped.call(close())
        self._looped.end()
        self._looped = None

    def arrivals(self) -> list[Arrival]:
        with self._guard:
            return list(self._arrivals)

    def count(self) -> int:
        with self._guard:
            return len(self._arrivals)

    def of(self, token: str) -> list[Arrival]:
        """Give the arrivals of one message."""
        return [arrival for arrival in self.arrivals() if arrival.token == token]

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        session = self.connections
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            await self._session(session, reader, writer)
        self._writers.discard(writer)
        writer.transport.abort()

    async def _session(self, session: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{self.rules.greeting}\r\n".encode())
        if not self.rules.greeting.startswith("220"):
            await writer.drain()
            return
        recipients: list[str] = []
        while True:
            line = await reader.readuntil(b"\r\n")
            verb = line[:4].upper()
            if verb in (b"EHLO", b"MAIL", b"QUIT"):
                self.commands.append((time.monotonic(), line.decode(errors="replace").rstrip()))
            if verb == b"EHLO":
                writer.write(
                    b"250-sink\r\n250-PIPELINING\r\n250-SIZE 209715200\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n"
                )
            elif verb == b"MAIL":
                recipients = []
                writer.write((self.rules.mail_reply() or "250 2.1.0 ok").encode() + b"\r\n")
            elif verb == b"RCPT":
                writer.write(self._recipient(line, recipients))
            elif verb == b"DATA":
                if not recipients:
                    writer.write(b"503 5.5.1 no recipient\r\n")
                    continue
                writer.write(b"354 go on\r\n")
                if not await self._content(session, recipients, reader, writer):
                    await writer.drain()
                    return
                recipients = []
            elif verb == b"QUIT":
                writer.write(b"221 2.0.0 bye\r\n")
                await writer.drain()
                return
            else:
                writer.write(b"250 2.0.0 ok\r\n")

    def _recipient(self, line: bytes, recipients: list[str]) -> bytes:
        found = _ANGLE.search(line)
        address = found[1].decode() if found else ""
        before = self._named.get(address, 0)
        self._named[address] = before + 1
        reply = self.rules.recipient_reply(address, before)
        if reply is None or reply.startswith("2"):
            recipients.append(address)
        return (reply or "250 2.1.5 ok").encode() + b"\r\n"

    async def _content(
        self, session: int, recipients: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Read to the final dot, note who got it, and answer. False: the connection ends here."""
        content = await _read_to_dot(reader)
        seen_at = time.monotonic()
        found = _TOKEN.search(content[:65536])
        token = found[1].decode() if found else "none"
        before = self._dots.get(token, 0)
        self._dots[token] = before + 1
        reply = self.rules.dot_reply(token, before)
        if reply is None or reply == "" or reply.startswith("2"):
            self._note(session, token, recipients, seen_at, content, answered=reply != "")
        if reply == "":
            return False
        if self.rules.dot_delay_s:
            await asyncio.sleep(self.rules.dot_delay_s)
        writer.write((reply or "250 2.0.0 taken").encode() + b"\r\n")
        return True

    def _note(
        self, session: int, token: str, recipients: list[str], at: float, content: bytes, *, answered: bool
    ) -> None:
        message_id = re.search(rb"(?im)^message-id:\s*(\S+)", content[:65536])
        with self._guard:
            self._arrivals.extend(Arrival(token, recipient, at, session, answered) for recipient in recipients)
            self.message_ids.setdefault(token, []).append(message_id[1].decode() if message_id else "")
            if self.keeps_content:
                self.contents[token] = content


async def _read_to_dot(reader: asyncio.StreamReader) -> bytes:
    """Read up to CRLF.CRLF, in pieces so that a large message costs no parse per line; doubled dots are taken away."""
    pieces: list[bytes] = []
    tail = b"\r\n"
    while True:
        piece = await reader.read(1 << 20)
        if not piece:
            raise EOFError
        pieces.append(piece)
        tail = (tail + piece)[-5:]
        if tail == b"\r\n.\r\n":
            content = b"".join(pieces)[:-3]
            return (b"\r\n" + content).replace(b"\r\n..", b"\r\n.")[2:]
