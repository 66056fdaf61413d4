"""The database: one writer with group commit, a few readers. All SQL of the hot path goes through the writer.

A write is either an `Append` - rows for prepared statements, many of which share one commit - or a `Work`, a function that
has a transaction to itself. The writer thread takes whatever waits (up to 256 operations), runs one `executemany` per
statement and one commit, and tells the event loop once per batch. It raises nothing: every operation is answered,
with None or with an error of `errors.py`.

SQLite is opened as WAL with synchronous=FULL, so that a commit is on the disk when it returns. PostgreSQL commits as it
is configured to. The file lock that keeps a second process off a data directory belongs to `app.py`.
"""

import asyncio
import collections
import contextlib
import errno
import os
import queue
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
import structlog
from sqlalchemy import Connection as Connection
from sqlalchemy import Engine, Table, event
from sqlalchemy.engine import URL, make_url

from posthouse.errors import ConfigurationError, PosthouseError, StoreFull, StoreUnavailable

log = structlog.get_logger()
T = TypeVar("T")

# More operations per commit than this make the first ones wait for the last without saving a sync.
BATCH = 256
# How long an outcome waits for a commit that it can share (design.md promise 1: at most 50 ms).
LINGER_S = 0.02
# Rows of one execution on SQLite. 16 columns of 64 rows stay far below its 32,766 parameters.
MANY = 64
# Prepared statements that the driver keeps: each number of rows has its own, for the five statements of the hot path.
PREPARED = 512
# A submission that cannot be committed within this time is answered with a temporary refusal (threat F7).
PATIENCE_S = 3.5
# A write that takes longer is looked into: is the server slow, or has it stopped answering? Looking four times in this
# time and asking for PROBE_S ends within the five seconds of threat F7.
STUCK_S = 2.0
PROBE_S = 2
# However the writer fares, a submission is refused after this time; it is looked for so often.
LATE_S = 4.25
LOOK_S = 0.25
READERS = 4
# PostgreSQL ends a transaction in which nothing was said for so long; shorter than a lease.
IDLE_TRANSACTION_S = 10


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """A prepared statement with `?` for each value, in this order. `fenced`: each row must change exactly one row.

    Each is made once and is equal to itself alone: rows are gathered by it, and hashing its text would cost more than that.
    """

    text: str
    fenced: bool = False
    # PostgreSQL's types of the values, in order: a whole batch travels as arrays in one statement.
    types: tuple[str, ...] = ()


class Append:
    """Rows to be written with the next commit. `done` is called in the event loop, with None or an error.

    `keep`: an outcome. It is never given up: while the database is gone it waits, and is written when it is back.
    `lost`: filled with the indexes of fenced rows that changed nothing: another node got there first.
    """

    __slots__ = ("answered", "done", "in_doubt", "keep", "lost", "queued_at", "rows", "unique")

    def __init__(
        self,
        rows: Sequence[tuple[Statement, tuple[Any, ...]]],
        done: Callable[[PosthouseError | None], None],
        *,
        keep: bool = False,
        unique: int = 0,
    ) -> None:
        self.rows = rows
        self.done = done
        self.keep = keep
        # Identifier of the message row, by which a commit of unknown outcome is looked up; 0 = repeat blindly.
        self.unique = unique
        self.queued_at = time.monotonic()
        self.answered = False
        self.lost: list[int] = []
        # Set where a commit with these rows may have succeeded although the connection broke.
        self.in_doubt = False


class Work:
    """A function with a transaction of its own."""

    __slots__ = ("answered", "error", "finish", "function", "queued_at", "result")

    def __init__(self, function: Callable[[Connection], Any], finish: Callable[["Work"], None]) -> None:
        self.function = function
        self.finish = finish
        self.result: Any = None
        self.error: BaseException | None = None
        self.queued_at = time.monotonic()
        self.answered = False


