"""Calls the command line inside this process: the same code, without half a second of Python's start for each command."""

import contextlib
import io
import subprocess
from unittest import mock

from posthouse.cli import main
from tests.support.posthouse import PosthouseProcess


def call(*arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run a command line and give what a process would have: exit status, standard output and standard error."""
    given = io.TextIOWrapper(io.BytesIO((stdin or "").encode()), encoding="utf-8")
    output = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    errors = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", newline="")
    with mock.patch("sys.stdin", given), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = main.run(list(arguments))
    return subprocess.CompletedProcess(["posthouse", *arguments], status, _text(output), _text(errors))


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


class CalledNode(PosthouseProcess):
    """A node in a process of its own, whose commands are called in this one."""

    def run(self, *arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Run a command on this installation."""
        place = ["--data", str(self.data), *(("--database", self.database) if self.database else ())]
        return call(*arguments, *place, stdin=stdin)
