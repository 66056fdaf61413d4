"""Who is in the browser: one-time sign-in links, and the sessions that they open.

A link and a session cookie are 256 random bits each; the store keeps their SHA-256 only, so that a stolen database
opens nothing (threat A13). Sessions live on the server and can be ended there (threat A23).
"""

import base64
import hashlib
import json
import secrets
from dataclasses import dataclass

from posthouse.clock import Clock
from posthouse.errors import NotAuthenticated, NotPermitted
from posthouse.model.actor import Actor, Permission, Role
from posthouse.store import sessions
from posthouse.store.database import Database

# Threat A24: one use, at most 24 hours.
LINK_MS = 3_600_000
SESSION_MS = 12 * 3_600_000
TOKEN_OCTETS = 32


@dataclass(frozen=True, slots=True)
class Opened:
    """A session that was just opened: the token for the cookie, and whose it is."""

    token: str
    actor: Actor


class Sessions:
    """Links and sessions of one installation."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def make_link(self, actor: Actor) -> tuple[str, int]:
        """A one-time link's token, and when it runs out (milliseconds). It signs in with the role of `actor`.

        Raises NotPermitted for those who may not look at anything.
        """
        actor.require(Permission.READ)
        if actor.application_id:
            raise NotPermitted("An application has no pages.")
        token = _new_token()
        expires_ms = self._clock.now_ms() + LINK_MS
        await self._keep(token, sessions.LINK, actor, expires_ms)
        return token, expires_ms

    async def use_link(self, token: str) -> Opened:
        """Use a link up and open a session. Raises NotAuthenticated for a link that is unknown, used or too old."""
        digest = _digest(token)
        now_ms = self._clock.now_ms()
        row = await self._database.write(lambda c: sessions.take(c, digest, sessions.LINK, now_ms))
        if row is None:
            raise NotAuthenticated(
                "This link was used before, or it is too old.", remedy="Make a new one: posthouse user link"
            )
        actor = _actor(row.actor, row.role)
        opened = Opened(_new_token(), actor)
        await self._keep(opened.token, sessions.BROWSER, actor, now_ms + SESSION_MS)
        return opened

    async def actor(self, token: str) -> Actor | None:
        """Whose session the cookie names, or None."""
        if not token:
            return None
        digest, now_ms = _digest(token), self._clock.now_ms()
        row = await self._database.read(lambda c: sessions.find(c, digest, sessions.BROWSER, now_ms))
        return None if row is None else _actor(row.actor, row.role)

    async def end(self, token: str) -> None:
        """End a session."""
        digest = _digest(token)
        await self._database.write(lambda c: sessions.remove(c, digest))

    async def _keep(self, token: str, kind: str, actor: Actor, expires_ms: int) -> None:
        who = json.dumps({"name": actor.name, "tenant": actor.tenant_id})
        digest, now_ms, role = _digest(token), self._clock.now_ms(), actor.role.value
        await self._database.write(lambda c: sessions.add(c, digest, kind, who, role, now_ms, expires_ms))


def form_token(session_token: str) -> str:
    """What a form of this session carries, so that no other site can post it (threat A23)."""
    return _encoded(hashlib.sha256(b"posthouse form\0" + session_token.encode()).digest())


def _new_token() -> str:
    return _encoded(secrets.token_bytes(TOKEN_OCTETS))


def _digest(token: str) -> bytes:
    return hashlib.sha256(b"posthouse session\0" + token.encode("utf-8", "surrogatepass")).digest()


def _encoded(octets: bytes) -> str:
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def _actor(who: str, role: str) -> Actor:
    shape = json.loads(who)
    return Actor("person", 0, str(shape["name"]), Role(role), int(shape["tenant"]))
