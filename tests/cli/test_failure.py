"""Errors: one line of what, one of how to mend it, with fields named as options."""

import json

import pytest

from posthouse.cli.failure import CommandError, error_lines, option_name, problem_of, report
from posthouse.errors import FieldProblem, InvalidInput, NotFound


@pytest.mark.parametrize(
    ("field", "option"),
    [
        ("tls_mode", "--tls"),
        ("host", "--host"),
        ("auth.username", "--auth.username"),
        ("allow_cleartext_password", "--allow-cleartext-password"),
        ("networks.0", "--network"),
        ("networks[1]", "--network"),
        ("to.2", "--to"),
        ("attachments.0.content", "--attach"),
        ("attachments", "--attachments"),
        ("headers.X-Ticket", "--header"),
        ("name", "NAME"),
    ],
)
def test_fields_are_named_as_options(field: str, option: str) -> None:
    assert option_name(field) == option


def test_each_field_gets_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    error = InvalidInput(
        [FieldProblem("tls_mode", "bad", "Choose one."), FieldProblem("port", "range", "Between 1 and 65535.")],
        remedy="Correct both.",
    )
    assert report(CommandError.from_error(error), as_json=False) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "posthouse: --tls: Choose one.\nposthouse: --port: Between 1 and 65535.\nCorrect both.\n"


def test_fields_in_a_sentence_are_named_as_options() -> None:
    problem = {
        "detail": "Confirm with allow_wide_networks, or tls_mode none.",
        "remedy": "See max_message_octets; starttls_required and my_tls_mode stay.",
    }
    assert error_lines(problem) == [
        "posthouse: Confirm with --allow-wide-networks, or --tls none.",
        "See --max-message-octets; starttls_required and my_tls_mode stay.",
    ]


def test_json_gives_the_problem_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(CommandError.from_error(NotFound("There is none.", remedy="Look.")), as_json=True) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    problem = json.loads(shown.err)
    assert problem["code"] == "not-found" and problem["status"] == 404
    assert problem["detail"] == "There is none." and problem["remedy"] == "Look."


def test_a_wrong_command_line_has_its_own_status() -> None:
    assert report(CommandError.usage("Nothing is to be changed."), as_json=False) == 2


def test_what_a_server_said_cannot_drive_the_terminal() -> None:
    problem = {"detail": "it said \x1b[2J\nposthouse: all is well", "remedy": "\x1b[0m"}
    assert error_lines(problem) == ["posthouse: it said \\x1b[2J\\x0aposthouse: all is well", "\\x1b[0m"]


def test_an_answer_of_something_else_is_named_as_such() -> None:
    problem = problem_of(502, b"<html>Bad gateway</html>")
    assert problem["code"] == "unexpected-answer"
    assert "502" in problem["detail"] and "html" not in problem["detail"]
