"""Times and spans as people type them."""

from datetime import UTC, datetime, timedelta

import pytest

from posthouse.cli.times import api_time, parse_moment, parse_span

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90d", timedelta(days=90)),
        ("2h", timedelta(hours=2)),
        ("30 min", timedelta(minutes=30)),
        ("1.5h", timedelta(minutes=90)),
        ("1w", timedelta(days=7)),
        ("10", None),
        ("-2h", None),
        ("h", None),
    ],
)
def test_spans(text: str, span: timedelta | None) -> None:
    assert parse_span(text) == span


def test_a_span_is_before_or_after_now() -> None:
    assert parse_moment("2h", now=NOW) == NOW + timedelta(hours=2)
    assert parse_moment("2h", past=True, now=NOW) == NOW - timedelta(hours=2)


def test_a_time_with_zone_is_taken_as_it_is() -> None:
    assert parse_moment("2026-11-20T14:05:00+01:00") == datetime(2026, 11, 20, 13, 5, tzinfo=UTC)


def test_a_time_without_zone_is_local() -> None:
    moment = parse_moment("2026-11-20T14:05")
    assert moment is not None
    assert moment.astimezone().strftime("%Y-%m-%d %H:%M") == "2026-11-20 14:05"


def test_a_time_alone_is_todays() -> None:
    moment = parse_moment("9:30", now=NOW)
    assert moment is not None
    assert moment.astimezone().strftime("%Y-%m-%d %H:%M") == f"{NOW.astimezone():%Y-%m-%d} 09:30"


@pytest.mark.parametrize("text", ["", "soon", "2026-13-01", "25:00", "999999999999d"])
def test_what_is_no_time_is_none(text: str) -> None:
    assert parse_moment(text) is None


def test_the_api_gets_utc_with_milliseconds() -> None:
    assert api_time(NOW) == "2026-11-20T12:00:00.000Z"
    assert api_time(None) is None
