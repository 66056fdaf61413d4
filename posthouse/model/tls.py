"""How TLS starts and what is verified: two questions, two named values (RFC 8314; design.md section 2)."""

from enum import StrEnum


class TlsMode(StrEnum):
    """When the connection becomes TLS."""

    NONE = "none"
    STARTTLS_OPTIONAL = "starttls_optional"
    STARTTLS_REQUIRED = "starttls_required"
    IMPLICIT = "implicit"


class Verification(StrEnum):
    """What the server's certificate is compared with."""

    SYSTEM = "system"
    ADDED = "added"
    SYSTEM_AND_ADDED = "system_and_added"
    PINNED = "pinned"
    NONE = "none"


class TlsVersion(StrEnum):
    """The oldest protocol version that is taken. Below 1.2 is for devices on closed networks (RFC 8996)."""

    TLS_1_0 = "1.0"
    TLS_1_1 = "1.1"
    TLS_1_2 = "1.2"
    TLS_1_3 = "1.3"
