"""`posthouse serve --first-run`: a first look. Sets up what is missing, sends one message, and says what to do next.

It changes nothing that is there: a server is added where there is none, an application where there is none, and the
sample goes out once, and only where the default server is a sandbox, so that nothing leaves the machine.
"""

import asyncio
import json
import os
import shlex
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from posthouse.cli import output
from posthouse.cli.failure import CommandError, error_lines, problem_of

HTTP_PORT, SMTP_PORT = 8025, 2525
SERVER, APPLICATION = "capture", "this-machine"
LOOPBACK = ["127.0.0.0/8", "::1/128"]
SENDER, RECIPIENT = "shop@example.org", "you@example.org"
SAMPLE = {
    "from": SENDER,
    "to": [RECIPIENT],
    "subject": "Your first message",
    "text": "This message was handed to Posthouse, kept, and delivered into the server named capture.\n"
    "That server is a sandbox: it keeps mail and shows it; nothing leaves this machine.\n",
}
# Remembers that the sample was sent.
STATE_FILE = "first-run.json"
_DELIVERY_TIMEOUT_S = 20.0
_PORTS_TRIED = 100


@dataclass(frozen=True, slots=True)
class FirstRun:
    """What was found and made. `problem` says why there is no sample, where something stood in its way."""

    sample_id: str = ""
    sample_state: str = ""
    sample_is_new: bool = False
    api_key: str = ""
    server: str = ""
    link: str = ""
    # Whether programs on this machine need no password.
    open_to_loopback: bool = False
    problem: tuple[str, ...] = ()


def next_free_port(wanted: int, *, host: str = "127.0.0.1") -> int:
    """The first port from `wanted` on that nobody listens on. Raises CommandError after a hundred."""
    for port in range(wanted, wanted + _PORTS_TRIED):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # As the listener does it: a port that was just left may be taken again.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise CommandError.of(
        f"No port from {wanted} to {wanted + _PORTS_TRIED - 1} is free.", remedy="Name one with --http and --smtp."
    )


async def prepare(client: httpx2.AsyncClient, data: Path) -> FirstRun:
    """Set up what is missing and send the sample, once. Raises CommandError where the API refuses a step."""
    default = await _default_server(client)
    api_key, open_to_loopback = await _application(client)
    found = FirstRun(
        api_key=api_key,
        open_to_loopback=open_to_loopback,
        server=str(default["name"]) if default else "",
        link=str((await _call(client, "POST", "links"))["url"]),
    )
    if default is None or default["kind"] != "capture":
        return found
    known = _remembered(data)
    if known:
        return _with(found, sample_id=known)
    try:
        sample_id = str((await _call(client, "POST", "messages", SAMPLE))["id"])
    except CommandError as error:
        return _with(found, problem=tuple(error_lines(error.problem)))
    _remember(data, sample_id)
    state = await _settled(client, sample_id)
    return _with(found, sample_id=sample_id, sample_state=state, sample_is_new=True)


def _with(found: FirstRun, **changes: Any) -> FirstRun:
    return FirstRun(**{**{name: getattr(found, name) for name in FirstRun.__slots__}, **changes})


async def _default_server(client: httpx2.AsyncClient) -> dict[str, Any] | None:
    """The enabled global default; a capture server is added where there is no server at all."""
    servers = (await _call(client, "GET", "servers?limit=1000"))["items"]
    if not servers:
        comments = (
            "A sandbox, made at the first start: it keeps mail and shows it. Add a server of yours when you are ready."
        )
        return dict(await _call(client, "POST", "servers", {"name": SERVER, "kind": "capture", "comments": comments}))
    return next((s for s in servers if s["is_default"] and s["enabled"] and s["tenant_id"] is None), None)


async def _application(client: httpx2.AsyncClient) -> tuple[str, bool]:
    """The API key of the application that was added, "" where there was one; and whether one lists loopback."""
    known = (await _call(client, "GET", "applications?limit=1000"))["items"]
    if known:
        return "", any(set(LOOPBACK) & set(application["networks"]) for application in known)
    comments = "Made at the first start: programs on this machine hand over mail by SMTP without a password."
    made = await _call(
        client, "POST", "applications", {"name": APPLICATION, "networks": LOOPBACK, "comments": comments}
    )
    return str(made["api_key"]), True


