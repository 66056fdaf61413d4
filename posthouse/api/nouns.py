"""The routes that all configured nouns share: list, add, show, replace, change, delete, history, restore.

`noun_router` makes them once for servers, tenants, applications and certificates; what only one noun has is in that
noun's own module. A route parses, asks the administration, and renders.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import Field, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from posthouse.api import openapi
from posthouse.api.bearer import Speaking
from posthouse.api.hub import Hub, Posthouse
from posthouse.api.message_shapes import state_shape
from posthouse.api.parameters import (
    DEFAULT_LIMIT,
    Cursor,
    Flag,
    Identifier,
    IfMatch,
    Limit,
    Text,
    Version,
    cursor_number,
    number_of,
    tenant_scope,
    version_of,
)
from posthouse.api.reading import Body, read_body, read_shape
from posthouse.api.rendering import etag_of, identifier_of, json_answer, object_shape, time_of
from posthouse.errors import InvalidInput
from posthouse.model.actor import Actor, Permission
from posthouse.model.fields import IDENTIFIER_PATTERN
from posthouse.model.identifier import parse_id
from posthouse.model.record import Record

MERGE_PATCH = "application/merge-patch+json"

TenantFilter = Annotated[
    str | None,
    Query(pattern=f"^global$|{IDENTIFIER_PATTERN}", description="A tenant's identifier, or `global`."),
]
NameFilter = Annotated[Text | None, Query(max_length=100, description="Exactly this name.")]
SearchFilter = Annotated[
    Text | None, Query(max_length=200, description="Part of the name or the comments, in any case.")
]
EnabledFilter = Annotated[Flag | None, Query(description="Only those that are, or are not, enabled.")]
Successor = Annotated[
    str | None,
    Query(pattern=IDENTIFIER_PATTERN, description="The server that becomes the default in place of the one concerned."),
]
Forget = Annotated[
    Flag, Query(description="Drop replaced secrets at once, instead of keeping them sealed for 30 days.")
]


class DeleteMany(Body):
    """Several objects at once: all of them or none."""

    ids: list[Annotated[str, Field(pattern=IDENTIFIER_PATTERN)]] = Field(min_length=1, max_length=1000)
    successor: Annotated[str, Field(pattern=IDENTIFIER_PATTERN)] | None = None


class Restore(Body):
    """An earlier version to go back to, with the secrets that are no longer there."""

    version: int = Field(ge=1, le=2**31 - 1)
    secrets: dict[Annotated[str, Field(max_length=100)], Annotated[str, Field(max_length=1024)]] = Field(
        default_factory=dict, description="By dotted field name, such as auth.password."
    )


_delete_many: TypeAdapter[DeleteMany] = TypeAdapter(DeleteMany)
_restore: TypeAdapter[Restore] = TypeAdapter(Restore)
BODIES = (DeleteMany, Restore)

COMPONENTS: dict[str, openapi.Schema] = {
    "Deletion": {
        "type": "object",
        "properties": {
            "deleted": {"type": "array", "items": openapi.IDENTIFIER},
            "warnings": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["deleted", "warnings"],
    },
    "HistoryPage": {
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": openapi.ref("HistoryEntry")},
            "next": {"type": "null"},
        },
        "required": ["items", "next"],
    },
    "HistoryEntry": {
        "type": "object",
        "properties": {
            "version": {"type": "integer"},
            "at": {"type": "string", "format": "date-time"},
            "actor": {"type": "string"},
            "changes": {
                "type": "object",
                "description": "Field -> [before, after]; a secret stands as `changed`.",
                "additionalProperties": True,
            },
        },
        "required": ["version", "at", "actor", "changes"],
    },
    "EarlierVersion": {
        "type": "object",
        "description": "The fields as they were; secrets as `set` or `not set`.",
        "properties": {"version": {"type": "integer"}},
        "required": ["version"],
        "additionalProperties": True,
    },
}


@dataclass(frozen=True, slots=True)
class Noun:
    """What the routes of one noun have to know."""

    word: str
    collection: str
    # The component of the value; with Object and Page behind it those of the answers.
    component: str
    example: Any
    has_owner: bool = True

    def records(self, hub: Posthouse) -> list[Record[Any]]:
        """All objects of this noun, oldest first."""
        found = getattr(hub.directory, self.collection)
        return [found[number] for number in sorted(found)]

    def owner_of(self, record: Record[Any]) -> int:
        """Whose the object is; a tenant belongs to itself."""
        return record.tenant_id if self.has_owner else record.id


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a list is narrowed to. None: not narrowed."""

    tenant_id: int | None = None
    name: str | None = None
    search: str | None = None
    enabled: bool | None = None
    kind: str | None = None

    def takes(self, record: Record[Any], owner: int) -> bool:
        """Whether the object belongs into the list."""
        value = record.value
        return (
            self.tenant_id in (None, owner)
            and self.name in (None, record.name)
            and self.enabled in (None, getattr(value, "enabled", None))
            and self.kind in (None, getattr(value, "kind", None))
            and (self.search is None or self.search.casefold() in f"{record.name}\n{value.comments}".casefold())
        )