def insert_into(table: Table) -> Statement:
    """The statement that inserts one row, with a value for each column in the order of the declaration."""
    names = ", ".join(c.name for c in table.columns)
    marks = ", ".join("?" for _ in table.columns)
    return Statement(
        f"INSERT INTO {table.name} ({names}) VALUES ({marks})",  # noqa: S608 - names come from the schema
        types=tuple(_postgres_type(c) for c in table.columns),
    )


def _postgres_type(column: sqlalchemy.Column[Any]) -> str:
    kind = column.type
    if isinstance(kind, sqlalchemy.SmallInteger):
        return "smallint"
    if isinstance(kind, sqlalchemy.BigInteger):
        return "bigint"
    if isinstance(kind, sqlalchemy.Integer):
        return "integer"
    if isinstance(kind, sqlalchemy.LargeBinary):
        return "bytea"
    if isinstance(kind, sqlalchemy.Boolean):
        return "boolean"
    return "text"


def database_url(text: str | None, data: Path) -> URL:
    """The URL that `--database` names, or the SQLite file of the data directory. Raises ConfigurationError."""
    if not text:
        return URL.create("sqlite", database=str(data / "posthouse.db"))
    try:
        url = make_url(text)
    except sqlalchemy.exc.ArgumentError:
        raise ConfigurationError(
            "The database URL cannot be read.", remedy="Write it as postgresql://user:password@host:port/name."
        ) from None
    if url.get_backend_name() == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() == "sqlite":
        return url.set(drivername="sqlite")
    raise ConfigurationError(
        f"Databases of the kind {url.get_backend_name()} are not supported.", remedy="Use SQLite or PostgreSQL."
    )


