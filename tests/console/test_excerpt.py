"""What is shown of a message: found in bounded time, whatever the message is like (threat A18)."""

import time
from email.message import EmailMessage

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.console.excerpt import MAX_OCTETS, MAX_PARTS, MAX_TEXT, excerpt_of


def made(**options: object) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "ada@example.org"
    message["Subject"] = "Grüße"
    message.set_content("Größe 1\n", **options)  # type: ignore[arg-type]
    return message


def octets(message: EmailMessage) -> bytes:
    return message.as_bytes().replace(b"\n", b"\r\n")


@pytest.mark.parametrize("encoding", ["8bit", "quoted-printable", "base64"])
def test_the_plain_text_is_found_and_decoded(encoding: str) -> None:
    message = made(cte=encoding)
    message.add_alternative("<p>Größe 2</p>", subtype="html")
    message.add_attachment(b"\0\1", maintype="image", subtype="png", filename="bild ü.png")
    found = excerpt_of(octets(message), is_cut=False)
    assert found.text == "Größe 1\n"
    assert dict(found.fields)["Subject"] == "Grüße"
    assert [part.content_type for part in found.parts] == ["text/plain", "text/html", "image/png"]
    assert not found.is_cut


@pytest.mark.parametrize("charset", ["iso-8859-1", "utf-8", "windows-1252"])
def test_charsets_are_read(charset: str) -> None:
    message = EmailMessage()
    message.set_content("Größe\n", charset=charset)
    assert excerpt_of(octets(message), is_cut=False).text == "Größe\n"


def test_a_message_without_a_header_is_all_text() -> None:
    assert excerpt_of(b"\r\njust text\r\n", is_cut=False).text == "just text\n"
    assert excerpt_of(b"", is_cut=False).text == ""


def test_what_cannot_be_seen_becomes_a_mark() -> None:
    raw = "Subject: a\u202eb\r\n\r\none\x1b[31m two\x00 \u2066three\r\n".encode()
    found = excerpt_of(raw, is_cut=False)
    for text in (found.text, found.source, found.fields[0][1]):
        assert not set("\x1b\x00\u202e\u2066") & set(text)


BOMBS = {
    "nested multiparts": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(3000)
    ),
    "nested messages": b"Content-Type: message/rfc822\r\n\r\n" * 5000,
    "parameters": b"Content-Type: text/plain" + b"; a=b" * 100_000 + b"\r\n\r\nx",
    "brackets": b"From: " + b"(" * 200_000 + b"\r\n\r\nx",
    "fields": b"X: y\r\n" * 80_000 + b"\r\nx",
    "one field": b"Subject: " + b"=?utf-8?q?a?= " * 40_000 + b"\r\n\r\nx",
    "boundaries": b"Content-Type: multipart/mixed; boundary=x\r\n\r\n" + b"--x\r\n\r\n" * 60_000,
    "empty boundary": b'Content-Type: multipart/mixed; boundary=""\r\n\r\n' + b"--\r\n" * 60_000,
    "base64": b"Content-Transfer-Encoding: base64\r\n\r\n" + b"=" * 400_000,
    "long line": b"x" * 10_000_000,
    "quoted": b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=\r\n" * 170_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_bounded_time(name: str) -> None:
    started = time.perf_counter()
    found = excerpt_of(BOMBS[name], is_cut=False)
    assert time.perf_counter() - started < 2.0
    assert len(found.text) <= MAX_TEXT and len(found.parts) <= MAX_PARTS
    assert found.is_cut is (len(BOMBS[name]) > MAX_OCTETS) or found.is_cut


@given(st.binary(max_size=2000))
def test_it_never_raises(raw: bytes) -> None:
    excerpt_of(raw, is_cut=False)
    excerpt_of(b"Content-Type: multipart/mixed; boundary=x\r\n\r\n--x\r\n" + raw + b"\r\n--x--", is_cut=True)
    excerpt_of(
        b"Content-Transfer-Encoding: base64\r\nContent-Type: text/plain; charset=utf-7\r\n\r\n" + raw, is_cut=False
    )
    excerpt_of(b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + raw, is_cut=False)
