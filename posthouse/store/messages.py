"""Messages and recipients: the rows of submission, the claims and outcomes of delivery, and what the faces list.

The hot path is three prepared inserts per message and one update and one insert per attempt, all by primary key; they
travel as `Append` operations and share commits. Everything else runs as ordinary queries.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    update,
)

from posthouse.errors import NotFound
from posthouse.model.identifier import first_at
from posthouse.model.message import Envelope, RecipientState, WaitingReason
from posthouse.store import schema
from posthouse.store.content import PRUNED
from posthouse.store.database import Statement, insert_into

INSERT_MESSAGE = insert_into(schema.message)
INSERT_CONTENT = insert_into(schema.content)
INSERT_RECIPIENT = insert_into(schema.recipient)
INSERT_EVENT = insert_into(schema.event)
INSERT_CAPTURED = insert_into(schema.captured)
INSERT_IDEMPOTENCY = insert_into(schema.idempotency)

# An outcome counts only under the lease of its attempt.
SETTLE = Statement(
    "UPDATE recipient SET state = ?, reason = ?, due_ms = ?, attempts = ?, uncertain = ?, changed_ms = ?, last = ?"
    " WHERE id = ? AND lease = ?",
    fenced=True,
    types=("smallint", "smallint", "bigint", "integer", "smallint", "bigint", "text", "bigint", "integer"),
)
RENEW = Statement(
    "UPDATE recipient SET due_ms = ? WHERE id = ? AND lease = ? AND state = 2",
    fenced=True,
    types=("bigint", "bigint", "integer"),
)
# Written before the final dot where the server's rule for a lost reply is to hold.
MARK = Statement(
    "UPDATE recipient SET reason = ? WHERE id = ? AND lease = ? AND state = 2",
    fenced=True,
    types=("smallint", "bigint", "integer"),
)

WAITING, SENDING = int(RecipientState.WAITING), int(RecipientState.SENDING)
PRIORITIES = (0, 1, 2)  # high, normal, low


@dataclass(slots=True)
class QueuedRecipient:
    """A recipient in the hands of this node."""

    id: int
    address: str
    notify: str
    orcpt: str
    lease: int
    attempts: int
    uncertain: int


@dataclass(slots=True)
class QueuedMessage:
    """A message with those of its recipients that are claimed for one server."""

    id: int
    tenant_id: int
    application_id: int
    received_ms: int
    mail_from: str
    ret: str
    envid: str
    size: int
    traits: int
    expires_ms: int | None
    message_id: str
    content_place: int
    header: bytes
    body: bytes | None
    recipients: list[QueuedRecipient]
    # As it was handed in, where all of it goes to one server; spares delivery to put it together again.
    envelope: Envelope | None = None


# ---------------------------------------------------------------- delivery


def claim(
    connection: Connection, server_id: int, now_ms: int, until_ms: int, limit: int, *, never_uncertain: bool = False
) -> tuple[list[Row[Any]], list[Row[Any]]]:
    """Lease up to `limit` due recipients of a server until `until_ms`. Durable once the transaction is.

    Returns (rows of recipients with the new lease, the same rows as they were where a lease had run out: their attempt
    was cut off). `never_uncertain`: leave out recipients that may have been delivered already (for a fallback server).
    """
    table = schema.recipient
    rows: list[Row[Any]] = []
    for priority in PRIORITIES:
        if len(rows) >= limit:
            break
        query = (
            select(table)
            .where(
                table.c.server_id == server_id,
                table.c.priority == priority,
                table.c.state < 3,
                table.c.due_ms <= now_ms,
            )
            .order_by(table.c.due_ms)
            .limit(limit - len(rows))
            .with_for_update(skip_locked=True)
        )
        if never_uncertain:
            query = query.where(table.c.uncertain == 0, table.c.state == WAITING)
        rows += connection.execute(query).all()
    if rows:
        connection.execute(
            update(table)
            .where(table.c.id == bindparam("row_id"))
            .values(
                state=SENDING,
                due_ms=until_ms,
                lease=table.c.lease + 1,
                # An attempt that was cut off may have delivered it: from now on no other server may get it (promise 1).
                uncertain=case((and_(table.c.state == SENDING, table.c.uncertain == 0), 1), else_=table.c.uncertain),
            ),
            [{"row_id": row.id} for row in rows],
        )
    return rows, [row for row in rows if row.state == SENDING]


def load_claimed(connection: Connection, rows: Sequence[Row[Any]]) -> list[QueuedMessage]:
    """The messages behind claimed recipients, with their content where it stands in the database."""
    by_message: dict[int, list[QueuedRecipient]] = {}
    for row in rows:
        by_message.setdefault(row.message_id, []).append(
            QueuedRecipient(
                row.id,
                row.address,
                row.notify,
                row.orcpt,
                row.lease + 1,
                row.attempts,
                row.uncertain or int(row.state == SENDING),
            )
        )
    m, c = schema.message, schema.content
    query = (
        select(m, c.c.header, c.c.body)
        .select_from(m.outerjoin(c, c.c.message_id == m.c.id))
        .where(m.c.id.in_(list(by_message)))
    )
    return [
        QueuedMessage(
            row.id, row.tenant_id, row.application_id, row.received_ms, row.mail_from, row.ret, row.envid, row.size,
            row.traits, row.expires_ms, row.message_id, row.content_place, bytes(row.header or b""),
            None if row.body is None else bytes(row.body), by_message[row.id],
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def due_servers(connection: Connection, now_ms: int) -> dict[int, int]:
    """Server -> when its first recipient is due, for every server that has any waiting or cut off.

    One index probe per server and priority (a skip scan), whatever the backlog.
    """
    due: dict[int, int] = {}
    server_id = -1
    probe = text("SELECT server_id FROM recipient WHERE state < 3 AND server_id > :after ORDER BY server_id LIMIT 1")
    first = text(
        "SELECT due_ms FROM recipient WHERE state < 3 AND server_id = :server AND priority = :priority"
        " ORDER BY due_ms LIMIT 1"
    )
    while True:
        found = connection.execute(probe, {"after": server_id}).scalar()
        if found is None:
            return due
        server_id = int(found)
        times = [connection.execute(first, {"server": server_id, "priority": p}).scalar() for p in PRIORITIES]
        due[server_id] = min(int(t) for t in times if t is not None)


def forget_leases(connection: Connection, now_ms: int) -> int:
    """Make due at once what the process before us had in hand. Only where no other node can be at work (SQLite)."""
    return connection.execute(
        update(schema.recipient).where(schema.recipient.c.state == SENDING).values(due_ms=now_ms)
    ).rowcount


def reroute(connection: Connection, recipient_ids: Sequence[int], server_id: int, route: str, now_ms: int) -> None:
    """Put waiting recipients into another server's queue."""
    connection.execute(
        update(schema.recipient)
        .where(schema.recipient.c.id.in_(list(recipient_ids)), schema.recipient.c.state == WAITING)
        .values(server_id=server_id, route=route, due_ms=now_ms, reason=int(WaitingReason.DUE))
    )


