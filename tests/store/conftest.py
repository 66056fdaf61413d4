"""The tests of the store run on SQLite and on PostgreSQL."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import URL

from posthouse.store.database import Database
from tests.support.databases import KINDS, empty_store, opened


@pytest.fixture(params=KINDS)
def store_kind(request: pytest.FixtureRequest) -> str:
    """Give the kind of database that the test runs on."""
    return str(request.param)


@pytest.fixture
def store_url(store_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[URL]:
    """Give the URL of a new database with Posthouse's tables."""
    with empty_store(store_kind, tmp_path, request) as url:
        yield url


@pytest.fixture
async def database(store_url: URL) -> AsyncIterator[Database]:
    """Give that database with its writer at work."""
    async with opened(store_url) as opened_database:
        yield opened_database


@pytest.fixture
def postgres_url(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[URL]:
    """Give the URL of a new PostgreSQL database with Posthouse's tables."""
    with empty_store("postgresql", tmp_path, request) as url:
        yield url
