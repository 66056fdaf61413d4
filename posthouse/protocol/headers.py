"""The header block of a message, as bytes: finds it, reads what is needed of it, writes fields and folds them.

Submission calls `find_line_faults`, `split` and `scan` once for each message, so they are kept to a few passes in C; no
MIME is parsed here. What was submitted is never written anew: fields are put in front, taken out whole or folded, and
every other byte stays. Line ends must be CRLF throughout: look with `find_line_faults`, and refuse or
`normalise_line_ends`, before anything else is called.

A field's name may be followed by white space before its colon (RFC 5322 section 4.5), because lenient readers take it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from posthouse.errors import InvalidInput
from posthouse.model.address import Address, NamedAddress
from posthouse.model.encoded_word import decode_words, encode_words

# RFC 5322 section 2.1.1, without CRLF: what a line must not and should not exceed, in octets.
MAX_LINE_OCTETS = 998
PREFERRED_LINE_OCTETS = 78
# Beyond this nobody reads a subject; it protects pages and lists from megabytes on one line.
_MAX_SHOWN = 998

# RFC 5322 section 3.6: fields that may stand once at most; the MIME fields for the same reason (RFC 2045 section 3).
_SINGLE = frozenset(
    b"date from sender reply-to to cc bcc message-id in-reply-to references subject "
    b"content-type content-transfer-encoding mime-version".split()
)
_ADDRESS_FIELDS = frozenset(
    b"from sender reply-to to cc bcc resent-from resent-sender resent-to resent-cc resent-bcc".split()
)
# Changing an octet inside these breaks a signature or makes the content unreadable (RFC 1847, 3156, 8551).
_SEALED_TYPES = frozenset(
    {
        "multipart/signed",
        "multipart/encrypted",
        "application/pkcs7-mime",
        "application/x-pkcs7-mime",
        "application/pgp-encrypted",
    }
)

# `.` ends at LF and is several times faster than a negated class: the CR before it is cut off where values are used.
_FIELDS = re.compile(rb"^([!-9;-~]++)[ \t]*+:(.*+(?:\n[ \t].*+)*+)\n", re.MULTILINE)
_BLOCK = re.compile(rb"(?:[!-9;-~]++[ \t]*+:.*+\n(?:[ \t].*+\n)*+)*+")
_MBOX_LINE = re.compile(rb"From [^\r\n]*+\r\n")
_FOLD = re.compile(rb"\r\n(?=[ \t])")
_MEDIA_TYPE = re.compile(rb"[ \t\r\n]*+([!-'*-:<-~]++)")
_TOKEN = re.compile(r"[ \t]*[^ \t]+")
_FIELD_NAME = re.compile(r"[!-9;-~]{1,76}")
# Line ends of every alphabet and all other controls save the tab; halves of characters cannot be encoded.
_NOT_IN_FIELDS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_NOT_FOR_EYES = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


class HeaderTooLong(ValueError):
    """A header line is longer than RFC 5322 allows and cannot be folded. The submitter must shorten the field named."""


# --- reading ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class HeaderFacts:
    """What one pass over a header block found. Values are raw: without the colon, folded as they were, not decoded."""

    # Unfolded and stripped; None where there is none or an empty one.
    message_id: str | None = None
    has_date: bool = False
    from_value: bytes | None = None
    # How many From fields there are: more than one is refused where senders are checked.
    from_count: int = 0
    sender_value: bytes | None = None
    reply_to_value: bytes | None = None
    to_values: list[bytes] = field(default_factory=list)
    cc_values: list[bytes] = field(default_factory=list)
    bcc_values: list[bytes] = field(default_factory=list)
    # Bcc or Resent-Bcc stands in the header, even an empty one.
    has_bcc: bool = False
    subject: bytes | None = None
    received_count: int = 0
    # The media type in lower case without parameters; "" where there is none.
    content_type: str = ""
    # Signed or encrypted as a whole: must not be re-encoded.
    is_signed: bool = False
    # RFC 3834 section 5, the keyword in lower case; "" where there is none.
    auto_submitted: str = ""
    # A mailing list or bulk mail says so: List-Id (RFC 2919), List-Unsubscribe, or Precedence bulk, list or junk.
    is_bulk: bool = False
    # X-Auto-Response-Suppress, as Exchange writes it, asks for no automatic answers.
    suppresses_answers: bool = False
    is_ascii: bool = True
    # Octets of the longest line, without CRLF.
    longest_line: int = 0
    # Lines that are neither a field nor the continuation of one.
    malformed_lines: int = 0
    # Names, in lower case, of fields that stand more often than RFC 5322 section 3.6 allows.
    duplicates: tuple[str, ...] = ()


def find_body(raw: bytes) -> tuple[int, int]:
    """Where the header ends (after its last CRLF) and where the body begins.

    The header is what consists of fields. The first line that is none ends it, whether it is empty or not, as Postfix
    and most readers have it; so a text without any header is all body. Because an empty line is always written between
    the two, the next reader sees the same border.
    """
    found = _BLOCK.match(raw)
    end = found.end() if found is not None else 0
    if raw.startswith(b"\r\n", end):
        return end, end + 2
    if end < len(raw) and b"\r\n" not in raw[end : end + MAX_LINE_OCTETS]:
        # The last line lacks its CRLF; a field all the same where it looks like one.
        last = _BLOCK.match(raw[end:] + b"\r\n")
        if last is not None and last.end() == len(raw) - end + 2:
            return len(raw), len(raw)
    return end, end


def split(raw: bytes) -> tuple[bytes, bytes]:
    """Part a message into (header, body): the header with its last CRLF, without the empty line that follows.

    `find_body` says what counts as header. A line `From ...` of an mbox file before it is dropped. The body keeps its
    bytes; joined again with an empty line between, the two are the message.
    """
    header_end, body_start = find_body(raw)
    if header_end == 0 and body_start == 0 and (mbox := _MBOX_LINE.match(raw)) is not None:
        raw = raw[mbox.end() :]
        header_end, body_start = find_body(raw)
    header = raw[:header_end]
    if header and not header.endswith(b"\r\n"):
        header += b"\r\n"
    return header, raw[body_start:]


def fields_of(header: bytes) -> list[tuple[bytes, bytes]]:
    """All fields in order: (name as written, value after the colon as written, folds included, no last CRLF)."""
    return [(name, value[:-1]) for name, value in _FIELDS.findall(header)]


def scan(header: bytes) -> HeaderFacts:
    """Read a header block as `split` returns it. Never raises; costs a few microseconds."""
    facts = HeaderFacts()
    fields = _FIELDS.findall(header)
    names = [name.lower() for name, _ in fields]
    for name, (_, value) in zip(names, fields, strict=True):
        take = _TAKERS.get(name)
        if take is not None:
            take(facts, value[:-1])
    if len(set(names)) < len(names):
        facts.duplicates = tuple(
            name.decode() for name, count in Counter(names).items() if count > 1 and name in _SINGLE
        )
    facts.is_ascii = header.isascii()
    lines = header.split(b"\r\n")
    facts.longest_line = len(max(lines, key=len))
    if len(lines) - 1 != len(fields):
        # A line that begins with white space belongs to the field or the fault before it.
        facts.malformed_lines = len(lines) - 1 - len(fields) - header.count(b"\n ") - header.count(b"\n\t")
    return facts


def unfold(value: bytes) -> bytes:
    """A field's value on one line, without the white space around it (RFC 5322 section 2.2.3)."""
    if b"\r\n" in value:
        value = _FOLD.sub(b"", value)
    return value.strip(b" \t\r\n")


