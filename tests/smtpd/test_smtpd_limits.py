"""The SMTP listener as a process: out of file descriptors, and large messages in little memory."""

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO

import pytest

from tests.support.processes import rss_octets, wait_until
from tests.support.smtp_listener import HOST, LOOPS, REPOSITORY, LineClient

MIB = 1024 * 1024
OPENING = ("EHLO c", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA")


class Process:
    """A listener in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.smtp_listener", *arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.port = int(self._line("port ").split()[1])

    def _line(self, start: str) -> str:
        output: IO[str] | None = self.process.stdout
        assert output is not None
        for line in output:
            if line.startswith(start):
                return line
        raise AssertionError("The listener has ended.")

    def tell(self, command: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._line("done ")

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(20) == 0
        finally:
            self.process.kill()
            self.process.stdout.close()


@pytest.fixture(params=LOOPS)
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Process]]:
    with ExitStack() as stack:

        def begin(*arguments: str) -> Process:
            process = Process(request.param, *arguments)
            stack.callback(process.end)
            return process

        yield begin


def test_without_file_descriptors_the_old_are_served_and_new_ones_once_there_are_some(
    start: Callable[..., Process],
) -> None:
    process = start("--open-files", "64")
    with LineClient(process.port) as old, ExitStack() as stack:
        process.tell("hog")
        new = [stack.enter_context(socket.create_connection((HOST, process.port), 10)) for _ in range(10)]
        # Some get the last descriptors; the others wait, or are closed without a word.
        assert old.say(*OPENING, ".") == ["250", "250", "250", "354", "250"]
        process.tell("free")
        assert old.say("NOOP") == ["250"]
        assert any(is_greeted(each) for each in new)

        def is_served() -> bool:
            with LineClient(process.port, banner=False) as late:
                return late.reply().startswith("220 ") and late.say("NOOP") == ["250"]

        wait_until(is_served, "service after the shortage")


def is_greeted(connection: socket.socket) -> bool:
    try:
        return connection.recv(100).startswith(b"220 ")
    except OSError:
        return False


def test_the_cap_is_lowered_to_what_the_process_may_open(start: Callable[..., Process]) -> None:
    process = start("--open-files", "64")
    with ExitStack() as stack:
        clients = [stack.enter_context(LineClient(process.port, banner=False)) for _ in range(40)]
        replies = [client.reply()[:3] for client in clients]
        assert replies == ["220"] * 32 + ["421"] * 8


def test_large_messages_need_little_memory(start: Callable[..., Process]) -> None:
    process = start()
    with LineClient(process.port) as client:
        assert client.say(*OPENING, ".")[-1] == "250"
        before = rss_octets(process.process.pid)
        assert client.say(*OPENING[1:]) == ["250", "250", "354"]
        piece = (b"x" * 76 + b"\r\n") * 13_500
        most = 0
        for _ in range(100):
            client.send(piece)
            most = max(most, rss_octets(process.process.pid))
        assert client.say(".") == ["250"]
        assert most - before < 8 * MIB
        # Above the limit of 200 MiB: read to its end, kept nowhere.
        assert client.say(*OPENING[1:]) == ["250", "250", "354"]
        for _ in range(210):
            client.send(piece)
            most = max(most, rss_octets(process.process.pid))
        assert client.say(".", "NOOP") == ["552", "250"]
        assert most - before < 8 * MIB


def test_one_line_without_end_needs_little_memory(start: Callable[..., Process]) -> None:
    process = start()
    with LineClient(process.port) as client:
        assert client.say("NOOP") == ["250"]
        before = rss_octets(process.process.pid)
        for _ in range(20):
            client.send(b"x" * MIB)
        assert client.say("", "NOOP") == ["500", "250"]
        assert rss_octets(process.process.pid) - before < 8 * MIB
