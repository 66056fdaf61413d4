"""Why servers are held, shared by all nodes. Rows exist only for servers that were held or have delivered."""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, text, update

from posthouse.store import schema

_TABLE = schema.server_state
# Any constant: under this lock stamps are given out in the order of the commits (PostgreSQL; SQLite has one writer).
_STAMP_LOCK = 7_015_004


@dataclass(frozen=True, slots=True)
class ServerState:
    """`held`: "operator", or the scope of the fault; "" while not held. Times in milliseconds."""

    server_id: int
    held: str = ""
    cause: str = ""
    detail: str = ""
    since_ms: int = 0
    next_try_ms: int = 0
    failures: int = 0
    last_delivery_ms: int | None = None
    stamp: int = 0


def _state(row: Row[Any]) -> ServerState:
    return ServerState(**row._mapping)


def load_since(connection: Connection, stamp: int) -> list[ServerState]:
    """What has changed after a stamp."""
    return [_state(row) for row in connection.execute(select(_TABLE).where(_TABLE.c.stamp > stamp))]


def store(connection: Connection, state: ServerState) -> ServerState:
    """Write a server's state; returns it with its new stamp."""
    if connection.dialect.name == "postgresql":
        # Two nodes at once must not take the same stamp: the second would never be read.
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _STAMP_LOCK})
    stamp = int(connection.execute(select(func.coalesce(func.max(_TABLE.c.stamp), 0))).scalar_one()) + 1
    state = replace(state, stamp=stamp)
    values = {name: getattr(state, name) for name in ServerState.__slots__}
    if state.last_delivery_ms is None:
        del values["last_delivery_ms"]
    changed = connection.execute(update(_TABLE).where(_TABLE.c.server_id == state.server_id).values(**values)).rowcount
    if not changed:
        connection.execute(insert(_TABLE).values(**values))
    return state


def note_deliveries(connection: Connection, server_ids: list[int], now_ms: int) -> None:
    """The servers have taken something just now. No reason for other nodes to read them again."""
    for server_id in server_ids:
        where = _TABLE.c.server_id == server_id
        if not connection.execute(update(_TABLE).where(where).values(last_delivery_ms=now_ms)).rowcount:
            state = ServerState(server_id, last_delivery_ms=now_ms)
            connection.execute(insert(_TABLE).values(**{n: getattr(state, n) for n in ServerState.__slots__}))


def forget(connection: Connection, server_id: int) -> None:
    """The server is gone."""
    connection.execute(delete(_TABLE).where(_TABLE.c.server_id == server_id))
