"""Taking work from the store: claims of due recipients, what was cut off, and the queue of a server that is gone.

Functions run inside a transaction of the writer; what they return is durable with it.
"""

from collections.abc import Sequence
from typing import Any

from posthouse.delivery.lanes import LEASE_S
from posthouse.errors import NoRoute, NotFound
from posthouse.model.directory import Directory
from posthouse.model.identifier import IdentifierSource
from posthouse.model.message import RecipientState, WaitingReason
from posthouse.model.policy import MAX_CUT_OFF
from posthouse.model.routing import Need, choose, routing_sender
from posthouse.model.timeline import CUT_OFF, REROUTED, SET_ASIDE
from posthouse.store import messages
from posthouse.store.database import Connection
from posthouse.store.messages import QueuedMessage, event_row

# A recipient that no server can carry at present is looked at again after this.
LOOK_AGAIN_MS = 60_000
_HELD = int(WaitingReason.UNCERTAIN_HELD)


def claim(
    connection: Connection, ids: IdentifierSource, server_id: int, now_ms: int, limit: int, *, into_fallback: bool
) -> list[QueuedMessage]:
    """Lease up to `limit` due recipients of a server, and load their messages. A fallback gets none that may have been
    delivered already."""
    until_ms = now_ms + int(LEASE_S * 1000)
    rows, cut = messages.claim(connection, server_id, now_ms, until_ms, limit, never_uncertain=into_fallback)
    aside = _set_aside(connection, ids, cut, server_id, now_ms)
    return messages.load_claimed(connection, [row for row in rows if row.id not in aside])


def _set_aside(
    connection: Connection, ids: IdentifierSource, cut: Sequence[Any], server_id: int, now_ms: int
) -> set[int]:
    """Recipients whose attempt was cut off: note it, and set aside those that are marked or were cut off too often."""
    aside: set[int] = set()
    told: set[int] = set()
    for row in cut:
        marked = row.reason == _HELD
        # The lease grows with probes and releases too, so it only says whether a count is worth its while.
        too_often = (
            row.lease - row.attempts >= MAX_CUT_OFF
            and messages.count_events(connection, row.message_id, CUT_OFF) + 1 >= MAX_CUT_OFF
        )
        kind, data = CUT_OFF, {}
        if marked or too_often:
            aside.add(row.id)
            kind = SET_ASIDE
            data = {"detail": "its last reply was lost and the server's rule is to hold." if marked
                    else "the process ended too often while it was in hand."}  # fmt: skip
            messages.change_waiting(
                connection, row.message_id, [row.id],
                {"state": int(RecipientState.UNCERTAIN), "reason": _HELD, "changed_ms": now_ms},
                [int(RecipientState.SENDING)],
            )  # fmt: skip
        if row.message_id not in told:
            told.add(row.message_id)
            messages.add_event(connection, event_row(ids(), now_ms, kind, 0, row.message_id, server_id, data))
    return aside


def reroute(
    connection: Connection,
    ids: IdentifierSource,
    plans: Sequence[tuple[Any, int]],
    server_id: int,
    now_ms: int,
) -> None:
    """The server is gone: its recipients go to the server that the plan names; what may have been delivered waits for a
    person, and what no server can carry is looked at again later (threat F26)."""
    for row, target in plans:
        was_in_hand = row.state == int(RecipientState.SENDING)
        if row.uncertain or was_in_hand:
            values = {"state": int(RecipientState.UNCERTAIN), "reason": _HELD}
            messages.change_waiting(connection, row.message, [row.id], values, [row.state])
            if was_in_hand:
                data = {"detail": "its server was deleted while it was in hand, and may have taken it."}
                event = event_row(ids(), now_ms, SET_ASIDE, row.tenant_id, row.message, server_id, data)
                messages.add_event(connection, event)
        elif target:
            messages.reroute(connection, [row.id], target, "re-routed", now_ms)
            event = event_row(ids(), now_ms, REROUTED, row.tenant_id, row.message, target, {})
            messages.add_event(connection, event)
        else:
            messages.reroute(connection, [row.id], server_id, "re-routed", now_ms + LOOK_AGAIN_MS)


def new_server(directory: Directory, row: Any) -> int:
    """The server that a waiting recipient would be given now, or 0."""
    sender = routing_sender(directory, row.header_from, row.mail_from)
    try:
        need = Need(row.size, row.traits)
        return choose(directory, tenant_id=row.tenant_id, sender=sender, need=need).server.id
    except (NoRoute, NotFound):
        return 0
