"""How values become JSON: times in UTC with milliseconds and Z, identifiers as 13 characters, objects as shown."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from posthouse.model.identifier import format_id
from posthouse.model.record import Record, at, shown_shape

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def to_json(shape: Any) -> bytes:
    """JSON octets. Code points that UTF-8 cannot carry are escaped, so that no stored text can break an answer."""
    text = _encode(shape)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(shape, separators=(",", ":"), allow_nan=False).encode()


def json_answer(shape: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(to_json(shape), status_code=status, headers=dict(headers or {}), media_type="application/json")


def time_of(ms: int | None) -> str | None:
    """Stored milliseconds as ISO 8601 UTC: 2026-11-20T14:05:00.000Z."""
    if ms is None:
        return None
    return at(ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def identifier_of(number: int | None) -> str | None:
    """An identifier for people; None for 0, which stands for "none" in the store."""
    return format_id(number) if number else None


def object_shape(record: Record[Any]) -> dict[str, Any]:
    """A configured object as shown: its identifier, version and times before the fields of the value."""
    return {
        "id": format_id(record.id),
        "version": record.version,
        "created_at": time_of(record.created_ms),
        "changed_at": time_of(record.changed_ms),
        **shown_shape(record.value),
    }


def etag_of(record: Record[Any]) -> dict[str, str]:
    """The header field that a later If-Match repeats."""
    return {"ETag": f'"{record.version}"'}
