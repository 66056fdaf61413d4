"""The verbs that all configured nouns share: add, list, show, edit, delete. Each noun's module adds its own.

A command reads its options, makes one request and prints the answer. What may be asked for is decided by the API.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from posthouse.cli import output
from posthouse.cli.connection import Connection, connect
from posthouse.cli.failure import CommandError, option_name
from posthouse.cli.options import REFERENCES, FieldOptions, Given, default_text, parameter_name
from posthouse.cli.output import Cell
from posthouse.cli.place import Command, Group, Place
from posthouse.model.fields import FieldDescription, Value
from posthouse.model.record import SECRET_SET, get_path, set_path

Item = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Noun:
    """What the commands of one noun have to know. `cells` makes the row of a list; `filters` the options of `list`."""

    word: str
    collection: str
    models: tuple[type[Value], ...]
    headings: tuple[str, ...]
    cells: Callable[[Item], Sequence[str | Cell]]
    # Printed below an added object: what is shown once, or what to do next.
    after_adding: Callable[[Item], None] = lambda _: None
    # Lines of `show` beyond the declared fields.
    more: Callable[[Item], Sequence[tuple[str, str | Cell]]] = lambda _: ()
    filters: tuple[click.Parameter, ...] = ()
    has_owner: bool = True
    successor: bool = False

    @property
    def options(self) -> FieldOptions:
        """The options of the noun's fields; the name is an argument."""
        return FieldOptions(self.models)


def add_verbs(group: Group, noun: Noun) -> None:
    """Give the group the verbs that all nouns share."""
    for command in (_add(noun), _list(noun), _show(noun), _edit(noun), _delete(noun)):
        group.add_command(command)


# --- looking up -------------------------------------------------------------------------------------------------------


def reference_argument(noun: Noun, *, many: bool = False) -> click.Argument:
    """NAME: the name or id of an object, or several."""
    return (
        click.Argument(["reference"], metavar="NAME...", nargs=-1, required=True)
        if many
        else click.Argument(["reference"], metavar="NAME")
    )


def tenant_option(noun: Noun) -> list[click.Parameter]:
    """--tenant, where the noun has owners: whose object is meant."""
    if not noun.has_owner:
        return []
    return [
        click.Option(
            ["tenant", "--tenant"],
            metavar="NAME",
            help="Whose: a tenant, or global. Needed only where several owners use the name.",
        )
    ]


def find(posthouse: Connection, noun: Noun, reference: str, tenant: str | None = None) -> Item:
    """The object of that name or id."""
    return posthouse.find(noun.collection, reference, tenant=posthouse.owner(tenant) if noun.has_owner else None)


def path_of(noun: Noun, item: Item) -> str:
    """The object's place below /api/v1."""
    return f"{noun.collection}/{item['id']}"


def with_owner_names(posthouse: Connection, noun: Noun, items: list[Item]) -> list[Item]:
    """The items, each with `tenant_name`. A tenant's own actor, who may not list tenants, sees the ids."""
    if not noun.has_owner or not any(item.get("tenant_id") and not item.get("tenant_name") for item in items):
        return items
    try:
        names = {tenant["id"]: tenant["name"] for tenant in posthouse.items("tenants")}
    except CommandError:
        return items
    for item in items:
        item.setdefault("tenant_name", names.get(item["tenant_id"]))
    return items


def shape_of(posthouse: Connection, given: Given, *, owner: str | None = None) -> dict[str, Any]:
    """What was given, with the ids of the objects that it names; those of the tenant `owner` come first."""
    shape = given.shape
    for path, named in given.references.items():
        collection = REFERENCES[path]
        if path == "tenant_id":
            shape["tenant_id"] = owner = posthouse.owner(named) if named != "global" else None
        elif isinstance(named, list):
            set_path(shape, path, [posthouse.find_usable(collection, name, owner or "global")["id"] for name in named])
        else:
            set_path(shape, path, posthouse.find_usable(collection, named, owner or "global")["id"])
    return shape


# --- the verbs --------------------------------------------------------------------------------------------------------


def _add(noun: Noun) -> click.Command:
    options = noun.options

    @click.pass_context
    def run(ctx: click.Context, /, **values: Any) -> None:
        place = Place.of(ctx)
        given = options.collect({**values, parameter_name("name"): values["name"]})
        if "kind" in options.fields:
            given.shape.setdefault("kind", options.fields["kind"].default)
        if not place.as_json and sys.stdin.isatty():
            options.ask_for_secrets(given)
        with connect(place) as posthouse:
            item = posthouse.post(noun.collection, shape_of(posthouse, given))
        if place.as_json:
            output.show_json(item)
            return
        output.say(f"Added {noun.word} {output.visible(item['name'])}.", "ok")
        noun.after_adding(item)

    argument = click.Argument(["name"], metavar="NAME")
    parameters = [argument, *options.parameters(adding=True, without=("name",))]
    return Command("add", callback=run, params=parameters, help=f"Add {_a(noun.word)}.")


