"""Servers: what they have beside the verbs of every noun."""

from starlette.responses import Response

from posthouse.api import openapi
from posthouse.api.bearer import Speaking
from posthouse.api.hub import Hub, Posthouse
from posthouse.api.nouns import Noun, Successor, noun_router, shown, successor_number
from posthouse.api.parameters import Identifier, number_of
from posthouse.api.rendering import etag_of, json_answer
from posthouse.model.actor import Actor

NOUN = Noun(
    word="server",
    collection="servers",
    component="Server",
    example={
        "kind": "smtp",
        "name": "Office",
        "host": "smtp.example.org",
        "tls_mode": "starttls_required",
        "auth": {"type": "password", "username": "posthouse@example.org", "password": "correct horse"},
    },
)

COMPONENTS: dict[str, openapi.Schema] = {
    "ServerSwitched": {
        "allOf": [
            openapi.ref("ServerObject"),
            {
                "type": "object",
                "properties": {"warnings": {"type": "array", "items": {"type": "string"}}},
                "required": ["warnings"],
            },
        ]
    }
}

_SWITCHED = openapi.answers({200: openapi.json_of("ServerSwitched", "The server, and what follows.")}, 409, 507)


router = noun_router(NOUN)


@router.post(
    "/{id:identifier}/default",
    responses=openapi.answers({200: openapi.json_of("ServerObject", "The server.")}, 409, 507),
    operation_id="make_default",
    summary="Make a server the default of its owner",
)
async def make_default(hub: Hub, actor: Speaking, id: Identifier) -> Response:
    record = await hub.administration.make_default(actor, number_of(id, "server"))
    return json_answer(shown(hub, NOUN, record), headers=etag_of(record))


@router.post("/{id:identifier}/enable", responses=_SWITCHED, operation_id="enable_server", summary="Enable a server")
async def enable(hub: Hub, actor: Speaking, id: Identifier) -> Response:
    return await _switch(hub, actor, id, True, None)


@router.post(
    "/{id:identifier}/disable",
    responses=_SWITCHED,
    operation_id="disable_server",
    summary="Disable a server",
    description="Its queue waits. Where it is the default, the successor is named.",
)
async def disable(hub: Hub, actor: Speaking, id: Identifier, successor: Successor = None) -> Response:
    return await _switch(hub, actor, id, False, successor)


async def _switch(hub: Posthouse, actor: Actor, identifier: str, enabled: bool, successor: str | None) -> Response:
    record, warnings = await hub.administration.set_enabled(
        actor, number_of(identifier, "server"), enabled, successor=successor_number(successor)
    )
    return json_answer({**shown(hub, NOUN, record), "warnings": list(warnings)}, headers=etag_of(record))
