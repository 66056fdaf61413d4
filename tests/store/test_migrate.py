"""Migrations: the same tables as declared, once, all or nothing, and never on what a newer release wrote."""

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy.engine import URL

from posthouse.errors import ConfigurationError
from posthouse.store.database import Database, database_url
from posthouse.store.migrate import current, newest, upgrade, upgrade_by_steps
from posthouse.store.schema import metadata
from tests.support.postgres import PostgresServer


@pytest.fixture
def bare_url(store_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[URL]:
    """Give the URL of a database without any table."""
    if store_kind == "sqlite":
        yield database_url(None, tmp_path)
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    text = server.create_database()
    yield database_url(text, tmp_path)
    server.drop_database(text)


def inspected(url: URL) -> dict[str, Any]:
    """Give everything that the database itself says of its tables."""
    database = Database(url)
    try:
        return database.read_now(describe)
    finally:
        database.dispose()


def describe(connection: sqlalchemy.Connection) -> dict[str, Any]:
    inspector = sqlalchemy.inspect(connection)
    return {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(table)],
            "key": inspector.get_pk_constraint(table)["constrained_columns"],
            "unique": sorted(tuple(u["column_names"]) for u in inspector.get_unique_constraints(table)),
            "indexes": sorted(
                (i["name"] or "", tuple(i["column_names"]), bool(i["unique"]), str(where(i)))
                for i in inspector.get_indexes(table)
            ),
        }
        for table in inspector.get_table_names()
        if table != "alembic_version"
    }


def where(index: Any) -> object:
    options = index.get("dialect_options", {})
    return options.get("sqlite_where", options.get("postgresql_where", ""))


def write(url: URL, statement: str) -> None:
    database = Database(url)
    try:
        database.write_now(lambda connection: connection.exec_driver_sql(statement))
    finally:
        database.dispose()


@pytest.mark.parametrize("make", [upgrade, upgrade_by_steps])
def test_it_makes_exactly_the_declared_tables(bare_url: URL, make: Callable[[URL], None]) -> None:
    make(bare_url)
    migrated = inspected(bare_url)
    declared = Database(bare_url)
    try:
        declared.write_now(lambda c: metadata.drop_all(c))
        assert inspected(bare_url) == {}
        declared.write_now(lambda c: metadata.create_all(c))
    finally:
        declared.dispose()
    assert set(migrated) == set(metadata.tables)
    # Where this fails the tables were changed: write a further step (before the first release: tools/first-step).
    assert migrated == inspected(bare_url)


def test_it_says_how_far_a_database_has_come(bare_url: URL) -> None:
    assert current(bare_url) is None
    upgrade(bare_url)
    assert current(bare_url) == newest()


def test_running_it_again_changes_nothing(bare_url: URL) -> None:
    upgrade(bare_url)
    write(bare_url, "INSERT INTO setting (name, value) VALUES ('kept', '1')")
    upgrade(bare_url)
    database = Database(bare_url)
    try:
        assert database.read_now(lambda c: c.exec_driver_sql("SELECT name FROM setting").scalar()) == "kept"
    finally:
        database.dispose()


def test_a_database_of_a_newer_release_is_refused_and_left_alone(bare_url: URL) -> None:
    upgrade(bare_url)
    write(bare_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match="newer release"):
        upgrade(bare_url)
    assert current(bare_url) == "9999"


def test_a_database_of_another_program_is_refused(bare_url: URL) -> None:
    write(bare_url, "CREATE TABLE message (subject TEXT)")
    with pytest.raises(ConfigurationError, match="another program"):
        upgrade(bare_url)
    assert set(inspected(bare_url)) == {"message"}


def test_nodes_that_start_at_once_migrate_once(bare_url: URL) -> None:
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(upgrade, bare_url) for _ in range(4)]:
            done.result(timeout=60)
    assert current(bare_url) == newest()
    assert set(inspected(bare_url)) == set(metadata.tables)


# Kills itself in the middle of its transaction, without any chance to tidy up.
KILLED = """
import os, signal, sys
import sqlalchemy
from posthouse.store.migrate import upgrade

seen = 0

@sqlalchemy.event.listens_for(sqlalchemy.Engine, "after_cursor_execute")
def count(connection, cursor, statement, *_):
    global seen
    seen += statement.lstrip().startswith(("CREATE", "INSERT INTO alembic"))
    if seen == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

upgrade(sys.argv[1])
"""


@pytest.mark.parametrize("after", [1, 2, 9, 30])
def test_a_kill_in_the_middle_leaves_no_half_schema(bare_url: URL, after: int) -> None:
    address = bare_url.render_as_string(hide_password=False)
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), address, str(after)], capture_output=True, timeout=60
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert inspected(bare_url) == {}
    assert current(bare_url) is None
    upgrade(bare_url)
    assert set(inspected(bare_url)) == set(metadata.tables)