def media_type(value: bytes) -> str:
    """The media type of a Content-Type value, in lower case, without parameters and comments; "" where none is read."""
    found = _MEDIA_TYPE.match(value)
    return found[1].decode("ascii").lower() if found is not None else ""


def is_sealed(content_type: str) -> bool:
    """Whether content of this media type is signed or encrypted, so that not one octet inside may change."""
    return content_type in _SEALED_TYPES


def _take_message_id(facts: HeaderFacts, value: bytes) -> None:
    if facts.message_id is None:
        facts.message_id = unfold(value).decode("utf-8", "replace") or None


def _take_date(facts: HeaderFacts, value: bytes) -> None:
    facts.has_date = facts.has_date or bool(value.strip())


def _take_from(facts: HeaderFacts, value: bytes) -> None:
    if not facts.from_count:
        facts.from_value = value
    facts.from_count += 1


def _take_sender(facts: HeaderFacts, value: bytes) -> None:
    if facts.sender_value is None:
        facts.sender_value = value


def _take_reply_to(facts: HeaderFacts, value: bytes) -> None:
    if facts.reply_to_value is None:
        facts.reply_to_value = value


def _take_to(facts: HeaderFacts, value: bytes) -> None:
    facts.to_values.append(value)


def _take_cc(facts: HeaderFacts, value: bytes) -> None:
    facts.cc_values.append(value)


