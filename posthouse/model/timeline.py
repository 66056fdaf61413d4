"""What stands in an event, and how a timeline reads: plain sentences, one place for both (promise 8)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from posthouse.model.message import RecipientState, WaitingReason
from posthouse.model.record import at
from posthouse.model.routing import REASONS

# Kinds of events.
ATTEMPT = "attempt"
CUT_OFF = "cut-off"
CANCELLED = "cancelled"
RETRIED = "retried"
EXPIRED = "expired"
REROUTED = "rerouted"
REPORTED = "reported"
SET_ASIDE = "set-aside"
SERVER_HELD = "server.held"
SERVER_RELEASED = "server.released"

_PROTOCOLS = {"smtp": "by SMTP", "rest": "by REST", "cli": "from the command line", "internal": "by Posthouse itself"}
_ADMISSION = {"network": "from a listed network", "credential": "signed in with its password", "key": "with an API key",
              "token": "with an administrator's token"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a timeline. `quote` holds the server's own words, where there are any."""

    at: datetime
    kind: str
    text: str
    quote: str = ""


@dataclass(frozen=True, slots=True)
class Names:
    """How servers and applications are called, by number."""

    servers: Mapping[int, str]
    applications: Mapping[int, str]

    def server(self, server_id: int) -> str:
        """The server's name, or what to call one that is gone."""
        return self.servers.get(server_id, "a server that was deleted")

    def application(self, application_id: int) -> str:
        """The application's name, or what to call none."""
        if not application_id:
            return "The administrator"
        return self.applications.get(application_id, "An application that was deleted")


def render(
    message: Any,
    origin: Mapping[str, Any],
    recipients: Sequence[Any],
    events: Sequence[tuple[Any, Mapping[str, Any]]],
    names: Names,
    waiting_texts: Mapping[int, str],
) -> list[Entry]:
    """The timeline of a message: who submitted it, which server was chosen and why, each attempt, what comes next.

    `message`, `recipients` and `events` are rows of the store, each event with its decoded data; `waiting_texts` says
    of a server id why its queue waits as a whole, where it does.
    """  # fmt: skip
    entries = [Entry(at(message.received_ms), "accepted", _accepted(message, origin, names))]
    entries += [Entry(at(message.received_ms), "changed", text) for text in origin.get("changes", ())]
    entries += [Entry(at(message.received_ms), "passed-over", text) for text in origin.get("passed_over", ())]
    entries += _routing(message, recipients, names)
    by_id = {r.id: r.address for r in recipients}
    for row, data in events:
        entries += _event(row, data, by_id, names)
    entries += _next_steps(recipients, names, waiting_texts)
    return entries


def _accepted(message: Any, origin: Mapping[str, Any], names: Names) -> str:
    if origin.get("protocol") == "internal":
        return "Posthouse wrote this message."
    who = names.application(message.application_id)
    how = _PROTOCOLS.get(str(origin.get("protocol")), "")
    peer = f" from {origin['peer']}" if origin.get("peer") else ""
    tls = f" over {origin['tls']}" if origin.get("tls") else ""
    admitted = _ADMISSION.get(str(origin.get("by")), "")
    return f"{who} handed it over {how}{peer}{tls}" + (f", {admitted}." if admitted else ".")


def _routing(message: Any, recipients: Sequence[Any], names: Names) -> list[Entry]:
    chosen: dict[tuple[int, str], list[str]] = {}
    for r in recipients:
        chosen.setdefault((r.server_id, r.route), []).append(r.address)
    return [
        Entry(
            at(message.received_ms),
            "routed",
            f"{names.server(server_id)} was chosen{_for(addresses, recipients)}: {REASONS.get(route, route)}.",
        )
        for (server_id, route), addresses in chosen.items()
    ]


def _for(addresses: Sequence[str], recipients: Sequence[Any]) -> str:
    return "" if len(addresses) == len(recipients) else f" for {listed(addresses)}"


def listed(addresses: Sequence[str]) -> str:
    """A few addresses, and how many more."""
    shown = ", ".join(addresses[:3])
    return shown if len(addresses) <= 3 else f"{shown} and {len(addresses) - 3} more"


