"""Numbers and times as people read them on pages: 5 min, 20 Nov 2026, 14:05, 3.2 KiB."""

from posthouse.model.record import at

_STEPS = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"))


def duration(ms: int) -> str:
    """A length of time in the largest unit that fits."""
    for size, unit in _STEPS:
        if ms >= size:
            return f"{ms // size} {unit}"
    return f"{max(0, ms // 1000)} s"


def point_in_time(ms: int) -> str:
    """A time, to the second, in UTC."""
    moment = at(ms)
    return f"{moment.day} {moment:%b %Y, %H:%M:%S} UTC"


def octets(count: int) -> str:
    """A size in KiB or MiB."""
    if count < 1024:
        return f"{count} octets"
    if count < 1024 * 1024:
        return f"{count / 1024:.1f} KiB"
    return f"{count / (1024 * 1024):.1f} MiB"
