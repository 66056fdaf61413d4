"""Identifiers: 63-bit numbers given out without asking the database, and their form for people.

Layout: milliseconds since 2020-01-01 UTC (41 bits), node (10 bits), counter (12 bits). They grow with time, so that an
index on them is appended to and a cursor over them is a cursor over time.
"""

import threading
from collections.abc import Callable

EPOCH_MS = 1_577_836_800_000
NODE_BITS = 10
COUNTER_BITS = 12
MAX_NODE = (1 << NODE_BITS) - 1
LENGTH = 13

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
# Two characters at a time: this stands in the path of every message.
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]
_VALUES = {c: i for i, c in enumerate(_ALPHABET)} | {"o": 0, "i": 1, "l": 1}


class IdentifierSource:
    """Gives out identifiers that no other node gives out. Safe to call from several threads."""

    def __init__(self, node: int, now_ms: Callable[[], int]) -> None:
        if not 0 <= node <= MAX_NODE:
            raise ValueError(f"node must be between 0 and {MAX_NODE}")
        self._node = node << COUNTER_BITS
        self._now_ms = now_ms
        self._last = 0
        self._lock = threading.Lock()

    def __call__(self, now_ms: int | None = None) -> int:
        """The next identifier, at `now_ms` where the caller has looked at the clock already. It is greater than each one
        before, also when the clock steps back."""
        with self._lock:
            base = (((now_ms or self._now_ms()) - EPOCH_MS) << (NODE_BITS + COUNTER_BITS)) | self._node
            last = self._last
            if base > last:
                value = base
            elif (last + 1) & ((1 << COUNTER_BITS) - 1):
                value = last + 1
            else:
                # The counter of this millisecond is used up: borrow the next one.
                value = (((last >> (NODE_BITS + COUNTER_BITS)) + 1) << (NODE_BITS + COUNTER_BITS)) | self._node
            self._last = value
            return value


def format_id(value: int) -> str:
    """The 13-character form that people and the API see (Crockford's base 32, lower case)."""
    if not 0 <= value < 1 << 63:
        raise ValueError("an identifier has 63 bits")
    pairs = _PAIRS
    return (
        _ALPHABET[value >> 60]
        + pairs[value >> 50 & 1023]
        + pairs[value >> 40 & 1023]
        + pairs[value >> 30 & 1023]
        + pairs[value >> 20 & 1023]
        + pairs[value >> 10 & 1023]
        + pairs[value & 1023]
    )


def parse_id(text: str) -> int | None:
    """The number behind `text`, or None where it is no identifier."""
    if len(text) != LENGTH:
        return None
    value = 0
    for c in text.lower():
        digit = _VALUES.get(c)
        if digit is None:
            return None
        value = value << 5 | digit
    return value if value < 1 << 63 else None


def first_at(ms: int) -> int:
    """The smallest identifier that can be given out at that time: a border for ranges over time."""
    return max(0, ms - EPOCH_MS) << (NODE_BITS + COUNTER_BITS)


def created_ms(value: int) -> int:
    """When the identifier was given out, in milliseconds since the Unix epoch."""
    return (value >> (NODE_BITS + COUNTER_BITS)) + EPOCH_MS
