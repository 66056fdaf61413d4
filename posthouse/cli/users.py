"""`posthouse user`: for now, the one-time link by which the administrator signs in to the pages."""

import click

from posthouse.cli import output
from posthouse.cli.connection import connect
from posthouse.cli.place import Group, Place

user = Group("user", help="People.", no_args_is_help=True)


@user.command("link", help="Make a link that signs you in to the pages, once.")
@click.pass_context
def link(ctx: click.Context) -> None:
    """POST links."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        made = posthouse.post("links")
    if place.as_json:
        output.show_json(made)
        return
    output.say(output.visible(str(made["url"])))
    if made.get("expires_at"):
        output.say(f"It works once, until {output.exact_time(made['expires_at'])}.", "quiet")
