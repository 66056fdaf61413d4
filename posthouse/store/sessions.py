"""Browser sessions and one-time links: rows found by the digest of what the browser holds.

Functions take a connection inside a transaction. What a link or a session is worth, and for how long, is decided by
`posthouse/sessions.py`.
"""

from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select

from posthouse.store import schema

LINK, BROWSER = "link", "browser"

_table = schema.session


def add(connection: Connection, digest: bytes, kind: str, actor: str, role: str, now_ms: int, expires_ms: int) -> None:
    """Keep a link or a session; rows that ran out go at the same time."""
    connection.execute(delete(_table).where(_table.c.expires_ms <= now_ms))
    connection.execute(
        insert(_table).values(
            digest=digest, kind=kind, actor=actor, role=role, created_ms=now_ms, expires_ms=expires_ms
        )
    )


def find(connection: Connection, digest: bytes, kind: str, now_ms: int) -> Row[Any] | None:
    """A link or session that has not run out."""
    return connection.execute(
        select(_table).where(_table.c.digest == digest, _table.c.kind == kind, _table.c.expires_ms > now_ms)
    ).first()


def take(connection: Connection, digest: bytes, kind: str, now_ms: int) -> Row[Any] | None:
    """Use a link up: whoever removes the row has it, and nobody after."""
    row = find(connection, digest, kind, now_ms)
    if row is None:
        return None
    removed = connection.execute(delete(_table).where(_table.c.digest == digest, _table.c.kind == kind)).rowcount
    return row if removed == 1 else None


def remove(connection: Connection, digest: bytes) -> None:
    """End a session."""
    connection.execute(delete(_table).where(_table.c.digest == digest))
