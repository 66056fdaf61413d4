"""What the connections of a listener share: settings, parts, caps and counters."""

import asyncio
import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from posthouse.errors import PosthouseError
from posthouse.protocol.smtp_server import OpenContent, SessionSettings, SubmissionPolicy, Submitted, Tally
from posthouse.smtpd.tls import ServerCertificate

if TYPE_CHECKING:
    from posthouse.smtpd.protocol import SubmissionProtocol

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network
# Called once with the message's id when it is durable, or with the reason why it was not taken.
Done: TypeAlias = Callable[[str | PosthouseError], None]


class SubmissionHandler(Protocol):
    """Takes whole messages over."""

    def submit(self, submitted: Submitted, done: Done) -> None:
        """Start keeping the message; call `done` in the loop's thread, now or later, exactly once. Must not block.

        From here on the content is the handler's: it finishes or abandons it, also where it calls `done` with an error.
        """


@dataclass(frozen=True, slots=True)
class ListenerSettings:
    """Caps and times of the listeners."""

    # In all, and for one address (an IPv6 /64); more are answered 421 4.7.0. They protect file descriptors and memory.
    max_connections: int = 1_000
    max_connections_per_peer: int = 100
    # Without a whole command, or without any octet of content (RFC 5321 section 4.5.3.2.7 asks for 5 minutes).
    idle_timeout_s: float = 300.0
    # For one whole message, however steadily it trickles.
    content_timeout_s: float = 3_600.0
    # For the TLS handshake and the PROXY header.
    handshake_timeout_s: float = 30.0
    # For the client to take our last words and close its side.
    linger_s: float = 5.0
    # How often all connections are looked at; times are kept to this precision.
    sweep_interval_s: float = 2.0
    # Connections that the kernel keeps for us until they are accepted.
    backlog: int = 1_024
    # Other processes listen on the same ports (SO_REUSEPORT).
    shares_ports: bool = False
    # Peers that begin with a PROXY header and speak for others.
    proxy_networks: tuple[Network, ...] = ()


@dataclass(slots=True)
class Counters:
    """What the listeners have seen since they started."""

    connections: int = 0
    # Turned away at a cap or while shutting down.
    refused: int = 0
    messages_accepted: int = 0
    messages_refused: int = 0
    timeouts: int = 0
    tls_failures: int = 0
    proxy_failures: int = 0
    # What the sessions count: failed logins and the like.
    sessions: Tally = field(default_factory=Tally)


def capped_as(peer: str) -> str:
    """Whom the cap per peer counts: an IPv4 address, or an IPv6 network of /64, all of which one host may have."""
    if ":" not in peer:
        return peer
    return str(ipaddress.IPv6Network((peer, 64), strict=False).network_address)


class Connections:
    """The open connections, and how many of them one peer has."""

    def __init__(self) -> None:
        self.open: set[SubmissionProtocol] = set()
        self._by_peer: dict[str, int] = {}
        self._empty: asyncio.Future[None] | None = None

    def add_peer(self, peer: str, limit: int) -> bool:
        """Count a connection for `peer`; False, and not counted, where it has `limit` already."""
        count = self._by_peer.get(peer, 0)
        if count >= limit:
            return False
        self._by_peer[peer] = count + 1
        return True

    def remove_peer(self, peer: str) -> None:
        """Take back what `add_peer` counted."""
        count = self._by_peer[peer] - 1
        if count:
            self._by_peer[peer] = count
        else:
            del self._by_peer[peer]

    def remove(self, connection: "SubmissionProtocol") -> None:
        """Forget a connection that is lost."""
        self.open.discard(connection)
        if not self.open and self._empty is not None and not self._empty.done():
            self._empty.set_result(None)

    async def wait_until_empty(self, timeout_s: float) -> bool:
        """Wait until no connection is open; False where that took longer than `timeout_s`."""
        if self.open:
            self._empty = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._empty], timeout=timeout_s)
        return not self.open


@dataclass(slots=True)
class Service:
    """The parts that every connection of a listener works with."""

    settings: ListenerSettings
    session_settings: SessionSettings
    policy: SubmissionPolicy
    handler: SubmissionHandler
    open_content: OpenContent
    certificate: ServerCertificate | None
    clock: Callable[[], float]
    # Below max_connections where the process may not open so many files.
    max_connections: int
    connections: Connections = field(default_factory=Connections)
    counters: Counters = field(default_factory=Counters)
    draining: bool = False

    def is_proxy(self, peer: str) -> bool:
        """Whether this peer speaks for others."""
        networks = self.settings.proxy_networks
        if not networks:
            return False
        address = ipaddress.ip_address(peer)
        return any(address in network for network in networks)
