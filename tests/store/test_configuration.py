"""What is configured, in the store: versions, the directory, and keeping it up to date."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy
import structlog
from sqlalchemy import Connection
from sqlalchemy.engine import URL

from posthouse.errors import LocalFault, PosthouseError, SecretUnreadable
from posthouse.model.actor import COMMAND
from posthouse.model.directory import Directory
from posthouse.model.problems import read_value
from posthouse.model.server import SERVER_KINDS
from posthouse.store import schema
from posthouse.store.configuration import Change, Transaction, load_directory, read_object
from posthouse.store.database import Database
from tests.support.clock import ManualClock
from tests.support.databases import Node, new_ring, started_node


@pytest.fixture
async def node(store_url: URL) -> AsyncIterator[Node]:
    """Give a node on an empty database."""
    async with started_node(store_url) as started:
        yield started


def smtp(name: str, **fields: Any) -> dict[str, Any]:
    auth = {"type": "password", "username": "u", "password": f"of {name}"}
    return {"kind": "smtp", "name": name, "host": "smtp.example.org", "auth": auth, **fields}


async def add(node: Node, *names: str) -> list[int]:
    return [(await node.administration.create(COMMAND, "server", smtp(name))).id for name in names]


async def loaded(node: Node, known: Directory | None = None) -> Directory:
    return await node.database.read(lambda c: load_directory(c, node.ring, known))


def contents(directory: Directory) -> dict[str, Any]:
    """Give what a directory holds, without regard to the order in which it was read."""
    return {
        "version": directory.version,
        "installation": directory.installation,
        "tenants": directory.tenants,
        "servers": directory.servers,
        "applications": directory.applications,
        "certificates": directory.certificates,
        "credentials": directory.credentials,
        "defaults": directory.defaults,
        "owned": {owner: sorted(numbers) for owner, numbers in directory.owned.items()},
    }


# ---------------------------------------------------------------- versions


async def test_versions_have_no_gap_and_a_failed_change_takes_none(node: Node) -> None:
    await add(node, "a")
    with pytest.raises(PosthouseError):
        await node.administration.create(COMMAND, "server", smtp("a"))
    await add(node, "b")
    assert node.source.current.version == 2
    ids = await node.database.read(lambda c: list(c.execute(sqlalchemy.select(schema.change.c.id)).scalars()))
    assert sorted(ids) == [1, 2]


async def test_stored_shapes_hold_numbers_in_place_of_secrets(node: Node) -> None:
    (number,) = await add(node, "a")
    record = node.source.current.servers[number]
    config = await node.database.read(lambda c: c.execute(sqlalchemy.select(schema.server.c.config)).scalar_one())
    assert json.loads(config)["auth"]["password"] == record.secrets["auth.password"]


async def test_a_change_whose_commit_is_in_doubt_is_made_once(node: Node) -> None:
    """The connection breaks after the commit: what runs again sees its own entry and gives the same answer."""
    runs: list[int] = []

    def function(change: Change, _directory: Directory) -> int:
        runs.append(1)
        return change.save("server", read_value(SERVER_KINDS, smtp("a")), None, {}, "create")

    transaction = Transaction(node.ring, node.ids, COMMAND, node.clock.now_ms(), lambda: node.source.current, function)
    first = await node.database.write(transaction)
    assert await node.database.write(transaction) == first
    assert len(runs) == 1


async def test_a_change_that_was_rolled_back_runs_again(node: Node) -> None:
    def function(change: Change, _directory: Directory) -> int:
        return change.save("server", read_value(SERVER_KINDS, smtp("a")), None, {}, "create")

    transaction = Transaction(node.ring, node.ids, COMMAND, node.clock.now_ms(), lambda: node.source.current, function)

    def broken(connection: Connection) -> None:
        transaction(connection)
        raise KeyError("rolled back")

    with pytest.raises(KeyError):
        await node.database.write(broken)
    # Somebody else takes the version meanwhile.
    await add(node, "b")
    number, directory = await node.database.write(transaction)
    assert {record.name for record in directory.servers.values()} == {"a", "b"}
    assert directory.servers[number].name == "a"


# ---------------------------------------------------------------- the directory


async def test_what_is_read_by_and_by_is_what_is_read_anew(node: Node) -> None:
    a, b, c = await add(node, "a", "b", "c")
    administration = node.administration
    known = node.source.current
    tenant = await administration.create(COMMAND, "tenant", {"name": "Alder"})
    application, _ = await administration.create_application(COMMAND, {"name": "shop", "networks": ["10.0.0.1"]})
    await administration.patch(COMMAND, "server", b, {"comments": "changed"})
    await administration.make_default(COMMAND, c)
    await administration.delete(COMMAND, "server", [a])
    await administration.change_installation(COMMAND, {"max_recipients": 7})
    key = (await administration.keys(COMMAND, application.id))[0]
    await administration.revoke_key(COMMAND, application.id, key.id)
    fresh = await loaded(node)
    assert contents(fresh) == contents(await loaded(node, known))
    assert contents(fresh) == contents(node.source.current)
    assert set(fresh.servers) == {b, c}
    assert set(fresh.tenants) == {tenant.id}
    assert fresh.installation.max_recipients == 7
    assert len(fresh.credentials) == 1


async def test_what_did_not_change_is_the_same_object(node: Node) -> None:
    a, b = await add(node, "a", "b")
    before = node.source.current
    await node.administration.patch(COMMAND, "server", b, {"comments": "x"})
    after = node.source.current
    assert after.servers[a] is before.servers[a]
    assert after.servers[b] is not before.servers[b]
    assert before.servers[b].version == 1
    assert after.credentials is before.credentials
    assert await loaded(node, after) is after


async def test_very_many_changes_are_read_anew(node: Node) -> None:
    (a,) = await add(node, "a")
    known = node.source.current

    def many(connection: Connection) -> None:
        change = Change(connection, node.ring, node.ids, COMMAND, 0)
        for _ in range(600):
            record = read_object(connection, node.ring, "server", a)
            value = record.value.model_copy(update={"comments": str(change.version)})
            change.save("server", value, record, record.secrets, "edit")

    await node.database.write(many)
    assert contents(await loaded(node)) == contents(await loaded(node, known))


async def test_a_missing_secret_is_a_clear_refusal(node: Node) -> None:
    await add(node, "a")
    await node.database.write(lambda c: c.execute(schema.secret.delete()))
    with pytest.raises(SecretUnreadable, match="is gone"):
        await loaded(node)


@pytest.mark.parametrize("config", ['{"kind":"telex"}', '{"kind":"smtp"}', '{"kind":"smtp","name":"kanarienvogel"}'])
async def test_a_row_that_cannot_be_read_is_named_and_not_repeated(node: Node, config: str) -> None:
    await add(node, "a")
    await node.database.write(lambda c: c.execute(schema.server.update().values(config=config)))
    with pytest.raises(LocalFault, match="stored server") as caught:
        await loaded(node)
    assert "kanarienvogel" not in f"{caught.value}{caught.value.__context__}"


# ---------------------------------------------------------------- staying up to date


@asynccontextmanager
async def watching(node: Node) -> AsyncIterator[None]:
    task = asyncio.create_task(node.source.watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_other_nodes_follow_within_a_second(node: Node, store_url: URL) -> None:
    async with started_node(store_url, ring=node.ring, number=1) as other, watching(other):
        loop = asyncio.get_running_loop()
        waits = []
        for n in range(4):
            (number,) = await add(node, f"s{n}")
            began = loop.time()
            await until(lambda number=number: number in other.source.current.servers)
            waits.append(loop.time() - began)
        # Half a second of grace for a busy machine.
        assert max(waits) < 1.5
        assert other.source.contact_s is not None


@pytest.mark.postgres
async def test_a_notification_comes_before_the_next_look(postgres_url: URL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posthouse.store.directory_source.LOOK_EVERY_S", 60.0)
    async with (
        started_node(postgres_url) as node,
        started_node(postgres_url, ring=node.ring, number=1) as other,
        watching(other),
    ):
        for n in range(3):
            await add(node, f"s{n}")
            await until(lambda n=n: len(other.source.current.servers) == n + 1)


async def test_refreshes_at_once_share_readings(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = 0
    load = load_directory

    def counted(*arguments: Any) -> Directory:
        nonlocal readings
        readings += 1
        return load(*arguments)

    monkeypatch.setattr("posthouse.store.directory_source.load_directory", counted)
    directories = await asyncio.gather(*(node.source.refresh() for _ in range(50)))
    assert readings <= 2
    assert all(directory is node.source.current for directory in directories)


async def test_a_refresh_sees_what_was_committed_before_it_was_asked_for(node: Node, store_url: URL) -> None:
    async with started_node(store_url, ring=node.ring, number=1) as other:
        for n in range(10):
            running = asyncio.create_task(other.source.refresh())
            (number,) = await add(node, f"s{n}")
            assert number in (await other.source.refresh()).servers
            await running


async def test_listeners_hear_of_old_and_new_and_one_that_fails_stops_nobody(node: Node) -> None:
    heard: list[tuple[int, int]] = []

    def fail(_old: Directory, _new: Directory) -> None:
        raise RuntimeError("a listener's own fault")

    node.source.listen(fail)
    node.source.listen(lambda old, new: heard.append((old.version, new.version)))
    with structlog.testing.capture_logs() as logged:
        await add(node, "a", "b")
        await node.source.refresh()
    assert heard == [(0, 1), (1, 2)]
    assert [entry["event"] for entry in logged] == ["directory: a listener failed"] * 2


async def test_an_older_directory_never_replaces_a_newer_one(node: Node) -> None:
    await add(node, "a")
    older = node.source.current
    await add(node, "b")
    node.source.install(older)
    assert node.source.current.version == 2


async def test_a_refresh_that_fails_keeps_the_snapshot_and_says_so_once(node: Node, store_url: URL) -> None:
    async with started_node(store_url, ring=node.ring, number=1) as other:
        await add(node, "a")
        await other.source.refresh()
        kept = other.source.current
        await node.database.write(lambda c: c.execute(schema.secret.update().values(key_id="lost")))
        with structlog.testing.capture_logs() as logged:
            await node.database.write(
                lambda c: Change(c, node.ring, node.ids, COMMAND, 0).log(
                    "server", next(iter(kept.servers)), "a", 0, "x", {}
                )
            )
            for _ in range(3):
                await other.source._look()
        assert other.source.current is kept
        assert [entry["event"] for entry in logged] == ["directory: cannot be refreshed, the last one stays in force"]
        key_id = node.ring.current
        await node.database.write(lambda c: c.execute(schema.secret.update().values(key_id=key_id)))
        await other.source._look()
        assert other.source.current.version == 2


async def test_a_node_with_another_ring_is_refused_at_start(node: Node, store_url: URL) -> None:
    await add(node, "a")
    with pytest.raises(SecretUnreadable, match="not in the key ring"):
        async with started_node(store_url, ring=new_ring(), number=1):
            pass


async def test_times_come_from_the_clock(node: Node) -> None:
    assert isinstance(node.clock, ManualClock)
    (number,) = await add(node, "a")
    created_ms = node.clock.now_ms()
    node.clock.advance(3600)
    record = await node.administration.patch(COMMAND, "server", number, {"comments": "x"})
    assert (record.created_ms, record.changed_ms) == (created_ms, created_ms + 3_600_000)


def test_a_database_is_closed_twice_without_harm(store_url: URL) -> None:
    database = Database(store_url)
    database.dispose()
    database.dispose()
