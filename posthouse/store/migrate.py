"""Brings a database to the tables of this release.

All steps that are missing run in one transaction, on SQLite as well as on PostgreSQL: a process that is killed leaves
the tables as they were (threat F4). Nodes that start at once wait for each other under a lock; the first does the work.
A database that a newer release has written is refused, because this one cannot know what has changed its meaning.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy import Connection, inspect, text
from sqlalchemy.engine import URL, make_url

from posthouse.errors import ConfigurationError
from posthouse.store import schema
from posthouse.store.database import Database

T = TypeVar("T")

# Any constant: nodes that migrate at once wait for each other (PostgreSQL; on SQLite BEGIN IMMEDIATE does that).
_MIGRATION_LOCK = 7_015_003
_STEPS = Path(__file__).parent / "migrations"


def upgrade(url: URL | str) -> None:
    """Make the tables in an empty database, or run the missing steps; all or nothing. Raises ConfigurationError for a
    database of a newer release or of another program, StoreUnavailable."""
    _in_transaction(url, _upgrade)


def upgrade_by_steps(url: URL | str) -> None:
    """Like `upgrade`, by every step from the first one on: what a database of the first release has gone through."""

    def work(connection: Connection) -> None:
        _take_lock(connection)
        _run_steps(connection)

    _in_transaction(url, work)


def current(url: URL | str) -> str | None:
    """The step up to which the database has come; None for an empty one. Raises StoreUnavailable."""
    return _in_transaction(url, _current)


def newest() -> str:
    """The last step of this release."""
    return _steps()[-1]


def _steps() -> list[str]:
    """The steps of this release in order: the numbers in the names of their files."""
    return sorted(path.stem.removeprefix("step_") for path in (_STEPS / "versions").glob("step_*.py"))


def _upgrade(connection: Connection) -> None:
    _take_lock(connection)
    step = _current(connection)
    _require_ours(connection, step)
    if step is None:
        _make_tables(connection)
    elif step != newest():
        _run_steps(connection)


def _take_lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})


def _make_tables(connection: Connection) -> None:
    """The tables as they are declared, which is where the steps lead as well; and the note that says so."""
    schema.metadata.create_all(connection)
    connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY)"))
    connection.execute(text("INSERT INTO alembic_version (version_num) VALUES (:step)"), {"step": newest()})


def _run_steps(connection: Connection) -> None:
    # Alembic takes 20 MB that a node whose tables are up to date does not need.
    from alembic import command
    from alembic.config import Config

    config = Config()
    # Alembic reads its options with % as a special character.
    config.set_main_option("script_location", str(_STEPS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _current(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    step = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    return None if step is None else str(step)


def _require_ours(connection: Connection, step: str | None) -> None:
    if step is None:
        taken = sorted(set(inspect(connection).get_table_names()) & set(schema.metadata.tables))
        if taken:
            raise ConfigurationError(
                f"The database holds tables of another program with the same names ({', '.join(taken[:3])}).",
                remedy="Name a database of its own with --database.",
            )
    elif step not in _steps():
        raise ConfigurationError(
            "The database was written by a newer release of Posthouse.",
            remedy="Run that release or a newer one, or restore a backup that was made before the upgrade.",
        )


def _in_transaction(url: URL | str, function: Callable[[Connection], T]) -> T:
    database = Database(make_url(url))
    try:
        return database.write_now(function)
    finally:
        database.dispose()
