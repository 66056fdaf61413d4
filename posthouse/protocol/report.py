"""Delivery status notifications: tells a sender what became of a message (RFC 3464 in the form of RFC 6522).

A report is sent with the null sender, `MAIL FROM:<>`, to the envelope sender of the original and to nobody else; where
that is the null sender itself there is no report, and a report that cannot be delivered is never reported (RFC 5321
sections 4.5.5 and 6.1). Whether a report is due is decided by the caller; `is_automatic` helps with it.

The whole report is ASCII, so that any server takes it, except where the sender's own address is beyond ASCII: then the
status part is message/global-delivery-status (RFC 6533 section 4), as the way to such a sender must be 8-bit anyway.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from enum import StrEnum

from posthouse.model.address import Address, AddressFault, NamedAddress, parse_address
from posthouse.model.outcome import Reply
from posthouse.protocol.compose import Entity, write_multipart, write_text
from posthouse.protocol.headers import (
    HeaderFacts,
    decode_for_people,
    find_line_faults,
    fold,
    normalise_line_ends,
    scan,
    write_addresses,
)
from posthouse.protocol.transfer_encoding import encode_base64, encode_quoted_printable, fits_seven_bit, lines_fit

# Above this the report carries the header alone, also where RET=FULL asked for all: RFC 3461 section 4.3 lets it, and a
# report should not fill the mailbox of someone who could not send.
MAX_RETURNED_OCTETS = 1 << 20
# A server's words are kept to this length: enough for any real reply, and no line of it becomes illegal.
_MAX_DIAGNOSTIC = 800

_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")
_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,900}>")
_ADDRESS_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,40}")
_XTEXT_OCTET = re.compile(r"\+([0-9A-F]{2})")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class Action(StrEnum):
    """What happened, in the words of RFC 3464 section 2.3.3."""

    FAILED = "failed"
    DELAYED = "delayed"
    DELIVERED = "delivered"
    RELAYED = "relayed"


@dataclass(frozen=True, slots=True)
class FailedRecipient:
    """A recipient to report about: failed, unless `action` says something else."""

    address: str
    # RFC 3463; one that is none is replaced by the most general of the action.
    status: str
    # What the server said last, and in our own words what was wrong; either may be missing.
    reply: Reply | None = None
    detail: str = ""
    # ORCPT as it was given (RFC 3461 section 4.2), "" where none was.
    original_recipient: str = ""
    # Host name of the server that replied.
    remote_mta: str = ""
    action: Action = Action.FAILED
    last_attempt_at: datetime | None = None
    # Until when a delayed one is tried.
    retry_until: datetime | None = None


def is_automatic(facts: HeaderFacts) -> bool:
    """Whether a program answered or reported by itself: no report and no answer must follow (RFC 3834 section 2)."""
    return facts.auto_submitted not in ("", "no") or facts.content_type == "multipart/report"


def failure_report(
    *,
    reporting_mta: str,
    header_from: str,
    to: str,
    arrived_at: datetime,
    recipients: Sequence[FailedRecipient],
    original_header: bytes,
    original_body: bytes | None = None,
    envelope_id: str = "",
    written_at: datetime | None = None,
) -> tuple[bytes, bytes]:
    """Build (header, body) of a report to `to`, the envelope sender of the original.

    `envelope_id` is ENVID as it was given. `original_body` is given where RET=FULL asked for it; it goes along up to
    1 MiB, where a recipient failed and its lines are legal. Date and Message-ID are left to submission unless
    `written_at` gives the date. Raises AddressFault when `to` or `header_from` is no address, and ValueError without
    recipients.
    """
    if not recipients:
        raise ValueError("A report is about at least one recipient.")
    target = parse_address(to, lenient=True)
    is_global = not target.is_ascii_local
    original = scan(original_header)
    text = write_text("plain", _sentences(reporting_mta, arrived_at, recipients, original))
    status = _status_part(reporting_mta, arrived_at, envelope_id, recipients, is_global=is_global)
    if not any(recipient.action is Action.FAILED for recipient in recipients):
        original_body = None
    report_type = "global-delivery-status" if is_global else "delivery-status"
    content = write_multipart(
        "report",
        [text, status, _returned(original_header, original_body)],
        f";\r\n report-type={report_type}",
    )
    return _header(target, header_from, recipients, original, written_at) + content.header, content.body


def _header(
    target: Address,
    header_from: str,
    recipients: Sequence[FailedRecipient],
    original: HeaderFacts,
    written_at: datetime | None,
) -> bytes:
    sender = NamedAddress(parse_address(header_from, lenient=True), "Mail Delivery System")
    fields = [
        write_addresses("From", [sender]),
        write_addresses("To", [NamedAddress(target)]),
        fold("Subject", _SUBJECTS[_worst(recipients)]),
        b"Auto-Submitted: auto-replied\r\n",
    ]
    if written_at is not None:
        fields.append(f"Date: {format_datetime(written_at)}\r\n".encode("ascii"))
    if original.message_id is not None and _MESSAGE_ID.fullmatch(original.message_id):
        fields += (fold(name, original.message_id) for name in ("In-Reply-To", "References"))
    return b"".join([*fields, b"MIME-Version: 1.0\r\n"])


# --- for people -------------------------------------------------------------------------------------------------------

_ORDER = (Action.FAILED, Action.DELAYED, Action.RELAYED, Action.DELIVERED)
_SUBJECTS = {
    Action.FAILED: "Your message could not be delivered",
    Action.DELAYED: "Your message is delayed",
    Action.RELAYED: "Your message was passed on",
    Action.DELIVERED: "Your message was delivered",
}
_OPENINGS = {
    Action.FAILED: "It could not be delivered to the following addresses, and will not be tried again:",
    Action.DELAYED: "It could not be delivered yet to the following addresses. It is tried again without your doing:",
    Action.RELAYED: "It was passed on to a server that does not report its delivery, for the following addresses:",
    Action.DELIVERED: "It was delivered to the following addresses:",
}


def _worst(recipients: Sequence[FailedRecipient]) -> Action:
    actions = {recipient.action for recipient in recipients}
    return next(action for action in _ORDER if action in actions)


def _sentences(
    reporting_mta: str, arrived_at: datetime, recipients: Sequence[FailedRecipient], original: HeaderFacts
) -> str:
    subject = decode_for_people(original.subject) if original.subject is not None else ""
    about = f'with the subject "{subject}" ' if subject else ""
    lines = [
        f"This is the mail system at {_clean(reporting_mta)}.",
        "",
        f"It is about the message {about}that you sent on {_date(arrived_at)}.",
    ]
    for action in _ORDER:
        concerned = [recipient for recipient in recipients if recipient.action is action]
        if concerned:
            lines += ("", _OPENINGS[action])
            for recipient in concerned:
                lines += ("", f"  {_clean(recipient.address)}", *_explained(recipient))
    return "\n".join([*lines, "", "The technical details are attached.", ""])


def _explained(recipient: FailedRecipient) -> list[str]:
    lines: list[str] = []
    if recipient.detail:
        lines.append(f"    {_clean(recipient.detail)}")
    if recipient.reply is not None:
        who = f"The server {_clean(recipient.remote_mta)}" if recipient.remote_mta else "The server"
        lines.append(f"    {who} said: {_clean(str(recipient.reply))}")
    if recipient.action is Action.DELAYED and recipient.retry_until is not None:
        lines.append(f"    It is tried until {_date(recipient.retry_until)}.")
    return lines


# --- for programs -----------------------------------------------------------------------------------------------------


def _status_part(
    reporting_mta: str,
    arrived_at: datetime,
    envelope_id: str,
    recipients: Sequence[FailedRecipient],
    *,
    is_global: bool,
) -> Entity:
    """message/delivery-status (RFC 3464 section 2), or its form for UTF-8 (RFC 6533 section 4)."""
    fields: list[tuple[str, str]] = []
    if envelope_id:
        fields.append(("Original-Envelope-Id", _xtext_decoded(envelope_id)))
    fields += (("Reporting-MTA", f"dns; {_host(reporting_mta) or 'localhost'}"), ("Arrival-Date", _date(arrived_at)))
    blocks = [fields, *(_recipient_fields(recipient, is_global=is_global) for recipient in recipients)]
    body = b"\r\n".join(b"".join(_status_field(*field, is_global=is_global) for field in block) for block in blocks)
    kind = "global-delivery-status" if is_global else "delivery-status"
    encoding = "7bit" if body.isascii() else "8bit"
    header = f"Content-Type: message/{kind}\r\nContent-Transfer-Encoding: {encoding}\r\n"
    return Entity(header.encode("ascii"), body)


def _recipient_fields(recipient: FailedRecipient, *, is_global: bool) -> list[tuple[str, str]]:
    fields: list[tuple[str, str]] = []
    if original := _original_recipient(recipient.original_recipient, is_global=is_global):
        fields.append(("Original-Recipient", original))
    fields.append(("Final-Recipient", _typed_address(recipient.address, is_global=is_global)))
    fields.append(("Action", recipient.action.value))
    fields.append(("Status", _status(recipient)))
    if host := _host(recipient.remote_mta):
        fields.append(("Remote-MTA", f"dns; {host}"))
    if recipient.reply is not None:
        fields.append(("Diagnostic-Code", f"smtp; {recipient.reply}"))
    elif recipient.detail:
        fields.append(("Diagnostic-Code", f"X-Posthouse; {recipient.detail}"))
    if recipient.last_attempt_at is not None:
        fields.append(("Last-Attempt-Date", _date(recipient.last_attempt_at)))
    if recipient.retry_until is not None and recipient.action is Action.DELAYED:
        fields.append(("Will-Retry-Until", _date(recipient.retry_until)))
    return fields


def _status_field(name: str, value: str, *, is_global: bool) -> bytes:
    value = _clean(value)
    if not is_global:
        value = value.encode("ascii", "replace").decode("ascii")
    return fold(name, value)


def _status(recipient: FailedRecipient) -> str:
    if _STATUS.fullmatch(recipient.status):
        return recipient.status
    return {Action.FAILED: "5.0.0", Action.DELAYED: "4.0.0"}.get(recipient.action, "2.0.0")


def _original_recipient(orcpt: str, *, is_global: bool) -> str:
    kind, semicolon, address = orcpt.partition(";")
    if not semicolon or not _ADDRESS_TYPE.fullmatch(kind):
        return ""
    if kind.lower() == "utf-8":
        # Already in the form that RFC 6533 section 3 gives it; raw UTF-8 needs it where the report is ASCII.
        return f"utf-8; {address if is_global or address.isascii() else _utf8_xtext(address)}"
    return f"{kind}; {_xtext_decoded(address)}"


def _typed_address(text: str, *, is_global: bool) -> str:
    # An address that cannot be read is reported as it was.
    with suppress(AddressFault):
        text = parse_address(text, lenient=True).ascii_text
    if text.isascii():
        return f"rfc822; {text}"
    return f"utf-8; {text if is_global else _utf8_xtext(text)}"


def _utf8_xtext(text: str) -> str:
    r"""utf-8-addr-xtext of RFC 6533 section 3: what is not plain becomes `\x{HEX}`."""
    return "".join(
        character if "!" <= character <= "~" and character not in "\\+=" else f"\\x{{{ord(character):X}}}"
        for character in text
    )


def _xtext_decoded(text: str) -> str:
    """The value behind xtext (RFC 3461 section 4), or the xtext itself where that is not printable ASCII."""
    decoded = _XTEXT_OCTET.sub(lambda found: chr(int(found[1], 16)), text)
    return decoded if decoded.isascii() and decoded.isprintable() else text


def _returned(header: bytes, body: bytes | None) -> Entity:
    """The original: whole where it may be, else its header (RFC 6522 section 3 and 4; RFC 6533 section 5)."""
    # What was kept before bare line ends were refused must not leave with them now.
    header = normalise_line_ends(header)
    whole = header + b"\r\n" + (body or b"")
    if body is not None and len(body) <= MAX_RETURNED_OCTETS and lines_fit(whole) and not find_line_faults(whole):
        if whole.isascii():
            return _part("message/rfc822", "7bit", whole)
        if header.isascii():
            return _part("message/rfc822", "8bit", whole)
        # Other than message/rfc822, this type may be encoded, and so goes everywhere.
        return _part("message/global", "base64", encode_base64(whole))
    if fits_seven_bit(header):
        return _part("text/rfc822-headers", "7bit", header)
    try:
        header.decode("utf-8")
        kind = "text/rfc822-headers" if header.isascii() else "message/global-headers"
    except UnicodeDecodeError:
        kind = "text/rfc822-headers"
    return _part(kind, "quoted-printable", encode_quoted_printable(header))


def _part(kind: str, encoding: str, content: bytes) -> Entity:
    return Entity(f"Content-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n".encode("ascii"), content)


def _host(name: str) -> str:
    return name if _HOST.fullmatch(name) else ""


def _clean(text: str) -> str:
    """Text from elsewhere on one line of bounded length."""
    return _CONTROLS.sub(" ", text[:_MAX_DIAGNOSTIC]).strip()


def _date(moment: datetime) -> str:
    return format_datetime(moment.astimezone(UTC))
