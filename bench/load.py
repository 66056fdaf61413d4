"""A sender for what Postfix's `smtp-source` cannot do: TLS, AUTH, and a steady pace with a time for each message.

As a program it sends a number of messages over some connections, as fast as it can:
`python -m bench.load --port N --messages N --sessions N [--starttls CA.pem --login USER:PASSWORD]`.
It is plain sockets and prepared bytes, so that it costs the measured system as little as Python allows.
"""

import argparse
import base64
import socket
import ssl
import sys
import threading
import time
from dataclasses import dataclass

# The header that names a message, for `PacedSender`.
MARK = b"X-Bench"


class Connection:
    """One SMTP session that stays open; every step waits for its reply, as `smtp-source` does."""

    def __init__(self, port: int, *, authority: str | None = None, login: str | None = None) -> None:
        self._socket: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expect(b"2")
        self.command(b"EHLO localhost", b"2")
        if authority:
            self.command(b"STARTTLS", b"2")
            context = ssl.create_default_context(cafile=authority)
            self._socket = context.wrap_socket(self._socket, server_hostname="localhost")
            self.command(b"EHLO localhost", b"2")
        if login:
            user, _, password = login.partition(":")
            token = base64.b64encode(f"\0{user}\0{password}".encode())
            self.command(b"AUTH PLAIN " + token, b"2")

    def send(self, content: bytes, to: str = "somebody@example.test") -> None:
        """Hand over one message, which ends with CRLF and has no line that begins with a dot."""
        self.command(b"MAIL FROM:<bench@example.test>", b"2")
        self.command(f"RCPT TO:<{to}>".encode(), b"2")
        self.command(b"DATA", b"3")
        self.command(content + b".", b"2")

    def close(self) -> None:
        """Say QUIT and close."""
        self.command(b"QUIT", b"2")
        self._socket.close()

    def command(self, line: bytes, expected: bytes) -> None:
        """Send one command and wait for a reply that begins as expected. Raises RuntimeError with any other."""
        self._socket.sendall(line + b"\r\n")
        self._expect(expected)

    def _expect(self, expected: bytes) -> None:
        reply = b""
        # A reply is whole when its last line has a space after the code (RFC 5321 4.2.1).
        while not reply.endswith(b"\n") or reply.rstrip(b"\r\n").rsplit(b"\n", 1)[-1][3:4] == b"-":
            part = self._socket.recv(65536)
            if not part:
                raise RuntimeError("The server closed the connection.")
            reply += part
        if not reply.startswith(expected):
            raise RuntimeError(f"The server said {reply.decode(errors='replace').strip()}")


def content_of(octets: int, mark: str = "") -> bytes:
    """Make a message whose body has about that many octets."""
    line = b"0123456789abcdef" * 4 + b"\r\n"
    header = b"From: bench@example.test\r\nTo: somebody@example.test\r\nSubject: bench\r\n"
    return header + MARK + b": " + mark.encode() + b"\r\n\r\n" + line * max(1, octets // len(line))


@dataclass(slots=True)
class PacedSender:
    """Sends at a steady pace over a few connections and notes when each message was accepted."""

    port: int
    per_second: float
    count: int
    octets: int = 4096
    connections: int = 8

    def run(self) -> dict[str, float]:
        """Send all and return, by mark, the monotonic time at which 250 was read."""
        accepted: dict[str, float] = {}
        start = time.monotonic() + 0.1
        threads = [
            threading.Thread(target=self._send_share, args=(number, start, accepted))
            for number in range(self.connections)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(accepted) != self.count:
            raise RuntimeError(f"{len(accepted)} of {self.count} messages were accepted.")
        return accepted

    def _send_share(self, number: int, start: float, accepted: dict[str, float]) -> None:
        connection = Connection(self.port)
        for index in range(number, self.count, self.connections):
            mark = f"m{index}"
            content = content_of(self.octets, mark)
            # Here the pace itself is the load, so this waits for the clock.
            time.sleep(max(0.0, start + index / self.per_second - time.monotonic()))
            connection.send(content)
            accepted[mark] = time.monotonic()
        connection.close()


def main(arguments: list[str]) -> None:
    """Run the load that the arguments describe."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--messages", type=int, required=True)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--octets", type=int, default=4096)
    parser.add_argument("--starttls", metavar="CA.pem")
    parser.add_argument("--login", metavar="USER:PASSWORD")
    options = parser.parse_args(arguments)
    content = content_of(options.octets)
    failures: list[Exception] = []

    def share(count: int) -> None:
        try:
            connection = Connection(options.port, authority=options.starttls, login=options.login)
            for _ in range(count):
                connection.send(content)
            connection.close()
        except Exception as problem:
            failures.append(problem)

    whole, rest = divmod(options.messages, options.sessions)
    threads = [threading.Thread(target=share, args=(whole + (number < rest),)) for number in range(options.sessions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise SystemExit(f"{len(failures)} sessions failed, the first with: {failures[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
