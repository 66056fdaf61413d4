"""`posthouse token`: what people and programs sign in to REST with, beside applications' keys."""

from datetime import UTC, datetime, timedelta

import click

from posthouse.cli import output
from posthouse.cli.connection import connect, path_part
from posthouse.cli.failure import CommandError
from posthouse.cli.nouns import confirm, yes_option
from posthouse.cli.options import Word
from posthouse.cli.place import Group, Place
from posthouse.cli.times import Moment, Span, api_time
from posthouse.model.actor import Role

ROLES = tuple(role.value for role in Role if role is not Role.APPLICATION)

token = Group("token", help="Tokens for REST.", no_args_is_help=True)


@token.command("create", help="Make a token. It is shown once.")
@click.argument("name")
@click.option("--role", type=Word(ROLES), required=True, help="What it may do.")
@click.option("--tenant", metavar="NAME", help="Only in this tenant. Without one: everywhere.")
@click.option("--expires-at", type=Moment(), help="When it ends.")
@click.option("--expires-in", type=Span(), help="After how long it ends, such as 90d.")
@click.pass_context
def create(
    ctx: click.Context,
    name: str,
    role: str,
    tenant: str | None,
    expires_at: datetime | None,
    expires_in: timedelta | None,
) -> None:
    """POST tokens."""
    place = Place.of(ctx)
    if expires_at and expires_in:
        raise CommandError.usage("--expires-at and --expires-in are both given.", remedy="Give one of them.")
    end = datetime.now(UTC) + expires_in if expires_in else expires_at
    body: dict[str, str | None] = {"name": name, "role": role}
    if end is not None:
        body["expires_at"] = api_time(end)
    with connect(place) as posthouse:
        if tenant is not None:
            body["tenant_id"] = posthouse.find("tenants", tenant)["id"]
        made = posthouse.post("tokens", body)
    if place.as_json:
        output.show_json(made)
        return
    output.say(f"Made the token {output.visible(name)} with the role {role}.", "ok")
    output.say()
    output.say(f"  {output.visible(made['token'])}")
    output.say()
    output.say("It is shown this once: keep it now. Use it as `Authorization: Bearer`, or in POSTHOUSE_TOKEN.")


@token.command("list", help="List the tokens, without what they are.")
@click.pass_context
def list_tokens(ctx: click.Context) -> None:
    """GET tokens."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        items = list(posthouse.items("tokens"))
    if place.as_json:
        output.show_json({"items": items, "next": None})
        return
    rows = [
        (
            item["name"],
            item["role"],
            str(item.get("tenant_name") or item.get("tenant_id") or "everywhere"),
            item["handle"],
            output.relative_time(item.get("last_used_at")) or "never",
            output.relative_time(item.get("expires_at")) or "never",
            item["id"],
        )
        for item in items
    ]
    output.show_table(
        ("NAME", "ROLE", "WHERE", "HANDLE", "LAST USED", "ENDS", "ID"), rows, empty="There is no token yet."
    )


@token.command("revoke", help="End a token, by its name, handle or id. It cannot be undone.")
@click.argument("which", metavar="NAME")
@click.pass_context
def revoke(ctx: click.Context, which: str, yes: bool) -> None:
    """DELETE tokens/{id}."""
    place = Place.of(ctx)
    with connect(place) as posthouse:
        meant = [item for item in posthouse.items("tokens") if which in (item["id"], item["handle"], item["name"])]
        if not meant:
            raise CommandError.of(
                "There is no such token.", remedy="`posthouse token list` shows them.", code="not-found"
            )
        if len(meant) > 1:
            raise CommandError.of(
                f"{len(meant)} tokens have that name.", remedy="Give the handle or the id.", code="ambiguous"
            )
        confirm(place, f"Revoke the token {output.visible(meant[0]['name'])}?", assumed=yes)
        done = posthouse.delete(f"tokens/{path_part(meant[0]['id'])}")
    if place.as_json:
        output.show_json(done or {"revoked": meant[0]["id"]})
    else:
        output.say(f"Revoked {output.visible(meant[0]['name'])}.", "ok")


revoke.params.append(yes_option())
