"""Why servers are held: known to this node at once, to the others by the store within a second.

A server is held by a fault of its own, for a time that grows, or by a person, until it is released. What is known here and
not written yet counts more than what is read.
"""

import asyncio
import collections
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any

import structlog

from posthouse.clock import Clock
from posthouse.model.directory import ServerRecord
from posthouse.model.identifier import IdentifierSource
from posthouse.model.outcome import Outcome
from posthouse.model.policy import Hold
from posthouse.model.timeline import SERVER_HELD, SERVER_RELEASED
from posthouse.store import messages, server_state
from posthouse.store.database import Connection, Database
from posthouse.store.messages import event_row
from posthouse.store.server_state import ServerState

log = structlog.get_logger()

OPERATOR = "operator"


class Holding:
    """The states of all servers, as this node knows them."""

    def __init__(self, database: Database, ids: IdentifierSource, clock: Clock) -> None:
        self._database = database
        self._ids = ids
        self._clock = clock
        self._states: dict[int, ServerState] = {}
        self._stamp = 0
        # Servers whose state is being written, and how many writes are under way.
        self._unwritten: collections.Counter[int] = collections.Counter()
        self._tasks: set[asyncio.Future[Any]] = set()

    def state_of(self, server_id: int) -> ServerState:
        """Why a server is held; a state with `held` "" where it is not."""
        return self._states.get(server_id) or ServerState(server_id)

    def is_held(self, server_id: int) -> bool:
        """Whether a server is held."""
        state = self._states.get(server_id)
        return state is not None and bool(state.held)

    def held(self) -> Iterator[int]:
        """The servers that are held."""
        return iter([server_id for server_id, state in self._states.items() if state.held])

    async def read(self) -> list[ServerState]:
        """Take in what other nodes have written since. Returns what is new."""
        stamp = self._stamp
        new = []
        for state in await self._database.read(lambda connection: server_state.load_since(connection, stamp)):
            self._stamp = max(self._stamp, state.stamp)
            if state.server_id not in self._unwritten:
                self._states[state.server_id] = state
                new.append(state)
        return new

    # ------------------------------------------------------------ by faults

    def hold(self, record: ServerRecord, hold: Hold, outcome: Outcome | None = None) -> bool:
        """Hold a server for a fault. False where it is held already: another connection has said so."""
        state = self.state_of(record.id)
        now_ms = self._clock.now_ms()
        if state.held == OPERATOR or (state.held and state.next_try_ms > now_ms):
            return False
        detail = hold.detail
        if outcome is not None and outcome.reply is not None and outcome.detail:
            detail = f"{detail} {outcome.reply}"
        new = replace(
            state,
            held=hold.scope.value,
            cause=hold.cause,
            detail=detail,
            since_ms=state.since_ms if state.held else now_ms,
            next_try_ms=now_ms + int(hold.delay_s * 1000),
            failures=state.failures + 1,
        )
        self._set(new, record, first=not state.held)
        log.warning(
            "delivery: server held", server=record.name, cause=hold.cause, detail=detail, for_s=round(hold.delay_s)
        )
        return True

    def works_again(self, record: ServerRecord) -> bool:
        """A server has answered as it should. True where it was held until now, or had failed before."""
        state = self._states.get(record.id)
        if state is None or (not state.held and not state.failures) or state.held == OPERATOR:
            return False
        self._set(_released(state), record, first=bool(state.held))
        log.info("delivery: server works again", server=record.name)
        return True

    def try_now(self, record: ServerRecord) -> None:
        """Somebody has changed the server, and mended it perhaps: no need to wait for the next try."""
        state = self.state_of(record.id)
        if state.held and state.held != OPERATOR:
            self._set(replace(state, next_try_ms=self._clock.now_ms()), record, first=False)

    # ------------------------------------------------------------ by people

    async def hold_by_operator(self, server_id: int, detail: str) -> None:
        """Hold a server until it is released. Durable on return."""
        now_ms = self._clock.now_ms()
        await self._set_durably(
            replace(
                self.state_of(server_id), held=OPERATOR, cause=OPERATOR, detail=detail, since_ms=now_ms, next_try_ms=0
            )
        )

    async def release(self, server_id: int) -> None:
        """Hold a server no longer, whatever held it. Durable on return."""
        await self._set_durably(_released(self.state_of(server_id)))

    # ------------------------------------------------------------ writing

    def note_deliveries(self, server_ids: list[int]) -> None:
        """Write down that servers have taken something just now."""
        now_ms = self._clock.now_ms()
        for server_id in server_ids:
            self._states[server_id] = replace(self.state_of(server_id), last_delivery_ms=now_ms)
        self._in_background(
            self._database.write(lambda connection: server_state.note_deliveries(connection, server_ids, now_ms))
        )

    def _set(self, state: ServerState, record: ServerRecord, *, first: bool) -> None:
        """Put a state in force here at once, and on the other nodes by the store; `first`: with an event."""
        self._states[state.server_id] = state
        kind = SERVER_HELD if state.held else SERVER_RELEASED
        data = {
            "cause": state.cause, "detail": state.detail, "next_try_ms": state.next_try_ms, "server": record.name,
        }  # fmt: skip
        row = event_row(self._ids(), self._clock.now_ms(), kind, record.tenant_id, 0, record.id, data)

        def write(connection: Connection) -> None:
            server_state.store(connection, state)
            if first:
                messages.add_event(connection, row)

        self._in_background(self._write(state.server_id, write))

    async def _set_durably(self, state: ServerState) -> None:
        self._states[state.server_id] = state
        await self._write(state.server_id, lambda connection: server_state.store(connection, state))

    async def _write(self, server_id: int, write: Callable[[Connection], Any]) -> None:
        """Until this is done, what is read of the server from the store is older than what we know."""
        self._unwritten[server_id] += 1
        try:
            await self._database.write(write)
        finally:
            self._unwritten[server_id] -= 1
            if not self._unwritten[server_id]:
                del self._unwritten[server_id]

    def _in_background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: "asyncio.Future[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("delivery: a state could not be written", error=str(task.exception()))


def _released(state: ServerState) -> ServerState:
    return replace(state, held="", cause="", detail="", next_try_ms=0, failures=0)
