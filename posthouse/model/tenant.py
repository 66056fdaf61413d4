"""A tenant: an organisation served by this installation. Owns servers, mailboxes and applications."""

from pydantic import field_validator

from posthouse.model.application import parse_network
from posthouse.model.fields import Value, comments_field, field, name_field


class Tenant(Value):
    """What is configured of a tenant."""

    name: str = name_field("Unique.")
    enabled: bool = field(
        True, label="Enabled", help="Otherwise mail of its applications is refused.", section="General"
    )
    comments: str = comments_field()
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
