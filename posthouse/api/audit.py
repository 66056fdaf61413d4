"""Who changed what: the audit log of the configuration."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from posthouse.api import openapi
from posthouse.api.bearer import Speaking
from posthouse.api.hub import Hub
from posthouse.api.parameters import DEFAULT_LIMIT, Limit
from posthouse.api.rendering import identifier_of, json_answer, time_of
from posthouse.model.fields import IDENTIFIER_PATTERN
from posthouse.model.identifier import parse_id

COMPONENTS: dict[str, openapi.Schema] = {
    "AuditEntry": {
        "type": "object",
        "properties": {
            "id": {"type": "string", "description": "The configuration version that the change made."},
            "at": {"type": "string", "format": "date-time"},
            "actor": {
                "type": "object",
                "properties": {
                    "kind": {"type": "string"},
                    "id": {"type": ["string", "null"]},
                    "name": {"type": "string"},
                },
                "required": ["kind", "id", "name"],
            },
            "tenant_id": {"type": ["string", "null"]},
            "noun": {"type": "string"},
            "object_id": {"type": ["string", "null"]},
            "object_name": {"type": "string"},
            "action": {"type": "string"},
            "changes": {
                "type": "object",
                "description": "Field -> [before, after]; a secret stands as `changed`.",
                "additionalProperties": True,
            },
        },
        "required": ["id", "at", "actor", "tenant_id", "noun", "object_id", "object_name", "action", "changes"],
    },
    "AuditPage": openapi.page_of("AuditEntry"),
}

router = APIRouter(prefix="/audit", tags=["audit"], default_response_class=Response)


@router.get(
    "",
    responses=openapi.answers({200: openapi.json_of("AuditPage", "Changes, newest first.")}),
    operation_id="list_audit",
    summary="Read the audit log",
)
async def list_audit(
    hub: Hub,
    actor: Speaking,
    noun: Annotated[
        Literal["server", "tenant", "application", "certificate", "credential", "settings"] | None, Query()
    ] = None,
    object_id: Annotated[
        str | None, Query(alias="object", pattern=IDENTIFIER_PATTERN, description="The identifier of an object.")
    ] = None,
    cursor: Annotated[
        str | None, Query(pattern="^[0-9]{1,18}$", description="`next` of the page before. Without it the newest.")
    ] = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """A page of the log."""
    found = await hub.administration.audit(
        actor,
        before=int(cursor) if cursor is not None else None,
        noun=noun,
        object_id=parse_id(object_id) if object_id is not None else None,
        limit=limit,
    )
    items = [
        {
            "id": str(entry.version),
            "at": time_of(entry.at_ms),
            "actor": {"kind": entry.actor_kind, "id": identifier_of(entry.actor_id), "name": entry.actor_name},
            "tenant_id": identifier_of(entry.tenant_id),
            "noun": entry.noun,
            "object_id": identifier_of(entry.object_id),
            "object_name": entry.object_name,
            "action": entry.action,
            "changes": dict(entry.changes),
        }
        for entry in found.items
    ]
    return json_answer({"items": items, "next": str(found.next) if found.next is not None else None})