def _list(noun: Noun) -> click.Command:
    owner = [click.Option(["tenant", "--tenant"], metavar="NAME", help="Only of this tenant, or global.")]

    @click.pass_context
    def run(ctx: click.Context, /, search: str | None, tenant: str | None = None, **filters: Any) -> None:
        place = Place.of(ctx)
        with connect(place) as posthouse:
            query = {**filters, "search": search, "tenant": posthouse.owner(tenant) if noun.has_owner else None}
            items = with_owner_names(posthouse, noun, list(posthouse.items(noun.collection, query)))
        if place.as_json:
            output.show_json({"items": items, "next": None})
            return
        output.show_table(noun.headings, [noun.cells(item) for item in items], empty=f"There is no {noun.word} yet.")

    parameters: list[click.Parameter] = [
        *(owner if noun.has_owner else []),
        click.Option(["--search"], metavar="TEXT", help="Only those whose name or comments hold this text."),
        *noun.filters,
    ]
    return Command("list", callback=run, params=parameters, help=f"List the {noun.collection}.")


def _show(noun: Noun) -> click.Command:
    @click.pass_context
    def run(ctx: click.Context, /, reference: str, tenant: str | None = None) -> None:
        place = Place.of(ctx)
        with connect(place) as posthouse:
            item = posthouse.get(path_of(noun, find(posthouse, noun, reference, tenant)))
            with_owner_names(posthouse, noun, [item])
        if place.as_json:
            output.show_json(item)
        else:
            show_item(noun, item)

    parameters = [reference_argument(noun), *tenant_option(noun)]
    return Command("show", callback=run, params=parameters, help=f"Show {_a(noun.word)} with all its fields.")


def _edit(noun: Noun) -> click.Command:
    options = noun.options

    @click.pass_context
    def run(ctx: click.Context, /, reference: str, if_version: int | None, **values: Any) -> None:
        place = Place.of(ctx)
        given = options.collect(values)
        if not given:
            raise CommandError.usage("Nothing is to be changed.", remedy="Name a field: --help lists them.")
        with connect(place) as posthouse:
            found = find(posthouse, noun, reference, values.get("tenant"))
            item = posthouse.patch(
                path_of(noun, found),
                _merge_patch(given, shape_of(posthouse, given, owner=found.get("tenant_id"))),
                query={"forget": values.get("forget") or None},
                headers={"if-match": f'"{if_version}"'} if if_version is not None else None,
            )
        if place.as_json:
            output.show_json(item)
            return
        output.say(f"Changed {noun.word} {output.visible(item['name'])}; it is version {item['version']} now.", "ok")

    parameters = [reference_argument(noun), *_edit_options(noun, options)]
    return Command("edit", callback=run, params=parameters, help=f"Change fields of {_a(noun.word)}.")


def _edit_options(noun: Noun, options: FieldOptions) -> list[click.Parameter]:
    parameters: list[click.Parameter] = options.parameters(adding=False, without=("tenant_id",))
    if noun.has_owner:
        parameters += [
            *tenant_option(noun),
            click.Option(
                [parameter_name("tenant_id"), "--new-owner"],
                metavar="NAME",
                help="Give it to this tenant, or to nobody: global.",
            ),
        ]
    if any(field.is_secret for field in options.fields.values()):
        parameters.append(
            click.Option(
                ["--forget"],
                is_flag=True,
                help="Drop replaced secrets at once. Otherwise they stay sealed for 30 days, for a restore.",
            )
        )
    parameters.append(
        click.Option(
            ["--if-version"], type=click.INT, metavar="NUMBER", help="Only while this version is the current one."
        )
    )
    return parameters


def _merge_patch(given: Given, shape: dict[str, Any]) -> dict[str, Any]:
    """RFC 7396: null puts a field back to its default."""
    for path in given.unset:
        set_path(shape, path, None)
    return shape


