"""How messages, timelines and queues look in answers, and the components that describe them."""

import json
from typing import Any

from posthouse.api import openapi
from posthouse.api.rendering import identifier_of, time_of
from posthouse.model.directory import Directory
from posthouse.model.message import RecipientState, WaitingReason
from posthouse.model.routing import REASONS
from posthouse.model.timeline import Entry
from posthouse.store.server_state import ServerState
from posthouse.tracking import QueueLine, ShownMessage

PRIORITIES = ("high", "normal", "low")
_STATES = [state.name.lower() for state in RecipientState]

_ID_OR_NULL = {"type": ["string", "null"]}
_TIME = {"type": "string", "format": "date-time"}
_TIME_OR_NULL = {"type": ["string", "null"], "format": "date-time"}
_STATE = {"enum": _STATES}


def _object(properties: openapi.Schema) -> openapi.Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


_LINE: openapi.Schema = {
    "id": openapi.IDENTIFIER,
    "state": {**_STATE, "description": "That of the least finished recipient."},
    "received_at": _TIME,
    "tenant_id": _ID_OR_NULL,
    "application_id": _ID_OR_NULL,
    "application": {"type": ["string", "null"], "description": "Its name."},
    "mail_from": {"type": "string", "description": "The envelope sender; empty is the null sender."},
    "header_from": {"type": "string"},
    "subject": {"type": "string"},
    "message_id": {"type": "string", "description": "The header field Message-ID."},
    "size": {"type": "integer", "description": "Octets."},
    "priority": {"enum": list(PRIORITIES)},
    "expires_at": _TIME_OR_NULL,
}

_RECIPIENT: openapi.Schema = _object(
    {
        "id": openapi.IDENTIFIER,
        "address": {"type": "string"},
        "state": _STATE,
        "reason": {"type": ["string", "null"], "description": "Why it waits."},
        "server_id": _ID_OR_NULL,
        "server": {"type": ["string", "null"], "description": "Its name."},
        "route": {"type": "string", "description": "Why this server, as a code."},
        "route_text": {"type": "string", "description": "Why this server, in words."},
        "attempts": {"type": "integer"},
        "due_at": {**_TIME_OR_NULL, "description": "When it is tried next; null when it is finished."},
        "changed_at": _TIME,
        "last": {"type": "string", "description": "The last reply or cause."},
    }
)

_QUEUE_LINE: openapi.Schema = _object(
    {
        "server_id": openapi.IDENTIFIER,
        "server": {"type": "string", "description": "Its name."},
        "tenant_id": _ID_OR_NULL,
        "waiting": {"type": "integer"},
        "sending": {"type": "integer"},
        "oldest_at": _TIME_OR_NULL,
        "next_due_at": _TIME_OR_NULL,
        "held": {"type": "string"},
        "cause": {"type": "string"},
        "detail": {"type": "string"},
        "since_at": _TIME_OR_NULL,
        "next_try_at": _TIME_OR_NULL,
        "why_waiting": {"type": "string", "description": "Why the whole queue waits, in words; empty where it moves."},
    }
)