def waiting_of_server(connection: Connection, server_id: int, now_ms: int, limit: int) -> list[Row[Any]]:
    """Recipients that wait for a server, or whose attempt at it was cut off, with what routing needs of their messages."""
    r, m = schema.recipient, schema.message
    return list(
        connection.execute(
            select(
                r.c.id,
                r.c.state,
                r.c.uncertain,
                m.c.id.label("message"),
                m.c.tenant_id,
                m.c.header_from,
                m.c.mail_from,
                m.c.size,
                m.c.traits,
            )
            .select_from(r.join(m, m.c.id == r.c.message_id))
            .where(
                r.c.server_id == server_id,
                or_(r.c.state == WAITING, and_(r.c.state == SENDING, r.c.due_ms <= now_ms)),
            )
            .limit(limit)
        )
    )


# ---------------------------------------------------------------- what people do


def change_waiting(
    connection: Connection,
    message_id: int,
    recipient_ids: Iterable[int] | None,
    values: dict[str, Any],
    states: Sequence[int],
) -> int:
    """Change the recipients of a message that are in one of `states`. Returns how many."""  # fmt: skip
    table = schema.recipient
    where = [table.c.message_id == message_id, table.c.state.in_(list(states))]
    if recipient_ids is not None:
        where.append(table.c.id.in_(list(recipient_ids)))
    return connection.execute(update(table).where(*where).values(**values)).rowcount


