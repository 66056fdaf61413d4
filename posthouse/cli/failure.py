"""How a command fails: one line of what, one of how to mend it, on standard error; with --json the problem object.

Exit status 1: refused or failed. 2: the command line itself is wrong. Names of fields are said as options.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from posthouse.cli.output import coloured, dump_json, visible
from posthouse.errors import InvalidInput, PosthouseError

REFUSED = 1
USAGE = 2

# The short names of options whose fields have longer ones. Scripts rely on tls, default, network (README, "Commands");
# the rest is what people would type. The field's own name is an option as well.
ALIASES: Mapping[str, str] = {
    "tls_mode": "tls",
    "is_default": "default",
    "tenant_id": "tenant",
    "networks": "network",
    "allowed_senders": "allowed-sender",
    "fallback_server_id": "fallback",
    "certificate_ids": "certificate",
    "retry_delays_s": "retry-delay-s",
    "sending_enabled": "sending",
}
# Parts of a message that `send` makes of an option each; a server has a field `attachments` of its own.
_SENT: Mapping[str, str] = {"attachments": "attach", "headers": "header"}
# Fields that stand on the command line without an option.
_ARGUMENTS: Mapping[str, str] = {"name": "NAME"}


class CommandError(Exception):
    """The command was refused or failed. Carries an RFC 9457 problem object, as the API answers it."""

    def __init__(self, problem: Mapping[str, Any], *, exit_status: int = REFUSED) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or "The command failed."))
        self.problem = dict(problem)
        self.exit_status = exit_status

    @classmethod
    def of(cls, detail: str, *, remedy: str = "", code: str = "refused", exit_status: int = REFUSED) -> "CommandError":
        """An error that the command line itself found."""
        problem: dict[str, Any] = {"type": f"/problems/{code}", "title": "The command failed", "code": code}
        problem["detail"] = detail
        if remedy:
            problem["remedy"] = remedy
        return cls(problem, exit_status=exit_status)

    @classmethod
    def usage(cls, detail: str, *, remedy: str = "") -> "CommandError":
        """The command line is wrong."""
        return cls.of(detail, remedy=remedy, code="usage", exit_status=USAGE)

    @classmethod
    def from_error(cls, error: PosthouseError) -> "CommandError":
        """An error raised in this process, in the same shape."""
        problem: dict[str, Any] = {
            "type": f"/problems/{error.code}",
            "title": error.title,
            "status": error.http_status,
            "code": error.code,
            "detail": error.detail,
        }
        if error.remedy:
            problem["remedy"] = error.remedy
        if isinstance(error, InvalidInput):
            problem["errors"] = [{"field": p.field, "code": p.code, "message": p.message} for p in error.problems]
        return cls(problem)


def option_name(path: str) -> str:
    """How a field is named on the command line: `tls_mode` is `--tls`, `networks.0` is `--network`."""
    parts = re.split(r"[.\[\]]+", path.rstrip("]"))
    path = ".".join(part for part in parts if not part.isdigit())
    indexed = path != ".".join(parts)
    if path in _ARGUMENTS:
        return _ARGUMENTS[path]
    top, dot, _ = path.partition(".")
    if top in _SENT and (dot or indexed):
        return "--" + _SENT[top]
    return "--" + ALIASES.get(path, path.replace("_", "-"))


def report(error: CommandError, *, as_json: bool) -> int:
    """Print the error on standard error. Returns the exit status."""
    if as_json:
        print(dump_json(error.problem), file=sys.stderr)
        return error.exit_status
    for line in error_lines(error.problem):
        print(line, file=sys.stderr)
    return error.exit_status


def error_lines(problem: Mapping[str, Any]) -> list[str]:
    """The problem in lines for people: what, and how to mend it."""
    named: Sequence[Mapping[str, Any]] = [e for e in problem.get("errors") or () if isinstance(e, Mapping)]
    mark = coloured("posthouse:", "failed", sys.stderr)
    if named:
        lines = [f"{mark} {_field_line(entry)}" for entry in named]
    else:
        lines = [f"{mark} {_in_options(str(problem.get('detail') or problem.get('title') or 'The command failed.'))}"]
    if problem.get("remedy"):
        lines.append(_in_options(str(problem["remedy"])))
    return lines


def _field_line(entry: Mapping[str, Any]) -> str:
    field, message = str(entry.get("field") or ""), str(entry.get("message") or "is not right.")
    return f"{visible(option_name(field))}: {_in_options(message)}" if field else _in_options(message)


@cache
def _field_words() -> re.Pattern[str]:
    """The names of declared fields that stand out in a sentence, because they have an underscore."""
    from pydantic import BaseModel

    from posthouse.model.application import Application
    from posthouse.model.certificate import Certificate
    from posthouse.model.fields import describe
    from posthouse.model.installation import Installation
    from posthouse.model.server import SERVER_KINDS

    models: tuple[type[BaseModel], ...] = (*SERVER_KINDS.values(), Application, Certificate, Installation)
    paths = {described.path for model in models for described in describe(model) if "_" in described.path}
    return re.compile(rf"(?<![\w.-])(?:{'|'.join(sorted(map(re.escape, paths), key=len, reverse=True))})(?![\w-])")


def _in_options(text: str) -> str:
    """A sentence of the API with the fields in it named as options."""
    return visible(_field_words().sub(lambda found: option_name(found[0]), text))


def problem_of(status: int, body: bytes) -> dict[str, Any]:
    """The problem object of an answer, or one made from its status where something else answered."""
    try:
        problem = json.loads(body)
    except ValueError:
        problem = None
    if isinstance(problem, dict) and ("detail" in problem or "title" in problem):
        return problem
    return {
        "type": "/problems/unexpected-answer",
        "title": "An unexpected answer",
        "status": status,
        "code": "unexpected-answer",
        "detail": f"The answer has the status {status} and does not come from Posthouse.",
        "remedy": "Look at POSTHOUSE_URL and at proxies on the way.",
    }
