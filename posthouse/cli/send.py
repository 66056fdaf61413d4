"""`posthouse send`: hands over one message, written on the command line or read from a file."""

import base64
import mimetypes
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from posthouse.cli import output
from posthouse.cli.connection import Connection, connect
from posthouse.cli.failure import CommandError
from posthouse.cli.messages import FINISHED, show_message
from posthouse.cli.options import Word, key_values
from posthouse.cli.place import Command, Place
from posthouse.cli.times import Moment, Span, api_time

_POLL_S = 0.2


@click.command(
    "send",
    cls=Command,
    help="Hand over a message. Without --text, --html and --raw the text is read from standard input.",
)
@click.option("--from", "sender", metavar="ADDRESS", help="Who it is from. With --raw: the envelope's sender.")
@click.option(
    "--to", multiple=True, metavar="ADDRESS", help="A recipient. May be repeated. With --raw: the envelope's."
)
@click.option("--cc", multiple=True, metavar="ADDRESS", help="A recipient of a copy. May be repeated.")
@click.option(
    "--bcc", multiple=True, metavar="ADDRESS", help="A recipient that the others do not see. May be repeated."
)
@click.option("--reply-to", multiple=True, metavar="ADDRESS", help="Where answers go. May be repeated.")
@click.option("--subject", metavar="TEXT", help="The subject.")
@click.option("--text", metavar="TEXT", help="The text.")
@click.option("--html", type=click.File("r", encoding="utf-8"), metavar="FILE", help="The HTML form of the text.")
@click.option(
    "--attach",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A file to attach. May be repeated.",
)
@click.option("--header", multiple=True, metavar="NAME:VALUE", help="A further header field. May be repeated.")
@click.option("--raw", type=click.File("rb"), metavar="FILE", help="A whole RFC 5322 message; - reads standard input.")
@click.option("--server", metavar="NAME", help="The server that it leaves through.")
@click.option("--tenant", metavar="NAME", help="The tenant that it is sent for.")
@click.option("--send-at", type=Moment(), help="Not before this time.")
@click.option("--expires-at", type=Moment(), help="Not after this time.")
@click.option("--priority", type=Word(("high", "normal", "low")), help="Among what waits for the same server.")
@click.option(
    "--idempotency-key", metavar="TEXT", help="A second call with the same key within 24 h hands over nothing."
)
@click.option("--wait", type=Span(), help="Wait so long for the outcome; status 1 where it is not delivered by then.")
@click.pass_context
def send(ctx: click.Context, /, **values: Any) -> None:
    """POST messages, then perhaps wait."""
    place = Place.of(ctx)
    _check(values)
    with connect(place) as posthouse:
        answer = _send_raw(posthouse, values) if values["raw"] else _send_written(posthouse, values)
        identifier = str(answer["id"])
        item = _wait(posthouse, identifier, values["wait"].total_seconds()) if values["wait"] else None
    if place.as_json:
        output.show_json(item or answer)
    elif item is None:
        output.say(f"Accepted as {identifier}. See what becomes of it: posthouse message show {identifier}", "ok")
    else:
        show_message(item)
    if item is not None and item["state"] != "delivered":
        ctx.exit(1)


def _check(values: dict[str, Any]) -> None:
    """Whether the options go together. Raises CommandError."""
    if not values["raw"]:
        if not values["sender"] or not (values["to"] or values["cc"] or values["bcc"]):
            raise CommandError.usage("A message needs --from and --to.", remedy="Or give a whole one with --raw FILE.")
        return
    unfit = [f"--{name.replace('_', '-')}" for name in _WRITTEN if values[name] not in (None, ())]
    if unfit:
        raise CommandError.usage(
            f"{', '.join(unfit)} and --raw do not go together.", remedy="Put it into the header of the raw message."
        )


def _send_written(posthouse: Connection, values: dict[str, Any]) -> dict[str, Any]:
    body: dict[str, Any] = {"from": values["sender"]}
    for name in ("to", "cc", "bcc", "reply_to"):
        if values[name]:
            body[name] = list(values[name])
    if values["subject"] is not None:
        body["subject"] = values["subject"]
    _add_texts(body, values)
    if values["attach"]:
        body["attachments"] = [_attachment(path) for path in values["attach"]]
    if values["header"]:
        body["headers"] = key_values(values["header"], "--header", ":")
    body.update(_routing(posthouse, values))
    answer: dict[str, Any] = posthouse.request("POST", "messages", body=body, headers=_key(values)).json()
    return answer


def _add_texts(body: dict[str, Any], values: dict[str, Any]) -> None:
    if values["html"] is not None:
        body["html"] = values["html"].read()
    if values["text"] is not None:
        body["text"] = values["text"]
    elif values["html"] is None:
        if sys.stdin.isatty():
            print("Type the text; end it with Ctrl+D on a line of its own.", file=sys.stderr)
        body["text"] = _standard_input()


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise CommandError.usage(
            "The text is not UTF-8.", remedy="Convert it, or send a whole message by --raw."
        ) from None


def _send_raw(posthouse: Connection, values: dict[str, Any]) -> dict[str, Any]:
    """The bytes as they are; the envelope from the options, else from the header."""
    query: dict[str, str | Sequence[str] | None] = {"mail_from": values["sender"], "to": list(values["to"])}
    query.update(_routing(posthouse, values))
    headers = {"content-type": "message/rfc822", **_key(values)}
    content = values["raw"].read()
    answer: dict[str, Any] = posthouse.request("POST", "messages", content=content, query=query, headers=headers).json()
    return answer


_WRITTEN = ("cc", "bcc", "reply_to", "subject", "text", "html", "attach", "header")


def _routing(posthouse: Connection, values: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    owner = None
    if values["tenant"]:
        found["tenant"] = owner = str(posthouse.find("tenants", values["tenant"])["id"])
    if values["server"]:
        found["server"] = str(posthouse.find_usable("servers", values["server"], owner)["id"])
    for name, entry in (
        ("send_at", api_time(values["send_at"])),
        ("expires_at", api_time(values["expires_at"])),
        ("priority", values["priority"]),
    ):
        if entry is not None:
            found[name] = entry
    return found


def _key(values: dict[str, Any]) -> dict[str, str]:
    return {"idempotency-key": values["idempotency_key"]} if values["idempotency_key"] else {}


def _attachment(path: Path) -> dict[str, str]:
    kind, encoding = mimetypes.guess_type(path.name)
    return {
        "name": path.name,
        "content_type": kind if kind and encoding is None else "application/octet-stream",
        "content": base64.b64encode(path.read_bytes()).decode(),
    }


def _wait(posthouse: Connection, identifier: str, seconds: float) -> dict[str, Any]:
    """The message once every recipient is finished, or as it is when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        item: dict[str, Any] = posthouse.get(f"messages/{identifier}")
        if item["state"] in FINISHED or time.monotonic() > deadline:
            return item
        time.sleep(_POLL_S)
