"""What follows an outcome: the one place that decides between delivered, retry, next server, hold the server, and fail.

In prose. A positive reply ends the matter for its recipient. A refusal of this recipient or this message (5yz) ends it
too: the recipient has failed. A deferral of the recipient or message (4yz) is tried again along the ladder of delays,
until the message is older than the limit; then the recipient has failed with the last reply as reason. Time in which its
server was held counts in that age, but no message ends before it had a fair number of tries.
Any fault of the connection, server or account, and any wish to slow down, never costs a message: the server is held, its
queue waits, and the attempt does not count. A connection that the server closes between messages is just opened again;
one that breaks in the middle of a message defers that message, so that a message which breaks connections stops no other.
A lost last reply is uncertain: the message goes again to the same server with the same Message-ID, at most three times
(RFC 5321 section 4.5.3.2.6 describes the loss), or waits for a person where the server's rule says so.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from posthouse.model.message import RecipientState, WaitingReason
from posthouse.model.outcome import Outcome, Result, Scope

# Resends after a lost reply (design.md promise 1).
MAX_UNCERTAIN = 3
# A message that brings its worker down is set aside after so many tries (threat F25).
MAX_INTERNAL_FAULTS = 3
# Claims without any outcome: the process died each time, perhaps because of this message.
MAX_CUT_OFF = 20
JITTER = 0.2
# A message that has waited for days behind a held server is not given up at the first 4yz it meets afterwards.
MIN_TRIES = 4

# How long a server is held after the first, second ... fault in a row, by whose fault it is. A dead host is worth a look
# soon; a wrong password is not worth locking the account for.
HOLD_LADDERS_S: dict[Scope, tuple[float, ...]] = {
    Scope.SERVER: (5, 10, 20, 40, 60, 120, 300),
    Scope.ACCOUNT: (60, 300, 900, 1800),
    Scope.THROTTLE: (60, 120, 300, 600, 1800),
}
HOLDING_SCOPES = frozenset(HOLD_LADDERS_S)
# So many broken connections in a row, with no delivery between them, are the server's fault.
MAX_BROKEN_CONNECTIONS = 3
# Nothing was tried: the recipient is due again at once.
FREE_CAUSES = frozenset({"stale-connection", "lease-lost", "too-many-recipients", "connection-limit"})


@dataclass(frozen=True, slots=True)
class Hold:
    """The server waits this long before its next try."""

    scope: Scope
    cause: str
    detail: str
    delay_s: float


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one recipient after one attempt."""

    state: RecipientState
    reason: WaitingReason = WaitingReason.DUE
    # Until the next attempt, for a waiting recipient.
    delay_s: float = 0.0
    # Whether this attempt counts towards the ladder.
    counts: bool = True
    uncertain: int = 0
    # Final, and against the recipient: report it.
    is_failure: bool = False


@dataclass(frozen=True, slots=True)
class History:
    """What is known of the recipient before the attempt."""

    age_s: float
    attempts: int
    uncertain: int
    hold_when_uncertain: bool
    retry_delays_s: Sequence[float]
    give_up_after_s: float
    expires_in_s: float | None


def decide(outcome: Outcome, history: History) -> Decision:
    """What becomes of the recipient."""
    if outcome.result is Result.DELIVERED:
        return Decision(RecipientState.DELIVERED, uncertain=history.uncertain)
    if outcome.result is Result.HANDED_OVER:
        return Decision(RecipientState.HANDED_OVER, uncertain=history.uncertain)
    if outcome.result is Result.UNCERTAIN:
        return _uncertain(history)
    if outcome.result is Result.REJECTED and outcome.scope in (Scope.RECIPIENT, Scope.MESSAGE, Scope.NOBODY):
        return Decision(RecipientState.FAILED, uncertain=history.uncertain, is_failure=True)
    if outcome.scope in HOLDING_SCOPES:
        return Decision(RecipientState.WAITING, WaitingReason.DUE, counts=False, uncertain=history.uncertain)
    if outcome.cause in FREE_CAUSES:
        return Decision(RecipientState.WAITING, WaitingReason.DUE, counts=False, uncertain=history.uncertain)
    if outcome.cause == "internal" and history.attempts + 1 >= MAX_INTERNAL_FAULTS:
        return Decision(RecipientState.UNCERTAIN, WaitingReason.UNCERTAIN_HELD, uncertain=history.uncertain)
    return _deferred(outcome, history)


def _uncertain(history: History) -> Decision:
    count = history.uncertain + 1
    if history.hold_when_uncertain or count > MAX_UNCERTAIN:
        return Decision(RecipientState.UNCERTAIN, WaitingReason.UNCERTAIN_HELD, uncertain=count)
    delay = _ladder(history.retry_delays_s, count - 1)
    return Decision(RecipientState.WAITING, WaitingReason.DEFERRED, delay_s=delay, uncertain=count)


def _deferred(outcome: Outcome, history: History) -> Decision:
    delay = max(_ladder(history.retry_delays_s, history.attempts), outcome.retry_after_s or 0.0)
    if history.age_s + delay > history.give_up_after_s and history.attempts + 1 >= MIN_TRIES:
        return Decision(RecipientState.FAILED, uncertain=history.uncertain, is_failure=True)
    if history.expires_in_s is not None and delay >= history.expires_in_s:
        return Decision(RecipientState.EXPIRED, uncertain=history.uncertain, is_failure=True)
    return Decision(RecipientState.WAITING, WaitingReason.DEFERRED, delay_s=delay, uncertain=history.uncertain)


def hold_for(outcome: Outcome, failures: int) -> Hold | None:
    """Whether the outcome holds the server, and for how long; `failures` in a row came before."""
    ladder = HOLD_LADDERS_S.get(outcome.scope)
    if ladder is None or outcome.result in (Result.DELIVERED, Result.HANDED_OVER):
        return None
    # What the server asks for is obeyed, up to a day: then it is looked at again.
    asked = min(outcome.retry_after_s or 0.0, 86_400.0)
    return Hold(
        outcome.scope, outcome.cause, outcome.detail or str(outcome.reply or ""), max(asked, _ladder(ladder, failures))
    )


def _ladder(delays: Sequence[float], step: int) -> float:
    """The delay of a step with jitter, so that what failed together does not come back together."""
    delay = delays[min(step, len(delays) - 1)]
    return delay * (1 + random.uniform(-JITTER, JITTER))