def add_event(connection: Connection, row: tuple[Any, ...]) -> None:
    """Write one event: a value for each column in the order of the declaration."""
    connection.execute(insert(schema.event).values(row))


def count_events(connection: Connection, message_id: int, kind: str) -> int:
    """How many events of a kind a message has."""
    e = schema.event
    query = select(func.count()).where(e.c.message_id == message_id, e.c.kind == kind)
    return int(connection.execute(query).scalar_one())


# ---------------------------------------------------------------- what the faces show


@dataclass(frozen=True, slots=True)
class MessageFilter:
    """What a list of messages is narrowed to. None: not narrowed."""

    tenant_id: int | None = None
    application_id: int | None = None
    server_id: int | None = None
    state: RecipientState | None = None
    address: str | None = None
    text: str | None = None
    since_ms: int | None = None
    until_ms: int | None = None


def _overall_state() -> ColumnElement[Any]:
    """A message shows the least finished state of its recipients; the numbers are in that order."""
    r = schema.recipient
    return select(func.min(r.c.state)).where(r.c.message_id == schema.message.c.id).scalar_subquery()


def list_messages(connection: Connection, wanted: MessageFilter, *, before: int | None, limit: int) -> list[Row[Any]]:
    """Messages newest first, each with `state`, the number of recipients and the first one's address."""
    m, r = schema.message, schema.recipient
    state = _overall_state()
    count = select(func.count()).where(r.c.message_id == m.c.id).scalar_subquery()
    first = select(func.min(r.c.address)).where(r.c.message_id == m.c.id).scalar_subquery()
    query = select(m, state.label("state"), count.label("recipients"), first.label("first_recipient"))
    where: list[ColumnElement[bool]] = []
    for column, value in (
        (m.c.tenant_id, wanted.tenant_id),
        (m.c.application_id, wanted.application_id),
    ):
        if value is not None:
            where.append(column == value)
    if wanted.since_ms is not None:
        where.append(m.c.received_ms >= wanted.since_ms)
    if wanted.until_ms is not None:
        where.append(m.c.received_ms < wanted.until_ms)
    if before is not None:
        where.append(m.c.id < before)
    if wanted.server_id is not None:
        where.append(exists().where(r.c.message_id == m.c.id, r.c.server_id == wanted.server_id))
    if wanted.state is not None:
        where.append(_in_state(wanted.state))
    if wanted.address is not None:
        address = wanted.address.lower()
        where.append(
            or_(
                func.lower(m.c.mail_from) == address,
                exists().where(r.c.message_id == m.c.id, func.lower(r.c.address) == address),
            )
        )
    if wanted.text is not None:
        pattern = "%" + wanted.text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        where.append(
            or_(*(column.ilike(pattern, escape="\\") for column in (m.c.subject, m.c.header_from, m.c.message_id)))
        )
    return list(connection.execute(query.where(*where).order_by(m.c.id.desc()).limit(limit)))


def _in_state(state: RecipientState) -> ColumnElement[bool]:
    m, r = schema.message, schema.recipient
    if state is RecipientState.DELIVERED:
        return _overall_state() == int(state)
    # The rare states have an index of their own: start there.
    members = select(r.c.message_id).where(r.c.state == int(state))
    if int(state) < 3:
        members = members.where(r.c.state < 3)
    elif int(state) == 3 or int(state) > 10:
        members = members.where(or_(r.c.state == 3, r.c.state > 10))
    return and_(m.c.id.in_(members), _overall_state() == int(state))


def read_message(connection: Connection, message_id: int) -> tuple[Row[Any], list[Row[Any]], list[Row[Any]]]:
    """A message, its recipients, and its events oldest first. Raises NotFound."""
    row = connection.execute(select(schema.message).where(schema.message.c.id == message_id)).first()
    if row is None:
        raise NotFound("There is no such message.")
    r, e = schema.recipient, schema.event
    recipients = connection.execute(select(r).where(r.c.message_id == message_id).order_by(r.c.id)).all()
    events = connection.execute(select(e).where(e.c.message_id == message_id).order_by(e.c.id)).all()
    return row, list(recipients), list(events)


