"""`posthouse server`: the configured ways out."""

from collections.abc import Sequence
from typing import Any

import click

from posthouse.cli import output
from posthouse.cli.connection import connect
from posthouse.cli.nouns import (
    Item,
    Noun,
    add_verbs,
    find,
    owner_name,
    path_of,
    reference_argument,
    successor_option,
    tenant_option,
)
from posthouse.cli.options import FieldOptions, Word, parameter_name
from posthouse.cli.output import Cell
from posthouse.cli.place import Command, Group, Place
from posthouse.model.record import get_path
from posthouse.model.server import DEFAULT_PORTS, SERVER_KINDS
from posthouse.model.tls import TlsMode


def _cells(item: Item) -> Sequence[str | Cell]:
    return (
        item["name"],
        owner_name(item),
        item["kind"],
        _address(item),
        str(item.get("tls_mode", "")),
        "default" if item["is_default"] else "",
        _state(item),
        Cell(item["id"], "quiet"),
    )


def _address(item: Item) -> str:
    host = item.get("host")
    if not host:
        return ""
    port = item.get("port") or DEFAULT_PORTS[TlsMode(item["tls_mode"])]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _state(item: Item) -> Cell:
    if not item["enabled"]:
        return Cell("disabled", "quiet")
    held = (item.get("state") or {}).get("held")
    if held == "operator":
        return Cell("held by a person", "attention")
    return Cell(f"held: {item['state']['cause']}", "failed") if held else Cell("ready", "ok")


def _more(item: Item) -> Sequence[tuple[str, str | Cell]]:
    state = item.get("state") or {}
    held = bool(state.get("held"))
    return (
        ("Address", _address(item)),
        ("State", _state(item)),
        ("Why", str(state.get("detail") or "") if held else ""),
        ("Held since", output.exact_time(state.get("since_at")) if held else ""),
        ("Next try", output.exact_time(state.get("next_try_at")) if held else ""),
        ("Last delivery", output.exact_time(state.get("last_delivery_at"))),
    )


NOUN = Noun(
    word="server",
    collection="servers",
    models=tuple(SERVER_KINDS.values()),
    headings=("NAME", "OWNER", "KIND", "ADDRESS", "TLS", "DEFAULT", "STATE", "ID"),
    cells=_cells,
    more=_more,
    filters=(
        click.Option(["--kind"], type=Word(tuple(SERVER_KINDS)), help="Only of this kind."),
        click.Option(["--enabled/--no-enabled"], default=None, help="Only enabled ones, or only those that are not."),
    ),
    successor=True,
)

server = Group("server", help="Servers: the configured ways out.", no_args_is_help=True)
add_verbs(server, NOUN)

_WHICH = [reference_argument(NOUN), *tenant_option(NOUN)]


def _act(verb: str, done: str) -> Any:
    """The command behind one POST without further fields."""

    @click.pass_context
    def run(ctx: click.Context, /, reference: str, tenant: str | None, successor: str | None = None) -> None:
        place = Place.of(ctx)
        with connect(place) as posthouse:
            found = find(posthouse, NOUN, reference, tenant)
            heir = find(posthouse, NOUN, successor, tenant)["id"] if successor else None
            item = posthouse.post(f"{path_of(NOUN, found)}/{verb}", query={"successor": heir})
        if place.as_json:
            output.show_json(item)
        else:
            output.say(f"{output.visible(found['name'])} {done}.", "ok")

    return run


server.add_command(
    Command(
        "default",
        callback=_act("default", "is the default now"),
        params=list(_WHICH),
        help="Make a server the default of its owner.",
    )
)
server.add_command(
    Command("enable", callback=_act("enable", "is enabled"), params=list(_WHICH), help="Let a server send again.")
)
server.add_command(
    Command(
        "disable",
        callback=_act("disable", "is disabled; its queue waits"),
        params=[*_WHICH, successor_option()],
        help="Keep a server from sending. Its queue waits.",
    )
)


@server.command("history", params=list(_WHICH), help="List the versions of a server, or show one.")
@click.option("--version", "number", type=click.INT, metavar="NUMBER", help="Show this version with all its fields.")
@click.pass_context
def history(ctx: click.Context, /, reference: str, tenant: str | None, number: int | None) -> None:
    """The versions, newest first as the API lists them."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        path = f"{path_of(NOUN, find(posthouse, NOUN, reference, tenant))}/history"
        answer = posthouse.get(path if number is None else f"{path}/{number}")
    if place.as_json:
        output.show_json(answer)
    elif number is None:
        rows = [_history_row(entry) for entry in answer["items"]]
        output.show_table(("VERSION", "WHEN", "WHO", "WHAT"), rows, empty="There is no version.")
    else:
        _show_version(answer)


def _history_row(entry: Item) -> Sequence[str | Cell]:
    # Everything is new in the first version; `--version 1` shows it.
    changes = {} if entry["version"] == 1 else entry.get("changes") or {}
    what = "; ".join(f"{field}: {_before_after(change)}" for field, change in changes.items())
    return (
        Cell(str(entry["version"]), right=True),
        output.exact_time(entry["at"]),
        str(entry["actor"]),
        what or ("added" if entry["version"] == 1 else ""),
    )


def _before_after(change: Any) -> str:
    if not isinstance(change, list) or len(change) != 2:
        return output.plain(change)
    before, after = (output.plain(value) or "empty" for value in change)
    return f"{before} → {after}"


def _show_version(answer: Item) -> None:
    from posthouse.cli.nouns import show_fields

    inner = answer.get("value")
    value: Item = inner if isinstance(inner, dict) else answer
    output.say(f"Version {answer.get('version', '')} of {output.visible(str(value['name']))}", "heading")
    show_fields(NOUN.options, value)


_SECRETS = FieldOptions(
    NOUN.models, without=[path for path, described in NOUN.options.fields.items() if not described.is_secret]
)


@server.command(
    "restore",
    params=[*_WHICH, *(p for p in _SECRETS.parameters(adding=False) if p.name != "unset")],
    help="Go back to a version of the history. A secret that is no longer kept has to be given again.",
)
@click.option("--version", "number", type=click.INT, metavar="NUMBER", required=True, help="Which version.")
@click.pass_context
def restore(ctx: click.Context, /, reference: str, tenant: str | None, number: int, **values: Any) -> None:
    """A restore makes a new version with the values of an old one."""
    place = Place.of(ctx)
    given = _SECRETS.collect(values)
    secrets = {path: get_path(given.shape, path) for path in _SECRETS.fields if values_hold(values, path)}
    with connect(place) as posthouse:
        found = find(posthouse, NOUN, reference, tenant)
        item = posthouse.post(f"{path_of(NOUN, found)}/restore", {"version": number, "secrets": secrets})
    if place.as_json:
        output.show_json(item)
    else:
        output.say(
            f"{output.visible(item['name'])} is as in version {number}; it is version {item['version']} now.", "ok"
        )


def values_hold(values: dict[str, Any], path: str) -> bool:
    """Whether a secret was given, in either way."""
    name = parameter_name(path)
    return values.get(name) is not None or values.get(name + "__file") is not None
