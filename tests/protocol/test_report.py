"""Reports of delivery: read back by another parser, field by field."""

import email
from datetime import UTC, datetime
from email.message import Message
from typing import Any

import pytest

from posthouse.model.address import AddressFault
from posthouse.model.outcome import Reply
from posthouse.protocol.headers import find_line_faults, scan
from posthouse.protocol.report import MAX_RETURNED_OCTETS, Action, FailedRecipient, failure_report, is_automatic
from posthouse.protocol.transfer_encoding import fits_seven_bit

ARRIVED = datetime(2026, 11, 2, 10, tzinfo=UTC)
ORIGINAL = b"From: joe@example.org\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\nMessage-ID: <1@example.org>\r\n"
GONE = FailedRecipient(
    "ann@example.net",
    "5.1.1",
    Reply(550, "5.1.1", "No such user"),
    original_recipient="rfc822;Ann+2Btag@example.net",
    remote_mta="mx.example.net",
    last_attempt_at=ARRIVED,
)


def report(*recipients: FailedRecipient, **values: Any) -> tuple[bytes, bytes]:
    defaults: dict[str, Any] = {
        "reporting_mta": "hub.example",
        "header_from": "postmaster@hub.example",
        "to": "joe@example.org",
        "arrived_at": ARRIVED,
        "original_header": ORIGINAL,
    }
    return failure_report(recipients=recipients or (GONE,), **{**defaults, **values})


def read(header: bytes, body: bytes) -> tuple[Message, str, list[dict[str, str]], Message]:
    """(report, text for people, status fields by block, what was returned), as a reader of RFC 3464 has them."""
    raw = header + b"\r\n" + body
    assert not find_line_faults(raw)
    parsed = email.message_from_bytes(raw)
    assert not [defect for part in parsed.walk() for defect in part.defects]
    payload = parsed.get_payload()
    assert isinstance(payload, list) and len(payload) == 3
    text, status, returned = payload
    assert isinstance(text, Message) and isinstance(status, Message) and isinstance(returned, Message)
    sentences = text.get_payload(decode=True)
    assert isinstance(sentences, bytes)
    return parsed, sentences.decode("utf-8"), blocks_of(status, body), returned


def blocks_of(status: Message, body: bytes) -> list[dict[str, str]]:
    # An own reader: the bytes of the status part, parted at empty lines, unfolded, one dictionary for each block.
    kind = status.get_content_type().encode()
    part = body.split(b"Content-Type: " + kind, 1)[1].split(b"\r\n\r\n", 1)[1].split(b"\r\n--=_", 1)[0]
    blocks = part.replace(b"\r\n ", b" ").strip().split(b"\r\n\r\n")
    fields = [[line.decode("utf-8").split(": ", 1) for line in block.split(b"\r\n")] for block in blocks]
    return [dict(block) for block in fields]


def test_a_failure_is_reported_in_the_form_of_rfc_3464() -> None:
    parsed, text, blocks, returned = read(*report(envelope_id="id+2B1"))
    assert parsed.get_content_type() == "multipart/report"
    assert parsed.get_param("report-type") == "delivery-status"
    assert parsed["From"] == "Mail Delivery System <postmaster@hub.example>"
    assert parsed["To"] == "joe@example.org"
    assert parsed["Auto-Submitted"] == "auto-replied"
    assert parsed["In-Reply-To"] == parsed["References"] == "<1@example.org>"
    assert parsed["Subject"] == "Your message could not be delivered"
    assert blocks == [
        {
            "Original-Envelope-Id": "id+1",
            "Reporting-MTA": "dns; hub.example",
            "Arrival-Date": "Mon, 02 Nov 2026 10:00:00 +0000",
        },
        {
            "Original-Recipient": "rfc822; Ann+tag@example.net",
            "Final-Recipient": "rfc822; ann@example.net",
            "Action": "failed",
            "Status": "5.1.1",
            "Remote-MTA": "dns; mx.example.net",
            "Diagnostic-Code": "smtp; 550 5.1.1 No such user",
            "Last-Attempt-Date": "Mon, 02 Nov 2026 10:00:00 +0000",
        },
    ]
    for words in ("hub.example", '"Grüße"', "ann@example.net", "mx.example.net said: 550 5.1.1 No such user"):
        assert words in text
    assert returned.get_content_type() == "text/rfc822-headers"
    assert fits_seven_bit(b"".join(report()))


def test_the_standard_library_reads_the_status_part_too() -> None:
    parsed, _, blocks, _ = read(*report(GONE, FailedRecipient("b@y", "5.0.0")))
    status = next(part for part in parsed.walk() if part.get_content_type() == "message/delivery-status")
    payload = status.get_payload()
    assert isinstance(payload, list)
    assert [dict(block.items()) for block in payload if isinstance(block, Message)] == blocks


def test_each_action_has_its_words_and_the_worst_gives_the_subject() -> None:
    recipients = [FailedRecipient(f"{action}@x", "", action=action) for action in Action]
    parsed, text, blocks, _ = read(*report(*recipients))
    assert parsed["Subject"] == "Your message could not be delivered"
    assert [(block["Action"], block["Status"]) for block in blocks[1:]] == [
        ("failed", "5.0.0"),
        ("delayed", "4.0.0"),
        ("delivered", "2.0.0"),
        ("relayed", "2.0.0"),
    ]
    assert text.index("failed@x") < text.index("delayed@x") < text.index("relayed@x") < text.index("delivered@x")


