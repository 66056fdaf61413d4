"""The pages, for now: captured mail for whoever signed in by a one-time link, and how to get one for everybody else.

Rendered on the server and complete without script; the only thing a page loads is our own stylesheet. Mail is shown as
escaped text (threat A20). Every post is checked for where it comes from (threat A23).
"""

import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from posthouse.clock import Clock
from posthouse.console.excerpt import MAX_OCTETS, Excerpt, excerpt_of
from posthouse.console.words import duration, octets, point_in_time
from posthouse.errors import Conflict, NotAuthenticated, NotFound, PosthouseError
from posthouse.model.actor import Actor
from posthouse.model.directory import Directory
from posthouse.model.identifier import format_id, parse_id
from posthouse.model.message import RecipientState
from posthouse.sessions import SESSION_MS, Sessions, form_token
from posthouse.store.database import Database
from posthouse.tracking import Tracking

PAGE_ROWS = 50
# `__Host-` makes the browser refuse the cookie from other hosts and without TLS (RFC 6265bis); it needs Secure.
SECURE_COOKIE, PLAIN_COOKIE = "__Host-posthouse", "posthouse"
MAX_FORM_OCTETS = 16 * 1024
# form-action: the two forms of these pages. Nothing else may be loaded, framed or run.
POLICY = "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"

_ASSETS = Path(__file__).with_name("assets")


class Program(Protocol):
    """What the pages need of the composed program."""

    @property
    def database(self) -> Database:
        """The store, for sessions."""

    @property
    def clock(self) -> Clock:
        """The time."""

    @property
    def tracking(self) -> Tracking:
        """Shows messages."""

    @property
    def directory(self) -> Directory:
        """The present configuration."""


def make_console(program: Program) -> ASGIApp:
    """The ASGI application of the pages."""
    pages = _Pages(program)
    router = Router(
        [
            Route("/", pages.home),
            Route("/captured/{id}", pages.message),
            Route("/sign-in", pages.sign_in, methods=["GET", "POST"]),
            Route("/sign-out", pages.sign_out, methods=["POST"]),
            Route("/assets/posthouse.css", pages.stylesheet),
        ],
        redirect_slashes=False,
    )
    return _Console(router, pages)


