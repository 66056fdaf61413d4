"""A message on its way: envelope, where it came from, what its bytes are like. Values of the hot path."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


@dataclass(frozen=True, slots=True)
class EnvelopeRecipient:
    """A recipient of the envelope, with its DSN parameters as they were given (RFC 3461: NOTIFY, ORCPT; "" = none)."""

    address: str
    notify: str = ""
    orcpt: str = ""


@dataclass(frozen=True, slots=True)
class Envelope:
    """RFC 5321 mail_from ("" = null sender) and recipients, with RET and ENVID (RFC 3461), and whether SMTPUTF8 was asked."""

    mail_from: str
    recipients: tuple[EnvelopeRecipient, ...]
    ret: str = ""
    envid: str = ""
    smtputf8: bool = False


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a message came in. `protocol` is smtp, rest, cli or internal; `tls` the version or ""."""

    protocol: str
    peer: str = ""
    helo: str = ""
    tls: str = ""
    # How the application was recognised: credential, network, key, token, or "" for Posthouse itself.
    admitted_by: str = ""


class Traits:
    """What the bytes of a message need from a server, found once, at submission: bits of one number.

    Plain numbers, because an enumeration's operators would cost each message several microseconds.
    """

    NONE: Final = 0
    # Octets above 127 in the body: 8BITMIME, or re-encoding (RFC 6152).
    EIGHT_BIT: Final = 1
    # Octets above 127 in the header: SMTPUTF8 (RFC 6531 section 3.4).
    UTF8_HEADER: Final = 2
    # A line above 998 octets (RFC 5321 section 4.5.3.1.6).
    LONG_LINES: Final = 4
    # multipart/signed, S/MIME or PGP: must not be re-encoded (RFC 1847 section 2.1).
    SIGNED: Final = 8
    # An envelope address has a local part outside ASCII.
    UTF8_ADDRESS: Final = 16


class RecipientState(IntEnum):
    """State of a recipient (design.md section 2). The message shows the least finished one of its recipients.

    waiting -> sending -> delivered | handed_over | uncertain | failed | waiting; waiting -> expired | cancelled;
    uncertain -> waiting (resend) | delivered | failed | cancelled; handed_over -> delivered | failed; delivered -> bounced.
    Numbers below 10 are unfinished and have a place in the queue; the order is the order of least finished.
    """

    WAITING = 1
    SENDING = 2
    UNCERTAIN = 3
    HANDED_OVER = 4
    DELIVERED = 10
    BOUNCED = 11
    CANCELLED = 12
    EXPIRED = 13
    FAILED = 14


class WaitingReason(IntEnum):
    """Why a recipient waits."""

    DUE = 0
    DEFERRED = 1
    SERVER_HELD = 2
    SWITCH_OFF = 3
    SCHEDULED = 4
    UNCERTAIN_HELD = 5
