"""Messages, servers' values and a server that follows a script of octets, for the tests of the transports."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr

from posthouse.model.auth import Mechanism, NoAuth, PasswordAuth
from posthouse.model.message import Envelope, EnvelopeRecipient, Traits
from posthouse.model.outcome import Outcome, Result, Scope
from posthouse.model.server import SmtpServer
from posthouse.model.tls import TlsMode
from posthouse.protocol.transcript import Transcript
from posthouse.transports.base import Unguarded
from posthouse.transports.smtp import SmtpSession, SmtpTransport

HEADER = b"From: a@example.org\r\nTo: b@example.net\r\nSubject: hello\r\nMessage-ID: <1@example.org>\r\n\r\n"
BODY = b"Dear B,\r\n.\r\n.. yours\r\n"
PASSWORD = "c4nary-pässword+/="


@dataclass
class Letter:
    """A message as a transport gets it."""

    header: bytes = HEADER
    body: bytes | None = BODY
    traits: int = Traits.NONE
    stored: Callable[[], AsyncIterator[bytes]] | None = None
    size: int = 0

    def __post_init__(self) -> None:
        if self.body is not None:
            self.size = len(self.header) + len(self.body)

    def chunks(self) -> AsyncIterator[bytes]:
        assert self.stored is not None
        return self.stored()


@dataclass
class Held:
    """A guard that holds for so many looks."""

    looks: int = 1000
    mark: Callable[[], Awaitable[None]] | None = None
    asked: int = field(default=0)

    def alive(self) -> bool:
        self.asked += 1
        return self.asked <= self.looks


def server_value(port: int, tls_mode: str = "none", **fields: Any) -> SmtpServer:
    fields = {
        "host": "127.0.0.1",
        "reply_timeout_s": 5.0,
        "connect_timeout_s": 5.0,
        "data_end_timeout_s": 5.0,
        **fields,
    }
    return SmtpServer(name="test", port=port, tls_mode=TlsMode(tls_mode), **fields)


def password(username: str = "user", mechanism: Mechanism = Mechanism.AUTO) -> PasswordAuth:
    return PasswordAuth(username=username, password=SecretStr(PASSWORD), mechanism=mechanism)


NO_AUTH = NoAuth()


def transport(value: SmtpServer, **options: Any) -> SmtpTransport:
    return SmtpTransport(value, ehlo_name="client.example.org", **options)


def letter_to(*recipients: str, mail_from: str = "a@example.org") -> Envelope:
    return Envelope(mail_from, tuple(EnvelopeRecipient(recipient) for recipient in recipients or ("b@example.net",)))


@contextlib.asynccontextmanager
async def opened(
    value: SmtpServer, *, transcript: Transcript | None = None, **options: Any
) -> AsyncIterator[SmtpSession]:
    session = await transport(value, **options).open(transcript=transcript)
    try:
        yield session
    finally:
        await session.close()


async def sent(
    session: SmtpSession, *recipients: str, content: Letter | None = None, guard: Any = None
) -> list[Outcome]:
    return await session.send(letter_to(*recipients), content or Letter(), guard or Unguarded())


def brief(outcomes: list[Outcome]) -> list[tuple[Result, Scope, str]]:
    return [(outcome.result, outcome.scope, outcome.cause) for outcome in outcomes]


DELIVERED = (Result.DELIVERED, Scope.NOBODY, "reply")

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class ScriptedServer:
    """Does with each connection what `talk` says, and keeps every octet that came."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.received: list[bytearray] = []
        self.port = 0

    @property
    def text(self) -> bytes:
        """All that came on all connections."""
        return b"".join(map(bytes, self.received))

    async def __aenter__(self) -> "ScriptedServer":
        self._server = await asyncio.start_server(self._converse, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[Any]] = set()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        seen = bytearray()
        self.received.append(seen)
        feed = reader.feed_data

        def keep(data: bytes) -> None:
            seen.extend(data)
            feed(data)

        reader.feed_data = keep  # type: ignore[method-assign,assignment]
        try:
            await self._talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


async def say(writer: asyncio.StreamWriter, *lines: str) -> None:
    writer.write("".join(f"{line}\r\n" for line in lines).encode())
    await writer.drain()


def greets_with(octets: bytes, *, then_hang: bool = True) -> Talk:
    """A service that says something and waits."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(octets)
        await writer.drain()
        if then_hang:
            await reader.read()

    return talk


def follows(replies: list[str], *, greeting: str = "220 scripted ESMTP") -> Talk:
    """A server that gives one of these replies to each line that comes, then hangs."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await say(writer, greeting)
        for reply in replies:
            await reader.readuntil(b"\n")
            await say(writer, reply)
        await reader.read()

    return talk
