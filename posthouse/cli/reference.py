"""Prints the reference pages from the declarations: fields, settings, commands, errors, metrics. `make docs` runs it.

    python -m posthouse.cli.reference docs/reference

Nothing on these pages is typed by hand; a test compares them with what this module prints.
"""

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

import posthouse
from posthouse import metrics
from posthouse.cli.failure import ALIASES
from posthouse.cli.main import COMMANDS, program
from posthouse.cli.options import FieldOptions, default_text
from posthouse.cli.serve import WITHOUT_OPTION, option_of, variable_of
from posthouse.errors import PosthouseError
from posthouse.model.application import Application
from posthouse.model.certificate import Certificate
from posthouse.model.fields import FieldDescription, describe
from posthouse.model.installation import Installation
from posthouse.model.server import DEFAULT_PORTS, SERVER_KINDS
from posthouse.model.tenant import Tenant
from posthouse.settings import Settings

NOTICE = "<!-- Printed by `make docs` from the code. Do not edit. -->"
_KINDS = {
    "text": "text",
    "secret": "secret",
    "integer": "whole number",
    "number": "number",
    "boolean": "yes or no",
    "list": "list",
}


def pages() -> dict[str, str]:
    """Every page by its file name."""
    return {
        "servers.md": servers_page(),
        "applications.md": noun_page("Applications", Application, "application"),
        "tenants.md": noun_page("Tenants", Tenant, "tenant"),
        "certificates.md": noun_page("Certificates", Certificate, "certificate"),
        "settings.md": settings_page(),
        "cli.md": commands_page(),
        "errors.md": errors_page(),
        "metrics.md": metrics_page(),
    }


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([NOTICE, f"# {title}", *(part.strip("\n") for part in parts if part)]) + "\n"


