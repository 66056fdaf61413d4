"""F1, F2: the process is killed at random moments of submission and delivery, again and again, while load runs."""

import random
import time
from collections.abc import Callable

import pytest

from tests.support.hub import Hub
from tests.support.ledger import Ledger, LedgerSink, Load, LoadOptions, compare
from tests.support.processes import wait_until

# A copy is allowed of what was between its final dot and its commit; the sink's delay before its reply is part of it.
DOT_DELAY_S = 0.03


def kill_again_and_again(hub: Hub, sink: LedgerSink, ledger: Ledger, rounds: int, seed: int) -> None:
    """Run load through `rounds` kills and draw the line when all is quiet."""
    chance = random.Random(seed)
    sink.rules.dot_delay_s = DOT_DELAY_S
    kills: list[float] = []
    options = LoadOptions(smtp_sessions=5, rest_sessions=1, api_key=hub.api_key, pause_s=0.02, large_every=60)
    with Load(ledger, [hub.node.smtp_port], [hub.node.http_port], options) as load:
        for _ in range(rounds):
            before = ledger.count()
            wait_until(lambda n=before: ledger.count() > n, "an acknowledgement", timeout_s=30)  # type: ignore[misc]
            time.sleep(chance.uniform(0.0, 0.9))  # the random moment
            kills.append(time.monotonic())
            hub.node.kill9()
            hub.node.start()
        load.stop()
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all acknowledged mail", timeout_s=100, every_s=0.2)
    hub.wait_until_quiet(timeout_s=100)
    verdict = compare(ledger, sink.arrivals())
    assert verdict.lost == []
    # The time of a kill was noted just before it: what the process still did then came up to a moment later.
    assert verdict.unexplained([kill + 0.05 for kill in kills]) == {}, f"seed {seed}, kills {kills}"
    assert ledger.count() > 20 * rounds


@pytest.fixture
def chance_seed() -> int:
    return random.SystemRandom().randrange(1 << 32)


def test_killed_six_times_it_loses_nothing_and_repeats_only_what_was_on_the_wire(
    start_hub: Callable[..., Hub], sink: LedgerSink, ledger: Ledger, database: str | None, chance_seed: int
) -> None:
    kill_again_and_again(start_hub(sink.port, database=database), sink, ledger, 6, chance_seed)


@pytest.mark.soak
def test_killed_fifty_times_it_loses_nothing_and_repeats_only_what_was_on_the_wire(
    start_hub: Callable[..., Hub], sink: LedgerSink, ledger: Ledger, database: str | None, chance_seed: int
) -> None:
    kill_again_and_again(start_hub(sink.port, database=database), sink, ledger, 50, chance_seed)


def test_a_deferred_recipient_is_repeated_alone(hub: Hub, sink: LedgerSink, ledger: Ledger) -> None:
    hub.retry_after(1)
    sink.rules.recipient_reply = lambda address, before: (
        "451 4.2.1 later" if address.startswith("late") and before < 2 else None
    )
    tokens = [hub.submit(["now@example.org", "late@example.org", "also@example.org"], ledger=ledger)]
    hub.node.kill9()
    hub.node.start()
    tokens.append(hub.submit(["now@example.org", "later@example.org", "late@example.org"], ledger=ledger))
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all recipients", timeout_s=40)
    hub.wait_until_quiet()
    second = [arrival.recipient for arrival in sink.of(tokens[1])]
    assert sorted(second) == ["late@example.org", "later@example.org", "now@example.org"]
    # The first was perhaps on the wire when the process was killed: then, and only then, a recipient has two copies.
    first = [arrival.recipient for arrival in sink.of(tokens[0])]
    assert first.count("late@example.org") == 1