def _take_bcc(facts: HeaderFacts, value: bytes) -> None:
    facts.bcc_values.append(value)
    facts.has_bcc = True


def _take_resent_bcc(facts: HeaderFacts, value: bytes) -> None:
    facts.has_bcc = True


def _take_subject(facts: HeaderFacts, value: bytes) -> None:
    if facts.subject is None:
        facts.subject = value


def _take_received(facts: HeaderFacts, value: bytes) -> None:
    facts.received_count += 1


def _take_content_type(facts: HeaderFacts, value: bytes) -> None:
    kind = media_type(value)
    if not facts.content_type:
        facts.content_type = kind
    # With two Content-Type fields readers differ: either may be the one that counts.
    facts.is_signed = facts.is_signed or kind in _SEALED_TYPES


def _take_auto_submitted(facts: HeaderFacts, value: bytes) -> None:
    facts.auto_submitted = media_type(value)


def _take_precedence(facts: HeaderFacts, value: bytes) -> None:
    if value.strip().lower() in (b"bulk", b"list", b"junk"):
        facts.is_bulk = True


def _take_list(facts: HeaderFacts, value: bytes) -> None:
    facts.is_bulk = True


def _take_suppress(facts: HeaderFacts, value: bytes) -> None:
    facts.suppresses_answers = value.strip().lower() not in (b"", b"none")


_TAKERS = {
    b"message-id": _take_message_id,
    b"date": _take_date,
    b"from": _take_from,
    b"sender": _take_sender,
    b"reply-to": _take_reply_to,
    b"to": _take_to,
    b"cc": _take_cc,
    b"bcc": _take_bcc,
    b"resent-bcc": _take_resent_bcc,
    b"subject": _take_subject,
    b"received": _take_received,
    b"content-type": _take_content_type,
    b"auto-submitted": _take_auto_submitted,
    b"precedence": _take_precedence,
    b"list-id": _take_list,
    b"list-unsubscribe": _take_list,
    b"x-auto-response-suppress": _take_suppress,
}


def decode_for_people(value: bytes) -> str:
    """A field's value as people read it: unfolded, decoded, at most 998 characters. Never raises.

    Controls and characters that turn the writing direction become U+FFFD, so that a page or a terminal is not led on.
    """
    value = unfold(value[: 8 * _MAX_SHOWN])
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        text = value.decode("cp1252", "replace")
    text = _NOT_FOR_EYES.sub("\ufffd", decode_words(text).replace("\t", " "))
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


# --- line ends --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LineFaults:
    """How many octets of a message a lenient reader could take for line ends, or that SMTP does not carry (NUL)."""

    bare_cr: int = 0
    bare_lf: int = 0
    nul: int = 0

    def __bool__(self) -> bool:
        return bool(self.bare_cr or self.bare_lf or self.nul)


_NO_FAULTS = LineFaults()


def find_line_faults(content: bytes) -> LineFaults:
    """Count CR without LF, LF without CR, and NUL (RFC 5321 section 2.3.8; RFC 5322 section 2.3). False when clean."""
    crlf = content.count(b"\r\n")
    bare_cr = content.count(b"\r") - crlf
    bare_lf = content.count(b"\n") - crlf
    if not bare_cr and not bare_lf and b"\0" not in content:
        return _NO_FAULTS
    return LineFaults(bare_cr, bare_lf, content.count(b"\0"))


def normalise_line_ends(content: bytes) -> bytes:
    """Make CRLF of each CR, LF and CRLF. NUL stays: it is refused, not repaired."""
    return content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")


# --- changing ---------------------------------------------------------------------------------------------------------


def remove_fields(header: bytes, names: Iterable[str]) -> bytes:
    """The header without the fields of these names, in any case, with their continuation lines."""
    return _fields_named(tuple(names)).sub(b"", header)


@lru_cache(maxsize=64)
def _fields_named(names: tuple[str, ...]) -> re.Pattern[bytes]:
    alternatives = b"|".join(re.escape(name.encode("ascii")) for name in names)
    return re.compile(
        rb"^(?:" + alternatives + rb")[ \t]*+:[^\r\n]*+\r\n(?:[ \t][^\r\n]*+\r\n)*+", re.MULTILINE | re.IGNORECASE
    )


