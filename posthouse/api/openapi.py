"""The OpenAPI 3.1 document: FastAPI lists paths and parameters; bodies and answers are described here, from the models.

Schemas of configured objects are derived from the values in `posthouse/model`, so that a field that is declared there
appears here with its label, help and constraints. docs/reference/openapi.json is the recorded document.
"""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from posthouse.model.application import Application
from posthouse.model.certificate import Certificate
from posthouse.model.fields import IDENTIFIER_PATTERN
from posthouse.model.installation import Installation
from posthouse.model.record import SECRET_NOT_SET, SECRET_SET
from posthouse.model.server import SERVER_KINDS
from posthouse.model.tenant import Tenant

Schema = dict[str, Any]
_REFERENCE = "#/components/schemas/"
PROBLEM_TYPE = "application/problem+json"

DESCRIPTION = """\
Servers, applications, tenants, messages and their queue. Every call carries `Authorization: Bearer` and a token
(`posthouse token create`); the routes under `messages` also take an application's API key.

Errors are problems of RFC 9457 with a stable `code`. Lists are paged by cursor: pass `next` as `cursor`. Times are UTC.
JSON is read strictly: unknown fields are refused, and a boolean is never a number.
"""

# What a status says, for each that a route may answer with.
PROBLEMS = {
    400: "The body is not JSON, or the request cannot be read.",
    401: "No valid credential came with the request.",
    403: "The credential does not reach so far.",
    404: "There is no such object, or none that the caller may see.",
    405: "The path is known, the method is not.",
    408: "The body did not come in time.",
    409: "The object's present state forbids this.",
    413: "The body or the message is too large.",
    415: "The body has a type that is not taken here.",
    421: "The request names a host that this installation does not answer for.",
    422: "Fields or parameters cannot be taken; `errors` names them.",
    429: "Too many wrong credentials, or another limit. Retry-After says when to come back.",
    500: "Posthouse failed at this request.",
    503: "Sending is off, or Posthouse cannot do its work at present.",
    507: "No space is left where the data lies.",
}
# What a route that reads a body and writes to the store may answer with besides.
WITH_BODY = (408, 413, 415, 507)
_ALWAYS = (400, 401, 403, 404, 421, 422, 429, 500, 503)


def ref(name: str) -> Schema:
    """A reference to a component."""
    return {"$ref": _REFERENCE + name}


def json_of(name: str, description: str, *, headers: Mapping[str, str] | None = None) -> Schema:
    """An answer whose JSON body is a component."""
    answer: Schema = {"description": description, "content": {"application/json": {"schema": ref(name)}}}
    if headers:
        answer["headers"] = {
            field: {"description": text, "schema": {"type": "string"}} for field, text in headers.items()
        }
    return answer


def answers(success: Mapping[int | str, Schema], *more: int) -> dict[int | str, Schema]:
    """The answers of a route: its own, the problems that any route may give, and `more` statuses."""
    documented: dict[int | str, Schema] = dict(success)
    for status in sorted({*_ALWAYS, *more}):
        documented[status] = problem_answer(status)
    return documented


def problem_answer(status: int) -> Schema:
    """The answer of any route with this status."""
    return {"description": PROBLEMS.get(status, ""), "content": {PROBLEM_TYPE: {"schema": ref("Problem")}}}


def body_of(name: str, *, example: Any = None, required: bool = True, media_types: Iterable[str] = ()) -> Schema:
    """The request body of a route, for `openapi_extra`."""
    media: Schema = {"schema": ref(name)}
    if example is not None:
        media["example"] = example
    types = ("application/json", *media_types)
    return {"requestBody": {"required": required, "content": {t: copy.deepcopy(media) for t in types}}}


# ---------------------------------------------------------------- components


def page_of(name: str) -> Schema:
    """A page of a list."""
    return _object(
        {
            "items": {"type": "array", "items": ref(name)},
            "next": {"type": ["string", "null"], "description": "The cursor of the next page; null on the last one."},
        }
    )


def _object(properties: Schema, *, description: str = "") -> Schema:
    schema: Schema = {"type": "object", "properties": properties, "required": list(properties)}
    if description:
        schema["description"] = description
    return schema


_TIME = {"type": "string", "format": "date-time", "examples": ["2026-11-20T14:05:00.000Z"]}
_TIME_OR_NULL = {"type": ["string", "null"], "format": "date-time"}
IDENTIFIER: Schema = {"type": "string", "pattern": IDENTIFIER_PATTERN, "examples": ["06qmk3c9v4g00"]}