def test_a_delay_says_until_when_it_is_tried() -> None:
    delayed = FailedRecipient("a@x", "4.4.1", detail="No answer.", action=Action.DELAYED, retry_until=ARRIVED)
    parsed, text, blocks, returned = read(*report(delayed, original_body=b"hi\r\n"))
    assert parsed["Subject"] == "Your message is delayed"
    assert blocks[1]["Will-Retry-Until"] == "Mon, 02 Nov 2026 10:00:00 +0000"
    assert blocks[1]["Diagnostic-Code"] == "X-Posthouse; No answer."
    assert "It is tried until Mon, 02 Nov 2026" in text
    # RFC 3461 section 4.3: RET=FULL is for failures.
    assert returned.get_content_type() == "text/rfc822-headers"


def test_the_whole_message_returns_where_it_was_asked_for() -> None:
    body = "Grüße\r\n".encode()
    header, written = report(original_body=body)
    _, _, _, returned = read(header, written)
    assert returned.get_content_type() == "message/rfc822"
    assert ORIGINAL + b"\r\n" + body in written


@pytest.mark.parametrize("body", [b"x" * (MAX_RETURNED_OCTETS + 1), b"x" * 999 + b"\r\n", b"a\n.\nb\r\n", b"a\0"])
def test_a_message_too_large_or_illegal_returns_as_its_header(body: bytes) -> None:
    _, _, _, returned = read(*report(original_body=body))
    assert returned.get_content_type() == "text/rfc822-headers"


@pytest.mark.parametrize(
    ("original", "kind"),
    [
        ("Subject: Grüße\r\n".encode(), "message/global-headers"),
        (b"Subject: Gr\xfc\xdfe\r\n", "text/rfc822-headers"),
        (b"X: " + b"x" * 2000 + b"\r\n", "text/rfc822-headers"),
        (b"", "text/rfc822-headers"),
    ],
)
def test_odd_headers_return_in_a_form_that_goes_everywhere(original: bytes, kind: str) -> None:
    header, body = report(original_header=original)
    assert fits_seven_bit(header + b"\r\n" + body)
    assert f"Content-Type: {kind}\r\n".encode() in body


def test_addresses_beyond_ascii_are_escaped_for_a_sender_in_ascii() -> None:
    recipient = FailedRecipient("山@株式.会社", "5.6.7", Reply(553, "5.6.7", "ü"), original_recipient="utf-8;山@x")
    header, body = report(recipient)
    assert fits_seven_bit(header + b"\r\n" + body)
    _, text, blocks, _ = read(header, body)
    assert blocks[1]["Final-Recipient"] == r"utf-8; \x{5C71}@xn--w0tp6r.xn--6oq404h"
    assert blocks[1]["Original-Recipient"] == r"utf-8; \x{5C71}@x"
    assert "山@株式.会社" in text


def test_a_sender_beyond_ascii_gets_the_global_form() -> None:
    recipient = FailedRecipient("山@example.net", "5.1.1", Reply(550, "5.1.1", "ü"))
    parsed, _, blocks, _ = read(*report(recipient, to="川@example.org"))
    assert parsed.get_param("report-type") == "global-delivery-status"
    assert "message/global-delivery-status" in [part.get_content_type() for part in parsed.walk()]
    assert blocks[1]["Final-Recipient"] == "utf-8; 山@example.net"
    assert blocks[1]["Diagnostic-Code"] == "smtp; 550 5.1.1 ü"


@pytest.mark.parametrize(
    "hostile",
    [
        "x\r\nAction: delivered",
        "x\r\n\r\nFinal-Recipient: rfc822; eve@x",
        "x\r\n.\r\nMAIL FROM:<eve@x>",
        "x\n--=_",
        "x\0y",
        "x\u2028Action: delivered",
        "x" * 100_000,
        "\ud800",
        "word " * 10_000,
    ],
)
def test_nothing_a_server_or_submitter_said_adds_a_field_or_a_line(hostile: str) -> None:
    recipient = FailedRecipient(
        hostile, hostile, Reply(550, "", hostile), hostile, original_recipient=f"rfc822;{hostile}", remote_mta=hostile
    )
    header, body = report(
        recipient, envelope_id=hostile, original_header=b"Message-ID: " + hostile.encode("utf-8", "replace")
    )
    _, _, blocks, _ = read(header, body)
    assert len(blocks) == 2
    assert (blocks[1]["Action"], blocks[1]["Status"]) == ("failed", "5.0.0")
    assert set(blocks[1]) <= {
        "Original-Recipient",
        "Final-Recipient",
        "Action",
        "Status",
        "Remote-MTA",
        "Diagnostic-Code",
    }
    assert max(map(len, (header + body).split(b"\r\n"))) <= 998


def test_a_report_needs_someone_to_go_to_and_something_to_say() -> None:
    with pytest.raises(AddressFault):
        report(to="")
    with pytest.raises(ValueError, match="at least one"):
        failure_report(
            reporting_mta="x", header_from="a@x", to="b@x", arrived_at=ARRIVED, recipients=(), original_header=b""
        )


@pytest.mark.parametrize(
    ("header", "automatic"),
    [
        (b"Subject: x\r\n", False),
        (b"Auto-Submitted: no\r\n", False),
        (b"Auto-Submitted: NO (really)\r\n", False),
        (b"Auto-Submitted: auto-replied\r\n", True),
        (b"auto-submitted:\r\n Auto-Generated; x=y\r\n", True),
        (b"Content-Type: multipart/report; report-type=delivery-status\r\n", True),
    ],
)
def test_what_a_program_wrote_by_itself_is_recognised(header: bytes, automatic: bool) -> None:
    assert is_automatic(scan(header)) is automatic


def test_a_report_is_itself_automatic() -> None:
    header, _ = report()
    assert is_automatic(scan(header))
