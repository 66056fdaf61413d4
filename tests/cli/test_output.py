"""What commands print: nothing that a terminal would obey, columns that line up, values as people say them."""

import io
import json
import os
from datetime import UTC, datetime

import pytest

from posthouse.cli import output
from posthouse.cli.output import Cell

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOSTILE = "\x1b]0;owned\x07\x1b[31m red \x9b2J \u202e gnp.exe \u200b \ud800 \r\n end \x7f"


def is_harmless(text: str) -> bool:
    return all(c == "\n" or c.isprintable() for c in text)


def test_control_characters_are_shown_as_escapes() -> None:
    shown = output.visible(HOSTILE)
    assert shown.isprintable()
    assert "\\x1b]0;owned\\x07" in shown
    assert "\\x9b2J" in shown and "\\u202e" in shown and "\\x0d\\x0a" in shown


def test_letters_of_every_alphabet_stay() -> None:
    assert output.visible("Grüße, 世界, مرحبا, é 🙂") == "Grüße, 世界, مرحبا, é 🙂"


def test_json_cannot_drive_a_terminal_and_stays_the_same_json() -> None:
    value = {"subject": HOSTILE, HOSTILE: ["Grüße 🙂", 1, None]}
    text = output.dump_json(value)
    assert is_harmless(text)
    assert "Grüße 🙂" in text
    assert json.loads(text) == value


def test_json_escapes_characters_beyond_the_basic_plane_as_a_pair() -> None:
    assert json.loads(output.dump_json("\U000e0041")) == "\U000e0041"


def test_a_message_on_a_terminal_keeps_its_lines_only() -> None:
    shown = output.visible_octets(b"Subject: \x1b[2J\r\n\r\nline\xff\r\nTab\there\r\n")
    assert shown == "Subject: \\x1b[2J\n\nline\\xff\nTab\there\n"


def test_a_table_lines_up_with_wide_letters_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(
        ("NAME", "WAITING", "WHY"),
        [("office", Cell("12", right=True), "held"), ("世界", Cell("1234567890", right=True), "")],
        empty="Nothing.",
    )
    assert capsys.readouterr().out.splitlines() == [
        "NAME       WAITING  WHY",
        "office          12  held",
        "世界    1234567890",
    ]


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("NAME",), [], empty="There is no server yet.")
    assert capsys.readouterr().out == "There is no server yet.\n"


def test_cells_of_data_cannot_break_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("NAME",), [("a\nb\x1b[31m",)], empty="")
    assert capsys.readouterr().out == "NAME\na\\x0ab\\x1b[31m\n"


def test_a_pipe_gets_no_colour_and_whole_cells(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("NAME",), [(Cell("x" * 200, "failed"),)], empty="")
    assert capsys.readouterr().out == "NAME\n" + "x" * 200 + "\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_colour_unless_it_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert output.coloured("held", "failed", Terminal()) == "\x1b[31mheld\x1b[0m"
    monkeypatch.setenv("NO_COLOR", "1")
    assert output.coloured("held", "failed", Terminal()) == "held"


def test_pairs_without_a_value_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_pairs([("Name", "office"), ("Why", ""), ("Last delivery", Cell("now"))], indent="  ")
    assert capsys.readouterr().out == "  Name           office\n  Last delivery  now\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2026-11-20T12:00:00.400Z", "now"),
        ("2026-11-20T11:57:00.000Z", "3 min ago"),
        ("2026-11-20T14:00:00.000Z", "in 2 h"),
        ("2026-11-10T12:00:00.000Z", "10 d ago"),
        (None, ""),
    ],
)
def test_times_in_lists_are_relative(text: str | None, said: str) -> None:
    assert output.relative_time(text, now=NOW) == said


def test_exact_times_are_local_and_name_their_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "Europe/Vienna")
    time.tzset()
    try:
        assert output.exact_time("2026-11-20T13:05:09.123Z") == "20 Nov 2026, 14:05:09 CET"
    finally:
        monkeypatch.undo()
        os.environ.pop("TZ", None)
        time.tzset()


@pytest.mark.parametrize(
    ("octets", "said"),
    [(None, ""), (0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (100 * 1024 * 1024, "100 MiB")],
)
def test_sizes_are_in_binary_units(octets: int | None, said: str) -> None:
    assert output.size(octets) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (True, "yes"),
        (False, "no"),
        (None, ""),
        ([], ""),
        (["a", "b"], "a, b"),
        (30.0, "30"),
        (0.5, "0.5"),
        ("x\x1b", "x\\x1b"),
    ],
)
def test_values_are_words(value: object, said: str) -> None:
    assert output.plain(value) == said