class Database:
    """One database, SQLite or PostgreSQL. `start` opens it and `close` writes what still waits."""

    def __init__(self, url: URL, *, on_full: Callable[[], bool] | None = None) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        # Called when no space is left; True where space was made (the reserve file), so that the batch is tried again.
        self._on_full = on_full
        self._writer_engine = self._engine(writer=True)
        self._reader_engine = self._engine(writer=False)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-read")
        self._queue: queue.SimpleQueue[list[Append | Work] | None] = queue.SimpleQueue()
        self._collected: list[Append | Work] = []
        # What will pass on what was collected: a timer for outcomes, the next turn of the loop for all else.
        self._passing: asyncio.TimerHandle | None = None
        self._passes_soon = False
        # Submissions that are not answered yet, oldest first; looked at in the event loop alone.
        self._unanswered: collections.deque[Append] = collections.deque()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connection: Connection | None = None
        # Since when no write succeeded (monotonic); None while all is well.
        self.down_since: float | None = None
        self._is_full = False
        self._closed = False
        # Since when the writer waits for the server (monotonic); None while it does not.
        self._busy_since: float | None = None
        self._probing = False
        self.commits = 0
        self.operations = 0

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Open the connection of the writer and start its thread. Must be called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._connection = self._connect()
        self._thread = threading.Thread(target=self._write_forever, name="store-write", daemon=True)
        self._thread.start()
        self._loop.call_later(LOOK_S, self._refuse_late)
        if not self.is_sqlite:
            self._loop.call_later(STUCK_S / 4, self._look_after_writer)

    async def close(self) -> None:
        """Write what waits, then close. Operations that cannot be written are answered with StoreUnavailable."""
        if self._thread is not None:
            self._pass_on()
            self._closed = True
            self._queue.put(None)
            await asyncio.get_running_loop().run_in_executor(None, self._thread.join, 10.0)
            # Answers that the writer has handed to the loop come before whatever the caller does next.
            await asyncio.sleep(0)
        self.dispose()

    def dispose(self) -> None:
        """Drop all connections."""
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._writer_engine.dispose()
        self._reader_engine.dispose()

    # ------------------------------------------------------------ use

    def append(self, operation: Append) -> None:
        """Queue rows for the next commit. Called in the event loop. What comes in one turn of the loop travels together,
        so that the writer is woken once for it. An outcome, for which nobody waits, goes along with the next submission,
        or after LINGER_S."""
        assert self._loop is not None
        self._collected.append(operation)
        if operation.keep:
            if self._passing is None:
                self._passing = self._loop.call_later(LINGER_S, self._pass_on)
            return
        self._unanswered.append(operation)
        if not self._passes_soon:
            self._passes_soon = True
            self._loop.call_soon(self._pass_on)

    def _pass_on(self) -> None:
        if self._passing is not None:
            self._passing.cancel()
            self._passing = None
        self._passes_soon = False
        collected, self._collected = self._collected, []
        if self._closed:
            _deliver_answers([(operation, StoreUnavailable("The database is closed.")) for operation in collected])
        elif collected:
            self._queue.put(collected)

    async def write(self, function: Callable[[Connection], T]) -> T:
        """Run `function` in a transaction of its own; it is durable on return. Raises what the function raises, and
        StoreUnavailable or StoreFull."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def finish(work: Work) -> None:
            if future.done():
                return
            if work.error is not None:
                future.set_exception(work.error)
            else:
                future.set_result(work.result)

        # In the order in which they were asked for.
        self._collected.append(Work(function, finish))
        self._pass_on()
        return await future

    async def read(self, function: Callable[[Connection], T]) -> T:
        """Run `function` in a read transaction on a connection of its own. Raises StoreUnavailable."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, function)

    def read_now(self, function: Callable[[Connection], T]) -> T:
        """Like `read`, blocking: for threads and for commands without a loop."""
        try:
            with self._reader_engine.connect() as connection:
                return function(connection)
        except sqlalchemy.exc.DBAPIError as error:
            raise _translated(error.orig or error) from None

    def write_now(self, function: Callable[[Connection], T]) -> T:
        """Like `write`, blocking: before the writer thread runs, and for commands without a loop."""
        try:
            with self._writer_engine.begin() as connection:
                return function(connection)
        except sqlalchemy.exc.DBAPIError as error:
            raise _translated(error.orig or error) from None

    # ------------------------------------------------------------ connections

    def _engine(self, *, writer: bool) -> Engine:
        if self.is_sqlite:
            engine = sqlalchemy.create_engine(
                self.url,
                poolclass=sqlalchemy.pool.QueuePool,
                pool_size=READERS,
                max_overflow=4,
                connect_args={"check_same_thread": False, "timeout": 10.0, "cached_statements": PREPARED},
            )
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin_immediate if writer else _begin_deferred)
            return engine
        engine = sqlalchemy.create_engine(
            self.url, pool_size=READERS, max_overflow=4, pool_pre_ping=True,
            connect_args={"connect_timeout": 3, "application_name": "posthouse", "keepalives_idle": 10,
                          "tcp_user_timeout": 5000},
        )  # fmt: skip
        event.listen(engine, "connect", _prepare_postgres)
        return engine

    def _connect(self) -> Connection:
        try:
            return self._writer_engine.connect()
        except sqlalchemy.exc.DBAPIError as error:
            raise _translated(error.orig or error) from None

    # ------------------------------------------------------------ a server that has stopped answering

    def _look_after_writer(self) -> None:
        """Runs in the event loop, several times a second. A frozen PostgreSQL keeps its connections open and says
        nothing: nobody would ever be answered. So it is asked on a connection of its own, and where that is not answered
        either, the writer's is cut, which the writer takes as any lost connection."""
        if self._closed or self._loop is None:
            return
        since = self._busy_since
        if since is not None and not self._probing and time.monotonic() - since > STUCK_S:
            self._probing = True
            threading.Thread(target=self._cut_where_silent, args=(since,), name="store-probe", daemon=True).start()
        self._loop.call_later(STUCK_S / 4, self._look_after_writer)

    def _cut_where_silent(self, since: float) -> None:
        engine = sqlalchemy.create_engine(
            self.url, poolclass=sqlalchemy.pool.NullPool, connect_args={"connect_timeout": PROBE_S}
        )
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql("SELECT 1")
        except sqlalchemy.exc.DBAPIError:
            if self._busy_since == since:
                self._cut()
        finally:
            self._probing = False

    def _cut(self) -> None:
        log.error("store: the database has stopped answering; its connection is given up")
        with contextlib.suppress(Exception):  # the connection may be gone by now
            assert self._connection is not None
            number = self._connection.connection.driver_connection.pgconn.socket  # type: ignore[union-attr]
            with socket.socket(fileno=os.dup(number)) as shared:
                shared.shutdown(socket.SHUT_RDWR)

    def _refuse_late(self) -> None:
        """Runs in the event loop, several times a second: refuse what has waited too long, whatever the writer hangs in
        (a frozen server, a connection that does not come about, a disk). What is committed after all is one of those
        messages that may arrive though they were not acknowledged; it is not in hand here, and its lease runs out."""
        if self._closed or self._loop is None:
            return
        now = time.monotonic()
        for operation in self._unanswered:
            if now - operation.queued_at < LATE_S:
                break
            if not operation.answered:
                self.down_since = self.down_since if self.down_since is not None else now
                _deliver_answers([(operation, StoreUnavailable("The database does not answer."))])
        self._forget_answered()
        self._loop.call_later(LOOK_S, self._refuse_late)

    def _forget_answered(self) -> None:
        unanswered = self._unanswered
        while unanswered and unanswered[0].answered:
            unanswered.popleft()

    def _deliver(self, answers: list[tuple[Append | Work, PosthouseError | None]]) -> None:
        _deliver_answers(answers)
        self._forget_answered()

    # ------------------------------------------------------------ the writer thread

    def _write_forever(self) -> None:
        waiting: collections.deque[Append | Work] = collections.deque()
        stopping = False
        while not stopping or waiting:
            stopping = self._take(waiting, stopping) or stopping
            if not waiting:
                continue
            # Those that were refused meanwhile are left out.
            batch = [operation for operation in _next_batch(waiting) if not operation.answered]
            if not batch:
                continue
            answers: list[tuple[Append | Work, PosthouseError | None]] = []
            again = self._run(batch, answers)
            if again:
                waiting.extendleft(reversed(again))
                stopping = self._take(waiting, stopping, limit=None) or stopping
                self._give_up(waiting, answers, everything=stopping)
            self._answer(answers)
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.close()

    def _take(self, waiting: collections.deque[Append | Work], stopping: bool, limit: int | None = BATCH) -> bool:
        """Move what is queued to `waiting`; block only when there is nothing to do. True: the end was asked for."""
        if not waiting and not stopping:
            first = self._queue.get()
            if first is None:
                return True
            waiting.extend(first)
        while limit is None or len(waiting) < limit:
            try:
                more = self._queue.get_nowait()
            except queue.Empty:
                return False
            if more is None:
                return True
            waiting.extend(more)
        return False

    def _give_up(
        self,
        waiting: collections.deque[Append | Work],
        answers: list[tuple[Append | Work, PosthouseError | None]],
        *,
        everything: bool,
    ) -> None:
        """While the database is gone or full: answer what cannot wait behind what is tried again and again."""
        kept: list[Append | Work] = []
        for operation in waiting:
            if everything or not (self._is_full or self._may_wait(operation)):
                answers.append((operation, StoreUnavailable("The database does not answer.")))
            else:
                kept.append(operation)
        if self._is_full:
            # A work may need no room, or make some (pruning): it is not kept waiting by an outcome that does not fit.
            works = [operation for operation in kept if isinstance(operation, Work)]
            kept = works + [operation for operation in kept if isinstance(operation, Append)]
        waiting.clear()
        waiting.extend(kept)

    def _may_wait(self, operation: Append | Work) -> bool:
        """Whether an operation stays queued while the database is gone. Outcomes always do; of the rest what came when
        it has been gone for long is not made to wait for the same again."""
        if isinstance(operation, Append) and operation.keep:
            return True
        now = time.monotonic()
        gone_since = self.down_since if self.down_since is not None else now
        return now - min(operation.queued_at, gone_since) < PATIENCE_S

    def _run(
        self, batch: list[Append | Work], answers: list[tuple[Append | Work, PosthouseError | None]]
    ) -> list[Append | Work]:
        """Write one batch and fill `answers`. Returns what has to be tried again later."""
        self._busy_since = time.monotonic()
        try:
            self._execute(batch)
        except Exception as error:  # every kind is answered
            self._busy_since = None
            return self._trouble(batch, error, answers)
        self._busy_since = None
        self.down_since = None
        self.commits += 1
        self.operations += len(batch)
        answers.extend((operation, None) for operation in batch)
        return []

    def _execute(self, batch: list[Append | Work]) -> None:
        if self._connection is None or self._connection.invalidated or self._connection.closed:
            self._connection = self._connect()
            self._forget_committed(batch)
        connection = self._connection
        first = batch[0]
        with connection.begin():
            if isinstance(first, Work):
                first.result = first.function(connection)
            else:
                self._write_rows(connection, batch)

    def _write_rows(self, connection: Connection, batch: Iterable[Append | Work]) -> None:
        groups: dict[Statement, list[tuple[Any, ...]]] = {}
        for operation in batch:
            if isinstance(operation, Append):
                for statement, row in operation.rows:
                    groups.setdefault(statement, []).append(row)
        cursor = connection.connection.cursor()
        try:
            for statement, rows in groups.items():
                changed = self._execute_many(cursor, statement, rows)
                if statement.fenced and changed != len(rows):
                    self._find_lost(cursor, statement, batch)
        finally:
            cursor.close()

    def _execute_many(self, cursor: Any, statement: Statement, rows: list[tuple[Any, ...]]) -> int:
        """Run the statement for all rows, many rows at a time. Returns how many rows it changed."""
        if self.is_sqlite:
            # The driver lets go of the interpreter's lock for each execution and has to win it back from a busy event
            # loop: one execution for all rows is what makes the writer quick, not the SQL.
            changed = 0
            for start in range(0, len(rows), MANY):
                part = rows[start : start + MANY]
                cursor.execute(_many(statement, len(part)), [v for row in part for v in row])
                changed += cursor.rowcount
            return changed
        # One statement with an array per column is several times faster than a statement per row.
        columns = [list(column) for column in zip(*rows, strict=True)]
        # Octets travel as they are, not as twice as many hexadecimal digits; a column without any has no type to say.
        binary = tuple(
            t == "bytea" and any(v is not None for v in c) for t, c in zip(statement.types, columns, strict=True)
        )
        cursor.execute(_unnested(statement, binary), columns)
        return int(cursor.rowcount)

    def _find_lost(self, cursor: Any, statement: Statement, batch: Iterable[Append | Work]) -> None:
        """Some fenced rows changed nothing. Repeating them one by one shows which: those written change again."""
        text = statement.text if self.is_sqlite else statement.text.replace("?", "%s")
        for operation in batch:
            if isinstance(operation, Append):
                for index, (each, row) in enumerate(operation.rows):
                    if each is statement:
                        cursor.execute(text, row)
                        if cursor.rowcount == 0:
                            operation.lost.append(index)

    def _forget_committed(self, batch: list[Append | Work]) -> None:
        """After a lost connection: leave out what an earlier commit of unknown outcome has written after all."""
        assert self._connection is not None
        for operation in batch:
            if isinstance(operation, Append) and operation.unique and operation.rows:
                with self._connection.begin():
                    found = self._connection.exec_driver_sql(
                        f"SELECT 1 FROM message WHERE id = {int(operation.unique)}"  # noqa: S608 - a number
                    ).first()
                if found:
                    operation.rows = ()

    def _trouble(
        self,
        batch: list[Append | Work],
        error: Exception,
        answers: list[tuple[Append | Work, PosthouseError | None]],
    ) -> list[Append | Work]:
        """Sort out a failed batch: whose fault is it, and what is tried again."""
        if isinstance(batch[0], Work) and not _is_database_error(error):
            batch[0].error = error
            answers.append((batch[0], None))
            return []
        cause = getattr(error, "orig", None) or error
        fault = _translated(cause)
        if isinstance(fault, StoreFull) and self._on_full is not None and self._on_full():
            return batch
        if isinstance(fault, StoreFull | StoreUnavailable):
            return self._postpone(batch, fault, answers)
        if len(batch) > 1:
            # One of them is at fault: alone, each gets its own answer.
            for index, operation in enumerate(batch):
                again = self._run([operation], answers)
                if again:
                    # The database went away meanwhile.
                    return again + batch[index + 1 :]
            return []
        if _was_written(batch[0], cause):
            answers.append((batch[0], None))
            return []
        log.error("store: a write was refused", error=type(cause).__name__, detail=str(cause)[:300])
        answers.append((batch[0], fault))
        return []

    def _postpone(
        self,
        batch: list[Append | Work],
        fault: PosthouseError,
        answers: list[tuple[Append | Work, PosthouseError | None]],
    ) -> list[Append | Work]:
        """The database is gone or full: give up what has waited too long, keep outcomes, wait a little."""
        now = time.monotonic()
        if self.down_since is None:
            self.down_since = now
            log.error("store: cannot write", fault=fault.code, detail=fault.detail)
        self._is_full = isinstance(fault, StoreFull)
        again: list[Append | Work] = []
        for operation in batch:
            keep = isinstance(operation, Append) and operation.keep
            if keep or (not self._is_full and self._may_wait(operation)):
                again.append(operation)
                if isinstance(operation, Append) and not self._is_full:
                    operation.in_doubt = True
            else:
                answers.append((operation, fault))
        if not self._is_full:
            self._drop_connection()
        if again:
            time.sleep(0.25)
        return again

    def _drop_connection(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(Exception):
                self._connection.invalidate()
            with contextlib.suppress(Exception):
                self._connection.close()
        self._connection = None

    def _answer(self, answers: list[tuple[Append | Work, PosthouseError | None]]) -> None:
        if not answers or self._loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._deliver, answers)


