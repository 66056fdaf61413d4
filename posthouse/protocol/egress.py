"""Where Posthouse may connect to (design.md section 10, "Egress"). Pure: one question per IP address.

The question is asked after resolving, for each address, and the connection goes to exactly the address that was asked
about, so that a name cannot change its mind in between. A refusal says nothing about the target.
"""

import ipaddress
from collections.abc import Callable, Iterable

from posthouse.protocol.faults import DeliveryFault

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
# Raises DeliveryFault (egress-forbidden) where the address may not be connected to.
EgressRule = Callable[[IPAddress], None]

# Link-local addresses, and the addresses at which clouds hand out credentials: nobody's mail server is there.
FORBIDDEN: tuple[IPNetwork, ...] = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16",
            "fe80::/10",
            "fd00:ec2::254/128",  # Amazon
            "fd20:ce::254/128",  # Google
            "100.100.100.200/32",  # Alibaba
            "168.63.129.16/32",  # Azure
        ),
    )
)

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # RFC 6052
_NAT64_LOCAL = ipaddress.IPv6Network("64:ff9b:1::/48")  # RFC 8215
_COMPATIBLE = ipaddress.IPv6Network("::/96")  # RFC 4291 section 2.5.5.1
_TRANSLATED = ipaddress.IPv6Network("::ffff:0:0:0/96")  # RFC 2765
_ISATAP = (0x00005EFE, 0x02005EFE)  # RFC 5214 section 6.1


def embedded_addresses(address: IPAddress) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses at which a packet to this IPv6 address may end: mapped, 6to4, NAT64, Teredo, ISATAP, older."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    number = int(address)
    low = ipaddress.IPv4Address(number & 0xFFFFFFFF)
    found: list[ipaddress.IPv4Address] = []
    if address.ipv4_mapped is not None:
        found.append(address.ipv4_mapped)
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found += address.teredo
    if any(address in network for network in (_NAT64, _NAT64_LOCAL, _TRANSLATED)):
        found.append(low)
    # ::1 and :: are no IPv4 addresses in disguise.
    if address in _COMPATIBLE and number > 0xFFFF:
        found.append(low)
    if (number >> 32) & 0xFFFFFFFF in _ISATAP:
        found.append(low)
    return found


def _is_forbidden(address: IPAddress) -> bool:
    return any(address.version == network.version and address in network for network in FORBIDDEN)


def _is_public(address: IPAddress) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and (address.is_site_local or address in _NAT64_LOCAL):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def administrator_egress(address: IPAddress) -> None:
    """For what a global administrator typed: anywhere, except link-local and metadata addresses in any form."""
    if any(_is_forbidden(each) for each in (address, *embedded_addresses(address))):
        raise DeliveryFault("egress-forbidden")


def public_egress(opened: Iterable[IPNetwork] = ()) -> EgressRule:
    """For what a tenant typed, or what was derived: public addresses, and the networks that were opened."""
    networks = tuple(opened)

    def rule(address: IPAddress) -> None:
        administrator_egress(address)
        inner: list[IPAddress] = list(embedded_addresses(address))
        if any(
            network.version == each.version and each in network for network in networks for each in inner or [address]
        ):
            return
        # A mapped or translated address is no public one by itself; what it leads to decides.
        is_translated = isinstance(address, ipaddress.IPv6Address) and (address.ipv4_mapped or address in _NAT64)
        if not (is_translated or _is_public(address)) or not all(map(_is_public, inner)):
            raise DeliveryFault("egress-forbidden")

    return rule