COMPONENTS: dict[str, openapi.Schema] = {
    "Accepted": _object({"id": openapi.IDENTIFIER}),
    "AcceptedList": _object(
        {
            "items": {
                "type": "array",
                "items": {
                    "oneOf": [openapi.ref("Accepted"), _object({"problem": openapi.ref("Problem")})],
                },
            }
        }
    ),
    "MessageLine": _object(
        {
            **_LINE,
            "recipient_count": {"type": "integer"},
            "first_recipient": {"type": ["string", "null"]},
        }
    ),
    "MessagePage": openapi.page_of("MessageLine"),
    "Recipient": _RECIPIENT,
    "Message": _object(
        {**_LINE, "origin": openapi.ref("Origin"), "recipients": {"type": "array", "items": openapi.ref("Recipient")}}
    ),
    "Decision": _object(
        {
            "changed": {"type": "integer", "description": "How many recipients."},
            **_LINE,
            "origin": openapi.ref("Origin"),
            "recipients": {"type": "array", "items": openapi.ref("Recipient")},
        }
    ),
    "Origin": {
        "type": "object",
        "description": "Where the message came in, and what was changed in it.",
        "properties": {
            "protocol": {"type": "string"},
            "peer": {"type": "string"},
            "helo": {"type": "string"},
            "tls": {"type": "string"},
            "by": {"type": "string"},
            "changes": {"type": "array", "items": {"type": "string"}},
            "passed_over": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["protocol"],
    },
    "TimelineEntry": _object(
        {
            "at": _TIME,
            "kind": {"type": "string"},
            "text": {"type": "string"},
            "quote": {"type": "string", "description": "The server's own words; empty where there are none."},
        }
    ),
    "Timeline": _object({"items": {"type": "array", "items": openapi.ref("TimelineEntry")}, "next": {"type": "null"}}),
    "QueueLine": _QUEUE_LINE,
    "Queue": _object(
        {
            "sending_off": {
                "type": ["string", "null"],
                "description": "Why no mail leaves at all; null while it does.",
            },
            "items": {"type": "array", "items": openapi.ref("QueueLine")},
            "next": {"type": "null"},
        }
    ),
    "CapturedLine": _object({**{k: v for k, v in _LINE.items() if k != "state"}, "server_id": openapi.IDENTIFIER}),
    "CapturedPage": openapi.page_of("CapturedLine"),
}


def _common_shape(row: Any, directory: Directory) -> dict[str, Any]:
    application = directory.applications.get(row.application_id)
    return {
        "id": identifier_of(row.id),
        "received_at": time_of(row.received_ms),
        "tenant_id": identifier_of(row.tenant_id),
        "application_id": identifier_of(row.application_id),
        "application": application.name if application is not None else None,
        "mail_from": row.mail_from,
        "header_from": row.header_from,
        "subject": row.subject,
        "message_id": row.message_id,
        "size": row.size,
        "priority": PRIORITIES[row.priority],
        "expires_at": time_of(row.expires_ms),
    }


def line_shape(row: Any, directory: Directory) -> dict[str, Any]:
    """A message in a list."""
    return {
        **_common_shape(row, directory),
        "state": RecipientState(row.state).name.lower() if row.state is not None else "delivered",
        "recipient_count": row.recipients,
        "first_recipient": row.first_recipient,
    }


def detail_shape(shown: ShownMessage, directory: Directory) -> dict[str, Any]:
    """A message with its recipients."""
    return {
        **_common_shape(shown.row, directory),
        "state": shown.state.name.lower(),
        "origin": json.loads(shown.row.origin),
        "recipients": [_recipient_shape(row, directory) for row in shown.recipients],
    }


def _recipient_shape(row: Any, directory: Directory) -> dict[str, Any]:
    server = directory.servers.get(row.server_id)
    state = RecipientState(row.state)
    return {
        "id": identifier_of(row.id),
        "address": row.address,
        "state": state.name.lower(),
        "reason": WaitingReason(row.reason).name.lower() if state is RecipientState.WAITING else None,
        "server_id": identifier_of(row.server_id),
        "server": server.name if server is not None else None,
        "route": row.route,
        "route_text": REASONS.get(row.route, row.route),
        "attempts": row.attempts,
        "due_at": time_of(row.due_ms) if state is RecipientState.WAITING else None,
        "changed_at": time_of(row.changed_ms),
        "last": row.last,
    }


def captured_shape(row: Any, directory: Directory) -> dict[str, Any]:
    """A message that a capture server holds."""
    return {**_common_shape(row, directory), "server_id": identifier_of(row.server_id)}


def entry_shape(entry: Entry) -> dict[str, Any]:
    """A line of a timeline."""
    return {
        "at": entry.at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "kind": entry.kind,
        "text": entry.text,
        "quote": entry.quote,
    }


def state_shape(state: ServerState) -> dict[str, Any]:
    """Whether a server is held, since when and why."""
    return {
        "held": state.held,
        "cause": state.cause,
        "detail": state.detail,
        "since_at": time_of(state.since_ms) if state.held else None,
        "next_try_at": time_of(state.next_try_ms) if state.held and state.next_try_ms else None,
        "failures": state.failures,
        "last_delivery_at": time_of(state.last_delivery_ms),
    }


def queue_shape(line: QueueLine, created_ms: int | None) -> dict[str, Any]:
    """The queue of one server; `created_ms` is when its oldest recipient was taken."""
    state = state_shape(line.state)
    return {
        "server_id": identifier_of(line.server_id),
        "server": line.server,
        "tenant_id": identifier_of(line.tenant_id),
        "waiting": line.waiting,
        "sending": line.sending,
        "oldest_at": time_of(created_ms),
        "next_due_at": time_of(line.next_due_ms),
        **{name: state[name] for name in ("held", "cause", "detail", "since_at", "next_try_at")},
        "why_waiting": line.why_waiting,
    }
