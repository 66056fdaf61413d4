"""How Posthouse logs in at a server or mailbox: a tagged union. OAuth joins as another member."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from posthouse.model.fields import Value, field

SECTION = "Sign-in"


class Mechanism(StrEnum):
    """SASL mechanism for a password. `auto` takes the strongest that is offered (RFC 4954)."""

    AUTO = "auto"
    PLAIN = "PLAIN"
    LOGIN = "LOGIN"
    CRAM_MD5 = "CRAM-MD5"


class NoAuth(Value):
    """The server takes mail from this address without sign-in."""

    type: Literal["none"] = field(
        "none",
        label="Sign-in",
        help="How Posthouse identifies itself to the server.",
        section=SECTION,
        binds_secret=True,
    )


class PasswordAuth(Value):
    """A user name and a password."""

    type: Literal["password"] = field(
        "password",
        label="Sign-in",
        help="How Posthouse identifies itself to the server.",
        section=SECTION,
        binds_secret=True,
    )
    username: str = field(
        label="User name",
        help="Often the full e-mail address.",
        section=SECTION,
        binds_secret=True,
        min_length=1,
        max_length=320,
        pattern=r"^[^\x00-\x1f\x7f]+$",
    )
    password: SecretStr | None = field(
        None,
        label="Password",
        help="Kept sealed and never shown again. Left out of a change, the stored one stays.",
        section=SECTION,
        max_length=1024,
    )
    mechanism: Mechanism = field(
        Mechanism.AUTO,
        label="Mechanism",
        help="Automatic takes CRAM-MD5, PLAIN or LOGIN, whichever is the strongest that the server offers.",
        section=SECTION,
        binds_secret=True,
    )


Auth = Annotated[NoAuth | PasswordAuth, Field(discriminator="type")]
