"""Applications and their keys: what they have beside the verbs of every noun.

A key or password is shown in the answer that makes it, and never again.
"""

from typing import Any, Literal

from pydantic import Field, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from posthouse.api import openapi
from posthouse.api.bearer import Speaking
from posthouse.api.hub import Hub
from posthouse.api.nouns import Noun, created, noun_router, shown
from posthouse.api.parameters import DEFAULT_LIMIT, Cursor, Identifier, Limit, cursor_number, number_of
from posthouse.api.reading import Body, read_body, read_shape
from posthouse.api.rendering import identifier_of, json_answer, time_of
from posthouse.store.credentials import API_KEY, CredentialInfo

NOUN = Noun(
    word="application",
    collection="applications",
    component="Application",
    example={"name": "shop", "allowed_senders": ["example.org"]},
)


class NewKey(Body):
    """A further key or password of an application."""

    kind: Literal["api_key", "smtp"] = Field("api_key", description="For REST, or for SMTP.")
    name: str = Field("", max_length=100, description="What it is for, to know it again in the list.")


_new_key: TypeAdapter[NewKey] = TypeAdapter(NewKey)
BODIES = (NewKey,)

_KEY: openapi.Schema = {
    "id": openapi.IDENTIFIER,
    "kind": {"enum": ["api_key", "smtp"]},
    "name": {"type": "string"},
    "handle": {"type": "string", "description": "What stands in clear in the key; of SMTP the user name."},
    "created_at": {"type": "string", "format": "date-time"},
    "expires_at": {"type": ["string", "null"], "format": "date-time"},
    "last_used_at": {"type": ["string", "null"], "format": "date-time"},
}
_ONCE: openapi.Schema = {
    "api_key": {"type": "string", "description": "Shown this once."},
    "smtp_username": {"type": "string"},
    "smtp_password": {"type": "string", "description": "Shown this once."},
}
COMPONENTS: dict[str, openapi.Schema] = {
    "Key": {"type": "object", "properties": _KEY, "required": list(_KEY)},
    "KeyPage": openapi.page_of("Key"),
    "IssuedKey": {"type": "object", "properties": {**_KEY, **_ONCE}, "required": list(_KEY)},
    "AddedApplication": {
        "allOf": [
            openapi.ref("ApplicationObject"),
            {"type": "object", "properties": _ONCE, "required": list(_ONCE)},
        ]
    },
    "Revoked": {"type": "object", "properties": {"revoked": openapi.IDENTIFIER}, "required": ["revoked"]},
}


router = noun_router(NOUN)


@router.post(
    "",
    status_code=201,
    responses=openapi.answers(
        {
            201: openapi.json_of(
                "AddedApplication",
                "Added, with its first key and password: shown this once.",
                headers={"ETag": "The version, in quotes.", "Location": "Where it is."},
            )
        },
        408, 409, 413, 415, 507,
    ),
    openapi_extra=openapi.body_of("Application", example=NOUN.example),
    operation_id="add_application",
    summary="Add an application",
)  # fmt: skip
async def add(hub: Hub, actor: Speaking, request: Request) -> Response:
    record, keys = await hub.administration.create_application(actor, await read_shape(request))
    once = {"api_key": keys.api_key, "smtp_username": keys.smtp_username, "smtp_password": keys.smtp_password}
    return created(NOUN, record, {**shown(hub, NOUN, record), **once})


@router.get(
    "/{id:identifier}/keys",
    responses=openapi.answers({200: openapi.json_of("KeyPage", "The keys, oldest first, without their secrets.")}),
    operation_id="list_keys",
    summary="List the keys of an application",
)
async def keys(
    hub: Hub, actor: Speaking, id: Identifier, cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT
) -> Response:
    found = await hub.administration.keys(actor, number_of(id, "application"))
    return json_answer(credential_page(found, cursor, limit))


@router.post(
    "/{id:identifier}/keys",
    status_code=201,
    responses=openapi.answers(
        {201: openapi.json_of("IssuedKey", "Made. Its secret is shown this once.")}, 408, 413, 415, 507
    ),
    openapi_extra=openapi.body_of("NewKey", example={"kind": "api_key", "name": "web shop, second node"}),
    operation_id="issue_key",
    summary="Make a key for an application",
)
async def issue(hub: Hub, actor: Speaking, request: Request, id: Identifier) -> Response:
    body = await read_body(request, _new_key)
    info, plain = await hub.administration.issue_key(actor, number_of(id, "application"), body.kind, body.name)
    once = {"api_key": plain} if info.kind == API_KEY else {"smtp_username": info.handle, "smtp_password": plain}
    return json_answer({**credential_shape(info), **once}, 201)


@router.delete(
    "/{id:identifier}/keys/{key:identifier}",
    responses=openapi.answers({200: openapi.json_of("Revoked", "It does not work any more.")}, 507),
    operation_id="revoke_key",
    summary="Revoke a key of an application",
)
async def revoke(hub: Hub, actor: Speaking, id: Identifier, key: Identifier) -> Response:
    number = number_of(key, "key")
    await hub.administration.revoke_key(actor, number_of(id, "application"), number)
    return json_answer({"revoked": identifier_of(number)})


def credential_shape(info: CredentialInfo) -> dict[str, Any]:
    """A key as lists show it."""
    return {
        "id": identifier_of(info.id),
        "kind": info.kind,
        "name": info.name,
        "handle": info.handle,
        "created_at": time_of(info.created_ms),
        "expires_at": time_of(info.expires_ms),
        "last_used_at": time_of(info.last_used_ms),
    }


def credential_page(found: list[CredentialInfo], cursor: str | None, limit: int) -> dict[str, Any]:
    """A page of keys, oldest first."""
    rest = [info for info in found if info.id > (cursor_number(cursor) or 0)]
    return {
        "items": [credential_shape(info) for info in rest[:limit]],
        "next": identifier_of(rest[limit - 1].id) if len(rest) > limit else None,
    }