def read_content(connection: Connection, message_id: int) -> Row[Any] | None:
    """Header, and body where it stands in the database."""
    c = schema.content
    return connection.execute(select(c).where(c.c.message_id == message_id)).first()


def queue_counts(connection: Connection) -> list[Row[Any]]:
    """Per server and state of the queue: how many recipients, the oldest, and the next that is due."""
    r = schema.recipient
    return list(
        connection.execute(
            select(
                r.c.server_id,
                r.c.state,
                func.count().label("count"),
                func.min(r.c.id).label("oldest"),
                func.min(r.c.due_ms).label("next_due"),
            )
            .where(r.c.state < 3)
            .group_by(r.c.server_id, r.c.state)
        )
    )


def count_waiting(connection: Connection, server_ids: Sequence[int]) -> int:
    """How many recipients wait for these servers."""
    r = schema.recipient
    return int(
        connection.execute(select(func.count()).where(r.c.server_id.in_(list(server_ids)), r.c.state < 3)).scalar_one()
    )


def list_events(connection: Connection, *, tenant_id: int, after: int, limit: int) -> list[Row[Any]]:
    """The event feed, oldest first after a cursor."""
    e = schema.event
    query = select(e).where(e.c.id > after).order_by(e.c.id).limit(limit)
    if tenant_id:
        query = query.where(e.c.tenant_id == tenant_id)
    return list(connection.execute(query))


def list_captured(
    connection: Connection, *, server_id: int | None, tenant_id: int | None, before: int | None, limit: int
) -> list[Row[Any]]:
    """Messages that capture servers hold, newest first: rows of `message` with `server_id`."""
    c, m = schema.captured, schema.message
    query = select(m, c.c.server_id).select_from(c.join(m, m.c.id == c.c.message_id))
    if server_id is not None:
        query = query.where(c.c.server_id == server_id)
    if before is not None:
        query = query.where(c.c.message_id < before)
    if tenant_id is not None:
        query = query.where(m.c.tenant_id == tenant_id)
    return list(connection.execute(query.order_by(c.c.message_id.desc()).limit(limit)))


def read_answer(connection: Connection, application_id: int, key: str) -> Any:
    """The answer that was given under an idempotency key: digest, answer, expires_ms."""
    table = schema.idempotency
    return connection.execute(
        select(table.c.digest, table.c.answer, table.c.expires_ms).where(
            table.c.application_id == application_id, table.c.key == key
        )
    ).first()


# ---------------------------------------------------------------- retention


def prune_expired(connection: Connection, now_ms: int, events_before_ms: int) -> None:
    """Idempotency keys and sessions past their time, and old events that belong to no message."""
    for table in (schema.idempotency, schema.session):
        connection.execute(delete(table).where(table.c.expires_ms <= now_ms))
    e = schema.event
    # By id, which grows with time: what is younger is not looked at.
    connection.execute(delete(e).where(e.c.id < first_at(events_before_ms), e.c.message_id == 0))


def prune_captured(connection: Connection, server_id: int, keep: int, before_ms: int, limit: int = 500) -> list[int]:
    """Forget captured messages beyond the newest `keep` or older than `before_ms`. Returns their ids."""
    table = schema.captured
    edge = connection.execute(
        select(table.c.message_id)
        .where(table.c.server_id == server_id)
        .order_by(table.c.message_id.desc())
        .offset(keep)
        .limit(1)
    ).scalar()
    old = table.c.at_ms < before_ms
    ids = connection.execute(
        select(table.c.message_id)
        .where(table.c.server_id == server_id, or_(old, table.c.message_id <= edge) if edge is not None else old)
        .limit(limit)
    ).scalars()
    gone = list(ids)
    connection.execute(delete(table).where(table.c.message_id.in_(gone)))
    return gone


