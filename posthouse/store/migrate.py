"""Brings a database to the tables of this release.

All steps that are missing run in one transaction, on SQLite as well as on PostgreSQL: a process that is killed leaves
the tables as they were (threat F4). Nodes that start at once wait for each other under a lock; the first does the work.
A database that a newer release has written is refused, because this one cannot know what has changed its meaning.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
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
    """Run the missing steps, all or none. Raises ConfigurationError for a database of a newer release or of another
    program, StoreUnavailable."""
    _in_transaction(url, _upgrade)


def current(url: URL | str) -> str | None:
    """The step up to which the database has come; None for an empty one. Raises StoreUnavailable."""
    return _in_transaction(url, _current)


def newest() -> str:
    """The last step of this release."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def _upgrade(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    config = _config()
    step = _current(connection)
    _require_ours(connection, step, config)
    if step != newest():
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _require_ours(connection: Connection, step: str | None, config: Config) -> None:
    if step is None:
        taken = sorted(set(inspect(connection).get_table_names()) & set(schema.metadata.tables))
        if taken:
            raise ConfigurationError(
                f"The database holds tables of another program with the same names ({', '.join(taken[:3])}).",
                remedy="Name a database of its own with --database.",
            )
    elif step not in {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}:
        raise ConfigurationError(
            "The database was written by a newer release of Posthouse.",
            remedy="Run that release or a newer one, or restore a backup that was made before the upgrade.",
        )


def _config() -> Config:
    config = Config()
    # Alembic reads its options with % as a special character.
    config.set_main_option("script_location", str(_STEPS).replace("%", "%%"))
    return config


def _in_transaction(url: URL | str, function: Callable[[Connection], T]) -> T:
    database = Database(make_url(url))
    try:
        return database.write_now(function)
    finally:
        database.dispose()
