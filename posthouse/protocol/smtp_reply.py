"""Reads SMTP replies (RFC 5321 section 4.2) from whatever pieces the network delivers.

Pure: bytes in, replies out. Nothing is believed about the server: lines and replies are bounded, and what is no reply
raises ReplyFault. Line ends without CR are taken, because servers behind old gateways send them; text beyond ASCII is
kept. What a reply means is said by `model/replies.py`.
"""

import re
from collections.abc import Callable

from posthouse.model.outcome import Reply

# RFC 5321 section 4.5.3.1.5 allows 512 octets; servers send longer ones, and eight times as much is still harmless.
MAX_LINE_OCTETS = 4096
# Bounds on one reply, so that a server cannot fill our memory with a reply that never ends.
MAX_REPLY_OCTETS = 64 * 1024
MAX_REPLY_LINES = 100

# Most replies of a kept connection are the same for every message; those are read once.
_CACHED_OCTETS = 256
_CACHED_ENTRIES = 64

# RFC 3463 section 2. The class must be that of the three-digit code, else it is left standing in the text.
_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?:[ \t]+|$)")


# "250 " -> 250, and b"2.1.5 " -> "2.1.5": what most lines start with.
_FINAL = {b"%d " % code: code for code in range(200, 600)}
_USUAL = {f"{c}.{s}.{d} ".encode(): f"{c}.{s}.{d}" for c in (2, 4, 5) for s in range(8) for d in range(10)}


class ReplyFault(Exception):
    """What came is not an SMTP reply. `replies` came whole before it; `line` is what came instead, cut short."""

    def __init__(self, reason: str, line: bytes, replies: list[Reply]) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line[:200]
        self.replies = replies


class ReplyReader:
    """Collects octets and gives back whole replies. After a ReplyFault it is of no further use."""

    __slots__ = ("_buffer", "_cache", "_code", "_enhanced", "_mask", "_octets", "_texts")

    def __init__(self) -> None:
        self._buffer = b""
        self._cache: dict[bytes, tuple[Reply, ...]] = {}
        self._mask: Callable[[str], str] | None = None
        self._begin()

    @property
    def is_idle(self) -> bool:
        """Whether nothing of an unfinished reply has come."""
        return not self._buffer and not self._texts

    @property
    def unread(self) -> bytes:
        """The octets of the line that is not complete."""
        return self._buffer

    def hide(self, mask: Callable[[str], str]) -> None:
        """Let `mask` go over the text of every reply from now on, for servers that echo a secret."""
        self._mask = mask
        self._cache.clear()

    def feed(self, data: bytes) -> list[Reply]:
        """Take what came and return the replies that it completes. Raises ReplyFault."""
        if not self._buffer and not self._texts:
            # The usual piece is one whole line of a usual form; all others go the long way.
            code = _FINAL.get(data[:4])
            if code is not None and self._mask is None and data.find(b"\r\n") == len(data) - 2 <= MAX_LINE_OCTETS:
                text = data[4:-2]
                enhanced = _USUAL.get(text[:6])
                if enhanced is not None and text[0] == data[0] and text.isascii():
                    return [Reply(code, enhanced, text[6:].decode("ascii"))]
            known = self._cache.get(data)
            if known is not None:
                return list(known)
            replies = self._read(data)
            if len(replies) > 1 and len(data) <= _CACHED_OCTETS and self.is_idle:
                if len(self._cache) >= _CACHED_ENTRIES:
                    self._cache.clear()
                self._cache[data] = tuple(replies)
            return replies
        data, self._buffer = self._buffer + data, b""
        return self._read(data)

    def _begin(self) -> None:
        self._texts: list[str] = []
        self._octets = 0
        self._code = 0
        self._enhanced = ""

    def _read(self, data: bytes) -> list[Reply]:
        replies: list[Reply] = []
        start = 0
        while True:
            end = data.find(b"\n", start)
            if end < 0:
                break
            self._line(data[start : end - 1 if end > start and data[end - 1] == 13 else end], replies)
            start = end + 1
        self._buffer = data[start:]
        if len(self._buffer) > MAX_LINE_OCTETS:
            raise ReplyFault("the line does not end", self._buffer, replies)
        return replies

    def _line(self, line: bytes, replies: list[Reply]) -> None:
        if len(line) > MAX_LINE_OCTETS:
            raise ReplyFault("the line is too long", line, replies)
        digits, mark = line[:3], line[3:4]
        if not (digits.isdigit() and len(digits) == 3 and b"200" <= digits < b"600" and mark in (b" ", b"-", b"")):
            raise ReplyFault("the line does not start with a reply code", line, replies)
        code = int(digits)
        try:
            text = line[4:].decode("utf-8")
        except UnicodeDecodeError:
            text = line[4:].decode("latin-1")
        if text[1:2] == ".":
            found = _ENHANCED.match(text)
            if found is not None and ord(found[1]) == digits[0]:
                text = text[found.end() :]
                self._enhanced = f"{found[1]}.{int(found[2])}.{int(found[3])}"
        if self._mask is not None:
            text = self._mask(text)
        if mark != b"-" and not self._texts:
            replies.append(Reply(code, self._enhanced, text))
            self._enhanced = ""
            return
        self._texts.append(text)
        self._octets += len(line)
        if self._octets > MAX_REPLY_OCTETS or len(self._texts) > MAX_REPLY_LINES:
            raise ReplyFault("the reply is too long", line, replies)
        if mark != b"-":
            # Where the lines of one reply differ, the last one counts, as in every client that is in use.
            enhanced = self._enhanced if self._enhanced[:1] == str(code)[0] else ""
            replies.append(Reply(code, enhanced, "\n".join(self._texts)))
            self._begin()
