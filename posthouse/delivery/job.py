"""The delivery job: lanes and their workers, outcomes, the schedule, and leases. The package says how it goes together."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import structlog

from posthouse.clock import Clock
from posthouse.delivery.claiming import claim, new_server, reroute
from posthouse.delivery.holding import OPERATOR, Holding
from posthouse.delivery.lanes import LEASE_S, Job, Lane, dismiss
from posthouse.delivery.outcomes import (
    attempt_data,
    envelope_of,
    outcome_item,
    remote_of,
    settle_values,
    split_too_many,
    wants_success,
    with_servers_sender,
)
from posthouse.errors import PosthouseError
from posthouse.model.directory import Directory, ServerRecord
from posthouse.model.identifier import IdentifierSource
from posthouse.model.message import RecipientState, WaitingReason
from posthouse.model.outcome import Outcome, Result, Scope, Stage
from posthouse.model.policy import (
    MAX_BROKEN_CONNECTIONS,
    Decision,
    History,
    Hold,
    decide,
    hold_for,
)
from posthouse.model.server import UncertainPolicy
from posthouse.model.timeline import ATTEMPT, EXPIRED
from posthouse.protocol.faults import DeliveryFault
from posthouse.store import messages
from posthouse.store.content import ContentStore, StoredContent
from posthouse.store.database import Append, Database, Statement
from posthouse.store.directory_source import DirectorySource
from posthouse.store.messages import (
    INSERT_CAPTURED,
    INSERT_EVENT,
    MARK,
    RENEW,
    SETTLE,
    QueuedMessage,
    QueuedRecipient,
    event_row,
)
from posthouse.store.server_state import ServerState
from posthouse.transports.base import Session, Transport

log = structlog.get_logger()

HEARTBEAT_S = 8.0
# Promise 3: a node without contact to its database starts no transaction.
CONTACT_S = 5.0
# How long a server that refused one connection too many is spared further ones.
LIMITED_FOR_S = 10.0
# How often the store is asked for what is due, where nothing else wakes the scheduler.
POLL_S = 1.0
# New mail keeps this share of a lane, so that a backlog never starves it (threat F13).
NEW_MAIL_SHARE = 0.25
# Their bodies come into memory: at most 256 KiB each.
CLAIM = 100
REROUTE = 500
# How often it is written down when a server last took something.
NOTE_S = 5.0
# How long stopping waits for messages that are on the wire.
DRAIN_S = 20.0

Row = tuple[Statement, tuple[Any, ...]]
TransportFactory = Callable[[ServerRecord, Directory], Transport]


class Reports(Protocol):
    """What delivery needs of notification: the rows of reports that belong into the commit of a failure."""

    def rows_for(
        self, message: QueuedMessage, reported: list[tuple[QueuedRecipient, Outcome]], remote: str
    ) -> tuple[list[Row], Callable[[PosthouseError | None], None]] | None:
        """Rows of a report on recipients that failed or were delivered, and what to call after their commit; None where
        none is due."""


class Counters:
    """What /metrics shows of delivery."""

    __slots__ = ("attempts", "deferred", "delivered", "failed", "tls_fallbacks", "uncertain")

    def __init__(self) -> None:
        self.attempts = 0
        self.delivered = 0
        self.failed = 0
        self.deferred = 0
        self.uncertain = 0
        self.tls_fallbacks = 0


class JobGuard:
    """Says to a transport whether a message may still go out; `transports/base.py` calls it Guard."""

    __slots__ = ("_delivery", "_job", "asked", "mark")

    def __init__(self, delivery: "Delivery", job: Job, mark: Callable[[], Any] | None) -> None:
        self._delivery = delivery
        self._job = job
        self.mark = mark
        # Once before the message, once before the final dot: after the second time it may be out.
        self.asked = 0

    def alive(self) -> bool:
        """Our lease holds, sending is on, and the database is within reach."""
        delivery = self._delivery
        self.asked += 1
        return delivery.may_send and not self._job.lost and delivery.monotonic() < self._job.deadline


class Delivery:
    """The job. One per node."""

    def __init__(
        self,
        *,
        database: Database,
        directory: DirectorySource,
        ids: IdentifierSource,
        clock: Clock,
        contents: ContentStore,
        make_transport: TransportFactory,
        memory_octets: int,
    ) -> None:
        self._database = database
        self._directory = directory
        self._ids = ids
        self._clock = clock
        self._contents = contents
        self._make_transport = make_transport
        self._memory_octets = memory_octets
        self._octets = 0
        self._lanes: dict[int, Lane] = {}
        self.holding = Holding(database, ids, clock)
        self._jobs: dict[int, Job] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._wake = asyncio.Event()
        self._noted_at = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running = False
        self._stopping = False
        self._last_contact = 0.0
        self._claiming: set[int] = set()
        self.nodes = 1
        self.reports: Reports | None = None
        self.counters = Counters()
        self.monotonic = clock.monotonic

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Read why servers are held, and begin."""
        # Asking for the running loop costs a call of the system each time.
        self._loop = asyncio.get_running_loop()
        self._last_contact = self.monotonic()
        await self._read_states()
        self._running = True
        self._directory.listen(self._configuration_changed)
        self._tasks = [
            asyncio.create_task(self._schedule(), name="delivery-schedule"),
            asyncio.create_task(self._renew_leases(), name="delivery-leases"),
        ]

    async def stop(self) -> None:
        """Let what is on the wire end, give the rest back to the store. Durable on return."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for lane in self._lanes.values():
            self._give_back(lane)
            self._dismiss_idle(lane)
        working = [task for lane in self._lanes.values() for task in lane.workers]
        if working:
            _, late = await asyncio.wait(working, timeout=DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._running = False

    # ------------------------------------------------------------ what submission calls

    @property
    def may_send(self) -> bool:
        """Whether this node may start a transaction at all."""
        return (
            self._running
            and self._database.down_since is None
            and self.monotonic() - self._last_contact < CONTACT_S
            and self._directory.current.sending_off_reason() is None
        )

    def reserve(self, server_id: int, size: int, recipients: int) -> bool:
        """Whether the lane takes a new message now; if so its place is kept."""
        if not self._running or self._stopping or self._octets + size > self._memory_octets:
            return False
        if self.holding.is_held(server_id):
            return False
        lane = self._lane(server_id)
        if lane is None or not lane.record.value.enabled or self._database.down_since is not None:
            return False
        if lane.in_hand >= lane.capacity():
            lane.has_backlog = True
            return False
        lane.in_hand += 1
        self._octets += size
        return True

    def cancel_reservation(self, server_id: int, size: int, recipients: int) -> None:
        """Give a place back."""
        self._octets -= size
        lane = self._lanes.get(server_id)
        if lane is not None:
            lane.in_hand -= 1

    def hand_over(self, server_id: int, message: QueuedMessage) -> None:
        """Take a committed message into its reserved place."""
        # The lease counts from the making of its rows; the commit may have taken long, the process may have been frozen.
        passed_s = max(0.0, (self._clock.now_ms() - message.received_ms) / 1000)
        job = Job(message, self.monotonic() + LEASE_S - passed_s)
        lane = self._lane(server_id)
        if lane is None or self._stopping:
            # The server went between reservation and commit: the scheduler finds the rows.
            self.cancel_reservation(server_id, message.size, 0)
            self._release([job])
            return
        self._enqueue(lane, job)

    # ------------------------------------------------------------ lanes and workers

    def _lane(self, server_id: int) -> Lane | None:
        lane = self._lanes.get(server_id)
        if lane is None:
            record = self._directory.current.servers.get(server_id)
            if record is None:
                return None
            lane = self._lanes[server_id] = Lane(record)
        return lane

    def _enqueue(self, lane: Lane, job: Job, *, first: bool = False) -> None:
        """Give the job to an idle worker, a new one, or the queue (to its front where it is `first`)."""
        self._jobs[id(job)] = job
        while lane.idle:
            # The connection used last is used first again, so that those not needed can end.
            waiter, _ = lane.idle.pop()
            if not waiter.done():
                waiter.set_result(job)
                return
        if first:
            lane.queue.appendleft(job)
        else:
            lane.queue.append(job)
        if len(lane.workers) < self._connections(lane):
            self._add_worker(lane)

    def _connections(self, lane: Lane) -> int:
        """This node's share of the server's connections; one while it is being tried again."""
        if lane.probing:
            return 1
        share = max(1, int(lane.record.value.max_connections) // max(1, self.nodes))
        return min(share, lane.limit) if self.monotonic() < lane.limited_until else share

    def _add_worker(self, lane: Lane) -> None:
        task = asyncio.get_running_loop().create_task(self._work(lane, lane.generation), name=f"delivery-{lane.name}")
        lane.workers.add(task)
        task.add_done_callback(lane.workers.discard)

    async def _work(self, lane: Lane, generation: int) -> None:
        """One connection: open it when there is something to send, keep it while there may be more."""
        transport = self._make_transport(lane.record, self._directory.current)
        session: Session | None = None
        sent = 0
        try:
            while generation == lane.generation:
                job = await self._next_job(lane, session is not None)
                if job is None:
                    return
                if not self._may_start(lane, job):
                    continue
                if session is not None and (not session.usable or sent >= lane.record.value.messages_per_connection):
                    await session.close()
                    session = None
                if session is None:
                    session = await self._open(lane, transport, job)
                    sent = 0
                    if session is None:
                        return
                try:
                    await self._send(lane, session, job)
                except Exception:
                    # Nothing is known of it here: its lease runs out, and it is taken up as cut off.
                    self._done(lane, job)
                    raise
                sent += 1
        except Exception:
            log.exception("delivery: a worker failed", server=lane.name)
        finally:
            if session is not None:
                with contextlib.suppress(Exception):
                    await session.close()
            # This task still counts as a worker: room for the next is seen without it.
            # Also after an edit, of which this one is left over: what came meanwhile found all connections in use.
            if lane.queue and not self._stopping:
                lane.workers.discard(asyncio.current_task())
                if len(lane.workers) < self._connections(lane):
                    self._add_worker(lane)

    async def _next_job(self, lane: Lane, connected: bool) -> Job | None:
        if lane.queue:
            return lane.queue.popleft()
        if lane.has_backlog:
            self._wake.set()
        if not connected or self._stopping:
            return None
        assert self._loop is not None
        waiter: asyncio.Future[Job | None] = self._loop.create_future()
        lane.idle.append((waiter, self.monotonic()))
        return await waiter

    def _may_start(self, lane: Lane, job: Job) -> bool:
        """Whether the job can be sent now; otherwise it has been given back."""
        message = job.message
        if message.expires_ms is not None and message.expires_ms <= self._clock.now_ms():
            self._expire(lane, job)
            return False
        if not self.may_send or job.lost or self.monotonic() >= job.deadline - 1.0:
            self._done(lane, job)
            self._release([job])
            return False
        return True

    async def _open(self, lane: Lane, transport: Transport, job: Job) -> Session | None:
        """A session, or None after the lane was held and the job given back."""
        try:
            session = await transport.open()
        except asyncio.CancelledError:
            self._done(lane, job)
            self._release([job])
            raise
        except DeliveryFault as fault:
            self._attempt_failed(lane, job, fault)
            return None
        except Exception:
            log.exception("delivery: a connection could not be opened", server=lane.name)
            self._hold(lane, Hold(Scope.SERVER, "internal", "Posthouse made a mistake here; its log says more.", 60.0))
            self._done(lane, job)
            self._release([job])
            return None
        if session.facts.tls_fell_back:
            self.counters.tls_fallbacks += 1
        return session

    def _attempt_failed(self, lane: Lane, job: Job, fault: DeliveryFault) -> None:
        """No session: every recipient waits for the server."""
        outcome = fault.outcome()
        if outcome.scope is Scope.CONNECTION and outcome.cause == "connection-limit" and (lane.working or lane.idle):
            # The server takes no more connections at once; those that are open go on, and no more are tried for a while.
            lane.limit = max(1, len(lane.working) + len(lane.idle))
            lane.limited_until = self.monotonic() + LIMITED_FOR_S
            self._done(lane, job)
            self._enqueue_again(lane, job)
            return
        if outcome.scope not in (Scope.SERVER, Scope.ACCOUNT, Scope.THROTTLE):
            outcome = replace(outcome, scope=Scope.SERVER)
        self._settle(lane, job, [outcome] * len(job.message.recipients), None)

    def _enqueue_again(self, lane: Lane, job: Job) -> None:
        lane.in_hand += 1
        self._octets += job.message.size
        self._enqueue(lane, job, first=True)

    async def _send(self, lane: Lane, session: Session, job: Job) -> None:
        message = job.message
        header = message.header
        envelope = message.envelope or envelope_of(message)
        if lane.record.value.sender_address is not None:
            mail_from, header, job.changes = with_servers_sender(lane.record, message)
            envelope = replace(envelope, mail_from=mail_from)
        size = message.size - len(message.header) + len(header)
        content = StoredContent(header, message.body, size, message.traits, message.id, self._contents)
        mark = self._mark_writer(job) if lane.record.value.uncertain is UncertainPolicy.HOLD else None
        guard = JobGuard(self, job, mark)
        lane.working.add(id(job))
        self.counters.attempts += 1
        try:
            outcomes = await session.send(envelope, content, guard)
        except asyncio.CancelledError:
            self._done(lane, job)
            if guard.asked < 2:
                self._release([job])
            # Else it may be out. Its lease runs out as after a crash, and the next attempt, or the server's rule to hold,
            # starts from there.
            raise
        except Exception:
            log.exception("delivery: a message could not be sent", message=message.id, server=lane.name)
            outcomes = [
                Outcome(
                    Result.DEFERRED, Scope.CONNECTION, Stage.DATA, cause="internal", detail="Posthouse made a mistake."
                )
            ] * len(message.recipients)
        finally:
            lane.working.discard(id(job))
        self._settle(lane, job, outcomes, session)

    def _mark_writer(self, job: Job) -> Callable[[], Any]:
        """Writes, before the final dot, that the outcome will be uncertain if nothing more is heard."""

        async def mark() -> None:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def done(error: PosthouseError | None) -> None:
                if not future.done():
                    future.set_result(None) if error is None else future.set_exception(error)

            reason = int(WaitingReason.UNCERTAIN_HELD)
            rows = [(MARK, (reason, r.id, r.lease)) for r in job.message.recipients]
            self._database.append(Append(rows, done))
            await future

        return mark

    def _done(self, lane: Lane, job: Job) -> None:
        """The job is in hand no more."""
        if self._jobs.pop(id(job), None) is None:
            return
        lane.in_hand -= 1
        self._octets -= job.message.size
        if lane.has_backlog and lane.in_hand <= lane.capacity() // 2:
            self._wake.set()

    # ------------------------------------------------------------ outcomes

    def _settle(self, lane: Lane, job: Job, outcomes: list[Outcome], session: Session | None) -> None:
        """Record what became of each recipient, and draw the consequences for the server."""
        message = job.message
        now_ms = self._clock.now_ms()
        self._draw_consequences(lane, job, outcomes)
        again = split_too_many(message, outcomes)
        rows: list[Row] = []
        items: list[dict[str, Any]] = []
        reported: list[tuple[QueuedRecipient, Outcome]] = []
        delivered = failures = 0
        for recipient, outcome in zip(message.recipients, outcomes, strict=True):
            if again and outcome.cause == "too-many-recipients":
                continue
            decision = self._decide(lane, message, recipient, outcome, now_ms)
            delivered += outcome.result is Result.DELIVERED
            if decision.is_failure or wants_success(recipient, outcome, session):
                reported.append((recipient, outcome))
            failures += decision.is_failure
            rows.append((SETTLE, settle_values(recipient, outcome, decision, now_ms)))
            items.append(outcome_item(recipient, outcome))
        rows.append((INSERT_EVENT, self._attempt_event(lane, job, items, session, now_ms)))
        if delivered and getattr(session, "keeps", False):
            rows.append((INSERT_CAPTURED, (message.id, lane.record.id, now_ms)))
        self._count(lane, outcomes, failures)
        report = self.reports.rows_for(message, reported, remote_of(session)) if reported and self.reports else None
        if report is not None:
            rows += report[0]
        self._record(lane, job, rows, report[1] if report else None, again)

    def _record(
        self,
        lane: Lane,
        job: Job,
        rows: list[Row],
        reported: Callable[[PosthouseError | None], None] | None,
        again: list[QueuedRecipient],
    ) -> None:
        """Write rows of an outcome; the job is in hand until they are durable, so that its lease is kept alive."""

        def done(error: PosthouseError | None) -> None:
            if error is not None:
                log.error("delivery: an outcome could not be recorded", error=str(error), message=job.message.id)
            if reported is not None:
                reported(error)
            self._done(lane, job)
            if again:
                job.message.recipients = again
                job.message.envelope = None
                self._enqueue_again(lane, job)

        self._database.append(Append(rows, done, keep=True))

    def _decide(
        self, lane: Lane, message: QueuedMessage, recipient: QueuedRecipient, outcome: Outcome, now_ms: int
    ) -> Decision:
        installation = self._directory.current.installation
        expires = None if message.expires_ms is None else (message.expires_ms - now_ms) / 1000
        return decide(
            outcome,
            History(
                age_s=(now_ms - message.received_ms) / 1000,
                attempts=recipient.attempts,
                uncertain=recipient.uncertain,
                hold_when_uncertain=lane.record.value.uncertain is UncertainPolicy.HOLD,
                retry_delays_s=installation.retry_delays_s,
                give_up_after_s=installation.give_up_after_s,
                expires_in_s=expires,
            ),
        )

    def _draw_consequences(self, lane: Lane, job: Job, outcomes: Iterable[Outcome]) -> None:
        """What the outcomes say of the server: hold it, or that it works again."""
        for outcome in outcomes:
            if outcome.result in (Result.DELIVERED, Result.HANDED_OVER):
                lane.broken_connections = 0
                self._works_again(lane)
                return
            hold = hold_for(outcome, self.state_of(lane.record.id).failures)
            if hold is not None:
                self._hold(lane, hold, outcome)
                return
            if outcome.scope is Scope.CONNECTION and outcome.cause not in ("stale-connection", "connection-limit"):
                lane.broken_connections += 1
                if lane.broken_connections >= MAX_BROKEN_CONNECTIONS:
                    broken = replace(outcome, scope=Scope.SERVER, result=Result.DEFERRED)
                    self._hold(lane, hold_for(broken, self.state_of(lane.record.id).failures), broken)
                return
            if outcome.scope in (Scope.RECIPIENT, Scope.MESSAGE):
                # It speaks with us: what it said concerns the message.
                lane.broken_connections = 0
                self._works_again(lane)
                return

    def _count(self, lane: Lane, outcomes: Iterable[Outcome], failures: int) -> None:
        counters = self.counters
        for outcome in outcomes:
            if outcome.result is Result.DELIVERED:
                counters.delivered += 1
                lane.delivered += 1
            elif outcome.result is Result.UNCERTAIN:
                counters.uncertain += 1
            elif outcome.result is Result.DEFERRED:
                counters.deferred += 1
        counters.failed += failures

    def _attempt_event(
        self, lane: Lane, job: Job, items: list[dict[str, Any]], session: Session | None, now_ms: int
    ) -> tuple[Any, ...]:
        message = job.message
        data = attempt_data(job, items, session, self._directory.current)
        return event_row(self._ids(now_ms), now_ms, ATTEMPT, message.tenant_id, message.id, lane.record.id, data)

    def _expire(self, lane: Lane, job: Job) -> None:
        now_ms = self._clock.now_ms()
        message = job.message
        decision = Decision(RecipientState.EXPIRED, is_failure=True)
        outcome = Outcome(Result.REJECTED, Scope.NOBODY, Stage.SENDER, cause="expired", detail="It expired.")
        rows: list[Row] = [
            (SETTLE, settle_values(r, outcome, replace(decision, uncertain=r.uncertain), now_ms))
            for r in message.recipients
        ]
        rows.append(
            (INSERT_EVENT, event_row(self._ids(), now_ms, EXPIRED, message.tenant_id, message.id, lane.record.id, {}))
        )
        self.counters.failed += len(message.recipients)
        failed = [(r, outcome) for r in message.recipients]
        report = self.reports.rows_for(message, failed, "") if self.reports else None
        self._record(lane, job, rows + (report[0] if report else []), report[1] if report else None, [])

    async def expire_waiting(self, since_ms: int, now_ms: int) -> None:
        """Give up what waits and has expired since a time, where no attempt would come to see it."""
        while True:
            deadline, until_ms = self.monotonic() + LEASE_S, now_ms + int(LEASE_S * 1000)
            by_server = await self._database.write(
                partial(messages.claim_expired, since_ms=since_ms, now_ms=now_ms, until_ms=until_ms, limit=CLAIM)
            )
            found = 0
            for server_id, claimed in by_server.items():
                lane = self._lane(server_id)
                for message in claimed:
                    found += len(message.recipients)
                    job = Job(message, deadline)
                    if lane is None:
                        self._release([job])
                        continue
                    lane.in_hand += 1
                    self._octets += message.size
                    self._jobs[id(job)] = job
                    self._expire(lane, job)
            if found < CLAIM:
                return

    def _release(self, jobs: Iterable[Job]) -> None:
        """Give leased recipients back to the store, due at once. A lost write is mended by the end of the lease."""
        now_ms = self._clock.now_ms()
        rows = [
            (
                SETTLE,
                (
                    int(RecipientState.WAITING), int(WaitingReason.DUE), now_ms, r.attempts, r.uncertain, now_ms, "",
                    r.id, r.lease,
                ),
            )
            for job in jobs
            for r in job.message.recipients
        ]  # fmt: skip
        if rows:
            self._database.append(Append(rows, lambda error: None, keep=True))

    # ------------------------------------------------------------ holding servers

    def _hold(self, lane: Lane, hold: Hold | None, outcome: Outcome | None = None) -> None:
        """Hold the server: its queue goes back to the store and waits, or to the fallback."""
        if hold is None:
            return
        if self.holding.hold(lane.record, hold, outcome):
            lane.probing = False
            lane.broken_connections = 0
        self._give_back(lane)
        # A fallback may take the queue now.
        self._wake.set()

    def _works_again(self, lane: Lane) -> None:
        lane.probing = False
        if self.holding.works_again(lane.record):
            self._wake.set()

    def state_of(self, server_id: int) -> ServerState:
        """Why a server is held, as this node knows it."""
        return self.holding.state_of(server_id)

    async def hold_by_operator(self, server_id: int, detail: str) -> None:
        """An operator holds the server until it is released. In force everywhere within 1 s."""
        await self.holding.hold_by_operator(server_id, detail)
        lane = self._lanes.get(server_id)
        if lane is not None:
            self._give_back(lane)

    async def release(self, server_id: int) -> None:
        """The server is tried again now, whatever held it."""
        await self.holding.release(server_id)
        self._wake.set()

    def wake(self) -> None:
        """Something may be due now."""
        self._wake.set()

    def _give_back(self, lane: Lane) -> None:
        jobs = list(lane.queue)
        lane.queue.clear()
        for job in jobs:
            self._done(lane, job)
        self._release(jobs)
        if jobs:
            lane.has_backlog = True

    # ------------------------------------------------------------ configuration

    def _configuration_changed(self, before: Directory, now: Directory) -> None:
        for server_id, lane in list(self._lanes.items()):
            record = now.servers.get(server_id)
            if record is None:
                self._retire_lane(lane, gone=True)
            elif _has_changed(before, now, record):
                lane.record = record
                self._retire_lane(lane, gone=False)
        for server_id in self.holding.held():
            record = now.servers.get(server_id)
            if record is not None and _has_changed(before, now, record):
                self.holding.try_now(record)
        self._wake.set()

    def _retire_lane(self, lane: Lane, *, gone: bool) -> None:
        """Connections made with earlier settings end after the message that they carry."""
        lane.generation += 1
        self._dismiss_idle(lane)
        self._give_back(lane)
        if gone:
            self._lanes.pop(lane.record.id, None)

    def _dismiss_idle(self, lane: Lane) -> None:
        while lane.idle:
            dismiss(lane.idle.popleft()[0])

    def _end_idle(self, lane: Lane) -> None:
        """Close connections that have been idle for longer than the server's setting."""
        before = self.monotonic() - lane.record.value.idle_s
        while lane.idle and lane.idle[0][1] <= before:
            dismiss(lane.idle.popleft()[0])

    # ------------------------------------------------------------ scheduling

    async def _schedule(self) -> None:
        last_measure = self.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), POLL_S)
            self._wake.clear()
            if self.monotonic() - last_measure >= 1.0:
                last_measure = self.monotonic()
                for lane in self._lanes.values():
                    lane.measure()
                    self._end_idle(lane)
                await self._note_deliveries()
            try:
                await self._claim_due()
            except PosthouseError as error:
                log.warning("delivery: the store cannot be asked for due mail", error=error.code)
                await asyncio.sleep(0.5)
            except Exception:
                log.exception("delivery: scheduling failed")
                await asyncio.sleep(0.5)

    async def _note_deliveries(self) -> None:
        """Write down, now and then, when each server last took something."""
        if self.monotonic() - self._noted_at < NOTE_S:
            return
        self._noted_at = self.monotonic()
        done = {i: lane for i, lane in self._lanes.items() if lane.delivered != lane.delivered_noted}
        if not done:
            return
        for lane in done.values():
            lane.delivered_noted = lane.delivered
        self.holding.note_deliveries(list(done))

    async def _claim_due(self) -> None:
        await self._read_states()
        if not self.may_send:
            return
        now_ms = self._clock.now_ms()
        due = await self._database.read(lambda connection: messages.due_servers(connection, now_ms))
        for server_id, due_ms in due.items():
            if due_ms > now_ms:
                continue
            record = self._directory.current.servers.get(server_id)
            if record is None:
                await self._reroute(server_id)
            elif record.value.enabled:
                await self._claim_for(record, now_ms)

    async def _claim_for(self, record: ServerRecord, now_ms: int) -> None:
        state = self.state_of(record.id)
        probe = False
        if state.held:
            if state.held == OPERATOR or state.next_try_ms > now_ms:
                if state.held != OPERATOR:
                    await self._claim_into_fallback(record, now_ms)
                return
            probe = True
        lane = self._lane(record.id)
        if lane is None:
            return
        if probe:
            if lane.in_hand:
                return
            lane.probing = True
            room = 1
        else:
            room = int(lane.capacity() * (1 - NEW_MAIL_SHARE)) - lane.in_hand
        await self._claim(record.id, lane, room)

    async def _claim_into_fallback(self, held: ServerRecord, now_ms: int) -> None:
        fallback = self._fallback(held, now_ms)
        if fallback is not None:
            room = int(fallback.capacity() * (1 - NEW_MAIL_SHARE)) - fallback.in_hand
            await self._claim(held.id, fallback, room)

    def _fallback(self, held: ServerRecord, now_ms: int) -> Lane | None:
        """The lane of the first server along the fallbacks that works."""
        directory = self._directory.current
        seen = {held.id}
        record: ServerRecord | None = held
        while record is not None:
            record = directory.fallback_of(record)
            if record is None or record.id in seen:
                return None
            seen.add(record.id)
            if record.value.enabled and not self.state_of(record.id).held:
                return self._lane(record.id)
        return None

    async def _claim(self, server_id: int, lane: Lane, room: int) -> None:
        """Claim due recipients of a server into a lane: its own, or that of a fallback."""
        limit = min(room, CLAIM)
        if limit <= 0:
            lane.has_backlog = True
            return
        into_fallback = lane.record.id != server_id
        now_ms = self._clock.now_ms()
        deadline = self.monotonic() + LEASE_S

        claimed = await self._database.write(
            lambda connection: claim(connection, self._ids, server_id, now_ms, limit, into_fallback=into_fallback)
        )
        lane.has_backlog = sum(len(m.recipients) for m in claimed) >= limit
        for message in claimed:
            job = Job(message, deadline, fallback_for=server_id if into_fallback else 0)
            lane.in_hand += 1
            self._octets += message.size
            self._enqueue(lane, job)
        if lane.has_backlog and lane.in_hand < lane.capacity() // 2:
            self._wake.set()

    async def _reroute(self, server_id: int) -> None:
        """The server is gone: its queue is routed again; what may be delivered already waits for a person (F26)."""
        now_ms = self._clock.now_ms()
        rows = await self._database.read(
            lambda connection: messages.waiting_of_server(connection, server_id, now_ms, REROUTE)
        )
        if not rows:
            return
        directory = self._directory.current
        plans = [(row, new_server(directory, row)) for row in rows]
        await self._database.write(lambda connection: reroute(connection, self._ids, plans, server_id, now_ms))
        self._wake.set()

    # ------------------------------------------------------------ leases and nodes

    async def _renew_leases(self) -> None:
        """Keep the leases of all messages in hand. Where that fails, their deadlines pass and nothing more is sent."""
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            jobs = [
                j
                for j in self._jobs.values()
                if not j.lost and j.deadline - self.monotonic() < LEASE_S - HEARTBEAT_S / 2
            ]
            if jobs:
                self._renew(jobs)

    def _renew(self, jobs: list[Job]) -> None:
        deadline = self.monotonic() + LEASE_S
        until_ms = self._clock.now_ms() + int(LEASE_S * 1000)
        rows: list[Row] = []
        owners: list[Job] = []
        for job in jobs:
            for r in job.message.recipients:
                rows.append((RENEW, (until_ms, r.id, r.lease)))
                owners.append(job)
        if not rows:
            return

        def done(error: PosthouseError | None) -> None:
            if error is not None:
                return
            for index in operation.lost:
                owners[index].lost = True
            for job in jobs:
                if not job.lost:
                    job.deadline = deadline

        operation = Append(rows, done)
        self._database.append(operation)

    def contact(self) -> None:
        """The database answered just now (called by the node's heartbeat)."""
        self._last_contact = self.monotonic()

    async def _read_states(self) -> None:
        for state in await self.holding.read():
            lane = self._lanes.get(state.server_id)
            if lane is not None and state.held and state.next_try_ms > self._clock.now_ms():
                self._give_back(lane)

    # ------------------------------------------------------------ what is shown

    def lanes(self) -> Mapping[int, Lane]:
        """The lanes of this node."""
        return self._lanes

    def deliveries_since(self, server_id: int) -> int:
        """How many recipients this process has delivered through a server."""
        lane = self._lanes.get(server_id)
        return lane.delivered if lane else 0


def _has_changed(before: Directory, now: Directory, record: ServerRecord) -> bool:
    """Whether connections to the server would be made otherwise than before."""
    earlier = before.servers.get(record.id)
    return earlier is None or earlier.version != record.version or before.added_pem(earlier) != now.added_pem(record)
