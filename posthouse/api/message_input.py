"""A message as JSON describes it, and the way from there to header, body and envelope.

One pass of pydantic reads a whole list; an entry that cannot be taken becomes its problems, so that the others go on.
Addresses are read strictly by `posthouse.model.address`, bytes are built by `posthouse.protocol.compose`: neither knows
this format, and this format knows no rule of theirs.
"""

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError, ValidatorFunctionWrapHandler, WrapValidator

from posthouse.api.parameters import Moment
from posthouse.api.reading import Body, refusal_of
from posthouse.errors import FieldProblem, InvalidInput, PosthouseError
from posthouse.model.address import (
    AddressFault,
    NamedAddress,
    fast_ascii_address,
    parse_address,
    parse_header_addresses,
)
from posthouse.model.message import Envelope, EnvelopeRecipient
from posthouse.model.problems import problems_of
from posthouse.protocol.compose import Attachment, Composition, compose
from posthouse.protocol.headers import HeaderTooLong
from posthouse.store.content import ReceivedContent, traits_of

MAX_MESSAGES = 1000
# Above any installation's limit of recipients; what is allowed is asked of the installation.
_MAX_ADDRESSES = 100_000


class NamedAddressInput(Body):
    """An address and the name beside it."""

    address: str = Field(max_length=1000, examples=["ada@example.org"])
    name: str = Field("", max_length=1000, examples=["Ada Lovelace"])


AddressInput = (
    Annotated[
        str,
        Field(
            max_length=2000,
            description="`ada@example.org` or `Ada Lovelace <ada@example.org>`.",
            examples=["ada@example.org"],
        ),
    ]
    | NamedAddressInput
)
AddressesInput = AddressInput | Annotated[list[AddressInput], Field(max_length=_MAX_ADDRESSES)]


class AttachmentInput(Body):
    """A file that goes with the message."""

    name: str = Field(max_length=1000, examples=["report.pdf"])
    content_type: str = Field("application/octet-stream", max_length=500, examples=["application/pdf"])
    content: str = Field(description="Base64 (RFC 4648 section 4), line ends allowed.", examples=["JVBERi0xLjQK"])
    content_id: str | None = Field(
        None, max_length=200, description="How the HTML names it: `cid:` and this.", examples=["logo"]
    )
    inline: bool = Field(False, description="Shown in the message rather than beside it.")


