"""An SMTP server that misbehaves as it is told, and writes down everything that it was sent.

In a test::

    from posthouse.testing.smtp import MisbehavingServer
    from posthouse.testing.smtp_misbehaviours import Stage, close_at, without

    async with MisbehavingServer(close_at(Stage.DATA), without("PIPELINING")) as server:
        ...                                 # let your program send to server.host, server.port
    assert server.messages == []
    assert server.sessions[0].clear_lines[0].startswith(b"EHLO")

`run_in_thread` does the same for tests that are not coroutines. As a command, which prints the dialogue::

    python -m posthouse.testing.smtp --port 2525 --misbehave greylisting --misbehave hang_at_quit
    python -m posthouse.testing.smtp --list

Without any misbehaviour it is a plain server: it takes all mail, offers STARTTLS with a certificate of its own, and
takes any user name and password, with or without TLS. A misbehaviour is a function from rules to rules, so that several
combine; `posthouse.testing.smtp_misbehaviours` has all of them. This is a tool for tests
on one machine: it delivers nothing, and keeps every message in memory.
"""

import argparse
import asyncio
import base64
import contextlib
import datetime as dt
import ipaddress
import re
import ssl
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from posthouse.testing.smtp_misbehaviours import (
    CATALOGUE,
    AuthOffer,
    Misbehaviour,
    Rules,
    Stage,
    Then,
    Tls,
    announcing_size,
    combined,
    encoded_reply,
    replies_by_recipient,
    reply_at,
    slow,
)

# The longest line that is read; above RFC 5321 4.5.3.1.6 by far, because what arrives is to be seen, not refused.
LINE_LIMIT_OCTETS = 16 * 1024 * 1024
# A path of MAIL or RCPT and the parameters after it (RFC 5321 4.1.2).
_PATH = re.compile(rb"^[A-Z]+ (?:FROM|TO): ?<(.*)>(.*)$", re.IGNORECASE)


# -- What was seen ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """A message whose final dot was read, whatever was replied then."""

    mail_from: str
    # The addresses that were taken.
    recipients: tuple[str, ...]
    # What stood after the paths, such as "SIZE=120 BODY=8BITMIME", of MAIL and by recipient.
    mail_parameters: str
    recipient_parameters: Mapping[str, str]
    # Octets as they came, the doubled dots taken away.
    content: bytes
    under_tls: bool
    session_number: int
    # Whether the sender was told that it was taken.
    accepted: bool


