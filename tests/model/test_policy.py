"""What follows an outcome."""

from dataclasses import replace

import pytest

from posthouse.model.message import RecipientState, WaitingReason
from posthouse.model.outcome import Outcome, Reply, Result, Scope, Stage
from posthouse.model.policy import HOLD_LADDERS_S, JITTER, MAX_UNCERTAIN, MIN_TRIES, History, decide, hold_for

DELAYS = (60.0, 300.0, 900.0)
NEW = History(
    age_s=0.0,
    attempts=0,
    uncertain=0,
    hold_when_uncertain=False,
    retry_delays_s=DELAYS,
    give_up_after_s=5 * 86400.0,
    expires_in_s=None,
)


def deferred(scope: Scope, **more: object) -> Outcome:
    return Outcome(Result.DEFERRED, scope, Stage.RECIPIENT, Reply(451, "4.7.1", "Later"), **more)  # type: ignore[arg-type]


def test_a_positive_reply_ends_the_matter() -> None:
    decision = decide(Outcome(Result.DELIVERED, Scope.NOBODY, Stage.DATA), NEW)
    assert decision.state is RecipientState.DELIVERED
    assert not decision.is_failure


@pytest.mark.parametrize("scope", [Scope.RECIPIENT, Scope.MESSAGE])
def test_a_refusal_of_recipient_or_message_fails_it(scope: Scope) -> None:
    decision = decide(Outcome(Result.REJECTED, scope, Stage.RECIPIENT, Reply(550, "5.1.1", "No")), NEW)
    assert decision.state is RecipientState.FAILED
    assert decision.is_failure


@pytest.mark.parametrize("scope", [Scope.SERVER, Scope.ACCOUNT, Scope.THROTTLE])
@pytest.mark.parametrize("result", [Result.DEFERRED, Result.REJECTED])
@pytest.mark.parametrize("age_s", [0.0, 365 * 86400.0])
def test_a_fault_of_the_server_never_costs_a_message(scope: Scope, result: Result, age_s: float) -> None:
    decision = decide(Outcome(result, scope, Stage.AUTHENTICATE), replace(NEW, age_s=age_s, attempts=40))
    assert decision.state is RecipientState.WAITING
    assert not decision.counts


def test_deferrals_climb_the_ladder_with_jitter() -> None:
    for attempts, delay in ((0, 60.0), (1, 300.0), (2, 900.0), (9, 900.0)):
        decision = decide(deferred(Scope.RECIPIENT), replace(NEW, attempts=attempts))
        assert decision.state is RecipientState.WAITING
        assert decision.reason is WaitingReason.DEFERRED
        assert decision.counts
        assert delay * (1 - JITTER) <= decision.delay_s <= delay * (1 + JITTER)


def test_the_wish_of_the_server_is_obeyed() -> None:
    assert decide(deferred(Scope.RECIPIENT, retry_after_s=4000.0), NEW).delay_s >= 4000.0


def test_it_gives_up_when_the_message_is_too_old() -> None:
    decision = decide(deferred(Scope.RECIPIENT), replace(NEW, age_s=5 * 86400.0 - 10, attempts=20))
    assert decision.state is RecipientState.FAILED
    assert decision.is_failure


def test_a_message_that_has_waited_behind_a_held_server_gets_its_tries() -> None:
    old = replace(NEW, age_s=30 * 86400.0)
    for attempts in range(MIN_TRIES - 1):
        assert decide(deferred(Scope.RECIPIENT), replace(old, attempts=attempts)).state is RecipientState.WAITING
    assert decide(deferred(Scope.RECIPIENT), replace(old, attempts=MIN_TRIES - 1)).state is RecipientState.FAILED


def test_it_does_not_wait_past_the_expiry_of_the_message() -> None:
    assert decide(deferred(Scope.MESSAGE), replace(NEW, expires_in_s=20.0)).state is RecipientState.EXPIRED


def test_an_uncertain_recipient_is_sent_again_three_times_and_then_waits_for_a_person() -> None:
    lost = Outcome(Result.UNCERTAIN, Scope.CONNECTION, Stage.DATA, cause="closed")
    for count in range(MAX_UNCERTAIN):
        decision = decide(lost, replace(NEW, uncertain=count))
        assert decision.state is RecipientState.WAITING
        assert decision.uncertain == count + 1
    decision = decide(lost, replace(NEW, uncertain=MAX_UNCERTAIN))
    assert decision.state is RecipientState.UNCERTAIN
    assert not decision.is_failure


def test_a_server_that_says_hold_never_gets_an_uncertain_message_again() -> None:
    lost = Outcome(Result.UNCERTAIN, Scope.CONNECTION, Stage.DATA, cause="closed")
    assert decide(lost, replace(NEW, hold_when_uncertain=True)).state is RecipientState.UNCERTAIN


@pytest.mark.parametrize("cause", ["stale-connection", "lease-lost", "too-many-recipients", "connection-limit"])
def test_what_was_not_tried_is_due_at_once_and_does_not_count(cause: str) -> None:
    decision = decide(deferred(Scope.CONNECTION, cause=cause), NEW)
    assert decision.state is RecipientState.WAITING
    assert decision.delay_s == 0.0
    assert not decision.counts


def test_a_connection_that_breaks_in_a_message_defers_that_message() -> None:
    decision = decide(deferred(Scope.CONNECTION, cause="reset"), NEW)
    assert decision.reason is WaitingReason.DEFERRED
    assert decision.counts
    assert decision.delay_s > 0


def test_a_message_that_breaks_its_worker_is_set_aside_after_three_tries() -> None:
    broken = deferred(Scope.CONNECTION, cause="internal")
    assert decide(broken, replace(NEW, attempts=1)).state is RecipientState.WAITING
    assert decide(broken, replace(NEW, attempts=2)).state is RecipientState.UNCERTAIN


def test_uncertainty_survives_later_outcomes() -> None:
    assert decide(deferred(Scope.RECIPIENT), replace(NEW, uncertain=2)).uncertain == 2


@pytest.mark.parametrize("scope", list(HOLD_LADDERS_S))
def test_a_faulty_server_is_held_longer_each_time_and_never_for_ever(scope: Scope) -> None:
    ladder = HOLD_LADDERS_S[scope]
    for failures in range(len(ladder) + 5):
        hold = hold_for(deferred(scope), failures)
        assert hold is not None
        expected = ladder[min(failures, len(ladder) - 1)]
        assert expected * (1 - JITTER) <= hold.delay_s <= expected * (1 + JITTER)


@pytest.mark.parametrize("scope", [Scope.NOBODY, Scope.RECIPIENT, Scope.MESSAGE, Scope.CONNECTION])
def test_other_faults_hold_no_server(scope: Scope) -> None:
    assert hold_for(deferred(scope), 0) is None


def test_a_throttle_is_held_for_as_long_as_it_says_but_at_most_a_day() -> None:
    asked = hold_for(deferred(Scope.THROTTLE, retry_after_s=7200.0), 0)
    absurd = hold_for(deferred(Scope.THROTTLE, retry_after_s=1e9), 0)
    assert asked is not None and asked.delay_s >= 7200.0
    assert absurd is not None and absurd.delay_s <= 86_400.0
