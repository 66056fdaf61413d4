"""Times and spans as people type them: 2026-11-20, 2026-11-20T14:05, 14:05, 2h, 90d. Without a zone they are local."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_SPAN = re.compile(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Span(click.ParamType[timedelta]):
    """How long: a number with s, min, h, d or w."""

    name = "span"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "SPAN"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = parse_span(str(value))
        if found is None:
            self.fail("Write it as a number with s, min, h, d or w, such as 30min or 90d.", param, ctx)
        return found


class Moment(click.ParamType[datetime]):
    """When: a date, a time, or how long ago (`past`) or from now (not `past`)."""

    name = "time"

    def __init__(self, *, past: bool = False) -> None:
        self._past = past

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        found = parse_moment(str(value), past=self._past)
        if found is None:
            self.fail("Write it as 2026-11-20, 2026-11-20T14:05, 14:05, or as a span such as 2h.", param, ctx)
        return found


def parse_span(text: str) -> timedelta | None:
    """`90d` as a span, None where the text is none."""
    match = _SPAN.fullmatch(text.strip().lower())
    try:
        return timedelta(seconds=float(match[1]) * _SECONDS[match[2]]) if match else None
    except OverflowError:
        return None


def parse_moment(text: str, *, past: bool = False, now: datetime | None = None) -> datetime | None:
    """A moment in UTC, None where the text is none. A time alone is today's."""
    now = now or datetime.now(UTC)
    span = parse_span(text)
    try:
        if span is not None:
            return now - span if past else now + span
        if re.fullmatch(r"\d{1,2}:\d{2}(?::\d{2})?", text):
            text = f"{now.astimezone():%Y-%m-%d}T{text.zfill(5)}"
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def api_time(moment: datetime | None) -> str | None:
    """A moment as the API takes it."""
    return None if moment is None else moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
