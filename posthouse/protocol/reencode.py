"""Makes content legal for a server: re-encodes the parts of a body that it could not carry, and nothing else.

Delivery calls it where a body has lines over 998 octets (RFC 5322 section 2.1.1), or octets above 127 and the server
does not offer 8BITMIME (RFC 6152 section 3). The boundaries of parts are found in the bytes, in one pass and without
recursion; every byte outside the parts concerned stays the same. Signed and encrypted content is never touched: where
it would have to be, CannotReencode says so and the message must go through another server or be refused.

What it does not do: header fields of the message itself are left to `headers.fold_long_header_lines`; octets above 127
in them need SMTPUTF8. A DKIM signature made before covers the old body and fails afterwards.
"""

import binascii
import re
from dataclasses import dataclass
from typing import NamedTuple

from posthouse.protocol.headers import (
    HeaderTooLong,
    fields_of,
    fold_long_header_lines,
    is_sealed,
    media_type,
    put_in_front,
    unfold,
)
from posthouse.protocol.transfer_encoding import encode_base64, encode_for_seven_bit, lines_fit, wrap_base64

# Real mail has nested fewer than 10 deep and brings fewer than 200 parts; these stop bombs (threat A18).
MAX_DEPTH = 100
MAX_PARTS = 1000
# RFC 2046 section 5.1.1 allows 70 characters; some writers use more.
_MAX_BOUNDARY = 250
_MAX_DELIMITER_LINE = 1200

# As in `headers`, save that a name beginning with two hyphens is a delimiter and no field.
_PART_HEADER = re.compile(rb"(?:(?!--)[!-9;-~]++[ \t]*+:.*+\n(?:[ \t].*+\n)*+)*+")
_ENCODING_FIELD = re.compile(rb"^content-transfer-encoding[ \t]*+:.*+\n(?:[ \t].*+\n)*+", re.MULTILINE | re.IGNORECASE)
_PARAMETER = re.compile(
    rb""";[ \t\r\n]*+
    (?:([!#-'*-:<>-~]++)[ \t\r\n]*+=[ \t\r\n]*+(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]++))[ \t\r\n]*+)?+""",
    re.DOTALL | re.VERBOSE,
)
_QUOTED_PAIR = re.compile(rb"\\(.)", re.DOTALL)
_AS_IT_IS = frozenset({"", "7bit", "8bit", "binary"})


class CannotReencode(ValueError):
    """The content cannot be made legal for this server without breaking it. Says which part and why."""


class Reencoded(NamedTuple):
    """The message afterwards, and a sentence for each change, for the timeline; no changes: the bytes are the same."""

    header: bytes
    body: bytes
    changes: tuple[str, ...]


def needs_reencoding(body: bytes, *, keep_eight_bit: bool) -> bool:
    """Whether a server with 8BITMIME (`keep_eight_bit`), or without, could not carry the body as it is."""
    return not ((keep_eight_bit or body.isascii()) and lines_fit(body))


def reencode(header: bytes, body: bytes, *, keep_eight_bit: bool) -> Reencoded:
    """Re-encode the parts whose lines are too long or, unless `keep_eight_bit`, hold octets above 127.

    Text becomes quoted-printable or base64, whichever is shorter; other content base64. Line ends must be CRLF. Time is
    linear in the size. Raises CannotReencode: signed or encrypted content, unreadable structure, more than 100 levels
    or 1,000 parts, unknown transfer encodings, header fields of parts beyond ASCII.
    """
    if not needs_reencoding(body, keep_eight_bit=keep_eight_bit):
        return Reencoded(header, body, ())
    work = _Work(header, body, keep_eight_bit)
    work.run()
    result = work.result()
    if needs_reencoding(result.body, keep_eight_bit=keep_eight_bit):
        raise CannotReencode("The message has lines or characters outside its parts that the server cannot take.")
    return result


@dataclass(slots=True)
class _Entity:
    """A message or part whose header was read. `start` and `end` place its header in the body; -1 is the message's."""

    start: int
    end: int
    header: bytes
    number: str
    sealed: bool
    # The message itself, or one that it holds: its header stands alone, without a multipart around it.
    is_message: bool
    kind: str = ""
    parameters: bytes = b""
    encoding: str = ""
    has_type: bool = False


