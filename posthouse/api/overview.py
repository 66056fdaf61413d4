"""The installation as a whole: its health, which way a message would take, and the link that opens the pages."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

import posthouse
from posthouse.api import openapi
from posthouse.api.bearer import Speaking
from posthouse.api.handing_over import Choice, Desk
from posthouse.api.hub import Hub, Posthouse
from posthouse.api.message_input import read_address
from posthouse.api.reading import Body, read_body, read_optional_body
from posthouse.api.rendering import identifier_of, json_answer, time_of
from posthouse.errors import NotFound, PosthouseError
from posthouse.model.actor import Actor, Permission
from posthouse.model.address import Address
from posthouse.model.fields import IDENTIFIER_PATTERN
from posthouse.model.identifier import parse_id
from posthouse.model.message import Traits
from posthouse.model.routing import REASONS, Need, choose, is_fax
from posthouse.sessions import Sessions
from posthouse.settings import split_listener

_Identifier = Annotated[str, Field(pattern=IDENTIFIER_PATTERN)]


class Explain(Body):
    """A message that is only asked about."""

    header_from: str = Field(
        alias="from", max_length=1000, description="Who it would be from.", examples=["shop@example.org"]
    )
    to: list[Annotated[str, Field(max_length=1000)]] = Field(
        min_length=1, max_length=100, examples=[["ada@example.net"]]
    )
    tenant: _Identifier | None = Field(None, description="Whose message; that of the application unless said.")
    application: _Identifier | None = Field(None, description="Which application would hand it over.")
    size: int = Field(0, ge=0, le=1 << 40, description="Octets.")


class Nothing(Body):
    """No field is needed."""


_explain: TypeAdapter[Explain] = TypeAdapter(Explain)
_nothing: TypeAdapter[Nothing] = TypeAdapter(Nothing)
BODIES = (Explain, Nothing)

_ROUTE: openapi.Schema = {
    "to": {"type": "string"},
    "server_id": {"type": ["string", "null"]},
    "server": {"type": ["string", "null"], "description": "Its name; null where no server can carry it."},
    "reason": {"type": "string", "description": "A code."},
    "sentence": {"type": "string"},
    "passed_over": {"type": "array", "items": {"type": "string"}},
}
_HEALTH: openapi.Schema = {
    "version": {"type": "string"},
    "ready": {"type": "boolean", "description": "Whether work can be taken."},
    "reasons": {"type": "array", "items": {"type": "string"}, "description": "Why not, where it cannot."},
    "sending_off": {"type": ["string", "null"], "description": "Why no mail leaves at all; null while it does."},
    "database": {"enum": ["sqlite", "postgresql"]},
    "configuration_version": {"type": "integer"},
    "servers_held": {"type": "integer"},
    "waiting": {"type": "integer", "description": "Recipients that wait."},
}
COMPONENTS: dict[str, openapi.Schema] = {
    "Route": {"type": "object", "properties": _ROUTE, "required": list(_ROUTE)},
    "Explanation": {
        "type": "object",
        "properties": {
            "sending_off": {"type": ["string", "null"]},
            "items": {"type": "array", "items": openapi.ref("Route")},
        },
        "required": ["sending_off", "items"],
    },
    "Health": {"type": "object", "properties": _HEALTH, "required": list(_HEALTH)},
    "Link": {
        "type": "object",
        "properties": {
            "url": {"type": "string", "description": "Signs in once."},
            "expires_at": {"type": "string", "format": "date-time"},
        },
        "required": ["url", "expires_at"],
    },
}

router = APIRouter(tags=["installation"], default_response_class=Response)


@router.get(
    "/health",
    responses=openapi.answers({200: openapi.json_of("Health", "How the installation is.")}),
    operation_id="show_health",
    summary="Show the health of the installation",
)
async def health(hub: Hub, actor: Speaking) -> Response:
    """The health, as far as the actor may see."""
    lines = await hub.tracking.queue(actor)
    reasons = hub.readiness()
    return json_answer(
        {
            "version": posthouse.__version__,
            "ready": not reasons,
            "reasons": reasons,
            "sending_off": hub.directory.sending_off_reason(),
            "database": "sqlite" if hub.database.is_sqlite else "postgresql",
            "configuration_version": hub.directory.version,
            "servers_held": sum(1 for line in lines if line.state.held),
            "waiting": sum(line.waiting for line in lines),
        }
    )


@router.post(
    "/routes/explain",
    responses=openapi.answers({200: openapi.json_of("Explanation", "A line for each recipient.")}, 408, 413, 415),
    openapi_extra=openapi.body_of("Explain", example={"from": "shop@example.org", "to": ["ada@example.net"]}),
    operation_id="explain_route",
    summary="Say which server a message would leave through, and why",
    description="Nothing is sent.",
)
async def explain(hub: Hub, actor: Speaking, request: Request) -> Response:
    """The route of each recipient."""
    actor.require(Permission.READ)
    body = await read_body(request, _explain)
    sender = read_address(body.header_from, "from").address
    recipients = [read_address(text, f"to.{at}").address for at, text in enumerate(body.to)]
    tenant_id = _tenant_of(hub, actor, body)
    items = [_route_shape(hub, tenant_id, sender, recipient, body.size) for recipient in recipients]
    return json_answer({"sending_off": hub.directory.sending_off_reason(), "items": items})


def _tenant_of(hub: Posthouse, actor: Actor, body: Explain) -> int:
    if body.application is not None:
        record = hub.directory.applications.get(parse_id(body.application) or 0)
        if record is None or not actor.reaches(record.tenant_id):
            raise NotFound("There is no such application.", field="application")
        if body.tenant is None:
            return record.tenant_id
    return Desk(hub, actor, "").resolve(Choice(tenant=body.tenant))[0]


def _route_shape(hub: Posthouse, tenant_id: int, sender: Address, recipient: Address, size: int) -> dict[str, Any]:
    shape: dict[str, Any] = {"to": str(recipient), "server_id": None, "server": None, "passed_over": []}
    if is_fax(str(recipient)):
        return {**shape, "reason": "no-route", "sentence": "There is no fax server."}
    traits = Traits.NONE if recipient.is_ascii_local and sender.is_ascii_local else Traits.UTF8_ADDRESS
    try:
        route = choose(hub.directory, tenant_id=tenant_id, sender=sender, need=Need(size, traits))
    except PosthouseError as error:
        return {**shape, "reason": error.code, "sentence": error.detail}
    return {
        **shape,
        "server_id": identifier_of(route.server.id),
        "server": route.server.name,
        "reason": route.reason,
        "sentence": f"{route.server.name}: {REASONS[route.reason]}.",
        "passed_over": list(route.passed_over),
    }


@router.post(
    "/links",
    status_code=201,
    responses=openapi.answers({201: openapi.json_of("Link", "Made. It works once, for an hour.")}, 408, 413, 415, 507),
    openapi_extra=openapi.body_of("Nothing", required=False),
    operation_id="make_link",
    summary="Make a link that signs in to the pages, once",
)
async def make_link(hub: Hub, actor: Speaking, request: Request) -> Response:
    """A one-time link with the rights of whoever asks."""
    await read_optional_body(request, _nothing)
    token, expires_ms = await Sessions(hub.database, hub.clock).make_link(actor)
    return json_answer({"url": f"{pages_url(hub)}/sign-in?link={token}", "expires_at": time_of(expires_ms)}, 201)


def pages_url(hub: Posthouse) -> str:
    """Where people reach the pages: the public URL, else localhost, because WebAuthn takes no IP address."""
    settings = hub.settings
    if settings.public_url:
        return settings.public_url.rstrip("/")
    if hub.http_addresses:
        port = hub.http_addresses[0][1]
    else:
        listener = settings.http or settings.https
        port = split_listener(listener)[1] if listener else 8025
    return f"{'http' if settings.http or not settings.https else 'https'}://localhost:{port}"
