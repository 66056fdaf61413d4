"""Several workers on one machine: the same ports, one database, and one that ends is started again."""

import os
import signal
import smtplib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.posthouse import PosthouseProcess
from tests.support.processes import wait_until
from tests.support.sink import CaptureServer

pytestmark = pytest.mark.postgres


def workers_of(node: PosthouseProcess) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()]


def send(node: PosthouseProcess, count: int) -> None:
    for number in range(count):
        with smtplib.SMTP("127.0.0.1", node.smtp_port, timeout=20) as client:
            client.sendmail("a@example.org", ["b@example.org"], f"Subject: {number}\n\nHello.\n")


def test_workers_share_ports_and_work_and_are_started_again(
    start_posthouse: Callable[..., PosthouseProcess], database_url: str, sink: CaptureServer, tmp_path: Path
) -> None:
    node = start_posthouse(database=database_url, options=["--workers", "2"])
    node.cli(
        "server", "add", "office", "--kind", "smtp", "--host", "127.0.0.1", "--port", str(sink.port), "--tls", "none"
    )
    node.cli("application", "add", "scanner", "--network", "127.0.0.0/8")
    assert len(workers_of(node)) == 2
    # The second worker learns of the application within a second.
    wait_until(lambda: _accepted(node), "both workers take mail", timeout_s=30)
    before = len(sink.messages)
    send(node, 40)
    wait_until(lambda: len(sink.messages) >= before + 40, "all mail arrived", timeout_s=30)
    victim = workers_of(node)[1]
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: len(workers_of(node)) == 2 and victim not in workers_of(node), "a new worker", timeout_s=30)
    wait_until(lambda: _accepted(node), "both workers take mail again", timeout_s=30)
    children = workers_of(node)
    node.terminate()
    assert not any(Path(f"/proc/{child}").exists() for child in children)


def _accepted(node: PosthouseProcess) -> bool:
    try:
        send(node, 6)
    except (smtplib.SMTPException, OSError):
        return False
    return True
