"""What was said on a connection, for tests and diagnosis, without its secrets.

Off by default: a connection without a transcript pays nothing. Secrets are hidden twice: what we send as a secret is
never written down, and what the server says is searched for every secret in each form in which it could be echoed.
"""

import base64
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, quote_plus

HIDDEN = "[hidden]"
MAX_LINES = 400
MAX_LINE_CHARACTERS = 1000

Direction = Literal["sent", "received", "note"]


class Mask:
    """Replaces secrets in text: raw, in base64 at each alignment, percent-encoded, in JSON and in hexadecimal."""

    __slots__ = ("_forms", "_ordered")

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        self._forms: set[str] = set()
        self._ordered: tuple[str, ...] = ()
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Hide these from now on, too."""
        for secret in secrets:
            self._forms.update(_forms(secret))
        # Longest first, so that no part of a longer form is left over.
        self._ordered = tuple(sorted(self._forms, key=len, reverse=True))

    def __bool__(self) -> bool:
        """Whether there is anything to hide."""
        return bool(self._ordered)

    def __call__(self, text: str) -> str:
        """`text` with each secret replaced by "[hidden]"."""
        for form in self._ordered:
            if form in text:
                text = text.replace(form, HIDDEN)
        return text


def _forms(secret: str) -> set[str]:
    """Every way in which a server could write `secret`."""
    if not secret:
        return set()
    raw = secret.encode()
    forms = {secret, quote(secret, safe=""), quote(secret), quote_plus(secret)}
    forms |= {raw.decode("latin-1"), secret.replace("\\", "\\\\").replace('"', '\\"')}
    forms |= {raw.hex(), raw.hex().upper()}
    for offset in range(3):
        # Inside a longer text the first and last characters of the base64 form depend on the neighbours.
        encoded = base64.b64encode(b"\0" * offset + raw).decode().rstrip("=")
        skipped = (0, 2, 3)[offset]
        complete = (len(raw) + offset) * 8 // 6
        core = encoded[skipped:complete]
        if len(core) >= 4:
            forms |= {core, core.replace("+", "-").replace("/", "_")}
    return forms - {""}


@dataclass(frozen=True, slots=True)
class TranscriptLine:
    """One line: who, how many seconds after the start, what. `text` may hold control characters: faces escape it."""

    direction: Direction
    at_s: float
    text: str


class Transcript:
    """The last lines of a conversation. Bounded: old lines go, long ones are cut."""

    def __init__(self, clock: Callable[[], float], *, max_lines: int = MAX_LINES) -> None:
        self._clock = clock
        self._started = clock()
        self._lines: deque[TranscriptLine] = deque(maxlen=max_lines)
        self._partial = b""
        self.mask = Mask()

    @property
    def lines(self) -> tuple[TranscriptLine, ...]:
        """What is remembered, oldest first."""
        return tuple(self._lines)

    def sent(self, data: bytes, *, secret: bool = False) -> None:
        """Write down what we sent; of a secret only the command and its mechanism."""
        if secret:
            words = data.split(b" ", 2)
            shown = b" ".join(words[:2]) + b" " if words[0] == b"AUTH" and len(words) == 3 else b""
            self._add("sent", shown.decode("ascii", "replace") + HIDDEN)
            return
        self._add_all("sent", data.split(b"\r\n"))

    def content(self, octets: int) -> None:
        """Write down that message content was sent; the content itself never stands in a transcript."""
        self._add("sent", f"[{octets} octets of message]")

    def received(self, data: bytes) -> None:
        """Write down what came. A line that is not complete yet waits for its rest."""
        *lines, self._partial = (self._partial + data[: MAX_LINE_CHARACTERS * self._room]).split(b"\n")
        self._partial = self._partial[:MAX_LINE_CHARACTERS]
        self._add_all("received", [line.removesuffix(b"\r") for line in lines])

    def note(self, text: str) -> None:
        """Write down something that is no line of the protocol, such as the TLS handshake."""
        self.flush()
        self._add("note", text)

    def flush(self) -> None:
        """Write down a line that never became complete."""
        if self._partial:
            partial, self._partial = self._partial, b""
            self._add("received", partial.decode("utf-8", "replace"))

    @property
    def _room(self) -> int:
        return self._lines.maxlen or MAX_LINES

    def _add_all(self, direction: Direction, lines: Iterable[bytes]) -> None:
        for line in lines:
            if line:
                self._add(direction, line.decode("utf-8", "replace"))

    def _add(self, direction: Direction, text: str) -> None:
        # First hidden, then cut: half a secret at the cut would be found by no mask.
        shown = self.mask(text)
        if len(shown) > MAX_LINE_CHARACTERS:
            shown = shown[:MAX_LINE_CHARACTERS] + " ..."
        self._lines.append(TranscriptLine(direction, self._clock() - self._started, shown))
