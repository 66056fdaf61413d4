"""Posthouse itself, started as people start it: the installed program in a process of its own, seen from outside."""

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import Child, free_port, rss_octets

PROGRAM = Path(sys.executable).with_name("posthouse")


class CommandFailed(AssertionError):
    """A command of Posthouse ended with another exit status than 0."""

    def __init__(self, arguments: Sequence[str], status: int, output: str, errors: str) -> None:
        super().__init__(f"posthouse {' '.join(arguments)} ended with {status}:\n{output}{errors}")
        self.status = status
        self.output = output
        self.errors = errors


@dataclass(frozen=True, slots=True)
class Answer:
    """What an HTTP request got."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class PosthouseProcess:
    """One node on a data folder. `start` and `restart` keep folder and ports, so it can come back after a crash."""

    def __init__(
        self,
        data: Path,
        *,
        database: str | None = None,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        self.data = data
        self.database = database
        self.http_port = free_port()
        self.smtp_port = free_port()
        self.log_path = data.parent / f"{data.name}.log"
        # Further options of `serve`, and a program to run it under (strace, faketime).
        self.options = list(options)
        self.prefix = list(prefix)
        self._environment = _clean_environment() | dict(environment or {})
        self._child: Child | None = None
        self._token: str | None = None

    @property
    def http(self) -> str:
        """Give the base URL, without a slash at the end."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def pid(self) -> int:
        return self._running_child().pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.running

    @property
    def rss_octets(self) -> int:
        """Give the resident memory of the main process."""
        return rss_octets(self.pid)

    @property
    def token(self) -> str:
        """Give an administrator's token, made at the first use."""
        if self._token is None:
            made = self.cli("token", "create", "tests", "--role", "administrator")
            self._token = str(made["token"])
        return self._token

    def share_token(self, other: "PosthouseProcess") -> None:
        """Use the token of another node of the same installation."""
        self._token = other.token

    def start(self, *, timeout_s: float = 30.0) -> None:
        """Start `posthouse serve` and return when /healthz answers 200."""
        arguments = [
            *self.prefix,
            str(PROGRAM),
            *("serve", "--data", str(self.data)),
            *("--http", f"127.0.0.1:{self.http_port}", "--smtp", f"127.0.0.1:{self.smtp_port}"),
            *(("--database", self.database) if self.database else ()),
            *self.options,
        ]
        self._child = Child(arguments, self.log_path, environment=self._environment)
        self._child.wait_for(self._healthy, "Posthouse's /healthz", timeout_s=timeout_s)

    def terminate(self, *, timeout_s: float = 30.0) -> int:
        """Ask it to end (SIGTERM) and return its exit status."""
        status = self._running_child().end(signal.SIGTERM, timeout_s=timeout_s)
        self._child = None
        return status

    def kill9(self) -> None:
        """End it without a word (SIGKILL), as a crash does."""
        self._running_child().kill()
        self._child = None

    def restart(self, *, timeout_s: float = 30.0) -> None:
        """End it in good order, if it runs, and start it again on the same folder and ports."""
        if self.running:
            self.terminate()
        self.start(timeout_s=timeout_s)

    def stop(self) -> None:
        """End it, whatever state it is in."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def run(self, *arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command on this installation as it is given; only `--data` (and `--database`) are added."""
        place = ["--data", str(self.data), *(("--database", self.database) if self.database else ())]
        return subprocess.run(
            [str(PROGRAM), *arguments, *place],
            capture_output=True,
            text=True,
            timeout=60,
            env=self._environment,
            input=stdin or "",
        )

    def cli(self, *arguments: str) -> Any:
        """Run a command with `--json` and return what it printed. Raises CommandFailed when it was refused."""
        done = self.run(*arguments, "--json")
        if done.returncode != 0:
            raise CommandFailed(arguments, done.returncode, done.stdout, done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else None

    def request(
        self,
        method: str,
        path: str,
        *,
        json_body: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        token: str | None = None,
        timeout_s: float = 30.0,
    ) -> Answer:
        """Make one HTTP request with the administrator's token, or another, or none (an empty one)."""
        fields = dict(headers or {})
        bearer = self.token if token is None else token
        if bearer:
            fields.setdefault("Authorization", f"Bearer {bearer}")
        if json_body is not None:
            body = json.dumps(json_body).encode()
            fields.setdefault("Content-Type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout_s)
        try:
            connection.request(method, path, body=body, headers=fields)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """Give the sum of a counter or gauge over all its labels, 0 when it is not there yet."""
        lines = self.request("GET", "/metrics", token="").body.decode().splitlines()
        values = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in values)

    def log(self) -> str:
        """Give what the process printed, over all its starts."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def _running_child(self) -> Child:
        assert self._child is not None, "Posthouse is not running"
        return self._child

    def _healthy(self) -> bool:
        try:
            return self.request("GET", "/healthz", token="", timeout_s=2).status == 200
        except (OSError, http.client.HTTPException):
            return False


def _clean_environment() -> dict[str, str]:
    """Give our environment without what would point Posthouse at another installation."""
    return {name: value for name, value in os.environ.items() if not name.startswith("POSTHOUSE_")}
