"""Parameters that many routes share: paging, identifiers, times, flags."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import Header, Path, Query
from pydantic import AfterValidator, BeforeValidator, WithJsonSchema
from starlette.convertors import Convertor, register_url_convertor

from posthouse.errors import InvalidInput, NotFound
from posthouse.model.actor import Actor
from posthouse.model.fields import IDENTIFIER_PATTERN
from posthouse.model.identifier import parse_id

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000


class IdentifierConvertor(Convertor[str]):
    """`{id:identifier}` in a path. What cannot be an identifier is no such path, as an unknown one is no such object."""

    regex = "[0-9A-Za-z]{13}"

    def convert(self, value: str) -> str:
        """From the path."""
        return value

    def to_string(self, value: str) -> str:
        """Into a path."""
        return value


register_url_convertor("identifier", IdentifierConvertor())


def _digits(value: Any) -> Any:
    """A whole number is written in digits: no sign, no point, no underscore, none of other scripts."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise ValueError("Enter a whole number.")
    return value


def _true_or_false(value: Any) -> Any:
    if isinstance(value, str) and value not in ("true", "false"):
        raise ValueError("Enter true or false.")
    return value


def _no_controls(value: str) -> str:
    if any(character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff" for character in value):
        raise ValueError("Control characters are not allowed.")
    return value


def _time(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) and "T" in value else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("Enter a time with its zone, such as 2026-11-20T14:05:00Z.")
    return moment


Limit = Annotated[
    int,
    Query(ge=1, le=MAX_LIMIT, description="At most so many items."),
    BeforeValidator(_digits),
]
Cursor = Annotated[
    str | None,
    Query(pattern=IDENTIFIER_PATTERN, description="`next` of the page before. Without it the first page."),
]
Flag = Annotated[bool, BeforeValidator(_true_or_false)]
Text = Annotated[str, AfterValidator(_no_controls)]
Moment = Annotated[datetime, BeforeValidator(_time), WithJsonSchema({"type": "string", "format": "date-time"})]
Identifier = Annotated[
    str,
    Path(description="The object's identifier: 13 characters."),
    WithJsonSchema({"type": "string", "pattern": IDENTIFIER_PATTERN}),
]
Version = Annotated[int, Path(ge=1, le=2**31 - 1, description="A version of the object."), BeforeValidator(_digits)]
IfMatch = Annotated[
    str | None,
    Header(
        alias="If-Match",
        pattern=r'^"[0-9]{1,9}"$',
        description="The ETag that the change was made from; 409 where another version is the current one.",
    ),
]


def number_of(identifier: str, word: str) -> int:
    """The number behind an identifier of a path. Raises NotFound: one that cannot exist is like one that does not."""
    number = parse_id(identifier)
    if number is None:
        raise NotFound(f"There is no such {word}.")
    return number


def cursor_number(cursor: str | None) -> int | None:
    """The number behind a cursor. Raises InvalidInput."""
    if cursor is None:
        return None
    number = parse_id(cursor)
    if number is None:
        raise InvalidInput.of("cursor", "bad-cursor", "This is not a cursor. Take `next` of the page before.")
    return number


def version_of(if_match: str | None) -> int | None:
    """The version that an If-Match names."""
    return int(if_match.strip('"')) if if_match else None


def milliseconds(moment: datetime | None) -> int | None:
    """A time as it is stored."""
    return None if moment is None else int(moment.timestamp() * 1000)


def tenant_scope(actor: Actor, tenant: str | None) -> int | None:
    """The tenant that a list is narrowed to: None is all, 0 the global objects. A tenant's own actor sees its own only.

    Raises NotFound for a tenant that the actor does not reach.
    """
    if tenant is None:
        return actor.tenant_id or None
    number = 0 if tenant == "global" else number_of(tenant, "tenant")
    if not actor.reaches(number):
        raise NotFound("There is no such tenant.", field="tenant")
    return number
