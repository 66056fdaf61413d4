"""A certificate that was added: trusted for the servers that name it, or for all."""

from posthouse.model.fields import Value, comments_field, field, name_field, owner_field


class Certificate(Value):
    """What is configured of an added certificate. `pem` may hold several certificates; private keys are refused."""

    name: str = name_field("Unique among the certificates of its owner.")
    tenant_id: str | None = owner_field(
        "The tenant whose servers may use it. Without one it is global.",
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
    comments: str = comments_field()
