"""How commands print: aligned text for people, JSON for programs. Nothing here knows what a server or a message is.

Everything that comes from data is made visible first: control characters, line ends of any alphabet and characters that
change the direction of writing are shown as escapes, so that a subject line cannot write to the terminal (and JSON
stays JSON). Colour is used on a terminal only, and never carries a meaning alone.
"""

import json
import os
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

State = Literal["ok", "attention", "failed", "waiting", "heading", "quiet", ""]

_COLOURS: Mapping[str, str] = {
    "ok": "32",
    "attention": "33",
    "failed": "31",
    "waiting": "36",
    "heading": "1",
    "quiet": "2",
}
# Cc controls, Cf formats (direction, zero width), Cs halves of a pair, Co private, Zl and Zp line ends.
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
# Cells of a table are cut on a terminal only; a pipe gets everything.
_WIDEST_CELL = 60


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table: text, and a state that colours it. Numbers stand to the right."""

    text: str
    state: State = ""
    right: bool = False


def visible(text: str, *, keep_line_ends: bool = False) -> str:
    """The text with every character that a terminal would obey shown as an escape such as `\\x1b`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible_character(c) if not (keep_line_ends and c in "\n\t") else c for c in text)


def _visible_character(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN:
        return character
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def visible_octets(content: bytes) -> str:
    """A message for a terminal: its lines, with what is not UTF-8 and what a terminal would obey as escapes."""
    text = content.decode("utf-8", errors="backslashreplace").replace("\r\n", "\n")
    return visible(text, keep_line_ends=True)


def dump_json(value: Any) -> str:
    """JSON for people and programs: indented, readable beyond ASCII, with nothing that a terminal would obey."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(c if c == "\n" else _json_character(c) for c in text)


def _json_character(character: str) -> str:
    if unicodedata.category(character) not in _UNSEEN:
        return character
    octets = character.encode("utf-16-be", errors="surrogatepass")
    return "".join(f"\\u{octets[i]:02x}{octets[i + 1]:02x}" for i in range(0, len(octets), 2))


# --- values -----------------------------------------------------------------------------------------------------------


def parse_time(text: str) -> datetime:
    """A time as the API writes it (ISO 8601, UTC)."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def exact_time(text: str | None) -> str:
    """A time of the API in the reader's zone: 20 Nov 2026, 14:05:09 CET. "" where there is none."""
    if not text:
        return ""
    local = parse_time(text).astimezone()
    return f"{local.day} {local:%b %Y, %H:%M:%S} {local.tzname()}"


def relative_time(text: str | None, *, now: datetime | None = None) -> str:
    """A time of the API as people say it in lists: 3 min ago, in 2 h. "" where there is none."""
    if not text:
        return ""
    seconds = (parse_time(text) - (now or datetime.now(UTC))).total_seconds()
    if abs(seconds) < 1:
        return "now"
    return f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"


def duration(seconds: float) -> str:
    """Seconds in the largest useful unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{int(seconds)} s" if seconds >= 1 else "under 1 s"


def exact_duration(seconds: int) -> str:
    """Whole seconds in the largest unit that loses nothing."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds and seconds % length == 0:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def size(octets: int | None) -> str:
    """Octets as KiB or MiB. "" where there are none to count."""
    if octets is None:
        return ""
    for unit, length in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if octets >= length:
            return f"{octets / length:.1f} {unit}".replace(".0 ", " ")
    return f"{octets} B"


def plain(value: Any) -> str:
    """A JSON value as a word: yes, no, a list with commas, nothing for null."""
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(plain(entry) for entry in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return visible(str(value))


# --- printing ---------------------------------------------------------------------------------------------------------


def coloured(text: str, state: State, stream: TextIO | None = None) -> str:
    """The text in the colour of its state, where the stream is a terminal that wants colour (https://no-color.org)."""
    if state not in _COLOURS or not _wants_colour(stream or sys.stdout):
        return text
    return f"\x1b[{_COLOURS[state]}m{text}\x1b[0m"


def _wants_colour(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def say(text: str = "", state: State = "") -> None:
    """One line on standard output. The text is taken as it is: data in it has gone through `visible`."""
    print(coloured(text, state))


def warn(text: str) -> None:
    """One line on standard error."""
    print(coloured(visible(text), "attention", sys.stderr), file=sys.stderr)


def show_json(value: Any) -> None:
    """The value as JSON on standard output."""
    print(dump_json(value))


def show_table(headings: Sequence[str], rows: Iterable[Sequence[str | Cell]], *, empty: str) -> None:
    """Rows under headings, columns aligned; `empty` is said where there is no row."""
    cells = [[_cell(entry) for entry in row] for row in rows]
    if not cells:
        say(empty)
        return
    heads = [Cell(h, "heading", right=any(row[i].right for row in cells)) for i, h in enumerate(headings)]
    lines = [heads, *cells]
    widths = [max(_width(line[i].text) for line in lines) for i in range(len(heads))]
    for line in lines:
        *before, last = zip(line, widths, strict=True)
        padded = [_pad(cell, width) for cell, width in before]
        print("  ".join([*padded, _pad(*last, is_last=True)]).rstrip())


def show_pairs(pairs: Iterable[tuple[str, str | Cell]], *, indent: str = "") -> None:
    """Labels and values in two columns; pairs without a value are left out."""
    cells = [(label, _cell(entry, cut=False)) for label, entry in pairs]
    cells = [(label, cell) for label, cell in cells if cell.text]
    width = max((_width(label) for label, _ in cells), default=0)
    for label, cell in cells:
        print(f"{indent}{coloured(label, 'quiet')}{' ' * (width - _width(label))}  {coloured(cell.text, cell.state)}")


def _cell(entry: str | Cell, *, cut: bool = True) -> Cell:
    cell = entry if isinstance(entry, Cell) else Cell(entry)
    text = visible(cell.text)
    if cut and len(text) > _WIDEST_CELL and sys.stdout.isatty():
        text = text[: _WIDEST_CELL - 1] + "…"
    return Cell(text, cell.state, cell.right)


def _pad(cell: Cell, width: int, *, is_last: bool = False) -> str:
    gap = " " * (width - _width(cell.text))
    text = coloured(cell.text, cell.state)
    if cell.right:
        return gap + text
    return text if is_last else text + gap


def _width(text: str) -> int:
    """Columns on a terminal: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
