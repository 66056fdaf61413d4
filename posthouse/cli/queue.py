"""`posthouse queue`: what waits, for which server and why; and holding a server's queue."""

from collections.abc import Sequence
from typing import Any

import click

from posthouse.cli import output
from posthouse.cli.connection import connect
from posthouse.cli.nouns import Item, find, owner_name, tenant_option, with_owner_names
from posthouse.cli.output import Cell
from posthouse.cli.place import Command, Group, Place
from posthouse.cli.servers import NOUN

queue = Group("queue", help="The queue: what waits, for which server and why.", no_args_is_help=True)


@queue.command("status", help="Show what waits, server by server.")
@click.pass_context
def status(ctx: click.Context) -> None:
    """GET queue."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        answer = posthouse.get("queue")
        with_owner_names(posthouse, NOUN, answer["items"])
    if place.as_json:
        output.show_json(answer)
        return
    if answer.get("sending_off"):
        output.warn(f"No mail leaves: {answer['sending_off']}")
    rows = [_row(item) for item in answer["items"]]
    output.show_table(
        ("SERVER", "OWNER", "WAITING", "SENDING", "OLDEST", "NEXT DUE", "STATE", "WHY"),
        rows,
        empty="Nothing waits, and no server is held.",
    )


def _row(item: Item) -> Sequence[str | Cell]:
    held = str(item.get("held") or "")
    return (
        str(item["server"]),
        owner_name(item),
        Cell(str(item.get("waiting", 0)), right=True),
        Cell(str(item.get("sending", 0)), right=True),
        output.relative_time(item.get("oldest_at")),
        output.relative_time(item.get("next_due_at")),
        Cell("held", "attention") if held else Cell("ready", "ok"),
        str(item.get("why_waiting") or ""),
    )


def _act(verb: str, done: str) -> Any:
    @click.pass_context
    def run(ctx: click.Context, /, reference: str, tenant: str | None, detail: str = "") -> None:
        place = Place.of(ctx)
        with connect(place) as posthouse:
            found = find(posthouse, NOUN, reference, tenant)
            answer = posthouse.post(f"queue/{found['id']}/{verb}", {"detail": detail} if detail else None)
        if place.as_json:
            output.show_json(answer)
        else:
            output.say(f"The queue of {output.visible(found['name'])} {done}.", "ok")

    return run


_WHICH = [click.Argument(["reference"], metavar="SERVER"), *tenant_option(NOUN)]

_DETAIL = click.Option(["--detail"], default="", metavar="TEXT", help="Why, for your colleagues.")

for _verb, _done, _more, _help in (
    ("hold", "is held until it is released", [_DETAIL], "Hold the queue of a server until it is released."),
    ("release", "moves again", [], "Let the queue of a server move again, also where a fault holds it."),
):
    queue.add_command(Command(_verb, callback=_act(_verb, _done), params=[*_WHICH, *_more], help=_help))
