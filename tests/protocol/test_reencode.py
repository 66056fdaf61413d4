"""Content made legal for a server: only the parts concerned change, and they mean the same."""

import email
import time
from collections.abc import Callable
from email.message import Message

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.protocol.reencode import CannotReencode, Reencoded, needs_reencoding, reencode

LONG = b"x" * 1500
MIME = b"MIME-Version: 1.0\r\n"


def leaves(header: bytes, body: bytes) -> list[tuple[str, bytes]]:
    """(media type, decoded content) of each leaf, as the standard library reads them."""
    parsed = email.message_from_bytes(header + b"\r\n" + body)
    return [(part.get_content_type(), content_of(part)) for part in parsed.walk() if not part.is_multipart()]


def content_of(part: Message) -> bytes:
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content


def legal(result: Reencoded, *, keep_eight_bit: bool) -> None:
    assert not needs_reencoding(result.body, keep_eight_bit=keep_eight_bit)
    assert keep_eight_bit or result.body.isascii()
    assert max(map(len, result.body.split(b"\r\n"))) <= 998


# --- single parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_eight_bit", [True, False])
@pytest.mark.parametrize("body", [b"", b"hi\r\n", b"x" * 998 + b"\r\n", b"--x\r\n", b"x" * 998])
def test_what_is_legal_stays_untouched(body: bytes, keep_eight_bit: bool) -> None:
    header = b"Content-Type: multipart/signed\r\n"
    assert reencode(header, body, keep_eight_bit=keep_eight_bit) == (header, body, ())


def test_eight_bits_stay_where_the_server_takes_them() -> None:
    assert reencode(b"", "ü\r\n".encode(), keep_eight_bit=True) == (b"", "ü\r\n".encode(), ())


