"""Messages composed from their parts: legal in every byte, and the same to a second parser."""

import email
import email.policy
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.message import Message
from email.utils import collapse_rfc2231_value, getaddresses, parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.errors import InvalidInput
from posthouse.model.address import NamedAddress, parse_address
from posthouse.protocol.compose import Attachment, Composition, compose
from posthouse.protocol.headers import find_line_faults, split
from posthouse.protocol.transfer_encoding import fits_seven_bit

JOE = NamedAddress(parse_address("joe@example.org"), "Joe")
ANN = NamedAddress(parse_address("ann@example.net"))


def composed(**parts: Any) -> Message:
    """The message as the standard library reads it, after what every message must fulfil was looked at."""
    header, body = compose(Composition(**{"header_from": JOE, "to": (ANN,), **parts}))
    raw = header + b"\r\n" + body
    assert header.endswith(b"\r\n") and b"\r\n\r\n" not in header
    assert split(raw) == (header, body)
    assert not find_line_faults(raw)
    assert fits_seven_bit(raw)
    parsed = email.message_from_bytes(raw)
    assert not [defect for part in parsed.walk() for defect in part.defects]
    return parsed


def text_of(part: Message) -> str:
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode("utf-8")


def shape(part: Message) -> Any:
    payload = part.get_payload()
    if part.is_multipart() and isinstance(payload, list):
        return part.get_content_type(), [shape(inner) for inner in payload if isinstance(inner, Message)]
    return part.get_content_type()


def test_a_plain_text_message_is_written_plainly() -> None:
    header, body = compose(
        Composition(
            JOE,
            (ANN,),
            cc=(NamedAddress(parse_address("c@x"), "Doe, C"),),
            bcc=(NamedAddress(parse_address("secret@x")),),
            reply_to=(NamedAddress(parse_address("r@x")),),
            subject="Hello",
            text="Dear Ann,\n\nhere it is.\n",
            message_id="1@example.org",
            date=datetime(2026, 11, 2, 10, tzinfo=UTC),
            headers=(("X-Order", "4711"),),
        )
    )
    assert header == (
        b"From: Joe <joe@example.org>\r\nTo: ann@example.net\r\n"
        b'Cc: "Doe, C" <c@x>\r\nReply-To: r@x\r\nSubject: Hello\r\n'
        b"Message-ID: <1@example.org>\r\nDate: Mon, 02 Nov 2026 10:00:00 +0000\r\nX-Order: 4711\r\n"
        b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 7bit\r\n"
    )
    assert body == b"Dear Ann,\r\n\r\nhere it is.\r\n"


FILE = Attachment("a.pdf", "application/pdf", b"%PDF\xff\r\n\0")
IMAGE = Attachment("b.png", "image/png", b"\x89PNG", "logo@x", "inline")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({}, "text/plain"),
        ({"text": "a"}, "text/plain"),
        ({"html": "<p>"}, "text/html"),
        ({"text": "a", "html": "<p>"}, ("multipart/alternative", ["text/plain", "text/html"])),
        ({"text": "a", "attachments": (FILE,)}, ("multipart/mixed", ["text/plain", "application/pdf"])),
        ({"attachments": (FILE,)}, ("multipart/mixed", ["text/plain", "application/pdf"])),
        ({"html": "<p>", "attachments": (IMAGE,)}, ("multipart/related", ["text/html", "image/png"])),
        ({"text": "a", "attachments": (IMAGE,)}, ("multipart/mixed", ["text/plain", "image/png"])),
        (
            {"text": "a", "html": "<p>", "attachments": (FILE, IMAGE)},
            (
                "multipart/mixed",
                [
                    ("multipart/related", [("multipart/alternative", ["text/plain", "text/html"]), "image/png"]),
                    "application/pdf",
                ],
            ),
        ),
    ],
)
def test_the_tree_is_as_deep_as_the_parts_need(parts: dict[str, Any], expected: Any) -> None:
    assert shape(composed(**parts)) == expected


def test_attachments_arrive_octet_for_octet_with_their_names() -> None:
    content = bytes(range(256)) * 5000
    names = ["a.pdf", "ü.pdf", 'q"uo\\te.txt', "long " * 40 + "ü.txt", "=?utf-8?q?x?=.txt", "100%.txt", "tab\there"]
    parsed = composed(text="x", attachments=tuple(Attachment(name, "application/x-y", content) for name in names))
    payload = parsed.get_payload()
    assert isinstance(payload, list)
    for part, name in zip(payload[1:], names, strict=True):
        assert isinstance(part, Message)
        assert part.get_payload(decode=True) == content
        filename = part.get_param("filename", header="content-disposition")
        assert filename is not None and collapse_rfc2231_value(filename) == name
        assert part.get_content_disposition() == "attachment"


