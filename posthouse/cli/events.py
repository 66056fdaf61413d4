"""`posthouse events` and `posthouse audit`: what happened to mail and servers, and who changed what."""

from collections.abc import Mapping
from typing import Any

import click

from posthouse.cli import output
from posthouse.cli.connection import connect
from posthouse.cli.options import Command, Place, Word
from posthouse.cli.output import Cell

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
    data = item.get("data")
    if not isinstance(data, Mapping):
        return str(data or "")
    return "; ".join(f"{name}: {_short(value)}" for name, value in data.items() if value not in (None, "", [], {}))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(_short(entry) for entry in value.values() if entry not in (None, ""))
    if isinstance(value, list):
        return ", ".join(_short(entry) for entry in value)
    return output.plain(value)


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
        ", ".join(changes) if isinstance(changes, Mapping) else "",
    )
