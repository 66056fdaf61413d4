"""`serve --first-run`, which is what `make run` does: one message goes through, and the text says how to send the next."""

import http.client
import json
import re
import shlex
import smtplib
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from posthouse.cli import first_run
from posthouse.cli.failure import CommandError
from tests.support.posthouse import PROGRAM, PosthouseProcess
from tests.support.processes import Child, wait_until


class FirstRun:
    """`posthouse serve --first-run` on a folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.log_path = folder / "first-run.log"
        self.log_path.unlink(missing_ok=True)
        arguments = [str(PROGRAM), "serve", "--data", "./data", "--first-run", *options]
        self._child = Child(
            ["/bin/sh", "-c", f"cd {shlex.quote(str(folder))} && exec {shlex.join(arguments)}"], self.log_path
        )
        self._child.wait_for(lambda: "Everything is kept in" in self.text, "the text of the first run", timeout_s=60)

    @property
    def text(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def log(self) -> str:
        return self.text

    def place(self, word: str) -> tuple[str, int]:
        found = re.search(rf"^  {word} +(?:http://)?([^:\s]+):(\d+)", self.text, re.M)
        assert found is not None, self.text
        return found[1], int(found[2])

    def end(self) -> int:
        return self._child.end()


@pytest.fixture
def start(tmp_path: Path, watch: Callable[[FirstRun], None]) -> Iterator[Callable[..., FirstRun]]:
    """Give a function that starts one on the folder `tmp_path`, or below it."""
    with ExitStack() as stack:

        def run(*options: str, below: str = "") -> FirstRun:
            folder = tmp_path / below
            folder.mkdir(exist_ok=True)
            started = FirstRun(folder, *options)
            stack.callback(started.end)
            watch(started)
            return started

        yield run


def test_the_first_message_is_delivered_and_the_next_one_is_shown(
    start: Callable[..., FirstRun], tmp_path: Path
) -> None:
    ran = start()
    assert ran.text.startswith("Posthouse runs, and its first message is delivered.\n")
    node = PosthouseProcess(tmp_path / "data")
    (sample,) = node.cli("message", "list", "--state", "delivered")["items"]
    assert sample["subject"] == "Your first message"
    assert [s["kind"] for s in node.cli("server", "list")["items"]] == ["capture"]

    with smtplib.SMTP(*ran.place("SMTP"), timeout=10) as client:
        client.sendmail("shop@example.org", ["you@example.org"], "Subject: by SMTP\r\n\r\nHello\r\n")
    wait_until(lambda: len(node.cli("message", "list", "--state", "delivered")["items"]) == 2, timeout_s=20)


@pytest.mark.usefixtures("programs")
def test_the_lines_for_swaks_and_curl_work_as_they_are_printed(start: Callable[..., FirstRun], tmp_path: Path) -> None:
    ran = start()
    swaks = re.search(r"^  (swaks .*)$", ran.text, re.M)
    curl = re.search(r"^  (curl .*\\\n.*)$", ran.text, re.M)
    assert swaks is not None and curl is not None
    subprocess.run(swaks[1], shell=True, check=True, capture_output=True, timeout=60)
    done = subprocess.run(f"{curl[1]} -sS --fail", shell=True, check=True, capture_output=True, timeout=60)
    assert json.loads(done.stdout)["id"]
    node = PosthouseProcess(tmp_path / "data")
    subjects = {item["subject"] for item in node.cli("message", "list")["items"]}
    assert subjects == {"Your first message", "Hello by SMTP", "Hello"}


def test_the_link_signs_in(start: Callable[..., FirstRun]) -> None:
    ran = start()
    found = re.search(r"http://localhost:(\d+)(/\S+)", ran.text)
    assert found is not None
    host, port = ran.place("REST")
    assert int(found[1]) == port
    connection = http.client.HTTPConnection(host, port, timeout=10)
    connection.request("GET", found[2], headers={"Host": f"localhost:{port}"})
    assert connection.getresponse().status == 200
    connection.close()


def test_a_second_start_sends_nothing_and_says_less(start: Callable[..., FirstRun], tmp_path: Path) -> None:
    first = start()
    assert first.end() == 0
    long_text = first.text
    second = start()
    assert second.text.startswith("Posthouse runs. Mail leaves through the server capture.\n")
    assert "swaks" not in second.text and "phk_" not in second.text
    assert len(second.text) < len(long_text)
    node = PosthouseProcess(tmp_path / "data")
    assert len(node.cli("message", "list")["items"]) == 1
    assert len(node.cli("application", "list")["items"]) == 1
    assert len(node.cli("server", "list")["items"]) == 1


def test_two_find_ports_of_their_own(start: Callable[..., FirstRun]) -> None:
    one, two = start(below="one"), start(below="two")
    assert one.place("SMTP") != two.place("SMTP")
    assert one.place("REST") != two.place("REST")


def test_nothing_is_sent_through_a_real_server(start: Callable[..., FirstRun], tmp_path: Path) -> None:
    node = PosthouseProcess(tmp_path / "data")
    node.cli("server", "add", "office", "--host", "127.0.0.1", "--tls", "none")
    node.cli("application", "add", "shop", "--network", "192.0.2.0/24")
    ran = start()
    assert "Mail leaves through the server office." in ran.text
    assert "with an application's password" in ran.text
    assert node.cli("message", "list")["items"] == []
    assert [a["name"] for a in node.cli("application", "list")["items"]] == ["shop"]


def test_a_sample_that_is_refused_says_why(start: Callable[..., FirstRun], tmp_path: Path) -> None:
    PosthouseProcess(tmp_path / "data").cli("settings", "edit", "--no-sending")
    ran = start()
    assert "Posthouse runs, but the sample was refused:" in ran.text
    assert "switched off" in ran.text


def test_the_next_free_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert first_run.next_free_port(port) > port


def test_no_free_port_is_a_clear_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_run, "_PORTS_TRIED", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CommandError, match="No port from"):
            first_run.next_free_port(taken.getsockname()[1])