_PROBLEM = {
    "type": "object",
    "description": "A problem (RFC 9457). It never repeats what was submitted.",
    "properties": {
        "type": {"type": "string", "description": "`/problems/` and the code."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened, in a sentence."},
        "code": {"type": "string", "description": "Stable; for programs."},
        "remedy": {"type": "string", "description": "What to do."},
        "errors": {
            "type": "array",
            "items": _object({"field": {"type": "string"}, "code": {"type": "string"}, "message": {"type": "string"}}),
        },
    },
    "required": ["type", "title", "status", "detail", "code"],
}

_STATE = _object(
    {
        "held": {"type": "string", "description": "Empty, `operator`, or the scope of the fault."},
        "cause": {"type": "string"},
        "detail": {"type": "string"},
        "since_at": _TIME_OR_NULL,
        "next_try_at": _TIME_OR_NULL,
        "failures": {"type": "integer"},
        "last_delivery_at": _TIME_OR_NULL,
    },
    description="Whether the server is held, since when and why.",
)

_OBJECT_FIELDS = {
    "id": IDENTIFIER,
    "version": {"type": "integer", "description": "Grows with each change."},
    "created_at": _TIME,
    "changed_at": _TIME,
}
_SERVER_FIELDS = {"state": ref("ServerState"), "tenant_name": {"type": ["string", "null"]}}


def components(bodies: Iterable[type[BaseModel]]) -> dict[str, Schema]:
    """All components: the values as they are accepted, patched and shown, and the `bodies` that routes define."""
    values: list[type[BaseModel]] = [*SERVER_KINDS.values(), Tenant, Application, Certificate, Installation]
    accepted = _definitions([*values, *bodies], "validation")
    shown = _definitions(values, "serialization")
    found: dict[str, Schema] = {"Problem": _PROBLEM, "ServerState": _STATE, **accepted}
    for model in values:
        name = model.__name__
        found[f"{name}Patch"] = _patch_of(accepted, name)
        if model is not Installation:
            more = _SERVER_FIELDS if model in SERVER_KINDS.values() else {}
            found[f"{name}Object"] = _shown_object(shown, name, more)
    found["InstallationObject"] = _inlined(shown, "Installation")
    # Settings are only ever patched.
    del found["Installation"]
    found["Server"] = _union([model.__name__ for model in SERVER_KINDS.values()])
    found["ServerPatch"] = {"anyOf": [ref(f"{model.__name__}Patch") for model in SERVER_KINDS.values()]}
    found["ServerObject"] = _union([f"{model.__name__}Object" for model in SERVER_KINDS.values()])
    for noun in ("Server", "Tenant", "Application", "Certificate"):
        found[f"{noun}Page"] = page_of(f"{noun}Object")
    return {name: found[name] for name in sorted(found)}


def _union(names: list[str]) -> Schema:
    mapping = dict(zip(SERVER_KINDS, (_REFERENCE + name for name in names), strict=True))
    return {"oneOf": [ref(name) for name in names], "discriminator": {"propertyName": "kind", "mapping": mapping}}


def _definitions(models: list[type[BaseModel]], mode: Any) -> dict[str, Schema]:
    _, schema = models_json_schema([(model, mode) for model in models], ref_template=_REFERENCE + "{model}")
    definitions: dict[str, Schema] = schema["$defs"]
    for definition in definitions.values():
        _without_hints(definition)
    return definitions


def _without_hints(schema: Any) -> None:
    """Drop what only our own faces read, and make the tag of a tagged value required: it chooses the member."""
    if isinstance(schema, dict):
        schema.pop("x-posthouse", None)
        for entry in schema.values():
            _without_hints(entry)
    elif isinstance(schema, list):
        for entry in schema:
            _without_hints(entry)


def _patch_of(accepted: Mapping[str, Schema], name: str) -> Schema:
    """A merge patch (RFC 7396): every field may be left out, and null sets it back to its default."""
    properties = {field: _loosened(schema) for field, schema in copy.deepcopy(accepted[name]["properties"]).items()}
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _loosened(schema: Schema) -> Schema:
    title: Schema = {key: schema[key] for key in ("title", "description") if key in schema}
    schema.pop("default", None)
    if "discriminator" in schema:
        # A part of a nested value: which member it belongs to is known only once it is merged.
        return {**title, "type": ["object", "null"]}
    return {**title, "anyOf": [schema, {"type": "null"}]}


def _inlined(shown: Mapping[str, Schema], name: str) -> Schema:
    """A definition with all references replaced by what they name, and secrets by how they are shown."""

    def walk(schema: Any) -> Any:
        if isinstance(schema, list):
            return [walk(entry) for entry in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            return walk(shown[schema["$ref"].removeprefix(_REFERENCE)])
        if schema.get("writeOnly"):
            return {"enum": [SECRET_SET, SECRET_NOT_SET]}
        return {key: walk(entry) for key, entry in schema.items() if key not in ("discriminator", "default")}

    inlined: Schema = walk(shown[name])
    inlined["required"] = list(inlined["properties"])
    inlined.pop("additionalProperties", None)
    return inlined


def _shown_object(shown: Mapping[str, Schema], name: str, more: Schema) -> Schema:
    schema = _inlined(shown, name)
    schema["title"] = f"{name}Object"
    schema["properties"] = {**_OBJECT_FIELDS, **schema["properties"], **more}
    schema["required"] = list(schema["properties"])
    return schema


# ---------------------------------------------------------------- the document


def document(application: FastAPI, bodies: Iterable[type[BaseModel]], more: Mapping[str, Schema]) -> Schema:
    """The whole document; `more` are the components that routes describe by hand."""
    made = get_openapi(
        title=application.title,
        version=application.version,
        openapi_version="3.1.0",
        description=DESCRIPTION,
        routes=application.routes,
    )
    made["components"]["schemas"] = {**components(bodies), **more}
    made["components"]["responses"] = {f"Problem{status}": problem_answer(status) for status in sorted(PROBLEMS)}
    for operations in made["paths"].values():
        for operation in operations.values():
            _share_problems(operation["responses"])
    return made


def _share_problems(responses: Schema) -> None:
    """The same problem is described once, and named by every route that may answer with it."""
    for status, answer in responses.items():
        if answer == problem_answer(int(status)):
            responses[status] = {"$ref": f"#/components/responses/Problem{status}"}
