"""An application: a program or device that submits mail. Its keys and passwords are kept apart (store/credentials.py)."""

import ipaddress

from pydantic import field_validator

from posthouse.model.address import AddressFault, normalise_entry
from posthouse.model.fields import Value, comments_field, field, name_field, owner_field

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Public networks wider than these need a typed confirmation (design.md section 10).
WIDEST_PUBLIC_V4 = 24
WIDEST_PUBLIC_V6 = 56


class Application(Value):
    """What is configured of an application."""

    name: str = name_field("Unique among the applications of its owner.")
    tenant_id: str | None = owner_field(
        "The tenant that the application belongs to. Without one it sends through the global server.",
    )
    enabled: bool = field(True, label="Enabled", help="Otherwise its mail is refused.", section="General")
    comments: str = comments_field()
    networks: tuple[str, ...] = field(
        (),
        label="Networks",
        help="From these addresses or networks (such as 192.0.2.10 or 10.1.0.0/16) mail is taken by SMTP without a "
        "password. The longest match wins.",
        section="Admission",
        max_length=1000,
    )
    allow_wide_networks: bool = field(
        False,
        label="Allow wide networks",
        help="Confirms that a network may be 0.0.0.0/0, ::/0, or a public one wider than /24 (IPv6: /56). Everybody in "
        "it can then send through Posthouse.",
        section="Admission",
    )
    allowed_senders: tuple[str, ...] = field(
        (),
        label="Allowed senders",
        help="Addresses or domains (example.org, *.example.org) that the application may send as, in the envelope and "
        "in From. Empty: any.",
        section="Admission",
        max_length=1000,
    )
    may_name_server: bool = field(
        False,
        label="May choose the server",
        help="A message may name the server that it leaves through.",
        section="Routing",
    )
    bounces: bool = field(
        False,
        label="Send reports of failure",
        help="A message that finally fails makes a report to its envelope sender (RFC 3464). Without it there is an "
        "event only.",
        section="Delivery",
    )

    @field_validator("networks")
    @classmethod
    def _networks_are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(parse_network(entry)) for entry in value))

    @field_validator("allowed_senders")
    @classmethod
    def _senders_are_addresses_or_domains(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        try:
            return tuple(dict.fromkeys(map(normalise_entry, value)))
        except AddressFault as fault:
            raise ValueError(str(fault)) from None


def parse_network(text: str) -> Network:
    """An address or network in CIDR form; IPv4 inside IPv6 is taken as IPv4. Raises ValueError with a sentence."""
    try:
        network = ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        raise ValueError("Enter an address such as 192.0.2.10 or a network such as 10.1.0.0/16.") from None
    if isinstance(network, ipaddress.IPv6Network) and network.network_address.ipv4_mapped and network.prefixlen >= 96:
        return ipaddress.ip_network(f"{network.network_address.ipv4_mapped}/{network.prefixlen - 96}")
    return network


def is_wide(network: Network) -> bool:
    """Whether listing the network opens the relay to more than one organisation is likely to own."""
    if network.prefixlen == 0:
        return True
    if network.is_private or network.is_loopback or network.is_link_local:
        return False
    return network.prefixlen < (WIDEST_PUBLIC_V4 if network.version == 4 else WIDEST_PUBLIC_V6)
