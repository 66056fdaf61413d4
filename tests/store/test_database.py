"""The writer: group commit, fencing, who answers for what, a full disk, and a database that goes and comes back."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Connection
from sqlalchemy.engine import URL

from posthouse.errors import ConfigurationError, NotFound, PosthouseError, StoreFull, StoreUnavailable
from posthouse.store import database as writer
from posthouse.store import schema
from posthouse.store.database import Append, Database, Statement, database_url, insert_into
from posthouse.store.messages import INSERT_EVENT, INSERT_MESSAGE, INSERT_RECIPIENT, SETTLE
from posthouse.store.migrate import upgrade
from tests.support.databases import opened
from tests.support.postgres import PostgresServer

INSERT = insert_into(schema.setting)
Row = tuple[Statement, tuple[Any, ...]]


class Answer:
    """Gathers what one operation was answered."""

    def __init__(self, database: Database, rows: list[Row], **options: Any) -> None:
        self.future: asyncio.Future[PosthouseError | None] = asyncio.get_running_loop().create_future()
        self.operation = Append(rows, self.future.set_result, **options)
        database.append(self.operation)

    async def fault(self, timeout_s: float = 30.0) -> PosthouseError | None:
        return await asyncio.wait_for(asyncio.shield(self.future), timeout_s)


@contextlib.contextmanager
def held(database: Database) -> Iterator[None]:
    """Let the writer wait, so that everything that is queued meanwhile shares the next commit."""
    loop = asyncio.get_running_loop()
    begun: Future[None] = Future()
    release = threading.Event()

    def wait(_connection: Connection) -> None:
        begun.set_result(None)
        release.wait(20)

    task = loop.create_task(database.write(wait))
    try:
        yield
    finally:
        # The writer has taken it by the time that the loop comes to these operations; they are queued behind it.
        release.set()
        task.add_done_callback(lambda done: done.exception())


async def settings(database: Database) -> dict[str, str]:
    table = schema.setting
    return await database.read(lambda c: {row.name: row.value for row in c.execute(sqlalchemy.select(table))})


def row_of(table: sqlalchemy.Table, **given: Any) -> tuple[Any, ...]:
    """A row for `insert_into(table)`: what is not given is empty, or 0."""
    empty = [None if c.nullable else "" if isinstance(c.type, sqlalchemy.Text) else 0 for c in table.columns]
    return tuple(given.get(column.name, value) for column, value in zip(table.columns, empty, strict=True))


def message_row(number: int) -> tuple[Any, ...]:
    return row_of(schema.message, id=number)


def recipient_row(number: int, *, lease: int) -> tuple[Any, ...]:
    return row_of(schema.recipient, id=number, state=2, lease=lease)


# ---------------------------------------------------------------- group commit


async def test_what_waits_shares_a_commit(database: Database) -> None:
    await database.write(lambda c: None)
    before = database.commits
    with held(database):
        await asyncio.sleep(0)
        answers = [Answer(database, [(INSERT, (f"n{i}", str(i)))]) for i in range(200)]
    assert [await answer.fault() for answer in answers] == [None] * 200
    # The one that held it, and one for all of them.
    assert database.commits == before + 2
    assert await settings(database) == {f"n{i}": str(i) for i in range(200)}


async def test_no_commit_holds_more_than_a_batch(database: Database) -> None:
    await database.write(lambda c: None)
    before = database.commits
    with held(database):
        await asyncio.sleep(0)
        answers = [Answer(database, [(INSERT, (f"n{i}", ""))]) for i in range(2 * writer.BATCH)]
    assert [await answer.fault() for answer in answers] == [None] * len(answers)
    assert before + 3 <= database.commits <= before + 4


async def test_operations_keep_their_order(database: Database) -> None:
    """A work sees what was queued before it, and not what was queued behind it."""

    def read(connection: Connection) -> list[str]:
        return list(connection.execute(sqlalchemy.select(schema.setting.c.name).order_by("name")).scalars())

    with held(database):
        await asyncio.sleep(0)
        first = Answer(database, [(INSERT, ("a", ""))])
        seen = asyncio.create_task(database.write(read))
        await asyncio.sleep(0)
        second = Answer(database, [(INSERT, ("b", ""))])
    assert await seen == ["a"]
    assert (await first.fault(), await second.fault()) == (None, None)


async def test_answers_come_in_the_event_loop_after_the_commit(database: Database, store_url: URL) -> None:
    loop = asyncio.get_running_loop()
    seen: asyncio.Future[tuple[bool, int]] = loop.create_future()
    other = Database(store_url)

    def done(fault: PosthouseError | None) -> None:
        assert fault is None
        count = other.read_now(lambda c: len(c.execute(sqlalchemy.select(schema.setting)).all()))
        seen.set_result((asyncio.get_running_loop() is loop, count))

    try:
        database.append(Append([(INSERT, ("a", "1"))], done))
        assert await asyncio.wait_for(seen, 10) == (True, 1)
    finally:
        other.dispose()


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 200])
async def test_every_number_of_rows_is_written(database: Database, count: int) -> None:
    rows = [(INSERT, (f"n{i}", f"v{i}")) for i in range(count)]
    assert await Answer(database, rows).fault() is None
    assert await settings(database) == {f"n{i}": f"v{i}" for i in range(count)}


async def test_values_of_every_kind_come_back_as_they_were(database: Database) -> None:
    table = schema.credential
    text, octets = "ä\u2028'\"%s?;--\\", bytes(range(256))
    rows: list[Row] = [
        (insert_into(table), (n, "token", 2**62, 0, text, "", f"h{n}", "k", octets, 5, None, 2**40)) for n in (1, 2, 3)
    ]
    assert await Answer(database, rows).fault() is None
    found = await database.read(lambda c: c.execute(sqlalchemy.select(table).order_by(table.c.id)).all())
    assert [tuple(row) for row in found] == [row for _, row in rows]


# ---------------------------------------------------------------- who answers for what


async def test_a_refused_row_is_answered_to_its_owner_alone(database: Database) -> None:
    assert await Answer(database, [(INSERT, ("taken", "first"))]).fault() is None
    with held(database):
        await asyncio.sleep(0)
        answers = [Answer(database, [(INSERT, (name, "x"))]) for name in ("a", "taken", "b", "c")]
    faults = [await answer.fault() for answer in answers]
    assert [fault is None for fault in faults] == [True, False, True, True]
    assert isinstance(faults[1], PosthouseError)
    assert not isinstance(faults[1], StoreUnavailable | StoreFull)
    assert await settings(database) == {"taken": "first", "a": "x", "b": "x", "c": "x"}


async def test_an_operation_is_written_whole_or_not_at_all(database: Database) -> None:
    assert await Answer(database, [(INSERT, ("taken", "first"))]).fault() is None
    assert await Answer(database, [(INSERT, ("a", "")), (INSERT, ("taken", ""))]).fault() is not None
    assert await settings(database) == {"taken": "first"}


async def test_a_refusal_never_repeats_what_was_sent(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    assert await Answer(database, [(INSERT, ("a", "1"))]).fault() is None
    fault = await Answer(database, [(INSERT, ("a", "kanarienvogel"))]).fault()
    assert "kanarienvogel" not in f"{fault}{fault!r}{caplog.text}"


async def test_fenced_rows_that_changed_nothing_are_named(database: Database) -> None:
    """Outcomes of many attempts at once; two of them come under a lease that another node has taken over."""
    recipients = [recipient_row(number, lease=number % 7) for number in range(100)]
    assert await Answer(database, [(INSERT_RECIPIENT, row) for row in recipients]).fault() is None

    def outcome(number: int, lease: int) -> Row:
        return SETTLE, (10, 0, 0, 1, 0, 5, "250 OK", number, lease)

    with held(database):
        await asyncio.sleep(0)
        mine = Answer(database, [outcome(number, number % 7) for number in range(50)])
        gone = Answer(database, [outcome(98, 98 % 7), outcome(99, 99 % 7 - 1), outcome(1000, 0)])
        also = Answer(database, [outcome(97, 97 % 7)])
    assert [await each.fault() for each in (mine, gone, also)] == [None] * 3
    assert (mine.operation.lost, gone.operation.lost, also.operation.lost) == ([], [1, 2], [])
    table = schema.recipient
    found = await database.read(lambda c: {row.id: row.state for row in c.execute(sqlalchemy.select(table))})
    assert {number for number, state in found.items() if state == 10} == {*range(50), 97, 98}


async def test_with_one_fenced_row_alone_it_is_the_same(database: Database) -> None:
    assert await Answer(database, [(INSERT_RECIPIENT, recipient_row(1, lease=3))]).fault() is None
    for lease, lost in ((2, [0]), (3, []), (4, [0])):
        answer = Answer(database, [(SETTLE, (10, 0, 0, 1, 0, 5, "250 OK", 1, lease))])
        assert await answer.fault() is None
        assert answer.operation.lost == lost


# ---------------------------------------------------------------- works


async def test_a_work_raises_what_its_function_raises_and_leaves_nothing(database: Database) -> None:
    def work(connection: Connection) -> None:
        connection.execute(sqlalchemy.insert(schema.setting).values(name="a", value=""))
        raise NotFound("There is no such thing.")

    with pytest.raises(NotFound):
        await database.write(work)
    assert await settings(database) == {}
    assert await database.write(lambda c: 5) == 5


@pytest.mark.parametrize("error", [KeyError("a bug"), ValueError("a bug"), AssertionError()])
async def test_a_bug_in_a_work_is_its_callers_and_the_writer_goes_on(database: Database, error: Exception) -> None:
    def work(_connection: Connection) -> None:
        raise error

    with pytest.raises(type(error)):
        await database.write(work)
    assert await Answer(database, [(INSERT, ("a", ""))]).fault() is None


async def test_a_wrong_statement_is_refused_at_once_and_does_not_look_like_an_absent_database(
    database: Database,
) -> None:
    began = time.monotonic()
    with pytest.raises(PosthouseError) as caught:
        await database.write(lambda c: c.exec_driver_sql("SELECT nothing FROM nowhere"))
    assert not isinstance(caught.value, StoreUnavailable)
    assert time.monotonic() - began < 2
    assert database.down_since is None


async def test_a_work_that_nobody_waits_for_any_more_harms_nobody(database: Database) -> None:
    with held(database):
        await asyncio.sleep(0)
        task = asyncio.create_task(database.write(lambda c: 1))
        await asyncio.sleep(0)
        task.cancel()
    assert await database.write(lambda c: 2) == 2


# ---------------------------------------------------------------- opening and closing


async def test_closing_writes_what_waits(store_url: URL) -> None:
    async with opened(store_url) as database:
        with held(database):
            await asyncio.sleep(0)
            answers = [Answer(database, [(INSERT, (f"n{i}", ""))]) for i in range(600)]
    assert [answer.future.result() for answer in answers] == [None] * 600
    async with opened(store_url) as database:
        assert len(await settings(database)) == 600


async def test_after_closing_everything_is_refused_and_nothing_hangs(store_url: URL) -> None:
    async with opened(store_url) as database:
        pass
    assert isinstance(await Answer(database, [(INSERT, ("a", ""))]).fault(5), StoreUnavailable)
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(database.write(lambda c: None), 5)


def test_urls_are_read_or_refused_without_repeating_them(tmp_path: Path) -> None:
    assert database_url(None, tmp_path).database == str(tmp_path / "posthouse.db")
    assert database_url("postgresql://u:p@h/n", tmp_path).drivername == "postgresql+psycopg"
    for text in ("mysql://u:kanarienvogel@h/n", "kanarienvogel", "://kanarienvogel"):
        with pytest.raises(ConfigurationError) as caught:
            database_url(text, tmp_path)
        assert "kanarienvogel" not in str(caught.value)


async def test_sqlite_syncs_each_commit(tmp_path: Path) -> None:
    url = database_url(None, tmp_path)
    upgrade(url)
    async with opened(url) as database:

        def pragmas(connection: Connection) -> list[Any]:
            return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")]

        # FULL is 2: a commit is on the disk when it returns.
        assert await database.write(pragmas) == ["wal", 2]


# ---------------------------------------------------------------- no space


def limit_pages(connection: Connection, spare: int) -> None:
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
    connection.exec_driver_sql(f"PRAGMA max_page_count = {int(pages or 0) + spare}")


async def test_a_full_disk_refuses_submissions_and_keeps_outcomes(tmp_path: Path) -> None:
    url = database_url(None, tmp_path)
    upgrade(url)
    async with opened(url) as database:
        await database.write(lambda c: limit_pages(c, 0))
        large = "x" * 200_000
        submission = Answer(database, [(INSERT, ("submission", large))])
        assert isinstance(await submission.fault(), StoreFull)
        outcome = Answer(database, [(INSERT, ("outcome", large))], keep=True)
        with pytest.raises(StoreFull):
            await database.write(lambda c: c.execute(sqlalchemy.insert(schema.setting).values(name="w", value=large)))
        assert not outcome.future.done()
        assert database.down_since is not None
        # Small ones still find room in pages that are there.
        await database.write(lambda c: limit_pages(c, 1000))
        assert await outcome.fault() is None
        assert await Answer(database, [(INSERT, ("later", large))]).fault() is None
        assert set(await settings(database)) == {"outcome", "later"}
        assert database.down_since is None


async def test_the_reserve_is_given_up_for_what_is_at_work(tmp_path: Path) -> None:
    url = database_url(None, tmp_path)
    upgrade(url)
    asked = 0

    def give_up() -> bool:
        nonlocal asked
        asked += 1
        connection = database._connection
        assert connection is not None
        connection.connection.cursor().execute("PRAGMA max_page_count = 100000")
        return asked == 1

    database = Database(url, on_full=give_up)
    database.start()
    try:
        await database.write(lambda c: limit_pages(c, 0))
        assert await Answer(database, [(INSERT, ("a", "x" * 200_000))]).fault() is None
        assert asked == 1
    finally:
        await database.close()


# ---------------------------------------------------------------- PostgreSQL goes away


class Cutter:
    """A TCP relay in front of PostgreSQL that cuts a connection where the test says.

    `after`: the server got the octets, and its reply is thrown away. `before`: the server never gets them.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self.after: Callable[[bytes], bool] = lambda _octets: False
        self.before: Callable[[bytes], bool] = lambda _octets: False
        self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = [self._listener]
        self._start(self._accept)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
                self._sockets += [client, server]
                muted = threading.Event()
                self._start(self._forward, client, server, muted)
                self._start(self._back, server, client, muted)

    def _forward(self, client: socket.socket, server: socket.socket, muted: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while octets := client.recv(65536):
                if self.before(octets):
                    self.cuts += 1
                    break
                if self.after(octets):
                    self.cuts += 1
                    muted.set()
                    server.sendall(octets)
                    # Until it is idle again, which is after the commit.
                    server.settimeout(5)
                    return
                server.sendall(octets)
        for each in (server, client):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _back(self, server: socket.socket, client: socket.socket, muted: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while octets := server.recv(65536):
                if muted.is_set():
                    break
                client.sendall(octets)
        for each in (server, client):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def cutter(postgres_url: URL) -> Iterator[Cutter]:
    """Give a relay in front of the test's PostgreSQL."""
    assert postgres_url.port is not None
    relay = Cutter(postgres_url.port)
    yield relay
    relay.close()


@pytest.mark.postgres
@pytest.mark.parametrize("reached", [True, False], ids=["committed", "not committed"])
async def test_a_commit_of_unknown_outcome_is_looked_up(postgres_url: URL, cutter: Cutter, reached: bool) -> None:
    """The reply to COMMIT is lost: whether it had happened or not, the message is there once."""
    once = iter([True])

    def is_commit(octets: bytes) -> bool:
        return b"COMMIT" in octets and next(once, False)

    async with opened(postgres_url.set(port=cutter.port)) as database:
        assert await Answer(database, [(INSERT, ("before", ""))]).fault() is None
        setattr(cutter, "after" if reached else "before", is_commit)
        rows: list[Row] = [(INSERT_MESSAGE, message_row(77)), (INSERT, ("beside", "1"))]
        assert await Answer(database, rows, unique=77).fault() is None
        assert cutter.cuts == 1
        count = await database.read(lambda c: c.execute(sqlalchemy.select(schema.message.c.id)).scalars().all())
        assert list(count) == [77]
        assert (await settings(database))["beside"] == "1"


@pytest.mark.postgres
@pytest.mark.parametrize("reached", [True, False], ids=["committed", "not committed"])
async def test_an_outcome_whose_commit_is_in_doubt_is_recorded_once(
    postgres_url: URL, cutter: Cutter, reached: bool
) -> None:
    once = iter([True])

    def is_commit(octets: bytes) -> bool:
        return b"COMMIT" in octets and next(once, False)

    async with opened(postgres_url.set(port=cutter.port)) as database:
        assert await Answer(database, [(INSERT_RECIPIENT, recipient_row(1, lease=3))]).fault() is None
        setattr(cutter, "after" if reached else "before", is_commit)
        rows: list[Row] = [
            (SETTLE, (10, 0, 0, 1, 0, 5, "250 OK", 1, 3)),
            (INSERT_EVENT, row_of(schema.event, id=5, message_id=1)),
        ]
        answer = Answer(database, rows, keep=True)
        assert await answer.fault() is None
        assert (cutter.cuts, answer.operation.lost) == (1, [])
        events = await database.read(lambda c: c.execute(sqlalchemy.select(schema.event.c.id)).scalars().all())
        assert list(events) == [5]
        # Without doubt about an earlier commit the same is a fault.
        assert await Answer(database, rows, keep=True).fault() is not None


@pytest.mark.postgres
async def test_a_connection_lost_while_a_batch_is_sorted_out_leaves_nobody_without_an_answer(
    postgres_url: URL, cutter: Cutter
) -> None:
    """One row is refused, so each operation runs alone; the database goes away during that."""
    sights = 0

    def second_sight(octets: bytes) -> bool:
        nonlocal sights
        sights += b"cut-here" in octets
        return sights == 2 and b"cut-here" in octets

    async with opened(postgres_url.set(port=cutter.port)) as database:
        assert await Answer(database, [(INSERT, ("taken", ""))]).fault() is None
        cutter.before = second_sight
        with held(database):
            await asyncio.sleep(0)
            answers = [Answer(database, [(INSERT, (name, ""))]) for name in ("a", "taken", "cut-here", "b")]
        faults = [await answer.fault(15) for answer in answers]
        assert cutter.cuts == 1
        assert [fault is None for fault in faults] == [True, False, True, True]
        assert set(await settings(database)) == {"taken", "a", "cut-here", "b"}


@pytest.mark.postgres
async def test_a_server_that_is_gone_refuses_in_time_and_outcomes_are_kept(
    start_postgres: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    server = start_postgres()
    url = database_url(server.create_database(), tmp_path)
    upgrade(url)
    async with opened(url) as database:
        assert await Answer(database, [(INSERT, ("before", ""))]).fault() is None
        server.stop("immediate")
        began = time.monotonic()
        submission = Answer(database, [(INSERT, ("submission", ""))])
        outcome = Answer(database, [(INSERT, ("outcome", ""))], keep=True)
        assert isinstance(await submission.fault(10), StoreUnavailable)
        # Threat F7: within five seconds.
        assert time.monotonic() - began < 5.5
        assert not outcome.future.done()
        assert database.down_since is not None
        with pytest.raises(StoreUnavailable):
            await database.read(lambda c: c.exec_driver_sql("SELECT 1").scalar())
        server.start()
        began = time.monotonic()
        assert await outcome.fault(20) is None
        # Back within ten.
        assert time.monotonic() - began < 10
        assert await Answer(database, [(INSERT, ("after", ""))]).fault() is None
        assert set(await settings(database)) == {"before", "outcome", "after"}


@pytest.mark.postgres
async def test_nothing_acknowledged_is_lost_while_the_server_crashes_again_and_again(
    start_postgres: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    """Writers go on while the server crashes three times; each acknowledged message is there, none twice."""
    server = start_postgres()
    url = database_url(server.create_database(), tmp_path)
    upgrade(url)
    acknowledged: list[int] = []
    refused: list[PosthouseError] = []
    stop = asyncio.Event()

    async with opened(url) as database:

        async def write(first: int) -> None:
            number = first
            while not stop.is_set():
                number += 100
                fault = await Answer(database, [(INSERT_MESSAGE, message_row(number))], unique=number).fault(30)
                if fault is None:
                    acknowledged.append(number)
                else:
                    refused.append(fault)

        writers = [asyncio.create_task(write(first)) for first in range(1, 9)]
        loop = asyncio.get_running_loop()
        for _ in range(3):
            count = len(acknowledged)
            async with asyncio.timeout(20):
                while len(acknowledged) < count + 200:
                    await asyncio.sleep(0.01)
            await loop.run_in_executor(None, server.stop, "immediate")
            await loop.run_in_executor(None, server.start)
        stop.set()
        await asyncio.gather(*writers)
        found = await database.read(lambda c: c.execute(sqlalchemy.select(schema.message.c.id)).scalars().all())
    assert set(acknowledged) <= set(found)
    assert len(acknowledged) >= 600
    # Each of them may come again: nothing was refused for good.
    assert all(isinstance(fault, StoreUnavailable) for fault in refused)


@pytest.mark.postgres
async def test_a_frozen_server_is_given_up_in_time_and_taken_again(
    start_postgres: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    """Connections stay open and nothing answers, which is worse than a server that is gone."""
    server = start_postgres()
    url = database_url(server.create_database(), tmp_path)
    upgrade(url)
    async with opened(url) as database:
        assert await Answer(database, [(INSERT_MESSAGE, message_row(1))], unique=1).fault() is None
        server.freeze()
        try:
            for number in (2, 3):
                began = time.monotonic()
                submission = Answer(database, [(INSERT_MESSAGE, message_row(number))], unique=number)
                outcome = Answer(database, [(INSERT, (f"outcome {number}", ""))], keep=True)
                configuring = asyncio.create_task(database.write(lambda c: None))
                assert isinstance(await submission.fault(15), StoreUnavailable)
                with pytest.raises(StoreUnavailable):
                    await asyncio.wait_for(configuring, 15)
                # Threat F7: five seconds; one more for a busy machine.
                assert time.monotonic() - began < 6
                assert not outcome.future.done()
        finally:
            server.thaw()
        assert await outcome.fault(20) is None
        assert await Answer(database, [(INSERT_MESSAGE, message_row(4))], unique=4).fault() is None
        assert {"outcome 2", "outcome 3"} <= set(await settings(database))


@pytest.mark.postgres
async def test_a_slow_work_on_a_server_that_answers_is_left_alone(postgres_url: URL) -> None:
    async with opened(postgres_url) as database:
        assert await database.write(lambda c: c.exec_driver_sql("SELECT 7 FROM pg_sleep(5)").scalar()) == 7


async def test_works_and_submissions_do_not_wait_behind_an_outcome_that_does_not_fit(tmp_path: Path) -> None:
    """On a full disk an outcome is tried again and again; meanwhile a work that makes room must get through."""
    url = database_url(None, tmp_path)
    upgrade(url)
    async with opened(url) as database:
        large = "x" * 500_000
        assert await Answer(database, [(INSERT, ("old", large))]).fault() is None
        await database.write(lambda c: limit_pages(c, 0))
        outcome = Answer(database, [(INSERT, ("outcome", large))], keep=True)
        submissions = [Answer(database, [(INSERT, (f"n{i}", large))]) for i in range(300)]
        assert {type(await each.fault(10)) for each in submissions} == {StoreFull}
        await asyncio.wait_for(database.write(lambda c: c.execute(schema.setting.delete())), 10)
        assert await outcome.fault(10) is None
        assert set(await settings(database)) == {"outcome"}
