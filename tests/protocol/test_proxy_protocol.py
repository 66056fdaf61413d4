"""The PROXY header, versions 1 and 2."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.protocol.proxy_protocol import (
    MAX_V1_OCTETS,
    MAX_V2_OCTETS,
    ProxyFault,
    ProxyHeader,
    parse_proxy_header,
    plain_ip,
)

V2 = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, body: bytes) -> bytes:
    return V2 + bytes((0x20 | command, family)) + len(body).to_bytes(2) + body


def addresses(family: int, source: str, target: str, ports: tuple[int, int] = (40_000, 25)) -> bytes:
    packed = socket.inet_pton(family, source) + socket.inet_pton(family, target)
    return packed + ports[0].to_bytes(2) + ports[1].to_bytes(2)


IPV4 = addresses(socket.AF_INET, "203.0.113.7", "192.0.2.1")
IPV6 = addresses(socket.AF_INET6, "2001:db8::7", "2001:db8::1")
MAPPED = addresses(socket.AF_INET6, "::ffff:203.0.113.7", "::1")

HEADERS = [
    (b"PROXY TCP4 203.0.113.7 192.0.2.1 40000 25\r\n", "203.0.113.7", 40_000),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 25\r\n", "2001:db8::7", 40_000),
    (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 40000 25\r\n", "203.0.113.7", 40_000),
    (b"PROXY UNKNOWN\r\n", None, 0),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None, 0),
    (v2(1, 0x11, IPV4), "203.0.113.7", 40_000),
    (v2(1, 0x21, IPV6), "2001:db8::7", 40_000),
    (v2(1, 0x21, MAPPED), "203.0.113.7", 40_000),
    (v2(1, 0x11, IPV4 + b"\x04\x00\x03abc"), "203.0.113.7", 40_000),
    (v2(0, 0x11, IPV4), None, 0),
    (v2(0, 0x00, b""), None, 0),
]


@pytest.mark.parametrize(("header", "peer", "port"), HEADERS)
def test_headers_are_read_and_what_follows_is_left(header: bytes, peer: str | None, port: int) -> None:
    assert parse_proxy_header(header + b"EHLO c\r\n") == ProxyHeader(peer, port, len(header))


@pytest.mark.parametrize("header", [header for header, _, _ in HEADERS])
def test_a_part_of_a_header_asks_for_more(header: bytes) -> None:
    for length in range(len(header)):
        assert parse_proxy_header(header[:length]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"EHLO c\r\n",
        b"\x16\x03\x01",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 40000\r\n",
        b"PROXY TCP4 2001:db8::7 2001:db8::1 40000 25\r\n",
        b"PROXY TCP4 203.0.113.777 192.0.2.1 40000 25\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 70000 25\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 -1 25\r\n",
        b"PROXY TCP4 203.0.113.7  192.0.2.1 40000 25\r\n",
        b"PROXY UDP4 203.0.113.7 192.0.2.1 40000 25\r\n",
        b"PROXY TCP4 " + b"1" * MAX_V1_OCTETS,
        V2 + b"\x31\x11\x00\x0c" + IPV4,
        V2 + b"\x22\x11\x00\x0c" + IPV4,
        v2(1, 0x12, IPV4),
        v2(1, 0x31, bytes(216)),
        v2(1, 0x11, IPV4[:8]),
        V2 + b"\x21\x11" + MAX_V2_OCTETS.to_bytes(2),
    ],
)
def test_anything_else_is_a_fault(data: bytes) -> None:
    with pytest.raises(ProxyFault):
        parse_proxy_header(data)


@given(st.sampled_from([b"", b"PROXY ", b"PROXY TCP4 ", V2, V2 + b"\x21\x11\x00\x0c"]), st.binary(max_size=300))
def test_any_octets_are_read_or_refused(start: bytes, rest: bytes) -> None:
    try:
        header = parse_proxy_header(start + rest)
    except ProxyFault:
        return
    assert header is None or header.length <= len(start + rest)


@pytest.mark.parametrize(
    ("text", "plain"),
    [("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("fe80::1%eth0", "fe80::1"), ("::1", "::1")],
)
def test_addresses_have_one_form(text: str, plain: str) -> None:
    assert plain_ip(text) == plain
