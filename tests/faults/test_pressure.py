"""F6, F13, F22, F23: no files left, a backlog while every server is down, very large messages, and the end under load."""

import hashlib
import random
import time
from collections.abc import Callable

import pytest

from tests.support.hub import Hub, SmtpDialogue, cpu_seconds
from tests.support.ledger import Ledger, LedgerSink, Load, LoadOptions, compare, message_octets
from tests.support.posthouse import PosthouseProcess
from tests.support.processes import free_port, wait_until

LARGE_OCTETS = 100 * 1024 * 1024 - 4096


def load_for(hub: Hub, ledger: Ledger, *, large_every: int = 0) -> Load:
    options = LoadOptions(smtp_sessions=5, rest_sessions=2, api_key=hub.api_key, pause_s=0.02, large_every=large_every)
    return Load(ledger, [hub.node.smtp_port], [hub.node.http_port], options)


# ---------------------------------------------------------------- F23


def test_asked_to_end_under_load_it_loses_nothing_repeats_nothing_and_ends_with_zero(
    start_hub: Callable[..., Hub], sink: LedgerSink, ledger: Ledger, database: str | None
) -> None:
    hub = start_hub(sink.port, database=database)
    sink.rules.dot_delay_s = 0.05
    with load_for(hub, ledger, large_every=40) as load:
        for _ in range(3):
            before = ledger.count()
            wait_until(lambda n=before: ledger.count() > n + 60, "60 acknowledgements", timeout_s=30)  # type: ignore[misc]
            begun = time.monotonic()
            assert hub.node.terminate(timeout_s=35) == 0
            assert time.monotonic() - begun < 30
            hub.node.start()
        load.stop()
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all acknowledged mail", timeout_s=40)
    hub.wait_until_quiet()
    verdict = compare(ledger, sink.arrivals())
    assert (verdict.lost, verdict.doubled) == ([], {})


# ---------------------------------------------------------------- F13


def drain_a_backlog(hub: Hub, sink: LedgerSink, ledger: Ledger, count: int) -> None:
    sink.stop()
    hub.submit(["first@example.org"], ledger=ledger)
    wait_until(lambda: hub.queue()[0]["held"], "the hold", timeout_s=20)
    options = LoadOptions(smtp_sessions=2, rest_sessions=2, list_length=100, api_key=hub.api_key, pause_s=0.0)
    with Load(ledger, [hub.node.smtp_port], [hub.node.http_port], options) as load:
        wait_until(lambda: ledger.count() >= count, f"{count} acknowledgements", timeout_s=120)
        load.stop()
    # Let what the load has left to do end, then look at what waiting costs.
    wait_until(lambda: _is_calm(hub), "less than a tenth of a processor", timeout_s=20)
    begun, used = time.monotonic(), cpu_seconds(hub.node.pid)
    wait_until(lambda: time.monotonic() > begun + 5, "five seconds", timeout_s=6)
    used = cpu_seconds(hub.node.pid) - used
    assert used / (time.monotonic() - begun) < 0.10
    # Back: it drains, and new mail does not wait for the whole backlog.
    sink.rules.dot_delay_s = 0.05
    sink.start()
    hub.node.cli("queue", "release", "office")
    wait_until(lambda: sink.count() > 20, "the first of the backlog", timeout_s=20)
    fresh = hub.submit(ledger=ledger)
    wait_until(lambda: sink.of(fresh), "the fresh message", timeout_s=10)
    assert compare(ledger, sink.arrivals()).lost, "the backlog was gone before new mail came: nothing was shown"
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "the backlog", timeout_s=30 + count / 30, every_s=0.3)
    hub.wait_until_quiet()
    assert compare(ledger, sink.arrivals()).doubled == {}


def _is_calm(hub: Hub) -> bool:
    used = cpu_seconds(hub.node.pid)
    begun = time.monotonic()
    wait_until(lambda: time.monotonic() > begun + 1, "a second", timeout_s=2)
    return cpu_seconds(hub.node.pid) - used < 0.10


def test_a_backlog_costs_nothing_while_servers_are_down_and_starves_no_new_mail(
    hub: Hub, sink: LedgerSink, ledger: Ledger
) -> None:
    drain_a_backlog(hub, sink, ledger, 2000)


@pytest.mark.soak
def test_a_large_backlog_costs_nothing_while_servers_are_down_and_starves_no_new_mail(
    hub: Hub, sink: LedgerSink, ledger: Ledger
) -> None:
    drain_a_backlog(hub, sink, ledger, 10_000)


# ---------------------------------------------------------------- F22


