"""From a host to a connection: each thing that can go wrong has its own cause, and dead addresses do not end it."""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from posthouse.model.outcome import Stage
from posthouse.protocol.dial import Resolution, connect, resolve
from posthouse.protocol.egress import administrator_egress, public_egress
from posthouse.protocol.faults import DeliveryFault

ANY = administrator_egress


@contextlib.asynccontextmanager
async def listener(host: str = "127.0.0.1") -> AsyncIterator[int]:
    server = await asyncio.start_server(lambda reader, writer: writer.close(), host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def dialled(*addresses: str, port: int, timeout_s: float = 5.0, egress: Any = ANY) -> list[tuple[str, str]]:
    """Connect, close, and give what was tried."""
    transport, _, attempts = await connect(
        asyncio.Protocol, addresses, port, connect_timeout_s=timeout_s, egress=egress
    )
    transport.abort()
    await asyncio.sleep(0)
    return [(attempt.address, attempt.cause) for attempt in attempts]


@pytest.fixture
def full_listener() -> Any:
    """Give the port of a listener that answers no further connection: its queue is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("[::1]", "::1"), ("2001:DB8:0::1", "2001:db8::1")],
)
async def test_an_ip_address_needs_no_resolver(host: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", None)
    found = await resolve(host, timeout_s=1)
    assert found == Resolution(address, (address,), 0.0, True)


async def test_a_name_is_resolved() -> None:
    found = await resolve("localhost", timeout_s=5)
    assert "127.0.0.1" in found.addresses and not found.is_literal and found.host == "localhost"


async def test_a_name_that_does_not_exist_is_said_to() -> None:
    with pytest.raises(DeliveryFault) as raised:
        await resolve("does-not-exist.invalid", timeout_s=20)
    # Where there is no resolver at all, the system cannot tell; never anything else.
    assert raised.value.cause in ("name-not-found", "resolver-failed", "no-address")
    assert raised.value.stage is Stage.RESOLVE


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (socket.gaierror(socket.EAI_NONAME, "x"), "name-not-found"),
        (socket.gaierror(socket.EAI_NODATA, "x"), "no-address"),
        (socket.gaierror(socket.EAI_AGAIN, "x"), "resolver-failed"),
        (None, "no-address"),
    ],
)
async def test_what_the_resolver_says_is_named(
    error: Exception | None, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(*args: object, **options: object) -> list[object]:
        if error is not None:
            raise error
        return []

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", answer)
    with pytest.raises(DeliveryFault) as raised:
        await resolve("mail.example.org", timeout_s=1)
    assert raised.value.cause == cause


async def test_a_silent_resolver_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*args: object, **options: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", never)
    with pytest.raises(DeliveryFault) as raised:
        await resolve("mail.example.org", timeout_s=0.05)
    assert raised.value.cause == "resolver-timeout"


@pytest.mark.parametrize("host", ["a b", "a\r\nb", "", "a/b", "user@host", "127.1", "-x-.org", "fe80::1%eth0"])
async def test_a_host_that_is_none_is_never_looked_up(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", None)
    with pytest.raises(DeliveryFault) as raised:
        await resolve(host, timeout_s=1)
    assert raised.value.cause == "host-unusable"


async def test_the_first_address_that_answers_is_taken() -> None:
    async with listener() as port:
        assert await dialled("127.0.0.1", "127.0.0.2", port=port) == [("127.0.0.1", "")]


async def test_a_dead_ipv6_address_does_not_end_the_attempt() -> None:
    async with listener() as port:
        tried = await dialled("::1", "127.0.0.1", port=port)
    assert tried[-1] == ("127.0.0.1", "") and tried[0][1] in ("connect-refused", "unreachable")


async def test_a_silent_address_takes_its_time_and_no_more(full_listener: int) -> None:
    async with listener("127.0.0.2") as _:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with pytest.raises(DeliveryFault) as raised:
            await dialled("127.0.0.1", port=full_listener, timeout_s=0.3)
        assert raised.value.cause == "connect-timeout" and loop.time() - started < 3
        (attempt,) = raised.value.attempts
        assert attempt.duration_s >= 0.25  # type: ignore[attr-defined]


async def test_where_all_fail_the_most_telling_cause_is_shown() -> None:
    async with listener() as port:
        pass
    with pytest.raises(DeliveryFault) as raised:
        await dialled("100.100.100.200", "127.0.0.1", port=port)
    assert raised.value.cause == "connect-refused" and raised.value.stage is Stage.CONNECT
    assert [attempt.cause for attempt in raised.value.attempts] == ["egress-forbidden", "connect-refused"]  # type: ignore[attr-defined]


async def test_only_the_checked_address_is_connected_to() -> None:
    """Threat A8: no name is looked up a second time, and a forbidden address sees no packet."""
    checked: list[str] = []

    def rule(address: object) -> None:
        checked.append(str(address))
        if str(address) == "127.0.0.2":
            raise DeliveryFault("egress-forbidden")

    connections: list[str] = []

    def seen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer.get_extra_info("sockname")[0])
        writer.close()

    server = await asyncio.start_server(seen, "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        assert await dialled("127.0.0.2", "127.0.0.3", port=port, egress=rule) == [
            ("127.0.0.2", "egress-forbidden"), ("127.0.0.3", ""),
        ]  # fmt: skip
        async with asyncio.timeout(5):
            while not connections:
                await asyncio.sleep(0.01)
    finally:
        server.close()
        await server.wait_closed()
    assert (checked, connections) == (["127.0.0.2", "127.0.0.3"], ["127.0.0.3"])


@pytest.mark.parametrize(
    "rule", [public_egress(), public_egress([ipaddress.ip_network("10.0.0.0/8")])], ids=["public", "other network"]
)
async def test_a_tenant_cannot_reach_loopback(rule: Callable[[Any], None]) -> None:
    async with listener() as port:
        with pytest.raises(DeliveryFault) as raised:
            await dialled("127.0.0.1", port=port, egress=rule)
    assert raised.value.cause == "egress-forbidden"
    assert "127.0.0.1" not in str(raised.value)


async def test_the_machines_own_limits_are_not_the_servers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    async def exhausted(*args: object, **options: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", exhausted)
    with pytest.raises(DeliveryFault) as raised:
        await dialled("127.0.0.1", port=25)
    assert raised.value.cause == "local-resources"
