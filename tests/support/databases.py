"""Empty databases with Posthouse's tables, of both kinds, and what the jobs need around one."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from posthouse.administration import Administration
from posthouse.clock import Clock
from posthouse.model.identifier import IdentifierSource
from posthouse.store.database import Database, database_url
from posthouse.store.directory_source import DirectorySource
from posthouse.store.migrate import upgrade
from posthouse.store.vault import KeyRing, load_keys, new_key_line
from tests.support.clock import ManualClock
from tests.support.postgres import PostgresServer

# For `params` of a fixture: the tests of the store run on both.
KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@contextmanager
def empty_store(kind: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[URL]:
    """Give the URL of a new database that has the tables."""
    if kind == "sqlite":
        url = database_url(None, folder)
        upgrade(url)
        yield url
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    text = server.create_database(server.template("posthouse_tables", lambda each: upgrade(database_url(each, folder))))
    yield database_url(text, folder)
    server.drop_database(text)


@asynccontextmanager
async def opened(url: URL) -> AsyncIterator[Database]:
    """Give the database with its writer at work."""
    database = Database(url)
    database.start()
    try:
        yield database
    finally:
        await database.close()


def new_ring() -> KeyRing:
    """Give a key ring of one key."""
    return KeyRing(load_keys(new_key_line()))


class Node:
    """A node that only configures: what `app.py` composes around the administration."""

    def __init__(self, database: Database, ring: KeyRing, clock: Clock, number: int = 0) -> None:
        self.database = database
        self.ring = ring
        self.clock = clock
        self.ids = IdentifierSource(number, clock.now_ms)
        self.source = DirectorySource(database, ring)
        self.administration = Administration(database, ring, self.ids, clock, self.source)


@asynccontextmanager
async def started_node(
    url: URL, *, ring: KeyRing | None = None, clock: Clock | None = None, number: int = 0
) -> AsyncIterator[Node]:
    """Give a node on the database; several may share one."""
    async with opened(url) as database:
        node = Node(database, ring or new_ring(), clock or ManualClock(), number)
        await node.source.refresh()
        yield node
