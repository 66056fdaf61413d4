"""Options made from the fields that the models declare; and what every command takes: --data, --database, --json.

A field becomes `--its-name` (nested: `--auth.username`), and has the short name of `failure.ALIASES` where it stands
there. A list is given by repeating the option. A secret comes from a file or a prompt, so that it stands in no list of
processes.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import BaseModel

from posthouse.cli.failure import ALIASES, CommandError, option_name
from posthouse.model.fields import FieldDescription, describe
from posthouse.model.record import get_path, set_path

_UNITS = {"s": "SECONDS", "octets": "OCTETS", "days": "DAYS", "messages": "MESSAGES"}
# Fields that name another object: the option takes its name or its id. The word is the collection of the API.
REFERENCES: Mapping[str, str] = {
    "tenant_id": "tenants",
    "fallback_server_id": "servers",
    "certificate_ids": "certificates",
}
# Fields whose text is the content of a file.
FILES = frozenset({"pem"})


class Word(click.ParamType[str]):
    """One of some words, however it is written: starttls-required, STARTTLS_REQUIRED and cram-md5 all pass."""

    name = "word"

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = tuple(choices)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "[" + "|".join(self.choices) + "]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        wanted = str(value).casefold().replace("-", "_")
        for choice in self.choices:
            if choice.casefold().replace("-", "_") == wanted:
                return choice
        self.fail(f"It is one of: {', '.join(self.choices)}.", param, ctx)


@dataclass
class Given:
    """What the command line says of a value: fields set, and fields to be put back to their default."""

    shape: dict[str, Any] = field(default_factory=dict)
    # The names of other objects, to be looked up: path -> name or names.
    references: dict[str, Any] = field(default_factory=dict)
    unset: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.shape or self.references or self.unset)


class FieldOptions:
    """The options of the fields of one noun; `models` are the members where the value is a tagged union."""

    def __init__(self, models: Sequence[type[BaseModel]], *, without: Iterable[str] = ()) -> None:
        self.models = tuple(models)
        left_out = set(without)
        self.fields = {d.path: d for d in merged_fields(models) if d.path not in left_out}

    def parameters(self, *, adding: bool, without: Iterable[str] = ()) -> list[click.Parameter]:
        """The options, in the order of the fields. `adding` says which ones are needed; an edit needs none."""
        left_out = set(without)
        made: list[click.Parameter] = []
        for described in self.fields.values():
            if described.path not in left_out:
                made += _options_of(described, required=adding and self._is_required(described))
        if not adding:
            made.append(
                click.Option(
                    ["--unset", "unset"],
                    multiple=True,
                    metavar="FIELD",
                    help="Put a field back to its default, for example --unset port. May be repeated.",
                )
            )
        return made

    def _is_required(self, described: FieldDescription) -> bool:
        """Whether every member of the union needs the field; what only some need is asked for by the API."""
        return described.required and all(described.path in model.model_fields for model in self.models)

    def ask_for_secrets(self, given: Given) -> None:
        """Prompt for each secret that belongs to what was given and is missing. An empty answer leaves it out."""
        for path, described in self.fields.items():
            if described.is_secret and not _has(given.shape, path) and _applies(described, given.shape):
                secret = click.prompt(described.label, default="", show_default=False, hide_input=True, err=True)
                if secret:
                    set_path(given.shape, path, secret)

    def collect(self, values: Mapping[str, Any]) -> Given:
        """Read what was given. Takes it all from `values`, the parameters of the command."""
        given = Given()
        for path, described in self.fields.items():
            value = values.get(parameter_name(path))
            if described.is_secret:
                value = _secret_from(path, value, values.get(parameter_name(path) + "__file"))
            if value is None or value == ():
                continue
            if path in REFERENCES:
                given.references[path] = list(value) if isinstance(value, tuple) else value
            else:
                set_path(given.shape, path, self._typed(path, value))
        self._infer_tags(given)
        given.unset = tuple(self._path_of(name) for name in values.get("unset") or ())
        return given

    def _typed(self, path: str, value: Any) -> Any:
        if isinstance(value, tuple):
            return [int(v) if self._holds_integers(path) else v for v in value]
        return value

    def _holds_integers(self, path: str) -> bool:
        for model in self.models:
            info = model.model_fields.get(path)
            if info is not None:
                return get_args(info.annotation)[:1] == (int,)
        return False

    def _infer_tags(self, given: Given) -> None:
        """`--auth.username` alone means `--auth.type password`, where only one type has such a field."""
        for path, described in self.fields.items():
            if "." not in path:
                continue
            tag_path = path.rpartition(".")[0] + ".type"
            tags = described.applies.get(tag_path, ())
            if len(tags) == 1 and _has(given.shape, path) and not _has(given.shape, tag_path):
                set_path(given.shape, tag_path, tags[0])

    def _path_of(self, name: str) -> str:
        wanted = "--" + name.removeprefix("--").replace("_", "-")
        for path in self.fields:
            if wanted in _names(path):
                return path
        raise CommandError.usage("--unset: there is no such field.", remedy="The options of --help are the fields.")


def merged_fields(models: Sequence[type[BaseModel]]) -> Iterable[FieldDescription]:
    """The fields of all members of a union: each once, the tag with all its choices."""
    found: dict[str, FieldDescription] = {}
    for model in models:
        for described in describe(model):
            known = found.get(described.path)
            if known is None:
                found[described.path] = described
            elif described.kind == "choice" and described.choices != known.choices:
                choices = tuple(dict.fromkeys((*known.choices, *described.choices)))
                values = {f: getattr(known, f) for f in FieldDescription.__slots__}
                found[described.path] = FieldDescription(**{**values, "choices": choices})
    return found.values()


def parameter_name(path: str) -> str:
    """The name of a field's parameter in Python."""
    return "f_" + path.replace(".", "__")


