"""Nodes of an installation: who is alive, and who has which periodic duty."""

import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, insert, or_, select, text, update

from posthouse.errors import ConfigurationError
from posthouse.model.identifier import MAX_NODE
from posthouse.store import schema

# A node that has not been seen for this long is gone; its number may be given out again after ABANDONED_MS.
ALIVE_MS = 15_000
ABANDONED_MS = 3_600_000
_NODE_LOCK = 7_015_002


@dataclass(frozen=True, slots=True)
class Membership:
    """This process among the nodes."""

    number: int
    incarnation: int


def database_now_ms(connection: Connection) -> int | None:
    """The database's clock (PostgreSQL); None on SQLite, which has none of its own."""
    if connection.dialect.name != "postgresql":
        return None
    return int(connection.execute(text("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")).scalar_one())


def join(connection: Connection, name: str, now_ms: int) -> Membership:
    """Take the lowest free number. Raises ConfigurationError where all are taken."""
    n = schema.node
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _NODE_LOCK})
    incarnation = secrets.randbits(62)
    seen = {row.id: row.seen_ms for row in connection.execute(select(n.c.id, n.c.seen_ms))}
    for number in range(MAX_NODE + 1):
        if number not in seen:
            connection.execute(insert(n).values(id=number, name=name, incarnation=incarnation, seen_ms=now_ms))
            return Membership(number, incarnation)
        if connection.dialect.name == "sqlite" or seen[number] < now_ms - ABANDONED_MS:
            connection.execute(
                update(n).where(n.c.id == number).values(name=name, incarnation=incarnation, seen_ms=now_ms)
            )
            return Membership(number, incarnation)
    raise ConfigurationError("All node numbers are taken.", remedy="Stop nodes that are no longer needed.")


def beat(connection: Connection, member: Membership, now_ms: int) -> int:
    """Say that this node is alive. Returns how many are; 0 where the number was given to another node meanwhile."""
    n = schema.node
    changed = connection.execute(
        update(n).where(n.c.id == member.number, n.c.incarnation == member.incarnation).values(seen_ms=now_ms)
    ).rowcount
    if not changed:
        return 0
    return int(connection.execute(select(func.count()).where(n.c.seen_ms > now_ms - ALIVE_MS)).scalar_one())


def leave(connection: Connection, member: Membership) -> None:
    """This node ends in good order."""
    n = schema.node
    connection.execute(
        update(n).where(n.c.id == member.number, n.c.incarnation == member.incarnation).values(seen_ms=0)
    )


def take_duty(connection: Connection, name: str, member: Membership, now_ms: int, every_ms: int, lease_ms: int) -> bool:
    """Whether this node does the periodic work now: it is due and nobody else has its lease."""
    d = schema.duty
    values: dict[str, Any] = {
        "node_id": member.number,
        "due_ms": now_ms + every_ms,
        "lease_until_ms": now_ms + lease_ms,
    }
    if connection.execute(select(d.c.name).where(d.c.name == name)).first() is None:
        connection.execute(insert(d).values(name=name, **values))
        return True
    changed = connection.execute(
        update(d)
        .where(
            d.c.name == name,
            or_(d.c.due_ms <= now_ms, d.c.due_ms > now_ms + 2 * every_ms),
            or_(d.c.lease_until_ms <= now_ms, d.c.node_id == member.number, d.c.lease_until_ms > now_ms + 2 * lease_ms),
        )
        .values(**values)
    ).rowcount
    return bool(changed)
