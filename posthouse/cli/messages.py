"""`posthouse message`: what was handed over, and what became of it."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from posthouse.cli import output
from posthouse.cli.connection import Connection, connect, path_part
from posthouse.cli.failure import CommandError
from posthouse.cli.nouns import Item, confirm, yes_option
from posthouse.cli.options import Word
from posthouse.cli.output import Cell, State
from posthouse.cli.place import Group, Place
from posthouse.cli.times import Moment, api_time

STATES = (
    "waiting",
    "sending",
    "uncertain",
    "handed_over",
    "delivered",
    "bounced",
    "cancelled",
    "expired",
    "failed",
)
# Nothing happens to a message in one of these by itself.
FINISHED = frozenset({"delivered", "bounced", "cancelled", "expired", "failed"})
_COLOURS: Mapping[str, State] = {
    "waiting": "waiting",
    "sending": "waiting",
    "handed_over": "waiting",
    "uncertain": "attention",
    "delivered": "ok",
    "cancelled": "quiet",
    "expired": "failed",
    "failed": "failed",
    "bounced": "failed",
}

message = Group("message", help="Messages: what was handed over, and what became of it.", no_args_is_help=True)


@message.command("list", help="List messages, newest first.")
@click.option("--state", type=Word(STATES), help="Only in this state.")
@click.option("--application", metavar="NAME", help="Only of this application.")
@click.option("--server", metavar="NAME", help="Only through this server.")
@click.option("--tenant", metavar="NAME", help="Only of this tenant, or global.")
@click.option("--address", metavar="ADDRESS", help="Only from or to this address, whole, as in the envelope.")
@click.option("--text", metavar="TEXT", help="Only with this text in Subject, From or Message-ID.")
@click.option(
    "--since", type=Moment(past=True), help="Only taken at or after this time, such as 2h (ago) or 2026-11-20."
)
@click.option("--until", type=Moment(past=True), help="Only taken before this time.")
@click.option("--captured", is_flag=True, help="Only what capture servers hold.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, metavar="NUMBER", help="So many. [default: 100]")
@click.option("--cursor", metavar="CURSOR", help="Go on from the `next` of a list.")
@click.option("--all", "everything", is_flag=True, help="Every page.")
@click.pass_context
def list_messages(ctx: click.Context, /, **values: Any) -> None:
    """GET messages, or GET captured."""
    place = Place.of(ctx)
    unfit = [name for name in _FILTERS if values[name]]
    if values["captured"] and unfit:
        raise CommandError.usage(f"--captured and --{unfit[0]} do not go together.")
    with connect(place) as posthouse:
        path, query = _query(posthouse, values)
        if values["everything"]:
            page: Item = {"items": list(posthouse.items(path, query)), "next": None}
        else:
            page = posthouse.get(path, {**query, "limit": values["limit"], "cursor": values["cursor"]})
    if place.as_json:
        output.show_json(page)
        return
    if values["captured"]:
        rows = [_captured_row(item) for item in page["items"]]
        output.show_table(("ID", "TAKEN", "FROM", "SUBJECT", "SIZE"), rows, empty="Nothing is captured.")
    else:
        rows = [_row(item) for item in page["items"]]
        output.show_table(_HEADINGS, rows, empty="There is no such message.")
    if page.get("next"):
        output.say(f"There are more: --cursor {output.visible(str(page['next']))}, or --all.", "quiet")


_HEADINGS = ("ID", "TAKEN", "STATE", "FROM", "TO", "SUBJECT", "SIZE")


def _query(posthouse: Connection, values: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    tenant = posthouse.owner(values["tenant"])
    server, application = values["server"], values["application"]
    if server:
        server = posthouse.find_usable("servers", server, tenant)["id"]
    if values["captured"]:
        return "captured", {"server": server}
    if application:
        application = posthouse.find("applications", application, tenant=tenant)["id"]
    return "messages", {
        "state": values["state"],
        "application": application,
        "server": server,
        "tenant": tenant,
        "address": values["address"],
        "text": values["text"],
        "since": api_time(values["since"]),
        "until": api_time(values["until"]),
    }


_FILTERS = ("state", "application", "tenant", "address", "text", "since", "until")


def _row(item: Item) -> Sequence[str | Cell]:
    state = str(item["state"])
    return (
        item["id"],
        output.relative_time(item["received_at"]),
        Cell(state, _COLOURS.get(state, "")),
        str(item.get("mail_from") or "<>"),
        _recipients(item),
        str(item.get("subject") or ""),
        Cell(output.size(item.get("size")), right=True),
    )


def _captured_row(item: Item) -> Sequence[str | Cell]:
    return (
        item["id"],
        output.relative_time(item["received_at"]),
        str(item.get("header_from") or item.get("mail_from") or "<>"),
        str(item.get("subject") or ""),
        Cell(output.size(item.get("size")), right=True),
    )


def _recipients(item: Item) -> str:
    more = int(item.get("recipient_count") or 1) - 1
    return str(item.get("first_recipient") or "") + (f" and {more} more" if more > 0 else "")


@message.command("show", help="Show a message and its timeline.")
@click.argument("identifier", metavar="ID")
@click.option("--raw", is_flag=True, help="The message itself. A terminal gets it with control characters escaped.")
@click.pass_context
def show(ctx: click.Context, /, identifier: str, raw: bool) -> None:
    """GET messages/{id} and its timeline; or its bytes."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        path = f"messages/{path_part(identifier)}"
        if raw:
            content = posthouse.request("GET", f"{path}/raw", headers={"accept": "message/rfc822"}).body
        else:
            item = posthouse.get(path)
            item["timeline"] = posthouse.get(f"{path}/timeline")["items"]
    if raw:
        _show_raw(content)
    elif place.as_json:
        output.show_json(item)
    else:
        show_message(item)