def _names(path: str) -> list[str]:
    """Every name of the option: the short one first."""
    long = "--" + path.replace("_", "-")
    return [option_name(path), long] if path in ALIASES else [long]


def _options_of(described: FieldDescription, *, required: bool) -> list[click.Parameter]:
    if described.is_secret:
        return _secret_options(described)
    names = _names(described.path)
    parameter = parameter_name(described.path)
    text = _help(described)
    if described.kind == "boolean":
        pairs = [f"{name}/--no-{name.removeprefix('--')}" for name in names]
        return [click.Option([parameter, *pairs], default=None, help=text)]
    if described.path in FILES:
        file = click.File("r", encoding="utf-8")
        return [_FileOption([parameter, *names], type=file, required=required, help=text)]
    return [
        click.Option(
            [parameter, *names],
            type=_type_of(described),
            metavar=_metavar(described),
            multiple=described.kind == "list",
            required=required,
            help=text,
        )
    ]


class _FileOption(click.Option):
    """An option whose value is the text of a file; `-` is standard input."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        file = super().type_cast_value(ctx, value)
        try:
            return None if file is None else file.read()
        except (OSError, UnicodeDecodeError):
            raise click.BadParameter("The file cannot be read as text.", ctx, self) from None


def _secret_options(described: FieldDescription) -> list[click.Parameter]:
    option, parameter = option_name(described.path), parameter_name(described.path)
    return [
        click.Option(
            [parameter + "__file", option + "-file"],
            metavar="FILE",
            help=f"{_help(described)} The first line of the file; - asks for it without showing it.",
        ),
        click.Option(
            [parameter, option],
            metavar="TEXT",
            help="The same on the command line. The list of processes and the history of the shell show it: "
            f"{option}-file does not.",
        ),
    ]


def _secret_from(path: str, plain: str | None, file: str | None) -> str | None:
    if file is None:
        return plain
    option = option_name(path)
    if plain is not None:
        raise CommandError.usage(f"{option} and {option}-file are both given.", remedy="Give one of them.")
    return read_secret(file, option + "-file")


def read_secret(file: str, option: str) -> str:
    """The first line of a file; `-` is standard input, on a terminal without showing it. Raises CommandError."""
    if file == "-":
        if sys.stdin.isatty():
            return str(click.prompt(option.removeprefix("--").removesuffix("-file"), hide_input=True, err=True))
        text = sys.stdin.readline()
    else:
        try:
            with Path(file).open(encoding="utf-8") as stream:
                text = stream.readline()
        except (OSError, UnicodeDecodeError):
            raise CommandError.usage(f"{option}: the file cannot be read as text.") from None
    secret = text.rstrip("\r\n")
    if not secret:
        raise CommandError.usage(f"{option}: the first line is empty.", remedy="Put the secret into the first line.")
    return secret


def _type_of(described: FieldDescription) -> click.ParamType[Any]:
    if described.kind == "choice":
        return Word(described.choices)
    if described.kind == "integer":
        return click.INT
    if described.kind == "number":
        return click.FLOAT
    if described.kind == "list" and described.unit:
        return click.INT
    return click.STRING


def _metavar(described: FieldDescription) -> str | None:
    if described.path in REFERENCES:
        return "NAME"
    if described.kind == "choice":
        return None
    if described.unit:
        return _UNITS.get(described.unit, described.unit.upper())
    return {"integer": "NUMBER", "number": "NUMBER"}.get(described.kind, "TEXT")


def _help(described: FieldDescription) -> str:
    parts = [f"{described.label}. {described.help}"]
    if described.kind == "list":
        parts.append("May be repeated.")
    default = default_text(described)
    if default:
        parts.append(f"[default: {default}]")
    return " ".join(parts)


def default_text(described: FieldDescription) -> str:
    """The default in words, "" where the field has none or it is empty."""
    default = described.default
    if default is None or default == () or default == "":
        return ""
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ", ".join(str(entry) for entry in default)
    if isinstance(default, float) and default.is_integer():
        return str(int(default))
    return str(getattr(default, "value", default))


def _applies(described: FieldDescription, shape: Mapping[str, Any]) -> bool:
    return all(get_path(shape, path) in values for path, values in described.applies.items())


def _has(shape: Mapping[str, Any], path: str) -> bool:
    holder: Any = shape
    for part in path.split("."):
        if not isinstance(holder, Mapping) or part not in holder:
            return False
        holder = holder[part]
    return True


def key_values(entries: Sequence[str], option: str, separator: str) -> dict[str, str]:
    """`NAME<separator>VALUE` entries of a repeated option. Raises CommandError for one without the separator."""
    found = {}
    for entry in entries:
        name, found_separator, value = entry.partition(separator)
        if not found_separator or not name.strip():
            raise CommandError.usage(f"{option}: write it as NAME{separator}VALUE.")
        found[name.strip()] = value.strip()
    return found
