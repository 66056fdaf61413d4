"""Composes a message from its parts: what the REST interface is given becomes header and body in bytes.

Everything written is ASCII save a local part outside it, so that any server takes the message; lines end in CRLF and
are legal in length. No field can end its own line: whatever could is refused with the dotted name of the input. Bcc is
not written: it is the envelope's. Message-ID and Date are left out where none is given; submission adds them to every
message that lacks them.
"""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from typing import Literal
from urllib.parse import quote

from posthouse.errors import InvalidInput
from posthouse.model.address import NamedAddress
from posthouse.protocol.headers import (
    MAX_LINE_OCTETS,
    check_field_name,
    check_field_value,
    encode_unstructured,
    find_line_faults,
    fold,
    write_addresses,
)
from posthouse.protocol.transfer_encoding import encode_base64, encode_text, fits_seven_bit

# Beyond this no file system keeps a name.
_MAX_FILE_NAME = 255
# RFC 2231 section 3: longer parameter values are written in numbered pieces of this length.
_MAX_PARAMETER = 60

_ATOM = r"[!#$%&'*+.^_`{|}~0-9A-Za-z-]"
_PARAMETER = re.compile(rf'[ \t]*+;[ \t]*+({_ATOM}++=(?:{_ATOM}++|"(?:[ !#-\[\]-~]|\\[ -~])*+"))')
_CONTENT_TYPE = re.compile(rf"({_ATOM}++/{_ATOM}++)((?:{_PARAMETER.pattern})*+)[ \t]*+;?[ \t]*+")
_CONTENT_ID = re.compile(r"<?([!-;=?-~]{1,200})>?")
_MESSAGE_ID = re.compile(r"<?([!-;=?A-~]{1,200}@[!-;=?A-~]{1,255})>?")
_LINE_END = re.compile(r"\r\n|\r|\n")
_SURROGATE = re.compile("[\ud800-\udfff]")

