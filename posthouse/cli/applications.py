"""`posthouse application`: programs and devices that hand over mail, and their keys."""

import click

from posthouse.cli import output
from posthouse.cli.connection import connect, path_part
from posthouse.cli.failure import CommandError
from posthouse.cli.nouns import (
    Item,
    Noun,
    add_verbs,
    confirm,
    find,
    owner_name,
    path_of,
    reference_argument,
    tenant_option,
    yes_option,
)
from posthouse.cli.options import Word
from posthouse.cli.output import Cell, plain
from posthouse.cli.place import Group, Place
from posthouse.model.application import Application

KEY_KINDS = ("api_key", "smtp")


def _show_credentials(item: Item) -> None:
    """What was made beside the application. Only digests of it are kept."""
    output.say()
    output.show_pairs(
        (
            ("API key", str(item.get("api_key", ""))),
            ("SMTP user name", str(item.get("smtp_username", ""))),
            ("SMTP password", str(item.get("smtp_password", ""))),
        ),
        indent="  ",
    )
    output.say()
    output.say("They are shown this once: keep them now. Others: posthouse application key add NAME.")


NOUN = Noun(
    word="application",
    collection="applications",
    models=(Application,),
    headings=("NAME", "OWNER", "ENABLED", "NETWORKS", "ALLOWED SENDERS", "ID"),
    cells=lambda item: (
        item["name"],
        owner_name(item),
        plain(item["enabled"]),
        plain(item["networks"]),
        plain(item["allowed_senders"]) or "any",
        Cell(item["id"], "quiet"),
    ),
    after_adding=_show_credentials,
)

application = Group("application", help="Applications: programs and devices that hand over mail.", no_args_is_help=True)
add_verbs(application, NOUN)


@application.group("key", cls=Group, help="API keys and SMTP passwords of an application.", no_args_is_help=True)
def key() -> None:
    """The group itself does nothing."""


_WHICH = [reference_argument(NOUN), *tenant_option(NOUN)]


@key.command("add", params=list(_WHICH), help="Make a key or a password for an application. It is shown once.")
@click.option("--kind", type=Word(KEY_KINDS), default="api_key", help="For REST or for SMTP. [default: api_key]")
@click.option("--name", "label", default="", metavar="TEXT", help="What it is for, to know it again in the list.")
@click.pass_context
def add_key(ctx: click.Context, /, reference: str, tenant: str | None, kind: str, label: str) -> None:
    """POST applications/{id}/keys."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        found = find(posthouse, NOUN, reference, tenant)
        made = posthouse.post(f"{path_of(NOUN, found)}/keys", {"kind": kind, "name": label})
    if place.as_json:
        output.show_json(made)
    else:
        output.say(
            f"Made a new {'API key' if kind == 'api_key' else 'SMTP password'} for {plain(found['name'])}.", "ok"
        )
        _show_credentials(made)


@key.command("list", params=list(_WHICH), help="List the keys of an application, without what they are.")
@click.pass_context
def list_keys(ctx: click.Context, /, reference: str, tenant: str | None) -> None:
    """GET applications/{id}/keys."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        found = find(posthouse, NOUN, reference, tenant)
        items = list(posthouse.items(f"{path_of(NOUN, found)}/keys"))
    if place.as_json:
        output.show_json({"items": items, "next": None})
        return
    rows = [
        (
            item["handle"],
            item["kind"],
            item["name"],
            output.relative_time(item.get("last_used_at")) or "never",
            item["id"],
        )
        for item in items
    ]
    output.show_table(("HANDLE", "KIND", "NAME", "LAST USED", "ID"), rows, empty="The application has no key.")


@key.command("revoke", params=list(_WHICH), help="End a key or a password, by its handle or id. It cannot be undone.")
@click.argument("handle", metavar="HANDLE")
@click.pass_context
def revoke_key(ctx: click.Context, /, reference: str, tenant: str | None, handle: str, yes: bool) -> None:
    """DELETE applications/{id}/keys/{key}."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        found = find(posthouse, NOUN, reference, tenant)
        path = f"{path_of(NOUN, found)}/keys"
        meant = [item for item in posthouse.items(path) if handle in (item["id"], item["handle"])]
        if not meant:
            raise CommandError.of(
                "The application has no such key.",
                remedy="`posthouse application key list` shows them.",
                code="not-found",
            )
        confirm(place, f"Revoke {plain(meant[0]['handle'])} of {plain(found['name'])}?", assumed=yes)
        done = posthouse.delete(f"{path}/{path_part(meant[0]['id'])}")
    if place.as_json:
        output.show_json(done or {"revoked": meant[0]["id"]})
    else:
        output.say(f"Revoked {plain(meant[0]['handle'])}.", "ok")


revoke_key.params.append(yes_option())