@dataclass(slots=True)
class _Multipart:
    """A multipart whose last delimiter was not met yet."""

    boundary: bytes
    sealed: bool
    default_type: str
    number: str
    parts: int = 0


class _Work:
    """One walk over a body from its first byte to its last."""

    def __init__(self, header: bytes, body: bytes, keep_eight_bit: bool) -> None:
        self._header = header
        self._body = body
        self._keep_eight_bit = keep_eight_bit
        self._to_seven_bit = not keep_eight_bit and not body.isascii()
        self._open: list[_Multipart] = []
        self._levels: dict[bytes, int] = {}
        self._edits: list[tuple[int, int, bytes]] = []
        self._changes: list[str] = []
        self._parts = 0
        self._depth = 0
        # The leaf that the walk is in, or None in what lies before, between and after parts; and where it began.
        self._leaf: _Entity | None = None
        self._leaf_start = 0

    def result(self) -> Reencoded:
        pieces: list[bytes] = []
        position = 0
        for start, end, replacement in self._edits:
            pieces += (self._body[position:start], replacement)
            position = end
        pieces.append(self._body[position:])
        return Reencoded(self._header, b"".join(pieces), tuple(self._changes))

    def run(self) -> None:
        root = _Entity(-1, -1, self._header, "", sealed=False, is_message=True)
        position = self._enter(root, 0, "text/plain")
        while self._open and (found := self._next_delimiter(position)) is not None:
            at, position, level, closes = found
            self._finish(at)
            del self._open[level + 1 :]
            self._levels = {multipart.boundary: place for place, multipart in enumerate(self._open)}
            multipart = self._open[level]
            if closes:
                del self._levels[multipart.boundary]
                self._open.pop()
                self._leaf, self._leaf_start = None, min(position + 2, len(self._body))
            else:
                position = self._next_part(multipart, min(position + 2, len(self._body)))
        self._finish(len(self._body))

    # --- structure ----------------------------------------------------------------------------------------------------

    def _next_delimiter(self, position: int) -> tuple[int, int, int, bool] | None:
        """The next delimiter of an open multipart: (CRLF before it, end of its line, level, whether it is the last)."""
        body = self._body
        while True:
            if position < 0 and body.startswith(b"--"):
                at = -2
            else:
                at = body.find(b"\r\n--", max(position, 0))
                if at < 0:
                    return None
            line_end = body.find(b"\r\n", at + 4, at + 4 + _MAX_DELIMITER_LINE)
            if line_end < 0 and len(body) - at <= _MAX_DELIMITER_LINE:
                line_end = len(body)
            if line_end >= 0:
                line = body[at + 4 : line_end].rstrip(b" \t")
                if line in self._levels:
                    return at, line_end, self._levels[line], False
                if line.endswith(b"--") and line[:-2] in self._levels:
                    return at, line_end, self._levels[line[:-2]], True
            position = at + 2

    def _next_part(self, multipart: _Multipart, start: int) -> int:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise CannotReencode(f"The message has more than {MAX_PARTS} parts.")
        multipart.parts += 1
        number = f"{multipart.number}.{multipart.parts}" if multipart.number else str(multipart.parts)
        self._depth = len(self._open)
        entity, body_start = self._read_entity(start, number, sealed=multipart.sealed, is_message=False)
        return self._enter(entity, body_start, multipart.default_type)

    def _read_entity(self, start: int, number: str, *, sealed: bool, is_message: bool) -> tuple[_Entity, int]:
        found = _PART_HEADER.match(self._body, start)
        end = found.end() if found is not None else start
        body_start = end + 2 if self._body.startswith(b"\r\n", end) else end
        return _Entity(start, end, self._body[start:end], number, sealed, is_message), body_start

    def _enter(self, entity: _Entity, body_start: int, default_type: str) -> int:
        """Go into an entity, and on into the messages that it holds; returns where to look for the next delimiter."""
        while True:
            _read_fields(entity, default_type)
            is_container = entity.encoding in _AS_IT_IS
            if is_container and entity.kind.startswith("multipart/"):
                self._open_multipart(entity)
                self._fix_container(entity)
                self._leaf, self._leaf_start = None, body_start
                break
            if not is_container or entity.kind not in ("message/rfc822", "message/global"):
                self._leaf, self._leaf_start = entity, body_start
                break
            self._fix_container(entity)
            self._deeper()
            entity, body_start = self._read_entity(body_start, entity.number, sealed=entity.sealed, is_message=True)
            default_type = "text/plain"
        # The CRLF before a delimiter may be that of the empty line, or of the last line of the header.
        return body_start - 2

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise CannotReencode(f"The parts of the message are nested more than {MAX_DEPTH} levels deep.")

    def _open_multipart(self, entity: _Entity) -> None:
        self._deeper()
        boundary = _boundary(entity.parameters)
        if boundary is None or boundary in self._levels:
            raise CannotReencode(f"{_name(entity)} has no boundary of its own, so that its parts cannot be told apart.")
        self._levels[boundary] = len(self._open)
        default_type = "message/rfc822" if entity.kind == "multipart/digest" else "text/plain"
        sealed = entity.sealed or is_sealed(entity.kind)
        self._open.append(_Multipart(boundary, sealed, default_type, entity.number))

    # --- changes ------------------------------------------------------------------------------------------------------

    def _finish(self, end: int) -> None:
        """Look at the content that ends here, and change it where the server could not carry it."""
        start = self._leaf_start
        content = self._body[start : max(start, end)]
        leaf = self._leaf
        if leaf is None:
            self._finish_filler(start, content)
            return
        too_long = not lines_fit(content)
        header_fits = lines_fit(leaf.header) and not (self._to_seven_bit and not leaf.header.isascii())
        if not too_long and (self._keep_eight_bit or content.isascii()):
            if leaf.start >= 0 and not header_fits:
                self._replace_header(leaf, self._legal_header(leaf))
            return
        if leaf.sealed or is_sealed(leaf.kind):
            raise CannotReencode(
                f"{_name(leaf)} is signed or encrypted and has {_fault(too_long)}; changing it would break it."
            )
        encoding, encoded = _encode(leaf, content)
        legal = self._legal_header(leaf) if leaf.start >= 0 else leaf.header
        self._replace_header(leaf, _with_encoding(leaf, legal, encoding, content))
        self._edits.append((start, start + len(content), encoded))
        self._changes.append(f"{_name(leaf)} was encoded as {encoding}, because it has {_fault(too_long)}.")

    def _finish_filler(self, start: int, content: bytes) -> None:
        """What lies outside the parts of a multipart, to be ignored by readers (RFC 2046 section 5.1.1), is removed."""
        if lines_fit(content) and (self._keep_eight_bit or content.isascii()):
            return
        if any(multipart.sealed for multipart in self._open):
            raise CannotReencode(
                "Text between signed or encrypted parts cannot be carried; changing it would break them."
            )
        self._edits.append((start, start + len(content), b""))
        self._changes.append("Text outside the parts, which readers do not show, was removed.")

    def _fix_container(self, entity: _Entity) -> None:
        """A part that holds others: its header must be legal, and must not promise 8 bits where none are left."""
        header = self._legal_header(entity) if entity.start >= 0 else entity.header
        sealed = entity.sealed or is_sealed(entity.kind)
        if self._to_seven_bit and entity.encoding in ("8bit", "binary") and not sealed:
            header = _ENCODING_FIELD.sub(b"Content-Transfer-Encoding: 7bit\r\n", header, count=1)
        self._replace_header(entity, header)

    def _legal_header(self, entity: _Entity) -> bytes:
        """The header of a part with its long lines folded."""
        header = entity.header
        if self._to_seven_bit and not header.isascii():
            raise CannotReencode(f"{_name(entity)} has characters outside ASCII in its header, such as a file name.")
        if lines_fit(header):
            return header
        if entity.sealed:
            raise CannotReencode(f"{_name(entity)} is signed and has a header line longer than 998 octets.")
        try:
            folded = fold_long_header_lines(header)
        except HeaderTooLong:
            raise CannotReencode(f"{_name(entity)} has a header line longer than 998 octets.") from None
        self._changes.append(f"{_name(entity)} had a header line longer than 998 octets, which was folded.")
        return folded

    def _replace_header(self, entity: _Entity, header: bytes) -> None:
        if entity.start < 0:
            self._header = header
        elif header != entity.header:
            # A part without a header begins with its content, or with the empty line, which is there already.
            bare = not entity.header and not self._body.startswith(b"\r\n", entity.end)
            self._edits.append((entity.start, entity.end, header + b"\r\n" if bare else header))


