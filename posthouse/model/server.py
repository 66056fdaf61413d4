"""A server: a configured way out. A tagged union on `kind`; each field is declared here and nowhere else.

A new kind is one class here, one transport in `posthouse/transports/`, one folder of tests.
"""

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Literal, TypeVar

from pydantic import Field, TypeAdapter, field_validator, model_validator

from posthouse.model.address import AddressFault, check_host, normalise_entry, parse_address
from posthouse.model.auth import Auth, NoAuth, PasswordAuth
from posthouse.model.fields import IDENTIFIER_PATTERN, Value, comments_field, field, name_field, owner_field
from posthouse.model.tls import TlsMode, TlsVersion, Verification

T = TypeVar("T")


# RFC 8314 section 3.3 and 7.3; 25 is what a relay in the own network listens on.
DEFAULT_PORTS = {
    TlsMode.NONE: 25,
    TlsMode.STARTTLS_OPTIONAL: 587,
    TlsMode.STARTTLS_REQUIRED: 587,
    TlsMode.IMPLICIT: 465,
}

_SMTP = {"kind": ["smtp"]}


class SenderOverride(StrEnum):
    """When the server's own sender replaces the message's."""

    NEVER = "never"
    ALWAYS = "always"


class AddressRule(StrEnum):
    """How strictly addresses are read (RFC 5321 and 5322)."""

    STRICT = "strict"
    LENIENT = "lenient"


class Utf8Headers(StrEnum):
    """Whether the server takes UTF-8 in headers (RFC 6531, 6532)."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"


class Attachments(StrEnum):
    """What happens to attachments."""

    KEEP = "keep"
    LINK_ABOVE = "link_above"
    LINK_ALL = "link_all"


class UncertainPolicy(StrEnum):
    """What follows when the server's last reply was lost (design.md promise 1)."""

    RESEND = "resend"
    HOLD = "hold"


