"""The directory: everything that is configured, as one immutable snapshot in memory.

Submission and delivery read it for every message, so each question they ask is one dictionary look-up. A node builds a
new one when the configuration version has grown (`store/configuration.py`); nobody changes one.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posthouse.model.address import AddressSet
from posthouse.model.application import Application, Network, parse_network
from posthouse.model.certificate import Certificate
from posthouse.model.identifier import parse_id
from posthouse.model.installation import Installation
from posthouse.model.record import Record
from posthouse.model.server import CaptureServer, SmtpServer
from posthouse.model.tenant import Tenant

ServerRecord = Record[SmtpServer] | Record[CaptureServer]
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

# Remembered answers per snapshot; a bound against senders made up by the thousand.
_ROUTES = 10_000


@dataclass(frozen=True, slots=True)
class Credential:
    """A key, password or token that is recognised by its handle and compared by digest."""

    id: int
    kind: str
    application_id: int
    tenant_id: int
    name: str
    role: str
    handle: str
    key_id: str
    digest: bytes
    expires_ms: int | None


@dataclass(slots=True)
class Directory:
    """One configuration version. Treat as frozen."""

    version: int = 0
    installation: Installation = field(default_factory=Installation)
    tenants: Mapping[int, Record[Tenant]] = field(default_factory=dict)
    servers: Mapping[int, ServerRecord] = field(default_factory=dict)
    applications: Mapping[int, Record[Application]] = field(default_factory=dict)
    certificates: Mapping[int, Record[Certificate]] = field(default_factory=dict)
    credentials: Mapping[str, Credential] = field(default_factory=dict)
    # Derived in `prepare`.
    defaults: dict[int, int] = field(default_factory=dict)
    owned: dict[int, list[int]] = field(default_factory=dict)
    filters: dict[int, AddressSet] = field(default_factory=dict)
    allowed_senders: dict[int, AddressSet] = field(default_factory=dict)
    # What model/routing.py has found to be the same for all messages of a tenant.
    usual_routes: dict[int, Any] = field(default_factory=dict)
    _off_reason: str | None = "The configuration has not been read."
    _networks: dict[int, dict[int, dict[int, int]]] = field(default_factory=dict)
    _admitted: dict[str, int] = field(default_factory=dict)

    def prepare(self) -> "Directory":
        """Derive what is looked up. Returns itself."""
        for record in self.servers.values():
            self.owned.setdefault(record.tenant_id, []).append(record.id)
            if record.value.is_default:
                self.defaults[record.tenant_id] = record.id
            if record.value.from_filter:
                self.filters[record.id] = AddressSet(record.value.from_filter)
        for application in self.applications.values():
            if application.value.allowed_senders:
                self.allowed_senders[application.id] = AddressSet(application.value.allowed_senders)
            for entry in application.value.networks:
                self._list_network(parse_network(entry), application.id)
        self._off_reason = self._find_off_reason()
        return self

    def _list_network(self, network: Network, application_id: int) -> None:
        prefixes = self._networks.setdefault(network.version, {})
        prefixes.setdefault(network.prefixlen, {})[int(network.network_address)] = application_id

    def sending_off_reason(self) -> str | None:
        """Why no mail leaves at present, or None (design.md promise 3, the switch)."""
        return self._off_reason

    def _find_off_reason(self) -> str | None:
        if not self.installation.sending_enabled:
            return "Sending is switched off for this installation."
        server_id = self.defaults.get(0)
        if server_id is None or not self.servers[server_id].value.enabled:
            return "There is no enabled global default server."
        return None

    def application_by_address(self, peer: str) -> int | None:
        """The application that lists the network with the longest prefix around `peer`, or None."""
        known = self._admitted.get(peer)
        if known is not None:
            return known or None
        found = self._search_networks(peer) or 0
        if len(self._admitted) < _ROUTES:
            self._admitted[peer] = found
        return found or None

    def _search_networks(self, peer: str) -> int | None:
        try:
            address: IpAddress = ipaddress.ip_address(peer.partition("%")[0])
        except ValueError:
            return None
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        prefixes = self._networks.get(address.version, {})
        width = address.max_prefixlen
        for length in sorted(prefixes, reverse=True):
            application_id = prefixes[length].get(int(address) >> (width - length) << (width - length))
            if application_id is not None and self.is_active(application_id):
                return application_id
        return None

    def is_active(self, application_id: int) -> bool:
        """Whether the application and its tenant exist and are enabled."""
        record = self.applications.get(application_id)
        if record is None or not record.value.enabled:
            return False
        if record.tenant_id == 0:
            return True
        tenant = self.tenants.get(record.tenant_id)
        return tenant is not None and tenant.value.enabled

    def added_pem(self, server: ServerRecord) -> tuple[str, ...]:
        """The added certificates that count for a server: those it names, and those for all of its owner's servers."""
        named = {parse_id(text) for text in getattr(server.value, "certificate_ids", ())}
        return tuple(
            c.value.pem
            for c in self.certificates.values()
            if c.id in named or (c.value.for_all_servers and c.tenant_id in (0, server.tenant_id))
        )

    def fallback_of(self, server: ServerRecord) -> ServerRecord | None:
        """The server that takes over while `server` is held, or None."""
        number = parse_id(server.value.fallback_server_id) if server.value.fallback_server_id else None
        return self.servers.get(number) if number is not None else None
