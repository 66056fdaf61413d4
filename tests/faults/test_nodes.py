"""F7, F8: two nodes on one PostgreSQL: each message once, one configuration, and a node that dies or freezes."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.hub import Hub
from tests.support.ledger import Ledger, LedgerSink, Load, LoadOptions, compare
from tests.support.posthouse import PosthouseProcess
from tests.support.processes import NotReady, wait_until

# In force everywhere within a second; and what a busy machine may add.
IN_FORCE_WITHIN_S = 1.0 + 1.0
TAKEN_OVER_WITHIN_S = 60
# Longer than a lease.
FROZEN_S = 45


class Pair:
    """Two nodes of one installation, which share the key ring."""

    def __init__(self, first: Hub, second: Hub) -> None:
        self.first = first
        self.second = second

    def load(self, ledger: Ledger, *, pause_s: float = 0.03) -> Load:
        options = LoadOptions(smtp_sessions=6, rest_sessions=1, api_key=self.first.api_key, pause_s=pause_s)
        nodes = [self.first.node, self.second.node]
        return Load(ledger, [n.smtp_port for n in nodes], [n.http_port for n in nodes], options)


@pytest.fixture
def start_node(
    start_posthouse: Callable[..., PosthouseProcess], database_url: str, tmp_path: Path
) -> Iterator[Callable[[str], Hub]]:
    """Give a function that starts one more node of the installation."""
    hubs: list[Hub] = []

    def start(name: str) -> Hub:
        data = tmp_path / name
        data.mkdir(mode=0o700)
        if hubs:
            shutil.copy(hubs[0].node.data / "keys", data / "keys")
        hub = Hub(start_posthouse(name, database=database_url))
        if hubs:
            hub.api_key, hub.servers = hubs[0].api_key, hubs[0].servers
            hub.node.share_token(hubs[0].node)
        hubs.append(hub)
        return hub

    yield start
    for hub in hubs:
        if hub.node.running:
            os.kill(hub.node.pid, signal.SIGCONT)


@pytest.fixture
def pair(start_node: Callable[[str], Hub], sink: LedgerSink) -> Pair:
    """Give two nodes that deliver to `sink`."""
    first = start_node("first")
    first.add_server("office", sink.port, "--default")
    first.add_application()
    return Pair(first, start_node("second"))


def settle_accounts(hub: Hub, sink: LedgerSink, ledger: Ledger, losses: list[float], window_s: float = 1.0) -> None:
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all acknowledged mail", timeout_s=70, every_s=0.2)
    hub.wait_until_quiet(timeout_s=70)
    verdict = compare(ledger, sink.arrivals())
    assert verdict.lost == []
    assert verdict.unexplained(losses, window_s=window_s) == {}


def wait_for_more(ledger: Ledger, count: int) -> None:
    before = ledger.count()
    wait_until(lambda: ledger.count() >= before + count, f"{count} acknowledgements", timeout_s=30)


def test_both_nodes_deliver_and_each_message_arrives_once(pair: Pair, sink: LedgerSink, ledger: Ledger) -> None:
    with pair.load(ledger) as load:
        wait_for_more(ledger, 150)
        # A backlog that both may claim, beside new mail.
        pair.first.node.cli("queue", "hold", "office")
        wait_for_more(ledger, 200)
        pair.second.node.cli("queue", "release", "office")
        wait_for_more(ledger, 100)
        load.stop()
    settle_accounts(pair.first, sink, ledger, [])
    assert compare(ledger, sink.arrivals()).doubled == {}
    for hub in (pair.first, pair.second):
        assert hub.node.metric("posthouse_recipients_delivered_total") > 20


def test_a_change_on_one_node_is_in_force_on_the_other_within_a_second(pair: Pair, sink: LedgerSink) -> None:
    first, second = pair.first, pair.second

    def answer() -> int:
        return second.post({"from": "a@example.org", "to": ["b@example.org"], "text": "x"}).status

    assert answer() == 202
    for _ in range(3):
        first.settings(sending_enabled=False)
        wait_until(lambda: answer() == 503, "the switch on the other node", timeout_s=IN_FORCE_WITHIN_S)
        first.settings(sending_enabled=True)
        wait_until(lambda: answer() == 202, "the switch on the other node", timeout_s=IN_FORCE_WITHIN_S)
    # A revoked credential, too.
    application = first.get("/api/v1/applications")["items"][0]["id"]
    assert first.node.request("DELETE", f"/api/v1/applications/{application}").status in (200, 204)
    wait_until(lambda: answer() == 401, "the revocation on the other node", timeout_s=IN_FORCE_WITHIN_S)


def test_a_hold_on_one_node_stops_the_other(pair: Pair, sink: LedgerSink, ledger: Ledger) -> None:
    with pair.load(ledger) as load:
        wait_for_more(ledger, 50)
        pair.first.node.cli("queue", "hold", "office")
        held_at = time.monotonic()
        wait_until(lambda: time.monotonic() > held_at + IN_FORCE_WITHIN_S, "the hold", timeout_s=5)
        count = sink.count()
        wait_for_more(ledger, 50)
        assert sink.count() == count
        pair.second.node.cli("queue", "release", "office")
        load.stop()
    settle_accounts(pair.first, sink, ledger, [])


def test_a_node_that_dies_is_replaced_and_one_that_freezes_overwrites_and_repeats_nothing(
    pair: Pair, start_node: Callable[[str], Hub], sink: LedgerSink, ledger: Ledger
) -> None:
    third = start_node("third")
    sink.rules.dot_delay_s = 0.02
    with pair.load(ledger) as load:
        wait_for_more(ledger, 150)
        lost_at = time.monotonic()
        pair.first.node.kill9()
        os.kill(pair.second.node.pid, signal.SIGSTOP)
        load.stop()
        with Pair(third, third).load(ledger, pause_s=0.2) as more:
            # What both had in hand is taken over while new mail goes on.
            wait_until(
                lambda: not compare(ledger, sink.arrivals(), until=lost_at).lost,
                "the mail of the node that died and of the one that is frozen",
                timeout_s=TAKEN_OVER_WITHIN_S,
                every_s=0.2,
            )
            # Longer than a lease, so that the one that returns finds all of its leases lost.
            wait_until(lambda: time.monotonic() > lost_at + FROZEN_S, "the end of the freeze", timeout_s=FROZEN_S)
            os.kill(pair.second.node.pid, signal.SIGCONT)
            more.stop()
    settle_accounts(third, sink, ledger, [lost_at + 0.05])


def test_without_the_key_ring_a_second_node_refuses_to_start(
    pair: Pair, start_posthouse: Callable[..., PosthouseProcess], database_url: str
) -> None:
    """Otherwise it would answer valid credentials as wrong ones, and send with empty passwords."""
    with pytest.raises(NotReady):
        start_posthouse("third", database=database_url)


def test_a_frozen_transaction_is_ended_by_the_database_before_a_lease_is_over(
    pair: Pair, sink: LedgerSink, ledger: Ledger
) -> None:
    """Whatever a frozen node has locked is free for those who take its work over."""
    database = str(pair.first.node.database)
    with pair.load(ledger, pause_s=0.0), psycopg.connect(database, autocommit=True) as watcher:
        frozen = False
        for _ in range(400):
            os.kill(pair.first.node.pid, signal.SIGSTOP)
            inside = watcher.execute(
                "SELECT pid FROM pg_stat_activity WHERE application_name = 'posthouse'"
                " AND state = 'idle in transaction' AND backend_xid IS NOT NULL"
            ).fetchall()
            pids = [pid for (pid,) in inside if _belongs_to(pair.first.node.pid, watcher, pid)]
            if pids:
                frozen = True
                break
            os.kill(pair.first.node.pid, signal.SIGCONT)
            time.sleep(0.003)  # another moment
        assert frozen, "the node was never met within a transaction"
        wait_until(
            lambda: not watcher.execute("SELECT 1 FROM pg_stat_activity WHERE pid = ANY(%s)", [pids]).fetchall(),
            "the end of the frozen transaction",
            timeout_s=30,
            every_s=0.3,
        )
        os.kill(pair.first.node.pid, signal.SIGCONT)
    settle_accounts(pair.second, sink, ledger, [])


def _belongs_to(pid: int, watcher: "psycopg.Connection[tuple[Any, ...]]", backend: int) -> bool:
    """Say whether a backend of the database serves this process, by the port of its connection."""
    found = watcher.execute("SELECT client_port FROM pg_stat_activity WHERE pid = %s", [backend]).fetchone()
    return found is not None and found[0] in _local_ports(pid)


def _local_ports(pid: int) -> set[int]:
    """Give the local ports of the TCP connections of a process."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(fields[1].rpartition(":")[2], 16) for fields in lines if fields[9] in inodes}
