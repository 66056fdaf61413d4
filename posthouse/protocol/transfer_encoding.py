"""Content transfer encodings (RFC 2045 section 6): writes text and octets so that any server carries them."""

import binascii

from posthouse.protocol.headers import MAX_LINE_OCTETS

_BASE64_LINE = 76
# RFC 2045 section 6.8: 57 octets make one line of 76 characters. Encoded in blocks, so that a large file is never held
# as a list of its lines.
_BASE64_BLOCK = 57 * 4096
# What quoted-printable leaves as it is, line ends included.
_QP_PLAIN = bytes(octet for octet in (9, 10, 13, *range(32, 127)) if octet != ord("="))


def fits_seven_bit(octets: bytes) -> bool:
    """Whether content with CRLF line ends may go as it is, as 7bit (RFC 2045 section 2.7)."""
    if not octets.isascii() or b"\0" in octets:
        return False
    return lines_fit(octets)


def lines_fit(octets: bytes) -> bool:
    """Whether no line is longer than 998 octets without its CRLF (RFC 5322 section 2.1.1)."""
    if len(octets) <= MAX_LINE_OCTETS:
        return True
    # From line end to line end as far as one may lie from the other: no list of lines of a large body is made.
    start, end = 0, len(octets)
    while end - start > MAX_LINE_OCTETS:
        found = octets.rfind(b"\r\n", start, start + MAX_LINE_OCTETS + 2)
        if found < 0:
            return False
        start = found + 2
    return True


def encode_text(octets: bytes) -> tuple[str, bytes]:
    """(name, content) for text with CRLF line ends: 7bit, else the shorter of quoted-printable and base64."""
    if fits_seven_bit(octets):
        return "7bit", octets
    return encode_for_seven_bit(octets)


def encode_for_seven_bit(octets: bytes) -> tuple[str, bytes]:
    """(name, content) for text with CRLF line ends: the shorter of quoted-printable and base64."""
    # Three characters for each escape against four for three octets; soft line breaks cost about the same in both.
    escapes = len(octets.translate(None, _QP_PLAIN))
    if 2 * escapes <= len(octets) // 3:
        return "quoted-printable", encode_quoted_printable(octets)
    return "base64", encode_base64(octets)


def encode_quoted_printable(octets: bytes) -> bytes:
    """Text with CRLF line ends in quoted-printable (RFC 2045 section 6.7); a last line without CRLF stays without."""
    # The library writes soft line breaks in the style of the first line end that it meets: it is given one. A line end
    # after the last line lets it see white space there, which must be escaped.
    ended = octets.endswith(b"\r\n")
    quoted = binascii.b2a_qp(b"\r\n" + octets if ended else b"\r\n" + octets + b"\r\n", istext=True)
    return quoted[2:] if ended else quoted[2:-2]


def encode_base64(octets: bytes) -> bytes:
    """Octets in base64, in lines of 76 characters, each with CRLF (RFC 2045 section 6.8)."""
    blocks: list[bytes] = []
    for start in range(0, len(octets), _BASE64_BLOCK):
        line = binascii.b2a_base64(octets[start : start + _BASE64_BLOCK], newline=False)
        blocks.append(_in_lines(line))
    return b"".join(blocks)


def wrap_base64(encoded: bytes) -> bytes:
    """Base64 in lines of 76 characters, whatever its lines were; octets outside ASCII, which mean nothing, go."""
    return _in_lines(encoded.translate(None, b"\r\n\t " + bytes(range(128, 256))))


def _in_lines(line: bytes) -> bytes:
    lines = [line[at : at + _BASE64_LINE] for at in range(0, len(line), _BASE64_LINE)]
    return b"\r\n".join([*lines, b""])
