"""What a server said and what became of a recipient in one attempt. Values only; `model/policy.py` decides what follows."""

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """One step of a conversation with a server, in the order in which they come (design.md section 2)."""

    RESOLVE = "resolve"
    CONNECT = "connect"
    GREETING = "greeting"
    TLS = "tls"
    CAPABILITY = "capability"
    TOKEN = "token"  # noqa: S105 - the name of a stage, not a secret
    AUTHENTICATE = "authenticate"
    SENDER = "sender"
    RECIPIENT = "recipient"
    DATA = "data"
    ARRIVAL = "arrival"


@dataclass(frozen=True, slots=True)
class Reply:
    """An SMTP reply (RFC 5321 section 4.2): code, enhanced code (RFC 3463, "" where none was given), text without both.

    `text` joins the lines of a multi-line reply with a line feed; octets outside ASCII are kept as the server sent them
    where they are UTF-8, else as Latin-1. Faces escape it.
    """

    code: int
    enhanced: str
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.enhanced} {self.text}".replace("  ", " ").replace("\n", " ").strip()

    @property
    def is_positive(self) -> bool:
        """2yz or 3yz."""
        return 200 <= self.code < 400

    @property
    def is_transient(self) -> bool:
        """4yz."""
        return 400 <= self.code < 500

    @property
    def is_permanent(self) -> bool:
        """5yz."""
        return 500 <= self.code < 600


class Result(StrEnum):
    """What one attempt did with one recipient."""

    DELIVERED = "delivered"
    HANDED_OVER = "handed_over"
    DEFERRED = "deferred"
    REJECTED = "rejected"
    UNCERTAIN = "uncertain"


class Scope(StrEnum):
    """Whose fault it is: decides whether a message, a recipient or the whole server has to wait or fail."""

    NOBODY = "nobody"
    RECIPIENT = "recipient"
    MESSAGE = "message"
    # This connection only: another one may be opened at once (421 after n messages, too many connections).
    CONNECTION = "connection"
    # The server cannot be reached or spoken to: it is held; a fallback may take over.
    SERVER = "server"
    # The account at the server: wrong password, expired consent, quota. It is held.
    ACCOUNT = "account"
    # The server asks to slow down. It is held for as long as it says.
    THROTTLE = "throttle"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a server did with one recipient in one attempt, as the transport saw it. Transports report; policy decides.

    `cause` is a stable code such as "connect-refused" or "reply"; `detail` a plain sentence for people, without secrets.
    `retry_after_s` is what the server asked for, where it did.
    """

    result: Result
    scope: Scope
    stage: Stage
    reply: Reply | None = None
    cause: str = "reply"
    detail: str = ""
    retry_after_s: float | None = None
