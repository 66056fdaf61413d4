"""F7: the database crashes and comes back, loses single connections, or hangs, while load runs on PostgreSQL."""

import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.hub import Hub
from tests.support.ledger import Ledger, LedgerSink, Load, LoadOptions, compare
from tests.support.postgres import PostgresServer
from tests.support.posthouse import PosthouseProcess
from tests.support.processes import wait_until

# What a client waits for its refusal, and what a busy machine may add.
ANSWER_WITHIN_S = 5.0
SLACK_S = 1.5
BACK_WITHIN_S = 10.0


@pytest.fixture
def server(start_postgres: Callable[..., PostgresServer]) -> PostgresServer:
    """Give a PostgreSQL of the test's own."""
    return start_postgres()


@pytest.fixture
def hub_on(
    server: PostgresServer, sink: LedgerSink, start_hub: Callable[..., Hub]
) -> Iterator[tuple[Hub, PostgresServer]]:
    """Give a node whose database the test may break."""
    yield start_hub(sink.port, database=server.create_database()), server


def load_for(hub: Hub, ledger: Ledger) -> Load:
    options = LoadOptions(smtp_sessions=6, rest_sessions=2, api_key=hub.api_key, pause_s=0.02)
    return Load(ledger, [hub.node.smtp_port], [hub.node.http_port], options)


def wait_for_more(ledger: Ledger, count: int = 50) -> None:
    before = ledger.count()
    wait_until(lambda: ledger.count() >= before + count, f"{count} acknowledgements", timeout_s=20)


def settle_accounts(hub: Hub, sink: LedgerSink, ledger: Ledger, losses: list[float], window_s: float) -> None:
    """Wait until all is quiet and draw the line."""
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all acknowledged mail", timeout_s=60, every_s=0.2)
    hub.wait_until_quiet(timeout_s=60)
    verdict = compare(ledger, sink.arrivals())
    assert verdict.lost == []
    assert verdict.unexplained(losses, window_s=window_s) == {}


def assert_refused_in_time(hub: Hub) -> None:
    """Mail is refused for now, soon, by both faces; the process is alive and says that it cannot work."""
    begun = time.monotonic()
    with hub.smtp() as dialogue:
        reply = dialogue.send(b"From: a@example.org\r\n\r\nx\r\n", ["b@example.org"])
    assert reply.startswith("451 4.3.0"), reply
    assert time.monotonic() - begun < ANSWER_WITHIN_S + SLACK_S
    begun = time.monotonic()
    answer = hub.post({"from": "a@example.org", "to": ["b@example.org"], "text": "x"})
    assert answer.status == 503, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    assert time.monotonic() - begun < ANSWER_WITHIN_S + SLACK_S
    assert hub.healthy() == 200
    assert hub.ready() == 503


def assert_back_in_time(hub: Hub, ledger: Ledger, since: float) -> None:
    before = ledger.count()
    wait_until(lambda: ledger.count() > before, "an acknowledgement", timeout_s=BACK_WITHIN_S + SLACK_S)
    wait_until(lambda: hub.ready() == 200, "readiness", timeout_s=BACK_WITHIN_S + SLACK_S - (time.monotonic() - since))


def test_a_database_that_crashes_and_is_away_costs_no_message(
    hub_on: tuple[Hub, PostgresServer], sink: LedgerSink, ledger: Ledger
) -> None:
    hub, server = hub_on
    with load_for(hub, ledger) as load:
        wait_for_more(ledger)
        gone_at = time.monotonic()
        server.stop("immediate")
        wait_until(lambda: hub.ready() == 503, "the node's notice", timeout_s=6)
        for _ in range(2):
            assert_refused_in_time(hub)
        server.start()
        back_at = time.monotonic()
        assert_back_in_time(hub, ledger, back_at)
        wait_for_more(ledger)
        load.stop()
    assert ledger.slowest_answer_s < ANSWER_WITHIN_S + SLACK_S
    # Outcomes that could not be recorded are recorded when the database is back, so nothing is sent again.
    settle_accounts(hub, sink, ledger, [gone_at], window_s=1.0)


def test_connections_that_are_cut_again_and_again_cost_no_message(
    hub_on: tuple[Hub, PostgresServer], sink: LedgerSink, ledger: Ledger
) -> None:
    hub, server = hub_on
    with load_for(hub, ledger) as load:
        for _ in range(8):
            wait_for_more(ledger, 20)
            server.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'posthouse'"
            )
        wait_for_more(ledger)
        load.stop()
    settle_accounts(hub, sink, ledger, [], window_s=0.0)


def test_a_database_that_hangs_is_answered_for_in_time(
    hub_on: tuple[Hub, PostgresServer], sink: LedgerSink, ledger: Ledger
) -> None:
    hub, server = hub_on
    with load_for(hub, ledger) as load:
        wait_for_more(ledger)
        frozen_at = time.monotonic()
        server.freeze()
        try:
            assert_refused_in_time(hub)
            assert_refused_in_time(hub)
            wait_until(lambda: time.monotonic() - frozen_at > 9, "nine seconds", timeout_s=12)
            delivered = sink.count()
            wait_until(lambda: time.monotonic() - frozen_at > 11, "eleven seconds", timeout_s=12)
            assert sink.count() == delivered, "a node without its database starts no transaction"
        finally:
            server.thaw()
        assert_back_in_time(hub, ledger, time.monotonic())
        wait_for_more(ledger)
        load.stop()
    assert ledger.slowest_answer_s < ANSWER_WITHIN_S + SLACK_S
    settle_accounts(hub, sink, ledger, [frozen_at], window_s=1.0)


def test_a_node_that_starts_before_its_database_says_so_and_ends(
    server: PostgresServer, start_posthouse: Callable[..., PosthouseProcess], sink: LedgerSink
) -> None:
    url = server.create_database()
    server.stop("immediate")
    with pytest.raises(AssertionError, match="database"):
        start_posthouse(database=url)
