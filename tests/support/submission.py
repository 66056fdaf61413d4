"""A small submission: who may send is a list, what was taken is kept in memory. For tests of the SMTP face.

It implements the contracts of the face (`SubmissionPolicy`, `ContentBuffer`, the handler) as the real submission does;
it replaces no server.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from posthouse.errors import NotPermitted, PosthouseError, SenderNotAllowed
from posthouse.protocol.smtp_server import Submitted


@dataclass(frozen=True, slots=True)
class ListedSender:
    """A sender of the list."""

    label: str


class MemoryContent:
    """Keeps content in memory, and how it was handed over."""

    def __init__(self, announced: int | None) -> None:
        self.announced = announced
        self.size = 0
        self.writes: list[bytes] = []
        self.abandoned = False

    def write(self, octets: bytes) -> None:
        self.writes.append(octets)
        self.size += len(octets)

    def finish(self) -> bytes:
        return b"".join(self.writes)

    def abandon(self) -> None:
        assert not self.abandoned
        self.abandoned = True
        self.writes.clear()


class CountingContent(MemoryContent):
    """Keeps only the count."""

    def write(self, octets: bytes) -> None:
        self.size += len(octets)


@dataclass
class ListPolicy:
    """Admits networks (prefixes of the text) and passwords; refuses what the tables name, and a few names for all."""

    admitted: tuple[str, ...] = ()
    passwords: Mapping[str, str] = field(default_factory=dict)
    refused_mail_from: Mapping[str, PosthouseError] = field(default_factory=dict)
    refused_recipients: Mapping[str, PosthouseError] = field(default_factory=dict)
    # Raised by each login instead of an answer.
    login_error: PosthouseError | None = None
    logins: list[tuple[str, str]] = field(default_factory=list)

    def admit(self, peer_ip: str) -> ListedSender | None:
        return ListedSender(f"net-{peer_ip}") if peer_ip.startswith(self.admitted) and self.admitted else None

    def authenticate(self, username: str, password: str, peer_ip: str) -> ListedSender | None:
        if self.login_error is not None:
            raise self.login_error
        self.logins.append((username, peer_ip))
        return ListedSender(username) if self.passwords.get(username) == password else None

    def check_mail_from(self, sender: object, mail_from: str, size: int | None, smtputf8: bool) -> None:
        if mail_from in self.refused_mail_from:
            raise self.refused_mail_from[mail_from]
        if mail_from == "forged@example.org":
            raise SenderNotAllowed("The application may not send as this address.")

    def check_recipient(self, sender: object, address: str) -> None:
        if address in self.refused_recipients:
            raise self.refused_recipients[address]
        if address.startswith("nobody@"):
            raise NotPermitted("No server carries this recipient.")


@dataclass
class KeepingHandler:
    """Takes every message: at once, or when `release` is called where `at_once` is false."""

    at_once: bool = True
    answer: str | PosthouseError | None = None
    taken: list[Submitted] = field(default_factory=list)
    contents: list[object] = field(default_factory=list)
    waiting: list[Callable[[str | PosthouseError], None]] = field(default_factory=list)

    def submit(self, submitted: Submitted, done: Callable[[str | PosthouseError], None]) -> None:
        self.taken.append(submitted)
        self.contents.append(submitted.content.finish())
        if self.at_once:
            done(self.answer or f"{len(self.taken):013d}")
        else:
            self.waiting.append(done)

    def release(self) -> None:
        waiting, self.waiting = self.waiting, []
        for done in waiting:
            done(self.answer or f"{len(self.taken):013d}")