def large_message(token: str) -> bytes:
    """Give a message of nearly 100 MiB in which no two lines are alike, with dots at the start of some."""
    lines = random.Random(token).randbytes(LARGE_OCTETS // 2 + 64).hex().encode()
    body = b"\r\n".join(
        (b"." if i % 7000 == 0 else b"") + lines[i : i + 998 - 1]
        for i in range(0, LARGE_OCTETS - LARGE_OCTETS // 500, 997)
    )
    return message_octets(token, ["large@example.org"], "Large", 10) + body + b"\r\n"


@pytest.mark.parametrize(
    ("kind", "face"),
    [("sqlite", "smtp"), ("sqlite", "rest"), pytest.param("postgresql", "smtp", marks=pytest.mark.postgres)],
    indirect=["kind"],
)
def test_a_message_of_100_mb_arrives_byte_for_byte_in_flat_memory(
    start_hub: Callable[..., Hub],
    sink: LedgerSink,
    database: str | None,
    face: str,
    record_property: Callable[[str, object], None],
) -> None:
    hub = start_hub(sink.port, database=database)
    sink.keeps_content = True
    hub.submit()
    content = large_message(f"large-{face}")
    before = peak = hub.node.rss_octets
    if face == "smtp":
        with hub.smtp(timeout_s=120) as dialogue:
            assert dialogue.say(f"MAIL FROM:<a@example.org> SIZE={len(content)}").startswith("250")
            assert dialogue.say("RCPT TO:<large@example.org>").startswith("250")
            assert dialogue.say("DATA").startswith("354")
            dialogue.socket.sendall(content.replace(b"\r\n.", b"\r\n..") + b".\r\n")
            assert dialogue.reply().startswith("250")
    else:
        answer = hub.post_raw(content, ["large@example.org"], timeout_s=120)
        assert answer.status == 202, answer.body

    def arrived() -> bool:
        nonlocal peak
        peak = max(peak, hub.node.rss_octets)
        return f"large-{face}" in sink.contents

    wait_until(arrived, "the large message", timeout_s=120, every_s=0.02)
    peak = max(peak, peak_rss(hub.node))
    record_property("memory_growth_octets", peak - before)
    print(f"Memory grew by {(peak - before) / len(content):.2f} times the message's size.")
    assert peak - before < 3 * len(content)
    got = sink.contents[f"large-{face}"]
    assert got.startswith(b"Received: ")
    assert hashlib.sha256(got[len(got) - len(content) :]).digest() == hashlib.sha256(content).digest()


def peak_rss(node: PosthouseProcess) -> int:
    """Give the most memory that the process ever had resident."""
    with open(f"/proc/{node.pid}/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_more_than_the_limit_is_refused_before_it_is_sent(hub: Hub) -> None:
    hub.settings(max_message_octets=1_000_000)
    with hub.smtp() as dialogue:
        assert dialogue.say("MAIL FROM:<a@example.org> SIZE=1000001").startswith("552 5.3.4")
        assert dialogue.say("MAIL FROM:<a@example.org> SIZE=900000").startswith("250")
        assert dialogue.say("RCPT TO:<b@example.org>").startswith("250")
        assert dialogue.say("DATA").startswith("354")
        # The announcement was wrong: refused at the end, and the session goes on.
        dialogue.socket.sendall(b"From: a@example.org\r\n\r\n" + (b"x" * 98 + b"\r\n") * 11_000 + b".\r\n")
        assert dialogue.reply().startswith("552 5.3.4")
        assert dialogue.send(b"From: a@example.org\r\n\r\nx\r\n", ["b@example.org"]).startswith("250")
    content = b"From: a@example.org\r\n\r\n" + (b"x" * 98 + b"\r\n") * 11_000
    assert hub.post_raw(content, ["b@example.org"]).status == 413


def test_a_message_for_a_thousand_recipients_reaches_each_of_them_once(
    hub: Hub, sink: LedgerSink, ledger: Ledger
) -> None:
    hub.submit([f"r{i}@example.org" for i in range(1000)], ledger=ledger)
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all recipients", timeout_s=30)
    hub.wait_until_quiet()
    assert compare(ledger, sink.arrivals()).doubled == {}
    with hub.smtp() as dialogue:
        assert dialogue.say("MAIL FROM:<a@example.org>").startswith("250")
        replies = [dialogue.say(f"RCPT TO:<r{i}@example.org>") for i in range(1001)]
        assert all(reply.startswith("250") for reply in replies[:1000])
        # RFC 5321 section 4.5.3.1.10.
        assert replies[1000].startswith("452 4.5.3"), replies[1000]


# ---------------------------------------------------------------- F6


def test_without_file_descriptors_new_work_is_refused_and_what_was_taken_is_delivered(
    start_hub: Callable[..., Hub], sink: LedgerSink, ledger: Ledger
) -> None:
    hub = start_hub(sink.port, prefix=["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"])
    for _ in range(5):
        hub.submit(ledger=ledger)
    pid = hub.node.pid
    held: list[SmtpDialogue] = []
    try:
        while len(held) < 80:
            try:
                dialogue = hub.smtp(timeout_s=1.5)
            except (OSError, EOFError):
                break
            held.append(dialogue)
        assert 10 < len(held) < 80
        # Those that have a connection are answered, with acceptance or with a refusal for now.
        for number, dialogue in enumerate(held[:8]):
            token = f"files-{number}"
            octets = 300_000 if number % 4 == 0 else 500
            reply = dialogue.send(
                message_octets(token, [f"{token}@example.org"], "Files", octets), [f"{token}@example.org"]
            )
            assert reply.startswith(("250", "4")), reply
            if reply.startswith("250"):
                ledger.acknowledge(token, [f"{token}@example.org"])
    finally:
        for dialogue in held:
            dialogue.close()
    wait_until(lambda: _takes_mail(hub, ledger), "new mail being taken again", timeout_s=20, every_s=0.2)
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all acknowledged mail", timeout_s=40)
    assert compare(ledger, sink.arrivals()).doubled == {}
    assert hub.node.pid == pid


def _takes_mail(hub: Hub, ledger: Ledger) -> bool:
    try:
        hub.submit(ledger=ledger)
    except (OSError, EOFError, AssertionError):
        return False
    return True


def test_a_port_that_nobody_listens_on_costs_no_time_of_the_processor(hub: Hub, ledger: Ledger) -> None:
    """Many servers down at once, each with mail, is the same as one."""
    for number in range(5):
        hub.add_server(f"down{number}", free_port(), "--from-filter", f"d{number}.example")
    for number in range(5):
        for _ in range(10):
            answer = hub.post({"from": f"a@d{number}.example", "to": ["b@example.org"], "text": "x"})
            assert answer.status == 202, answer.body
    wait_until(lambda: sum(bool(line["held"]) for line in hub.queue()) == 5, "five holds", timeout_s=20)
    wait_until(lambda: _is_calm(hub), "less than a tenth of a processor", timeout_s=20)