def test_an_inline_image_can_be_found_by_its_content_id() -> None:
    parsed = composed(html="<img src='cid:logo@x'>", attachments=(IMAGE,))
    image = next(part for part in parsed.walk() if part.get_content_type() == "image/png")
    assert (image["Content-ID"], image.get_content_disposition()) == ("<logo@x>", "inline")


def test_parameters_of_a_content_type_are_kept() -> None:
    kind = 'Text/CSV; charset=utf-8; header="present; or not"; note="a b"'
    parsed = composed(attachments=(Attachment("a.csv", kind, b"1"),))
    part = next(part for part in parsed.walk() if part.get_content_type() == "text/csv")
    assert (part.get_param("charset"), part.get_param("header")) == ("utf-8", "present; or not")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"Subject: x\r\n\r\nhi\r\n", "message/rfc822"),
        (b"Subject: x\r\n\r\n\xff\r\n", "application/octet-stream"),
        (b"Subject: x\n\nhi\n", "application/octet-stream"),
        (b"Subject: " + b"x" * 2000, "application/octet-stream"),
    ],
)
def test_a_message_is_attached_as_such_only_where_it_can_go_unchanged(content: bytes, kind: str) -> None:
    parsed = composed(attachments=(Attachment("a.eml", "message/rfc822", content),))
    payload = parsed.get_payload()
    assert isinstance(payload, list) and isinstance(payload[1], Message)
    assert payload[1].get_content_type() == kind


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("plain\n", "7bit"),
        ("x" * 998, "7bit"),
        ("x" * 999, "quoted-printable"),
        ("Grüße aus München, in sonst gewöhnlichem Text\n" * 5, "quoted-printable"),
        ("山田太郎" * 50, "base64"),
        ("a\rb\n", "7bit"),
    ],
)
def test_text_takes_the_encoding_that_fits_it(text: str, encoding: str) -> None:
    parsed = composed(text=text)
    assert parsed["Content-Transfer-Encoding"] == encoding
    assert text_of(parsed).replace("\r\n", "\n").rstrip("\n") == text.replace("\r", "\n").rstrip("\n")


def test_without_visible_recipients_the_field_says_so() -> None:
    parsed = composed(to=(), bcc=(ANN,))
    assert parsed["To"] == "undisclosed-recipients:;"
    assert "ann@example.net" not in parsed.as_string()


def test_only_an_address_beyond_ascii_leaves_ascii() -> None:
    header, _ = compose(Composition(JOE, (NamedAddress(parse_address("山@bücher.example")),)))
    assert "To: 山@xn--bcher-kva.example\r\n".encode() in header


# --- refused ----------------------------------------------------------------------------------------------------------

ENDS = ["\r\n", "\n", "\r", "\0", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029"]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(
    ("field", "parts"),
    [
        ("subject", lambda bad: {"subject": bad}),
        ("from", lambda bad: {"header_from": NamedAddress(JOE.address, bad)}),
        ("to.1", lambda bad: {"to": (ANN, NamedAddress(ANN.address, bad))}),
        ("cc.0", lambda bad: {"cc": (NamedAddress(ANN.address, bad),)}),
        ("reply_to.0", lambda bad: {"reply_to": (NamedAddress(ANN.address, bad),)}),
        ("headers.X-Foo", lambda bad: {"headers": (("X-Foo", bad),)}),
        ("headers", lambda bad: {"headers": ((bad, "x"),)}),
        ("message_id", lambda bad: {"message_id": f"<a{bad}@x>"}),
        ("attachments.0.name", lambda bad: {"attachments": (Attachment(bad, "a/b", b""),)}),
        ("attachments.0.content_type", lambda bad: {"attachments": (Attachment("a", f"a/b{bad}", b""),)}),
        ("attachments.0.content_type", lambda bad: {"attachments": (Attachment("a", f'a/b; c="{bad}"', b""),)}),
        ("attachments.1.content_id", lambda bad: {"attachments": (FILE, Attachment("a", "a/b", b"", bad))}),
        ("attachments.0.disposition", lambda bad: {"attachments": (Attachment("a", "a/b", b"", None, bad),)}),
    ],
)
def test_no_input_ends_its_line(field: str, parts: Any, end: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        compose(Composition(**{"header_from": JOE, "to": (ANN,), **parts(f"a{end}Bcc: eve@example.net")}))
    assert caught.value.problems[0].field == field
    assert "eve@" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("From", "FROM", "Sender", "To", "Cc", "Bcc", "Reply-To", "Subject", "Date", "Message-ID", "MIME-Version"),
        *("Content-Type", "content-foo", "Received", "Return-Path", "DKIM-Signature", "ARC-Seal", "Resent-From"),
        *("Authentication-Results", "Delivered-To"),
    ],
)
def test_headers_that_have_another_source_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        compose(Composition(JOE, (ANN,), headers=((name, "x"),)))
    assert caught.value.field == f"headers.{name}"


