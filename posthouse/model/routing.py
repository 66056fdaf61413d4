"""Which server a recipient leaves through, and why. Pure; the order is design.md promise 3.

The server that the application named; else the tenant's server for the sender's address, for the sender's domain, the
tenant's default; else the global server for the sender, the global default. A server that cannot carry the recipient
or the message is passed over, and the timeline says so.
"""

import re
from dataclasses import dataclass

from posthouse.errors import NoRoute, NotFound
from posthouse.model.address import Address, AddressFault, parse_address, parse_header_addresses
from posthouse.model.directory import Directory, ServerRecord
from posthouse.model.message import Traits
from posthouse.model.server import SenderOverride, Utf8Headers

# RFC 3192 section 2, and the short form number@fax.
_FAX = re.compile(r"(?i)^(?:/?fax=[^@]*@.+|\+?[0-9]+@fax)$")

_UTF8 = Traits.UTF8_HEADER | Traits.UTF8_ADDRESS

# Why a server was chosen: the code stands on the recipient, the sentence in the timeline.
REASONS = {
    "named": "named by the application",
    "tenant-address": "the tenant's server for this sender address",
    "tenant-domain": "the tenant's server for this sender's domain",
    "tenant-default": "the tenant's default",
    "global-address": "the global server for this sender address",
    "global-domain": "the global server for this sender's domain",
    "global-default": "the global default",
    "re-routed": "chosen again, because the server it waited for is gone",
}


@dataclass(frozen=True, slots=True)
class Route:
    """The chosen server, the code of the reason, and what was passed over, as sentences."""

    server: ServerRecord
    reason: str
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Need:
    """What the message asks of a server."""

    size: int
    traits: int


def is_fax(address: str) -> bool:
    """Whether the recipient is a fax number (RFC 3192)."""
    return _FAX.match(address) is not None


def routing_sender(directory: Directory, header_from: bytes | str, mail_from: str) -> Address | None:
    """The address that from_filters are compared with: From, else the envelope's. Read only where a filter exists."""
    if not directory.filters:
        return None
    try:
        addresses = parse_header_addresses(header_from) if header_from else []
        if addresses:
            return addresses[0].address
        return parse_address(mail_from) if mail_from else None
    except AddressFault:
        return None


def choose(
    directory: Directory, *, tenant_id: int, sender: Address | None, need: Need, named_server_id: int | None = None
) -> Route:
    """The server for a recipient. Raises NoRoute where none can carry it, NotFound where the named one is not there."""
    if named_server_id is not None:
        return _named(directory, tenant_id, sender, need, named_server_id)
    usual = directory.usual_routes.get(tenant_id)
    if usual is None:
        usual = directory.usual_routes[tenant_id] = _usual_route(directory, tenant_id)
    if isinstance(usual, Route) and not need.traits & _UTF8:
        return usual
    passed: list[str] = []
    for owner in dict.fromkeys((tenant_id, 0)):
        for server_id, reason in _candidates(directory, owner, sender):
            record = directory.servers[server_id]
            obstacle = why_not(directory, record, sender, need)
            if obstacle is None:
                return Route(record, reason, tuple(passed))
            passed.append(f"{record.name} was passed over: {obstacle}.")
    raise NoRoute(
        "No server can carry this message. " + " ".join(passed)
        if passed
        else "There is no server that this message could leave through.",
        remedy="Change the message, or ask the administrator to add a server that can carry it.",
    )


def _usual_route(directory: Directory, tenant_id: int) -> Route | bool:
    """The route that every message of the tenant takes, where neither sender nor size matters; False where they do."""
    if directory.filters:
        return False
    server_id = directory.defaults.get(tenant_id, directory.defaults.get(0))
    if server_id is None:
        return False
    record = directory.servers[server_id]
    if not record.value.enabled or record.value.max_message_octets is not None:
        return False
    return Route(record, "tenant-default" if record.tenant_id else "global-default")


def _named(directory: Directory, tenant_id: int, sender: Address | None, need: Need, server_id: int) -> Route:
    record = directory.servers.get(server_id)
    if record is None or record.tenant_id not in (0, tenant_id):
        raise NotFound("There is no such server.", field="server")
    obstacle = why_not(directory, record, sender, need)
    if obstacle is not None:
        raise NoRoute(f"The server {record.name} cannot carry this message: {obstacle}.", field="server")
    return Route(record, "named")


def _candidates(directory: Directory, owner: int, sender: Address | None) -> list[tuple[int, str]]:
    """The owner's servers that may be asked, in order, each with its reason."""
    scope = "tenant" if owner else "global"
    found: list[tuple[int, str]] = []
    if sender is not None:
        filtered = [i for i in directory.owned.get(owner, ()) if i in directory.filters]
        found += [(i, f"{scope}-address") for i in filtered if directory.filters[i].contains_exactly(sender)]
        found += [(i, f"{scope}-domain") for i in filtered if directory.filters[i].contains(sender)]
    default = directory.defaults.get(owner)
    if default is not None:
        found.append((default, f"{scope}-default"))
    candidates: dict[int, str] = {}
    for server_id, reason in found:
        candidates.setdefault(server_id, reason)
    return list(candidates.items())


def why_not(directory: Directory, record: ServerRecord, sender: Address | None, need: Need) -> str | None:
    """Why the server cannot carry this, as the end of a sentence; None where it can."""
    value = record.value
    if not value.enabled:
        return "it is disabled"
    accepted = directory.filters.get(record.id)
    replaces = value.sender_override is SenderOverride.ALWAYS
    if accepted is not None and sender is not None and not replaces and not accepted.contains(sender):
        return "it does not send for this sender"
    if value.max_message_octets is not None and need.size > value.max_message_octets:
        return f"its limit is {value.max_message_octets} octets and the message has {need.size}"
    if need.traits & _UTF8 and value.utf8_headers is Utf8Headers.NO:
        return "it takes no UTF-8 in headers or addresses"
    return None