def show_record(hub: Posthouse, actor: Actor, noun: Noun, identifier: str) -> Record[Any]:
    """An object that the actor may see. Raises NotFound, NotPermitted."""
    return hub.administration.show(actor, noun.word, number_of(identifier, noun.word))


def shown(hub: Posthouse, noun: Noun, record: Record[Any]) -> dict[str, Any]:
    """The object as every answer shows it: servers with their state and the name of their tenant."""
    shape = object_shape(record)
    if noun.word == "server":
        tenant = hub.directory.tenants.get(record.tenant_id)
        shape["state"] = state_shape(hub.delivery.state_of(record.id))
        shape["tenant_name"] = tenant.name if tenant is not None else None
    return shape


def noun_router(noun: Noun) -> APIRouter:
    """The routes of one noun."""
    router = APIRouter(prefix=f"/{noun.collection}", tags=[noun.collection], default_response_class=Response)
    add_reading(router, noun)
    add_writing(router, noun)
    add_history(router, noun)
    return router


def add_reading(router: APIRouter, noun: Noun) -> None:
    """List and show."""
    component = noun.component

    def answer_list(hub: Posthouse, actor: Actor, wanted: Wanted, cursor: str | None, limit: int) -> Response:
        actor.require(Permission.READ)
        after = cursor_number(cursor) or 0
        found = [
            record
            for record in noun.records(hub)
            if record.id > after
            and actor.reaches(noun.owner_of(record))
            and wanted.takes(record, noun.owner_of(record))
        ]
        items = [shown(hub, noun, record) for record in found[:limit]]
        return json_answer({"items": items, "next": items[-1]["id"] if len(found) > limit else None})

    documented = openapi.answers({200: openapi.json_of(f"{component}Page", "A page of the list, oldest first.")})
    name = f"list_{noun.collection}"
    if noun.word == "server":

        @router.get("", responses=documented, operation_id=name, summary="List servers")
        async def list_servers(
            hub: Hub,
            actor: Speaking,
            tenant: TenantFilter = None,
            name: NameFilter = None,
            search: SearchFilter = None,
            enabled: EnabledFilter = None,
            kind: Annotated[Text | None, Query(max_length=40, description="smtp, capture ...")] = None,
            cursor: Cursor = None,
            limit: Limit = DEFAULT_LIMIT,
        ) -> Response:
            wanted = Wanted(tenant_scope(actor, tenant), name, search, enabled, kind)
            return answer_list(hub, actor, wanted, cursor, limit)

    elif noun.has_owner:

        @router.get("", responses=documented, operation_id=name, summary=f"List {noun.collection}")
        async def list_owned(
            hub: Hub,
            actor: Speaking,
            tenant: TenantFilter = None,
            name: NameFilter = None,
            search: SearchFilter = None,
            enabled: EnabledFilter = None,
            cursor: Cursor = None,
            limit: Limit = DEFAULT_LIMIT,
        ) -> Response:
            wanted = Wanted(tenant_scope(actor, tenant), name, search, enabled, None)
            return answer_list(hub, actor, wanted, cursor, limit)

    else:

        @router.get("", responses=documented, operation_id=name, summary=f"List {noun.collection}")
        async def list_all(
            hub: Hub,
            actor: Speaking,
            name: NameFilter = None,
            search: SearchFilter = None,
            enabled: EnabledFilter = None,
            cursor: Cursor = None,
            limit: Limit = DEFAULT_LIMIT,
        ) -> Response:
            return answer_list(hub, actor, Wanted(None, name, search, enabled, None), cursor, limit)

    @router.get(
        "/{id:identifier}",
        responses=openapi.answers({200: openapi.json_of(f"{component}Object", "The object.", headers=_ETAG)}),
        operation_id=f"show_{noun.word}",
        summary=f"Show one {noun.word}",
    )
    async def show(hub: Hub, actor: Speaking, id: Identifier) -> Response:
        record = show_record(hub, actor, noun, id)
        return json_answer(shown(hub, noun, record), headers=etag_of(record))


_ETAG = {"ETag": "The version, in quotes."}