def put_in_front(header: bytes, fields: bytes) -> bytes:
    """The header with whole fields, each with its CRLF, before it. Raises ValueError when `fields` are not whole."""
    if not fields.endswith(b"\r\n") or fields[0] in b" \t\r\n":
        raise ValueError("Fields to put in front must begin with a name and end with CRLF.")
    return fields + header


def fold_long_header_lines(header: bytes) -> bytes:
    """Bring header lines over 998 octets to a legal length (RFC 5322 section 2.1.1); the other lines stay as they are.

    Lines are folded at white space. Where a line has none in reach, address fields are folded after a comma; Subject,
    Comments and fields whose names begin with `X-` become encoded-words. Other fields raise HeaderTooLong: a fold
    inside an unbroken word would put a space into it.
    """
    if len(header) <= MAX_LINE_OCTETS or max(map(len, header.split(b"\r\n"))) <= MAX_LINE_OCTETS:
        return header
    out: list[bytes] = []
    position = 0
    for found in _FIELDS.finditer(header):
        out.append(header[position : found.start()])
        whole = found[0]
        out.append(whole if _lines_fit(whole) else _fold_field(found[1], whole))
        position = found.end()
    out.append(header[position:])
    folded = b"".join(out)
    if not _lines_fit(folded):
        raise HeaderTooLong("A line of the header is longer than 998 octets and is no field.")
    return folded


def _lines_fit(lines: bytes) -> bool:
    return max(map(len, lines.split(b"\r\n"))) <= MAX_LINE_OCTETS


def _fold_field(name: bytes, whole: bytes) -> bytes:
    kind = name.lower()
    lines = [_fold_line(line, after_commas=kind in _ADDRESS_FIELDS) for line in whole[:-2].split(b"\r\n")]
    folded = b"\r\n".join(lines) + b"\r\n"
    if _lines_fit(folded):
        return folded
    if kind in (b"subject", b"comments") or kind.startswith(b"x-"):
        text = unfold(whole.partition(b":")[2]).decode("utf-8", "replace")
        # What is encoded already is decoded first, so that no word is encoded twice.
        return fold(name.decode(), encode_unstructured(decode_words(text), name.decode()))
    raise HeaderTooLong(f"The header field {name[:76].decode()} has a word longer than 998 octets. Shorten it.")


# White space before something visible: a fold elsewhere would leave a line of nothing but white space.
_FOLD_PLACE = re.compile(rb"(?<=[^ \t])(?=[ \t]++[^ \t])")
# Steps over quoted strings, so that a comma inside one is not found.
_COMMA_STEP = re.compile(rb'"(?:[^"\\]|\\.)*+"|[^",]++|,|"', re.DOTALL)


def _fold_line(line: bytes, *, after_commas: bool) -> bytes:
    if len(line) <= MAX_LINE_OCTETS:
        return line
    places = [(found.start(), b"\r\n") for found in _FOLD_PLACE.finditer(line)]
    if after_commas and b"(" not in line:
        commas = (found.end() for found in _COMMA_STEP.finditer(line) if found[0] == b",")
        places += [(place, b"\r\n ") for place in commas if line[place : place + 1] not in (b" ", b"\t", b"")]
        places.sort()
    out: list[bytes] = []
    start = indent = 0
    last: tuple[int, bytes] | None = None
    for place in [*places, (len(line), b"")]:
        if place[0] - start + indent > MAX_LINE_OCTETS and last is not None:
            out += (line[start : last[0]], last[1])
            start, indent = last[0], len(last[1]) - 2
        last = place
    out.append(line[start:])
    return b"".join(out)


# --- writing ----------------------------------------------------------------------------------------------------------


def check_field_value(name: str, value: str) -> None:
    """Refuse what could end a header line: CR, LF, NUL, other controls but the tab, U+0085, U+2028, U+2029.

    Raises InvalidInput that names `name`, the dotted name of the input field.
    """
    if _NOT_IN_FIELDS.search(value):
        raise InvalidInput.of(
            name, "control-character", "Line ends and control characters cannot be used here. Remove them."
        )


def check_field_name(name: str, field_name: str) -> None:
    """Refuse what is no field name (RFC 5322 section 3.6.8). Raises InvalidInput that names `name`."""
    if not _FIELD_NAME.fullmatch(field_name):
        raise InvalidInput.of(
            name, "bad-header-name", "A header name has 1 to 76 letters, digits and hyphens, without spaces and colon."
        )