@pytest.mark.parametrize(
    ("header", "body", "encoding"),
    [
        (
            MIME + b"Content-Type: text/plain; charset=utf-8\r\n",
            "Grüße aus dem schönen Büro im dritten Stock\r\n".encode(),
            "quoted-printable",
        ),
        (MIME + b"Content-Type: text/plain; charset=utf-8\r\n", "山田太郎\r\n".encode(), "base64"),
        (MIME + b"Content-Type: text/html\r\nContent-Transfer-Encoding: 8BIT\r\n", LONG, "quoted-printable"),
        (MIME + b"Content-Type: text/plain\r\n", b" trailing \r\n" + LONG + b" ", "quoted-printable"),
        (MIME + b"Content-Type: application/x-y\r\ncontent-transfer-encoding:\r\n binary\r\n", b"\xff" * 9, "base64"),
        (MIME + b"Content-Type: application/json\r\n", LONG, "base64"),
        (MIME + b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n", b"QUJD" * 400, "base64"),
        (
            MIME + b"Content-Type: text/plain\r\nContent-Transfer-Encoding: quoted-printable\r\n",
            b"=C3=A4" * 300 + b"plain and so on, as there is more of it" * 90,
            "quoted-printable",
        ),
        (b"Subject: x\r\n", LONG + b"\r\n", "quoted-printable"),
        (b"Content-Transfer-Encoding: 7bit\r\n" * 2 + MIME, LONG + b"\r\n", "quoted-printable"),
    ],
)
def test_a_single_part_is_encoded_and_means_the_same(header: bytes, body: bytes, encoding: str) -> None:
    result = reencode(header, body, keep_eight_bit=False)
    legal(result, keep_eight_bit=False)
    assert leaves(result.header, result.body) == leaves(header, body)
    parsed = email.message_from_bytes(result.header)
    assert parsed.get_all("Content-Transfer-Encoding") == [encoding]
    assert parsed.get_all("MIME-Version") == ["1.0"]
    assert result.changes and encoding in result.changes[0]


@pytest.mark.parametrize(("body", "charset"), [("Grüße\r\n".encode(), "utf-8"), (b"Gr\xfc\xdfe\r\n", "unknown-8bit")])
def test_eight_bit_text_that_nobody_described_is_described(body: bytes, charset: str) -> None:
    result = reencode(b"From: scanner@x\r\n", body, keep_eight_bit=False)
    parsed = email.message_from_bytes(result.header + b"\r\n" + result.body)
    assert (parsed.get_content_type(), parsed.get_content_charset()) == ("text/plain", charset)
    assert parsed["From"] == "scanner@x"
    assert parsed.get_payload(decode=True) == body


# --- many parts -------------------------------------------------------------------------------------------------------


def test_only_the_parts_concerned_change() -> None:
    header = MIME + b'Content-Type: multipart/mixed;\r\n BOUNDARY="a;b c"\r\nContent-Transfer-Encoding: 8bit\r\n'
    pieces = [
        b"preamble\r\n--a;b c\r\nContent-Type: text/plain\r\nX-Odd :  kept\r\n\r\n--a;b\r\n--a;b cd\r\nplain"
        b"\r\n--a;b c \t\r\n",
        b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
        "Grüße von hier und mehr\r\n".encode(),
        b"\r\n--a;b c\r\nContent-Type: multipart/alternative; boundary=in\r\n\r\n--in\r\n\r\nno header\r\n--in\r\n",
        b"Content-Type: text/html\r\n",
        b"\r\n" + LONG,
        b"\r\n--in--\r\n\r\n--a;b c--\r\nepilogue\r\n",
    ]
    result = reencode(header, b"".join(pieces), keep_eight_bit=True)
    assert result.header == header
    expected = b"".join(pieces[:4]) + b"Content-Type: text/html\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n"
    assert result.body.startswith(expected) and result.body.endswith(pieces[-1])
    assert len(result.changes) == 1 and "Part 3.2 (text/html)" in result.changes[0]

    result = reencode(header, b"".join(pieces), keep_eight_bit=False)
    legal(result, keep_eight_bit=False)
    assert b"Content-Transfer-Encoding: 7bit" in result.header
    assert result.body.startswith(
        pieces[0] + b"Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: quoted"
    )
    assert leaves(result.header, result.body) == leaves(header, b"".join(pieces))
    assert [change[:8] for change in result.changes] == ["Part 2 (", "Part 3.2"]


@pytest.mark.parametrize("ending", [b"\r\n--b--\r\n", b"\r\n--b--", b"\r\n", b""])
def test_the_last_delimiter_may_be_missing_or_cut(ending: bytes) -> None:
    header = MIME + b"Content-Type: multipart/mixed; boundary=b\r\n"
    body = b"--b\r\nContent-Type: text/plain\r\n\r\n" + LONG + ending
    result = reencode(header, body, keep_eight_bit=False)
    legal(result, keep_eight_bit=False)
    assert content_of_only(result).rstrip() == LONG


def content_of_only(result: Reencoded) -> bytes:
    ((_, content),) = leaves(result.header, result.body)
    return content


def test_a_part_that_begins_with_its_content_gets_a_header() -> None:
    header = MIME + b"Content-Type: multipart/mixed; boundary=b\r\n"
    result = reencode(header, b"--b\r\nno field here \xff\r\n--b--\r\n", keep_eight_bit=False)
    assert content_of_only(result) == b"no field here \xff"


def test_messages_within_the_message_are_gone_into() -> None:
    header = MIME + b"Content-Type: multipart/digest; boundary=b\r\n"
    body = b"--b\r\n\r\nSubject: one\r\n\r\n" + LONG + b"\r\n--b\r\n\r\nSubject: two\r\n\r\nshort\r\n--b--\r\n"
    result = reencode(header, body, keep_eight_bit=True)
    legal(result, keep_eight_bit=True)
    assert b"MIME-Version: 1.0\r\nSubject: one\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" in result.body
    assert result.body.endswith(b"\r\n--b\r\n\r\nSubject: two\r\n\r\nshort\r\n--b--\r\n")
    assert [content for _, content in leaves(result.header, result.body)] == [LONG, b"short"]


def test_the_header_of_a_part_is_folded_where_it_is_too_long() -> None:
    header = MIME + b"Content-Type: multipart/mixed; boundary=b\r\n"
    body = b"--b\r\nContent-Type: text/plain;" + b" a=b;" * 300 + b"\r\n\r\nhi\r\n--b--\r\n"
    result = reencode(header, body, keep_eight_bit=True)
    legal(result, keep_eight_bit=True)
    assert result.body.replace(b"\r\n ", b" ") == body


@pytest.mark.parametrize("filler", [b"\xff\r\n", LONG + b"\r\n"])
def test_filler_that_the_server_cannot_take_goes(filler: bytes) -> None:
    header = MIME + b"Content-Type: multipart/mixed; boundary=b\r\n"
    part = b"--b\r\nContent-Type: text/plain\r\n\r\nhi\r\n--b--\r\n"
    result = reencode(header, filler + part + filler, keep_eight_bit=False)
    legal(result, keep_eight_bit=False)
    assert content_of_only(result) == b"hi"
    assert "outside the parts" in result.changes[0]


# --- refused ----------------------------------------------------------------------------------------------------------


def multipart(kind: bytes, *parts: bytes) -> tuple[bytes, bytes]:
    body = b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"
    return MIME + b"Content-Type: multipart/" + kind + b"; boundary=b\r\n", body


EIGHT = b"Content-Type: text/plain\r\n\r\n\xff"
SIGNED = b"Content-Type: multipart/signed; boundary=s\r\n\r\n--s\r\n" + EIGHT + b"\r\n--s\r\n\r\nsig\r\n--s--"


@pytest.mark.parametrize(
    ("header", "body", "says"),
    [
        (*multipart(b"signed", EIGHT, b"Content-Type: application/pgp-signature\r\n\r\nx"), "signed"),
        (*multipart(b"encrypted", EIGHT), "encrypted"),
        (*multipart(b"mixed", SIGNED), "signed"),
        (*multipart(b"signed", b"Content-Type: message/rfc822\r\n\r\n" + EIGHT), "signed"),
        (
            MIME + b"Content-Type: application/pkcs7-mime\r\nContent-Transfer-Encoding: binary\r\n",
            b"\xff\r\n",
            "signed",
        ),
        (*multipart(b"mixed", b"Content-Transfer-Encoding: x-uuencode\r\n\r\n\xff"), "transfer encoding"),
        (*multipart(b"mixed", b"Content-Type: message/partial\r\n\r\n\xff"), "may not be encoded"),
        (*multipart(b"mixed", b"X-Name: \xff\r\n\r\nhi"), "header"),
        (*multipart(b"mixed", b"Content-Type: message/rfc822\r\n\r\nSubject: \xff\r\n\r\nhi"), "header"),
        (MIME + b"Content-Type: multipart/mixed\r\n", b"\xff\r\n", "boundary"),
        (*multipart(b"mixed", b"Content-Type: multipart/mixed; boundary=b\r\n\r\n\xff"), "boundary"),
    ],
)
def test_what_would_break_is_refused_with_its_reason(header: bytes, body: bytes, says: str) -> None:
    with pytest.raises(CannotReencode, match=says):
        reencode(header, body, keep_eight_bit=False)


def test_a_signed_part_stays_while_its_neighbour_changes() -> None:
    signed = b"Content-Type: multipart/signed; boundary=s\r\n\r\n--s\r\n\r\nhi\r\n--s\r\n\r\nsig\r\n--s--"
    header, body = multipart(b"mixed", signed, EIGHT)
    result = reencode(header, body, keep_eight_bit=False)
    assert signed in result.body and result.body.isascii()


def nested(depth: int) -> tuple[bytes, bytes]:
    parts = [b"--b%d\r\nContent-Type: multipart/mixed; boundary=b%d\r\n\r\n" % (at, at + 1) for at in range(depth)]
    return b"Content-Type: multipart/mixed; boundary=b0\r\n", b"".join(parts) + b"--b%d\r\n\r\n\xff\r\n" % depth


@pytest.mark.parametrize(
    ("header", "body"),
    [
        nested(2000),
        (b"Content-Type: message/rfc822\r\n", b"Content-Type: message/rfc822\r\n\r\n" * 1000 + b"\xff\r\n"),
        (b"Content-Type: multipart/mixed; boundary=b\r\n", b"--b\r\n\r\n\xff\r\n" * 100_000),
        (b"Content-Type: multipart/mixed" + b"; a=b" * 100_000 + b"\r\n", b"\xff\r\n"),
        (b"Content-Type: multipart/mixed" + b"; a" * 100_000 + b"\r\n", b"\xff\r\n"),
        (b'Content-Type: multipart/mixed; a="' + b"\\" * 200_001 + b"\r\n", b"\xff\r\n"),
    ],
)
def test_bombs_are_refused_at_once(header: bytes, body: bytes) -> None:
    started = time.perf_counter()
    with pytest.raises(CannotReencode):
        reencode(header, body, keep_eight_bit=False)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "body",
    [
        b"--b" * 300_000,
        b"\r\n--" * 250_000,
        b"--c\r\n" * 200_000,
        b"a: b\r\n" * 150_000,
        b"--b\r\n" + b"a: b\r\n" * 150_000,
    ],
)
def test_hostile_bodies_cost_linear_time(body: bytes) -> None:
    started = time.perf_counter()
    reencode(b"Content-Type: multipart/mixed; boundary=b\r\n", body + b"\r\n--b\r\n\r\n\xff\r\n", keep_eight_bit=False)
    assert time.perf_counter() - started < 5


