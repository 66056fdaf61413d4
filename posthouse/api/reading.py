"""How requests are read: bodies with a cap before anything is kept, strict JSON, no unknown query parameter.

Strict JSON (RFC 8259): a boolean is never a number, a text never a boolean, NaN is nothing. The same rules hold for the
typed bodies of this module and for the shapes that are handed to the jobs.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from fastapi.dependencies.models import Dependant
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from posthouse.api.problems import body_too_large, body_too_slow, malformed_json, unsupported_type
from posthouse.errors import FieldProblem, InvalidInput
from posthouse.model.problems import problems_of

T = TypeVar("T")

# design.md section 10, message API. Larger mail comes as message/rfc822 or by SMTP.
MAX_MESSAGE_JSON_OCTETS = 25 * 1024 * 1024
# Everything else: the largest field is a certificate bundle of 256 KiB.
MAX_JSON_OCTETS = 1024 * 1024
# A body that does not grow for this long is given up: an idle connection must not hold what it has sent so far.
BODY_PATIENCE_S = 60.0


class Body(BaseModel, strict=True, extra="forbid", frozen=True, hide_input_in_errors=True):
    """A body that the API itself defines, beside the values of `posthouse/model`."""


def media_type_of(request: Request) -> str:
    """The body's media type in lower case, without parameters; "" where none was named."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def is_json(media_type: str) -> bool:
    """Whether a media type is JSON; merge patches (RFC 7396) name their own."""
    return media_type in ("application/json", "application/merge-patch+json")


async def pieces(
    request: Request, limit: int, too_large: Callable[[int], Exception] = body_too_large
) -> AsyncIterator[bytes]:
    """The body, piece by piece. Refused with 413 before the first one where its length says so, else at the limit."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large(limit)
    stream = request.stream()
    size = 0
    while True:
        try:
            async with asyncio.timeout(BODY_PATIENCE_S):
                piece = await anext(stream, None)
        except TimeoutError:
            raise body_too_slow() from None
        if piece is None:
            return
        size += len(piece)
        if size > limit:
            raise too_large(limit)
        if piece:
            yield piece


async def read_octets(request: Request, limit: int) -> bytes:
    """The whole body, at most `limit` octets."""
    return b"".join([piece async for piece in pieces(request, limit)])


async def read_json_octets(request: Request, limit: int = MAX_JSON_OCTETS) -> bytes:
    """The body of a request that must be JSON, not yet parsed."""
    if not is_json(media_type_of(request)):
        raise unsupported_type("application/json")
    return await read_octets(request, limit)


async def read_shape(request: Request) -> dict[str, Any]:
    """A JSON object for a job that knows its fields. Raises 400 for what is no JSON, 422 for what is no object."""
    octets = await read_json_octets(request)
    try:
        shape = from_json(octets, allow_inf_nan=False)
    except ValueError:
        raise malformed_json() from None
    if not isinstance(shape, dict):
        raise InvalidInput.of("", "object-expected", "The body must be a JSON object.")
    return shape


async def read_body(request: Request, adapter: TypeAdapter[T], limit: int = MAX_JSON_OCTETS) -> T:
    """A typed body. Raises 400 for what is no JSON, 422 naming the fields."""
    return parse_json(await read_json_octets(request, limit), adapter)


async def read_optional_body(request: Request, adapter: TypeAdapter[T]) -> T:
    """A typed body whose fields are all optional, so that no body at all is as good as an empty object."""
    octets = await read_octets(request, MAX_JSON_OCTETS)
    if octets and not is_json(media_type_of(request)):
        raise unsupported_type("application/json")
    return parse_json(octets or b"{}", adapter)


def parse_json(octets: bytes, adapter: TypeAdapter[T]) -> T:
    """Strict JSON as a value. Raises 400 for what is no JSON, 422 naming the fields."""
    try:
        return adapter.validate_json(octets, strict=True)
    except ValidationError as error:
        raise refusal_of(error) from None


def refusal_of(error: ValidationError) -> Exception:
    """What a failed validation of a body is answered with."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    if any(detail["type"] == "json_invalid" for detail in details):
        return malformed_json()
    return InvalidInput(problems_of(error.errors()))


def refuse_unknown_parameters(request: Request) -> None:
    """Refuse unknown query parameters, and repeated ones: a misspelt filter must not widen what is asked for."""
    route = request.scope.get("route")
    dependant = getattr(route, "dependant", None)
    known = _query_parameters(dependant) if isinstance(dependant, Dependant) else {}
    given = [name for name, _ in request.query_params.multi_items()]
    if any(name not in known for name in given):
        offered = ", ".join(sorted(known)) or "none"
        sentence = f"There is an unknown query parameter. Known here: {offered}."
        raise InvalidInput([FieldProblem("query", "unknown-parameter", sentence)])
    for name in given:
        if not known[name] and given.count(name) > 1:
            raise InvalidInput.of(name, "repeated-parameter", "This parameter stands once.")


def _query_parameters(dependant: Dependant) -> dict[str, bool]:
    """The query parameters of a route, and whether each may be repeated."""
    found = {p.alias: "list[" in str(p.field_info.annotation) for p in dependant.query_params}
    for inner in dependant.dependencies:
        found |= _query_parameters(inner)
    return found
