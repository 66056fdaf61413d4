"""Reads the content that follows DATA: finds its one true end, takes the dots away, looks at its line ends.

The end is CR LF . CR LF and nothing else (RFC 5321 section 4.1.1.4). What a lenient server could take for an end - bare
LF, bare CR, in any mixture - is content here; such content is refused when its true end has come, or its line ends are
made CR LF. NUL is refused in both cases. So there is always one message, and client and server stay in step.

Lines of any length are taken. Memory stays flat: at most `GATHER_OCTETS` and one chunk are held besides what the
content buffer keeps. What becomes of the content is the business of whoever made the buffer.
"""

import re
from enum import StrEnum
from typing import Protocol

from posthouse.errors import PosthouseError

# Content up to this size reaches its buffer in one write, however it was cut on the way.
GATHER_OCTETS = 65_536

# So that content which comes octet by octet does not cost many times its size.
_MAX_PIECES = 64

_END = b"\r\n.\r\n"
# RFC 5321 section 4.5.2: the first line may be stuffed too, as if the line of DATA were its predecessor.
_START = b"\r\n"
# One search finds a stuffed dot or the end, whichever comes first (a compiled pattern is faster than bytes.find here).
_find_dot = re.compile(rb"\r\n\.(\r\n)?").search
_LINE_END = re.compile(rb"\r\n|\r|\n")


class ContentBuffer(Protocol):
    """Where the content of one message goes. Calls come in the order write*, then finish or abandon, once."""

    # Octets written so far.
    size: int

    def write(self, octets: bytes) -> None:
        """Add octets. May raise PosthouseError (no space left); the rest of the message is then read and dropped."""

    def finish(self) -> object:
        """End the content and give what the submission works on. Called by whoever got the Submitted."""

    def abandon(self) -> None:
        """Forget the content. Must not raise."""


class BareLineEnds(StrEnum):
    """What is done with content that holds CR or LF alone."""

    REFUSE = "refuse"
    NORMALISE = "normalise"


class DataFault(StrEnum):
    """Why content cannot be taken."""

    TOO_LARGE = "too_large"
    BAD_CHARACTERS = "bad_characters"
    NOT_KEPT = "not_kept"


class DataReader:
    """Reads the content of one message into `content`, piece by piece.

    `octets` counts the content without stuffed dots, also after it is given up. `fault` is worth a look at the end
    only: which fault wins does not depend on how the content was cut into pieces.
    """

    __slots__ = (
        "_bad_characters",
        "_bare",
        "_dropping",
        "_gathered",
        "_gathered_octets",
        "_limit",
        "_started",
        "_tail",
        "content",
        "error",
        "octets",
    )

    def __init__(self, content: ContentBuffer, *, limit: int, bare: BareLineEnds) -> None:
        self.content = content
        self.octets = 0
        # What the content buffer raised.
        self.error: PosthouseError | None = None
        self._limit = limit
        self._bare = bare
        # Octets that may be the beginning of an end or of a stuffed dot: at most four.
        self._tail = _START
        self._started = False
        self._gathered: list[bytes] = []
        self._gathered_octets = 0
        self._bad_characters = False
        self._dropping = False

    @property
    def fault(self) -> DataFault | None:
        """Why the content cannot be taken, or None."""
        if self.octets > self._limit:
            return DataFault.TOO_LARGE
        if self._bad_characters:
            return DataFault.BAD_CHARACTERS
        return DataFault.NOT_KEPT if self.error is not None else None

    def take(self, data: bytes, position: int) -> int:
        """Read `data` from `position`. Returns the position behind the end of the content, or -1 when it goes on."""
        if not self._started and self._tail == _START and not data.startswith(b".", position):
            found = _find_dot(data, position)
            if found is not None and found[1]:
                # The usual case: nothing read so far, the whole content is here, and no line begins with a dot.
                self._keep(data[position : found.start() + 2])
                self._flush()
                return found.end()
        return self._take_piece(data, position)

    def abandon(self) -> None:
        """Give the content up: the connection is lost. Safe to call twice."""
        if not self._dropping:
            self._dropping = True
            self._gathered.clear()
            self.content.abandon()

    def _take_piece(self, data: bytes, position: int) -> int:
        work = self._tail + (data[position:] if position else data)
        end = work.find(_END)
        if end >= 0:
            self._keep_unstuffed(work[: end + 2])
            self._flush()
            return len(data) - (len(work) - end - 5)
        held = _held_back(work)
        self._tail = work[len(work) - held :]
        self._keep_unstuffed(work[: len(work) - held])
        return -1

    def _keep_unstuffed(self, piece: bytes) -> None:
        """Keep a piece of the wire's form; the first one still has the line end in front that was put there."""
        if not piece:
            return
        piece = piece.replace(b"\r\n.", b"\r\n")
        if not self._started:
            self._started = True
            piece = piece[2:]
        self._keep(piece)

    def _keep(self, piece: bytes) -> None:
        self.octets += len(piece)
        if not _has_clean_lines(piece):
            if self._bare is BareLineEnds.NORMALISE and b"\0" not in piece:
                piece = _LINE_END.sub(b"\r\n", piece)
            else:
                self._bad_characters = True
        if self._bad_characters or self.octets > self._limit:
            self.abandon()
        if self._dropping or not piece:
            return
        self._gathered.append(piece)
        self._gathered_octets += len(piece)
        if len(self._gathered) > _MAX_PIECES:
            self._gathered = [b"".join(self._gathered)]
        if self._gathered_octets >= GATHER_OCTETS:
            self._flush()

    def _flush(self) -> None:
        if not self._gathered:
            return
        gathered = self._gathered[0] if len(self._gathered) == 1 else b"".join(self._gathered)
        self._gathered.clear()
        self._gathered_octets = 0
        try:
            self.content.write(gathered)
        except PosthouseError as error:
            self.error = error
            self.abandon()


def _has_clean_lines(piece: bytes) -> bool:
    """Whether CR and LF come as CR LF only, and there is no NUL. `piece` never ends between CR and LF."""
    line_ends = piece.count(b"\r\n")
    return line_ends == piece.count(b"\n") and line_ends == piece.count(b"\r") and b"\0" not in piece


def _held_back(work: bytes) -> int:
    """How many octets at the end of `work` could be the beginning of the end of data."""
    for length in (4, 3, 2, 1):
        if work.endswith(_END[:length]):
            return length
    return 0