def test_a_hundred_levels_less_one_are_still_read() -> None:
    header, body = nested(98)
    legal(reencode(header, body, keep_eight_bit=False), keep_eight_bit=False)


# --- generated --------------------------------------------------------------------------------------------------------

LINES = st.lists(
    st.sampled_from(
        [b"", b"plain", b"ends ", b"--", b"--b0", b"--x--", b".", b"a=b", "Grüße".encode(), b"\xff\xfe", LONG]
    ),
    max_size=5,
).map(b"\r\n".join)
KINDS = st.sampled_from([b"text/plain; charset=utf-8", b"text/html", b"application/x-y", b"image/png"])
ENCODINGS = st.sampled_from([b"", b"Content-Transfer-Encoding: 8bit\r\n", b"Content-Transfer-Encoding: binary\r\n"])
Part = Callable[[int], tuple[bytes, bytes]]


def leaf(kind: bytes, encoding: bytes, content: bytes) -> Part:
    return lambda _: (b"Content-Type: " + kind + b"\r\n" + encoding, content)


def tree(parts: list[Part], preamble: bytes) -> Part:
    def build(level: int) -> tuple[bytes, bytes]:
        boundary = b"=_%d" % level
        inner = [b"\r\n".join(part(level + 1)) for part in parts]
        body = (
            preamble + b"".join(b"\r\n--" + boundary + b"\r\n" + part for part in inner) + b"\r\n--" + boundary + b"--"
        )
        return b'Content-Type: multipart/mixed; boundary="' + boundary + b'"\r\n', body

    return build


TREES = st.recursive(
    st.builds(leaf, KINDS, ENCODINGS, LINES),
    lambda inner: st.builds(tree, st.lists(inner, min_size=1, max_size=3), st.sampled_from([b"", b"preamble"])),
    max_leaves=6,
)


@settings(max_examples=200)
@given(TREES, st.booleans())
def test_generated_messages_become_legal_and_mean_the_same(part: Part, keep_eight_bit: bool) -> None:
    header, body = part(0)
    header += MIME
    result = reencode(header, body, keep_eight_bit=keep_eight_bit)
    legal(result, keep_eight_bit=keep_eight_bit)
    before, after = leaves(header, body), leaves(result.header, result.body)
    assert [(kind, content.rstrip(b"\r\n")) for kind, content in after] == [
        (kind, content.rstrip(b"\r\n")) for kind, content in before
    ]
    if not needs_reencoding(body, keep_eight_bit=keep_eight_bit):
        assert result == (header, body, ())
    # Done twice, it finds nothing more to do.
    assert reencode(result.header, result.body, keep_eight_bit=keep_eight_bit).changes == ()
