"""Every error that Posthouse raises on purpose.

    PosthouseError
    ├── InvalidInput        the request names fields that cannot be taken (422)
    ├── NotFound            no such object, or none that the caller may see (404)
    ├── Conflict            the object's present state forbids it (409)
    ├── Refused             a rule of this installation forbids it
    │   ├── NotAuthenticated    no valid credential (401 / 535)
    │   ├── NotPermitted        the caller's role or tenant does not reach so far (403 / 550)
    │   ├── SenderNotAllowed    the application may not send as that address (403 / 550 5.7.1)
    │   ├── SendingOff          the switch is off, or no global default server exists (503 / 451 4.3.2)
    │   ├── NoRoute             no server can carry this recipient or message (422 / 550 5.4.4)
    │   ├── MessageTooLarge     above the largest size that can be taken (413 / 552 5.3.4)
    │   └── TooManyRequests     a limit was reached; carries when to come back (429 / 450 4.7.0)
    ├── LocalFault          this installation cannot do its work at present; always temporary
    │   ├── StoreUnavailable    database or data directory cannot be used (503 / 451 4.3.0)
    │   ├── StoreFull           no space is left (507 / 452 4.3.1)
    │   └── SecretUnreadable    the key ring lacks the key that sealed a secret
    └── ConfigurationError  the process cannot start with these settings

Each class knows how the faces answer it (`http_status`, `smtp_code`, `smtp_enhanced`) and a stable `code`, so that no
face keeps a table of its own. The text never holds a value that the caller sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class PosthouseError(Exception):
    """Something was refused or failed. `detail` says what and why; `remedy` says what to do, in one sentence each."""

    code = "error"
    title = "The request failed"
    http_status = 500
    smtp_code = 451
    smtp_enhanced = "4.3.0"

    def __init__(self, detail: str, *, remedy: str = "", code: str | None = None, field: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.remedy = remedy
        # The dotted name of the field concerned, where there is one.
        self.field = field
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.detail} {self.remedy}".strip()


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One fault of one field: its dotted name, a stable code, and a sentence that says cause and remedy."""

    field: str
    code: str
    message: str


class InvalidInput(PosthouseError):
    """The request names fields that cannot be taken. Nothing was saved."""

    code = "invalid-input"
    title = "Some fields cannot be taken"
    http_status = 422
    smtp_code = 550
    smtp_enhanced = "5.6.0"

    def __init__(self, problems: Sequence[FieldProblem], *, remedy: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__(" ".join(f"{p.field}: {p.message}" if p.field else p.message for p in problems), remedy=remedy)
        self.field = self.problems[0].field if self.problems else None

    @classmethod
    def of(cls, field: str, code: str, message: str) -> "InvalidInput":
        """An error about one field."""
        return cls([FieldProblem(field, code, message)])


class NotFound(PosthouseError):
    """No such object, or none that the caller may see: the two are never told apart."""

    code = "not-found"
    title = "Not found"
    http_status = 404
    smtp_code = 550
    smtp_enhanced = "5.1.1"


class Conflict(PosthouseError):
    """The object's present state forbids the request."""

    code = "conflict"
    title = "The present state forbids this"
    http_status = 409


class Refused(PosthouseError):
    """A rule of this installation forbids the request."""

    code = "refused"
    title = "Refused"
    http_status = 403
    smtp_code = 550
    smtp_enhanced = "5.7.1"


class NotAuthenticated(Refused):
    """No valid credential came with the request."""

    code = "not-authenticated"
    title = "A valid credential is needed"
    http_status = 401
    smtp_code = 535
    smtp_enhanced = "5.7.8"


class NotPermitted(Refused):
    """The caller's role or tenant does not reach so far."""

    code = "not-permitted"
    title = "Not permitted"


class SenderNotAllowed(Refused):
    """The application may not send as that address. List the address or its domain in the application."""

    code = "sender-not-allowed"
    title = "The application may not use this sender"


class SendingOff(Refused):
    """No mail leaves at present: the switch is off, or no enabled global default server exists."""

    code = "sending-off"
    title = "Sending is off"
    http_status = 503
    smtp_code = 451
    smtp_enhanced = "4.3.2"


class NoRoute(Refused):
    """No server can carry this recipient or message."""

    code = "no-route"
    title = "No server can carry this"
    http_status = 422
    smtp_enhanced = "5.4.4"


class MessageTooLarge(Refused):
    """The message is larger than what can be taken."""

    code = "message-too-large"
    title = "The message is too large"
    http_status = 413
    smtp_code = 552
    smtp_enhanced = "5.3.4"


class TooManyRequests(Refused):
    """A limit was reached. `retry_after_s` says when to come back."""

    code = "too-many-requests"
    title = "Too many requests"
    http_status = 429
    smtp_code = 450
    smtp_enhanced = "4.7.0"

    def __init__(self, detail: str, *, retry_after_s: int, remedy: str = "") -> None:
        super().__init__(detail, remedy=remedy)
        self.retry_after_s = retry_after_s


class LocalFault(PosthouseError):
    """This installation cannot do its work at present. Always temporary for whoever asks."""

    code = "local-fault"
    title = "Posthouse cannot do this at present"
    http_status = 503


class StoreUnavailable(LocalFault):
    """The database or the data directory cannot be used. Nothing was accepted; the same request may be sent again."""

    code = "store-unavailable"
    title = "The store cannot be used at present"


class StoreFull(LocalFault):
    """No space is left where the data lies. Nothing was accepted; the same request may be sent again later."""

    code = "store-full"
    title = "No space is left"
    http_status = 507
    smtp_code = 452
    smtp_enhanced = "4.3.1"


class SecretUnreadable(LocalFault):
    """A sealed secret cannot be opened: its key is not in the key ring, or the row was tampered with."""

    code = "secret-unreadable"
    title = "A stored secret cannot be opened"


class ConfigurationError(PosthouseError):
    """The process cannot start with these settings."""

    code = "configuration"
    title = "The settings cannot be used"
