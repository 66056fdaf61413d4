"""What is removed when its time has come, and what stays. Time is passed in."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from posthouse.errors import Conflict, NotFound
from posthouse.model.actor import COMMAND
from posthouse.model.message import RecipientState
from posthouse.testing.smtp import MisbehavingServer
from tests.support.installation import Installation, installation

DAY_MS = 86_400_000
LARGE = b"From: anna@example.org\r\n\r\n" + b"x" * 400_000 + b"\r\n"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path) as started:
        await started.add_application()
        yield started


async def prune(node: Installation, later_ms: int) -> None:
    assert node.posthouse.maintenance is not None
    await node.posthouse.maintenance.prune(node.posthouse.clock.now_ms() + later_ms)


def files(data: Path) -> list[Path]:
    return [path for path in (data / "content").rglob("*") if path.is_file()]


async def raw(node: Installation, message_id: int) -> bytes:
    return b"".join([piece async for piece in await node.posthouse.tracking.raw(COMMAND, message_id)])


async def test_content_goes_a_day_after_delivery_and_the_timeline_stays(node: Installation, tmp_path: Path) -> None:
    async with MisbehavingServer() as server:
        await node.add_server(server)
        small, large = await node.send(), await node.send(raw=LARGE)
        for message_id in (small, large):
            await node.until_state(message_id, RecipientState.DELIVERED)
        await prune(node, DAY_MS - 60_000)
        assert (await raw(node, large)).endswith(LARGE[-400_002:])
        assert files(tmp_path)
        await prune(node, DAY_MS + 60_000)
        for message_id in (small, large):
            with pytest.raises(Conflict, match="removed after its time"):
                await raw(node, message_id)
            assert len(await node.timeline(message_id)) > 2
        assert not files(tmp_path)


async def test_what_waits_keeps_its_content_for_ever(node: Installation, unused_tcp_port: int) -> None:
    server_id = await node.add_server(unused_tcp_port)
    message_id = await node.send()
    await node.until_held(server_id)
    await node.until_state(message_id, RecipientState.WAITING)
    await prune(node, 400 * DAY_MS)
    assert (await raw(node, message_id)).endswith(b"Hello.\r\n")


async def test_timelines_go_after_their_time(node: Installation) -> None:
    async with MisbehavingServer() as server:
        await node.add_server(server)
        message_id = await node.send()
        await node.until_state(message_id, RecipientState.DELIVERED)
        await prune(node, 31 * DAY_MS)
        with pytest.raises(NotFound):
            await node.show(message_id)


async def test_captured_mail_stays_by_the_limits_of_its_server(node: Installation) -> None:
    shape = {"kind": "capture", "name": "sandbox", "keep_messages": 3, "keep_days": 2}
    await node.posthouse.administration.create(COMMAND, "server", shape)
    sent = [await node.send() for _ in range(5)]
    for message_id in sent:
        await node.until_state(message_id, RecipientState.DELIVERED)
    await prune(node, DAY_MS + 60_000)
    assert [row.id for row in await node.posthouse.tracking.captured(COMMAND)] == sent[:1:-1]
    assert await raw(node, sent[-1])
    with pytest.raises(Conflict):
        await raw(node, sent[0])
    await prune(node, 3 * DAY_MS)
    assert await node.posthouse.tracking.captured(COMMAND) == []


async def test_mail_that_expires_behind_a_held_server_shows_it(node: Installation, unused_tcp_port: int) -> None:
    server_id = await node.add_server(unused_tcp_port)
    message_id = await node.send(expires_ms=node.posthouse.clock.now_ms() + DAY_MS)
    await node.until_held(server_id)
    await node.until_state(message_id, RecipientState.WAITING)
    await prune(node, DAY_MS - 60_000)
    assert (await node.show(message_id)).state is RecipientState.WAITING
    await prune(node, DAY_MS + 60_000)
    await node.until_state(message_id, RecipientState.EXPIRED)
    assert "It expired before it could be sent." in await node.timeline(message_id)
