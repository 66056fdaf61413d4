"""Transcripts show what was said, bounded, and never a secret (threat A12)."""

import base64
import json
from urllib.parse import quote, quote_plus

import pytest

from posthouse.protocol.transcript import HIDDEN, MAX_LINE_CHARACTERS, Mask, Transcript

SECRET = 'c4nary+/pä"ss word\\'


def now() -> float:
    return 0.0


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_secret_inside_base64_is_hidden(before: int, encode: object) -> None:
    raw = b"x" * before + SECRET.encode() + b"behind"
    text = encode(raw).decode()  # type: ignore[operator]
    shown = Mask([SECRET])(f"535 you said {text} to me")
    assert HIDDEN in shown
    for length in range(8, len(text)):
        part = base64.b64encode(SECRET.encode()).decode().rstrip("=")[:length]
        assert part not in shown


@pytest.mark.parametrize(
    "echo",
    [
        SECRET,
        quote(SECRET),
        quote(SECRET, safe=""),
        quote_plus(SECRET),
        json.dumps(SECRET, ensure_ascii=False),
        SECRET.encode().hex(),
        SECRET.encode().hex().upper(),
        SECRET.encode().decode("latin-1"),
    ],
)
def test_an_echo_is_hidden_in_every_form(echo: str) -> None:
    shown = Mask([SECRET])(f"535 wrong: {echo}!")
    assert shown.startswith("535 wrong: ") and "4nary" not in shown and echo.strip('"') not in shown


def test_text_without_a_secret_stays_as_it_is() -> None:
    assert Mask([SECRET])("250 Ok") == Mask()("250 Ok") == "250 Ok"
    assert Mask([""])("250 Ok") == "250 Ok"


def test_what_is_sent_as_a_secret_is_not_written_down() -> None:
    transcript = Transcript(now)
    transcript.sent(b"AUTH PLAIN AHUAcA==\r\n", secret=True)
    transcript.sent(b"cGFzc3dvcmQ=\r\n", secret=True)
    transcript.sent(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n")
    assert [line.text for line in transcript.lines] == [
        f"AUTH PLAIN {HIDDEN}", HIDDEN, "MAIL FROM:<a@b>", "RCPT TO:<c@d>",
    ]  # fmt: skip


def test_what_comes_is_put_together_and_masked_before_it_is_cut() -> None:
    transcript = Transcript(now)
    transcript.mask.add(["hunter22"])
    for piece in (b"220 he", b"llo\r", b"\n535 hun", b"ter22\r\n250 "):
        transcript.received(piece)
    transcript.received(b"x" * (MAX_LINE_CHARACTERS - 8) + b"hunter22 and more\r\n")
    shown = [line.text for line in transcript.lines]
    assert shown[:2] == ["220 hello", f"535 {HIDDEN}"]
    assert "hunt" not in shown[2] and len(shown[2]) < MAX_LINE_CHARACTERS + 20


def test_a_transcript_is_bounded() -> None:
    transcript = Transcript(now, max_lines=10)
    for number in range(1000):
        transcript.received(b"250 line %d\r\n" % number)
    transcript.received(b"x" * 10_000_000)
    transcript.flush()
    assert len(transcript.lines) == 10
    assert all(len(line.text) <= MAX_LINE_CHARACTERS + 4 for line in transcript.lines)


def test_lines_say_when_they_came() -> None:
    times = iter([5.0, 5.5, 7.0])
    transcript = Transcript(lambda: next(times))
    transcript.received(b"220 hello\r\n")
    transcript.note("TLS")
    assert [(line.direction, line.at_s) for line in transcript.lines] == [("received", 0.5), ("note", 2.0)]


def test_content_is_only_counted() -> None:
    transcript = Transcript(now)
    transcript.content(12345)
    assert transcript.lines[0].text == "[12345 octets of message]"
