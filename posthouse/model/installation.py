"""Settings of the installation that administrators change at run time; kept in the store, in force on all nodes.

What one process needs to start (listeners, paths) is `posthouse/settings.py`.
"""

from pydantic import field_validator

from posthouse.model.address import AddressFault, parse_address
from posthouse.model.fields import Value, field


class Installation(Value):
    """What is configured of the installation as a whole."""

    sending_enabled: bool = field(
        True,
        label="Sending",
        help="The global switch. Off: no mail leaves for anyone, new mail is refused with that reason, and what waits "
        "goes on waiting.",
        section="Sending",
    )
    retry_delays_s: tuple[int, ...] = field(
        (60, 300, 900, 1800, 3600, 7200, 10800),
        label="Retry delays",
        help="After the first, second ... deferral; the last one repeats. RFC 5321 section 4.5.4.1 wants the first "
        "retries within the hour.",
        section="Delivery",
        unit="s",
        min_length=1,
        max_length=50,
    )
    give_up_after_s: int = field(
        5 * 86400,
        label="Give up after",
        help="A recipient that is still deferred this long after submission fails. RFC 5321 section 4.5.4.1: 4 to 5 "
        "days. Time in which a server was held does not end a message.",
        section="Delivery",
        unit="s",
        ge=60,
        le=30 * 86400,
    )
    max_message_octets: int = field(
        100 * 1024 * 1024,
        label="Largest message",
        help="Larger ones are refused by SMTP and REST.",
        section="Submission",
        unit="octets",
        ge=1024,
        le=1 << 40,
    )
    max_recipients: int = field(1000, label="Recipients", help="Per message.", section="Submission", ge=1, le=100_000)
    max_hops: int = field(
        50,
        label="Hops",
        help="A message with more Received fields is refused as a loop (RFC 5321 section 6.3).",
        section="Submission",
        ge=1,
        le=1000,
    )
    keep_content_s: int = field(
        86400,
        label="Keep the content",
        help="How long the bytes of a message stay once every recipient is finished.",
        section="Retention",
        unit="s",
        ge=0,
        le=10 * 365 * 86400,
    )
    keep_events_s: int = field(
        30 * 86400,
        label="Keep timelines",
        help="How long finished messages, their attempts and events stay.",
        section="Retention",
        unit="s",
        ge=3600,
        le=10 * 365 * 86400,
    )
    postmaster_address: str | None = field(
        None,
        label="Postmaster",
        help="Stands in From of the reports that Posthouse writes. Empty: postmaster at the host name of the machine.",
        section="Delivery",
    )

    @field_validator("retry_delays_s")
    @classmethod
    def _delays_are_positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(delay < 1 or delay > 7 * 86400 for delay in value):
            raise ValueError("Each delay must be between 1 second and 7 days.")
        return value

    @field_validator("postmaster_address")
    @classmethod
    def _postmaster_is_an_address(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_address(value)
            except AddressFault as fault:
                raise ValueError(str(fault)) from None
        return value
