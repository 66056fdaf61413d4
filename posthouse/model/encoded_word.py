"""Encoded-words (RFC 2047): text outside ASCII in header fields. Reads what others wrote, writes our own.

Neither direction knows the structure of a field: which parts of it may hold encoded-words is the caller's knowledge.
"""

import binascii
import re
from itertools import groupby

# RFC 2047 section 2: an encoded-word has at most 75 characters.
MAX_WORD_LENGTH = 75

_WORD = re.compile(r"=\?([A-Za-z0-9_.:+-]{1,40})(?:\*[A-Za-z0-9-]{0,40})?\?([BbQq])\?([!->@-~]*)\?=")
_BETWEEN_WORDS = re.compile(r"[ \t\r\n]*")
_CONTROLS = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

# Asking `codecs` for a name that a stranger chose keeps each unknown name in memory for ever, and some codecs execute
# escapes or take quadratic time: only these are used.
_CHARSETS = {
    *("utf-8", "us-ascii", "ascii", "koi8-r", "koi8-u", "gb2312", "gbk", "gb18030", "big5", "big5-hkscs", "euc-jp"),
    *("shift-jis", "cp932", "iso-2022-jp", "iso-2022-jp-1", "iso-2022-jp-2", "euc-kr", "ks-c-5601-1987", "cp949"),
    *("iso-2022-kr", "tis-620", "cp437", "cp850", "cp866", "mac-roman", "latin-1", "latin1"),
    *(f"iso-8859-{part}" for part in (*range(1, 12), 13, 14, 15, 16)),
    *(f"windows-125{page}" for page in range(9)),
    *(f"cp125{page}" for page in range(9)),
}
_CODEC_NAMES = {"ks-c-5601-1987": "cp949", "gb2312": "gb18030", "shift-jis": "cp932", "us-ascii": "ascii"}


def decode_charset(content: bytes, charset: str) -> str:
    """Text of `content`; what the charset cannot read, or an unknown charset's octets above 127, becomes U+FFFD."""
    name = charset.lower().replace("_", "-")
    if name not in _CHARSETS:
        name = "ascii"
    return content.decode(_CODEC_NAMES.get(name, name), "replace")


def looks_like_encoded_word(text: str) -> bool:
    """Whether some reader could take part of `text` for an encoded-word."""
    return "=?" in text and _WORD.search(text) is not None


def decode_words(text: str) -> str:
    """`text` with its encoded-words read (RFC 2047 section 6.2). Control characters that come out become U+FFFD."""
    if "=?" not in text:
        return text
    pieces: list[str] = []
    run: list[tuple[str, bytes]] = []
    end_of_last = 0
    for found in _WORD.finditer(text):
        between = text[end_of_last : found.start()]
        # White space between two encoded-words is not part of the text.
        if not (run and _BETWEEN_WORDS.fullmatch(between)):
            pieces.append(_decode_run(run))
            run = []
            pieces.append(between)
        run.append((found[1].lower(), _octets(found[2], found[3])))
        end_of_last = found.end()
    pieces.append(_decode_run(run))
    pieces.append(text[end_of_last:])
    return "".join(pieces)


def encode_words(text: str, taken: int = 1) -> list[str]:
    """Encoded-words in UTF-8 that together stand for `text`; no character is split over two (RFC 2047 section 5).

    `taken` is what stands on the first word's line already: such a line has at most 76 characters.
    """
    encoded = text.encode("utf-8")
    # Base64 costs 4/3; Q costs 3 for each octet that must be escaped. The shorter one wins.
    escapes = len(encoded.translate(None, _Q_SAFE_OCTETS))
    encoding = "Q" if 3 * escapes + (len(encoded) - escapes) <= (len(encoded) + 2) // 3 * 4 else "B"
    words: list[str] = []
    held: list[bytes] = []
    size, room = 0, _room(encoding, max(taken - 1, 0))
    for character in text:
        octets = character.encode("utf-8")
        cost = sum(len(_Q[octet]) for octet in octets) if encoding == "Q" else len(octets)
        if size + cost > room and held:
            words.append(_word(b"".join(held), encoding))
            held, size, room = [], 0, _room(encoding, 0)
        held.append(octets)
        size += cost
    words.append(_word(b"".join(held), encoding))
    return words


# RFC 2047 section 5 (3): what may stand in an encoded-word inside a phrase, the narrowest of the three places.
_Q_SAFE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!*+-/")
_Q_SAFE_OCTETS = "".join(_Q_SAFE).encode() + b" "
_Q = {octet: (chr(octet) if chr(octet) in _Q_SAFE else "_" if octet == 32 else f"={octet:02X}") for octet in range(256)}
_ROOM = MAX_WORD_LENGTH - len("=?utf-8?q??=")


def _room(encoding: str, taken: int) -> int:
    """The octets of content that fit: each costs its escapes in Q, and four characters for three in base64."""
    room = _ROOM - taken
    return room if encoding == "Q" else room // 4 * 3


def _word(octets: bytes, encoding: str) -> str:
    if encoding == "Q":
        return f"=?utf-8?q?{''.join(map(_Q.__getitem__, octets))}?="
    return f"=?utf-8?b?{binascii.b2a_base64(octets, newline=False).decode()}?="


def _octets(encoding: str, content: str) -> bytes:
    raw = content.encode("ascii")
    if encoding in "qQ":
        return binascii.a2b_qp(raw, header=True)
    raw = raw.rstrip(b"=")
    if len(raw) % 4 == 1:
        raw = raw[:-1]
    try:
        return binascii.a2b_base64(raw + b"=" * (-len(raw) % 4))
    except binascii.Error:
        return b""


def _decode_run(run: list[tuple[str, bytes]]) -> str:
    # Some writers split a character over two words of one charset: their octets are joined first.
    text = "".join(
        decode_charset(b"".join(octets for _, octets in words), charset)
        for charset, words in groupby(run, key=lambda word: word[0])
    )
    return _CONTROLS.sub("\ufffd", text)
