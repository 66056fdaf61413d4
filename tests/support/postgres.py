"""A PostgreSQL server of the test run's own: a new cluster, on a free port, with a fresh database for each test.

It listens on 127.0.0.1 alone, has no Unix socket, and syncs as a real one does unless told not to.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg

from tests.support.processes import Child, free_port, freeze, program, thaw

USER = "posthouse"
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class PostgresServer:
    """One cluster in `folder`. As root it runs as the user `postgres`, because the program refuses root."""

    def __init__(self, folder: Path, *, fsync: bool = True, max_connections: int = 200) -> None:
        self.port = free_port()
        self._folder = folder
        self._data = folder / "data"
        self._fsync = fsync
        self._max_connections = max_connections
        self._child: Child | None = None
        self._databases = 0
        self._templates: set[str] = set()
        self._create_cluster()

    def url(self, database: str = "postgres") -> str:
        """Give the address of a database as Posthouse takes it."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    @property
    def pid(self) -> int:
        assert self._child is not None, "PostgreSQL is not running"
        return self._child.pid

    def log(self) -> str:
        return self._child.log() if self._child else ""

    def start(self) -> None:
        """Start the server and return when it answers."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": str(self._max_connections),
            "fsync": "on" if self._fsync else "off",
            "log_min_messages": "warning",
            "timezone": "UTC",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        arguments = [_postgres_program("postgres"), "-D", str(self._data), *options]
        self._child = Child(arguments, self._folder / "postgres.log", user="postgres", cwd=self._data)
        self._child.wait_for(self._answers, "PostgreSQL's answer", timeout_s=30)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: `smart` waits for clients, `fast` ends them, `immediate` is a crash that recovery mends."""
        if self._child is not None:
            thaw(self._child.pid)
            self._child.end(STOP_SIGNALS[mode], timeout_s=30)
            self._child = None

    def freeze(self) -> None:
        """Let all of the server's processes hang: connections stay open and nothing answers."""
        freeze(self.pid)

    def thaw(self) -> None:
        """Let a frozen server go on."""
        thaw(self.pid)

    def execute(self, statement: str, *, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement of the test's own and return its rows."""
        with psycopg.connect(self.url(database), autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(statement.encode())
            return list(cursor.fetchall()) if cursor.description else []

    def create_database(self, template: str = "template1") -> str:
        """Make a new database from a template and return its URL."""
        self._databases += 1
        name = f"test_{os.getpid()}_{self._databases}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def template(self, name: str, prepare: Callable[[str], None]) -> str:
        """Make a template once: `prepare` gets its URL, fills it, and leaves no connection open."""
        if name not in self._templates:
            self.execute(f'CREATE DATABASE "{name}"')
            prepare(self.url(name))
            self._templates.add(name)
        return name

    def drop_database(self, url: str) -> None:
        """Drop a database, ending whoever is still connected."""
        self.execute(f'DROP DATABASE IF EXISTS "{url.rsplit("/", 1)[1]}" WITH (FORCE)')

    def _create_cluster(self) -> None:
        owner = "postgres" if os.geteuid() == 0 else None
        if owner:
            shutil.chown(self._folder, owner, owner)
        identity = {"user": owner, "group": owner, "extra_groups": []} if owner else {}
        sync = [] if self._fsync else ["--no-sync"]
        command = [_postgres_program("initdb"), "-D", str(self._data), "-U", USER, "-A", "trust", "-E", "UTF8"]
        subprocess.run(
            [*command, "--locale=C.UTF-8", *sync],
            check=True,
            capture_output=True,
            cwd=self._folder,
            **identity,  # type: ignore[call-overload]
        )

    def _answers(self) -> bool:
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True


def _postgres_program(name: str) -> str:
    """Find a program of the newest PostgreSQL; Debian keeps them out of PATH."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda each: int(each.parent.name), reverse=True)
    return program(name, *map(str, folders))
