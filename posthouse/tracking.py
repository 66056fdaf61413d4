"""Tracking: shows what became of each message, and carries out what people decide about it.

Lists, timelines in sentences, raw bytes; cancel and retry; queues by server, hold and release; captured mail; events.
Who may see what is checked here: an application sees its own messages, a tenant's actor those of the tenant.
"""

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from posthouse.clock import Clock
from posthouse.delivery import Delivery
from posthouse.errors import Conflict, NotFound
from posthouse.model.actor import Actor, Permission
from posthouse.model.identifier import IdentifierSource
from posthouse.model.message import RecipientState, Traits, WaitingReason
from posthouse.model.record import at
from posthouse.model.timeline import CANCELLED, RETRIED, Entry, Names, render
from posthouse.store import messages
from posthouse.store.content import INLINE, PRUNED, ContentStore, StoredContent
from posthouse.store.database import Connection, Database
from posthouse.store.directory_source import DirectorySource
from posthouse.store.messages import MessageFilter, event_row
from posthouse.store.server_state import ServerState

CANCELLABLE = (int(RecipientState.WAITING), int(RecipientState.UNCERTAIN))
RETRIABLE = (
    int(RecipientState.WAITING),
    int(RecipientState.UNCERTAIN),
    int(RecipientState.FAILED),
    int(RecipientState.EXPIRED),
    int(RecipientState.CANCELLED),
)
# The oldest captured mail is shown at the end; more than this is a page.
PAGE = 100


@dataclass(frozen=True, slots=True)
class ShownMessage:
    """A message with its recipients; rows of the store. `state` is that of the least finished recipient."""

    row: Any
    state: RecipientState
    recipients: Sequence[Any]


@dataclass(frozen=True, slots=True)
class QueueLine:
    """The queue of one server."""

    server_id: int
    server: str
    tenant_id: int
    waiting: int
    sending: int
    oldest: int | None
    next_due_ms: int | None
    state: ServerState
    why_waiting: str