class ServerCommon(Value):
    """What every kind of server has."""

    name: str = name_field("Unique among the servers of its owner.")
    tenant_id: str | None = owner_field(
        "The tenant that the server belongs to. Without one the server is global: it serves every tenant that has "
        "none of its own.",
        binds_secret=True,
    )
    enabled: bool = field(
        True, label="Enabled", help="A server that is not enabled sends nothing and keeps its queue.", section="General"
    )
    is_default: bool = field(
        False,
        label="Default",
        help="The server that its owner sends through where nothing else decides. Making this one the default demotes "
        "the present one. An owner's first server becomes the default.",
        section="General",
    )
    comments: str = comments_field()

    sender_address: str | None = field(
        None,
        label="Sender address",
        help="Used where a message brings no sender, and for mail that Posthouse writes itself.",
        section="Sender",
    )
    sender_name: str | None = field(
        None,
        label="Sender name",
        help="Shown beside the sender address.",
        section="Sender",
        max_length=200,
        pattern=r"^[^\x00-\x1f\x7f]*$",
    )
    sender_override: SenderOverride = field(
        SenderOverride.NEVER,
        label="Replace the sender",
        help="Always: envelope and From carry the sender address above; the original goes to Reply-To where the message "
        "has none.",
        section="Sender",
    )
    from_filter: tuple[str, ...] = field(
        (),
        label="Sends for",
        help="Addresses or domains that this server may send for. Empty: any.",
        section="Sender",
        max_length=1000,
    )

    address_rule: AddressRule = field(
        AddressRule.STRICT,
        label="Address rule",
        help="Strict refuses addresses that RFC 5321 does not allow; lenient lets through forms that real systems "
        "produce, such as two dots in a row. Neither lets anything through that could inject.",
        section="Message",
    )
    utf8_headers: Utf8Headers = field(
        Utf8Headers.AUTO,
        label="UTF-8 headers",
        help="Whether the server takes addresses and headers in UTF-8 (SMTPUTF8). Automatic asks the server.",
        section="Message",
    )
    max_message_octets: int | None = field(
        None,
        label="Largest message",
        help="Larger messages are refused when they are submitted. Empty: what the server announces.",
        section="Message",
        unit="octets",
        ge=1024,
        le=1 << 40,
    )
    attachments: Attachments = field(
        Attachments.KEEP,
        label="Attachments",
        help="Keep them in the message, or replace those above the threshold, or all, by links.",
        section="Message",
    )
    attachment_threshold_octets: int | None = field(
        None,
        label="Attachment threshold",
        help="Attachments above this size become links.",
        section="Message",
        unit="octets",
        applies={"attachments": ["keep", "link_above"]},
        ge=0,
    )

    connect_timeout_s: float = field(
        30.0, label="Connect timeout", help="For each address.", section="Timeouts", unit="s", gt=0, le=600
    )
    reply_timeout_s: float = field(
        60.0,
        label="Reply timeout",
        help="For the greeting and for the reply to each command.",
        section="Timeouts",
        unit="s",
        gt=0,
        le=3600,
    )
    data_end_timeout_s: float = field(
        600.0,
        label="Timeout after the message",
        help="How long the last reply may take. RFC 5321 section 4.5.3.2.6 asks for ten minutes: a shorter wait makes "
        "second copies.",
        section="Timeouts",
        unit="s",
        gt=0,
        le=7200,
    )

    max_connections: int = field(
        10,
        label="Connections",
        help="How many at once, over all nodes together where the server counts them.",
        section="Limits",
        ge=1,
        le=1000,
    )
    messages_per_connection: int = field(
        500,
        label="Messages per connection",
        help="After so many the connection is closed.",
        section="Limits",
        ge=1,
        le=1_000_000,
    )
    idle_s: float = field(
        30.0,
        label="Keep idle connections",
        help="How long a connection without work stays open.",
        section="Limits",
        unit="s",
        ge=0,
        le=3600,
    )
    fallback_server_id: str | None = field(
        None,
        label="Fallback",
        help="Takes over while this server cannot be reached or defers. Never for content or recipients that were "
        "refused, and never for a recipient whose outcome is uncertain.",
        section="Delivery",
        pattern=IDENTIFIER_PATTERN,
    )
    uncertain: UncertainPolicy = field(
        UncertainPolicy.RESEND,
        label="When the last reply is lost",
        help="Resend: the message goes again to the same server with the same Message-ID, at most three times; the "
        "recipient may get a second copy. Hold: it waits for a person.",
        section="Delivery",
    )

    @field_validator("sender_address")
    @classmethod
    def _sender_is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            _parsed(parse_address, value)
        return value

    @field_validator("from_filter")
    @classmethod
    def _filters_are_addresses_or_domains(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(_parsed(normalise_entry, entry) for entry in value))

    @model_validator(mode="after")
    def _common_fields_fit_together(self) -> "ServerCommon":
        if self.sender_override is SenderOverride.ALWAYS and self.sender_address is None:
            raise ValueError("sender_address: is needed where the sender is always replaced.")
        if self.attachments is Attachments.LINK_ABOVE and self.attachment_threshold_octets is None:
            raise ValueError("attachment_threshold_octets: is needed where attachments above it become links.")
        return self