async def _settled(client: httpx2.AsyncClient, sample_id: str) -> str:
    """The state of the sample once it is delivered, or after a while as it is."""
    deadline = time.monotonic() + _DELIVERY_TIMEOUT_S
    while True:
        state = str((await _call(client, "GET", f"messages/{sample_id}"))["state"])
        if state in ("delivered", "failed") or time.monotonic() > deadline:
            return state
        await asyncio.sleep(0.05)


async def _call(client: httpx2.AsyncClient, method: str, path: str, body: Any = None) -> Any:
    answer = await client.request(method, "/api/v1/" + path, json=body)
    if answer.status_code >= 300:
        raise CommandError(problem_of(answer.status_code, answer.content))
    return answer.json()


def _remembered(data: Path) -> str:
    try:
        return str(json.loads((data / STATE_FILE).read_text())["sample"])
    except (OSError, ValueError, KeyError):
        return ""


def _remember(data: Path, sample_id: str) -> None:
    (data / STATE_FILE).write_text(json.dumps({"sample": sample_id}) + "\n")


# --- what is said -----------------------------------------------------------------------------------------------------


def describe(found: FirstRun, *, http: str, smtp: str, data: Path) -> str:
    """The text for the first start, or the short one for those after it."""
    command, place = program_name(), shlex.quote(_short(data))
    lines = [*_what_happened(found), ""]
    lines += [
        f"  Pages  {found.link}",
        "         signs you in once; another link: " + f"{command} user link --data {place}",
    ]
    password = "without a password from this machine" if found.open_to_loopback else "with an application's password"
    lines += [f"  SMTP   {smtp}, {password}", f"  REST   http://{http}/api/v1", ""]
    if found.sample_is_new:
        lines += _next_steps(found, http, smtp)
    lines += [
        f"What became of mail:  {command} message list --data {place}",
        f"A server of yours:    {command} server add office --host smtp.example.org --default --data {place}",
        "",
        f"Stop with Ctrl+C. Everything is kept in {_short(data)}.",
    ]
    return "\n".join(lines)


def _what_happened(found: FirstRun) -> list[str]:
    if found.sample_is_new and found.sample_state == "delivered":
        return [
            "Posthouse runs, and its first message is delivered.",
            "",
            f"A sample from {SENDER} to {RECIPIENT} was taken, written to disk and",
            f"delivered through the server {output.visible(found.server)}: a sandbox that keeps mail and shows it.",
            "Nothing left this machine.",
        ]
    if found.sample_is_new:
        return [
            "Posthouse runs.",
            "",
            f"The sample {found.sample_id} is {found.sample_state}; `message show` says why.",
        ]
    if found.problem:
        return ["Posthouse runs, but the sample was refused:", *(f"  {line}" for line in found.problem)]
    if not found.server:
        return ["Posthouse runs. No global default server is enabled, so nothing is sent yet."]
    return [f"Posthouse runs. Mail leaves through the server {output.visible(found.server)}."]


def _next_steps(found: FirstRun, http: str, smtp: str) -> list[str]:
    body = json.dumps({"from": SENDER, "to": [RECIPIENT], "subject": "Hello", "text": "Hello by REST."})
    lines = ["Send the next one:", ""]
    lines += [f"  swaks --server {smtp} --from {SENDER} --to {RECIPIENT} --header 'Subject: Hello by SMTP'", ""]
    if found.api_key:
        lines += [
            f"  curl http://{http}/api/v1/messages -H 'Authorization: Bearer {found.api_key}' \\",
            f"       -H 'Content-Type: application/json' -d {shlex.quote(body)}",
            "",
        ]
    return lines


def program_name() -> str:
    """How to call this program from here: by its name where the shell finds it, else by its path."""
    called = Path(sys.argv[0])
    found = shutil.which("posthouse")
    if found is not None and Path(found).resolve() == called.resolve():
        return "posthouse"
    return _short(called) if called.name == "posthouse" else "posthouse"


def _short(path: Path) -> str:
    """The path from here where it lies below, else the whole."""
    absolute = Path(os.path.abspath(path))
    try:
        text = str(absolute.relative_to(Path.cwd()))
    except ValueError:
        return str(absolute)
    return text if "/" in text else f"./{text}"