class Tracking:
    """The job. It changes recipients only in ways that delivery's leases allow."""

    def __init__(
        self,
        *,
        database: Database,
        directory: DirectorySource,
        ids: IdentifierSource,
        clock: Clock,
        contents: ContentStore,
        delivery: Delivery,
    ) -> None:
        self._database = database
        self._directory = directory
        self._ids = ids
        self._clock = clock
        self._contents = contents
        self._delivery = delivery

    # ------------------------------------------------------------ reading

    async def messages(
        self, actor: Actor, wanted: MessageFilter, *, before: int | None = None, limit: int = PAGE
    ) -> list[Any]:
        """Messages newest first: rows with `state`, `recipients` (count) and `first_recipient`."""
        narrowed = _narrow(actor, wanted)
        return await self._database.read(
            lambda connection: messages.list_messages(connection, narrowed, before=before, limit=limit)
        )

    async def show(self, actor: Actor, message_id: int) -> ShownMessage:
        """One message. Raises NotFound, also for those of others."""
        row, recipients, _ = await self._read(actor, message_id)
        return ShownMessage(row, overall(recipients), recipients)

    async def timeline(self, actor: Actor, message_id: int) -> list[Entry]:
        """What happened to the message, oldest first, and what comes next."""
        row, recipients, events = await self._read(actor, message_id)
        directory = self._directory.current
        names = Names(
            {i: r.name for i, r in directory.servers.items()}, {i: r.name for i, r in directory.applications.items()}
        )
        waiting = {r.server_id: self.why_waiting(r.server_id) for r in recipients if r.state < 3}
        decoded = [(event, json.loads(event.data)) for event in events]
        return render(row, json.loads(row.origin), recipients, decoded, names, waiting)

    async def raw(self, actor: Actor, message_id: int) -> AsyncIterator[bytes]:
        """The bytes of the message as they were kept. Raises NotFound, Conflict where retention has removed them."""
        row, _, _ = await self._read(actor, message_id)
        if row.content_place == PRUNED:
            raise Conflict("The content of this message was removed after its time.", code="content-gone")
        content = await self._database.read(lambda connection: messages.read_content(connection, message_id))
        if content is None:
            raise NotFound("The content of this message is not there.")
        return self._pieces(message_id, bytes(content.header), content.body, row.content_place == INLINE)

    async def _pieces(self, message_id: int, header: bytes, body: bytes | None, inline: bool) -> AsyncIterator[bytes]:
        yield header
        if inline:
            yield bytes(body or b"")
            return
        async for piece in StoredContent(header, None, 0, Traits.NONE, message_id, self._contents).chunks():
            yield piece

    async def _read(self, actor: Actor, message_id: int) -> tuple[Any, list[Any], list[Any]]:
        row, recipients, events = await self._database.read(
            lambda connection: messages.read_message(connection, message_id)
        )
        if not _may_see(actor, row):
            raise NotFound("There is no such message.")
        return row, recipients, events

    async def events(self, actor: Actor, *, after: int = 0, limit: int = PAGE) -> list[Any]:
        """The event feed after a cursor, oldest first."""
        actor.require(Permission.READ)
        return await self._database.read(
            lambda connection: messages.list_events(connection, tenant_id=actor.tenant_id, after=after, limit=limit)
        )

    # ------------------------------------------------------------ deciding

    async def cancel(self, actor: Actor, message_id: int, recipients: Iterable[int] | None = None) -> int:
        """Cancel what has not been sent. Returns how many recipients. Raises Conflict where none can be cancelled."""
        values = {"state": int(RecipientState.CANCELLED), "reason": 0}
        return await self._decide(actor, message_id, recipients, values, CANCELLABLE, CANCELLED)

    async def retry(self, actor: Actor, message_id: int, recipients: Iterable[int] | None = None) -> int:
        """Try now what waits, is uncertain, failed, expired or was cancelled. Returns how many recipients."""
        row, _, _ = await self._read(actor, message_id)
        if row.content_place == PRUNED:
            raise Conflict("The content of this message was removed after its time.", code="content-gone")
        values = {
            "state": int(RecipientState.WAITING),
            "reason": int(WaitingReason.DUE),
            "due_ms": self._clock.now_ms(),
            "uncertain": 0,
            "attempts": 0,
        }
        count = await self._decide(actor, message_id, recipients, values, RETRIABLE, RETRIED)
        self._delivery.wake()
        return count

    async def _decide(
        self,
        actor: Actor,
        message_id: int,
        recipients: Iterable[int] | None,
        values: dict[str, Any],
        states: Sequence[int],
        kind: str,
    ) -> int:
        row, _, _ = await self._read(actor, message_id)
        if not actor.application_id:
            actor.require(Permission.OPERATE)
        now_ms = self._clock.now_ms()
        chosen = list(recipients) if recipients is not None else None
        event = event_row(self._ids(), now_ms, kind, row.tenant_id, message_id, 0, {"actor": actor.name})

        def work(connection: Connection) -> int:
            count = messages.change_waiting(connection, message_id, chosen, {**values, "changed_ms": now_ms}, states)
            if count:
                messages.add_event(connection, event)
            return count

        count = await self._database.write(work)
        if not count:
            raise Conflict(
                "No recipient of this message is in a state that allows this.",
                remedy="What is on the wire or finished stays as it is; look at the timeline.",
            )
        return count

    # ------------------------------------------------------------ the queue

    def why_waiting(self, server_id: int) -> str:
        """Why the queue of a server waits as a whole, as sentences; "" where it does not."""
        directory = self._directory.current
        off = directory.sending_off_reason()
        if off is not None:
            return off
        record = directory.servers.get(server_id)
        if record is None:
            return "The server was deleted; the message is routed again as soon as there is another."
        if not record.value.enabled:
            return f"{record.name} is disabled."
        state = self._delivery.state_of(server_id)
        if state.held == "operator":
            return f"{record.name} is held by a person. {state.detail}".strip()
        if state.held:
            moment = at(state.next_try_ms).strftime("%H:%M:%S UTC")
            return f"{record.name} is held: {state.detail} It is tried again at {moment}."
        return ""

    async def queue(self, actor: Actor) -> list[QueueLine]:
        """The queues, one line per server that has one or is held."""
        actor.require(Permission.READ)
        counts = await self._database.read(messages.queue_counts)
        directory = self._directory.current
        by_server: dict[int, dict[int, Any]] = {}
        for row in counts:
            by_server.setdefault(row.server_id, {})[row.state] = row
        for server_id in directory.servers:
            if self._delivery.state_of(server_id).held:
                by_server.setdefault(server_id, {})
        lines = []
        for server_id, states in by_server.items():
            record = directory.servers.get(server_id)
            tenant_id = record.tenant_id if record else 0
            if actor.reaches(tenant_id) and (record is not None or not actor.tenant_id):
                lines.append(self._line(server_id, record.name if record else "", tenant_id, states))
        return sorted(lines, key=lambda line: (-line.waiting, line.server))

    def _line(self, server_id: int, name: str, tenant_id: int, states: Mapping[int, Any]) -> QueueLine:
        waiting, sending = states.get(1), states.get(2)
        return QueueLine(
            server_id,
            name or "(deleted)",
            tenant_id,
            waiting.count if waiting else 0,
            sending.count if sending else 0,
            min((s.oldest for s in states.values()), default=None),
            waiting.next_due if waiting else None,
            self._delivery.state_of(server_id),
            self.why_waiting(server_id),
        )

    async def hold(self, actor: Actor, server_id: int, detail: str = "") -> None:
        """Stop sending through a server until it is released; its mail waits."""
        self._require_server(actor, server_id)
        await self._delivery.hold_by_operator(server_id, detail or f"Held by {actor.name}.")

    async def release(self, actor: Actor, server_id: int) -> None:
        """Send through the server again, now."""
        self._require_server(actor, server_id)
        await self._delivery.release(server_id)

    def _require_server(self, actor: Actor, server_id: int) -> None:
        actor.require(Permission.OPERATE)
        record = self._directory.current.servers.get(server_id)
        if record is None or not actor.reaches(record.tenant_id):
            raise NotFound("There is no such server.")

    # ------------------------------------------------------------ captured mail

    async def captured(
        self, actor: Actor, *, server_id: int | None = None, before: int | None = None, limit: int = PAGE
    ) -> list[Any]:
        """Messages that capture servers hold, newest first: rows of `message` with `server_id`."""
        actor.require(Permission.READ)
        tenant_id = actor.tenant_id or None
        return await self._database.read(
            lambda connection: messages.list_captured(
                connection, server_id=server_id, tenant_id=tenant_id, before=before, limit=limit
            )
        )


def overall(recipients: Sequence[Any]) -> RecipientState:
    """The state that a message shows: the least finished of its recipients."""
    return RecipientState(min(r.state for r in recipients)) if recipients else RecipientState.DELIVERED


def _may_see(actor: Actor, row: Any) -> bool:
    if actor.application_id:
        return bool(row.application_id == actor.application_id)
    return actor.reaches(row.tenant_id)


def _narrow(actor: Actor, wanted: MessageFilter) -> MessageFilter:
    if actor.application_id:
        return replace(wanted, application_id=actor.application_id)
    actor.require(Permission.READ)
    if actor.tenant_id:
        return replace(wanted, tenant_id=actor.tenant_id)
    return wanted
