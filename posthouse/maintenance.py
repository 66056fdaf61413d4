"""Maintenance: periodic work that nobody waits for. On many nodes each duty belongs to whoever holds its lease.

The node's heartbeat, the reserve file, retention of content, timelines and captured mail, expiry of scheduled and held
messages, replaced secrets, idempotency keys, and bodies that a crash left without a row.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from posthouse.clock import Clock
from posthouse.delivery import Delivery
from posthouse.errors import PosthouseError
from posthouse.model.identifier import created_ms
from posthouse.store import messages, nodes
from posthouse.store.content import STORED, ContentStore
from posthouse.store.database import Connection, Database
from posthouse.store.directory_source import DirectorySource
from posthouse.store.reserve import Reserve

log = structlog.get_logger()

BEAT_S = 2.0
RESERVE_S = 10.0
PRUNE_S = 60.0
SWEEP_S = 3600.0
DUTY_LEASE_MS = 60_000
# An answer about the time that took longer than this is worth nothing.
FOLLOW_WITHIN_S = 2.0
BATCH = 500
# Messages per look for content that can go, and looks per run.
LOOK = 2_000
LOOKS = 50
EXPIRY_OVERLAP_MS = 600_000
# A body without a row is younger than this while its message is being taken.
ORPHAN_AGE_MS = 3_600_000


class Maintenance:
    """The job. `start` begins the loops, `stop` ends them."""

    def __init__(
        self,
        *,
        database: Database,
        directory: DirectorySource,
        clock: Clock,
        contents: ContentStore,
        delivery: Delivery,
        reserve: Reserve,
        member: nodes.Membership,
        spool: Path,
        write_last_used: Callable[[], Awaitable[None]],
        prune_secrets: Callable[[], Awaitable[None]],
    ) -> None:
        self._database = database
        self._directory = directory
        self._clock = clock
        self._contents = contents
        self._delivery = delivery
        self._reserve = reserve
        self._member = member
        self._spool = spool
        self._write_last_used = write_last_used
        self._prune_secrets = prune_secrets
        self._tasks: list[asyncio.Task[None]] = []
        self._content_cursor = 0
        self._expired_until_ms = 0

    def start(self) -> None:
        """Begin."""
        for name, every_s, work in (
            ("beat", BEAT_S, self._beat),
            ("reserve", RESERVE_S, self._keep_reserve),
            ("last-used", PRUNE_S, self._write_last_used),
            ("prune", PRUNE_S, self._prune),
            ("sweep", SWEEP_S, self._sweep),
        ):
            self._tasks.append(asyncio.create_task(self._repeat(name, every_s, work), name=f"maintenance-{name}"))

    async def stop(self) -> None:
        """End. This node says that it leaves."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(PosthouseError):
            await self._database.write(lambda connection: nodes.leave(connection, self._member))

    async def _repeat(self, name: str, every_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except PosthouseError as error:
                log.warning("maintenance: put off", duty=name, error=error.code)
            except Exception:
                log.exception("maintenance: failed", duty=name)
            await asyncio.sleep(every_s)

    # ------------------------------------------------------------ this node

    async def _beat(self) -> None:
        """Say that this node is alive, follow the database's clock, and count the nodes."""
        now_ms = self._clock.now_ms()

        def work(connection: Connection) -> tuple[int, int | None]:
            database_ms = nodes.database_now_ms(connection)
            return nodes.beat(connection, self._member, database_ms or now_ms), database_ms

        started = time.monotonic()
        alive, database_ms = await self._database.write(work)
        took_s = time.monotonic() - started
        if database_ms is not None and took_s < FOLLOW_WITHIN_S:
            # Half the round trip has passed since the database looked at its clock; of a long one (this process was
            # frozen, the database hung) nobody knows which half.
            self._clock.follow(database_ms + int(took_s * 500))
        if alive == 0:
            log.error("maintenance: this node's number was given to another node; it stops sending")
            return
        self._delivery.contact()
        self._delivery.nodes = alive

    async def _keep_reserve(self) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._reserve.make)

    # ------------------------------------------------------------ for the installation

    async def _mine(self, duty: str, every_s: float) -> bool:
        now_ms = self._clock.now_ms()
        return await self._database.write(
            lambda c: nodes.take_duty(c, duty, self._member, now_ms, int(every_s * 1000) - 1000, DUTY_LEASE_MS)
        )

    async def _prune(self) -> None:
        if await self._mine("prune", PRUNE_S):
            await self.prune(self._clock.now_ms())

    async def prune(self, now_ms: int) -> None:
        """Remove what has had its time at `now_ms`: captured mail, content, timelines, keys, sessions, old secrets."""
        await self._prune_captured(now_ms)
        await self._prune_content(now_ms)
        await self._prune_messages(now_ms)
        await self._prune_small(now_ms)
        await self._prune_secrets()

    async def _prune_captured(self, now_ms: int) -> None:
        """Captured mail beyond its server's limits goes from the list; its content follows by the ordinary rule."""
        for record in self._directory.current.servers.values():
            value = record.value
            if value.kind != "capture":
                continue
            before = now_ms - int(value.keep_days * 86_400_000)
            while True:
                gone = await self._database.write(
                    partial(messages.prune_captured, server_id=record.id, keep=value.keep_messages, before_ms=before)
                )
                if len(gone) < BATCH:
                    break

    async def _prune_content(self, now_ms: int) -> None:
        """Content of finished messages after its time: a bounded number of looks, going on where the last run ended."""
        before = now_ms - self._directory.current.installation.keep_content_s * 1000
        for _ in range(LOOKS):
            rows, after = await self._database.read(
                partial(messages.finished_content, before_ms=before, after=self._content_cursor, limit=LOOK)
            )
            await self._drop_content(rows)
            self._content_cursor = after or 0
            if after is None:
                return

    async def _drop_content(self, rows: Sequence[Any]) -> None:
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            await self._database.write(partial(messages.drop_content, message_ids=[row.id for row in part]))
            for row in part:
                if row.content_place == STORED:
                    await asyncio.get_running_loop().run_in_executor(None, self._contents.remove, row.id)

    async def _prune_messages(self, now_ms: int) -> None:
        before = now_ms - self._directory.current.installation.keep_events_s * 1000
        while True:
            ids = await self._database.read(lambda c: messages.old_messages(c, before, BATCH))
            if ids:
                await self._database.write(partial(messages.drop_messages, message_ids=ids))
            if len(ids) < BATCH:
                return

    async def _prune_small(self, now_ms: int) -> None:
        keep_events_ms = self._directory.current.installation.keep_events_s * 1000

        def work(connection: Connection) -> None:
            messages.prune_expired(connection, now_ms, now_ms - keep_events_ms)

        await self._database.write(work)
        await self._delivery.expire_waiting(self._expired_until_ms, now_ms)
        # With some overlap, for messages that were on the wire meanwhile.
        self._expired_until_ms = now_ms - EXPIRY_OVERLAP_MS

    async def _sweep(self) -> None:
        """Bodies that a crash left without a row, and files of the spool that nobody writes any more."""
        await asyncio.get_running_loop().run_in_executor(None, self._sweep_spool)
        if not await self._mine("sweep", SWEEP_S):
            return
        held = await asyncio.get_running_loop().run_in_executor(None, lambda: list(self._contents.held()))
        old = [i for i in held if created_ms(i) < self._clock.now_ms() - ORPHAN_AGE_MS]
        for start in range(0, len(old), BATCH):
            part = old[start : start + BATCH]
            known = await self._database.read(partial(messages.which_exist, message_ids=part))
            for message_id in part:
                if message_id not in known:
                    await asyncio.get_running_loop().run_in_executor(None, self._contents.remove, message_id)

    def _sweep_spool(self) -> None:
        for path in self._spool.glob("*"):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > ORPHAN_AGE_MS / 1000:
                    path.unlink()
