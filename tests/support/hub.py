"""A running Posthouse as the fault tests use it: configured by command and REST, spoken to over raw sockets."""

import contextlib
import itertools
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.ledger import Ledger, message_octets
from tests.support.posthouse import Answer, PosthouseProcess
from tests.support.processes import wait_until

_numbers = itertools.count(1)


class SmtpDialogue:
    """A client that says what it is told, over one socket; `reply` is the last line of an answer."""

    def __init__(self, port: int, *, timeout_s: float = 30.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self._file = self.socket.makefile("rb")
        try:
            self.greeting = self.reply()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def reply(self) -> str:
        """Read an answer. Raises EOFError when the other side has closed."""
        while True:
            line = self._file.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            if line[3:4] != b"-":
                return line.decode(errors="replace").rstrip()

    def say(self, line: str) -> str:
        self.socket.sendall(line.encode() + b"\r\n")
        return self.reply()

    def send(self, content: bytes, recipients: Sequence[str], *, mail_from: str = "load@example.org") -> str:
        """Hand one message over and return the reply that decided."""
        for command in (f"MAIL FROM:<{mail_from}>", *(f"RCPT TO:<{r}>" for r in recipients), "DATA"):
            reply = self.say(command)
            if reply[:1] not in "23":
                return reply
        self.socket.sendall(content.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        return self.reply()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
            self.socket.close()


class Hub:
    """One node with what a test wants to know of it."""

    def __init__(self, node: PosthouseProcess) -> None:
        self.node = node
        self.api_key = ""
        self.servers: dict[str, str] = {}

    # configuring

    def add_server(self, name: str, port: int, *options: str) -> str:
        made = self.node.cli(
            *("server", "add", name, "--kind", "smtp", "--host", "127.0.0.1", "--port", str(port), "--tls", "none"),
            *options,
        )
        self.servers[name] = str(made["id"])
        return self.servers[name]

    def add_application(self) -> None:
        self.api_key = self.node.cli("application", "add", "scanner", "--network", "127.0.0.0/8")["api_key"]

    def settings(self, **values: Any) -> None:
        """Change settings of the installation."""
        answer = self.node.request("PATCH", "/api/v1/settings", json_body=values)
        assert answer.status == 200, answer.body

    def retry_after(self, *delays_s: int) -> None:
        """Have deferred recipients tried again after these delays."""
        self.settings(retry_delays_s=list(delays_s))

    # handing over

    def smtp(self, *, timeout_s: float = 30.0) -> SmtpDialogue:
        dialogue = SmtpDialogue(self.node.smtp_port, timeout_s=timeout_s)
        try:
            dialogue.say("EHLO test.example.org")
        except BaseException:
            dialogue.close()
            raise
        return dialogue

    def submit(self, recipients: Sequence[str] = (), *, octets: int = 500, ledger: Ledger | None = None) -> str:
        """Hand a message over by SMTP; returns its token. Fails where it is not taken."""
        token = f"t-{os.getpid()}-{next(_numbers)}"
        to = list(recipients) or [f"{token}@example.org"]
        with self.smtp() as dialogue:
            reply = dialogue.send(message_octets(token, to, "A test", octets), to)
        assert reply.startswith("250"), reply
        if ledger is not None:
            ledger.acknowledge(token, to)
        return token

    def post(self, body: Any, *, timeout_s: float = 30.0) -> Answer:
        """Hand over by REST, in JSON."""
        return self.node.request("POST", "/api/v1/messages", json_body=body, token=self.api_key, timeout_s=timeout_s)

    def post_raw(self, content: bytes, recipients: Sequence[str], *, timeout_s: float = 60.0) -> Answer:
        """Hand over by REST, as it is."""
        query = "mail_from=load@example.org&" + "&".join(f"to={r}" for r in recipients)
        return self.node.request(
            *("POST", f"/api/v1/messages?{query}"),
            body=content,
            headers={"Content-Type": "message/rfc822"},
            token=self.api_key,
            timeout_s=timeout_s,
        )

    # looking

    def get(self, path: str) -> Any:
        answer = self.node.request("GET", path)
        assert answer.status == 200, answer.body
        return answer.json()

    def message_of(self, token: str) -> dict[str, Any]:
        """Find a message by its token (it stands in the Message-ID) and show it."""
        items = self.get(f"/api/v1/messages?text={token}@")["items"]
        assert len(items) == 1, items
        shown: dict[str, Any] = self.get(f"/api/v1/messages/{items[0]['id']}")
        return shown

    def states_of(self, token: str) -> list[str]:
        """Give the states of a message's recipients, in order of their addresses."""
        recipients = sorted(self.message_of(token)["recipients"], key=lambda each: str(each["address"]))
        return [str(each["state"]) for each in recipients]

    def timeline_of(self, token: str) -> str:
        """Give the sentences of a message's timeline, one per line."""
        entries = self.get(f"/api/v1/messages/{self.message_of(token)['id']}/timeline")
        return "\n".join(str(entry["text"]) for entry in entries["items"])

    def queue(self) -> list[dict[str, Any]]:
        """Give the queues as `queue status` shows them."""
        return list(self.get("/api/v1/queue")["items"])

    def in_queue(self) -> int:
        """Give how many recipients wait or are being sent."""
        return sum(int(line["waiting"]) + int(line["sending"]) for line in self.queue())

    def ready(self) -> int:
        return self.node.request("GET", "/readyz", token="").status

    def healthy(self) -> int:
        return self.node.request("GET", "/healthz", token="").status

    def wait_until_quiet(self, *, timeout_s: float = 60.0) -> None:
        wait_until(lambda: self.in_queue() == 0, "an empty queue", timeout_s=timeout_s, every_s=0.1)


def cpu_seconds(pid: int) -> float:
    """Give the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
