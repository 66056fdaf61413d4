"""Replies are read the same, however the network cuts them, and what is no reply is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.model.outcome import Reply
from posthouse.protocol.smtp_reply import MAX_REPLY_LINES, ReplyFault, ReplyReader

READ = {
    "plain": (b"250 Ok\r\n", [Reply(250, "", "Ok")]),
    "enhanced": (b"250 2.1.0 Ok\r\n", [Reply(250, "2.1.0", "Ok")]),
    "enhanced, unusual": (b"550 5.7.133 Not you\r\n", [Reply(550, "5.7.133", "Not you")]),
    "enhanced without text": (b"250 2.1.0\r\n", [Reply(250, "2.1.0", "")]),
    "leading zeros": (b"550 5.07.001 No\r\n", [Reply(550, "5.7.1", "No")]),
    "class mismatch stays text": (b"550 4.7.1 No\r\n", [Reply(550, "", "4.7.1 No")]),
    "no text": (b"250 \r\n", [Reply(250, "", "")]),
    "no space": (b"250\r\n", [Reply(250, "", "")]),
    "line feed only": (b"250 2.0.0 Ok\n354 Go\n", [Reply(250, "2.0.0", "Ok"), Reply(354, "", "Go")]),
    "multi-line": (
        b"550-5.7.1 First\r\n550-5.7.1 second\r\n550 5.7.1 third\r\n",
        [Reply(550, "5.7.1", "First\nsecond\nthird")],
    ),
    "enhanced code on the first line only": (b"550-5.7.1 a\r\n550 b\r\n", [Reply(550, "5.7.1", "a\nb")]),
    "lines of different codes": (b"250-a\r\n550 b\r\n", [Reply(550, "", "a\nb")]),
    "multi-line with bare last code": (b"250-a\r\n250\r\n", [Reply(250, "", "a\n")]),
    "UTF-8": ("550 5.1.1 Empfänger unbekannt\r\n".encode(), [Reply(550, "5.1.1", "Empfänger unbekannt")]),
    "Latin-1": ("550 Empf\xe4nger\r\n".encode("latin-1"), [Reply(550, "", "Empfänger")]),
    "bare CR inside": (b"250 a\rb\r\n", [Reply(250, "", "a\rb")]),
    "group": (
        b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n354 End data\r\n",
        [Reply(250, "2.1.0", "Ok"), Reply(250, "2.1.5", "Ok"), Reply(354, "", "End data")],
    ),
    "long line": (b"250 " + b"x" * 4000 + b"\r\n", [Reply(250, "", "x" * 4000)]),
}
REFUSED = {
    "letters": b"Hello there\r\n",
    "empty line": b"\r\n",
    "two digits": b"25 Ok\r\n",
    "four digits": b"2500 Ok\r\n",
    "no separator": b"250Ok\r\n",
    "1yz": b"150 Ok\r\n",
    "6yz": b"650 Ok\r\n",
    "other digits": "٢٥٠ Ok\r\n".encode(),
    "HTTP": b"HTTP/1.1 400 Bad Request\r\n",
    "TLS alert": b"\x15\x03\x01\x00\x02\x02\x0a\n",
    "endless line": b"250 " + b"x" * 5000,
    "too long a line": b"250 " + b"x" * 5000 + b"\r\n",
    "endless reply": b"250-x\r\n" * (MAX_REPLY_LINES + 1),
    "too large a reply": (b"250-" + b"x" * 4000 + b"\r\n") * 20,
}


@pytest.mark.parametrize("name", READ)
def test_a_reply_is_read(name: str) -> None:
    data, expected = READ[name]
    assert ReplyReader().feed(data) == expected


@pytest.mark.parametrize("name", READ)
def test_a_reply_is_read_octet_by_octet(name: str) -> None:
    data, expected = READ[name]
    reader = ReplyReader()
    assert [reply for octet in data for reply in reader.feed(bytes((octet,)))] == expected
    assert reader.is_idle


@given(st.lists(st.sampled_from(sorted(READ)), max_size=8), st.data())
def test_however_replies_are_cut_they_are_the_same(names: list[str], data: st.DataObject) -> None:
    octets = b"".join(READ[name][0] for name in names)
    expected = [reply for name in names for reply in READ[name][1]]
    cuts = data.draw(st.lists(st.integers(0, len(octets)), max_size=10).map(sorted))
    reader = ReplyReader()
    found: list[Reply] = []
    for start, end in zip([0, *cuts], [*cuts, len(octets)], strict=True):
        found += reader.feed(octets[start:end])
    assert found == expected


@given(st.binary(max_size=300))
def test_any_octets_are_replies_or_a_fault(octets: bytes) -> None:
    reader = ReplyReader()
    try:
        replies = reader.feed(octets)
    except ReplyFault as fault:
        replies = fault.replies
    assert all(200 <= reply.code < 600 for reply in replies)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_reply_is_refused(name: str) -> None:
    with pytest.raises(ReplyFault):
        ReplyReader().feed(REFUSED[name])


@pytest.mark.parametrize("name", REFUSED)
def test_replies_before_garbage_are_kept(name: str) -> None:
    with pytest.raises(ReplyFault) as raised:
        ReplyReader().feed(b"250 2.1.0 Ok\r\n" + REFUSED[name])
    assert raised.value.replies == [Reply(250, "2.1.0", "Ok")]
    assert len(raised.value.line) <= 200


def test_memory_is_bounded_while_a_line_trickles_in() -> None:
    reader = ReplyReader()
    with pytest.raises(ReplyFault):
        for _ in range(10_000):
            reader.feed(b"2")


def test_a_cached_group_is_given_anew_each_time() -> None:
    reader = ReplyReader()
    data = b"250 Ok\r\n354 Go\r\n"
    first = reader.feed(data)
    first.clear()
    assert reader.feed(data) == [Reply(250, "", "Ok"), Reply(354, "", "Go")]


def test_a_mask_goes_over_every_reply_from_then_on() -> None:
    reader = ReplyReader()
    data = b"250 2.1.0 hunter2\r\n250 hunter2\r\n"
    assert "hunter2" in str(reader.feed(data))
    reader.hide(lambda text: text.replace("hunter2", "***"))
    assert "hunter2" not in str(reader.feed(data))
    assert "hunter2" not in str(reader.feed(b"535 5.7.8 hunter2\r\n"))
    assert "hunter2" not in str(reader.feed(b"535-a\r\n535 hunter2\r\n"))
