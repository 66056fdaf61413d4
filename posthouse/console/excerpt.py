"""What a page shows of a message: its header fields and its first plain text, from the first octets, in bounded time.

Captured mail may be hostile (threat A18): the search goes at most a few levels and parts deep, over a bounded number of
octets, each step linear, and gives up rather than guess. It is for looking at; nothing is decided by it.
"""

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass

from posthouse.model.encoded_word import decode_charset
from posthouse.protocol.headers import decode_for_people, fields_of, media_type, split

MAX_OCTETS = 512 * 1024
MAX_FIELDS = 200
MAX_TEXT = 100_000
MAX_DEPTH = 8
MAX_PARTS = 64
MAX_PARAMETERS_OCTETS = 4096

_PARAMETER = re.compile(
    rb';[ \t\r\n]*([!#$&-.0-9A-Z^-~]{1,40})[ \t\r\n]*=[ \t\r\n]*(?:"([^"\r\n]{0,200})"|([^ \t\r\n;"]{1,200}))'
)
# Line ends and tabs stay; everything else that a page cannot show, or that turns the writing direction, does not.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a message, for the list of parts."""

    content_type: str
    name: str
    octets: int


@dataclass(frozen=True, slots=True)
class Excerpt:
    """What is shown. `is_cut`: there is more than was looked at."""

    fields: tuple[tuple[str, str], ...]
    text: str
    source: str
    parts: tuple[Part, ...]
    is_cut: bool


def excerpt_of(raw: bytes, *, is_cut: bool) -> Excerpt:
    """Read the first octets of a message (at most MAX_OCTETS are looked at)."""
    is_cut = is_cut or len(raw) > MAX_OCTETS
    raw = raw[:MAX_OCTETS]
    header, body = split(raw)
    fields = fields_of(header)
    shown = tuple((name.decode("ascii", "replace"), decode_for_people(value)) for name, value in fields[:MAX_FIELDS])
    parts: list[Part] = []
    text = ""
    for part_fields, content in _leaves(fields, body, MAX_DEPTH):
        part = _describe(part_fields, content)
        parts.append(part)
        if not text and part.content_type in ("text/plain", "") and not part.name:
            text = _text_of(part_fields, content)
        if len(parts) >= MAX_PARTS:
            break
    return Excerpt(shown, _shown(text), _shown(_decoded(raw)), tuple(parts), is_cut or len(text) > MAX_TEXT)


def _leaves(
    fields: list[tuple[bytes, bytes]], body: bytes, depth: int
) -> Iterator[tuple[list[tuple[bytes, bytes]], bytes]]:
    """The parts that hold something, in order; a multipart too deep to look into is such a part itself."""
    content_type = _field(fields, b"content-type")
    boundary = _parameters(content_type).get(b"boundary", b"")
    if depth and boundary and media_type(content_type).startswith("multipart/"):
        for piece in body.split(b"--" + boundary)[1 : MAX_PARTS + 1]:
            if piece.startswith(b"--"):
                return
            part_fields, content = _part(piece)
            yield from _leaves(part_fields, content, depth - 1)
        return
    yield fields, body


def _part(piece: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Fields and content of what stands between two boundaries (RFC 2046 section 5.1.1)."""
    piece = piece.partition(b"\r\n")[2].removesuffix(b"\r\n")
    if piece.startswith(b"\r\n"):
        return [], piece[2:]
    header, content = split(piece)
    return fields_of(header), content


def _describe(fields: list[tuple[bytes, bytes]], content: bytes) -> Part:
    content_type = _field(fields, b"content-type")
    name = _parameters(_field(fields, b"content-disposition")).get(b"filename") or _parameters(content_type).get(
        b"name"
    )
    return Part(media_type(content_type), decode_for_people(name or b""), len(content))


def _text_of(fields: list[tuple[bytes, bytes]], content: bytes) -> str:
    encoding = media_type(_field(fields, b"content-transfer-encoding"))
    content = content[: 4 * MAX_TEXT]
    if encoding == "base64":
        # A cut leaves an incomplete group of four; without it the rest can be read.
        letters = re.sub(rb"[^A-Za-z0-9+/]", b"", content)
        content = binascii.a2b_base64(letters[: len(letters) // 4 * 4] + _padded(letters))
    elif encoding == "quoted-printable":
        content = binascii.a2b_qp(content)
    charset = _parameters(_field(fields, b"content-type")).get(b"charset", b"")
    return decode_charset(content, charset.decode("ascii", "replace")) if charset else _decoded(content)


def _padded(letters: bytes) -> bytes:
    rest = letters[len(letters) // 4 * 4 :]
    return rest + b"=" * (-len(rest) % 4) if len(rest) > 1 else b""


def _decoded(octets: bytes) -> str:
    try:
        return octets.decode("utf-8")
    except UnicodeDecodeError:
        return octets.decode("cp1252", "replace")


def _shown(text: str) -> str:
    return _UNSEEN.sub("\ufffd", text.replace("\r\n", "\n"))[:MAX_TEXT]


def _field(fields: list[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((value[:MAX_PARAMETERS_OCTETS] for found, value in fields if found.lower() == name), b"")


def _parameters(value: bytes) -> dict[bytes, bytes]:
    """The parameters of a structured field (RFC 2045 section 5.1); continuations (RFC 2231) are left as they are."""
    return {name.lower(): quoted or token for name, quoted, token in _PARAMETER.findall(value)}