def _deliver_answers(answers: list[tuple[Append | Work, PosthouseError | None]]) -> None:
    for operation, fault in answers:
        if operation.answered:
            continue
        operation.answered = True
        try:
            if isinstance(operation, Append):
                operation.done(fault)
            else:
                if fault is not None:
                    operation.error = fault
                operation.finish(operation)
        except Exception:
            log.exception("store: an answer could not be taken")


def _next_batch(waiting: collections.deque[Append | Work]) -> list[Append | Work]:
    """What shares the next commit: one Work alone, or the Appends up to the next Work."""
    batch = [waiting.popleft()]
    if isinstance(batch[0], Append):
        while waiting and len(batch) < BATCH and isinstance(waiting[0], Append):
            batch.append(waiting.popleft())
    return batch


@cache
def _many(statement: Statement, size: int) -> str:
    """The statement for `size` rows at once (SQLite)."""
    if size == 1:
        return statement.text
    row = f"({', '.join('?' for _ in statement.types)})"
    rows = ", ".join([row] * size)
    if statement.text.startswith("INSERT"):
        return f"{statement.text.partition(' VALUES ')[0]} VALUES {rows}"
    # SQLite calls the columns of VALUES column1, column2 and so on. A WITH in front would hide the count of changed rows.
    update, where, _ = _with_names(statement, "column")
    return f"{update} FROM (VALUES {rows}) AS v WHERE {where}"


