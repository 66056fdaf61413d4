"""`posthouse migrate`: brings the database to this version's tables, without serving."""

import click

from posthouse.cli import output
from posthouse.cli.connection import connect, settings_of
from posthouse.cli.place import Command, Place


@click.command("migrate", cls=Command, help="Bring the database to this version. `serve` does so too when it starts.")
@click.pass_context
def migrate(ctx: click.Context) -> None:
    """Opening the store migrates it; a node that runs has done so."""
    place = Place.of(ctx)
    settings = settings_of(place)
    with connect(place) as posthouse:
        posthouse.get("health")
    if place.as_json:
        output.show_json({"data": str(settings.data), "migrated": True})
    else:
        output.say("The database is at this version.", "ok")