def _show_raw(content: bytes) -> None:
    if sys.stdout.isatty():
        print(output.visible_octets(content))
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(content)
    sys.stdout.buffer.flush()


def show_message(item: Item) -> None:
    """A message as people read it: what it is, what became of each recipient, how it came about."""
    state = str(item["state"])
    output.say(output.visible(str(item.get("subject") or "(no subject)")), "heading")
    output.show_pairs(
        (
            ("Identifier", item["id"]),
            ("State", Cell(state, _COLOURS.get(state, ""))),
            ("Taken", output.exact_time(item.get("received_at"))),
            ("From", str(item.get("mail_from") or "<> (null sender)")),
            ("Message-ID", str(item.get("message_id") or "")),
            ("Size", output.size(item.get("size"))),
        ),
        indent="  ",
    )
    _show_recipients(item.get("recipients") or [])
    if item.get("timeline"):
        output.say()
        output.say("What happened", "heading")
        for entry in item["timeline"]:
            _show_entry(entry)


def _show_recipients(recipients: Sequence[Item]) -> None:
    if not recipients:
        return
    output.say()
    rows = [
        (
            str(r["address"]),
            Cell(str(r["state"]), _COLOURS.get(str(r["state"]), "")),
            str(r.get("server") or ""),
            Cell(str(r.get("attempts") or 0), right=True),
            str(r.get("last") or ""),
        )
        for r in recipients
    ]
    output.show_table(("RECIPIENT", "STATE", "SERVER", "TRIES", "LAST WORD"), rows, empty="")


def _show_entry(entry: Item) -> None:
    output.say(f"  {output.exact_time(entry.get('at'))}  {output.visible(str(entry['text']))}")
    if entry.get("quote"):
        output.say(f"      {output.visible(str(entry['quote']))}", "quiet")


_TO = click.option("--to", multiple=True, metavar="ADDRESS", help="Only for this recipient. May be repeated.")


@message.command("cancel", help="Keep a message, or some of its recipients, from being sent. What is sent stays sent.")
@click.argument("identifier", metavar="ID")
@_TO
@click.pass_context
def cancel(ctx: click.Context, /, identifier: str, to: tuple[str, ...], yes: bool) -> None:
    """POST messages/{id}/cancel."""
    _act(ctx, identifier, "cancel", to, f"Cancel {output.visible(identifier)}?", assumed=yes)


cancel.params.append(yes_option())


@message.command("retry", help="Try a message again, or some of its recipients. An uncertain one may arrive twice.")
@click.argument("identifier", metavar="ID")
@_TO
@click.pass_context
def retry(ctx: click.Context, /, identifier: str, to: tuple[str, ...]) -> None:
    """POST messages/{id}/retry."""
    _act(ctx, identifier, "retry", to, "", assumed=True)


def _act(
    ctx: click.Context, identifier: str, verb: str, recipients: Sequence[str], question: str, *, assumed: bool
) -> None:
    place = Place.of(ctx)
    body = {"recipients": list(recipients)} if recipients else {}
    with connect(place) as posthouse:
        confirm(place, question, assumed=assumed)
        answer = posthouse.post(f"messages/{path_part(identifier)}/{verb}", body)
    if place.as_json:
        output.show_json(answer)
    else:
        done = "Cancelled" if verb == "cancel" else "Will try again"
        output.say(f"{done}: {output.visible(identifier)}.", "ok")
