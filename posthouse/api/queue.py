"""The queue by server, holding and releasing it; captured mail; the event feed."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from posthouse.api import openapi
from posthouse.api.bearer import Speaking
from posthouse.api.hub import Hub
from posthouse.api.message_shapes import captured_shape, queue_shape, state_shape
from posthouse.api.parameters import DEFAULT_LIMIT, Cursor, Identifier, Limit, cursor_number, number_of
from posthouse.api.reading import Body, read_optional_body
from posthouse.api.rendering import identifier_of, json_answer, time_of
from posthouse.model.fields import IDENTIFIER_PATTERN
from posthouse.model.identifier import created_ms, parse_id


class Hold(Body):
    """Why a server is held."""

    detail: str = Field(
        "", max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$", description="A sentence for your colleagues."
    )


_hold: TypeAdapter[Hold] = TypeAdapter(Hold)
BODIES = (Hold,)

COMPONENTS: dict[str, openapi.Schema] = {
    "Held": {
        "type": "object",
        "properties": {"server_id": openapi.IDENTIFIER, "state": openapi.ref("ServerState")},
        "required": ["server_id", "state"],
    },
    "Event": {
        "type": "object",
        "properties": {
            "id": openapi.IDENTIFIER,
            "at": {"type": "string", "format": "date-time"},
            "kind": {"type": "string"},
            "tenant_id": {"type": ["string", "null"]},
            "message_id": {"type": ["string", "null"]},
            "server_id": {"type": ["string", "null"]},
            "data": {"type": "object", "additionalProperties": True},
        },
        "required": ["id", "at", "kind", "tenant_id", "message_id", "server_id", "data"],
    },
    "EventPage": {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": openapi.ref("Event")},
            "next": {
                "type": ["string", "null"],
                "description": "What to pass as `after` next time; null before any event.",
            },
        },
        "required": ["items", "next"],
    },
}

router = APIRouter(tags=["queue"], default_response_class=Response)


@router.get(
    "/queue",
    responses=openapi.answers({200: openapi.json_of("Queue", "One line for each server that has a queue or is held.")}),
    operation_id="show_queue",
    summary="Show the queue by server",
)
async def show(hub: Hub, actor: Speaking) -> Response:
    """The queues, the longest first."""
    lines = await hub.tracking.queue(actor)
    items = [queue_shape(line, created_ms(line.oldest) if line.oldest else None) for line in lines]
    return json_answer({"sending_off": hub.directory.sending_off_reason(), "items": items, "next": None})


_HELD = openapi.answers({200: openapi.json_of("Held", "The state of the server now.")}, 408, 409, 413, 415, 507)


@router.post(
    "/queue/{id:identifier}/hold",
    responses=_HELD,
    openapi_extra=openapi.body_of("Hold", required=False, example={"detail": "The server moves tonight."}),
    operation_id="hold_queue",
    summary="Hold the queue of a server",
)
async def hold(hub: Hub, actor: Speaking, request: Request, id: Identifier) -> Response:
    """Hold until released."""
    number = number_of(id, "server")
    body = await read_optional_body(request, _hold)
    await hub.tracking.hold(actor, number, body.detail)
    return json_answer({"server_id": identifier_of(number), "state": state_shape(hub.delivery.state_of(number))})


@router.post(
    "/queue/{id:identifier}/release",
    responses=_HELD,
    operation_id="release_queue",
    summary="Let the queue of a server move again",
)
async def release(hub: Hub, actor: Speaking, id: Identifier) -> Response:
    """Send again, now."""
    number = number_of(id, "server")
    await hub.tracking.release(actor, number)
    return json_answer({"server_id": identifier_of(number), "state": state_shape(hub.delivery.state_of(number))})


@router.get(
    "/captured",
    responses=openapi.answers({200: openapi.json_of("CapturedPage", "Captured messages, newest first.")}),
    operation_id="list_captured",
    summary="List what capture servers hold",
)
async def captured(
    hub: Hub,
    actor: Speaking,
    server: Annotated[str | None, Query(pattern=IDENTIFIER_PATTERN)] = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """A page of captured messages."""
    rows = await hub.tracking.captured(
        actor,
        server_id=parse_id(server) if server is not None else None,
        before=cursor_number(cursor),
        limit=limit + 1,
    )
    items = [captured_shape(row, hub.directory) for row in rows[:limit]]
    return json_answer({"items": items, "next": items[-1]["id"] if len(rows) > limit else None})


@router.get(
    "/events",
    responses=openapi.answers({200: openapi.json_of("EventPage", "Events, oldest first.")}),
    operation_id="list_events",
    summary="Read the event feed",
    description="Pass `next` as `after` to go on; a feed has no end.",
)
async def events(
    hub: Hub,
    actor: Speaking,
    after: Annotated[str | None, Query(pattern=IDENTIFIER_PATTERN, description="The last event that was read.")] = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """A part of the feed."""
    rows = await hub.tracking.events(actor, after=cursor_number(after) or 0, limit=limit)
    items = [
        {
            "id": identifier_of(row.id),
            "at": time_of(row.at_ms),
            "kind": row.kind,
            "tenant_id": identifier_of(row.tenant_id),
            "message_id": identifier_of(row.message_id),
            "server_id": identifier_of(row.server_id),
            "data": _data_shape(json.loads(row.data)),
        }
        for row in rows
    ]
    return json_answer({"items": items, "next": items[-1]["id"] if items else after})


def _data_shape(data: dict[str, Any]) -> dict[str, Any]:
    """What an event holds, with identifiers and times as people see them."""
    shape = {name: entry for name, entry in data.items() if name not in ("outcomes", "next_try_ms")}
    if "outcomes" in data:
        shape["outcomes"] = [
            {"recipient_id": identifier_of(outcome.get("r")), **{k: v for k, v in outcome.items() if k != "r"}}
            for outcome in data["outcomes"]
        ]
    if data.get("next_try_ms"):
        shape["next_try_at"] = time_of(data["next_try_ms"])
    return shape