class SmtpServer(ServerCommon):
    """A server that is spoken to by SMTP (RFC 5321) or SMTP submission (RFC 6409)."""

    kind: Literal["smtp"] = field(
        "smtp", label="Kind", help="What the server is.", section="General", binds_secret=True
    )
    host: str = field(
        label="Host",
        help="Name or address of the server, for example smtp.example.org.",
        section="Connection",
        binds_secret=True,
        min_length=1,
        max_length=255,
        applies=_SMTP,
    )
    tls_mode: TlsMode = field(
        TlsMode.STARTTLS_REQUIRED,
        label="TLS",
        help="Required STARTTLS and implicit TLS never send anything in clear text. Optional STARTTLS goes on in clear "
        "text where the server offers none, and shows it. None is for closed networks.",
        section="Connection",
        binds_secret=True,
        applies=_SMTP,
    )
    port: int | None = field(
        None,
        label="Port",
        help="Port must be between 1 and 65535. Empty: 587 with STARTTLS, 465 with implicit TLS, 25 without TLS.",
        section="Connection",
        binds_secret=True,
        ge=1,
        le=65535,
        applies=_SMTP,
    )
    verification: Verification = field(
        Verification.SYSTEM,
        label="Certificate check",
        help="Against the system's authorities, only those added here, both, one pinned certificate, or not at all. "
        "Without a check anyone in between can read the mail and the password.",
        section="Connection",
        binds_secret=True,
        applies={**_SMTP, "tls_mode": ["starttls_optional", "starttls_required", "implicit"]},
    )
    certificate_ids: tuple[str, ...] = field(
        (),
        label="Added certificates",
        help="Which of the added certificates count for this server, beside those that count for all.",
        section="Connection",
        binds_secret=True,
        applies={**_SMTP, "verification": ["added", "system_and_added"]},
        max_length=100,
    )
    pin_sha256: str | None = field(
        None,
        label="Pinned certificate",
        help="SHA-256 fingerprint of the server's certificate, 64 hexadecimal digits, colons allowed.",
        section="Connection",
        binds_secret=True,
        applies={**_SMTP, "verification": ["pinned"]},
    )
    minimum_tls_version: TlsVersion = field(
        TlsVersion.TLS_1_2,
        label="Oldest TLS version",
        help="Below 1.2 only for devices on a closed network (RFC 8996).",
        section="Connection",
        binds_secret=True,
        applies={**_SMTP, "tls_mode": ["starttls_optional", "starttls_required", "implicit"]},
    )
    allow_cleartext_password: bool = field(
        False,
        label="Send the password in clear text",
        help="Where there is no TLS, anyone on the way can read the password. Without this tick Posthouse then does not "
        "sign in.",
        section="Sign-in",
        binds_secret=True,
        applies={**_SMTP, "tls_mode": ["none", "starttls_optional"]},
    )
    ehlo_name: str | None = field(
        None,
        label="EHLO name",
        help="How Posthouse names itself. Empty: the host name of the machine.",
        section="Connection",
        max_length=255,
        applies=_SMTP,
    )
    auth: Auth = field(
        NoAuth(),
        label="Sign-in",
        help="How Posthouse identifies itself to the server.",
        section="Sign-in",
        applies=_SMTP,
        discriminator="type",
    )

    @field_validator("host")
    @classmethod
    def _host_is_a_host(cls, value: str) -> str:
        return _parsed(check_host, value)

    @field_validator("ehlo_name")
    @classmethod
    def _ehlo_name_is_a_host(cls, value: str | None) -> str | None:
        return value if value is None else _parsed(check_host, value)

    @field_validator("pin_sha256")
    @classmethod
    def _pin_is_a_fingerprint(cls, value: str | None) -> str | None:
        if value is None:
            return None
        digits = value.replace(":", "").replace(" ", "").lower()
        if not re.fullmatch(r"[0-9a-f]{64}", digits):
            raise ValueError("A SHA-256 fingerprint has 64 hexadecimal digits.")
        return digits

    @model_validator(mode="after")
    def _fields_fit_together(self) -> "SmtpServer":
        if self.verification is Verification.PINNED and self.pin_sha256 is None:
            raise ValueError("pin_sha256: is needed where the certificate is pinned.")
        if isinstance(self.auth, PasswordAuth) and self.tls_mode is TlsMode.NONE and not self.allow_cleartext_password:
            raise ValueError(
                "allow_cleartext_password: without TLS the password would travel in clear text. Choose a TLS mode, or "
                "tick this field to allow it."
            )
        return self

    @property
    def effective_port(self) -> int:
        """The port that is used: the given one, else the one that the TLS mode has."""
        return self.port if self.port is not None else DEFAULT_PORTS[self.tls_mode]


class CaptureServer(ServerCommon):
    """A sandbox: keeps the mail and shows it. Nothing leaves."""

    kind: Literal["capture"] = field(
        "capture", label="Kind", help="What the server is.", section="General", binds_secret=True
    )
    keep_messages: int = field(
        1000,
        label="Keep at most",
        help="Older captured messages go first.",
        section="Capture",
        unit="messages",
        ge=1,
        le=1_000_000,
        applies={"kind": ["capture"]},
    )
    keep_days: float = field(
        7.0,
        label="Keep for",
        help="Captured messages older than this go.",
        section="Capture",
        unit="days",
        gt=0,
        le=3650,
        applies={"kind": ["capture"]},
    )


MailServer = Annotated[SmtpServer | CaptureServer, Field(discriminator="kind")]
SERVER_KINDS: dict[str, type[ServerCommon]] = {"smtp": SmtpServer, "capture": CaptureServer}
server_adapter: TypeAdapter[SmtpServer | CaptureServer] = TypeAdapter(MailServer)


def _parsed(parse: Callable[[str], T], value: str) -> T:
    """Run a parser of addresses or hosts; its fault becomes the field's."""
    try:
        return parse(value)
    except AddressFault as fault:
        raise ValueError(str(fault)) from None
