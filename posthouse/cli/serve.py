"""`posthouse serve`: runs a node until it is asked to end (SIGTERM, SIGINT). `settings.py` lists its options."""

import asyncio
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import httpx2

from posthouse.cli import first_run, output
from posthouse.cli.connection import SOCKET, make_settings, short_path
from posthouse.cli.failure import CommandError, report
from posthouse.cli.place import Place, place_options
from posthouse.cli.workers import supervise
from posthouse.model.fields import FieldDescription, describe
from posthouse.settings import Settings

# No option: the list of processes would show it. POSTHOUSE_KEYS, or the file in the data directory.
WITHOUT_OPTION = frozenset({"keys", "worker"})
# On every command already.
_COMMON = frozenset({"data", "database"})
_LISTENERS = ("http", "https", "smtp", "smtps")
_METAVARS = {"http": "HOST:PORT", "https": "HOST:PORT", "smtp": "HOST:PORT", "smtps": "HOST:PORT"}
DEFAULT_HOST = "127.0.0.1"


def serve_options() -> list[click.Parameter]:
    """An option for each setting of a process."""
    return [
        _option(described)
        for described in describe(Settings)
        if described.path not in WITHOUT_OPTION and described.path not in _COMMON
    ]


def option_of(path: str) -> str:
    """The option of a setting."""
    return "--" + path.replace("_", "-")


def variable_of(path: str) -> str:
    """The variable of a setting."""
    return "POSTHOUSE_" + path.upper()


def _option(described: FieldDescription) -> click.Option:
    types: Mapping[str, click.ParamType[Any]] = {"integer": click.INT, "number": click.FLOAT}
    return click.Option(
        [described.path, option_of(described.path)],
        type=types.get(described.kind, click.STRING),
        multiple=described.kind == "list",
        metavar=_METAVARS.get(described.path) or {"octets": "OCTETS"}.get(described.unit, _metavar(described)),
        help=f"{described.help} [{variable_of(described.path)}]",
    )


def _metavar(described: FieldDescription) -> str:
    if described.kind == "integer":
        return "NUMBER"
    if described.path in ("tls_cert", "tls_key"):
        return "FILE"
    return "NETWORK" if described.kind == "list" else "TEXT"


@click.pass_context
def _serve(ctx: click.Context, /, is_first_run: bool, **values: Any) -> int:
    place = Place.of(ctx)
    given = {name: value for name, value in values.items() if value not in (None, ())}
    if place.data is None and is_first_run and "data" not in _environment():
        given["data"] = Path("data")
    elif place.data is not None:
        given["data"] = Path(place.data)
    if place.database is not None:
        given["database"] = place.database
    settings = with_listeners(make_settings(given), given, look_for_ports=is_first_run)
    if settings.workers > 1 and not settings.worker:
        return asyncio.run(supervise(settings.workers))
    if is_first_run and not {"log_format", "log_level"} & ({*given} | _environment()):
        # The text of the first run is for people; what is normal is not logged between its lines.
        settings = settings.model_copy(update={"log_format": "text", "log_level": "warning"})
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(settings, is_first_run=is_first_run, as_json=place.as_json))


def _environment() -> set[str]:
    """The settings that have a variable."""
    return {name.removeprefix("POSTHOUSE_").lower() for name in os.environ if name.startswith("POSTHOUSE_")}


def with_listeners(settings: Settings, given: Mapping[str, Any], *, look_for_ports: bool = False) -> Settings:
    """Where no listener was named: pages, REST and SMTP on loopback (threat A27); a first run looks for free ports."""
    if any(getattr(settings, name) for name in _LISTENERS):
        return settings
    http, smtp = first_run.HTTP_PORT, first_run.SMTP_PORT
    if look_for_ports:
        http, smtp = first_run.next_free_port(http), first_run.next_free_port(smtp)
    return make_settings({**given, "http": f"{DEFAULT_HOST}:{http}", "smtp": f"{DEFAULT_HOST}:{smtp}"})


def _loop_factory() -> Any:
    """uvloop's where it is installed (extra `fast`), else the standard library's."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _run(settings: Settings, *, is_first_run: bool, as_json: bool) -> int:
    """Serve until a signal comes. Returns the exit status."""
    from posthouse.app import run

    started, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    node = asyncio.create_task(run(settings, started=started, stop=stop))
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait((node, waiting), return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    try:
        if started.is_set():
            await _greet(settings, is_first_run=is_first_run, as_json=as_json)
    except CommandError as error:
        report(error, as_json=as_json)
    except BaseException:
        stop.set()
        await node
        raise
    await node
    return 0


async def _greet(settings: Settings, *, is_first_run: bool, as_json: bool) -> None:
    """Say that it listens, and with --first-run what was set up."""
    if as_json:
        output.show_json({name: getattr(settings, name) for name in _LISTENERS} | {"data": str(settings.data)})
    if not is_first_run:
        return
    with short_path(settings.data / SOCKET) as address:
        transport = httpx2.AsyncHTTPTransport(uds=address)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=30.0) as client:
            found = await first_run.prepare(client, settings.data)
    if not as_json:
        print(
            first_run.describe(found, http=settings.http or "", smtp=settings.smtp or "", data=settings.data),
            flush=True,
        )


serve = click.Command(
    "serve",
    callback=_serve,
    params=[
        *place_options(),
        *serve_options(),
        click.Option(
            ["is_first_run", "--first-run"],
            is_flag=True,
            help="A first look: ./data unless told otherwise, free ports, a sandbox and an application where there is "
            "none, and one message through it.",
        ),
    ],
    help="Run Posthouse until it is asked to end. Without a listener: pages and REST on 127.0.0.1:8025, SMTP on "
    "127.0.0.1:2525.",
)
