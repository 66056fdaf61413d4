"""What stands before every route, pages and REST alike: the Host check, HEAD, header fields that protect readers.

A plain ASGI layer, because it must also see what no route sees: unknown paths, unknown methods and faults.
"""

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from posthouse.api.problems import answer, internal, wrong_host
from posthouse.model.application import Network

# Pages replace the policy by a wider one of their own; nothing else may load or run anything.
STRICT_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_FORWARDED_KEY = "posthouse.forwarded"
SECURITY_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": STRICT_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Not no-referrer: with that a browser sends "Origin: null" with our own forms, which tells nothing.
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Front:
    """Wraps the whole web face. `check_host` is off where the caller is known by other means (the Unix socket)."""

    def __init__(
        self,
        inner: ASGIApp,
        *,
        public_url: str | None,
        check_host: bool,
        trusted_proxies: Sequence[Network] = (),
    ) -> None:
        self._guarded = Faults(inner)
        self._trusted_proxies = tuple(trusted_proxies)
        self._public_host = (urlsplit(public_url).hostname or "") if public_url else ""
        self._check_host = check_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; `lifespan` is answered here, because starting and stopping is the business of `app.py`."""
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_head = scope["method"] == "HEAD"

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        if is_head:
            # RFC 9110 section 9.3.2: as GET, without the content.
            scope = {**scope, "method": "GET"}
        if self._trusted_proxies:
            scope = self._behind_proxy(scope)
        if self._check_host and not self.is_ours(Headers(scope=scope).get("host", "")):
            await answer(wrong_host())(scope, receive, send_protected)
            return
        await self._guarded(scope, receive, send_protected)

    def _behind_proxy(self, scope: Scope) -> Scope:
        """The request as the proxy saw it: the last address that no trusted proxy has, and whether it came by TLS."""
        client = scope.get("client")
        if client is None or not self._is_trusted(client[0]):
            return scope
        headers = Headers(scope=scope)
        hops = [hop.strip() for value in headers.getlist("x-forwarded-for") for hop in value.split(",")]
        while hops and self._is_trusted(hops[-1]):
            hops.pop()
        found: Scope = {**scope, _FORWARDED_KEY: True}
        if hops and _address(hops[-1]) is not None:
            found["client"] = (hops[-1], 0)
        if headers.get("x-forwarded-proto", "").strip().lower() in ("http", "https"):
            found["scheme"] = headers["x-forwarded-proto"].strip().lower()
        return found

    def _is_trusted(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(
            address.version == network.version and address in network for network in self._trusted_proxies
        )

    def is_ours(self, host: str) -> bool:
        """Whether the Host header field names the public URL's host, localhost or a loopback literal."""
        name = host_name(host)
        if name in ("localhost", self._public_host):
            return bool(name)
        try:
            return ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False


class Faults:
    """Answers what nobody has answered, and lets nothing out that tells a value: neither to the caller nor to a log."""

    def __init__(self, app: ASGIApp) -> None:
        self._inner = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        started = False

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._inner(scope, receive, watched_send)
            return
        except Exception as error:
            problem = internal(error)
        if started:
            # The rest of the answer cannot come: only a broken connection tells the caller so.
            raise ConnectionAbortedError("an answer could not be finished")
        await answer(problem)(scope, receive, send)


def was_forwarded(scope: Scope) -> bool:
    """Whether a proxy that we do not trust says that it speaks for somebody else."""
    if scope.get(_FORWARDED_KEY):
        return False
    headers = Headers(scope=scope)
    return any(name in headers for name in ("forwarded", "x-forwarded-for", "x-real-ip", "via"))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def host_name(host: str) -> str:
    """The name in a Host header field, without port and brackets, in lower case; "" where it is none."""
    if host.startswith("["):
        name, bracket, port = host[1:].partition("]")
        return name.lower() if bracket and (not port or _is_port(port)) else ""
    name, colon, port = host.partition(":")
    return name.lower() if not colon or _is_port(":" + port) else ""


def _is_port(text: str) -> bool:
    return text.startswith(":") and (len(text) == 1 or (text[1:].isascii() and text[1:].isdigit()))


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
