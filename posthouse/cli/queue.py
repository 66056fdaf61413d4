"""`posthouse queue`: what waits, for which server and why; and holding a server's queue."""

from collections.abc import Sequence
from typing import Any

import click

from posthouse.cli import output
from posthouse.cli.connection import connect
from posthouse.cli.nouns import Item, find, owner_name, tenant_option
from posthouse.cli.options import Group, Place
from posthouse.cli.output import Cell
from posthouse.cli.servers import NOUN

queue = Group("queue", help="The queue: what waits, for which server and why.", no_args_is_help=True)


@queue.command("status", help="Show what waits, server by server.")
@click.pass_context
def status(ctx: click.Context) -> None:
    """GET queue."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        answer = posthouse.get("queue")
    if place.as_json:
        output.show_json(answer)
        return
    reason = answer.get("sending_off") or answer.get("sending_off_reason")
    if reason:
        output.warn(f"Sending is off: {reason}")
    rows = [_row(item) for item in answer["items"]]
    output.show_table(
        ("SERVER", "OWNER", "WAITING", "SENDING", "OLDEST", "NEXT DUE", "STATE", "WHY"),
        rows,
        empty="There is no server.",
    )


def _row(item: Item) -> Sequence[str | Cell]:
    held = str(item.get("held") or "")
    return (
        str(item.get("server_name") or item.get("name") or item.get("server") or ""),
        owner_name(item),
        Cell(str(item.get("waiting", 0)), right=True),
        Cell(str(item.get("sending", 0)), right=True),
        output.relative_time(item.get("oldest_at")),
        output.relative_time(item.get("next_due_at")),
        Cell("held" if held else "sends", "attention" if held else "ok"),
        _why(item) if held else "",
    )


def _why(item: Item) -> str:
    if item.get("held") == "operator":
        return "by a person"
    why = str(item.get("detail") or item.get("cause") or "")
    next_try = output.relative_time(item.get("next_try_at") or item.get("next_try"))
    return f"{why} Next try {next_try}." if next_try else why


def _act(verb: str, done: str) -> Any:
    @click.pass_context
    def run(ctx: click.Context, /, reference: str, tenant: str | None) -> None:
        place = Place.of(ctx)
        with connect(place) as posthouse:
            found = find(posthouse, NOUN, reference, tenant)
            answer = posthouse.post(f"queue/{found['id']}/{verb}")
        if place.as_json:
            output.show_json(answer)
        else:
            output.say(f"The queue of {output.visible(found['name'])} {done}.", "ok")

    return run


_WHICH = [click.Argument(["reference"], metavar="SERVER"), *tenant_option(NOUN)]

for _verb, _done, _help in (
    ("hold", "is held until it is released", "Hold the queue of a server until it is released."),
    ("release", "moves again", "Let the queue of a server move again, also where a fault holds it."),
):
    queue.add_command(queue.command_class(_verb, callback=_act(_verb, _done), params=list(_WHICH), help=_help))