class MessageInput(Body):
    """A message to be sent. It needs `from`, and at least one recipient in `to`, `cc` or `bcc`."""

    header_from: AddressInput = Field(alias="from", description="Who it is from.")
    to: AddressesInput = Field(default_factory=list, description="Recipients.")
    cc: AddressesInput = Field(default_factory=list, description="Recipients of a copy.")
    bcc: AddressesInput = Field(default_factory=list, description="Recipients that the others do not see.")
    reply_to: AddressesInput = Field(default_factory=list, description="Where answers go.")
    subject: str = Field("", max_length=10_000, examples=["Minutes of Friday"])
    text: str | None = Field(None, description="The text, plain.", examples=["Dear all, ...\n"])
    html: str | None = Field(None, description="The text as HTML; with `text` beside it as the alternative.")
    attachments: list[AttachmentInput] = Field(default_factory=list, max_length=1000)
    headers: dict[Annotated[str, Field(max_length=200)], Annotated[str, Field(max_length=10_000)]] = Field(
        default_factory=dict, max_length=200, description="Further header fields.", examples=[{"X-Ticket": "4711"}]
    )
    server: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Identifier or name of the server, where the application may choose it.",
    )
    tenant: str | None = Field(
        None,
        min_length=1,
        max_length=100,
        description="Identifier or name of the tenant; with a token of no tenant only.",
    )
    send_at: Moment | None = Field(None, description="Not before this time.")
    expires_at: Moment | None = Field(None, description="Given up after this time.")
    priority: Literal["high", "normal", "low"] = "normal"
    mail_from: str | None = Field(
        None,
        max_length=1000,
        description="The envelope sender (RFC 5321); the address of `from` unless said, empty for none.",
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """An entry of a list that cannot be taken."""

    error: PosthouseError


def _or_refusal(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        return Refusal(InvalidInput(without_members(error)))


def without_members(error: ValidationError) -> list[FieldProblem]:
    """The problems of a message, without what the other members of a union say about the same input.

    An address may be a text, an object or a list of these; the problem that is found deepest is about what was meant.
    """
    deepest: dict[tuple[int | str, ...], tuple[int | str, ...]] = {}
    found: dict[tuple[int | str, ...], FieldProblem] = {}
    for detail in error.errors(include_url=False):
        location = tuple(part for part in detail["loc"] if not _is_member(part))
        (problem,) = problems_of([{**detail, "loc": location}])
        if location[:1] and location[0] in _ADDRESS_FIELDS:
            entry = location[:2]
            if len(location) < len(deepest.get(entry, ())):
                continue
            found.pop(deepest.get(entry, ()), None)
            deepest[entry] = location
            if problem.code == "wrong-type":
                problem = FieldProblem(problem.field, "not-an-address", _ADDRESS_WANTED)
        found[location] = problem
    entered = {location[0] for location in found if len(location) > 1}
    return [problem for location, problem in found.items() if len(location) != 1 or location[0] not in entered]


_ADDRESS_FIELDS = frozenset({"from", "to", "cc", "bcc", "reply_to"})
_ADDRESS_WANTED = 'Write an address as "ada@example.org", "Ada <ada@example.org>" or {"address": ..., "name": ...}.'


def _is_member(part: int | str) -> bool:
    """Whether a part of a location names a member of a union, which is no part of the field's name."""
    return isinstance(part, str) and ("[" in part or part in ("str", "NamedAddressInput", "constrained-str"))


one_message: TypeAdapter[MessageInput] = TypeAdapter(MessageInput)
many_messages: TypeAdapter[list[Any]] = TypeAdapter(
    Annotated[list[Annotated[MessageInput, WrapValidator(_or_refusal)]], Field(min_length=1, max_length=MAX_MESSAGES)]
)


def read_messages(octets: bytes) -> tuple[list[MessageInput | Refusal], bool]:
    """The messages of a JSON body, and whether it was a list. Raises 400 for what is no JSON, 422 naming the fields."""
    is_list = octets.lstrip(b" \t\r\n").startswith(b"[")
    try:
        if is_list:
            return many_messages.validate_json(octets, strict=True), True
        return [one_message.validate_json(octets, strict=True)], False
    except ValidationError as error:
        refusal = refusal_of(error)
        problems = without_members(error) if isinstance(refusal, InvalidInput) else []
    # Outside of the handler: pydantic's error holds the input and must not travel along as a context.
    raise InvalidInput(problems) if problems else refusal


# ---------------------------------------------------------------- to bytes


@dataclass(frozen=True, slots=True)
class Composed:
    """A message as bytes, and its envelope."""

    envelope: Envelope
    content: ReceivedContent


def composed(message: MessageInput) -> Composed:
    """Build header, body and envelope. Raises InvalidInput naming the field."""
    header_from = _named(message.header_from, "from")
    to, cc, bcc = (_all_named(getattr(message, name), name) for name in ("to", "cc", "bcc"))
    parts = Composition(
        header_from=header_from,
        to=to,
        cc=cc,
        bcc=bcc,
        reply_to=_all_named(message.reply_to, "reply_to"),
        subject=message.subject,
        text=message.text,
        html=message.html,
        attachments=tuple(_attachment(entry, at) for at, entry in enumerate(message.attachments)),
        headers=tuple(message.headers.items()),
    )
    try:
        header, body = compose(parts)
    except HeaderTooLong:
        raise InvalidInput.of("headers", "too-long", "A header field has a word longer than 998 octets.") from None
    mail_from = str(header_from.address) if message.mail_from is None else read_mail_from(message.mail_from)
    envelope = envelope_of(mail_from, [*to, *cc, *bcc])
    return Composed(envelope, ReceivedContent(header, body, None, len(header) + 2 + len(body), traits_of(body)))


def envelope_of(mail_from: str, recipients: Sequence[NamedAddress], *, utf8_header: bool = False) -> Envelope:
    """The envelope: each recipient once, and SMTPUTF8 where an address or the header needs it (RFC 6531)."""
    unique: dict[str, EnvelopeRecipient] = {}
    for named in recipients:
        unique.setdefault(named.address.key, EnvelopeRecipient(str(named.address)))
    texts = (mail_from, *(recipient.address for recipient in unique.values()))
    needs_utf8 = utf8_header or not all(text.isascii() or text.rpartition("@")[0].isascii() for text in texts)
    return Envelope(mail_from, tuple(unique.values()), smtputf8=needs_utf8)


def read_mail_from(text: str) -> str:
    """An envelope sender; empty is the null sender. Raises InvalidInput."""
    return str(read_address(text, "mail_from").address) if text else ""


def read_address(text: str, field: str) -> NamedAddress:
    """An address with or without a name. Raises InvalidInput naming the field."""
    try:
        if fast_ascii_address(text) or not any(mark in text for mark in '<,;:("'):
            return NamedAddress(parse_address(text))
        found = parse_header_addresses(text)
    except AddressFault as fault:
        raise InvalidInput.of(field, "bad-address", str(fault)) from None
    if len(found) != 1:
        raise InvalidInput.of(field, "bad-address", "Enter one address. Several go into a list.")
    return found[0]


def _named(entry: str | NamedAddressInput, field: str) -> NamedAddress:
    if isinstance(entry, str):
        return read_address(entry, field)
    try:
        return NamedAddress(parse_address(entry.address), entry.name)
    except AddressFault as fault:
        raise InvalidInput.of(f"{field}.address", "bad-address", str(fault)) from None


def _all_named(entries: Any, field: str) -> tuple[NamedAddress, ...]:
    if not isinstance(entries, list):
        return (_named(entries, field),)
    return tuple([_named(entry, f"{field}.{at}") for at, entry in enumerate(entries)])


def _attachment(entry: AttachmentInput, at: int) -> Attachment:
    letters = entry.content
    if any(end in letters for end in "\r\n"):
        letters = letters.replace("\r", "").replace("\n", "")
    try:
        content = binascii.a2b_base64(letters, strict_mode=True)
    except (binascii.Error, ValueError):
        raise InvalidInput.of(
            f"attachments.{at}.content", "bad-base64", "The content must be base64 with its padding (RFC 4648)."
        ) from None
    return Attachment(
        entry.name, entry.content_type, content, entry.content_id, "inline" if entry.inline else "attachment"
    )


EXAMPLE: Mapping[str, Any] = {
    "from": "Shop <shop@example.org>",
    "to": ["ada@example.net"],
    "subject": "Your order",
    "text": "Thank you. It is on its way.\n",
}
