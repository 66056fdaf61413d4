"""F5: the disk is full, read-only, or answers with errors. Needs root (a small file system is mounted) and strace."""

import contextlib
import itertools
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.hub import Hub
from tests.support.ledger import Ledger, LedgerSink, Load, LoadOptions, compare, message_octets
from tests.support.posthouse import PosthouseProcess
from tests.support.processes import program, wait_until
from tests.support.strace import strace

DISK_OCTETS = 24 * 1024 * 1024
# The reserve is looked at every ten seconds.
RECOVERS_WITHIN_S = 20


class SmallDisk:
    """A file system in memory of its own that a test can fill, free and make read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self, *, leave_octets: int = 0) -> None:
        """Take all the space but `leave_octets`."""
        with (self.folder / "filler").open("ab") as file:
            for size in (1 << 20, 1 << 16, 1 << 12):
                with contextlib.suppress(OSError):
                    while self.free() - leave_octets >= size:
                        os.write(file.fileno(), b"\0" * size)

    def empty(self) -> None:
        (self.folder / "filler").unlink()

    def free(self) -> int:
        facts = os.statvfs(self.folder)
        return facts.f_bavail * facts.f_bsize

    def remount(self, mode: str) -> None:
        mount("-o", f"remount,{mode}", str(self.folder))


def mount(*arguments: str) -> None:
    subprocess.run([program("mount"), *arguments], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path, programs: None) -> Iterator[SmallDisk]:
    """Give a small disk. Fails, saying so, where it may not be mounted."""
    assert os.geteuid() == 0, "This test mounts a file system and has to run as root."
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={DISK_OCTETS}", "posthouse-test", str(folder))
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run([program("umount"), "-l", str(folder)], check=True)


@pytest.fixture
def hub(
    disk: SmallDisk, start_posthouse: Callable[..., PosthouseProcess], sink: LedgerSink, tmp_path: Path
) -> Iterator[Hub]:
    """Give a node whose data directory lies on the small disk."""
    node = start_posthouse(data=disk.folder / "data")
    hub = Hub(node)
    hub.add_server("office", sink.port, "--default")
    hub.add_application()
    hub.node.token  # noqa: B018 - made while there is room
    yield hub
    hub.node.stop()


def assert_refused_for_space(hub: Hub) -> None:
    """452 by SMTP, 507 by REST, whatever the size; alive, and not ready with the reason."""
    for octets in (300, 400_000):
        content = message_octets("none", ["b@example.org"], "Full", octets)
        with hub.smtp() as dialogue:
            reply = dialogue.send(content, ["b@example.org"])
        assert reply.startswith("452 4.3.1"), reply
        answer = hub.post_raw(content, ["b@example.org"])
        assert answer.status == 507, answer.body
        assert answer.json()["code"] == "store-full"
    assert hub.post([{"from": "a@example.org", "to": ["b@example.org"], "text": "x"}]).status == 507
    assert hub.healthy() == 200
    assert hub.ready() == 503


def submit_until_refused(hub: Hub) -> None:
    """Submit until the first refusal, which must be a temporary one."""

    numbers = itertools.count()

    def refused() -> bool:
        content = message_octets(f"filling-{next(numbers)}", ["f@example.org"], "Filling", 100_000)
        with hub.smtp() as dialogue:
            reply = dialogue.send(content, ["f@example.org"])
        assert reply[:3] in ("250", "452"), reply
        return reply.startswith("452")

    wait_until(refused, "a refusal on a full disk", timeout_s=30)


def assert_recovers(hub: Hub, ledger: Ledger) -> None:
    wait_until(lambda: hub.ready() == 200, "readiness without help", timeout_s=RECOVERS_WITHIN_S, every_s=0.1)
    before = ledger.count()
    wait_until(lambda: ledger.count() > before + 40, "40 more acknowledgements", timeout_s=30)


def load_for(hub: Hub, ledger: Ledger) -> Load:
    options = LoadOptions(smtp_sessions=4, rest_sessions=1, api_key=hub.api_key, pause_s=0.02, large_every=10)
    return Load(ledger, [hub.node.smtp_port], [hub.node.http_port], options)


def test_on_a_full_disk_mail_is_refused_for_now_outcomes_are_kept_and_it_recovers_alone(
    hub: Hub, disk: SmallDisk, sink: LedgerSink, ledger: Ledger
) -> None:
    sink.rules.dot_delay_s = 0.2
    with load_for(hub, ledger) as load:
        wait_until(lambda: ledger.count() > 40, "40 acknowledgements", timeout_s=30)
        disk.fill(leave_octets=1 << 20)
        submit_until_refused(hub)
        assert_refused_for_space(hub)
        # What was on the wire is recorded, from the reserve.
        wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all acknowledged mail", timeout_s=30)
        wait_until(lambda: hub.in_queue() == 0, "their outcomes", timeout_s=30, every_s=0.1)
        assert_refused_for_space(hub)
        disk.empty()
        assert_recovers(hub, ledger)
        load.stop()
    settle_accounts(hub, sink, ledger)
    assert (hub.node.data / "reserve").stat().st_size > 0


def test_where_not_even_outcomes_can_be_recorded_delivery_pauses_and_nothing_is_sent_twice(
    hub: Hub, disk: SmallDisk, sink: LedgerSink, ledger: Ledger
) -> None:
    sink.rules.dot_delay_s = 0.2
    with load_for(hub, ledger) as load:
        wait_until(lambda: ledger.count() > 40, "40 acknowledgements", timeout_s=30)
        # Whatever Posthouse gives up is taken at once, as another program on the same disk would.
        end = time.monotonic() + 4
        while time.monotonic() < end:
            disk.fill()
            time.sleep(0.01)
        assert_refused_for_space(hub)
        arrived = sink.count()
        assert_refused_for_space(hub)
        assert sink.count() == arrived, "nothing is sent that cannot be recorded"
        disk.empty()
        assert_recovers(hub, ledger)
        load.stop()
    settle_accounts(hub, sink, ledger)


def settle_accounts(hub: Hub, sink: LedgerSink, ledger: Ledger) -> None:
    """Draw the line when all is quiet; nothing of what was refused is left, and no refusal was a permanent one."""
    bad = [answer for answer in ledger.refusals if answer.startswith("5") and not answer.startswith(("503 ", "507 "))]
    assert bad == []
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all acknowledged mail", timeout_s=30)
    hub.wait_until_quiet()
    verdict = compare(ledger, sink.arrivals())
    assert (verdict.lost, verdict.doubled) == ([], {})
    assert list((hub.node.data / "spool").iterdir()) == []


def test_a_node_starts_on_a_full_disk_and_delivers_what_it_has(
    hub: Hub, disk: SmallDisk, sink: LedgerSink, ledger: Ledger
) -> None:
    sink.stop()
    for _ in range(5):
        hub.submit(ledger=ledger)
    hub.node.kill9()
    disk.fill()
    sink.start()
    hub.node.start()
    hub.node.cli("queue", "release", "office")
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all acknowledged mail", timeout_s=40)
    hub.wait_until_quiet()
    assert compare(ledger, sink.arrivals()).doubled == {}


def test_a_read_only_disk_pauses_delivery_and_refuses_mail_for_now(
    hub: Hub, disk: SmallDisk, sink: LedgerSink, ledger: Ledger
) -> None:
    for _ in range(5):
        hub.submit(ledger=ledger)
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "what came before", timeout_s=20)
    hub.wait_until_quiet()
    # Open files forbid an orderly change, so it is forced as a failing disk forces it: nothing can be written any more.
    with read_only_files(hub, disk):
        begun = time.monotonic()
        with hub.smtp() as dialogue:
            reply = dialogue.send(message_octets("none", ["b@example.org"], "No", 300), ["b@example.org"])
        assert reply.startswith("4"), reply
        assert time.monotonic() - begun < 6.5
        assert hub.post({"from": "a@example.org", "to": ["b@example.org"], "text": "x"}).status in (503, 507)
        assert hub.healthy() == 200
        assert hub.ready() == 503
    wait_until(lambda: hub.ready() == 200, "readiness without help", timeout_s=RECOVERS_WITHIN_S, every_s=0.1)
    hub.submit(ledger=ledger)
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all acknowledged mail", timeout_s=20)
    assert compare(ledger, sink.arrivals()).doubled == {}


@contextlib.contextmanager
def read_only_files(hub: Hub, disk: SmallDisk) -> Iterator[None]:
    """Let every write of the process fail with EROFS, and remount what can be remounted."""
    with injected(hub, "write,pwrite64,openat,ftruncate,fdatasync,fsync:error=EROFS", path=disk.folder / "data"):
        yield


@contextlib.contextmanager
def injected(hub: Hub, what: str, *, path: Path) -> Iterator[None]:
    """Have strace put faults into system calls of the running process that concern files under `path`."""
    names = sorted({str(each) for each in path.rglob("*") if each.is_file()} | {str(path)})
    paths = [part for name in names for part in ("-P", name)]
    calls = what.partition(":")[0]
    log = hub.node.log_path.with_suffix(".strace")
    with strace(hub.node.pid, log, "-e", f"trace={calls}", "-e", f"inject={what}", *paths):
        yield


@pytest.mark.parametrize("call", ["fdatasync", "fsync", "pwrite64"])
def test_an_error_of_the_disk_is_answered_with_a_temporary_refusal_or_the_message_is_kept(
    hub: Hub, disk: SmallDisk, sink: LedgerSink, ledger: Ledger, call: str
) -> None:
    hub.submit(ledger=ledger)
    kept, refused = 0, 0
    with injected(hub, f"{call}:error=EIO:when=2+3", path=disk.folder / "data"):
        for number in range(8):
            octets = 300_000 if number % 3 == 0 else 500
            token = f"eio-{call}-{number}"
            to = [f"{token}@example.org"]
            with hub.smtp() as dialogue:
                reply = dialogue.send(message_octets(token, to, "Perhaps", octets), to)
            if reply.startswith("250"):
                ledger.acknowledge(token, to)
                kept += 1
            else:
                assert reply.startswith("4"), reply
                refused += 1
    wait_until(lambda: hub.ready() == 200, "readiness without help", timeout_s=RECOVERS_WITHIN_S, every_s=0.1)
    hub.node.kill9()
    hub.node.start()
    hub.submit(ledger=ledger)
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all acknowledged mail", timeout_s=40)
    assert kept + refused == 8