def _prose(text: str) -> str:
    """Paragraphs, each on one line."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.strip().split("\n\n"))


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    lines += ["| " + " | ".join(_cell(entry) for entry in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()


def _first_sentence(text: str | None) -> str:
    return " ".join((text or "").strip().split("\n\n")[0].split())


# --- fields -----------------------------------------------------------------------------------------------------------


def servers_page() -> str:
    """Every kind of server with all its fields."""
    ports = ", ".join(f"{port} with `{mode.value}`" for mode, port in DEFAULT_PORTS.items())
    bound = dict.fromkeys(d.path for model in SERVER_KINDS.values() for d in describe(model) if d.binds_secret)
    names = ", ".join(f"`{path}`" for path in bound)
    parts = []
    for kind, model in SERVER_KINDS.items():
        parts += [f"## Kind `{kind}`", _first_sentence(model.__doc__), *_sections(model, level=3)]
    return _page(
        "Servers",
        _prose(
            f"""
            A server is a configured way out. `kind` says what it is. The names are those of REST; the options are
            those of `posthouse server add` and `posthouse server edit`.

            Where no port is given: {ports}.
            """
        ),
        *parts,
        "## Secrets",
        _prose(
            f"""
            A secret is sealed when it is saved and never shown again: it reads `set` or `not set`. Left out of a
            change, the stored one is kept, and kept only while each of these fields stays as it is: {names}.
            Otherwise it has to be entered again, so that a stored secret can never be sent to another host.
            """
        ),
    )


def noun_page(title: str, model: type[BaseModel], word: str) -> str:
    """The fields of one noun."""
    return _page(
        title,
        _first_sentence(sys.modules[model.__module__].__doc__),
        f"The names are those of REST; the options are those of `posthouse {word} add` and `posthouse {word} edit`.",
        *_sections(model, level=2),
    )


def _sections(model: type[BaseModel], *, level: int) -> Iterator[str]:
    sections: dict[str, list[FieldDescription]] = {}
    for described in describe(model):
        sections.setdefault(described.section or "General", []).append(described)
    for section, fields in sections.items():
        yield "#" * level + f" {section}"
        yield _table(("Field", "Option", "Value", "Default", "Meaning"), (_field_row(d) for d in fields))


def _field_row(described: FieldDescription) -> tuple[str, ...]:
    meaning = f"{described.label}. {described.help}"
    when = _applies(described)
    return (
        f"`{described.path}`",
        _field_options(described),
        _value(described),
        "required" if described.required else f"`{default_text(described)}`" if default_text(described) else "",
        f"{meaning} {when}".strip(),
    )


def _field_options(described: FieldDescription) -> str:
    if described.path == "name":
        return "`NAME`"
    return f"`{_options_by_path()[described.path]}`"


def _options_by_path() -> Mapping[str, str]:
    """The option by which a field is set; the first of its names."""
    models: tuple[type[BaseModel], ...] = (*SERVER_KINDS.values(), Application, Tenant, Certificate, Installation)
    found: dict[str, str] = {}
    for model in models:
        options = FieldOptions((model,))
        for path, described in options.fields.items():
            if described.is_secret:
                found[path] = f"--{path.replace('_', '-')}-file"
            else:
                found[path] = "--" + ALIASES.get(path, path.replace("_", "-"))
    return found


def _value(described: FieldDescription) -> str:
    if described.choices:
        return ", ".join(f"`{choice}`" for choice in described.choices)
    text = _KINDS.get(described.kind, described.kind)
    if described.unit:
        text += f", {described.unit}"
    bounds = described.constraints
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    if low is not None and high is not None:
        text += f", {'above ' if 'gt' in bounds else ''}{low} to {high}"
    elif low is not None:
        text += f", {'above' if 'gt' in bounds else 'at least'} {low}"
    elif "max_length" in bounds:
        unit = "entries" if described.kind == "list" else "characters"
        text += f", at most {bounds['max_length']} {unit}"
    return text


def _applies(described: FieldDescription) -> str:
    conditions = [
        f"`{path}` is {' or '.join(f'`{value}`' for value in values)}"
        for path, values in described.applies.items()
        if path != "kind"
    ]
    return f"Counts where {' and '.join(conditions)}." if conditions else ""


# --- settings ---------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """What a process needs to start, and what administrators change at run time."""
    rows = [
        (
            f"`{option_of(d.path)}`" if d.path not in WITHOUT_OPTION else "none: others would see it",
            f"`{variable_of(d.path)}`",
            f"`{d.path}`",
            _settings_default(d),
            f"{d.label}. {d.help}",
        )
        for d in describe(Settings)
    ]
    return _page(
        "Settings",
        "## Of a process",
        _prose(
            """
            Options of `posthouse serve`. An option counts before its variable, the variable before the TOML file that
            `POSTHOUSE_CONFIG` names. Lists: repeat the option, or separate by commas in a variable.
            """
        ),
        _table(("Option", "Variable", "In the file", "Default", "Meaning"), rows),
        _prose(
            """
            The other commands read `POSTHOUSE_DATA`, `POSTHOUSE_DATABASE` and `POSTHOUSE_KEYS` too. `POSTHOUSE_URL`
            and `POSTHOUSE_TOKEN` have them work on a remote installation.
            """
        ),
        "## Of the installation",
        _prose(
            """
            Kept in the store, in force on all nodes within a second. `posthouse settings edit`, or `PATCH
            /api/v1/settings`.
            """
        ),
        *_sections(Installation, level=3),
    )


_MADE_DEFAULTS = {
    "data": "`/var/lib/posthouse` for root, else `posthouse` in the XDG state directory",
    "hostname": "the machine's own",
}


def _settings_default(described: FieldDescription) -> str:
    if described.path in _MADE_DEFAULTS:
        return _MADE_DEFAULTS[described.path]
    text = default_text(described)
    return f"`{text}`" if text else ""


# --- commands ---------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command with every option."""
    root = program()
    parts = [
        _prose(
            """
            Every command takes `--data DIR`, `--database URL` and `--json`, before or after the verb, and `--help`.

            Exit status: 0 done, 1 refused or failed, 2 the command line is wrong. An error is one line of what and
            one of how to mend it on standard error. With `--json` it is an RFC 9457 problem object there, and
            standard output stays empty.

            Objects are named by their name or their identifier; `--tenant NAME` says whose where several owners use a
            name. A command speaks to the node that runs on the data directory, over a Unix socket in it; where none
            runs it opens the store itself. With `POSTHOUSE_URL` and `POSTHOUSE_TOKEN` in the environment, and neither
            `--data` nor `--database` on the command line, it works on that installation.

            What comes from data is shown with its control characters escaped. Times are those of your zone; with
            `--json` they are UTC. Colour is used on a terminal only; `NO_COLOR` switches it off.
            """
        )
    ]
    context = click.Context(root, info_name="posthouse")
    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        parts += _command_parts(command, f"posthouse {name}", context, level=2)
    return _page("Commands", *parts)


