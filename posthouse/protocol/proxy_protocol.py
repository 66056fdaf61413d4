"""Reads the header with which a load balancer says for whom it connects: PROXY protocol, versions 1 and 2.

Source: the PROXY protocol specification of HAProxy, versions 1 & 2 (2.1 human-readable, 2.2 binary). Pure and bounded.
Whoever listens decides which peers may send such a header at all; from those it is required, as the specification asks,
because guessing would let clients behind the balancer write one of their own. Extensions (TLV) are skipped.
"""

import ipaddress
from dataclasses import dataclass

# Section 2.1: the longest line of version 1, with its CR LF.
MAX_V1_OCTETS = 107
# Version 2 allows 65,535; what balancers send with certificates' names stays far below this.
MAX_V2_OCTETS = 4_096

_V1_START = b"PROXY "
_V2_START = b"\r\n\r\n\0\r\nQUIT\n"
_V2_HEAD_OCTETS = 16
# Section 2.2: address family and transport, and how long the addresses are.
_TCP4, _TCP6 = 0x11, 0x21
_ADDRESS_OCTETS = {_TCP4: 4, _TCP6: 16}


class ProxyFault(ValueError):
    """The octets are no PROXY header, or one that cannot be used. The connection has to be closed."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """For whom the balancer connects.

    `peer` is the client's IP address, or None where the balancer speaks for itself (LOCAL, UNKNOWN: health checks);
    `length` the octets of the header, behind which the client's own begin.
    """

    peer: str | None
    port: int
    length: int


def parse_proxy_header(data: bytes) -> ProxyHeader | None:
    """Read the header at the beginning of `data`; None while it is not complete. Raises ProxyFault."""
    if data.startswith(_V1_START):
        return _parse_v1(data)
    if data.startswith(_V2_START):
        return _parse_v2(data)
    if _V1_START.startswith(data) or _V2_START.startswith(data):
        return None
    raise ProxyFault("The connection does not begin with a PROXY header.")


def plain_ip(text: str) -> str:
    """An IP address in its usual form; IPv4 within IPv6 (RFC 4291 section 2.5.5.2) as IPv4. Raises ValueError."""
    if "." in text and ":" not in text:
        return text if text.count(".") == 3 and text.isascii() else str(ipaddress.IPv4Address(text))
    address = ipaddress.IPv6Address(text.partition("%")[0])
    return str(address.ipv4_mapped or address)


def _parse_v1(data: bytes) -> ProxyHeader | None:
    end = data.find(b"\r\n", 0, MAX_V1_OCTETS)
    if end < 0:
        if len(data) >= MAX_V1_OCTETS:
            raise ProxyFault("The PROXY header is too long.")
        return None
    words = data[:end].split(b" ")
    if words[1:2] == [b"UNKNOWN"]:
        return ProxyHeader(None, 0, end + 2)
    if len(words) != 6 or words[1] not in (b"TCP4", b"TCP6"):
        raise ProxyFault("The PROXY header is malformed.")
    make = ipaddress.IPv4Address if words[1] == b"TCP4" else ipaddress.IPv6Address
    try:
        source, _ = (make(word.decode("ascii")) for word in words[2:4])
    except ValueError:
        raise ProxyFault("The PROXY header names no valid address.") from None
    port, _ = (_read_port(word) for word in words[4:6])
    return ProxyHeader(plain_ip(str(source)), port, end + 2)


def _read_port(word: bytes) -> int:
    if not word.isdigit() or len(word) > 5 or int(word) > 65_535:
        raise ProxyFault("The PROXY header names no valid port.")
    return int(word)


def _parse_v2(data: bytes) -> ProxyHeader | None:
    if len(data) < _V2_HEAD_OCTETS:
        return None
    version_and_command, family = data[12], data[13]
    length = _V2_HEAD_OCTETS + int.from_bytes(data[14:16])
    if version_and_command >> 4 != 2 or version_and_command & 15 > 1:
        raise ProxyFault("The PROXY header has an unknown version or command.")
    if length > MAX_V2_OCTETS:
        raise ProxyFault("The PROXY header is too long.")
    if len(data) < length:
        return None
    octets = _ADDRESS_OCTETS.get(family)
    if version_and_command & 15 == 0 or family == 0:
        # LOCAL, or a family that the balancer does not say: the connection speaks for itself.
        return ProxyHeader(None, 0, length)
    if octets is None or length < _V2_HEAD_OCTETS + 2 * octets + 4:
        raise ProxyFault("The PROXY header names no TCP address.")
    source = ipaddress.ip_address(data[16 : 16 + octets])
    port = int.from_bytes(data[16 + 2 * octets : 18 + 2 * octets])
    return ProxyHeader(plain_ip(str(source)), port, length)
