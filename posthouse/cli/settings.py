"""`posthouse settings`: what administrators change at run time for the whole installation."""

from typing import Any

import click

from posthouse.cli import output
from posthouse.cli.connection import connect
from posthouse.cli.failure import CommandError
from posthouse.cli.nouns import Item, confirm, show_fields, yes_option
from posthouse.cli.options import FieldOptions
from posthouse.cli.place import Command, Group, Place
from posthouse.model.installation import Installation
from posthouse.model.record import set_path

OPTIONS = FieldOptions((Installation,))

settings = Group("settings", help="Settings of the installation, in force on all nodes.", no_args_is_help=True)


@settings.command("show", help="Show the settings.")
@click.pass_context
def show(ctx: click.Context) -> None:
    """GET settings."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        item = posthouse.get("settings")
    if place.as_json:
        output.show_json(item)
    else:
        show_fields(OPTIONS, item)


@click.pass_context
def _edit(ctx: click.Context, /, yes: bool, **values: Any) -> None:
    place = Place.of(ctx)
    given = OPTIONS.collect(values)
    if not given:
        raise CommandError.usage("Nothing is to be changed.", remedy="Name a setting: --help lists them.")
    patch = given.shape
    for path in given.unset:
        set_path(patch, path, None)
    if patch.get("sending_enabled") is False:
        confirm(place, "Switch sending off? No mail will leave for anyone, and new mail will be refused.", assumed=yes)
    with connect(place) as posthouse:
        item = posthouse.patch("settings", patch)
    if place.as_json:
        output.show_json(item)
    else:
        _report(item)


def _report(item: Item) -> None:
    output.say("Changed the settings.", "ok")
    for warning in item.get("warnings") or ():
        output.warn(warning)


settings.add_command(
    Command(
        "edit",
        callback=_edit,
        params=[*OPTIONS.parameters(adding=False), yes_option()],
        help="Change settings. --no-sending is the global switch: no mail leaves for anyone.",
    )
)
