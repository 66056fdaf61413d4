"""Which server a recipient leaves through (design.md promise 3)."""

from typing import Any

import pytest

from posthouse.errors import NoRoute, NotFound
from posthouse.model.address import parse_address
from posthouse.model.directory import Directory
from posthouse.model.identifier import format_id
from posthouse.model.installation import Installation
from posthouse.model.message import Traits
from posthouse.model.record import Record
from posthouse.model.routing import REASONS, Need, choose, is_fax
from posthouse.model.server import SmtpServer

TENANT = 77
SMALL = Need(1000, Traits.NONE)
ANNA = parse_address("anna@example.org")


def server(number: int, tenant: int = 0, **fields: Any) -> Record[SmtpServer]:
    values = {"name": f"server{number}", "host": "mail.example.org", "tenant_id": format_id(tenant) if tenant else None}
    return Record(number, 1, SmtpServer(**{**values, **fields}), 0, 0, {})


def directory(*servers: Record[SmtpServer], **fields: Any) -> Directory:
    return Directory(servers={s.id: s for s in servers}, **fields).prepare()


def chosen(known: Directory, tenant: int = TENANT, need: Need = SMALL, sender: Any = ANNA) -> tuple[int, str]:
    route = choose(known, tenant_id=tenant, sender=sender, need=need)
    return route.server.id, route.reason


def test_a_tenant_without_servers_uses_the_global_default() -> None:
    assert chosen(directory(server(1, is_default=True))) == (1, "global-default")


def test_a_tenant_with_a_server_uses_its_own() -> None:
    assert chosen(directory(server(1, is_default=True), server(2, TENANT, is_default=True))) == (2, "tenant-default")


def test_the_global_level_never_uses_a_tenants_server() -> None:
    known = directory(server(1, is_default=True), server(2, TENANT, is_default=True))
    assert chosen(known, tenant=0) == (1, "global-default")
    assert chosen(known, tenant=78) == (1, "global-default")


def test_the_address_comes_before_the_domain_and_the_domain_before_the_default() -> None:
    default = server(1, TENANT, is_default=True)
    domain = server(2, TENANT, from_filter=("example.org",))
    address = server(3, TENANT, from_filter=("anna@example.org",))
    glob = server(9, is_default=True)
    assert chosen(directory(glob, default, domain, address)) == (3, "tenant-address")
    assert chosen(directory(glob, default, domain)) == (2, "tenant-domain")
    assert chosen(directory(glob, default, domain), sender=parse_address("bob@else.example")) == (1, "tenant-default")


def test_a_global_server_for_the_sender_comes_before_the_global_default_only() -> None:
    known = directory(server(1, is_default=True), server(2, from_filter=("example.org",)))
    assert chosen(known) == (2, "global-domain")
    assert chosen(directory(*known.servers.values(), server(3, TENANT, is_default=True))) == (3, "tenant-default")  # type: ignore[arg-type]


def test_a_disabled_server_is_passed_over_and_said_so() -> None:
    known = directory(server(1, is_default=True), server(2, TENANT, is_default=True, enabled=False))
    route = choose(known, tenant_id=TENANT, sender=ANNA, need=SMALL)
    assert route.server.id == 1
    assert "server2 was passed over: it is disabled." in route.passed_over


def test_a_server_that_is_too_small_is_passed_over() -> None:
    known = directory(server(1, is_default=True), server(2, TENANT, is_default=True, max_message_octets=2000))
    assert chosen(known, need=Need(2001, Traits.NONE))[0] == 1
    assert chosen(known, need=Need(2000, Traits.NONE))[0] == 2


def test_a_server_without_utf8_is_passed_over_where_utf8_is_needed() -> None:
    known = directory(server(1, is_default=True), server(2, TENANT, is_default=True, utf8_headers="no"))
    assert chosen(known, need=Need(10, Traits.UTF8_ADDRESS))[0] == 1
    assert chosen(known, need=Need(10, Traits.EIGHT_BIT))[0] == 2


def test_a_default_that_does_not_send_for_this_sender_is_passed_over_unless_it_replaces_the_sender() -> None:
    filtered = server(2, TENANT, is_default=True, from_filter=("else.example",))
    replacing = server(
        2,
        TENANT,
        is_default=True,
        from_filter=("else.example",),
        sender_override="always",
        sender_address="x@else.example",
    )
    assert chosen(directory(server(1, is_default=True), filtered))[0] == 1
    assert chosen(directory(server(1, is_default=True), replacing))[0] == 2


def test_where_none_can_carry_it_the_refusal_says_why_of_each() -> None:
    known = directory(server(1, is_default=True, max_message_octets=2000))
    with pytest.raises(NoRoute, match=r"server1 was passed over: its limit is 2000 octets"):
        chosen(known, need=Need(5000, Traits.NONE))


def test_a_named_server_is_used_or_refused_but_never_replaced() -> None:
    known = directory(server(1, is_default=True), server(2, max_message_octets=2000), server(3, 78))
    assert choose(known, tenant_id=0, sender=ANNA, need=SMALL, named_server_id=2).reason == "named"
    with pytest.raises(NoRoute):
        choose(known, tenant_id=0, sender=ANNA, need=Need(9999, Traits.NONE), named_server_id=2)
    with pytest.raises(NotFound):
        choose(known, tenant_id=0, sender=ANNA, need=SMALL, named_server_id=3)


@pytest.mark.parametrize(
    "address", ["+4930123456@fax", "4930123456@FAX", "FAX=+12027653000/T33S=1387@faxworld.example"]
)
def test_fax_numbers_are_recognised(address: str) -> None:
    assert is_fax(address)


@pytest.mark.parametrize("address", ["fax@example.org", "123@example.org", "123@fax.example.org", "a=b@example.org"])
def test_ordinary_addresses_are_not_fax_numbers(address: str) -> None:
    assert not is_fax(address)


def test_every_reason_has_its_sentence() -> None:
    assert {"named", "tenant-default", "global-default", "re-routed"} <= set(REASONS)


def test_sending_is_off_without_switch_or_enabled_global_default() -> None:
    assert directory(server(1, is_default=True)).sending_off_reason() is None
    assert "no enabled global default" in str(directory(server(2, TENANT, is_default=True)).sending_off_reason())
    assert directory(server(1, is_default=True, enabled=False)).sending_off_reason() is not None
    off = directory(server(1, is_default=True), installation=Installation(sending_enabled=False))
    assert "switched off" in str(off.sending_off_reason())