def _delete(noun: Noun) -> click.Command:
    @click.pass_context
    def run(ctx: click.Context, /, reference: tuple[str, ...], **values: Any) -> None:
        place = Place.of(ctx)
        tenant, successor = values.get("tenant"), values.get("successor")
        with connect(place) as posthouse:
            found = [find(posthouse, noun, name, tenant) for name in reference]
            heir = find(posthouse, noun, successor, tenant)["id"] if successor else None
            confirm(place, _delete_question(noun, found), assumed=values["yes"])
            if len(found) == 1:
                done = posthouse.delete(path_of(noun, found[0]), {"successor": heir})
            else:
                done = posthouse.post(
                    f"{noun.collection}/delete", {"ids": [item["id"] for item in found], "successor": heir}
                )
        if place.as_json:
            output.show_json(done)
            return
        output.say(f"Deleted {', '.join(output.visible(item['name']) for item in found)}.", "ok")
        for warning in done.get("warnings", ()):
            output.warn(warning)

    parameters = [reference_argument(noun, many=True), *tenant_option(noun), *_delete_options(noun)]
    return Command("delete", callback=run, params=parameters, help=f"Delete one {noun.word} or several.")


def _delete_options(noun: Noun) -> list[click.Parameter]:
    parameters: list[click.Parameter] = [yes_option()]
    if noun.successor:
        parameters.insert(0, successor_option())
    return parameters


def successor_option() -> click.Option:
    """--successor: the server that becomes the default."""
    return click.Option(["--successor"], metavar="NAME", help="The server that becomes the default in its place.")


def yes_option() -> click.Option:
    """--yes: do not ask."""
    return click.Option(["--yes", "-y"], is_flag=True, help="Do not ask. Without a terminal nothing is asked.")


def confirm(place: Place, question: str, *, assumed: bool) -> None:
    """Ask on a terminal; raises CommandError where the answer is no."""
    if assumed or place.as_json or not sys.stdin.isatty():
        return
    if not click.confirm(question, err=True):
        raise CommandError.of("Nothing was changed.", code="not-confirmed")


def _delete_question(noun: Noun, found: Sequence[Item]) -> str:
    names = ", ".join(output.visible(item["name"]) for item in found)
    if len(found) == 1:
        return f"Delete {noun.word} {names}?"
    return f"Delete {len(found)} {noun.collection}: {names}?"


# --- showing ----------------------------------------------------------------------------------------------------------


def show_item(noun: Noun, item: Item) -> None:
    """Every field that applies, under the headings of its section."""
    output.say(output.visible(str(item.get("name", noun.word))), "heading")
    facts: list[tuple[str, str | Cell]] = [
        ("Identifier", item["id"]),
        ("Version", f"{item['version']}, changed {output.exact_time(item.get('changed_at'))}"),
        *noun.more(item),
    ]
    output.show_pairs(facts, indent="  ")
    output.say()
    show_fields(noun.options, item)


def show_fields(options: FieldOptions, item: Mapping[str, Any]) -> None:
    """The declared fields by section; what does not apply to this value is left out."""
    sections: dict[str, list[tuple[str, str | Cell]]] = {}
    for described in options.fields.values():
        if described.path != "name" and _applies(described, item):
            entry = f"{described.label} ({option_name(described.path)})"
            sections.setdefault(described.section, []).append((entry, _shown(described, item)))
    shown = {section: pairs for section, pairs in sections.items() if any(_text(cell) for _, cell in pairs)}
    for number, (section, pairs) in enumerate(shown.items()):
        if number:
            output.say()
        output.say(section, "heading")
        output.show_pairs(pairs, indent="  ")


def _applies(described: FieldDescription, item: Mapping[str, Any]) -> bool:
    if "." in described.path and get_path(item, described.path) is None:
        return False
    return described.path.split(".")[0] in item and all(
        str(get_path(item, path)) in values for path, values in described.applies.items()
    )


def _shown(described: FieldDescription, item: Mapping[str, Any]) -> str | Cell:
    value = get_path(item, described.path)
    if described.is_secret:
        return Cell(str(value), "ok" if value == SECRET_SET else "quiet")
    if described.path == "tenant_id":
        return owner_name(item)
    text = output.plain(value)
    if text and described.unit == "octets" and isinstance(value, int):
        text = output.size(value)
    elif described.unit == "s" and isinstance(value, int):
        text = output.exact_duration(value)
    elif text and described.unit:
        text = f"{text} {described.unit}"
    default = default_text(described)
    return (
        f"{text} (default)"
        if text and default and output.plain(_json(described.default)) == output.plain(value)
        else text
    )


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else getattr(value, "value", value)


def _text(entry: str | Cell) -> str:
    return entry.text if isinstance(entry, Cell) else entry


def owner_name(item: Mapping[str, Any]) -> str:
    """Whose an object is: the tenant's name, its id where the name is not there, or global."""
    if item.get("tenant_id") is None:
        return "global"
    return str(item.get("tenant_name") or item["tenant_id"])


def _a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"
