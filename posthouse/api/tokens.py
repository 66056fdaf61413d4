"""Tokens of people and programs: made, listed, revoked. A token is shown in the answer that makes it, never again."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from posthouse.api import openapi
from posthouse.api.bearer import Speaking
from posthouse.api.hub import Hub
from posthouse.api.parameters import (
    DEFAULT_LIMIT,
    Cursor,
    Identifier,
    Limit,
    Moment,
    cursor_number,
    number_of,
)
from posthouse.api.reading import Body, read_body
from posthouse.api.rendering import identifier_of, json_answer, time_of
from posthouse.errors import InvalidInput
from posthouse.model.consistency import no_such_tenant
from posthouse.model.directory import Directory
from posthouse.model.fields import IDENTIFIER_PATTERN, NAME_PATTERN
from posthouse.model.identifier import parse_id
from posthouse.store.credentials import CredentialInfo


class NewToken(Body):
    """A token to be made."""

    name: str = Field(min_length=1, max_length=100, pattern=NAME_PATTERN, examples=["ci"])
    role: Literal["administrator", "operator", "auditor"] = Field(description="What it may do.")
    tenant_id: Annotated[str, Field(pattern=IDENTIFIER_PATTERN)] | None = Field(
        None, description="Only in this tenant; without one everywhere."
    )
    expires_at: Moment | None = Field(None, description="When it ends.")


_new_token: TypeAdapter[NewToken] = TypeAdapter(NewToken)
BODIES = (NewToken,)

_TOKEN: openapi.Schema = {
    "id": openapi.IDENTIFIER,
    "name": {"type": "string"},
    "role": {"enum": ["administrator", "operator", "auditor"]},
    "tenant_id": {"type": ["string", "null"]},
    "tenant_name": {"type": ["string", "null"]},
    "handle": {"type": "string", "description": "What stands in clear in the token."},
    "created_at": {"type": "string", "format": "date-time"},
    "expires_at": {"type": ["string", "null"], "format": "date-time"},
    "last_used_at": {"type": ["string", "null"], "format": "date-time"},
}
COMPONENTS: dict[str, openapi.Schema] = {
    "Token": {"type": "object", "properties": _TOKEN, "required": list(_TOKEN)},
    "TokenPage": openapi.page_of("Token"),
    "IssuedToken": {
        "type": "object",
        "properties": {**_TOKEN, "token": {"type": "string", "description": "Shown this once."}},
        "required": [*_TOKEN, "token"],
    },
}

router = APIRouter(prefix="/tokens", tags=["tokens"], default_response_class=Response)


@router.get(
    "",
    responses=openapi.answers({200: openapi.json_of("TokenPage", "The tokens, oldest first, without their secrets.")}),
    operation_id="list_tokens",
    summary="List tokens",
)
async def list_tokens(hub: Hub, actor: Speaking, cursor: Cursor = None, limit: Limit = DEFAULT_LIMIT) -> Response:
    """The tokens that the actor may see."""
    after = cursor_number(cursor) or 0
    rest = [info for info in await hub.administration.tokens(actor) if info.id > after]
    items = [_shape(info, hub.directory) for info in rest[:limit]]
    return json_answer({"items": items, "next": items[-1]["id"] if len(rest) > limit else None})


@router.post(
    "",
    status_code=201,
    responses=openapi.answers(
        {201: openapi.json_of("IssuedToken", "Made. It is shown this once.")}, 408, 413, 415, 507
    ),
    openapi_extra=openapi.body_of("NewToken", example={"name": "ci", "role": "administrator"}),
    operation_id="create_token",
    summary="Make a token",
)
async def create(hub: Hub, actor: Speaking, request: Request) -> Response:
    """Make a token."""
    body = await read_body(request, _new_token)
    tenant_id = parse_id(body.tenant_id) if body.tenant_id is not None else None
    if tenant_id == 0:
        # The number that stands for "everywhere" in the store names no tenant.
        raise InvalidInput([no_such_tenant()])
    info, plain = await hub.administration.create_token(actor, body.name, body.role, tenant_id, body.expires_at)
    return json_answer({**_shape(info, hub.directory), "token": plain}, 201)


@router.delete(
    "/{id:identifier}",
    responses=openapi.answers({200: openapi.json_of("Revoked", "It does not work any more.")}, 507),
    operation_id="revoke_token",
    summary="Revoke a token",
)
async def revoke(hub: Hub, actor: Speaking, id: Identifier) -> Response:
    """End a token."""
    number = number_of(id, "token")
    await hub.administration.revoke_token(actor, number)
    return json_answer({"revoked": identifier_of(number)})


def _shape(info: CredentialInfo, directory: Directory) -> dict[str, Any]:
    tenant = directory.tenants.get(info.tenant_id)
    return {
        "id": identifier_of(info.id),
        "name": info.name,
        "role": info.role,
        "tenant_id": identifier_of(info.tenant_id),
        "tenant_name": tenant.name if tenant is not None else None,
        "handle": info.handle,
        "created_at": time_of(info.created_ms),
        "expires_at": time_of(info.expires_ms),
        "last_used_at": time_of(info.last_used_ms),
    }
