"""Where connections may go: link-local and metadata addresses never, private ones only for whom it was opened (A8)."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posthouse.protocol.egress import administrator_egress, embedded_addresses, public_egress
from posthouse.protocol.faults import DeliveryFault

METADATA = ["169.254.169.254", "169.254.0.1", "fe80::1", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"]
# The same in the IPv6 forms that a resolver or a person may give.
DISGUISED = [
    "::ffff:169.254.169.254", "::169.254.169.254", "2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe",
    "::ffff:0:a9fe:a9fe", "2001:db8::5efe:a9fe:a9fe", "2001:0:a9fe:a9fe::1", "2001:0:5ef5:79fd:0:59d:5601:5601",
    "::ffff:100.100.100.200", "64:ff9b::a83f:8110", "2001:db8::200:5efe:a9fe:a9fe", "febf::1",
]  # fmt: skip
PRIVATE = [
    "127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.5.4", "100.64.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1",
    "::1", "::", "fc00::1", "fec0::1", "ff02::1", "192.0.2.1", "2001:db8::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
    "2002:0a00:0001::", "64:ff9b:1::808:808", "240.0.0.1", "198.18.0.1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]


def allowed(rule: object, text: str) -> bool:
    try:
        rule(ipaddress.ip_address(text))  # type: ignore[operator]
    except DeliveryFault as fault:
        assert fault.cause == "egress-forbidden" and text not in str(fault)
        return False
    return True


@pytest.mark.parametrize("text", METADATA + DISGUISED)
def test_link_local_and_metadata_addresses_are_for_nobody(text: str) -> None:
    everything = [ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")]
    assert not allowed(administrator_egress, text)
    assert not allowed(public_egress(), text)
    assert not allowed(public_egress(everything), text)


@pytest.mark.parametrize("text", PRIVATE)
def test_private_addresses_are_for_the_administrator_alone(text: str) -> None:
    assert allowed(administrator_egress, text)
    assert not allowed(public_egress(), text)


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_for_all(text: str) -> None:
    assert allowed(administrator_egress, text) and allowed(public_egress(), text)


def test_an_opened_network_is_open_and_its_neighbour_is_not() -> None:
    rule = public_egress([ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd12::/16")])
    assert allowed(rule, "10.1.2.3") and allowed(rule, "fd12::1") and allowed(rule, "::ffff:10.1.2.3")
    assert not allowed(rule, "10.2.0.1") and not allowed(rule, "fd13::1") and not allowed(rule, "127.0.0.1")


def test_a_network_opened_in_ipv6_opens_no_ipv4_address_inside_it() -> None:
    rule = public_egress([ipaddress.ip_network("2002::/16"), ipaddress.ip_network("64:ff9b::/96")])
    assert not allowed(rule, "2002:a00:1::") and not allowed(rule, "64:ff9b::a00:1")


@given(st.integers(0, 2**32 - 1))
def test_disguises_are_seen_through(number: int) -> None:
    inner = ipaddress.IPv4Address(number)
    for form in (f"::ffff:{inner}", f"64:ff9b::{inner}", f"2001:db8::5efe:{inner}"):
        assert inner in embedded_addresses(ipaddress.ip_address(form))
    assert embedded_addresses(inner) == []