def fold(name: str, value: str) -> bytes:
    """A whole field with CRLF, folded at white space towards 78 octets (RFC 5322 section 2.2.3).

    `value` is text that may stand as it is: ASCII, or UTF-8 by RFC 6532. Unfolded it reads the same. Raises ValueError
    for line ends and controls, and HeaderTooLong where a word is longer than a line.
    """
    if _NOT_IN_FIELDS.search(value) or not _FIELD_NAME.fullmatch(name):
        raise ValueError("The header field holds a line end or a control character.")
    if len(name) + 2 + len(value) <= PREFERRED_LINE_OCTETS and value.isascii():
        return f"{name}: {value.strip(' ')}\r\n".encode("ascii")
    return _fold_tokens(name, [token.encode("utf-8") for token in _TOKEN.findall(value.strip(" \t"))])


def encode_unstructured(text: str, name: str = "") -> str:
    """Text for an unstructured field such as Subject: as it is, or with encoded-words where it needs them (RFC 2047).

    From the first word that needs encoding to the last, all is encoded, so that the spaces between survive. `name` is
    the field's, which shortens the first line.
    """
    if text.isascii() and "=?" not in text and len(text) < MAX_LINE_OCTETS - 80:
        return text
    words = text.split(" ")
    needy = [at for at, word in enumerate(words) if not word.isascii() or "=?" in word or len(word) > _MAX_PLAIN_WORD]
    if not needy:
        return text
    first, last = needy[0], needy[-1]
    before = words[:first]
    # RFC 2047 section 2: a line that holds an encoded-word has at most 76 characters.
    taken = len(name) + 2 + sum(len(word) + 1 for word in before)
    encoded = encode_words(" ".join(words[first : last + 1]), taken if taken < 60 else 1)
    return " ".join([*before, *encoded, *words[last + 1 :]])


# An unbroken ASCII word up to this length goes on a line of its own; the rest of 998 is left for those that add to it.
_MAX_PLAIN_WORD = 900


def format_address(address: Address, display: str = "") -> bytes:
    """An address as it stands in a header field: `a@b`, or `name <a@b>` with the name quoted or encoded as it needs.

    The domain is written with A-labels; the local part as it is, so that one outside ASCII makes the header need
    SMTPUTF8. Raises ValueError for line ends and controls in the name.
    """
    return b"".join(_address_tokens(address, display))


def write_addresses(name: str, addresses: Sequence[NamedAddress]) -> bytes:
    """A whole address field with CRLF: folded between addresses and inside names, never inside an address."""
    tokens: list[bytes] = []
    for named in addresses:
        if tokens:
            tokens[-1] += b","
        parts = _address_tokens(named.address, named.name)
        tokens += (b" " + parts[0], *parts[1:]) if tokens else parts
    return _fold_tokens(name, tokens)


_PHRASE = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?: [A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
# A quoted name is not folded: a longer one is encoded, which can be.
_MAX_QUOTED_NAME = 70


def _address_tokens(address: Address, display: str) -> list[bytes]:
    """The pieces between which a fold may go, each but the first with the space before it."""
    spec = address.ascii_text.encode("utf-8")
    display = display.strip(" \t")
    if not display:
        return [spec]
    if _NOT_IN_FIELDS.search(display):
        raise ValueError("The display name holds a line end or a control character.")
    if display.isascii() and "=?" not in display and len(display) <= _MAX_QUOTED_NAME:
        if _PHRASE.fullmatch(display):
            words = display.split(" ")
        else:
            words = ['"' + display.replace("\\", "\\\\").replace('"', '\\"') + '"']
    else:
        words = encode_words(display, len("Reply-To: "))
    tokens = [word.encode("ascii") if at == 0 else b" " + word.encode("ascii") for at, word in enumerate(words)]
    return [*tokens, b" <" + spec + b">"]


def _fold_tokens(name: str, tokens: Sequence[bytes]) -> bytes:
    """Tokens, each with its space before it, in lines: CRLF goes before one that would make its line too long."""
    lines: list[bytes] = []
    line = name.encode("ascii") + b": " + (tokens[0] if tokens else b"")
    for token in tokens[1:]:
        if len(line) + len(token) > PREFERRED_LINE_OCTETS and token[:1] in b" \t":
            lines.append(line)
            line = token
        else:
            line += token
    lines.append(line)
    if max(map(len, lines)) > MAX_LINE_OCTETS:
        raise HeaderTooLong(f"The header field {name} has a word longer than {MAX_LINE_OCTETS} octets. Shorten it.")
    return b"\r\n".join(lines) + b"\r\n"