@dataclass(slots=True)
class Session:
    """One connection and every line that came on it, without its CRLF; the content stands in the messages."""

    number: int
    client_host: str
    clear_lines: list[bytes] = field(default_factory=list)
    tls_lines: list[bytes] = field(default_factory=list)
    tls_version: str | None = None
    # The user name and password of every login that was tried.
    logins: list[tuple[str, str]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    closed: bool = False


# -- The server ---------------------------------------------------------------------------------------------------


class MisbehavingServer:
    """Listens from `async with` (or `start`) to its end (or `stop`); what was seen stays in `sessions`.

    `port` 0 takes a free one. `tls` is the context for STARTTLS, or from the first octet with `implicit_tls`; without
    it the server makes a certificate for localhost that nobody trusts. `watch` gets every line in both directions.
    """

    def __init__(
        self,
        *misbehaviours: Misbehaviour,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        implicit_tls: bool = False,
        watch: Callable[[int, str, bytes], None] | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self.sessions: list[Session] = []
        self.tls = tls or self_signed_context()
        # Triples of client, sender and recipient that greylisting has seen.
        self.greylist: set[tuple[str, str, str]] = set()
        self._implicit_tls = implicit_tls
        self._misbehaviours = misbehaviours
        self._watch = watch
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    @property
    def messages(self) -> list[Message]:
        """Give all messages of all sessions, in order of arrival within each."""
        return [message for session in self.sessions for message in session.messages]

    @property
    def open_connections(self) -> int:
        """Give how many connections stand now."""
        return len(self._open)

    def misbehave(self, *misbehaviours: Misbehaviour) -> None:
        """Misbehave in these ways, instead of the former, from the next connection on; none: behave."""
        self._misbehaviours = misbehaviours

    async def start(self) -> None:
        """Listen; `port` is the real one on return."""
        self._server = await asyncio.start_server(
            self._converse,
            self.host,
            self.port,
            limit=LINE_LIMIT_OCTETS,
            ssl=self.tls if self._implicit_tls else None,
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close every connection and stop listening."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._open.values():
            writer.transport.abort()
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        session = Session(len(self.sessions) + 1, str(writer.get_extra_info("peername")[0]))
        self.sessions.append(session)
        rules = combined(self._misbehaviours, Rules(session_number=session.number))
        try:
            await _Conversation(self, rules, session, reader, writer, self._watch).run()
        except (_Closed, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ssl.SSLError):
            pass
        except asyncio.CancelledError:
            # Only `stop` cancels; a task that ends as cancelled would be reported by asyncio's streams.
            pass
        finally:
            del self._open[task]
            session.closed = True
            with contextlib.suppress(OSError, ssl.SSLError):
                writer.close()


class _Closed(Exception):
    """The rules say that the session ends here."""


class _Conversation:
    """The server's half of one session: reads commands, and replies by the rules (RFC 5321)."""

    def __init__(
        self,
        server: MisbehavingServer,
        rules: Rules,
        session: Session,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        watch: Callable[[int, str, bytes], None] | None,
    ) -> None:
        self._server = server
        self._rules = rules
        self._session = session
        self._reader = reader
        self._writer = writer
        self._watch = watch
        self._mail_from: tuple[str, str] | None = None
        self._recipients: dict[str, str] = {}
        self._logged_in = False
        self._note_tls()

    async def run(self) -> None:
        """Hold the session until its end."""
        limit = self._rules.max_connections
        if limit is not None and self._server.open_connections > limit:
            await self._send(b"421 4.7.0 Too many connections\r\n")
            raise _Closed
        await self._reply(Stage.GREETING, "220 misbehaving.example.test ESMTP")
        while True:
            line = await self._read_line()
            verb = line.split(b" ", 1)[0].upper()
            match verb:
                case b"EHLO" | b"HELO":
                    await self._greet(verb)
                case b"STARTTLS":
                    await self._start_tls()
                case b"AUTH":
                    await self._authenticate(line)
                case b"MAIL":
                    await self._take_sender(line)
                case b"RCPT":
                    await self._take_recipient(line)
                case b"DATA":
                    await self._take_content()
                case b"RSET":
                    self._forget()
                    await self._reply(Stage.RSET, "250 2.0.0 Forgotten")
                case b"NOOP":
                    await self._say("250 2.0.0 Here")
                case b"QUIT":
                    await self._reply(Stage.QUIT, "221 2.0.0 Bye")
                    return
                case _:
                    await self._say("500 5.5.2 No such command")

    # Replies

    async def _reply(self, stage: Stage, usual: str) -> bool:
        """Do what the rules say for the stage, or give the usual reply; says whether it was the usual or a 2yz."""
        act = self._rules.acts.get(stage)
        if act is None:
            await self._say(usual)
            return usual.startswith("2")
        if act.octets:
            await self._send(act.octets)
        if act.then is Then.CLOSE:
            raise _Closed
        while act.then is Then.HANG:
            await self._read_line()
        return act.octets.startswith(b"2")

    async def _say(self, reply: str) -> None:
        await self._send(encoded_reply(reply))

    async def _send(self, octets: bytes) -> None:
        if self._rules.delay_s:
            await asyncio.sleep(self._rules.delay_s)
        self._show("S", octets)
        self._writer.write(octets)
        await self._writer.drain()

    async def _read_line(self) -> bytes:
        line = (await self._reader.readuntil(b"\n")).rstrip(b"\r\n")
        lines = self._session.tls_lines if self._session.tls_version else self._session.clear_lines
        lines.append(line)
        self._show("C", line)
        return line

    def _show(self, who: str, octets: bytes) -> None:
        if self._watch is not None:
            for line in octets.rstrip(b"\r\n").split(b"\r\n"):
                self._watch(self._session.number, who, line)

    # Commands

    async def _greet(self, verb: bytes) -> None:
        self._forget()
        under_tls = self._session.tls_version is not None
        stage = Stage.EHLO_AFTER_TLS if under_tls else Stage.EHLO
        offers = [*self._rules.extensions, *self._tls_offer(), *self._auth_offer()] if verb == b"EHLO" else []
        await self._reply(stage, "250 " + "\n".join(["misbehaving.example.test", *offers]))

    def _tls_offer(self) -> list[str]:
        if self._session.tls_version or self._rules.tls is Tls.NOT_OFFERED:
            return []
        return ["XXXXXXXA" if self._rules.tls is Tls.STRIPPED else "STARTTLS"]

    def _auth_offer(self) -> list[str]:
        return [f"AUTH {self._rules.mechanisms}"] if self._takes_auth() else []

    def _takes_auth(self) -> bool:
        match self._rules.auth:
            case AuthOffer.NEVER:
                return False
            case AuthOffer.AFTER_TLS:
                return self._session.tls_version is not None
            case AuthOffer.BEFORE_TLS:
                return self._session.tls_version is None
            case AuthOffer.ALWAYS:
                return True

    async def _start_tls(self) -> None:
        if self._session.tls_version or self._rules.tls in (Tls.NOT_OFFERED, Tls.STRIPPED):
            await self._say("502 5.5.1 No such command")
            return
        if self._rules.tls is Tls.REFUSED:
            await self._say("454 4.7.0 TLS not available")
            return
        ready = "220 2.0.0 Ready"
        if self._rules.tls is Tls.INJECTS_REPLY:
            # In one piece, so that the client has it before it begins the handshake.
            await self._send(encoded_reply(ready) + b"250-misbehaving.example.test\r\n250 AUTH PLAIN\r\n")
        elif not await self._reply(Stage.STARTTLS, ready):
            return
        match self._rules.tls:
            case Tls.THEN_CLOSE:
                raise _Closed
            case Tls.THEN_GARBAGE:
                await self._send(b"This is no TLS record.\r\n")
                raise _Closed
            case _:
                pass
        await self._writer.start_tls(self._server.tls)
        self._note_tls()
        self._logged_in = False

    def _note_tls(self) -> None:
        connection = self._writer.get_extra_info("ssl_object")
        if connection is not None:
            self._session.tls_version = connection.version()

    async def _authenticate(self, line: bytes) -> None:
        if not self._takes_auth():
            await self._say("503 5.5.1 AUTH is not offered")
            return
        answers = await self._credentials(line)
        if answers is None:
            return
        try:
            user, password = _decoded(answers)
        except ValueError:
            await self._say("501 5.5.2 That cannot be decoded")
            return
        self._session.logins.append((user, password))
        if self._rules.echoes_credentials:
            said = b" ".join(answers).decode("ascii", "replace")
            await self._say(f"535 5.7.8 Not accepted: {line.decode('utf-8', 'replace')} {said} {user} {password}")
            return
        self._logged_in = await self._reply(Stage.AUTH, self._rules.auth_reply or "235 2.7.0 Welcome")

    async def _credentials(self, line: bytes) -> list[bytes] | None:
        """Ask for what the mechanism needs; None when it is unknown or the client gave up, which was answered."""
        words = line.split(b" ")
        mechanism, answers = (words[1].upper() if len(words) > 1 else b""), words[2:3]
        challenges = {b"PLAIN": [b""], b"LOGIN": [b"Username:", b"Password:"]}.get(mechanism)
        if challenges is None:
            await self._say("504 5.5.4 No such mechanism")
            return None
        for challenge in challenges[len(answers) :]:
            await self._say(f"334 {base64.b64encode(challenge).decode()}")
            answer = await self._read_line()
            if answer == b"*":
                await self._say("501 5.7.0 Cancelled")
                return None
            answers.append(answer)
        return answers

    async def _take_sender(self, line: bytes) -> None:
        path = _PATH.match(line)
        if path is None:
            await self._say("501 5.5.4 That is no path")
            return
        limit = self._rules.messages_per_connection
        if limit is not None and len(self._session.messages) >= limit:
            await self._say("421 4.7.0 Too many messages on this connection")
            raise _Closed
        parameters = path[2].decode("utf-8", "replace").strip()
        if self._too_large(parameters):
            await self._say("552 5.3.4 Message too large")
            return
        if await self._reply(Stage.MAIL, "250 2.1.0 Sender taken"):
            self._forget()
            self._mail_from = (path[1].decode("utf-8", "replace"), parameters)

    def _too_large(self, parameters: str) -> bool:
        announced = re.search(r"\bSIZE=(\d+)", parameters, re.IGNORECASE)
        limit = self._rules.size_limit_octets
        return limit is not None and announced is not None and int(announced[1]) > limit

    async def _take_recipient(self, line: bytes) -> None:
        path = _PATH.match(line)
        if path is None or self._mail_from is None:
            await self._say("503 5.5.1 No sender, or no path")
            return
        address = path[1].decode("utf-8", "replace")
        reply = self._recipient_reply(address)
        if reply is not None:
            await self._say(reply)
            taken = reply.startswith("2")
        else:
            taken = await self._reply(Stage.RCPT, "250 2.1.5 Recipient taken")
        if taken:
            self._recipients[address] = path[2].decode("utf-8", "replace").strip()

    def _recipient_reply(self, address: str) -> str | None:
        assert self._mail_from is not None
        if address in self._rules.recipient_replies:
            return self._rules.recipient_replies[address]
        triple = (self._session.client_host, self._mail_from[0], address)
        if self._rules.greylists and triple not in self._server.greylist:
            self._server.greylist.add(triple)
            return "451 4.7.1 Greylisted, try again in a minute"
        return None

    async def _take_content(self) -> None:
        if self._mail_from is None or not self._recipients:
            await self._say("503 5.5.1 No sender, or no recipient")
            return
        usual = "354 Go ahead"
        act = self._rules.acts.get(Stage.DATA)
        await self._reply(Stage.DATA, usual)
        if act is not None and not act.octets.startswith(b"3"):
            return
        content = await self._read_content()
        limit = self._rules.size_limit_octets
        too_large = limit is not None and len(content) > limit
        number = len(self._session.messages) + 1
        usual = "552 5.3.4 Message too large" if too_large else f"250 2.0.0 Taken as {self._session.number}.{number}"
        act = self._rules.acts.get(Stage.DOT)
        accepted = (act.octets if act else usual.encode()).startswith(b"2")
        # Before the reply: a test that has read it finds the message.
        self._session.messages.append(self._message(content, accepted=accepted))
        self._forget()
        await self._reply(Stage.DOT, usual)

    async def _read_content(self) -> bytes:
        """Read to CRLF.CRLF alone (RFC 5321 4.1.1.4) and take the doubled dots away (4.5.2)."""
        stop_after = self._rules.closes_within_content_octets
        lines: list[bytes] = []
        read = 0
        while True:
            line = await self._reader.readuntil(b"\r\n")
            read += len(line)
            if stop_after is not None and read >= stop_after:
                raise _Closed
            if line == b".\r\n":
                return b"".join(lines)
            lines.append(line[1:] if line.startswith(b".") else line)

    def _message(self, content: bytes, *, accepted: bool) -> Message:
        assert self._mail_from is not None
        return Message(
            mail_from=self._mail_from[0],
            recipients=tuple(self._recipients),
            mail_parameters=self._mail_from[1],
            recipient_parameters=dict(self._recipients),
            content=content,
            under_tls=self._session.tls_version is not None,
            session_number=self._session.number,
            accepted=accepted,
        )

    def _forget(self) -> None:
        self._mail_from = None
        self._recipients = {}


@contextlib.contextmanager
def run_in_thread(server: MisbehavingServer) -> Iterator[MisbehavingServer]:
    """Run a server on an event loop of its own, for callers that block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="misbehaving-smtp", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def self_signed_context() -> ssl.SSLContext:
    """Make a TLS context with a new certificate for localhost that no one has reason to trust."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _decoded(answers: Sequence[bytes]) -> tuple[str, str]:
    """Read user name and password out of the answers of PLAIN (one) or LOGIN (two). Raises ValueError."""
    plain = [base64.b64decode(answer, validate=True) for answer in answers]
    user, password = plain if len(plain) == 2 else plain[0].split(b"\0")[1:]
    return user.decode(), password.decode()


# -- The command --------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m posthouse.testing.smtp", description="An SMTP server that misbehaves as it is told."
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=2525, help="0 takes a free one and prints it")
    parser.add_argument("--misbehave", action="append", default=[], metavar="NAME", choices=sorted(CATALOGUE))
    parser.add_argument(
        "--reply", action="append", default=[], metavar="STAGE=REPLY", help="such as 'mail=451 4.7.0 Wait'"
    )
    parser.add_argument("--recipient", action="append", default=[], metavar="ADDRESS=REPLY")
    parser.add_argument("--size", type=int, metavar="OCTETS", help="announce and keep to this limit")
    parser.add_argument("--delay-s", type=float, metavar="SECONDS", help="wait before every reply")
    parser.add_argument("--cert", type=Path, help="a PEM chain for STARTTLS, with --key; else one that nobody trusts")
    parser.add_argument("--key", type=Path)
    parser.add_argument("--implicit-tls", action="store_true")
    parser.add_argument("--list", action="store_true", help="print the names of the misbehaviours and end")
    return parser


def _chosen(options: argparse.Namespace) -> Iterator[Misbehaviour]:
    """Give what the command line asks for. Raises ValueError for a stage that does not exist."""
    for name in options.misbehave:
        yield CATALOGUE[name]
    for stage, _, reply in (text.partition("=") for text in options.reply):
        yield reply_at(Stage(stage), reply)
    if options.recipient:
        yield replies_by_recipient(dict(text.split("=", 1) for text in options.recipient))
    if options.size is not None:
        yield announcing_size(options.size)
    if options.delay_s is not None:
        yield slow(options.delay_s)


@contextlib.asynccontextmanager
async def _serving(options: argparse.Namespace, misbehaviours: Sequence[Misbehaviour]) -> AsyncIterator[None]:
    context = None
    if options.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.cert, options.key)
    server = MisbehavingServer(
        *misbehaviours,
        host=options.host,
        port=options.port,
        tls=context,
        implicit_tls=options.implicit_tls,
        watch=lambda number, who, line: print(
            f"{number} {who}: {line.decode('utf-8', 'backslashreplace')}", flush=True
        ),
    )
    async with server:
        print(f"Listening on {server.host}:{server.port}", flush=True)
        yield


def main(arguments: Sequence[str]) -> int:
    """Serve until interrupted, printing the dialogue of each session by its number."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(CATALOGUE))
        return 0
    try:
        misbehaviours = list(_chosen(options))
    except ValueError as problem:
        parser.error(f"{problem}; the stages are {', '.join(Stage)}")

    async def serve() -> None:
        async with _serving(options, misbehaviours):
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