@cache
def _unnested(statement: Statement, binary: tuple[bool, ...]) -> str:
    """The statement with one array per column in place of one value (PostgreSQL); `binary` columns in binary form."""
    arrays = ", ".join(f"{'%b' if b else '%s'}::{t}[]" for t, b in zip(statement.types, binary, strict=True))
    if statement.text.startswith("INSERT"):
        return f"{statement.text.partition(' VALUES ')[0]} SELECT * FROM unnest({arrays})"  # noqa: S608
    update, where, columns = _with_names(statement, "v")
    return f"{update} FROM unnest({arrays}) AS v({columns}) WHERE {where}"


def _with_names(statement: Statement, name: str) -> tuple[str, str, str]:
    """UPDATE t SET a = ? WHERE id = ?, cut at WHERE, with the names of v's columns in place of the marks, in order."""
    parts = statement.text.split("?")
    named = "".join(p + (f"v.{name}{i + 1}" if i < len(parts) - 1 else "") for i, p in enumerate(parts))
    update, _, where = named.partition(" WHERE ")
    return update, where, ", ".join(f"{name}{i + 1}" for i in range(len(statement.types)))


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not open transactions of its own: BEGIN IMMEDIATE is ours (busy_timeout is ignored on an upgrade).
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "busy_timeout=10000",
        "temp_store=MEMORY",
        "cache_size=-16384",
        "journal_size_limit=67108864",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _prepare_postgres(connection: Any, _record: Any) -> None:
    """A node that is frozen within a transaction would keep its rows from those who take its work over (threat F8)."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = '{IDLE_TRANSACTION_S}s'")
    connection.commit()


def _begin_immediate(connection: Connection) -> None:
    # Past SQLAlchemy's machinery, which would cost more than the statement; once per commit.
    connection.connection.cursor().execute("BEGIN IMMEDIATE")


def _begin_deferred(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def _was_written(operation: Append | Work, cause: BaseException) -> bool:
    """Whether a refused outcome meets its own rows: their identifiers are nobody else's, so an earlier commit of unknown
    outcome has written them. Submissions are looked up instead, because they may meet another's Idempotency-Key."""
    duplicate = isinstance(cause, sqlite3.IntegrityError) or type(cause).__name__ == "UniqueViolation"
    return isinstance(operation, Append) and operation.keep and operation.in_doubt and duplicate