def _command_parts(command: click.Command, path: str, parent: click.Context, *, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    yield "#" * level + f" {path}"
    yield command.help or ""
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _command_parts(inner, f"{path} {name}", context, level=min(level + 1, 4))
        return
    pieces = command.collect_usage_pieces(context)
    yield f"```\n{' '.join([path, *pieces])}\n```"
    rows = [_option_row(p, context) for p in command.params if isinstance(p, click.Option) and p.expose_value]
    if rows:
        yield _table(("Option", "Meaning"), rows)


def _option_row(option: click.Option, context: click.Context) -> tuple[str, str]:
    record = option.get_help_record(context)
    names, text = record if record else (", ".join(option.opts), option.help or "")
    return f"`{names}`", text


# --- errors -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """A code, and what the faces answer with it."""

    code: str
    http: str
    smtp: str
    meaning: str


def errors_page() -> str:
    """Every code that a problem can carry."""
    classes = sorted(class_codes(), key=lambda entry: entry.code)
    known = {entry.code for entry in classes}
    others = [
        (f"`{code}`", sentence.replace("<", "&lt;"))
        for code, sentence in sorted(other_codes().items())
        if code not in known
    ]
    return _page(
        "Errors",
        _prose(
            """
            REST answers errors as problems of RFC 9457 (`application/problem+json`): `type` (`/problems/` and the
            code), `title`, `status`, `code`, `detail`, perhaps `remedy`, and `errors` with `field`, `code` and
            `message` where fields are concerned. The command line prints the same. SMTP answers with reply code and
            enhanced code. No error repeats what was submitted. Codes are stable; sentences are not.
            """
        ),
        "## Codes of requests",
        _table(("Code", "HTTP", "SMTP", "Meaning"), ((f"`{e.code}`", e.http, e.smtp, e.meaning) for e in classes)),
        "## More exact codes",
        _prose(
            """
            These stand in place of a code above, or beside a field in `errors`. What is filled in stands as an
            ellipsis.
            """
        ),
        _table(("Code", "For example"), others),
    )


def class_codes() -> list[ErrorCode]:
    """The codes of the error tree."""
    found = []
    pending: list[type[PosthouseError]] = [PosthouseError]
    while pending:
        error = pending.pop()
        pending += error.__subclasses__()
        if error.__module__ == PosthouseError.__module__:
            found.append(
                ErrorCode(
                    error.code,
                    str(error.http_status),
                    f"{error.smtp_code} {error.smtp_enhanced}",
                    _first_sentence(error.__doc__),
                )
            )
    return found


# Calls that take a code and a sentence: the positions of both.
_CODE_CALLS: Mapping[str, tuple[int, int]] = {"FieldProblem": (1, 2), "of": (1, 2), "WebRefusal": (1, 3)}


def other_codes() -> dict[str, str]:
    """Codes that are given where an error is raised, read from the source, each with a sentence that goes with it."""
    root = Path(posthouse.__file__).parent
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        if "cli" not in path.relative_to(root).parts:
            for code, sentence in _codes_in(ast.parse(path.read_text())):
                found[code] = found.get(code) or sentence
    return found


def _codes_in(tree: ast.AST) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner = getattr(getattr(node.func, "value", None), "id", "")
        if name == "of" and owner != "InvalidInput":
            continue
        code: ast.expr | None = next((k.value for k in node.keywords if k.arg == "code"), None)
        sentence = node.args[0] if node.args else None
        if name in _CODE_CALLS:
            first, second = _CODE_CALLS[name]
            code = node.args[first] if len(node.args) > first else code
            sentence = node.args[second] if len(node.args) > second else None
        elif not name[:1].isupper():
            continue
        if isinstance(code, ast.Constant) and isinstance(code.value, str) and code.value:
            yield code.value, _sentence(sentence)


def _sentence(node: ast.expr | None) -> str:
    """The words of a text in the source; what is filled in stands as an ellipsis."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


# --- metrics ----------------------------------------------------------------------------------------------------------


def metrics_page() -> str:
    """Every metric family."""
    return _page(
        "Metrics",
        _prose(
            """
            `GET /metrics` in the Prometheus text format. Open to loopback and to `--metrics-network`; elsewhere it
            needs a token. Counters begin at 0 with each process; where several nodes run, add them up.
            """
        ),
        _table(("Metric", "Type", "Labels", "Meaning"), metric_rows()),
    )


def metric_rows() -> list[tuple[str, str, str, str]]:
    """Name, type, labels and meaning of each family."""
    load = metrics.ServerLoad(id="", name="", waiting=0, sending=0, held=False)
    collector = metrics._Figures(posthouse.__version__)
    collector.present = lambda: metrics.Figures(0, 0, 0, 0, 0, 0, (load,), ready=True)
    rows = []
    for family in collector.collect():
        sample = family.samples[0]
        labels = dict.fromkeys(name for s in family.samples for name in s.labels)
        rows.append((f"`{sample.name}`", family.type, ", ".join(f"`{name}`" for name in labels), family.documentation))
    return rows


def write(folder: Path) -> None:
    """Write every page into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text)


def main(arguments: Sequence[Any] | None = None) -> None:
    """Write the pages into the folder that is named."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if len(given) != 1:
        sys.exit("usage: python -m posthouse.cli.reference FOLDER")
    write(Path(given[0]))


if __name__ == "__main__":
    main()
