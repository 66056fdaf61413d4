"""A tenant: an organisation served by this installation. Owns servers, mailboxes and applications."""

from pydantic import field_validator

from posthouse.model.application import parse_network
from posthouse.model.fields import Value, field
from posthouse.model.server import NAME_PATTERN


class Tenant(Value):
    """What is configured of a tenant."""

    name: str = field(
        label="Name", help="Unique.", section="General", min_length=1, max_length=100, pattern=NAME_PATTERN
    )
    enabled: bool = field(
        True, label="Enabled", help="Otherwise mail of its applications is refused.", section="General"
    )
    comments: str = field("", label="Comments", help="For your colleagues.", section="General", max_length=4000)
    networks: tuple[str, ...] = field(
        (),
        label="Granted networks",
        help="The tenant's applications may list only networks inside these.",
        section="Admission",
        max_length=1000,
    )

    @field_validator("networks")
    @classmethod
    def _networks_are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(parse_network(entry)) for entry in value))