class _Console:
    """The pages behind one handler of faults. Not `Starlette`, which passes a fault on after it has been answered."""

    def __init__(self, router: Router, pages: "_Pages") -> None:
        limited = RequestBodyLimitMiddleware(router, max_body_size=MAX_FORM_OCTETS)
        handlers = {HTTPException: pages.refuse, PosthouseError: pages.refuse}
        self._inner = ExceptionMiddleware(limited, handlers=handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. The router raises instead of answering where it finds `app`."""
        await self._inner({**scope, "app": self}, receive, send)


class _Pages:
    """One method for each page."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._sessions = Sessions(program.database, program.clock)
        self._stylesheet = (_ASSETS / "posthouse.css").read_bytes()
        self._templates = Environment(
            loader=PackageLoader("posthouse.console"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(octets=octets, point_in_time=point_in_time)

    # ------------------------------------------------------------ pages

    async def home(self, request: Request) -> Response:
        """Captured mail, newest first; without a session only how to get a link."""
        actor = await self._actor(request)
        if actor is None:
            return self._page(request, "welcome.html")
        before = parse_id(request.query_params.get("before", ""))
        rows = await self._program.tracking.captured(actor, before=before, limit=PAGE_ROWS + 1)
        shown = rows[:PAGE_ROWS]
        return self._page(
            request,
            "captured.html",
            actor=actor,
            rows=[self._row(row) for row in shown],
            first=before is None,
            older=format_id(shown[-1].id) if len(rows) > PAGE_ROWS else None,
        )

    async def message(self, request: Request) -> Response:
        """One captured message: header, text and source."""
        actor = await self._actor(request)
        if actor is None:
            return RedirectResponse("/", status_code=303)
        number = parse_id(request.path_params["id"])
        if number is None:
            raise NotFound("There is no such message.")
        shown = await self._program.tracking.show(actor, number)
        excerpt = await self._excerpt(actor, number)
        return self._page(
            request,
            "message.html",
            actor=actor,
            row=self._row(shown.row),
            recipients=[(r.address, RecipientState(r.state).name.lower()) for r in shown.recipients],
            timeline=await self._program.tracking.timeline(actor, number),
            excerpt=excerpt,
        )

    async def sign_in(self, request: Request) -> Response:
        """GET shows one button; only its POST uses the link up, so that no prefetch does (threat A24)."""
        if request.method != "POST":
            link = request.query_params.get("link", "")
            return self._page(request, "sign_in.html", link=link)
        _refuse_foreign(request)
        form = await _form(request)
        opened = await self._sessions.use_link(form.get("link", ""))
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(
            _cookie_name(request), opened.token, max_age=SESSION_MS // 1000, path="/", httponly=True, samesite="lax",
            secure=_is_secure(request),
        )  # fmt: skip
        return response

    async def sign_out(self, request: Request) -> Response:
        """End the session, here and in the browser."""
        _refuse_foreign(request)
        token = request.cookies.get(_cookie_name(request), "")
        form = await _form(request)
        if not hmac.compare_digest(form.get("token", "").encode(), form_token(token).encode()):
            raise NotAuthenticated("This form is not of this session.", remedy="Open the page again.")
        await self._sessions.end(token)
        response = RedirectResponse("/", status_code=303)
        response.delete_cookie(
            _cookie_name(request), path="/", httponly=True, samesite="lax", secure=_is_secure(request)
        )
        return response

    async def stylesheet(self, _request: Request) -> Response:
        """The stylesheet."""
        return Response(self._stylesheet, media_type="text/css", headers={"Cache-Control": "no-cache"})

    async def refuse(self, request: Request, error: Exception) -> Response:
        """A page that says what went wrong and what to do."""
        status, title, detail, remedy = _explained(error)
        headers = dict(getattr(error, "headers", None) or {})
        return self._page(request, "refused.html", status, headers, title=title, detail=detail, remedy=remedy)

    # ------------------------------------------------------------ parts

    async def _actor(self, request: Request) -> Actor | None:
        return await self._sessions.actor(request.cookies.get(_cookie_name(request), ""))

    def _row(self, row: Any) -> Mapping[str, Any]:
        now_ms = self._program.clock.now_ms()
        return {
            "id": format_id(row.id),
            "received_ms": row.received_ms,
            "age": duration(now_ms - row.received_ms),
            "from": row.header_from or row.mail_from,
            "mail_from": row.mail_from,
            "subject": row.subject,
            "size": row.size,
        }

    async def _excerpt(self, actor: Actor, number: int) -> Excerpt | None:
        try:
            pieces = await self._program.tracking.raw(actor, number)
        except Conflict:
            return None
        raw = bytearray()
        async for piece in pieces:
            raw += piece
            if len(raw) > MAX_OCTETS:
                break
        return excerpt_of(bytes(raw), is_cut=len(raw) > MAX_OCTETS)

    def _page(
        self,
        request: Request,
        template: str,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
        **values: Any,
    ) -> Response:
        token = request.cookies.get(_cookie_name(request), "")
        values = {"actor": None, "form_token": form_token(token), **values}
        text = self._templates.get_template(template).render(**values)
        return HTMLResponse(text, status, {"Content-Security-Policy": POLICY, **(headers or {})})


def _is_secure(request: Request) -> bool:
    return request.url.scheme == "https"


def _cookie_name(request: Request) -> str:
    return SECURE_COOKIE if _is_secure(request) else PLAIN_COOKIE


def _refuse_foreign(request: Request) -> None:
    """Refuse a post that another site made the browser send. Raises NotAuthenticated."""
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        raise _foreign()
    if origin is not None and (origin == "null" or urlsplit(origin).netloc != request.headers.get("host")):
        raise _foreign()


def _foreign() -> NotAuthenticated:
    return NotAuthenticated(
        "The request came from another site.", remedy="Open the page here, and press the button there."
    )


async def _form(request: Request) -> dict[str, str]:
    """The fields of a posted form; the first of each name."""
    body = (await request.body()).decode("utf-8", "replace")
    return {name: values[0] for name, values in parse_qs(body, max_num_fields=20).items()}


def _explained(error: Exception) -> tuple[int, str, str, str]:
    if isinstance(error, PosthouseError):
        return error.http_status, error.title, error.detail, error.remedy
    if isinstance(error, HTTPException) and error.status_code in (404, 405):
        return error.status_code, "Not found", "There is no such page.", ""
    if isinstance(error, HTTPException):
        return error.status_code, "The request cannot be read", "The request cannot be read.", ""
    raise error