def _is_database_error(error: BaseException) -> bool:
    return isinstance(error, sqlalchemy.exc.DBAPIError | sqlite3.Error | OSError | StoreUnavailable) or type(
        error
    ).__module__.startswith("psycopg")


def _translated(error: BaseException) -> PosthouseError:
    """The error of a driver, as ours."""
    if isinstance(error, PosthouseError):
        return error
    text = str(error).lower()
    name = type(error).__name__
    if "disk is full" in text or "no space left" in text or name == "DiskFull":
        return StoreFull("No space is left for the database.", remedy="Free space where the data lies.")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull("No space is left for the data.", remedy="Free space where the data lies.")
    if isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_ERROR:
        return PosthouseError("The database refused a statement.")  # a wrong statement, not an absent database
    if isinstance(error, sqlite3.OperationalError | OSError):
        return StoreUnavailable(f"The database cannot be used: {text[:200]}.")
    if name in _POSTGRES_AWAY or (type(error).__module__.startswith("psycopg") and "connection" in text):
        return StoreUnavailable("The database does not answer.")
    return PosthouseError(f"The database refused a statement ({name}).")


_POSTGRES_AWAY = frozenset(
    {
        "OperationalError", "InterfaceError", "AdminShutdown", "CrashShutdown", "CannotConnectNow", "ConnectionTimeout",
        "ReadOnlySqlTransaction", "TooManyConnections", "SerializationFailure", "DeadlockDetected", "QueryCanceled",
        "IoError",
    }
)  # fmt: skip