def _read_fields(entity: _Entity, default_type: str) -> None:
    entity.kind = default_type
    for name, value in fields_of(entity.header):
        lower = name.lower()
        if lower == b"content-type" and not entity.has_type:
            entity.has_type = True
            entity.kind = media_type(value) or default_type
            _, semicolon, rest = value.partition(b";")
            entity.parameters = semicolon + rest
        elif lower == b"content-transfer-encoding" and not entity.encoding:
            entity.encoding = unfold(value).decode("latin-1").lower()


def _boundary(parameters: bytes) -> bytes | None:
    """The parameter `boundary` (RFC 2046 section 5.1.1), or None where it is missing or cannot be read for certain."""
    position = 0
    while found := _PARAMETER.match(parameters, position):
        position = found.end()
        if found[1] is not None and found[1].lower() == b"boundary":
            quoted = found[2]
            boundary = _QUOTED_PAIR.sub(rb"\1", quoted) if quoted is not None else found[3]
            boundary = boundary.rstrip(b" \t")
            return boundary if 1 <= len(boundary) <= _MAX_BOUNDARY and b"\n" not in boundary else None
    return None


def _encode(leaf: _Entity, content: bytes) -> tuple[str, bytes]:
    """(transfer encoding, content) that mean the same as before."""
    if leaf.encoding == "base64":
        return "base64", wrap_base64(content)
    is_text = leaf.kind.startswith("text/")
    if leaf.encoding == "quoted-printable":
        content = binascii.a2b_qp(content)
    elif leaf.encoding not in _AS_IT_IS:
        raise CannotReencode(f"{_name(leaf)} has an unknown transfer encoding.")
    elif leaf.kind.startswith(("message/", "multipart/")):
        # RFC 2046 section 5.2: such content must not be encoded itself.
        raise CannotReencode(f"{_name(leaf)} may not be encoded (RFC 2046).")
    return encode_for_seven_bit(content) if is_text else ("base64", encode_base64(content))


