"""How a command reaches an installation. Every command is a client of the REST API, in one of three ways:

1. POSTHOUSE_URL and POSTHOUSE_TOKEN name a remote installation (unless --data or --database is on the command line);
2. `posthouse serve` runs on the data directory: the Unix socket `control.sock` in it, which only its owner can open;
3. nothing runs there: the program is composed in this process, holding the directory's lock, and its API is called in
   memory.

So each verb has one implementation, and a change is in force when the command returns.
"""

import asyncio
import contextlib
import errno
import fcntl
import ipaddress
import json
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2

from posthouse.cli.failure import CommandError, problem_of
from posthouse.cli.place import Place
from posthouse.errors import ConfigurationError
from posthouse.model.identifier import parse_id
from posthouse.settings import Settings

SOCKET = "control.sock"
LOCK = "lock"
# A node that starts holds the lock before its socket listens.
_START_TIMEOUT_S = 15.0
# Longer than any answer of ours: a store that does not answer is reported by the other side within 5 s.
_ANSWER_TIMEOUT_S = 120.0
# The length of a Unix socket's address is 108 octets on Linux, 104 elsewhere.
_LONGEST_SOCKET_PATH = 100

_Scalar = str | int | float | bool | None
Query = Mapping[str, str | int | bool | Sequence[str] | None]


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON; None where it is empty."""
        return json.loads(self.body) if self.body else None


class Connection:
    """The API of one installation, called one request after another."""

    def __init__(self, client: httpx2.AsyncClient, runner: asyncio.Runner, where: str) -> None:
        self._client = client
        self._runner = runner
        # For error messages.
        self._where = where

    def get(self, path: str, query: Query | None = None) -> Any:
        """GET, read as JSON. Raises CommandError with the problem that was answered."""
        return self.request("GET", path, query=query).json()

    def post(self, path: str, body: Any = None, query: Query | None = None) -> Any:
        """POST of JSON, read as JSON."""
        return self.request("POST", path, body=body, query=query).json()

    def patch(self, path: str, body: Any, query: Query | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """PATCH with a merge patch (RFC 7396), read as JSON."""
        fields = {"content-type": "application/merge-patch+json", **(headers or {})}
        return self.request("PATCH", path, body=body, query=query, headers=fields).json()

    def delete(self, path: str, query: Query | None = None) -> Any:
        """DELETE, read as JSON."""
        return self.request("DELETE", path, query=query).json()

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        content: bytes | None = None,
        query: Query | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request; `path` is below /api/v1. Raises CommandError for an answer of 400 and above."""
        fields = {"accept": "application/json", **(headers or {})}
        if body is not None:
            content = json.dumps(body).encode()
            fields.setdefault("content-type", "application/json")
        return self._runner.run(self._request(method, "/api/v1/" + path, content, _parameters(query), fields))

    async def _request(
        self,
        method: str,
        path: str,
        content: bytes | None,
        query: list[tuple[str, _Scalar]],
        headers: Mapping[str, str],
    ) -> Answer:
        try:
            answer = await self._client.request(method, path, content=content, params=query or None, headers=headers)
        except httpx2.HTTPError as error:
            raise CommandError.of(
                f"{self._where} does not answer: {_reason(error)}.", remedy="Look whether it runs.", code="no-answer"
            ) from None
        if answer.status_code >= 300:
            raise CommandError(problem_of(answer.status_code, answer.content))
        return Answer(answer.status_code, dict(answer.headers), answer.content)

    def items(self, path: str, query: Query | None = None) -> Iterator[dict[str, Any]]:
        """Every item of a list, page after page."""
        cursor: str | None = None
        while True:
            page = self.get(path, {**(query or {}), "cursor": cursor, "limit": 1000})
            yield from page["items"]
            cursor = page.get("next")
            if not cursor:
                return

    def find(self, collection: str, reference: str, *, tenant: str | None = None) -> dict[str, Any]:
        """The object of that name or id; `tenant` is an owner's id or `global`. Raises CommandError.

        A name that several owners use is refused: it does not say which one is meant.
        """
        if parse_id(reference) is not None:
            with contextlib.suppress(CommandError):
                return dict(self.get(f"{collection}/{reference.lower()}"))
        named = [o for o in self.items(collection, {"name": reference, "tenant": tenant}) if o["name"] == reference]
        word = collection.removesuffix("s")
        if not named:
            raise CommandError.of(
                f"There is no {word} of that name.", remedy=f"`posthouse {word} list` shows them.", code="not-found"
            )
        if len(named) > 1:
            raise CommandError.of(
                f"{len(named)} {collection} have that name, with different owners.",
                remedy="Say whose with --tenant NAME (or --tenant global), or give the id.",
                code="ambiguous",
            )
        return named[0]

    def find_usable(self, collection: str, reference: str, owner: str | None) -> dict[str, Any]:
        """An object that the owner (a tenant's id, `global`, or None for anyone) may use: its own, else a global one."""
        try:
            return self.find(collection, reference, tenant=owner)
        except CommandError as error:
            if owner in (None, "global") or error.problem.get("code") != "not-found":
                raise
        return self.find(collection, reference, tenant="global")

    def owner(self, reference: str | None) -> str | None:
        """The `tenant` filter of a list for a name or id: an id, `global`, or None for every owner."""
        if reference is None or reference == "global":
            return reference
        return str(self.find("tenants", reference)["id"])


