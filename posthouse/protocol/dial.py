"""From a host and a port to a TCP connection: resolving, the egress rule, and one address after the other.

Each step is a function of its own and gives evidence (`Resolution`, `Attempt`), so that a diagnosis can walk them. All
that fails is a DeliveryFault in the stages resolve and connect. TLS is none of this module's business.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from posthouse.model.address import AddressFault, check_host
from posthouse.model.outcome import Stage
from posthouse.protocol.egress import EgressRule, IPAddress
from posthouse.protocol.faults import DeliveryFault, translate

P = TypeVar("P", bound=asyncio.BaseProtocol)

# A name with more addresses than this gains nothing from trying them all.
MAX_ADDRESSES = 16


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a server is: host name or IP address as it was configured, and port."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a name led to. `is_literal`: the host was an IP address, and nobody was asked."""

    host: str
    addresses: tuple[str, ...]
    duration_s: float
    is_literal: bool = False


@dataclass(frozen=True, slots=True)
class Attempt:
    """One address that was tried. `cause` is "" where the connection was made."""

    address: str
    cause: str
    duration_s: float


async def resolve(host: str, *, timeout_s: float) -> Resolution:
    """Find the addresses of a host, in the order in which the system wants them tried. Raises DeliveryFault."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    try:
        name = check_host(host)
    except AddressFault as fault:
        raise DeliveryFault("host-unusable", detail=str(fault)) from None
    try:
        literal = str(ipaddress.ip_address(name))
    except ValueError:
        pass
    else:
        return Resolution(name, (literal,), 0.0, True)
    try:
        async with asyncio.timeout(timeout_s):
            found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise translate(error, Stage.RESOLVE) from error
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))[:MAX_ADDRESSES]
    if not addresses:
        raise DeliveryFault("no-address")
    return Resolution(name, addresses, loop.time() - started)


async def connect(
    protocol_factory: Callable[[], P],
    addresses: tuple[str, ...],
    port: int,
    *,
    connect_timeout_s: float,
    egress: EgressRule,
) -> tuple[asyncio.Transport, P, tuple[Attempt, ...]]:
    """Connect to the first address that answers, each within `connect_timeout_s`.

    The egress rule is asked about each address just before it is tried. Raises DeliveryFault with `attempts`: that of
    the attempt which says most, a refusal rather than a network without IPv6.
    """
    loop = asyncio.get_running_loop()
    attempts: list[Attempt] = []
    faults: list[DeliveryFault] = []
    for address in addresses:
        started = loop.time()
        try:
            egress(_ip(address))
            async with asyncio.timeout(connect_timeout_s):
                transport, protocol = await loop.create_connection(protocol_factory, address, port)
        except DeliveryFault as fault:
            faults.append(fault)
        except OSError as error:
            faults.append(translate(error, Stage.CONNECT))
        else:
            attempts.append(Attempt(address, "", loop.time() - started))
            return transport, protocol, tuple(attempts)
        attempts.append(Attempt(address, faults[-1].cause, loop.time() - started))
    most_telling = min(faults, key=lambda each: _TELLING.get(each.cause, 1), default=DeliveryFault("no-address"))
    most_telling.attempts = tuple(attempts)
    raise most_telling


# Which cause is shown where several addresses failed for different reasons: the one that says most comes first.
_TELLING = {"connect-refused": 0, "connect-timeout": 0, "egress-forbidden": 2, "unreachable": 3}


def _ip(address: str) -> IPAddress:
    # An address with a zone ("fe80::1%eth0") is link-local; the zone says nothing that the rule wants to know.
    return ipaddress.ip_address(address.partition("%")[0])