def _with_encoding(leaf: _Entity, header: bytes, encoding: str, content: bytes) -> bytes:
    """The header with this Content-Transfer-Encoding, and with what that needs to have a meaning."""
    written = f"Content-Transfer-Encoding: {encoding}\r\n".encode("ascii")
    if _ENCODING_FIELD.search(header):
        first = True

        def once(_: re.Match[bytes]) -> bytes:
            nonlocal first
            taken, first = written if first else b"", False
            return taken

        header = _ENCODING_FIELD.sub(once, header)
    else:
        header += written
    if not leaf.is_message:
        return header
    if not leaf.has_type and leaf.encoding in _AS_IT_IS and not content.isascii():
        header += f"Content-Type: text/plain; charset={_charset_of(content)}\r\n".encode("ascii")
    if not any(name.lower() == b"mime-version" for name, _ in fields_of(header)):
        header = put_in_front(header, b"MIME-Version: 1.0\r\n")
    return header


def _charset_of(content: bytes) -> str:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        # RFC 1428 section 3: the name for text whose charset nobody knows.
        return "unknown-8bit"
    return "utf-8"


def _name(entity: _Entity) -> str:
    if not entity.number:
        return "The body" if entity.start < 0 else "The forwarded message"
    return f"Part {entity.number} ({entity.kind[:60]})"


def _fault(too_long: bool) -> str:
    return "lines longer than 998 octets" if too_long else "8-bit characters, which the server does not take"