# Fields that say who sent what to whom, how it is built or which way it came: they have inputs of their own, or are
# written by those who carry the mail.
_RESERVED = {
    *("from", "sender", "to", "cc", "bcc", "reply-to", "subject", "date", "message-id", "mime-version", "received"),
    *("return-path", "delivered-to", "x-original-to", "dkim-signature", "domainkey-signature", "received-spf"),
    "authentication-results",
}
_RESERVED_PREFIXES = ("content-", "resent-", "arc-")


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with the message. With a `content_id` the HTML part can show it (RFC 2392, `cid:` URLs)."""

    name: str
    content_type: str
    content: bytes
    content_id: str | None = None
    disposition: Literal["attachment", "inline"] = "attachment"


@dataclass(frozen=True, slots=True)
class Composition:
    """What a message is made of. `bcc` is for the envelope alone; `headers` are further fields, in this order."""

    header_from: NamedAddress
    to: tuple[NamedAddress, ...] = ()
    cc: tuple[NamedAddress, ...] = ()
    bcc: tuple[NamedAddress, ...] = ()
    reply_to: tuple[NamedAddress, ...] = ()
    subject: str = ""
    text: str | None = None
    html: str | None = None
    attachments: tuple[Attachment, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    message_id: str | None = None
    date: datetime | None = None


def compose(parts: Composition) -> tuple[bytes, bytes]:
    """Build (header, body); the header ends in CRLF and lacks the empty line after it.

    Raises InvalidInput naming the input: `from`, `to.0`, `subject`, `headers.X-Name`, `attachments.0.name` and so on.
    """
    content = _content(parts)
    return b"".join((*_fields(parts), b"MIME-Version: 1.0\r\n", content.header)), content.body


# --- header -----------------------------------------------------------------------------------------------------------


def _fields(parts: Composition) -> list[bytes]:
    fields = [_addresses("From", "from", (parts.header_from,))]
    if parts.to:
        fields.append(_addresses("To", "to", parts.to))
    if parts.cc:
        fields.append(_addresses("Cc", "cc", parts.cc))
    if not parts.to and not parts.cc:
        # RFC 5322 section 3.6.3 asks for no recipient field; many filters do.
        fields.append(b"To: undisclosed-recipients:;\r\n")
    if parts.reply_to:
        fields.append(_addresses("Reply-To", "reply_to", parts.reply_to))
    check_field_value("subject", parts.subject)
    fields.append(fold("Subject", encode_unstructured(parts.subject, "Subject")))
    if parts.message_id is not None:
        fields.append(_message_id(parts.message_id))
    if parts.date is not None:
        fields.append(f"Date: {format_datetime(parts.date)}\r\n".encode("ascii"))
    fields += [_further_field(name, value) for name, value in parts.headers]
    return fields


def _addresses(name: str, input_name: str, addresses: Sequence[NamedAddress]) -> bytes:
    for at, named in enumerate(addresses):
        if named.name:
            check_field_value(input_name if input_name == "from" else f"{input_name}.{at}", named.name)
    return write_addresses(name, addresses)


def _message_id(value: str) -> bytes:
    found = _MESSAGE_ID.fullmatch(value)
    if found is None:
        raise InvalidInput.of(
            "message_id", "bad-message-id", "A message id is written <name@host>, in ASCII and without spaces."
        )
    return f"Message-ID: <{found[1]}>\r\n".encode("ascii")


def _further_field(name: str, value: str) -> bytes:
    # A name that is none is not repeated in the error: it may hold anything.
    check_field_name("headers", name)
    lower = name.lower()
    if lower in _RESERVED or lower.startswith(_RESERVED_PREFIXES):
        raise InvalidInput.of(
            f"headers.{name}",
            "reserved-header",
            "This header cannot be set here: it has an input of its own or is written by Posthouse.",
        )
    check_field_value(f"headers.{name}", value)
    return fold(name, encode_unstructured(value, name))


# --- content ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entity:
    """A MIME entity (RFC 2045 section 2.4): its Content- fields and its body."""

    header: bytes
    body: bytes


def _content(parts: Composition) -> Entity:
    """The MIME tree: mixed (related (alternative (text, html), what the HTML shows), files), each only where needed."""
    if not parts.attachments and parts.html is None:
        return _text("text", "plain", parts.text or "")
    shown: list[Entity] = []
    files: list[Entity] = []
    for at, attachment in enumerate(parts.attachments):
        belongs_to_html = attachment.content_id is not None and parts.html is not None
        (shown if belongs_to_html else files).append(_attachment(f"attachments.{at}", attachment))
    root: Entity | None = None
    root_type = "text/html"
    if parts.html is not None:
        root = _text("html", "html", parts.html)
    if parts.text is not None or root is None:
        plain = _text("text", "plain", parts.text or "")
        if root is not None:
            root_type = "multipart/alternative"
        root = plain if root is None else write_multipart("alternative", [plain, root])
    if shown:
        root = write_multipart("related", [root, *shown], f';\r\n type="{root_type}"')
    return write_multipart("mixed", [root, *files]) if files else root


def write_multipart(subtype: str, entities: Sequence[Entity], parameters: str = "") -> Entity:
    """A multipart (RFC 2046 section 5.1); `parameters` are further ones, each with `;`, CRLF and a space before it."""
    # 128 random bits: nobody can write a part that ends another. `=_` occurs in no quoted-printable or base64 text.
    boundary = f"=_{secrets.token_hex(16)}"
    opening = f"--{boundary}\r\n".encode("ascii")
    pieces: list[bytes] = []
    for entity in entities:
        pieces += (opening, entity.header, b"\r\n", entity.body, b"\r\n")
    pieces.append(f"--{boundary}--\r\n".encode("ascii"))
    header = f'Content-Type: multipart/{subtype};\r\n boundary="{boundary}"{parameters}\r\n'
    return Entity(header.encode("ascii"), b"".join(pieces))


def write_text(subtype: str, text: str) -> Entity:
    """A text part in UTF-8, encoded where it must be. Ends in CRLF unless it is empty."""
    octets = _LINE_END.sub("\r\n", text).encode("utf-8")
    if octets and not octets.endswith(b"\r\n"):
        octets += b"\r\n"
    encoding, body = encode_text(octets)
    header = f"Content-Type: text/{subtype}; charset=utf-8\r\nContent-Transfer-Encoding: {encoding}\r\n"
    return Entity(header.encode("ascii"), body)


def _text(input_name: str, subtype: str, text: str) -> Entity:
    if "\0" in text or _SURROGATE.search(text):
        raise InvalidInput.of(input_name, "control-character", "The text holds a NUL or half a character. Remove it.")
    return write_text(subtype, text)


# --- attachments ------------------------------------------------------------------------------------------------------


def _attachment(input_name: str, attachment: Attachment) -> Entity:
    kind, parameters = _media_type(f"{input_name}.content_type", attachment.content_type)
    as_it_is = fits_seven_bit(attachment.content) and not find_line_faults(attachment.content)
    if kind.startswith("message/") and not as_it_is:
        # RFC 2046 section 5.2.1: messages must not be in base64. One that cannot go as it is, goes as a plain file.
        kind, parameters = "application/octet-stream", ""
    if kind.startswith("message/"):
        encoding, body = "7bit", attachment.content
    else:
        encoding, body = "base64", encode_base64(attachment.content)
    if attachment.disposition not in ("attachment", "inline"):
        raise InvalidInput.of(f"{input_name}.disposition", "bad-choice", "Choose attachment or inline.")
    lines = [f"Content-Type: {kind}{parameters}", f"Content-Transfer-Encoding: {encoding}"]
    if attachment.content_id is not None:
        lines.append(f"Content-ID: <{_content_id(f'{input_name}.content_id', attachment.content_id)}>")
    lines.append(f"Content-Disposition: {attachment.disposition}{_file_name(f'{input_name}.name', attachment.name)}")
    return Entity("\r\n".join([*lines, ""]).encode("ascii"), body)


def _media_type(input_name: str, content_type: str) -> tuple[str, str]:
    found = _CONTENT_TYPE.fullmatch(content_type) if len(content_type) <= MAX_LINE_OCTETS - 80 else None
    if found is None:
        raise InvalidInput.of(input_name, "bad-content-type", "Write a media type such as application/pdf.")
    kind, parameters = found[1].lower(), found[2]
    if kind.startswith("multipart/"):
        raise InvalidInput.of(input_name, "bad-content-type", "An attachment cannot be multipart. Attach its parts.")
    return kind, "".join(f";\r\n {parameter}" for parameter in _PARAMETER.findall(parameters))


def _content_id(input_name: str, content_id: str) -> str:
    found = _CONTENT_ID.fullmatch(content_id)
    if found is None:
        raise InvalidInput.of(
            input_name, "bad-content-id", "A content id has up to 200 ASCII characters and no spaces."
        )
    return found[1]


def _file_name(input_name: str, name: str) -> str:
    """The parameter `filename` of Content-Disposition (RFC 2183), by RFC 2231 where it is long or not ASCII."""
    check_field_value(input_name, name)
    if not 1 <= len(name) <= _MAX_FILE_NAME:
        raise InvalidInput.of(input_name, "bad-length", f"A file name has 1 to {_MAX_FILE_NAME} characters.")
    # What looks like an encoded-word would be decoded by readers that know no better.
    if name.isascii() and len(name) <= _MAX_PARAMETER and "\t" not in name and "=?" not in name:
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f';\r\n filename="{escaped}"'
    encoded = quote(name, safe="!#$&+-.^_`|~")
    if len(encoded) <= _MAX_PARAMETER:
        return f";\r\n filename*=utf-8''{encoded}"
    pieces: list[str] = []
    while encoded:
        cut = _MAX_PARAMETER
        # An escape of three characters is not split.
        if len(encoded) > cut and "%" in encoded[cut - 2 : cut]:
            cut = encoded.rindex("%", 0, cut)
        pieces.append(encoded[:cut])
        encoded = encoded[cut:]
    pieces[0] = "utf-8''" + pieces[0]
    return "".join(f";\r\n filename*{at}*={piece}" for at, piece in enumerate(pieces))
