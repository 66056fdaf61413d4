"""F8, F26: what is in hand when something happens: an edit, a deletion, the end of the process, the end of a lease."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from posthouse.errors import PosthouseError
from posthouse.model.actor import COMMAND
from posthouse.model.message import RecipientState
from posthouse.store import schema
from posthouse.testing.smtp import MisbehavingServer
from posthouse.testing.smtp_misbehaviours import Stage, connections_at_most, hang_at, on_first, slow, temporary_at
from tests.support.installation import Installation, installation, until

State = RecipientState


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path) as started:
        await started.add_application()
        await started.settings(retry_delays_s=[1])
        yield started


async def change_recipients(node: Installation, **values: Any) -> None:
    """Put all recipients into a state by SQL, as an earlier life of the process may have left them."""
    await node.posthouse.database.write(lambda c: c.execute(update(schema.recipient).values(**values)))


async def test_mail_that_comes_after_an_edit_is_sent_though_all_connections_were_busy(node: Installation) -> None:
    async with MisbehavingServer(hang_at(Stage.DOT)) as server:
        server_id = await node.add_server(server, max_connections=1, data_end_timeout_s=1.5)
        await node.send()
        await until(lambda: len(server.messages) == 1, "the first message is on the wire")
        server.misbehave()
        await node.edit_server(server_id, comments="edited")
        # Its worker still waits for a reply on the connection of before the edit.
        second = await node.send("second@example.net")
        await node.until_state(second, State.DELIVERED)


async def test_the_lease_of_a_message_counts_from_its_rows_not_from_their_commit(node: Installation) -> None:
    """Between the two a node may be frozen for a minute, and another has taken the message over (F8)."""
    async with MisbehavingServer() as server:
        await node.add_server(server)
        submission, delivery = node.posthouse.submission, node.posthouse.delivery
        built = submission.build(node.handover(["bob@example.net"], "anna@example.org", b"From: a@example.org\r\n\r\n"))
        (server_id, message), *_ = built.jobs
        message.received_ms -= 40_000
        delivery.hand_over(server_id, message)
        await until(lambda: delivery.lanes()[server_id].in_hand == 0, "it has been let go")
        assert server.messages == []


async def test_the_end_of_the_process_resends_nothing_that_the_rule_is_to_hold(tmp_path: Path) -> None:
    async with MisbehavingServer(hang_at(Stage.DOT)) as server:
        async with installation(tmp_path) as first:
            await first.add_application()
            await first.add_server(server, uncertain="hold")
            message_id = await first.send()
            await until(lambda: len(server.messages) == 1, "the message was sent whole")
            await stop_soon(first)
        server.misbehave()
        async with installation(tmp_path) as second:
            await second.until_state(message_id, State.UNCERTAIN)
            assert len(server.messages) == 1


async def test_the_end_of_the_process_with_a_reply_owed_shows_in_the_timeline(tmp_path: Path) -> None:
    async with MisbehavingServer(hang_at(Stage.DOT)) as server:
        async with installation(tmp_path) as first:
            await first.add_application()
            await first.add_server(server)
            message_id = await first.send()
            await until(lambda: len(server.messages) == 1, "the message was sent whole")
            await stop_soon(first)
        server.misbehave()
        async with installation(tmp_path) as second:
            await second.until_state(message_id, State.DELIVERED)
            assert len(server.messages) == 2
            assert "second copy" in "\n".join(await second.timeline(message_id))


async def stop_soon(node: Installation) -> None:
    """Stop without the patience that a node has with messages on the wire."""
    working = [task for lane in node.posthouse.delivery.lanes().values() for task in lane.workers]
    stopping = asyncio.create_task(node.posthouse.delivery.stop())
    await asyncio.sleep(0)
    for task in working:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await stopping


async def test_a_message_cut_off_once_is_tried_again_however_often_its_server_was_held(tmp_path: Path) -> None:
    async with MisbehavingServer() as server:
        async with installation(tmp_path) as first:
            await first.add_application()
            server_id = await first.add_server(server)
            await first.posthouse.delivery.hold_by_operator(server_id, "for the test")
            message_id = await first.send()
            # Each probe of a server that is down claims a recipient and gives it back, without an attempt.
            await change_recipients(first, lease=50, state=int(State.SENDING))
            await first.posthouse.delivery.release(server_id)
        async with installation(tmp_path) as second:
            await second.until_state(message_id, State.DELIVERED)


async def test_a_message_that_brings_the_process_down_each_time_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posthouse.delivery.claiming.MAX_CUT_OFF", 3)
    async with MisbehavingServer() as server:
        for life in range(6):
            async with installation(tmp_path) as node:
                if life == 0:
                    await node.add_application()
                    server_id = await node.add_server(server)
                    await node.posthouse.delivery.hold_by_operator(server_id, "for the test")
                    message_id = await node.send()
                    await node.posthouse.delivery.release(server_id)
                if life == 3:
                    await node.until_state(message_id, State.UNCERTAIN)
                    break
                await node.until_state(message_id, State.DELIVERED)
                await change_recipients(node, state=int(State.SENDING), attempts=0)
        assert len(server.messages) == 3


async def test_mail_in_hand_of_a_process_that_died_waits_for_a_person_when_its_server_is_deleted(
    tmp_path: Path,
) -> None:
    """It was perhaps taken by that server already, so no other one gets it (F26, promise 1)."""
    async with MisbehavingServer() as server:
        async with installation(tmp_path) as first:
            await first.add_application()
            office = await first.add_server(server)
            gone = await first.add_server(1, "gone")
            for each in (office, gone):
                await first.posthouse.delivery.hold_by_operator(each, "for the test")
            message_id = await first.send()
            await change_recipients(first, server_id=gone, state=int(State.SENDING))
        async with installation(tmp_path) as second:
            await second.posthouse.administration.delete(COMMAND, "server", [gone])
            await second.until_state(message_id, State.UNCERTAIN)
            assert server.messages == []


async def test_a_refused_connection_is_not_asked_for_without_a_pause(node: Installation) -> None:
    """A server that takes one connection at a time is not knocked at in a loop while that one works (F13)."""
    first_is_slow = on_first(1, slow(0.2))
    async with MisbehavingServer(connections_at_most(1), first_is_slow) as server:
        await node.add_server(server, max_connections=5)
        for _ in range(10):
            await node.send()
        await until(lambda: len(server.messages) >= 3, "three messages", 30)
        assert len(server.sessions) < 60


async def test_what_a_lane_has_taken_is_given_back_when_a_large_body_cannot_be_kept(
    node: Installation, tmp_path: Path
) -> None:
    """Otherwise each refusal on a full disk would narrow the way to the server for good (F5)."""
    async with MisbehavingServer() as server:
        server_id = await node.add_server(server, max_connections=1)
        (tmp_path / "content").rmdir()
        (tmp_path / "content").write_bytes(b"no folder")
        for _ in range(5):
            with pytest.raises(PosthouseError):
                await node.send(raw=b"From: a@example.org\r\n\r\n" + b"x" * 400_000 + b"\r\n")
        assert node.posthouse.delivery.lanes()[server_id].in_hand == 0
        assert list((tmp_path / "spool").iterdir()) == []
        await node.until_state(await node.send(), State.DELIVERED)


async def test_greylisting_at_mail_does_not_hold_the_server(node: Installation) -> None:
    async with MisbehavingServer(on_first(1, temporary_at(Stage.MAIL, "4.7.1 Greylisted, come back"))) as server:
        server_id = await node.add_server(server, max_connections=1, messages_per_connection=1)
        message_id = await node.send()
        await node.until_state(message_id, State.DELIVERED)
        assert not node.posthouse.delivery.state_of(server_id).held
