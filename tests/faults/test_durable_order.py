"""F1: the order of system calls around an acknowledgement, seen by strace: durable first, then 250 or 202 (promise 1)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.hub import Hub
from tests.support.ledger import LedgerSink, message_octets
from tests.support.processes import wait_until
from tests.support.strace import strace

CALLS = "fsync,fdatasync,openat,rename,write,writev,sendto,sendmsg,recvfrom,recvmsg,read"
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")
_RESUMED = re.compile(r"^\d+ +<\.\.\. (\w+) resumed>")


@dataclass(frozen=True, slots=True)
class Call:
    """One system call, as strace printed it."""

    name: str
    text: str


class Trace:
    """The calls of a whole process in the order in which they ended."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def calls(self) -> list[Call]:
        """A call that another thread interrupted counts where it ended."""
        begun: dict[str, str] = {}
        calls = []
        for line in self._path.read_text(errors="replace").splitlines():
            thread = line.partition(" ")[0]
            resumed = _RESUMED.match(line)
            if resumed:
                calls.append(Call(resumed[1], begun.pop(thread, "") + line))
                continue
            found = _CALL.match(line)
            if not found:
                continue
            if "<unfinished" in line:
                begun[thread] = found[2]
            else:
                calls.append(Call(found[1], found[2]))
        return calls

    def position(self, what: str, *names: str, text: str, last: bool = False) -> int:
        """Give where the first (or last) call of one of these names stands whose text contains `text`. Fails without."""
        found = [i for i, c in enumerate(self.calls()) if c.name in names and text in c.text and " = -1" not in c.text]
        assert found, f"no {what} in the trace"
        return found[-1 if last else 0]

    def syncs(self, text: str) -> list[int]:
        """Give where files whose path contains `text` were synced."""
        return [
            i
            for i, c in enumerate(self.calls())
            if c.name in ("fsync", "fdatasync") and text in c.text and c.text.rstrip().endswith("= 0")
        ]


READS = ("read", "recvfrom", "recvmsg")
WRITES = ("write", "writev", "sendto", "sendmsg")


@pytest.fixture
def traced(hub: Hub, tmp_path: Path, programs: None) -> Iterator[tuple[Hub, Trace]]:
    """Give a node at work to which strace is attached, and what it did since."""
    log = tmp_path / "trace"
    with strace(hub.node.pid, log, "-y", "-s", "2000", "-e", f"trace={CALLS}"):
        yield hub, Trace(log)


def assert_synced_between(trace: Trace, text: str, begin: int, end: int) -> int:
    between = [i for i in trace.syncs(text) if begin < i < end]
    assert between, f"{text} was not synced between {begin} and {end}: {trace.syncs(text)}"
    return between[0]


def wait_for_trace(trace: Trace, text: str) -> None:
    """Wait until strace has written what the far side has seen already."""
    wait_until(lambda: any(text in c.text and c.name in WRITES for c in trace.calls()), f"{text} in the trace")


def test_the_log_of_the_database_is_synced_after_the_last_octet_and_before_250(traced: tuple[Hub, Trace]) -> None:
    hub, trace = traced
    content = message_octets("order", ["b@example.org"], "Order", 500) + b"The last line.\r\n"
    with hub.smtp() as dialogue:
        reply = dialogue.send(content, ["b@example.org"])
    assert reply.startswith("250 2.0.0"), reply
    wait_for_trace(trace, reply.split("\r")[0])
    read = trace.position("end of the message", *READS, text="The last line.")
    answered = trace.position("250", *WRITES, text=reply)
    assert_synced_between(trace, "posthouse.db-wal", read, answered)


def test_a_large_body_and_its_folder_are_synced_before_its_row_and_250(
    traced: tuple[Hub, Trace], tmp_path: Path
) -> None:
    hub, trace = traced
    content = message_octets("order", ["b@example.org"], "Order", 600_000) + b"The last line.\r\n"
    with hub.smtp() as dialogue:
        reply = dialogue.send(content, ["b@example.org"])
    assert reply.startswith("250 2.0.0"), reply
    wait_for_trace(trace, reply)
    answered = trace.position("250", *WRITES, text=reply)
    (kept,) = (hub.node.data / "content").glob("??/*")
    renamed = trace.position("name of the body", "rename", text=f"{kept}")
    file_synced = assert_synced_between(trace, "/spool/", 0, renamed)
    new_folder_synced = assert_synced_between(trace, f"{kept.parent.parent}>", file_synced, renamed)
    folder_synced = assert_synced_between(trace, f"{kept.parent}>", renamed, answered)
    log_synced = assert_synced_between(trace, "posthouse.db-wal", folder_synced, answered)
    assert file_synced < new_folder_synced < renamed < folder_synced < log_synced < answered


@pytest.mark.parametrize("is_list", [False, True])
def test_the_log_of_the_database_is_synced_before_202(traced: tuple[Hub, Trace], is_list: bool) -> None:
    hub, trace = traced
    body = {"from": "a@example.org", "to": ["b@example.org"], "subject": "S", "text": "The last line."}
    answer = hub.post([body] * 5 if is_list else body)
    assert answer.status == 202, answer.body
    wait_for_trace(trace, "HTTP/1.1 202")
    read = trace.position("request", *READS, text="POST /api/v1/messages")
    answered = trace.position("202", *WRITES, text="HTTP/1.1 202")
    assert_synced_between(trace, "posthouse.db-wal", read, answered)


def test_an_outcome_is_durable_before_the_message_counts_as_done(traced: tuple[Hub, Trace], sink: LedgerSink) -> None:
    hub, trace = traced
    token = hub.submit()
    wait_until(lambda: hub.states_of(token) == ["delivered"], "delivery", timeout_s=20)
    assert len(sink.of(token)) == 1
    dot = trace.position("reply to the dot", *READS, text="250 2.0.0 taken")
    assert [i for i in trace.syncs("posthouse.db-wal") if i > dot]