# Sent in clear text: as configured, or because optional STARTTLS was not to be had.
_CLEAR = {False: ", not encrypted", True: ", not encrypted because the server offered no TLS"}

_RESULTS = {
    "delivered": "took responsibility for",
    "handed_over": "took the job for",
    "deferred": "deferred",
    "rejected": "refused",
    "uncertain": "was sent the message but its reply was lost for",
}


def _event(row: Any, data: Mapping[str, Any], by_id: Mapping[int, str], names: Names) -> list[Entry]:
    when = at(row.at_ms)
    if row.kind == ATTEMPT:
        return _attempt(row, data, by_id, names)
    who = data.get("actor", "")
    texts = {
        CUT_OFF: "The attempt was cut off: the process stopped. It is tried again; perhaps there will be a second copy.",
        CANCELLED: f"{who} cancelled it.",
        RETRIED: f"{who} asked for another try.",
        EXPIRED: "It expired before it could be sent.",
        REROUTED: f"{names.server(row.server_id)} was chosen: {REASONS['re-routed']}.",
        REPORTED: f"A report of failure was sent to {data.get('to', 'the sender')}.",
        SET_ASIDE: f"It was set aside: {data.get('detail', '')}",
    }
    return [Entry(when, row.kind, texts.get(row.kind, row.kind))]


def _attempt(row: Any, data: Mapping[str, Any], by_id: Mapping[int, str], names: Names) -> list[Entry]:
    entries = [Entry(at(row.at_ms), "changed", text) for text in data.get("changes", ())]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for item in data.get("outcomes", ()):
        key = (str(item.get("result")), str(item.get("reply", "")), str(item.get("detail", "")))
        groups.setdefault(key, []).append(by_id.get(int(item.get("r", 0)), "a recipient"))
    where = f" at {data['remote']}" if data.get("remote") else ""
    tls = f", {data['tls']}" if data.get("tls") else _CLEAR[bool(data.get("tls_fell_back"))] * bool(data.get("remote"))
    fallback = f", standing in for {data['fallback_for']}" if data.get("fallback_for") else ""
    for (result, reply, detail), addresses in groups.items():
        verb = _RESULTS.get(result, result)
        text = f"{names.server(row.server_id)}{where}{tls}{fallback} {verb} {listed(addresses)}"
        text += f": {detail}" if detail else "."
        if result == "uncertain":
            text += " Perhaps a second copy will arrive."
        entries.append(Entry(at(row.at_ms), result, text, reply))
    return entries


def _next_steps(recipients: Sequence[Any], names: Names, waiting_texts: Mapping[int, str]) -> list[Entry]:
    entries = []
    groups: dict[tuple[int, int, int, int], list[str]] = {}
    for r in recipients:
        if r.state in (RecipientState.WAITING, RecipientState.SENDING, RecipientState.UNCERTAIN):
            due = r.due_ms if r.state == RecipientState.WAITING else 0
            groups.setdefault((r.state, r.reason, r.server_id, due), []).append(r.address)
    for (state, reason, server_id, due), addresses in groups.items():
        text = next_step(state, reason, due, names.server(server_id), waiting_texts.get(server_id, ""))
        entries.append(
            Entry(at(due) if due else at(recipients[0].changed_ms), "next", f"Next for {listed(addresses)}: {text}")
        )
    return entries


def next_step(state: int, reason: int, due_ms: int, server: str, waiting_text: str) -> str:
    """What happens next with a recipient, as a sentence."""
    if state == RecipientState.SENDING:
        return f"it is in the hands of {server}."
    if state == RecipientState.UNCERTAIN:
        return "a person decides: retry it, perhaps making a second copy, or cancel it."
    if waiting_text:
        return f"it waits for {server}. {waiting_text}"
    moment = at(due_ms).strftime("%d %b %Y, %H:%M:%S UTC")
    if reason == WaitingReason.SCHEDULED:
        return f"it is scheduled for {moment}."
    if reason == WaitingReason.DEFERRED:
        return f"another try through {server} at {moment}."
    return f"it is due at {server}."
