"""Every answer that is not a success: an RFC 9457 problem, made here and nowhere else in the web faces.

Our own errors bring status, code and sentences with them (`posthouse/errors.py`); what the framework and pydantic raise
is translated first. No problem repeats what was submitted: not a value, not a body, not a header.
"""

import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from posthouse.api.rendering import to_json
from posthouse.errors import FieldProblem, InvalidInput, LocalFault, NotAuthenticated, PosthouseError, TooManyRequests
from posthouse.model.problems import problems_of

log = structlog.get_logger()

PROBLEM_TYPE = "application/problem+json"
# When to come back after a fault of our own; the store tries again four times a second.
LOCAL_FAULT_RETRY_S = 5


class WebRefusal(PosthouseError):
    """The request is refused by the rules of HTTP, before any job is asked."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        *,
        remedy: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail, remedy=remedy, code=code)
        self.http_status = status
        self.title = title
        self.headers = dict(headers or {})


def malformed_json() -> WebRefusal:
    """The body is not JSON (RFC 8259)."""
    return WebRefusal(400, "malformed-json", "The body is not JSON", "The body of the request cannot be read as JSON.")


def unsupported_type(expected: str) -> WebRefusal:
    """The body's media type is not one that the route takes."""
    return WebRefusal(
        415, "unsupported-media-type", "The body has another type", f"This takes {expected}.",
        remedy="Name the type in the header field Content-Type.",
    )  # fmt: skip


def body_too_large(limit: int) -> WebRefusal:
    """The body is above what is read at all. The connection ends with the answer: the rest of the body is not read."""
    return WebRefusal(
        413, "body-too-large", "The body is too large", f"At most {limit} octets are read here.",
        remedy="Send a large message as message/rfc822, or by SMTP.", headers={"Connection": "close"},
    )  # fmt: skip


def body_too_slow() -> WebRefusal:
    """The body stopped coming."""
    return WebRefusal(
        408, "body-too-slow", "The body did not come", "The rest of the body did not come in time.",
        headers={"Connection": "close"},
    )  # fmt: skip


def wrong_host() -> WebRefusal:
    """The Host header field names somebody else (design.md section 10)."""
    return WebRefusal(
        421, "misdirected-request", "This is not the host that was asked for",
        "The request names a host that this installation does not answer for.",
        remedy="Use the public URL, or start Posthouse with --public-url.",
    )  # fmt: skip


def method_not_allowed(headers: Mapping[str, str]) -> WebRefusal:
    """The path is known, the method is not; `Allow` says which are."""
    return WebRefusal(
        405, "method-not-allowed", "This method is not offered here", "The path is known, the method is not.",
        headers=headers,
    )  # fmt: skip


def shape_of(error: PosthouseError) -> dict[str, Any]:
    """The problem's members (RFC 9457 section 3). `code` is stable; `errors` names the fields concerned."""
    shape: dict[str, Any] = {
        "type": f"/problems/{error.code}",
        "title": error.title,
        "status": error.http_status,
        "detail": error.detail,
        "code": error.code,
    }
    if error.remedy:
        shape["remedy"] = error.remedy
    fields = _fields_of(error)
    if fields:
        shape["errors"] = [{"field": f.field, "code": f.code, "message": f.message} for f in fields]
    return shape


def _fields_of(error: PosthouseError) -> tuple[FieldProblem, ...]:
    if isinstance(error, InvalidInput):
        return error.problems
    if error.field:
        return (FieldProblem(error.field, error.code, error.detail),)
    return ()


def answer(error: PosthouseError) -> Response:
    """The whole answer."""
    return Response(
        to_json(shape_of(error)), status_code=error.http_status, headers=_headers_of(error), media_type=PROBLEM_TYPE
    )


def _headers_of(error: PosthouseError) -> dict[str, str]:
    if isinstance(error, WebRefusal):
        return error.headers
    if isinstance(error, NotAuthenticated):
        return {"WWW-Authenticate": 'Bearer realm="Posthouse"'}
    if isinstance(error, TooManyRequests):
        return {"Retry-After": str(max(1, error.retry_after_s))}
    if isinstance(error, LocalFault):
        return {"Retry-After": str(LOCAL_FAULT_RETRY_S)}
    return {}


def of_http(error: HTTPException) -> PosthouseError:
    """What the router raised: an unknown path, or a request that it cannot read."""
    if error.status_code == 404:
        return WebRefusal(404, "not-found", "Not found", "There is nothing at this path.")
    return WebRefusal(
        error.status_code, "bad-request", "The request cannot be read", "The request cannot be read.",
        headers=dict(error.headers or {}),
    )  # fmt: skip


def internal(error: BaseException) -> PosthouseError:
    """A fault of the program. The log gets where, never the error's own words: they may hold a submitted value."""
    frames = traceback.extract_tb(error.__traceback__)[-12:]
    log.error(
        "web: a request failed",
        error=f"{type(error).__module__}.{type(error).__name__}",
        at=[f"{frame.filename.rpartition('/posthouse/')[2]}:{frame.lineno} {frame.name}" for frame in frames],
    )
    return PosthouseError("Posthouse failed at this request. The log of the server says where.", code="internal-error")


def of_exception(error: Exception) -> PosthouseError:
    """Any exception as one of ours."""
    if isinstance(error, PosthouseError):
        return error
    if isinstance(error, RequestValidationError | ValidationError):
        return InvalidInput(problems_of(error.errors()))
    if isinstance(error, HTTPException):
        return of_http(error)
    if isinstance(error, ClientDisconnect):
        return body_too_slow()
    return internal(error)


def install(application: FastAPI, offered: Callable[[str], Iterable[str]]) -> None:
    """Replace every answer that the framework would make of an exception. `offered` knows the methods of a path."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 405:
            return answer(method_not_allowed({"Allow": ", ".join(offered(request.url.path))}))
        return answer(of_exception(error))

    for kind in (PosthouseError, RequestValidationError, ValidationError, HTTPException, ClientDisconnect):
        application.add_exception_handler(kind, handle)
