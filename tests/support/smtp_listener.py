"""Runs the SMTP listeners in a thread of the test process, and as a program of its own; and a client that speaks lines.

As a program, `python -m tests.support.smtp_listener LOOP [--open-files N]` prints its port and obeys its standard
input until that ends.
"""

import argparse
import asyncio
import contextlib
import os
import resource
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import uvloop

from posthouse.protocol.smtp_server import OpenContent, SessionSettings, SubmissionPolicy
from posthouse.smtpd.connections import ListenerSettings, SubmissionHandler
from posthouse.smtpd.listener import BoundAddress, Listener
from posthouse.smtpd.tls import ServerCertificate
from tests.support.submission import CountingContent, KeepingHandler, ListPolicy, MemoryContent

T = TypeVar("T")

HOST = "127.0.0.1"
LOOPS = ("asyncio", "uvloop")
# Swept so often that a test which moves the clock sees it at once.
QUICK = ListenerSettings(sweep_interval_s=0.02)


def make_loop(kind: str) -> asyncio.AbstractEventLoop:
    """Make an event loop of either kind."""
    return uvloop.new_event_loop() if kind == "uvloop" else asyncio.SelectorEventLoop()


class ManualClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class RunningListener:
    """A listener in a thread of its own, with a plain port, and one with implicit TLS where there is a certificate."""

    def __init__(
        self,
        loop_kind: str = "asyncio",
        *,
        settings: ListenerSettings = QUICK,
        session: SessionSettings | None = None,
        policy: SubmissionPolicy | None = None,
        handler: SubmissionHandler | None = None,
        open_content: OpenContent = MemoryContent,
        certificate: ServerCertificate | None = None,
        clock: Callable[[], float] | None = None,
        host: str = HOST,
    ) -> None:
        self.policy = policy if policy is not None else ListPolicy(admitted=("127.",), passwords={"shop": "secret"})
        self.keeping = KeepingHandler()
        self._loop = make_loop(loop_kind)
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._certificate = certificate
        self._host = host
        options: dict[str, Any] = {} if clock is None else {"clock": clock}
        self.listener = Listener(
            settings,
            session or SessionSettings("mail.example.org"),
            policy=self.policy,
            handler=handler if handler is not None else self.keeping,
            open_content=open_content,
            certificate=certificate,
            **options,
        )
        self.port = 0
        self.tls_port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = self.call(self.listener.start(self._host, 0))[0].port
        if self._certificate is not None:
            self.tls_port = self.call(self.listener.start(self._host, 0, implicit_tls=True))[0].port
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.call(self.listener.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float = 20.0) -> T:
        """Run a coroutine in the listener's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def start_call(self, work: Coroutine[Any, Any, T]) -> Callable[[], T]:
        """Start a coroutine in the listener's loop; the result comes from what is returned."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        return lambda: future.result(20)

    def in_loop(self, function: Callable[[], T]) -> T:
        """Call a function in the listener's loop."""

        async def run() -> T:
            return function()

        return self.call(run())


class LineClient:
    """Speaks SMTP by lines over a socket, and says nothing on its own."""

    def __init__(
        self, port: int, *, source: str = "", context: ssl.SSLContext | None = None, banner: bool = True
    ) -> None:
        self.socket: socket.socket = socket.create_connection((HOST, port), 10, (source, 0) if source else None)
        if context is not None:
            self.start_tls(context)
        self._buffer = b""
        if banner:
            assert self.reply().startswith("220 ")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def start_tls(self, context: ssl.SSLContext) -> None:
        self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reply(self) -> str:
        """The next reply, its lines joined; "" where the server has closed."""
        lines = []
        while True:
            line = self._line()
            lines.append(line)
            if line[3:4] != "-":
                return "\n".join(lines)

    def _line(self) -> str:
        while b"\n" not in self._buffer:
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                assert not self._buffer
                return ""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        assert line.endswith(b"\r")
        return line[:-1].decode("ascii")

    def say(self, *lines: str) -> list[str]:
        """Send each line and return the code of each reply."""
        codes = []
        for line in lines:
            self.send(line.encode() + b"\r\n")
            codes.append(self.reply()[:3])
        return codes

    @property
    def closed(self) -> bool:
        """Whether the server has closed, waiting for it."""
        return self.reply() == ""


@contextlib.contextmanager
def open_clients(port: int, count: int) -> Iterator[list[LineClient]]:
    """Several clients that have seen the banner."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(LineClient(port)) for _ in range(count)]


async def _serve(options: argparse.Namespace) -> None:
    listener = Listener(
        QUICK,
        SessionSettings("mail.example.org", max_message_octets=200 * 1024 * 1024),
        policy=ListPolicy(admitted=("127.",)),
        handler=KeepingHandler(),
        open_content=CountingContent,
    )
    (bound,) = await listener.start(HOST, 0)
    sys.stdout.write(f"port {bound.port}\n")
    sys.stdout.flush()
    await _obey(listener, bound)


async def _obey(listener: Listener, bound: BoundAddress) -> None:
    """Carry out what comes on the standard input: hog (open all files but two), free, quit."""
    loop = asyncio.get_running_loop()
    hogged: list[int] = []
    while True:
        command = (await loop.run_in_executor(None, sys.stdin.readline)).strip()
        if command == "hog":
            with contextlib.suppress(OSError):
                while True:
                    hogged.append(os.open(os.devnull, os.O_RDONLY))
            for _ in range(2):
                os.close(hogged.pop())
        elif command == "free":
            while hogged:
                os.close(hogged.pop())
        else:
            await listener.stop()
            return
        sys.stdout.write(f"done {command} {len(hogged)}\n")
        sys.stdout.flush()


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loop", choices=LOOPS)
    parser.add_argument("--open-files", type=int)
    options = parser.parse_args()
    if options.open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.open_files, options.open_files))
    with asyncio.Runner(loop_factory=lambda: make_loop(options.loop)) as runner:
        runner.run(_serve(options))


REPOSITORY = Path(__file__).resolve().parents[2]

if __name__ == "__main__":
    _main()