@pytest.mark.parametrize(
    ("field", "parts"),
    [
        ("text", {"text": "a\0b"}),
        ("html", {"html": "\ud800"}),
        ("headers", {"headers": (("", "x"),)}),
        ("headers", {"headers": (("X:", "x"),)}),
        ("message_id", {"message_id": "no at sign"}),
        ("attachments.0.name", {"attachments": (Attachment("", "a/b", b""),)}),
        ("attachments.0.name", {"attachments": (Attachment("x" * 256, "a/b", b""),)}),
        ("attachments.0.content_type", {"attachments": (Attachment("x", "pdf", b""),)}),
        ("attachments.0.content_type", {"attachments": (Attachment("x", "multipart/mixed; boundary=x", b""),)}),
        ("attachments.0.content_type", {"attachments": (Attachment("x", "a/b" + "; c=d" * 100_000, b""),)}),
        ("attachments.0.content_id", {"attachments": (Attachment("x", "a/b", b"", "<a> <b>"),)}),
    ],
)
def test_bad_input_is_refused_naming_the_field(field: str, parts: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        compose(Composition(**{"header_from": JOE, "to": (ANN,), **parts}))
    assert caught.value.field == field


def test_a_part_cannot_end_another_because_no_boundary_is_known_or_used_twice() -> None:
    boundaries = {composed(text="a", html="b").get_boundary() for _ in range(50)}
    assert len(boundaries) == 50
    assert all(boundary is not None and len(boundary) >= 32 for boundary in boundaries)


# --- generated --------------------------------------------------------------------------------------------------------

LINE = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=60)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=300)
ATTACHMENT = st.builds(
    Attachment,
    LINE.filter(bool),
    st.sampled_from(["a/b", "text/plain; charset=utf-8", "image/png"]),
    st.binary(max_size=300),
)


@settings(max_examples=60)
@given(LINE, LINE, TEXT, st.none() | TEXT, st.lists(ATTACHMENT, max_size=3), st.lists(LINE, max_size=3))
def test_a_second_parser_sees_what_was_given(
    name: str, subject: str, text: str, html: str | None, attachments: list[Attachment], values: list[str]
) -> None:
    parsed = composed(
        header_from=NamedAddress(JOE.address, name),
        subject=subject,
        text=text,
        html=html,
        attachments=tuple(attachments),
        headers=tuple((f"X-{at}", value) for at, value in enumerate(values)),
    )
    named = [f"X-{at}" for at in range(len(values))]
    content = ["MIME-Version", "Content-Type"]
    if html is None and not attachments:
        content.append("Content-Transfer-Encoding")
    assert list(parsed) == ["From", "To", "Subject", *named, *content]
    assert [spec for _, spec in getaddresses([unfolded(parsed["From"])])] == ["joe@example.org"]
    for given_text, field in ((subject, "Subject"), *zip(values, named, strict=True)):
        assert str(make_header(decode_header(unfolded(parsed[field])))).split() == given_text.split()
    parts = [part for part in parsed.walk() if not part.is_multipart()]
    assert len(parts) == 1 + (html is not None) + len(attachments)
    for part, expected in zip(parts, [text, *([] if html is None else [html])], strict=False):
        assert text_of(part).replace("\r\n", "\n").removesuffix("\n") == (
            expected.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
        )
    for part, attachment in zip(parts[len(parts) - len(attachments) :], attachments, strict=True):
        assert part.get_payload(decode=True) == attachment.content


def unfolded(value: str) -> str:
    return value.replace("\r\n", "").replace("\n", "")


def test_the_date_reads_back() -> None:
    moment = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert parsedate_to_datetime(composed(date=moment)["Date"]) == moment
