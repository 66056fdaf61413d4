"""What every command takes, before or after its verb: --data, --database and --json. Imports no model: help is quick."""

from dataclasses import dataclass
from typing import Any

import click

_PLACE = "posthouse.place."


@dataclass(frozen=True, slots=True)
class Place:
    """Which installation a command works on, as the command line says, and how it answers."""

    data: str | None
    database: str | None
    as_json: bool

    @classmethod
    def of(cls, ctx: click.Context) -> "Place":
        """What was given on this command line, before or after the verb."""
        meta = ctx.meta
        return cls(meta.get(_PLACE + "data"), meta.get(_PLACE + "database"), bool(meta.get(_PLACE + "as_json")))


def _remember(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value:
        ctx.meta[_PLACE + str(parameter.name)] = value


def place_options() -> list[click.Parameter]:
    """--data, --database and --json. They count wherever they stand; the last one wins."""
    return [
        click.Option(
            ["--data"],
            metavar="DIR",
            expose_value=False,
            callback=_remember,
            help="The data directory of the installation (POSTHOUSE_DATA).",
        ),
        click.Option(
            ["--database"],
            metavar="URL",
            expose_value=False,
            callback=_remember,
            help="Its PostgreSQL database, where no node runs on the data directory (POSTHOUSE_DATABASE).",
        ),
        click.Option(
            ["as_json", "--json"],
            is_flag=True,
            expose_value=False,
            callback=_remember,
            help="Answer in JSON; errors as an RFC 9457 problem on standard error.",
        ),
    ]


class Command(click.Command):
    """A command with the options that every command takes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += place_options()


class Group(click.Group):
    """A noun. What every command takes may stand before its verb too."""

    command_class = Command
    group_class = type

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += place_options()
