"""Settings of the installation, the global switch among them."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from posthouse.api import openapi
from posthouse.api.bearer import Speaking
from posthouse.api.hub import Hub
from posthouse.api.nouns import MERGE_PATCH
from posthouse.api.reading import read_shape
from posthouse.api.rendering import json_answer
from posthouse.model.installation import Installation
from posthouse.model.record import shown_shape

COMPONENTS: dict[str, openapi.Schema] = {
    "ChangedInstallation": {
        "allOf": [
            openapi.ref("InstallationObject"),
            {
                "type": "object",
                "properties": {"warnings": {"type": "array", "items": {"type": "string"}}},
                "required": ["warnings"],
            },
        ]
    }
}

router = APIRouter(prefix="/settings", tags=["settings"], default_response_class=Response)


@router.get(
    "",
    responses=openapi.answers({200: openapi.json_of("InstallationObject", "The settings.")}),
    operation_id="show_settings",
    summary="Show the settings",
)
async def show(hub: Hub, actor: Speaking) -> Response:
    """The settings."""
    return json_answer(_shape(hub.administration.installation(actor)))


@router.patch(
    "",
    responses=openapi.answers(
        {200: openapi.json_of("ChangedInstallation", "The settings, and what follows.")}, 408, 409, 413, 415, 507
    ),
    openapi_extra=openapi.body_of("InstallationPatch", example={"sending_enabled": True}, media_types=[MERGE_PATCH]),
    operation_id="change_settings",
    summary="Change some settings",
    description="A merge patch (RFC 7396). Turning `sending_enabled` off says how many recipients wait.",
)
async def change(hub: Hub, actor: Speaking, request: Request) -> Response:
    """Change what the patch names."""
    installation, warnings = await hub.administration.change_installation(actor, await read_shape(request))
    return json_answer({**_shape(installation), "warnings": list(warnings)})


def _shape(installation: Installation) -> dict[str, Any]:
    return shown_shape(installation)
