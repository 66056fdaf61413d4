"""Keeps the directory of this process up to date: one snapshot, replaced as a whole when the configuration has grown.

The version is compared each second; on PostgreSQL a notification of the node that made the change comes before that, so
that a change or revocation is in force everywhere within a second (design.md section 7). A refresh that fails keeps the
snapshot: mail goes on with what was last known.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog
from sqlalchemy import Connection

from posthouse.errors import PosthouseError
from posthouse.model.directory import Directory
from posthouse.store.configuration import CHANNEL, current_version, load_directory
from posthouse.store.database import Database
from posthouse.store.vault import KeyRing

log = structlog.get_logger()

LOOK_EVERY_S = 1.0

Listener = Callable[[Directory, Directory], None]


class DirectorySource:
    """The present directory, and who wants to hear of the next one."""

    def __init__(self, database: Database, ring: KeyRing) -> None:
        self._database = database
        self._ring = ring
        self.current = Directory()
        # When the database last answered (monotonic seconds); None: not yet.
        self.contact_s: float | None = None
        self._listeners: list[Listener] = []
        self._running: asyncio.Task[Directory] | None = None
        self._next: asyncio.Task[Directory] | None = None
        self._used: set[int] = set()
        self._trouble = ""

    def listen(self, listener: Listener) -> None:
        """Have `listener` called in the event loop with the old and the new directory, after each change."""
        self._listeners.append(listener)

    async def refresh(self) -> Directory:
        """Read what has changed, and return the directory. Whoever calls meanwhile shares one further reading, which
        begins after their call and so has seen their commit. Raises StoreUnavailable, SecretUnreadable."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._load_after(self._running))
        return await asyncio.shield(self._next)

    async def _load_after(self, running: asyncio.Task[Directory] | None) -> Directory:
        if running is not None:
            await asyncio.wait({running})
        self._running, self._next = self._next, None
        self.install(await self._database.read(self._load))
        return self.current

    def _load(self, connection: Connection) -> Directory:
        if connection.dialect.name == "postgresql":
            # One snapshot for all tables; on SQLite every transaction is one.
            connection.execution_options(isolation_level="REPEATABLE READ")
        return load_directory(connection, self._ring, self.current)

    def install(self, directory: Directory) -> None:
        """Make a directory the present one, unless a newer one is there already. Called in the event loop."""
        old = self.current
        self.contact_s = time.monotonic()
        if directory is old or directory.version < old.version:
            return
        self.current = directory
        for listener in self._listeners:
            try:
                listener(old, directory)
            except Exception:
                log.exception("directory: a listener failed")

    # ------------------------------------------------------------ staying up to date

    async def watch(self) -> None:
        """Compare versions until cancelled."""
        wake = asyncio.Event()
        listening = None if self._database.is_sqlite else asyncio.create_task(self._listen(wake))
        try:
            while True:
                wake.clear()
                await self._look()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(wake.wait(), LOOK_EVERY_S)
        finally:
            if listening is not None:
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)

    async def _look(self) -> None:
        try:
            version = await self._database.read(current_version)
            self.contact_s = time.monotonic()
            if version != self.current.version:
                await self.refresh()
            trouble = ""
        except PosthouseError as error:
            trouble = str(error)
        except Exception as error:  # whatever it is, the next look may succeed
            trouble = type(error).__name__
        if trouble != self._trouble:
            # Said once, not each second.
            if trouble:
                log.error("directory: cannot be refreshed, the last one stays in force", cause=trouble)
            else:
                log.info("directory: up to date again")
            self._trouble = trouble

    async def _listen(self, wake: asyncio.Event) -> None:
        """Set `wake` whenever a node notifies (PostgreSQL LISTEN); connect again for as long as it takes."""
        import psycopg

        address = self._database.url.set(drivername="postgresql").render_as_string(hide_password=False)
        while True:
            # Without it the version is still compared each second, so a lost connection needs no more than patience.
            with contextlib.suppress(psycopg.Error, OSError):
                connecting = psycopg.AsyncConnection.connect(address, autocommit=True, connect_timeout=5)
                async with await connecting as connection:
                    await connection.execute(f"LISTEN {CHANNEL}")
                    wake.set()
                    async for _ in connection.notifies():
                        wake.set()
            await asyncio.sleep(LOOK_EVERY_S)

    # ------------------------------------------------------------ use of credentials

    def credential_used(self, credential_id: int) -> None:
        """Remember that a credential was used; it is written down later, many at once."""
        self._used.add(credential_id)

    def take_used(self) -> frozenset[int]:
        """The credentials used since the last call."""
        used, self._used = frozenset(self._used), set()
        return used
