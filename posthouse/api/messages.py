"""Messages: hand them over, list them, see what became of each, cancel and retry.

The routes that an application's key reaches. A message comes as JSON, as a list of up to 1,000 in JSON, or as it is
(message/rfc822, streamed, so that memory stays flat); it is answered once it is durable.
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query
from pydantic import Field, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from posthouse.api import openapi
from posthouse.api.bearer import Speaking, peer_of
from posthouse.api.handing_over import Choice, Desk
from posthouse.api.hub import Hub, Posthouse
from posthouse.api.message_input import EXAMPLE, MessageInput, Refusal, composed, read_messages
from posthouse.api.message_shapes import detail_shape, entry_shape, line_shape
from posthouse.api.parameters import (
    DEFAULT_LIMIT,
    Cursor,
    Identifier,
    Limit,
    Moment,
    Text,
    cursor_number,
    milliseconds,
    number_of,
    tenant_scope,
)
from posthouse.api.problems import shape_of, unsupported_type
from posthouse.api.reading import (
    MAX_MESSAGE_JSON_OCTETS,
    Body,
    is_json,
    media_type_of,
    read_octets,
    read_optional_body,
)
from posthouse.api.rendering import identifier_of, json_answer
from posthouse.api.rfc822 import read_message
from posthouse.errors import FieldProblem, InvalidInput, LocalFault, PosthouseError, SendingOff
from posthouse.model.actor import Actor, Permission
from posthouse.model.fields import IDENTIFIER_PATTERN
from posthouse.model.identifier import parse_id
from posthouse.model.message import RecipientState
from posthouse.store.messages import MessageFilter
from posthouse.submission import Handover, IdempotencyKey, call_digest

RFC822 = "message/rfc822"
# Below this much work composing is done on the spot: a thread would cost more.
_INLINE_MESSAGES, _INLINE_OCTETS = 20, 256 * 1024

STATES = tuple(state.name.lower() for state in RecipientState)
StateFilter = Literal[
    "waiting", "sending", "uncertain", "handed_over", "delivered", "bounced", "cancelled", "expired", "failed"
]
KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]+$",
        description="The same call under the same key is carried out once, and answered alike for 24 hours.",
    ),
]
Reference = Annotated[Text | None, Query(min_length=1, max_length=100)]
IdentifierFilter = Annotated[str | None, Query(pattern=IDENTIFIER_PATTERN)]

router = APIRouter(prefix="/messages", tags=["messages"], default_response_class=Response)


class WhichRecipients(Body):
    """Which recipients are meant; all of them unless said."""

    recipients: list[Annotated[str, Field(max_length=1000)]] | None = Field(
        None, min_length=1, max_length=1000, description="Addresses, or identifiers of recipients."
    )


_which: TypeAdapter[WhichRecipients] = TypeAdapter(WhichRecipients)
BODIES = (MessageInput, WhichRecipients)

_ACCEPTED = {
    "description": "Taken: it is durable. A list is answered in order, each entry with an `id` or its `problem`.",
    "content": {
        "application/json": {
            "schema": {"anyOf": [openapi.ref("Accepted"), openapi.ref("AcceptedList")]},
            "examples": {
                "one": {"value": {"id": "06qmk3c9v4g00"}},
                "list": {"value": {"items": [{"id": "06qmk3c9v4g00"}, {"id": "06qmk3c9v4g01"}]}},
            },
        }
    },
}
_REQUEST_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        openapi.ref("MessageInput"),
                        {"type": "array", "items": openapi.ref("MessageInput"), "minItems": 1, "maxItems": 1000},
                    ]
                },
                "examples": {"one": {"value": EXAMPLE}, "list": {"value": [EXAMPLE]}},
            },
            RFC822: {"schema": {"type": "string", "description": "The message as it is (RFC 5322)."}},
        },
    }
}


@router.post(
    "",
    status_code=202,
    responses={
        **openapi.answers({202: _ACCEPTED}, 408, 409, 413, 415, 507),
        422: {
            "description": "Fields cannot be taken; `errors` names them. A list of which nothing was taken is answered "
            "with a problem for each entry.",
            "content": {
                openapi.PROBLEM_TYPE: {"schema": openapi.ref("Problem")},
                "application/json": {"schema": openapi.ref("AcceptedList")},
            },
        },
    },
    openapi_extra=_REQUEST_BODY,
    operation_id="send_message",
    summary="Hand over a message, or up to 1,000",
    description="The query parameters go with message/rfc822 only; in JSON they are fields of the message.",
)
async def send(
    hub: Hub,
    actor: Speaking,
    request: Request,
    idempotency_key: KeyHeader = None,
    mail_from: Annotated[
        Text | None, Query(max_length=1000, description="The envelope sender; empty for none.")
    ] = None,
    to: Annotated[list[Text] | None, Query(description="A recipient of the envelope; repeated.")] = None,
    server: Reference = None,
    tenant: Reference = None,
    send_at: Annotated[Moment | None, Query()] = None,
    expires_at: Annotated[Moment | None, Query()] = None,
    priority: Annotated[Literal["high", "normal", "low"] | None, Query()] = None,
) -> Response:
    """Take one message or a list of them."""
    actor.require(Permission.SUBMIT)
    desk = Desk(hub, actor, peer_of(request))
    media_type = media_type_of(request)
    if media_type == RFC822:
        choice = Choice(server, tenant, send_at, expires_at, priority or "normal")
        return await _send_raw(desk, request, idempotency_key, mail_from, to or [], choice)
    if not is_json(media_type):
        raise unsupported_type(f"application/json or {RFC822}")
    if request.query_params:
        raise InvalidInput(
            [FieldProblem("query", "unknown-parameter", "Query parameters go with message/rfc822 only.")]
        )
    return await _send_json(desk, await read_octets(request, MAX_MESSAGE_JSON_OCTETS), idempotency_key)


async def _send_json(desk: Desk, octets: bytes, key: str | None) -> Response:
    desk.require_sending()
    if len(octets) <= _INLINE_OCTETS:
        entries, is_list = read_messages(octets)
    else:
        entries, is_list = await asyncio.to_thread(read_messages, octets)
    if len(entries) <= _INLINE_MESSAGES and len(octets) <= _INLINE_OCTETS:
        prepared = _prepare(desk, entries)
    else:
        prepared = await asyncio.to_thread(_prepare, desk, entries)
    if not is_list and isinstance(prepared[0], PosthouseError):
        raise prepared[0]
    answers = await _accept(desk, prepared, _idempotency(desk.actor, key, b"json", octets))
    return _one_answer(answers[0]) if not is_list else _list_answer(answers)


def _prepare(desk: Desk, entries: Sequence[MessageInput | Refusal]) -> list[Handover | PosthouseError]:
    """Compose each entry; one that cannot be taken stands as its error, and the others go on."""
    prepared: list[Handover | PosthouseError] = []
    for entry in entries:
        if isinstance(entry, Refusal):
            prepared.append(entry.error)
            continue
        try:
            made = composed(entry)
            choice = Choice(entry.server, entry.tenant, entry.send_at, entry.expires_at, entry.priority)
            prepared.append(desk.handover(made.envelope, made.content, choice))
        except PosthouseError as error:
            prepared.append(error)
    return prepared


async def _send_raw(
    desk: Desk, request: Request, key: str | None, mail_from: str | None, to: Sequence[str], choice: Choice
) -> Response:
    desk.require_sending()
    desk.resolve(choice)
    read = await read_message(
        request,
        lambda announced: desk.hub.submission.open_content(announced),
        limit=desk.hub.directory.installation.max_message_octets,
        mail_from=mail_from,
        recipients=to,
    )
    try:
        handover = desk.handover(read.envelope, read.content, choice)
    except PosthouseError:
        read.content.discard()
        raise
    idempotency = _idempotency(desk.actor, key, b"rfc822", request.scope.get("query_string", b""), read.digest)
    return _one_answer((await _accept(desk, [handover], idempotency))[0])


async def _accept(
    desk: Desk, prepared: Sequence[Handover | PosthouseError], idempotency: IdempotencyKey | None
) -> list[int | PosthouseError]:
    """Hand what could be composed to submission; an id or the error for each entry, in order."""
    good = [entry for entry in prepared if isinstance(entry, Handover)]
    if not good:
        return [entry for entry in prepared if isinstance(entry, PosthouseError)]
    taken = iter(await desk.hub.submission.accept(good, idempotency=idempotency))
    # An earlier answer under the same key may come from a time when other entries could be composed.
    changed = InvalidInput.of(
        "Idempotency-Key", "idempotency-mismatch", "The configuration changed since the first call."
    )
    return [entry if isinstance(entry, PosthouseError) else next(taken, changed) for entry in prepared]


def _idempotency(actor: Actor, key: str | None, *parts: bytes) -> IdempotencyKey | None:
    if key is None:
        return None
    # Keys of different speakers never meet, so that nobody learns another's answer.
    speaker = f"{actor.kind} {actor.id} {actor.tenant_id}".encode()
    scope = key if actor.application_id else f"{actor.kind}-{actor.id}-{key}"
    return IdempotencyKey(actor.application_id, scope, call_digest(speaker, *parts))


def _one_answer(answer: int | PosthouseError) -> Response:
    if isinstance(answer, PosthouseError):
        raise answer
    return json_answer({"id": identifier_of(answer)}, 202)


def _list_answer(answers: Sequence[int | PosthouseError]) -> Response:
    """202 where anything was taken, else 422. A fault of ours, or sending off, is a problem of the whole call."""
    errors = [answer for answer in answers if isinstance(answer, PosthouseError)]
    if len(errors) == len(answers):
        for error in errors:
            if isinstance(error, LocalFault | SendingOff):
                raise error
    items = [
        {"problem": shape_of(answer)} if isinstance(answer, PosthouseError) else {"id": identifier_of(answer)}
        for answer in answers
    ]
    return json_answer({"items": items}, 202 if len(errors) < len(answers) else 422)


# ---------------------------------------------------------------- reading


@router.get(
    "",
    responses=openapi.answers({200: openapi.json_of("MessagePage", "Messages, newest first.")}),
    operation_id="list_messages",
    summary="List messages",
    description="An application sees its own.",
)
async def list_messages(
    hub: Hub,
    actor: Speaking,
    state: Annotated[StateFilter | None, Query(description="That of the least finished recipient.")] = None,
    application: IdentifierFilter = None,
    server: IdentifierFilter = None,
    tenant: Annotated[
        str | None, Query(pattern=f"^global$|{IDENTIFIER_PATTERN}", description="A tenant's identifier, or `global`.")
    ] = None,
    address: Annotated[Text | None, Query(max_length=1000, description="Of the envelope, whole.")] = None,
    text: Annotated[Text | None, Query(max_length=200, description="Part of subject, From or Message-ID.")] = None,
    since: Annotated[Moment | None, Query(description="Taken at this time or later.")] = None,
    until: Annotated[Moment | None, Query(description="Taken before this time.")] = None,
    cursor: Cursor = None,
    limit: Limit = DEFAULT_LIMIT,
) -> Response:
    """A page of messages."""
    wanted = MessageFilter(
        tenant_id=tenant_scope(actor, tenant),
        application_id=_filter_number(application, "application"),
        server_id=_filter_number(server, "server"),
        state=RecipientState[state.upper()] if state else None,
        address=address,
        text=text,
        since_ms=milliseconds(since),
        until_ms=milliseconds(until),
    )
    rows = await hub.tracking.messages(actor, wanted, before=cursor_number(cursor), limit=limit + 1)
    items = [line_shape(row, hub.directory) for row in rows[:limit]]
    return json_answer({"items": items, "next": items[-1]["id"] if len(rows) > limit else None})


def _filter_number(identifier: str | None, field: str) -> int | None:
    if identifier is None:
        return None
    number = parse_id(identifier)
    if number is None:
        raise InvalidInput.of(field, "not-an-identifier", "This is not an identifier.")
    return number


@router.get(
    "/{id:identifier}",
    responses=openapi.answers({200: openapi.json_of("Message", "The message and its recipients.")}),
    operation_id="show_message",
    summary="Show a message",
)
async def show(hub: Hub, actor: Speaking, id: Identifier) -> Response:
    """One message."""
    return json_answer(await _shown(hub, actor, number_of(id, "message")))


async def _shown(hub: Posthouse, actor: Actor, number: int) -> dict[str, Any]:
    return detail_shape(await hub.tracking.show(actor, number), hub.directory)


@router.get(
    "/{id:identifier}/timeline",
    responses=openapi.answers({200: openapi.json_of("Timeline", "What happened, oldest first, and what comes next.")}),
    operation_id="show_timeline",
    summary="Show the timeline of a message",
)
async def timeline(hub: Hub, actor: Speaking, id: Identifier) -> Response:
    """The timeline in sentences."""
    entries = await hub.tracking.timeline(actor, number_of(id, "message"))
    return json_answer({"items": [entry_shape(entry) for entry in entries], "next": None})


@router.get(
    "/{id:identifier}/raw",
    responses=openapi.answers(
        {200: {"description": "The bytes as they were kept.", "content": {RFC822: {"schema": {"type": "string"}}}}}, 409
    ),
    operation_id="show_raw_message",
    summary="Get the bytes of a message",
)
async def raw(hub: Hub, actor: Speaking, id: Identifier) -> Response:
    """The bytes; never shown by a browser, always a file."""
    pieces = await hub.tracking.raw(actor, number_of(id, "message"))
    headers = {
        "Content-Disposition": f'attachment; filename="{id}.eml"',
        "Content-Security-Policy": "sandbox; default-src 'none'",
    }
    return StreamingResponse(pieces, media_type=RFC822, headers=headers)


# ---------------------------------------------------------------- deciding

_DECIDED = openapi.answers({200: openapi.json_of("Decision", "How many recipients changed.")}, 408, 409, 413, 415, 507)


@router.post(
    "/{id:identifier}/cancel",
    responses=_DECIDED,
    openapi_extra=openapi.body_of("WhichRecipients", required=False),
    operation_id="cancel_message",
    summary="Cancel what has not been sent",
)
async def cancel(hub: Hub, actor: Speaking, request: Request, id: Identifier) -> Response:
    """Cancel all or some recipients."""
    number = number_of(id, "message")
    recipients = await _which_recipients(hub, actor, request, number)
    changed = await hub.tracking.cancel(actor, number, recipients)
    return json_answer({"changed": changed, **(await _shown(hub, actor, number))})


@router.post(
    "/{id:identifier}/retry",
    responses=_DECIDED,
    openapi_extra=openapi.body_of("WhichRecipients", required=False),
    operation_id="retry_message",
    summary="Try again now",
)
async def retry(hub: Hub, actor: Speaking, request: Request, id: Identifier) -> Response:
    """Try all or some recipients again."""
    number = number_of(id, "message")
    recipients = await _which_recipients(hub, actor, request, number)
    changed = await hub.tracking.retry(actor, number, recipients)
    return json_answer({"changed": changed, **(await _shown(hub, actor, number))})


async def _which_recipients(hub: Posthouse, actor: Actor, request: Request, number: int) -> list[int] | None:
    """The numbers of the recipients that the body names, by address or identifier. Raises InvalidInput for others."""
    body = await read_optional_body(request, _which)
    if body.recipients is None:
        return None
    recipients = (await hub.tracking.show(actor, number)).recipients
    by_name = {identifier_of(r.id): r.id for r in recipients} | {r.address.lower(): r.id for r in recipients}
    chosen: list[int] = []
    for at, name in enumerate(body.recipients):
        found = by_name.get(name.lower())
        if found is None:
            raise InvalidInput.of(f"recipients.{at}", "no-such-recipient", "The message has no such recipient.")
        chosen.append(found)
    return chosen
