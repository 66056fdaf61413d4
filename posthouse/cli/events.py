"""`posthouse events` and `posthouse audit`: what happened to mail and servers, and who changed what."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import click

from posthouse.cli import output
from posthouse.cli.connection import connect
from posthouse.cli.options import Word
from posthouse.cli.output import Cell
from posthouse.cli.place import Command, Place

_NOUNS = ("server", "tenant", "application", "certificate", "credential", "settings")


@click.command("events", cls=Command, help="List events, oldest first: attempts, holds, final failures.")
@click.option("--after", metavar="CURSOR", help="Only what came after this: the `next` of a list, or an event's id.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, metavar="NUMBER", help="So many. [default: 100]")
@click.pass_context
def events(ctx: click.Context, after: str | None, limit: int) -> None:
    """GET events."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        page = posthouse.get("events", {"after": after, "limit": limit})
    if place.as_json:
        output.show_json(page)
        return
    rows = [
        (
            str(item["id"]),
            output.exact_time(item["at"]),
            str(item["kind"]),
            str(item.get("message_id") or item.get("message") or ""),
            _summary(item),
        )
        for item in page["items"]
    ]
    output.show_table(("ID", "WHEN", "WHAT", "MESSAGE", "DETAILS"), rows, empty="Nothing has happened since.")


def _summary(item: Mapping[str, Any]) -> str:
    """What an event says, in a line: the outcomes of an attempt, else the plain entries of its data."""
    data: Mapping[str, Any] = item.get("data") or {}
    outcomes = data.get("outcomes")
    if isinstance(outcomes, list):
        said = (f"{o.get('result')} {o.get('reply') or o.get('detail') or ''}".strip() for o in outcomes)
        return "; ".join(f"{text} ({count}x)" if count > 1 else text for text, count in Counter(said).items())
    plain = {name: value for name, value in data.items() if isinstance(value, (str, int, float)) and value != ""}
    return "; ".join(f"{name}: {output.plain(value)}" for name, value in plain.items())


@click.command("audit", cls=Command, help="List changes of the configuration, newest first: who, when, what.")
@click.option("--noun", type=Word(_NOUNS), help="Only changes of such objects.")
@click.option("--object", "object_id", metavar="ID", help="Only changes of this object.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, metavar="NUMBER", help="So many. [default: 100]")
@click.option("--cursor", metavar="CURSOR", help="Go on from the `next` of a list.")
@click.pass_context
def audit(ctx: click.Context, noun: str | None, object_id: str | None, limit: int, cursor: str | None) -> None:
    """GET audit."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        page = posthouse.get("audit", {"noun": noun, "object": object_id, "limit": limit, "cursor": cursor})
    if place.as_json:
        output.show_json(page)
        return
    output.show_table(
        ("WHEN", "WHO", "WHAT", "OBJECT", "CHANGES"),
        [_audit_row(item) for item in page["items"]],
        empty="Nothing was changed yet.",
    )
    if page.get("next"):
        output.say(f"There are more: --cursor {output.visible(str(page['next']))}", "quiet")


def _audit_row(item: Mapping[str, Any]) -> tuple[str | Cell, ...]:
    actor = item.get("actor")
    who = str(actor.get("name") or actor.get("kind")) if isinstance(actor, Mapping) else str(actor or "")
    changes = item.get("changes") or {}
    return (
        output.exact_time(item["at"]),
        who,
        f"{item['action']} {item['noun']}",
        str(item.get("object_name") or item.get("object") or ""),
        ", ".join(changes) if item["action"] not in ("create", "issue") else "",
    )