def finished_content(
    connection: Connection, before_ms: int, after: int, limit: int
) -> tuple[list[Row[Any]], int | None]:
    """Look at the next `limit` messages that have content, from an id on and received before `before_ms`.

    Returns (id and content_place of those whose content can go: every recipient is finished since then and no capture
    server shows it; the id to go on from, or None at the end). Each look costs the same, whatever is kept behind it.
    """
    m, r, c = schema.message, schema.recipient, schema.content
    window = list(
        connection.execute(
            select(c.c.message_id)
            .where(c.c.message_id > after, c.c.message_id < first_at(before_ms))
            .order_by(c.c.message_id)
            .limit(limit)
        ).scalars()
    )
    if not window:
        return [], None
    query = select(m.c.id, m.c.content_place).where(
        m.c.id.in_(window),
        ~exists().where(r.c.message_id == m.c.id, or_(r.c.state < 10, r.c.changed_ms >= before_ms)),
        ~exists().where(schema.captured.c.message_id == m.c.id),
    )
    return list(connection.execute(query)), window[-1] if len(window) == limit else None


def drop_content(connection: Connection, message_ids: Sequence[int]) -> None:
    """Remove the bytes of messages; rows and timeline stay."""
    ids = list(message_ids)
    connection.execute(delete(schema.content).where(schema.content.c.message_id.in_(ids)))
    connection.execute(update(schema.message).where(schema.message.c.id.in_(ids)).values(content_place=PRUNED))


def drop_messages(connection: Connection, message_ids: Sequence[int]) -> None:
    """Remove messages with all that belongs to them."""
    ids = list(message_ids)
    for table, column in (
        (schema.content, schema.content.c.message_id),
        (schema.recipient, schema.recipient.c.message_id),
        (schema.event, schema.event.c.message_id),
        (schema.captured, schema.captured.c.message_id),
        (schema.message, schema.message.c.id),
    ):
        connection.execute(delete(table).where(column.in_(ids)))


def old_messages(connection: Connection, before_ms: int, limit: int) -> list[int]:
    """Finished messages, content gone, last changed before `before_ms`."""
    m, r = schema.message, schema.recipient
    return list(
        connection.execute(
            select(m.c.id)
            .where(
                m.c.id < first_at(before_ms),
                m.c.content_place == PRUNED,
                ~exists().where(r.c.message_id == m.c.id, or_(r.c.state < 10, r.c.changed_ms >= before_ms)),
            )
            .order_by(m.c.id)
            .limit(limit)
        ).scalars()
    )


def event_row(
    event_id: int, at_ms: int, kind: str, tenant_id: int, message_id: int, server_id: int, data: dict[str, Any]
) -> tuple[Any, ...]:
    """A row for INSERT_EVENT."""
    return event_id, at_ms, kind, tenant_id, message_id, server_id, _encode(data)


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def which_exist(connection: Connection, message_ids: Sequence[int]) -> set[int]:
    """Those of the ids that have a message whose body is kept."""
    m = schema.message
    return set(
        connection.execute(select(m.c.id).where(m.c.id.in_(list(message_ids)), m.c.content_place != PRUNED)).scalars()
    )


def claim_expired(
    connection: Connection, since_ms: int, now_ms: int, until_ms: int, limit: int
) -> dict[int, list[QueuedMessage]]:
    """Lease waiting recipients of messages that have expired since a time, so that they can be given up: those that
    delivery does not come to see (held, disabled, scheduled). By server."""
    r, m = schema.recipient, schema.message
    query = (
        select(r)
        .select_from(m.join(r, r.c.message_id == m.c.id))
        .where(m.c.expires_ms > since_ms, m.c.expires_ms <= now_ms, r.c.state == WAITING)
        .limit(limit)
        .with_for_update(skip_locked=True, of=r)
    )
    rows = connection.execute(query).all()
    by_server: dict[int, list[Row[Any]]] = {}
    for row in rows:
        by_server.setdefault(row.server_id, []).append(row)
    connection.execute(
        update(r)
        .where(r.c.id.in_([row.id for row in rows]))
        .values(state=SENDING, due_ms=until_ms, lease=r.c.lease + 1)
    )
    return {server_id: load_claimed(connection, part) for server_id, part in by_server.items()}
