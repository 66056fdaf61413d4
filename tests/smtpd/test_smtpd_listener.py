"""The SMTP listeners over real sockets: messages, smuggling, caps, times, drain, PROXY, faults of ours."""

import base64
import ipaddress
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import structlog

from posthouse.errors import ConfigurationError, StoreUnavailable
from posthouse.protocol.smtp_server import BareLineEnds, SessionSettings, Submitted
from posthouse.smtpd.connections import Done, ListenerSettings, capped_as
from tests.support.processes import wait_until
from tests.support.smtp_listener import HOST, LOOPS, QUICK, LineClient, ManualClock, RunningListener, open_clients
from tests.support.submission import KeepingHandler, ListPolicy

OPENING = ("EHLO c", "MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA")
BEGUN = ["250", "250", "250", "354"]

Start = Callable[..., RunningListener]


@pytest.fixture(params=LOOPS)
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Start listeners, each with either event loop."""
    with ExitStack() as stack:

        def begin(**options: Any) -> RunningListener:
            return stack.enter_context(RunningListener(request.param, **options))

        yield begin


def test_messages_come_through_on_one_connection(start: Start) -> None:
    running = start()
    with LineClient(running.port) as client:
        for number in range(3):
            assert client.say(*OPENING) == BEGUN
            client.send(f"message {number}\r\n..\r\n.\r\n".encode())
            assert client.reply() == f"250 2.0.0 Ok: queued as {number + 1:013d}"
        assert client.say("QUIT") == ["221"]
        assert client.closed
    assert running.keeping.contents == [f"message {number}\r\n.\r\n".encode() for number in range(3)]
    assert running.listener.counters.messages_accepted == 3
    wait_until(lambda: running.listener.open_connections == 0)


def test_everything_sent_at_once_is_answered_in_order(start: Start) -> None:
    running = start(handler=(handler := KeepingHandler(at_once=False)))
    message = "\r\n".join(OPENING[1:]).encode() + b"\r\nhello\r\n.\r\n"
    with LineClient(running.port) as client:
        client.send(b"EHLO c\r\n" + message * 50 + b"QUIT\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        for _ in range(50):
            wait_until(lambda: handler.waiting)
            running.in_loop(handler.release)
        replies = [client.reply()[:3] for _ in range(1 + 50 * 4 + 1)]
        assert client.closed
    assert replies == ["250", *["250", "250", "354", "250"] * 50, "221"]


def test_what_came_before_the_end_of_input_is_kept_and_answered(start: Start) -> None:
    running = start(handler=(handler := KeepingHandler(at_once=False)))
    with LineClient(running.port) as client:
        client.send("\r\n".join(OPENING).encode() + b"\r\nhello\r\n.\r\n")
        client.socket.shutdown(socket.SHUT_WR)
        wait_until(lambda: handler.waiting)
        running.in_loop(handler.release)
        assert [client.reply()[:3] for _ in range(6)] == [*BEGUN, "250", ""]


def test_an_error_of_the_handler_is_the_reply_and_the_session_goes_on(start: Start) -> None:
    running = start(handler=KeepingHandler(answer=StoreUnavailable("The database does not answer.")))
    with LineClient(running.port) as client:
        assert client.say(*OPENING) == BEGUN
        assert client.say(".")[0] == "451"
        assert client.say("NOOP") == ["250"]
    assert running.listener.counters.messages_refused == 1


class BrokenHandler:
    """Has a fault."""

    def submit(self, submitted: Submitted, done: Done) -> None:
        raise ZeroDivisionError


class BrokenPolicy(ListPolicy):
    """Has a fault."""

    def check_recipient(self, sender: object, address: str) -> None:
        raise ZeroDivisionError


def test_a_fault_of_ours_is_temporary_for_the_client(start: Start) -> None:
    with LineClient(start(handler=BrokenHandler()).port) as client:
        assert client.say(*OPENING) == BEGUN
        assert client.say(".", "NOOP") == ["451", "250"]
    with LineClient(start(policy=BrokenPolicy(admitted=("127.",))).port) as client:
        assert client.say(*OPENING[:3]) == ["250", "250", "421"]
        assert client.closed


def test_a_connection_lost_while_its_message_is_kept_harms_nothing(start: Start) -> None:
    running = start(handler=(handler := KeepingHandler(at_once=False)))
    with LineClient(running.port) as client:
        client.send("\r\n".join(OPENING).encode() + b"\r\nhello\r\n.\r\n")
        wait_until(lambda: handler.waiting)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_until(lambda: running.listener.open_connections == 0)
    running.in_loop(handler.release)
    with LineClient(running.port) as client:
        assert client.say("NOOP") == ["250"]


# --- smuggling -------------------------------------------------------------------------------------------------------

FALSE_ENDS = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r", b"\r.\n", b"\r\r\n.\r\r\n",
    b"\r\n\0.\r\n", b"\r\n.\0\r\n",
]  # fmt: skip
SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<v@example.org>\r\nDATA\r\nboo\r\n.\r\n"


@pytest.mark.parametrize("apart", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize("bare", list(BareLineEnds))
@pytest.mark.parametrize("false_end", FALSE_ENDS, ids=[repr(end) for end in FALSE_ENDS])
def test_nothing_but_the_true_end_ends_a_message(false_end: bytes, bare: BareLineEnds, apart: bool) -> None:
    with RunningListener(session=SessionSettings("mail.example.org", bare_line_ends=bare)) as running:
        with LineClient(running.port) as client:
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            assert client.say(*OPENING) == BEGUN
            data = b"Subject: x\r\n\r\nhi" + false_end + SMUGGLED
            for piece in [data[at : at + 1] for at in range(len(data))] if apart else [data]:
                client.send(piece)
            refused = bare is BareLineEnds.REFUSE or b"\0" in false_end
            assert client.reply()[:10] == ("550 5.6.11" if refused else "250 2.0.0 ")
            assert client.say("NOOP", "QUIT") == ["250", "221"]
        assert len(running.keeping.taken) == (0 if refused else 1)


# --- caps and times --------------------------------------------------------------------------------------------------


def test_connections_beyond_the_caps_are_turned_away(start: Start) -> None:
    running = start(settings=ListenerSettings(max_connections=5, max_connections_per_peer=3, sweep_interval_s=0.02))
    with open_clients(running.port, 3) as clients:
        with LineClient(running.port, banner=False) as fourth:
            assert fourth.reply().startswith("421 4.7.0 ")
            assert fourth.closed
        with (
            LineClient(running.port, source="127.0.0.2"),
            LineClient(running.port, source="127.0.0.2"),
            LineClient(running.port, source="127.0.0.3", banner=False) as sixth,
        ):
            assert sixth.reply().startswith("421 4.7.0 ")
        assert clients[0].say("QUIT") == ["221"]
        wait_until(lambda: running.listener.open_connections == 2)
        with LineClient(running.port) as again:
            assert again.say("NOOP") == ["250"]
    assert running.listener.counters.refused == 2


def test_the_cap_per_peer_takes_an_ipv6_network_as_one() -> None:
    peers = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2:3:4:5", "2001:db8:0:1::1"]
    assert [capped_as(peer) for peer in peers] == [*peers[:2], "2001:db8::", "2001:db8::", "2001:db8:0:1::"]


def test_idle_and_trickling_sessions_end(start: Start) -> None:
    clock = ManualClock()
    settings = ListenerSettings(sweep_interval_s=0.02, idle_timeout_s=300, content_timeout_s=900)
    running = start(settings=settings, clock=clock)
    with open_clients(running.port, 3) as (idle, trickling, sending):
        assert sending.say(*OPENING) == BEGUN
        for _ in range(4):
            settled(running)
            clock.advance(100)
            # A command that never comes to its end is as idle as none; content that flows is not.
            trickling.send(b"N")
            sending.send(b"still sending\r\n" * 10)
        for client in (idle, trickling):
            assert client.reply().startswith("421 4.4.2 ")
            assert client.closed
        assert sending.say(".") == ["250"]
        assert sending.say(*OPENING) == BEGUN
        for _ in range(10):
            settled(running)
            clock.advance(100)
            sending.send(b"for ever\r\n" * 10)
        assert sending.reply().startswith("421 4.4.2 ")
    assert running.listener.counters.timeouts == 3


def settled(running: RunningListener) -> None:
    """Wait until the listener has read what was sent, and swept."""
    for _ in range(3):
        time.sleep(QUICK.sweep_interval_s)  # the sweep's own interval, not the time under test
        running.in_loop(lambda: None)


def test_a_message_being_kept_is_never_timed_out(start: Start) -> None:
    clock = ManualClock()
    running = start(clock=clock, handler=(handler := KeepingHandler(at_once=False)))
    with LineClient(running.port) as client:
        client.send("\r\n".join(OPENING).encode() + b"\r\n.\r\n")
        wait_until(lambda: handler.waiting)
        for _ in range(3):
            clock.advance(10_000)
            settled(running)
        running.in_loop(handler.release)
        assert [client.reply()[:3] for _ in range(5)] == [*BEGUN, "250"]


def test_a_client_that_never_reads_is_ended_and_costs_little(start: Start) -> None:
    clock = ManualClock()
    running = start(clock=clock)
    with LineClient(running.port) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.socket.settimeout(1)
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 200_000_000:
                sent += client.socket.send(b"HELP\r\n" * 10_000)
        assert sent < 50_000_000
        settled(running)
        clock.advance(400)
        settled(running)
        clock.advance(400)
        wait_until(lambda: running.listener.open_connections == 0)


# --- end -------------------------------------------------------------------------------------------------------------


def test_drain_ends_idle_sessions_and_waits_for_messages(start: Start) -> None:
    running = start(handler=(handler := KeepingHandler(at_once=False)))
    with open_clients(running.port, 3) as (idle, sending, kept):
        assert sending.say(*OPENING) == BEGUN
        assert kept.say(*OPENING) == BEGUN
        kept.send(b".\r\n")
        wait_until(lambda: handler.waiting)
        finish = running.start_call(running.listener.drain(10))
        assert idle.reply().startswith("421 4.3.2 ")
        assert idle.closed
        with pytest.raises(OSError):
            socket.create_connection((HOST, running.port), 1).close()
        sending.send(b"the rest\r\n.\r\n")
        wait_until(lambda: len(handler.waiting) == 2)
        running.in_loop(handler.release)
        for client in (sending, kept):
            assert [client.reply()[:9] for _ in range(3)] == ["250 2.0.0", "421 4.3.2", ""]
        assert finish() is True


def test_drain_cuts_off_what_does_not_end(start: Start) -> None:
    running = start()
    with LineClient(running.port) as client:
        assert client.say(*OPENING) == BEGUN
        assert running.call(running.listener.drain(0.05)) is False
        assert client.closed
    assert running.listener.open_connections == 0


def test_an_address_in_use_is_a_configuration_error(start: Start) -> None:
    running = start()
    with pytest.raises(ConfigurationError, match=f"port {running.port}"):
        running.call(running.listener.start(HOST, running.port))


def test_implicit_tls_without_certificate_is_a_configuration_error(start: Start) -> None:
    running = start()
    with pytest.raises(ConfigurationError, match="certificate"):
        running.call(running.listener.start(HOST, 0, implicit_tls=True))


def test_it_listens_on_ipv6() -> None:
    policy = ListPolicy(admitted=("::1",))
    with (
        RunningListener(policy=policy, host="::1") as running,
        socket.create_connection(("::1", running.port), 10) as client,
    ):
        assert client.recv(100).startswith(b"220 ")
        client.sendall(b"EHLO c\r\nMAIL FROM:<>\r\n")
        wait_until(lambda: b"250 2.1.0" in client.recv(1000))


# --- PROXY -----------------------------------------------------------------------------------------------------------

PROXIES = ListenerSettings(
    sweep_interval_s=0.02, proxy_networks=(ipaddress.IPv4Network("127.0.0.1/32"),), max_connections_per_peer=2
)
V1 = b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 25\r\n"


def test_a_listed_balancer_speaks_for_others(start: Start) -> None:
    running = start(settings=PROXIES, policy=ListPolicy(admitted=("203.0.113.",)))
    for pieces in ([V1], [V1 + b"NOOP\r\n"], [V1[:9], V1[9:]]):
        with LineClient(running.port, banner=False) as client:
            for piece in pieces:
                client.send(piece)
            assert client.reply().startswith("220 ")
            if b"NOOP" in pieces[-1]:
                assert client.reply().startswith("250 ")
            assert client.say("EHLO c", "MAIL FROM:<>", "RCPT TO:<b@example.org>", "DATA", ".")[-1] == "250"
    assert {submitted.origin.peer for submitted in running.keeping.taken} == {"203.0.113.7"}


def test_a_client_behind_a_balancer_is_not_on_loopback(start: Start) -> None:
    running = start(settings=PROXIES)
    with LineClient(running.port, banner=False) as client:
        client.send(V1)
        client.reply()
        client.send(b"EHLO c\r\n")
        assert "AUTH" not in client.reply()


def test_the_cap_per_peer_counts_whom_the_balancer_names(start: Start) -> None:
    running = start(settings=PROXIES)
    with ExitStack() as stack:
        clients = [stack.enter_context(LineClient(running.port, banner=False)) for _ in range(4)]
        replies = []
        for client, last in zip(clients, (b"7", b"7", b"7", b"8"), strict=True):
            client.send(V1.replace(b"113.7", b"113." + last))
            replies.append(client.reply()[:3])
        assert replies == ["220", "220", "421", "220"]


def test_a_balancer_without_header_and_others_with_one_get_nowhere(start: Start) -> None:
    running = start(settings=PROXIES)
    with LineClient(running.port, banner=False) as client:
        client.send(b"EHLO c\r\n")
        assert client.closed
    assert running.listener.counters.proxy_failures == 1
    with LineClient(running.port, source="127.0.0.2") as client:
        assert client.say(V1.decode().strip()) == ["500"]


def test_a_balancer_that_says_nothing_is_ended(start: Start) -> None:
    clock = ManualClock()
    running = start(settings=PROXIES, clock=clock)
    with LineClient(running.port, banner=False) as client:
        wait_until(lambda: running.listener.open_connections == 1)
        clock.advance(31)
        assert client.closed


# --- flow and logs ---------------------------------------------------------------------------------------------------


def test_what_is_sent_ahead_of_a_pending_message_stays_outside_beyond_a_bound(start: Start) -> None:
    running = start(handler=(handler := KeepingHandler(at_once=False)))
    with LineClient(running.port) as client:
        client.send("\r\n".join(OPENING).encode() + b"\r\nhello\r\n.\r\n")
        wait_until(lambda: handler.waiting)
        client.socket.settimeout(1)
        sent = bytearray()
        flood = b"NOOP\r\n" * 10_000
        with pytest.raises(TimeoutError):
            while len(sent) < 200_000_000:
                sent += flood[: client.socket.send(flood[len(sent) % 6 :])]
        # Ours, and the kernel's buffers on both sides.
        assert len(sent) < 20_000_000
        client.socket.settimeout(10)
        running.in_loop(handler.release)
        assert [client.reply()[:3] for _ in range(5 + 1000)] == [*BEGUN, *["250"] * 1001]


class HastyHandler(KeepingHandler):
    """Answers each message twice."""

    def submit(self, submitted: Submitted, done: Done) -> None:
        self.taken.append(submitted)
        submitted.content.finish()
        done("first")
        done("second")
        self.waiting.append(done)


def test_a_second_answer_to_a_message_is_nobodys(start: Start) -> None:
    running = start(handler=(handler := HastyHandler()))
    with LineClient(running.port) as client:
        for _ in range(2):
            assert client.say(*OPENING) == BEGUN
            client.send(b".\r\n")
            assert client.reply() == "250 2.0.0 Ok: queued as first"
        running.in_loop(handler.release)
        assert client.say("NOOP") == ["250"]


def test_logs_hold_no_secret_and_no_control_character(start: Start) -> None:
    with structlog.testing.capture_logs() as logged:
        running = start(policy=ListPolicy(passwords={"shop": "secret"}))
        with LineClient(running.port) as client:
            login = base64.b64encode(b"\0sh\x1b[2Jop\nINFO all is well\0canary").decode()
            client.say("EHLO \x1b[2Jcanary", "EHLO c", *[f"AUTH PLAIN {login}"] * 4, *["canary"] * 20)
            assert client.closed
        wait_until(lambda: running.listener.open_connections == 0)
    events = [entry["event"] for entry in logged]
    assert events.count("smtp.authentication_failed") == 4
    assert "smtp.too_many_errors" in events
    assert not [entry for entry in logged if "canary" in str(entry) or "\\x1b" in repr(entry) or "\\n" in repr(entry)]
