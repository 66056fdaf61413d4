"""The contract of the SMTP server session: its settings, what others bring to it, and what comes out of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

from posthouse.model.message import Envelope, Origin
from posthouse.protocol.smtp_server_data import BareLineEnds, ContentBuffer

# --- what others bring -----------------------------------------------------------------------------------------------


class Sender(Protocol):
    """Whoever was recognised: by the network at connect, or by a credential."""

    @property
    def label(self) -> str:
        """A short name for logs."""


class SubmissionPolicy(Protocol):
    """Who may submit, and what. Every call is answered from memory, at once; none may block."""

    def admit(self, peer_ip: str) -> Sender | None:
        """Whoever may submit from this address without a credential (network allow-list), or None."""

    def authenticate(self, username: str, password: str, peer_ip: str) -> Sender | None:
        """Whose credential this is, or None. Raises TooManyRequests while guesses are being slowed down."""

    def check_mail_from(self, sender: Sender, mail_from: str, size: int | None, smtputf8: bool) -> None:
        """Raise PosthouseError where the sender may not use `mail_from` ("" = null sender) or submit at all."""

    def check_recipient(self, sender: Sender, address: str) -> None:
        """Raise PosthouseError where no server can carry mail to `address`."""


# Makes the buffer of one message; takes the octets that SIZE= announced, or None. May raise PosthouseError.
OpenContent: TypeAlias = Callable[[int | None], ContentBuffer]


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SessionSettings:
    """What holds for every session of a listener."""

    # The name in greeting and EHLO reply.
    hostname: str
    # The largest content that is taken, in octets; shown as SIZE (RFC 1870).
    max_message_octets: int = 50 * 1024 * 1024
    # Shown as RCPTMAX (RFC 9422); at least 100 (RFC 5321 section 4.5.3.1.8).
    max_recipients: int = 1_000
    # One command line with its line end. RFC 4954 section 4.9 asks for 12,288 octets, RFC 5321 for 512.
    max_command_octets: int = 12_288
    # Refused commands without a message in between after which the session ends: programs that guess, or talk another
    # protocol.
    max_errors: int = 20
    # Wrong passwords after which the session ends.
    max_auth_failures: int = 5
    starttls_offered: bool = False
    # AUTH without TLS, for peers on loopback.
    auth_offered_without_tls: bool = True
    bare_line_ends: BareLineEnds = BareLineEnds.REFUSE
    # Read addresses by the lenient rule of posthouse.model.address.
    lenient_addresses: bool = False
    # Octets sent ahead that are kept while something is pending; more raises `wants_pause`.
    max_waiting_octets: int = 256 * 1024

    @cached_property
    def greeting(self) -> bytes:
        """The first line of a session. It names no program version."""
        return f"220 {self.hostname} ESMTP ready\r\n".encode("ascii")

    @cached_property
    def helo_reply(self) -> bytes:
        """The reply to HELO."""
        return f"250 {self.hostname}\r\n".encode("ascii")

    @cached_property
    def ehlo_replies(self) -> dict[tuple[bool, bool], bytes]:
        """The replies to EHLO by (STARTTLS is offered, AUTH is offered)."""
        return {(tls, auth): self._ehlo_reply(tls, auth) for tls in (False, True) for auth in (False, True)}

    def _ehlo_reply(self, starttls: bool, auth: bool) -> bytes:
        lines = [self.hostname, "PIPELINING", f"SIZE {self.max_message_octets}"]
        if starttls:
            lines.append("STARTTLS")
        if auth:
            lines.append("AUTH PLAIN LOGIN")
        lines += ["8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES", f"LIMITS RCPTMAX={self.max_recipients}"]
        last = lines.pop()
        return ("".join(f"250-{line}\r\n" for line in lines) + f"250 {last}\r\n").encode("ascii")


# --- what comes out --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartTls:
    """The output is to be sent, then the TLS handshake done, then `resume_tls` called."""


@dataclass(frozen=True, slots=True)
class Close:
    """The output is to be sent, then the connection closed. `asked` = by QUIT: the client reads no further."""

    asked: bool


@dataclass(frozen=True, slots=True)
class Submitted:
    """A whole message, to be kept or refused, then `resume_reply` called.

    Whoever receives it finishes or abandons the content.
    """

    envelope: Envelope
    content: ContentBuffer
    sender: Sender
    origin: Origin
    # BODY=8BITMIME was given; what the content really holds is found out by the submission.
    eight_bit_declared: bool
    # EHLO, not HELO: decides the protocol name in Received (RFC 3848).
    extended: bool


Pending: TypeAlias = StartTls | Submitted | Close


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that an administrator may want to find in the log. The values hold no secret and no content."""

    event: str
    facts: dict[str, str | int]


@dataclass(slots=True)
class Tally:
    """Counters that several sessions share."""

    auth_successes: int = 0
    auth_failures: int = 0
    # Commands refused for their form or their place, not by the policy.
    command_errors: int = 0
    # Messages whose content was refused for bare CR, bare LF or NUL.
    bad_line_ends: int = 0
    too_large: int = 0