def _parameters(query: Query | None) -> list[tuple[str, _Scalar]]:
    found: list[tuple[str, _Scalar]] = []
    for name, value in (query or {}).items():
        entries = value if isinstance(value, (list, tuple)) else [value]
        for entry in entries:
            if entry is not None:
                found.append((name, str(entry).lower() if isinstance(entry, bool) else str(entry)))
    return found


def path_part(text: str) -> str:
    """Text as one part of a URL's path."""
    return quote(text, safe="")


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__


# --- the three ways ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def connect(place: Place) -> Iterator[Connection]:
    """The installation that the command line and the environment name. Raises CommandError."""
    with asyncio.Runner() as runner, contextlib.ExitStack() as stack:
        client, where, closing = runner.run(_open(place))
        stack.callback(lambda: runner.run(closing.aclose()))
        yield Connection(client, runner, where)


async def _open(place: Place) -> tuple[httpx2.AsyncClient, str, contextlib.AsyncExitStack]:
    closing = contextlib.AsyncExitStack()
    try:
        client, where = await _client(place, closing)
    except BaseException:
        await closing.aclose()
        raise
    return client, where, closing


async def _client(place: Place, closing: contextlib.AsyncExitStack) -> tuple[httpx2.AsyncClient, str]:
    url = os.environ.get("POSTHOUSE_URL")
    if url and place.data is None and place.database is None:
        return await closing.enter_async_context(_remote_client(url)), url
    settings = settings_of(place)
    socket_path = settings.data / SOCKET
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        if await asyncio.to_thread(_listens, socket_path):
            address = closing.enter_context(short_path(socket_path))
            transport = httpx2.AsyncHTTPTransport(uds=address)
            client = httpx2.AsyncClient(
                transport=transport, base_url="http://localhost", timeout=_ANSWER_TIMEOUT_S, trust_env=False
            )
            return await closing.enter_async_context(client), f"The installation on {settings.data}"
        try:
            client = await closing.enter_async_context(composed(settings))
            return client, f"The installation on {settings.data}"
        except ConfigurationError:
            # A node that starts has the lock, and will listen; another command has it for a moment.
            if not _is_locked(settings.data / LOCK) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.05)


def settings_of(place: Place) -> Settings:
    """The settings with what this command line says. Raises CommandError where they cannot be used."""
    given: dict[str, Any] = {}
    if place.data is not None:
        given["data"] = Path(place.data)
    if place.database is not None:
        given["database"] = place.database
    return make_settings(given)


def make_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from options, variables and file. Raises CommandError that names option and variable, not the value."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    try:
        return Settings(**given)
    except SettingsError:
        raise CommandError.usage("A POSTHOUSE_ variable cannot be read.") from None
    except (OSError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise CommandError.usage("The file that POSTHOUSE_CONFIG names cannot be read.") from None
        problems = [_setting_problem(e["loc"], e["msg"]) for e in error.errors(include_input=False, include_url=False)]
        raise CommandError.usage(" ".join(problems)) from None


def _setting_problem(location: tuple[int | str, ...], message: str) -> str:
    text = message.removeprefix("Value error, ")
    name = str(location[0]) if location else ""
    if not name:
        name, _, text = text.partition(": ")
    return f"--{name.replace('_', '-')} (POSTHOUSE_{name.upper()}): {text}"


def _remote_client(url: str) -> httpx2.AsyncClient:
    token = os.environ.get("POSTHOUSE_TOKEN")
    if not token:
        raise CommandError.usage(
            "POSTHOUSE_URL is set, but POSTHOUSE_TOKEN is not.",
            remedy="Make a token there with `posthouse token create NAME --role administrator`.",
        )
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CommandError.usage(
            "POSTHOUSE_URL is not an address of a site.", remedy="Write it as https://posthouse.example.org."
        )
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise CommandError.usage(
            "POSTHOUSE_URL is plain http: the token would travel in clear text.", remedy="Use its https address."
        )
    return httpx2.AsyncClient(
        base_url=url.rstrip("/"),
        headers={"authorization": f"Bearer {token}"},
        timeout=_ANSWER_TIMEOUT_S,
        follow_redirects=False,
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.asynccontextmanager
async def composed(settings: Settings) -> AsyncIterator[httpx2.AsyncClient]:
    """The program in this process, without listeners: holds the lock of the data directory until it is left."""
    from posthouse import logs
    from posthouse.app import Posthouse

    # On standard error, and only what a person has to know: standard output is the command's.
    logs.configure("text", "warning")
    posthouse = Posthouse(settings)
    await posthouse.start(listen=False)
    try:
        transport = httpx2.ASGITransport(app=posthouse.command_api())
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://localhost", timeout=_ANSWER_TIMEOUT_S, trust_env=False
        ) as client:
            yield client
    finally:
        await posthouse.stop()


def _is_locked(path: Path) -> bool:
    """Whether another process works on the directory."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _listens(path: Path) -> bool:
    """Whether somebody listens on the socket. Raises CommandError where it is somebody else's."""
    with short_path(path) as address, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(5.0)
        try:
            probe.connect(address)
        except PermissionError:
            raise CommandError.of(
                "Posthouse runs there as another user.",
                remedy="Run the command as that user, or work with POSTHOUSE_URL and POSTHOUSE_TOKEN.",
                code="not-permitted",
            ) from None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR, errno.EAGAIN, errno.ETIMEDOUT):
                return False
            raise
        return True


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name of the socket that fits into a socket address, which is short: by way of its open directory if need be."""
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH or not Path("/proc/self/fd").exists() or not path.parent.is_dir():
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
