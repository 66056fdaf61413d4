"""A certificate that was added: trusted for the servers that name it, or for all."""

from posthouse.model.fields import Value, field
from posthouse.model.server import IDENTIFIER_PATTERN, NAME_PATTERN


class Certificate(Value):
    """What is configured of an added certificate. `pem` may hold several certificates; private keys are refused."""

    name: str = field(
        label="Name",
        help="Unique among the certificates of its owner.",
        section="General",
        min_length=1,
        max_length=100,
        pattern=NAME_PATTERN,
    )
    tenant_id: str | None = field(
        None,
        label="Owner",
        help="The tenant whose servers may use it. Without one it is global.",
        section="General",
        pattern=IDENTIFIER_PATTERN,
    )
    pem: str = field(
        label="Certificate",
        help="One or more certificates in PEM form, without a private key.",
        section="General",
        min_length=1,
        max_length=256 * 1024,
    )
    for_all_servers: bool = field(
        False,
        label="For all servers",
        help="Counts for every server of its owner that checks against added certificates; otherwise only for those "
        "that name it.",
        section="General",
    )
    comments: str = field("", label="Comments", help="For your colleagues.", section="General", max_length=4000)