def add_writing(router: APIRouter, noun: Noun) -> None:
    """Replace, change and delete. Adding is here too, except where an answer shows more than the object."""
    component, word = noun.component, noun.word
    changed = openapi.answers(
        {200: openapi.json_of(f"{component}Object", "The object.", headers=_ETAG)}, 408, 409, 413, 415, 507
    )

    if word != "application":

        @router.post(
            "",
            status_code=201,
            responses=openapi.answers(
                {201: openapi.json_of(f"{component}Object", "Added.", headers={**_ETAG, "Location": "Where it is."})},
                408, 409, 413, 415, 507,
            ),
            openapi_extra=openapi.body_of(component, example=noun.example),
            operation_id=f"add_{word}",
            summary=f"Add a {word}",
        )  # fmt: skip
        async def add(hub: Hub, actor: Speaking, request: Request) -> Response:
            record = await hub.administration.create(actor, word, await read_shape(request))
            return created(noun, record, shown(hub, noun, record))

    @router.put(
        "/{id:identifier}",
        responses=changed,
        openapi_extra=openapi.body_of(component, example=noun.example),
        operation_id=f"replace_{word}",
        summary=f"Replace a {word}",
        description="A secret that is left out is kept, but only while the fields that bind it stay as they are.",
    )
    async def replace(
        hub: Hub, actor: Speaking, request: Request, id: Identifier, if_match: IfMatch = None, forget: Forget = False
    ) -> Response:
        record = await hub.administration.replace(
            actor, word, number_of(id, word), await read_shape(request),
            expected_version=version_of(if_match), forget=forget,
        )  # fmt: skip
        return json_answer(shown(hub, noun, record), headers=etag_of(record))

    @router.patch(
        "/{id:identifier}",
        responses=changed,
        openapi_extra=openapi.body_of(f"{component}Patch", media_types=[MERGE_PATCH]),
        operation_id=f"change_{word}",
        summary=f"Change some fields of a {word}",
        description="A merge patch (RFC 7396): what is left out stays, null sets a field back to its default.",
    )
    async def change(
        hub: Hub, actor: Speaking, request: Request, id: Identifier, if_match: IfMatch = None, forget: Forget = False
    ) -> Response:
        record = await hub.administration.patch(
            actor, word, number_of(id, word), await read_shape(request),
            expected_version=version_of(if_match), forget=forget,
        )  # fmt: skip
        return json_answer(shown(hub, noun, record), headers=etag_of(record))

    deletion = openapi.answers({200: openapi.json_of("Deletion", "Deleted.")}, 408, 409, 413, 415, 507)

    @router.delete("/{id:identifier}", responses=deletion, operation_id=f"delete_{word}", summary=f"Delete a {word}")
    async def delete(hub: Hub, actor: Speaking, id: Identifier, successor: Successor = None) -> Response:
        return await _delete(hub, actor, noun, [id], successor)

    @router.post(
        "/delete",
        responses=deletion,
        openapi_extra=openapi.body_of("DeleteMany"),
        operation_id=f"delete_{noun.collection}",
        summary=f"Delete several {noun.collection}",
        description="All of them or none.",
    )
    async def delete_many(hub: Hub, actor: Speaking, request: Request) -> Response:
        body = await read_body(request, _delete_many)
        return await _delete(hub, actor, noun, body.ids, body.successor)


def created(noun: Noun, record: Record[Any], shape: dict[str, Any]) -> Response:
    """201 with the object and where it is."""
    return json_answer(shape, 201, {**etag_of(record), "Location": f"/api/v1/{noun.collection}/{shape['id']}"})


async def _delete(hub: Posthouse, actor: Actor, noun: Noun, ids: list[str], successor: str | None) -> Response:
    numbers = [number_of(identifier, noun.word) for identifier in ids]
    deletion = await hub.administration.delete(actor, noun.word, numbers, successor=successor_number(successor))
    return json_answer(
        {"deleted": [identifier_of(number) for number in deletion.deleted], "warnings": list(deletion.warnings)}
    )


def successor_number(successor: str | None) -> int | None:
    """The number of the server that becomes the default. Raises InvalidInput for what is no identifier."""
    if successor is None:
        return None
    number = parse_id(successor)
    if number is None:
        raise InvalidInput.of("successor", "not-an-identifier", "This is not an identifier of a server.")
    return number


def add_history(router: APIRouter, noun: Noun) -> None:
    """Versions of an object, and going back to one."""
    word = noun.word

    @router.get(
        "/{id:identifier}/history",
        responses=openapi.answers({200: openapi.json_of("HistoryPage", "All versions, newest first.")}),
        operation_id=f"list_{word}_versions",
        summary=f"List the versions of a {word}",
    )
    async def history(hub: Hub, actor: Speaking, id: Identifier) -> Response:
        versions = await hub.administration.history(actor, word, number_of(id, word))
        items = [
            {"version": v.version, "at": time_of(v.at_ms), "actor": v.actor, "changes": dict(v.changes)}
            for v in versions
        ]
        return json_answer({"items": items, "next": None})

    @router.get(
        "/{id:identifier}/history/{version}",
        responses=openapi.answers({200: openapi.json_of("EarlierVersion", "The version.")}),
        operation_id=f"show_{word}_version",
        summary=f"Show a version of a {word}",
    )
    async def version(hub: Hub, actor: Speaking, id: Identifier, version: Version) -> Response:
        return json_answer(await hub.administration.version(actor, word, number_of(id, word), version))

    @router.post(
        "/{id:identifier}/restore",
        responses=openapi.answers(
            {200: openapi.json_of(f"{noun.component}Object", "Restored.", headers=_ETAG)}, 408, 409, 413, 415, 507
        ),
        openapi_extra=openapi.body_of("Restore", example={"version": 1}),
        operation_id=f"restore_{word}",
        summary=f"Go back to a version of a {word}",
    )
    async def restore(hub: Hub, actor: Speaking, request: Request, id: Identifier) -> Response:
        number = number_of(id, word)
        body = await read_body(request, _restore)
        record = await hub.administration.restore(actor, word, number, body.version, body.secrets)
        return json_answer(shown(hub, noun, record), headers=etag_of(record))
