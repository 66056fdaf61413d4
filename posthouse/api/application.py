"""The web face put together: REST under /api/v1, the pages, /healthz, /readyz and /metrics, behind one front.

`make_api` is called once for each way in. On TCP callers bring a token or a session; on the Unix socket and in memory
whoever can call is the `trusted_actor`.
"""

import re
from typing import Any

from fastapi import Depends, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from posthouse.api import (
    applications,
    audit,
    certificates,
    message_shapes,
    messages,
    nouns,
    openapi,
    overview,
    problems,
    queue,
    servers,
    settings,
    tenants,
    tokens,
)
from posthouse.api.bearer import Bearer
from posthouse.api.front import Faults, Front
from posthouse.api.hub import Posthouse
from posthouse.api.parameters import IdentifierConvertor
from posthouse.api.probes import Probes
from posthouse.api.reading import refuse_unknown_parameters
from posthouse.model.actor import Actor

PREFIX = "/api/v1"
API_VERSION = "1"

# Routers hold no state: what they work on is found in the application that includes them.
PARTS = (servers, tenants, applications, certificates, messages, queue, settings, tokens, audit, overview)


def make_api(posthouse: Posthouse, *, trusted_actor: Actor | None, pages: ASGIApp | None = None) -> ASGIApp:
    """The ASGI application of one way in. Where `trusted_actor` is given, every request is that actor's.

    `pages` answers everything that is neither REST nor a probe; without it there is nothing.
    """
    bearer = Bearer(posthouse.administration, posthouse.clock, trusted_actor)
    shell = Shell(
        rest=make_rest(posthouse, bearer),
        probes=Probes(posthouse, bearer),
        pages=pages,
    )
    return Front(
        shell,
        public_url=posthouse.settings.public_url,
        trusted_proxies=posthouse.settings.networks("trusted_proxy"),
        check_host=trusted_actor is None,
    )


class Shell:
    """Sends each request to its part by path."""

    def __init__(self, *, rest: ASGIApp, probes: Probes, pages: ASGIApp | None) -> None:
        self._rest = rest
        self._probes = probes
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        path: str = scope["path"]
        if path in self._probes.PATHS:
            response = await self._probes.answer(Request(scope, receive))
            await response(scope, receive, send)
        elif self._pages is None or path == "/api" or path.startswith("/api/"):
            await self._rest(scope, receive, send)
        else:
            await self._pages(scope, receive, send)


def make_rest(posthouse: Posthouse | None, bearer: Bearer | None) -> FastAPI:
    """The REST part. Without a program it can still describe itself."""
    application = FastAPI(
        title="Posthouse",
        version=API_VERSION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Nothing is traced, measured or sent anywhere by the framework, whatever stands in the environment.
        telemetry={
            "auto_configure": False, "tracing": False, "metrics": False, "logs": False, "operation_spans": False,
        },
        default_response_class=Response,
    )  # fmt: skip
    application.state.hub = posthouse
    application.state.bearer = bearer
    problems.install(application, lambda path: methods_of(application, path))
    application.add_middleware(Faults)
    for part in PARTS:
        application.include_router(part.router, prefix=PREFIX, dependencies=[Depends(refuse_unknown_parameters)])

    async def describe(_request: Request) -> Response:
        return JSONResponse(document(application))

    application.add_route(f"{PREFIX}/openapi.json", describe, include_in_schema=False)
    return application


def methods_of(application: FastAPI, path: str) -> list[str]:
    """The methods that a path offers (RFC 9110 section 10.2.1)."""
    found: set[str] = set()
    for template, operations in document(application)["paths"].items():
        if re.fullmatch(_pattern_of(template), path):
            found.update(method.upper() for method in operations)
    if "GET" in found or not found:
        found |= {"GET", "HEAD"}
    return sorted(found)


def _pattern_of(template: str) -> str:
    return re.sub(r"\{\w+\}", IdentifierConvertor.regex, template.replace("{version}", "[^/]+"))


def document(application: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made once for each application."""
    known = getattr(application.state, "document", None)
    if known is None:
        bodies = [body for part in (nouns, applications, messages, queue, tokens, overview) for body in part.BODIES]
        more: dict[str, openapi.Schema] = {}
        for part in (nouns, servers, applications, message_shapes, queue, settings, tokens, audit, overview):
            more.update(part.COMPONENTS)
        known = application.state.document = openapi.document(application, bodies, more)
    made: dict[str, Any] = known
    return made
