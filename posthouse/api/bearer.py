"""Who is speaking: a token of a person or program, an application's key, or a caller that is known by other means.

What the credential is worth is decided by `administration.authenticate_bearer`; here it is taken out of the request,
and guessing is slowed down per address (threat A17).
"""

import ipaddress
from typing import Annotated, Protocol

from fastapi import Depends
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection, Request

from posthouse.errors import NotAuthenticated, TooManyRequests
from posthouse.model.actor import Actor
from posthouse.model.limits import FailureThrottle

# Guessing 160 bits is hopeless; this keeps the log and the processor from being busy with it.
FAILURES, WINDOW_S = 20, 60.0
# One customer of an IPv6 provider has at least a /64: anything narrower would make the throttle free to go round.
IPV6_PREFIX = 64


class Authenticator(Protocol):
    """What is needed of the administration."""

    def authenticate_bearer(self, text: str) -> Actor:
        """The actor behind a token or an API key. Raises NotAuthenticated."""


class MonotonicClock(Protocol):
    """What is needed of the clock."""

    def monotonic(self) -> float:
        """Seconds that never step back."""


class Bearer:
    """Finds the actor of a request. Where `trusted` is given, every request is that actor's."""

    def __init__(self, authenticator: Authenticator, clock: MonotonicClock, trusted: Actor | None) -> None:
        self._authenticator = authenticator
        self._clock = clock
        self._throttle = FailureThrottle(limit=FAILURES, window_s=WINDOW_S)
        self.trusted = trusted

    def actor(self, request: HTTPConnection) -> Actor:
        """The actor. Raises NotAuthenticated, and TooManyRequests after repeated failures from one address."""
        if self.trusted is not None:
            return self.trusted
        credential = _credential(request)
        key = throttle_key(request)
        now = self._clock.monotonic()
        wait = self._throttle.retry_after_s(key, now)
        if wait:
            raise TooManyRequests(
                "Too many wrong credentials came from this address.", retry_after_s=int(wait) + 1,
                remedy="Wait, then use a valid token.",
            )  # fmt: skip
        try:
            actor = self._authenticator.authenticate_bearer(credential)
        except NotAuthenticated:
            self._throttle.failed(key, now)
            raise
        self._throttle.succeeded(key)
        return actor


def _credential(request: HTTPConnection) -> str:
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not credential.strip():
        raise NotAuthenticated(
            "No token came with the request.",
            remedy="Send the header field Authorization: Bearer, and a token or an API key.",
        )
    return credential.strip()


def peer_of(request: HTTPConnection) -> str:
    """The address that the request came from, as the listener sees it; "" on a Unix socket."""
    return request.client.host if request.client is not None else ""


def throttle_key(request: HTTPConnection) -> str:
    """What failures are counted under: the address, of IPv6 its first 64 bits."""
    peer = peer_of(request)
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return f"address {peer}"
    if isinstance(address, ipaddress.IPv6Address) and not address.ipv4_mapped:
        return f"address {ipaddress.ip_network((int(address) >> 64 << 64, IPV6_PREFIX))}"
    return f"address {getattr(address, 'ipv4_mapped', None) or address}"


_scheme = HTTPBearer(
    auto_error=False,
    bearerFormat="pht_... or phk_...",
    description="A token (`posthouse token create`), or an application's API key for the routes under messages.",
    scheme_name="bearer",
)


def _speaking(request: Request, _documented: Annotated[object, Depends(_scheme)]) -> Actor:
    bearer: Bearer = request.app.state.bearer
    return bearer.actor(request)


Speaking = Annotated[Actor, Depends(_speaking)]
