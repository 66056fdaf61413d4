"""Delivery against servers that behave and that misbehave: what arrives there, and what the timeline says."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from email import message_from_bytes
from email.policy import default
from pathlib import Path
from typing import Any

import pytest

from posthouse.errors import InvalidInput, NoRoute, SendingOff
from posthouse.model.actor import COMMAND
from posthouse.model.message import EnvelopeRecipient, RecipientState
from posthouse.testing.smtp import MisbehavingServer
from posthouse.testing.smtp_misbehaviours import (
    Stage,
    Tls,
    auth_refused,
    close_at,
    close_within_content,
    connections_at_most,
    greylisting,
    hang_at,
    messages_per_connection,
    on_first,
    permanent_at,
    replies_by_recipient,
    reply_at,
    shutting_down_at,
    starttls,
    temporary_at,
    without,
)
from tests.support.installation import Installation, installation, until

State = RecipientState


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path) as started:
        await started.add_application()
        await started.settings(retry_delays_s=[1])
        yield started


# ---------------------------------------------------------------- what arrives


async def test_a_message_arrives_as_it_was_handed_over(node: Installation) -> None:
    fields = b"From: anna@example.org\r\nMessage-ID: <1@example.org>\r\nDate: Fri, 20 Nov 2026 10:00:00 +0000\r\n"
    raw = fields + b"\r\n.dot\r\n..\r\nend"
    async with MisbehavingServer() as server:
        await node.add_server(server)
        message_id = await node.send("bob@example.net", "carol@example.net", raw=raw + b"\r\n")
        await node.until_state(message_id, State.DELIVERED)
    (message,) = server.messages
    assert message.mail_from == "anna@example.org"
    assert message.recipients == ("bob@example.net", "carol@example.net")
    received, _, rest = message.content.partition(b"From:")
    assert received.startswith(b"Received: by posthouse.test (Posthouse) with HTTP id ")
    assert b"From:" + rest == raw + b"\r\n"


async def test_missing_fields_are_added_and_bcc_is_removed_and_the_timeline_says_so(node: Installation) -> None:
    raw = b"From: anna@example.org\r\nBcc: secret@example.net,\r\n other@example.net\r\nSubject: x\r\n\r\nbody\r\n"
    async with MisbehavingServer() as server:
        await node.add_server(server)
        message_id = await node.send(raw=raw)
        await node.until_state(message_id, State.DELIVERED)
    content = server.messages[0].content
    parsed = message_from_bytes(content)
    assert parsed["Bcc"] is None and b"secret@" not in content and b"other@" not in content
    assert parsed["Message-ID"].endswith("@posthouse.test>")
    assert parsed["Date"]
    lines = await node.timeline(message_id)
    assert "Bcc was removed." in lines and "Message-ID was added." in lines and "Date was added." in lines


async def test_the_timeline_tells_who_which_server_why_and_in_whose_words(node: Installation) -> None:
    async with MisbehavingServer(reply_at(Stage.DOT, "250 2.0.0 Taken as 4711")) as server:
        await node.add_server(server)
        message_id = await node.send()
        await node.until_state(message_id, State.DELIVERED)
        lines = await node.timeline(message_id)
    assert lines[0] == "shop handed it over by REST from 127.0.0.1."
    assert "office was chosen: the global default." in lines
    assert lines[-1] == (
        f"office at 127.0.0.1:{server.port}, not encrypted took responsibility for bob@example.net."
        " [250 2.0.0 Taken as 4711]"
    )


async def test_a_server_that_replaces_the_sender_does_and_answers_find_their_way(node: Installation) -> None:
    raw = b"From: Anna <anna@example.org>\r\nSender: x@example.org\r\nMessage-ID: <1@x>\r\n\r\nHello.\r\n"
    async with MisbehavingServer() as server:
        await node.add_server(
            server, sender_override="always", sender_address="desk@example.com", sender_name="Søren, desk"
        )
        message_id = await node.send(raw=raw)
        await node.until_state(message_id, State.DELIVERED)
        lines = await node.timeline(message_id)
    (message,) = server.messages
    parsed = message_from_bytes(message.content, policy=default)
    assert message.mail_from == "desk@example.com"
    assert parsed["From"].addresses[0].addr_spec == "desk@example.com"
    assert parsed["From"].addresses[0].display_name == "Søren, desk"
    assert len(parsed.get_all("From", [])) == 1 and parsed["Sender"] is None
    assert parsed["Reply-To"] == "Anna <anna@example.org>"
    assert message.content.endswith(b"\r\n\r\nHello.\r\n")
    assert "From was replaced by the server's sender." in lines


async def test_a_message_without_a_sender_gets_the_servers(node: Installation) -> None:
    async with MisbehavingServer() as server:
        await node.add_server(server, sender_address="desk@example.com")
        await node.until_state(await node.send(raw=b"Subject: x\r\n\r\nHello.\r\n"), State.DELIVERED)
        await node.until_state(await node.send(), State.DELIVERED)
    assert [message_from_bytes(m.content)["From"] for m in server.messages] == ["desk@example.com", "anna@example.org"]


async def test_over_long_header_lines_are_folded_and_said(node: Installation) -> None:
    raw = b"From: anna@example.org\r\nSubject: " + b"word " * 400 + b"\r\n\r\nx\r\n"
    async with MisbehavingServer() as server:
        await node.add_server(server)
        message_id = await node.send(raw=raw)
        await node.until_state(message_id, State.DELIVERED)
        assert "Over-long header lines were folded." in await node.timeline(message_id)
    assert max(len(line) for line in server.messages[0].content.split(b"\r\n")) <= 998


async def test_over_long_lines_arrive_re_encoded_and_said(node: Installation) -> None:
    raw = b"From: anna@example.org\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 5000 + b"\r\n"
    async with MisbehavingServer(without("8BITMIME")) as server:
        await node.add_server(server)
        message_id = await node.send(raw=raw)
        await node.until_state(message_id, State.DELIVERED)
        lines = await node.timeline(message_id)
    content = server.messages[0].content
    assert max(len(line) for line in content.split(b"\r\n")) <= 998
    assert message_from_bytes(content).get_payload(decode=True) == b"x" * 5000 + b"\r\n"
    assert content.count(b"\r\n\r\n") == 1
    assert "e-encoded" in lines[-1] or "quoted-printable" in lines[-1]


async def test_connections_are_kept_for_the_next_message(node: Installation) -> None:
    async with MisbehavingServer() as server:
        await node.add_server(server)
        for _ in range(5):
            await node.until_state(await node.send(), State.DELIVERED)
        assert len(server.sessions) == 1


async def test_an_idle_connection_is_closed(node: Installation) -> None:
    async with MisbehavingServer() as server:
        await node.add_server(server, idle_s=0.1)
        await node.until_state(await node.send(), State.DELIVERED)
        await until(lambda: server.open_connections == 0, "the idle connection is closed")


async def test_a_connection_ends_after_its_number_of_messages(node: Installation) -> None:
    async with MisbehavingServer() as server:
        await node.add_server(server, messages_per_connection=2)
        for _ in range(5):
            await node.until_state(await node.send(), State.DELIVERED)
        assert [len(s.messages) for s in server.sessions] == [2, 2, 1]


# ---------------------------------------------------------------- per recipient


async def test_each_recipient_has_its_own_outcome(node: Installation) -> None:
    replies = {"gone@example.net": "550 5.1.1 No such person", "full@example.net": "452 4.2.2 Mailbox full"}
    async with MisbehavingServer(replies_by_recipient(replies)) as server:
        await node.add_server(server)
        await node.settings(retry_delays_s=[60])
        message_id = await node.send("gone@example.net", "bob@example.net", "full@example.net")
        await until(lambda: len(server.messages) == 1, "the message came")
        shown = await node.until_state(message_id, State.WAITING)
    states = {r.address: RecipientState(r.state) for r in shown.recipients}
    assert states == {
        "gone@example.net": State.FAILED,
        "bob@example.net": State.DELIVERED,
        "full@example.net": State.WAITING,
    }
    assert server.messages[0].recipients == ("bob@example.net",)
    assert {r.address: r.last for r in shown.recipients}["gone@example.net"] == "550 5.1.1 No such person"


async def test_those_delivered_are_not_sent_again_when_others_are_tried_again(node: Installation) -> None:
    async with MisbehavingServer(on_first(1, replies_by_recipient({"late@example.net": "450 4.2.1 Later"}))) as server:
        await node.add_server(server, messages_per_connection=1)
        message_id = await node.send("bob@example.net", "late@example.net")
        await node.until_state(message_id, State.DELIVERED)
    assert [m.recipients for m in server.messages] == [("bob@example.net",), ("late@example.net",)]


async def test_greylisting_is_passed_at_the_second_try(node: Installation) -> None:
    async with MisbehavingServer(greylisting()) as server:
        await node.add_server(server)
        message_id = await node.send()
        await node.until_state(message_id, State.DELIVERED)
        lines = await node.timeline(message_id)
    assert any("deferred bob@example.net" in line for line in lines)


async def test_too_many_recipients_for_one_transaction_follow_at_once(node: Installation) -> None:
    names = [f"r{i}@example.net" for i in range(25)]

    async with MisbehavingServer(without("PIPELINING")) as server:
        server.misbehave(replies_by_recipient({}), reply_limit(10))
        await node.add_server(server)
        message_id = await node.send(*names)
        await node.until_state(message_id, State.DELIVERED)
    arrived = [r for m in server.messages for r in m.recipients]
    assert sorted(arrived) == sorted(names)


def reply_limit(count: int):  # type: ignore[no-untyped-def]
    """Announce that a transaction takes so many recipients (RFC 9422)."""
    return lambda rules: replace(rules, extensions=(*rules.extensions, f"LIMITS RCPTMAX={count}"))


async def test_a_message_that_is_deferred_too_long_fails(node: Installation) -> None:
    async with MisbehavingServer(temporary_at(Stage.RCPT, "4.2.1 Not today")) as server:
        await node.add_server(server)
        await node.settings(retry_delays_s=[1, 1, 1, 80], give_up_after_s=60)
        message_id = await node.send()
        shown = await node.until_state(message_id, State.FAILED)
    assert shown.recipients[0].last == "451 4.2.1 Not today"


# ---------------------------------------------------------------- faults of the server


@pytest.mark.parametrize(
    "misbehaviour",
    [
        temporary_at(Stage.GREETING),
        permanent_at(Stage.GREETING, "5.3.2 Not in service"),
        shutting_down_at(Stage.EHLO),
        close_at(Stage.GREETING),
        reply_at(Stage.GREETING, "HTTP/1.1 400 Bad Request"),
        shutting_down_at(Stage.MAIL, "4.7.0 Slow down"),
    ],
)
async def test_a_faulty_server_is_held_with_its_reason_and_the_message_waits(
    node: Installation, misbehaviour: object
) -> None:
    async with MisbehavingServer(misbehaviour) as server:  # type: ignore[arg-type]
        server_id = await node.add_server(server)
        message_id = await node.send()
        state = await node.until_held(server_id)
        assert state.detail
        shown = await node.until_state(message_id, State.WAITING)
        assert shown.recipients[0].attempts == 0
        (line,) = await node.posthouse.tracking.queue(COMMAND)
        assert line.waiting == 1 and line.why_waiting.startswith("office is held: ")
        lines = await node.timeline(message_id)
        assert "office is held" in lines[-1]


async def test_nothing_listens(node: Installation, unused_tcp_port: int) -> None:
    server_id = await node.add_server(unused_tcp_port)
    message_id = await node.send()
    state = await node.until_held(server_id)
    assert state.cause == "connect-refused"
    await node.until_state(message_id, State.WAITING)


async def test_a_server_that_comes_back_gets_its_queue_without_help(node: Installation) -> None:
    async with MisbehavingServer(temporary_at(Stage.GREETING)) as server:
        server_id = await node.add_server(server)
        sent = [await node.send() for _ in range(30)]
        await node.until_held(server_id)
        server.misbehave()
        for message_id in sent:
            await node.until_state(message_id, State.DELIVERED)
        assert not node.posthouse.delivery.state_of(server_id).held
        assert len(server.messages) == 30


async def test_a_wrong_password_holds_the_server_and_an_edit_releases_it_at_once(node: Installation) -> None:
    auth = {"type": "password", "username": "office", "password": "wrong"}
    async with MisbehavingServer(auth_refused()) as server:
        server_id = await node.add_server(server, auth=auth, allow_cleartext_password=True)
        message_id = await node.send()
        state = await node.until_held(server_id)
        assert state.held == "account" and "535 5.7.8" in state.detail and "wrong" not in state.detail
        server.misbehave()
        await node.edit_server(server_id, auth={"type": "password", "username": "office", "password": "right"})
        await node.until_state(message_id, State.DELIVERED)
    assert server.sessions[-1].logins == [("office", "right")]


async def test_an_edit_after_a_restart_has_the_server_tried_at_once(tmp_path: Path) -> None:
    auth = {"type": "password", "username": "office", "password": "wrong"}
    async with MisbehavingServer(auth_refused()) as server:
        async with installation(tmp_path) as node:
            await node.add_application()
            server_id = await node.add_server(server, auth=auth, allow_cleartext_password=True)
            message_id = await node.send()
            await node.until_held(server_id)
            await node.until_state(message_id, State.WAITING)
        async with installation(tmp_path) as node:
            assert node.posthouse.delivery.state_of(server_id).held == "account"
            server.misbehave()
            await node.edit_server(server_id, auth={**auth, "password": "right"})
            await node.until_state(message_id, State.DELIVERED)


async def test_it_is_noted_when_a_server_last_took_something(node: Installation) -> None:
    async with MisbehavingServer() as server:
        server_id = await node.add_server(server)
        before = node.posthouse.clock.now_ms()
        await node.until_state(await node.send(), State.DELIVERED)
        state = node.posthouse.delivery.state_of
        await until(lambda: (state(server_id).last_delivery_ms or 0) >= before, "the delivery is noted")


async def test_one_hanging_server_holds_up_no_other(node: Installation) -> None:
    async with MisbehavingServer(hang_at(Stage.GREETING)) as slow, MisbehavingServer() as quick:
        await node.add_server(quick)
        await node.add_server(slow, name="slow", from_filter=["slow.example"], max_connections=1)
        stuck = [
            await node.send(mail_from="a@slow.example", raw=b"From: a@slow.example\r\n\r\nx\r\n") for _ in range(20)
        ]
        for _ in range(20):
            await node.until_state(await node.send(), State.DELIVERED)
        assert {(await node.show(m)).state for m in stuck} <= {State.WAITING, State.SENDING}


async def test_a_limit_on_connections_lets_the_others_go_on(node: Installation) -> None:
    async with MisbehavingServer(connections_at_most(2)) as server:
        server_id = await node.add_server(server, max_connections=10)
        sent = [await node.send() for _ in range(60)]
        for message_id in sent:
            await node.until_state(message_id, State.DELIVERED)
        assert len(server.messages) == 60
        assert not node.posthouse.delivery.state_of(server_id).held


async def test_a_server_that_ends_connections_by_itself_costs_nothing(node: Installation) -> None:
    async with MisbehavingServer(messages_per_connection(1)) as server:
        await node.add_server(server)
        for _ in range(6):
            shown = await node.until_state(await node.send(), State.DELIVERED)
            assert shown.recipients[0].uncertain == 0
        assert len(server.messages) == 6


async def test_a_message_that_breaks_connections_stops_no_other(node: Installation) -> None:
    async with MisbehavingServer(on_first(1, close_within_content(10))) as server:
        await node.add_server(server, max_connections=1)
        first = await node.send()
        second = await node.send()
        await node.until_state(second, State.DELIVERED)
        await node.until_state(first, State.DELIVERED)


async def test_throttling_is_obeyed_and_bounces_nothing(node: Installation) -> None:
    async with MisbehavingServer(permanent_at(Stage.DOT, "5.4.5 Daily user sending limit exceeded")) as server:
        server_id = await node.add_server(server)
        message_id = await node.send()
        state = await node.until_held(server_id)
        assert state.held in ("throttle", "account")
        assert (await node.until_state(message_id, State.WAITING)).recipients[0].last.startswith("550 5.4.5")


# ---------------------------------------------------------------- TLS is never lowered in silence


@pytest.mark.parametrize(
    "what", [Tls.NOT_OFFERED, Tls.STRIPPED, Tls.REFUSED, Tls.THEN_GARBAGE, Tls.THEN_CLOSE, Tls.INJECTS_REPLY]
)
async def test_required_starttls_sends_nothing_in_clear(node: Installation, what: Tls) -> None:
    auth = {"type": "password", "username": "office", "password": "s3cret-canary"}
    async with MisbehavingServer(starttls(what)) as server:
        server_id = await node.add_server(server, tls_mode="starttls_required", verification="none", auth=auth)
        message_id = await node.send()
        state = await node.until_held(server_id)
        assert state.cause
        await node.until_state(message_id, State.WAITING)
    for session in server.sessions:
        verbs = {line.split()[0].upper() for line in session.clear_lines if line.split()}
        assert not verbs & {b"AUTH", b"MAIL", b"RCPT", b"DATA"}
    assert server.messages == []


async def test_required_starttls_holds_on_a_second_connection_too(node: Installation) -> None:
    async with MisbehavingServer() as server:
        server_id = await node.add_server(
            server, tls_mode="starttls_required", verification="none", messages_per_connection=1
        )
        await node.until_state(await node.send(), State.DELIVERED)
        server.misbehave(starttls(Tls.NOT_OFFERED))
        message_id = await node.send()
        await node.until_held(server_id)
        await node.until_state(message_id, State.WAITING)
    assert len(server.messages) == 1 and server.messages[0].under_tls


async def test_optional_starttls_falls_back_as_named_shows_it_and_withholds_the_password(node: Installation) -> None:
    async with MisbehavingServer(starttls(Tls.NOT_OFFERED)) as server:
        server_id = await node.add_server(server, tls_mode="starttls_optional", verification="none")
        message_id = await node.send()
        await node.until_state(message_id, State.DELIVERED)
        assert any(
            "not encrypted because the server offered no TLS" in line for line in await node.timeline(message_id)
        )
        assert node.posthouse.delivery.counters.tls_fallbacks == 1
        await node.edit_server(server_id, auth={"type": "password", "username": "u", "password": "s3cret-canary"})
        await node.send()
        state = await node.until_held(server_id)
        assert state.cause == "auth-cleartext-forbidden"
    assert all(b"AUTH" not in line.upper() for s in server.sessions for line in s.clear_lines)


# ---------------------------------------------------------------- uncertain


async def test_a_lost_last_reply_is_sent_again_with_the_same_message_id_and_said(node: Installation) -> None:
    async with MisbehavingServer(on_first(1, close_at(Stage.DOT))) as server:
        await node.add_server(server)
        message_id = await node.send()
        shown = await node.until_state(message_id, State.DELIVERED)
        assert shown.recipients[0].uncertain == 1
        assert any("Perhaps a second copy" in line for line in await node.timeline(message_id))
    ids = {message_from_bytes(m.content)["Message-ID"] for m in server.messages}
    assert len(server.messages) == 2 and len(ids) == 1


async def test_after_three_resends_a_person_decides(node: Installation) -> None:
    async with MisbehavingServer(close_at(Stage.DOT)) as server:
        await node.add_server(server)
        message_id = await node.send()
        await node.until_state(message_id, State.UNCERTAIN)
        assert len(server.messages) == 4
        server.misbehave()
        await node.posthouse.tracking.retry(COMMAND, message_id)
        await node.until_state(message_id, State.DELIVERED)


async def test_a_server_that_says_hold_gets_an_uncertain_message_once(node: Installation) -> None:
    async with MisbehavingServer(close_at(Stage.DOT)) as server:
        await node.add_server(server, uncertain="hold")
        message_id = await node.send()
        await node.until_state(message_id, State.UNCERTAIN)
        assert len(server.messages) == 1
        assert any("a person decides" in line for line in await node.timeline(message_id))


async def test_an_uncertain_recipient_never_goes_to_the_fallback(node: Installation) -> None:
    async with MisbehavingServer(close_at(Stage.DOT)) as first, MisbehavingServer() as second:
        backup = await node.add_server(second, name="backup")
        main = await node.add_server(first, name="main", fallback_server_id=_text(backup), is_default=True)
        message_id = await node.send()
        await until(lambda: len(first.messages) >= 1, "the first copy was sent")
        first.misbehave(temporary_at(Stage.GREETING))
        await node.until_held(main)
        await asyncio.sleep(1.5)
        assert second.messages == []
        assert (await node.show(message_id)).state is State.WAITING


async def test_what_was_cut_off_by_a_crash_never_goes_to_the_fallback(node: Installation) -> None:
    async with MisbehavingServer(temporary_at(Stage.GREETING)) as first, MisbehavingServer() as second:
        backup = await node.add_server(second, name="backup")
        main = await node.add_server(first, name="main", is_default=True)
        message_id = await node.send()
        await node.until_held(main)
        await node.until_state(message_id, State.WAITING)
        # As a process leaves it that was killed while it had the message in hand.
        await node.posthouse.database.write(
            lambda c: c.exec_driver_sql(f"UPDATE recipient SET state = 2, due_ms = 0 WHERE message_id = {message_id}")
        )
        await node.edit_server(main, fallback_server_id=_text(backup))
        await until(lambda: node.posthouse.delivery.state_of(main).failures >= 2, "main was tried again")
        shown = await node.until_state(message_id, State.WAITING)
        assert shown.recipients[0].uncertain == 1
        fresh = await node.send()
        await node.until_state(fresh, State.DELIVERED)
        assert len(second.messages) == 1 and (await node.show(message_id)).state is State.WAITING


# ---------------------------------------------------------------- fallback


def _text(number: int) -> str:
    from posthouse.model.identifier import format_id

    return format_id(number)


async def test_the_fallback_takes_over_while_the_server_is_held_and_it_is_said(node: Installation) -> None:
    async with MisbehavingServer(temporary_at(Stage.GREETING)) as first, MisbehavingServer() as second:
        backup = await node.add_server(second, name="backup")
        await node.add_server(first, name="main", fallback_server_id=_text(backup), is_default=True)
        message_id = await node.send()
        await node.until_state(message_id, State.DELIVERED)
        lines = await node.timeline(message_id)
    assert len(second.messages) == 1 and first.messages == []
    assert any("backup" in line and "standing in for main" in line for line in lines)


@pytest.mark.parametrize("stage", [Stage.RCPT, Stage.DOT])
async def test_refused_content_never_goes_to_the_fallback(node: Installation, stage: Stage) -> None:
    async with MisbehavingServer(permanent_at(stage)) as first, MisbehavingServer() as second:
        backup = await node.add_server(second, name="backup")
        await node.add_server(first, name="main", fallback_server_id=_text(backup), is_default=True)
        await node.until_state(await node.send(), State.FAILED)
    assert second.messages == []


# ---------------------------------------------------------------- the switch, people, changes


async def test_the_switch_keeps_everything_in_and_refuses_new_mail(node: Installation, unused_tcp_port: int) -> None:
    async with MisbehavingServer() as server:
        server_id = await node.add_server(unused_tcp_port)
        message_id = await node.send()
        await node.until_held(server_id)
        await node.settings(sending_enabled=False)
        await node.edit_server(server_id, port=server.port)
        with pytest.raises(SendingOff, match="switched off"):
            await node.send()
        await asyncio.sleep(1.5)
        assert server.sessions == []
        assert "switched off" in (await node.timeline(message_id))[-1]
        await node.settings(sending_enabled=True)
        await node.until_state(message_id, State.DELIVERED)


async def test_without_a_global_default_nothing_is_taken(node: Installation) -> None:
    with pytest.raises(SendingOff, match="no enabled global default"):
        await node.send()


async def test_cancel_and_retry(node: Installation, unused_tcp_port: int) -> None:
    server_id = await node.add_server(unused_tcp_port)
    message_id = await node.send()
    await node.until_held(server_id)
    await node.until_state(message_id, State.WAITING)
    await node.posthouse.tracking.cancel(COMMAND, message_id)
    await node.until_state(message_id, State.CANCELLED)
    async with MisbehavingServer() as server:
        await node.edit_server(server_id, port=server.port)
        await node.posthouse.tracking.retry(COMMAND, message_id)
        await node.until_state(message_id, State.DELIVERED)
    assert "command line cancelled it." in await node.timeline(message_id)


async def test_an_operator_holds_and_releases(node: Installation) -> None:
    async with MisbehavingServer() as server:
        server_id = await node.add_server(server)
        await node.posthouse.tracking.hold(COMMAND, server_id, "Works on the line.")
        message_id = await node.send()
        await node.until_state(message_id, State.WAITING)
        await asyncio.sleep(1.2)
        assert server.sessions == []
        await node.posthouse.tracking.release(COMMAND, server_id)
        await node.until_state(message_id, State.DELIVERED)


async def test_mail_of_a_deleted_server_takes_another_route(node: Installation, unused_tcp_port: int) -> None:
    async with MisbehavingServer() as server:
        old = await node.add_server(unused_tcp_port, name="old")
        message_id = await node.send()
        await node.until_held(old)
        await node.until_state(message_id, State.WAITING)
        new = await node.add_server(server, name="new")
        await node.posthouse.administration.delete(COMMAND, "server", [old], successor=new)
        await node.until_state(message_id, State.DELIVERED)
        assert any("new was chosen: chosen again" in line for line in await node.timeline(message_id))


async def test_mail_of_a_disabled_server_waits_and_says_so(node: Installation, unused_tcp_port: int) -> None:
    async with MisbehavingServer() as server:
        await node.add_server(server, name="global")
        other = await node.add_server(unused_tcp_port, name="other", from_filter=["example.org"])
        message_id = await node.send()
        await node.until_held(other)
        await node.posthouse.administration.set_enabled(COMMAND, other, False)
        await node.until_state(message_id, State.WAITING)
        assert "other is disabled." in (await node.timeline(message_id))[-1]
        assert server.messages == []


async def test_scheduled_mail_waits_for_its_time(node: Installation) -> None:
    async with MisbehavingServer() as server:
        await node.add_server(server)
        now_ms = node.posthouse.clock.now_ms()
        message_id = await node.send(send_at_ms=now_ms + 1500)
        assert (await node.show(message_id)).state is State.WAITING
        assert "it is scheduled for" in (await node.timeline(message_id))[-1]
        await node.until_state(message_id, State.DELIVERED)
        assert node.posthouse.clock.now_ms() >= now_ms + 1500


async def test_mail_past_its_expiry_is_never_sent(node: Installation, unused_tcp_port: int) -> None:
    async with MisbehavingServer() as server:
        server_id = await node.add_server(unused_tcp_port)
        message_id = await node.send(expires_ms=node.posthouse.clock.now_ms() + 1000)
        await node.until_held(server_id)
        await asyncio.sleep(1.2)
        await node.edit_server(server_id, port=server.port)
        await node.until_state(message_id, State.EXPIRED)
        assert server.messages == []


async def test_fax_numbers_are_refused_while_there_is_no_fax_server(node: Installation) -> None:
    async with MisbehavingServer() as server:
        await node.add_server(server)
        with pytest.raises(NoRoute, match="fax"):
            await node.send("+4930123456@fax")


# ---------------------------------------------------------------- restart


async def test_what_was_accepted_survives_a_restart(tmp_path: Path, unused_tcp_port: int) -> None:
    async with installation(tmp_path) as node:
        await node.add_application()
        server_id = await node.add_server(unused_tcp_port)
        sent = [await node.send() for _ in range(5)]
        large = await node.send(raw=b"Subject: large\r\n\r\n" + b"x" * 70 * 1024 * 10 + b"\r\n")
    async with MisbehavingServer() as server, installation(tmp_path) as node:
        await node.edit_server(server_id, port=server.port)
        for message_id in (*sent, large):
            await node.until_state(message_id, State.DELIVERED)
    assert len(server.messages) == 6


# ---------------------------------------------------------------- reports of failure


async def test_a_report_goes_to_the_sender_where_the_application_asked_for_it(node: Installation) -> None:
    async with MisbehavingServer(replies_by_recipient({"gone@example.net": "550 5.1.1 No such person"})) as server:
        await node.add_server(server)
        await node.add_application("asking", bounces=True)
        await node.until_state(await node.send("gone@example.net"), State.FAILED)
        await until(lambda: len(server.messages) == 1, "the report came")
    (report,) = server.messages
    assert report.mail_from == "" and report.recipients == ("anna@example.org",)
    parsed = message_from_bytes(report.content)
    assert parsed.get_content_type() == "multipart/report"
    assert parsed["Auto-Submitted"] == "auto-replied"
    status = [p for p in parsed.walk() if p.get_content_type() == "message/delivery-status"]
    fields = {k: v for part in status[0].get_payload() for k, v in part.items()}  # type: ignore[union-attr]
    assert fields["Action"] == "failed" and fields["Status"] == "5.1.1"
    assert "gone@example.net" in fields["Final-Recipient"]


@pytest.mark.parametrize(("offers", "reports"), [(True, 0), (False, 1)])
async def test_success_is_reported_where_it_was_asked_for_and_the_server_does_not(
    node: Installation, offers: bool, reports: int
) -> None:
    async with MisbehavingServer(*([] if offers else [without("DSN")])) as server:
        await node.add_server(server)
        await node.add_application("asking", bounces=True)
        handover = node.handover(["bob@example.net"], "anna@example.org", b"From: anna@example.org\r\n\r\nx\r\n")
        recipient = EnvelopeRecipient("bob@example.net", notify="SUCCESS,FAILURE", orcpt="rfc822;bob@example.net")
        handover.envelope = replace(handover.envelope, recipients=(recipient,), envid="QQ314159")
        (answer,) = await node.posthouse.submission.accept([handover])
        assert isinstance(answer, int)
        await node.until_state(answer, State.DELIVERED)
        await node.until_state(await node.send(), State.DELIVERED)
        await until(lambda: len(server.messages) == 2 + reports, "the report")
    found = [m for m in server.messages if m.mail_from == ""]
    assert len(found) == reports
    if found:
        assert b"Action: relayed" in found[0].content and b"QQ314159" in found[0].content
    else:
        assert "NOTIFY=SUCCESS,FAILURE" in server.messages[0].recipient_parameters["bob@example.net"]


@pytest.mark.parametrize(
    ("mail_from", "raw"),
    [
        ("", b"From: anna@example.org\r\n\r\nx\r\n"),
        ("anna@example.org", b"From: anna@example.org\r\nAuto-Submitted: auto-generated\r\n\r\nx\r\n"),
    ],
)
async def test_no_report_to_nobody_and_none_about_automats(node: Installation, mail_from: str, raw: bytes) -> None:
    async with MisbehavingServer(replies_by_recipient({"gone@example.net": "550 5.1.1 No"})) as server:
        await node.add_server(server)
        await node.add_application("asking", bounces=True)
        await node.until_state(await node.send("gone@example.net", mail_from=mail_from, raw=raw), State.FAILED)
        await node.until_state(await node.send(), State.DELIVERED)
    assert len(server.messages) == 1


async def test_a_report_that_is_refused_makes_no_other(node: Installation) -> None:
    async with MisbehavingServer(permanent_at(Stage.RCPT, "5.1.1 No such person")) as server:
        await node.add_server(server)
        await node.add_application("asking", bounces=True)
        first = await node.send()
        await node.until_state(first, State.FAILED)
        await until(lambda: node.posthouse.delivery.counters.failed == 2, "the report failed too")
        await asyncio.sleep(0.3)
        assert node.posthouse.delivery.counters.failed == 2


# ---------------------------------------------------------------- capture


async def test_the_sandbox_keeps_mail_and_nothing_leaves(node: Installation) -> None:
    record = await node.posthouse.administration.create(COMMAND, "server", {"kind": "capture", "name": "sandbox"})
    message_id = await node.send("bob@example.net", "carol@example.net")
    await node.until_state(message_id, State.DELIVERED)
    (captured,) = await node.posthouse.tracking.captured(COMMAND)
    assert captured.id == message_id and captured.server_id == record.id
    raw = b"".join([piece async for piece in await node.posthouse.tracking.raw(COMMAND, message_id)])
    assert raw.endswith(b"\r\n\r\nHello.\r\n")


async def test_times_that_make_no_sense_are_refused_naming_the_field(node: Installation) -> None:
    now_ms = node.posthouse.clock.now_ms()
    await node.posthouse.administration.create(COMMAND, "server", {"kind": "capture", "name": "sandbox"})
    cases: list[tuple[str, dict[str, Any]]] = [
        ("send_at", {"send_at_ms": now_ms + 400 * 86_400_000}),
        ("expires_at", {"expires_ms": now_ms - 1}),
        ("expires_at", {"send_at_ms": now_ms + 60_000, "expires_ms": now_ms + 50_000}),
    ]
    for field, times in cases:
        with pytest.raises(InvalidInput) as caught:
            await node.send(**times)
        assert caught.value.field == field
