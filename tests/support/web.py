"""The web face of a composed program in this process, called without a network: REST, probes and pages."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import httpx2

from posthouse.api.application import make_api
from posthouse.app import Posthouse
from posthouse.console.application import make_console
from posthouse.model.actor import COMMAND
from posthouse.settings import Settings

HOSTNAME = "mail.example.org"


class Web:
    """One node with delivery running, and callers of its REST API: the command line's, those with a token, nobody."""

    def __init__(self, data: Path, **settings: Any) -> None:
        self.hub = Posthouse(Settings(**{"data": data, "hostname": HOSTNAME, "http": None, "smtp": None, **settings}))
        self._clients: list[httpx2.AsyncClient] = []

    async def start(self) -> None:
        await self.hub.start()
        self.command = self._client(make_api(self.hub, trusted_actor=COMMAND), None, "127.0.0.1")
        self.open_api = make_api(self.hub, trusted_actor=None, pages=make_console(self.hub))

    async def stop(self) -> None:
        for client in self._clients:
            await client.aclose()
        await self.hub.stop()

    def caller(
        self, token: str | None, *, peer: str = "192.0.2.1", base_url: str = "http://localhost"
    ) -> httpx2.AsyncClient:
        """Give a client of the open API that sends this token, from this address."""
        return self._client(self.open_api, token, peer, base_url)

    def _client(self, api: Any, token: str | None, peer: str, base_url: str = "http://localhost") -> httpx2.AsyncClient:
        client = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=api, client=(peer, 40_000)),
            base_url=base_url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            trust_env=False,
        )
        self._clients.append(client)
        return client

    async def add(self, collection: str, **fields: Any) -> dict[str, Any]:
        """Add an object as the command line."""
        answer = await self.command.post(f"/api/v1/{collection}", json=fields)
        assert answer.status_code == 201, answer.text
        added: dict[str, Any] = answer.json()
        return added

    async def token(self, role: str = "administrator", tenant_id: str | None = None) -> str:
        """Make a token and give it."""
        made = await self.add("tokens", name=f"{role} of the tests", role=role, tenant_id=tenant_id)
        return str(made["token"])

    async def sandbox(self) -> dict[str, Any]:
        """Add a capture server as the global default: from now on mail is taken."""
        return await self.add("servers", kind="capture", name="sandbox")

    async def message(self, identifier: str, state: str = "delivered") -> dict[str, Any]:
        """Give a message once it is in this state."""

        async def look() -> dict[str, Any] | None:
            shown: dict[str, Any] = (await self.command.get(f"/api/v1/messages/{identifier}")).json()
            return shown if shown["state"] == state else None

        found: dict[str, Any] = await until(look)
        return found

    async def raw(self, identifier: str) -> bytes:
        """Give the bytes of a message as they were kept."""
        return (await self.command.get(f"/api/v1/messages/{identifier}/raw")).content


async def until(look: Callable[[], Awaitable[Any]], *, timeout_s: float = 10.0) -> Any:
    """Give the first answer of `look` that is true."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = await look()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not come about in time"
        await asyncio.sleep(0.01)


def is_problem(answer: httpx2.Response, status: int, code: str) -> Mapping[str, Any]:
    """Check that an answer is this problem (RFC 9457), and give it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["code"] == code, problem
    assert problem["type"] == f"/problems/{code}"
    assert problem["title"] and problem["detail"]
    return problem


def fields_of(problem: Mapping[str, Any]) -> list[str]:
    """Give the names of the fields that a problem is about."""
    return [str(entry["field"]) for entry in problem.get("errors", ())]
