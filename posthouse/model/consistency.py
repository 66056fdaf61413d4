"""What must hold between configured objects: references, owners, networks, and which server is the default.

Pure: questions about a directory and a value that is to be saved. The job asks them inside the transaction of the
change, with the directory as that transaction sees it, so that two writers at once cannot both be right.
"""

import ipaddress
from collections.abc import Collection, Iterator
from typing import Any

from posthouse.errors import FieldProblem
from posthouse.model.application import Application, Network, is_wide, parse_network
from posthouse.model.certificate import Certificate
from posthouse.model.directory import Directory, ServerRecord
from posthouse.model.fields import Value
from posthouse.model.identifier import format_id, parse_id
from posthouse.model.record import Record, owner_number
from posthouse.model.server import ServerCommon
from posthouse.model.tenant import Tenant

# Above this many names a sentence says how many more there are.
_NAMED = 3


def problems_between(directory: Directory, value: Value, object_id: int) -> list[FieldProblem]:
    """Why a value cannot be saved as the object `object_id` (0: a new one) beside what is there."""
    return [*_owner_problems(directory, value), *_problems_of_kind(directory, value, object_id)]


def _problems_of_kind(directory: Directory, value: Value, object_id: int) -> Iterator[FieldProblem]:
    if isinstance(value, ServerCommon):
        yield from _fallback_problems(directory, value, object_id)
        yield from _certificate_problems(directory, value)
    elif isinstance(value, Application):
        yield from _network_problems(directory, value, object_id)


def _owner_problems(directory: Directory, value: Value) -> Iterator[FieldProblem]:
    text = getattr(value, "tenant_id", None)
    if text is not None and parse_id(text) not in directory.tenants:
        yield no_such_tenant()


def no_such_tenant() -> FieldProblem:
    """The owner does not exist, or is not one that the caller may see: the two are never told apart."""
    return FieldProblem("tenant_id", "no-such-tenant", "There is no such tenant. Choose one from the list of tenants.")


# ---------------------------------------------------------------- servers


def _fallback_problems(directory: Directory, value: ServerCommon, object_id: int) -> Iterator[FieldProblem]:
    if value.fallback_server_id is None:
        return
    fallback = directory.servers.get(parse_id(value.fallback_server_id) or 0)
    field = "fallback_server_id"
    if fallback is None or fallback.tenant_id not in (0, owner_number(value)):
        yield FieldProblem(field, "no-such-server", "There is no such server of the same owner, nor a global one.")
    elif object_id and object_id in _fallback_chain(directory, fallback):
        yield FieldProblem(field, "cycle", "These servers would fall back on each other in a circle. Choose another.")


def _fallback_chain(directory: Directory, record: ServerRecord) -> list[int]:
    """The servers that mail would go on to, the given one first."""
    chain: list[int] = []
    following: ServerRecord | None = record
    while following is not None and following.id not in chain:
        chain.append(following.id)
        text = following.value.fallback_server_id
        following = directory.servers.get(parse_id(text) or 0) if text else None
    return chain


def _certificate_problems(directory: Directory, value: ServerCommon) -> Iterator[FieldProblem]:
    owner = owner_number(value)
    for number, text in enumerate(_named_certificates(value), 1):
        record = directory.certificates.get(parse_id(text) or 0)
        if record is None or record.tenant_id not in (0, owner):
            yield FieldProblem(
                "certificate_ids", "no-such-certificate",
                f"Entry {number} is no certificate of the same owner, nor a global one.",
            )  # fmt: skip


def _named_certificates(value: Value) -> tuple[str, ...]:
    return tuple(getattr(value, "certificate_ids", ()))


# ---------------------------------------------------------------- networks


def _network_problems(directory: Directory, value: Application, object_id: int) -> Iterator[FieldProblem]:
    taken = {
        entry for other in directory.applications.values() if other.id != object_id for entry in other.value.networks
    }
    granted = _granted_networks(directory, owner_number(value))
    for number, entry in enumerate(value.networks, 1):
        network = parse_network(entry)
        if is_wide(network) and not value.allow_wide_networks:
            yield FieldProblem(
                "networks", "wide-network",
                f"Entry {number} is so wide that strangers could send through Posthouse. Narrow it, or confirm with "
                "allow_wide_networks.",
            )  # fmt: skip
        if granted is not None and not _is_inside(network, granted):
            yield FieldProblem(
                "networks", "network-not-granted",
                f"Entry {number} is outside of the networks that the tenant was granted. Ask a global administrator.",
            )  # fmt: skip
        if entry in taken:
            yield FieldProblem(
                "networks", "network-taken",
                f"Entry {number} is listed by another application. Each network belongs to one application.",
            )  # fmt: skip


def _granted_networks(directory: Directory, owner: int) -> list[Network] | None:
    """None: any network may be listed (a global application)."""
    tenant = directory.tenants.get(owner)
    return None if tenant is None else [parse_network(entry) for entry in tenant.value.networks]


def _is_inside(network: Network, granted: Collection[Network]) -> bool:
    return any(_contains(outer, network) for outer in granted)


def _contains(outer: Network, inner: Network) -> bool:
    if isinstance(outer, ipaddress.IPv4Network) and isinstance(inner, ipaddress.IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(outer, ipaddress.IPv6Network) and isinstance(inner, ipaddress.IPv6Network):
        return inner.subnet_of(outer)
    return False


# ---------------------------------------------------------------- what others rely on


def obstacles_to_saving(directory: Directory, before: Record[Any], value: Value) -> list[str]:
    """What of others would break by this change, as sentences: who relies on the object as it was."""
    if isinstance(value, Tenant):
        return _applications_outside(directory, before.id, value)
    owner = owner_number(value)
    if owner in (0, before.tenant_id):
        return []
    # It leaves its owner: whoever names it must be of the new one.
    users = [u for u in _users(directory, before) if u.tenant_id != owner]
    return _sentences(before, users)


def obstacles_to_deleting(directory: Directory, record: Record[Any], leaving: Collection[int]) -> list[str]:
    """Who still needs the object, as sentences. `leaving` goes in the same transaction."""
    if isinstance(record.value, Tenant):
        return _belongings(directory, record)
    return _sentences(record, [u for u in _users(directory, record) if u.id not in leaving])


def _users(directory: Directory, record: Record[Any]) -> list[ServerRecord]:
    """The servers that name a server as their fallback, or a certificate as one of theirs."""
    text = format_id(record.id)
    if isinstance(record.value, ServerCommon):
        return [s for s in directory.servers.values() if s.value.fallback_server_id == text]
    if isinstance(record.value, Certificate):
        return [s for s in directory.servers.values() if text in _named_certificates(s.value)]
    return []


def _sentences(record: Record[Any], users: list[ServerRecord]) -> list[str]:
    if not users:
        return []
    role = "the fallback" if isinstance(record.value, ServerCommon) else "a certificate"
    return [f"{record.name} is {role} of {_listed([u.name for u in users])}."]


def _belongings(directory: Directory, tenant: Record[Any]) -> list[str]:
    found = []
    for word, records in (
        ("server", directory.servers), ("application", directory.applications), ("certificate", directory.certificates),
    ):  # fmt: skip
        names = [r.name for r in records.values() if r.tenant_id == tenant.id]
        if names:
            found.append(f"{tenant.name} still has the {word}{'' if len(names) == 1 else 's'} {_listed(names)}.")
    return found


def _applications_outside(directory: Directory, tenant_id: int, value: Tenant) -> list[str]:
    granted = [parse_network(entry) for entry in value.networks]
    names = [
        a.name
        for a in directory.applications.values()
        if a.tenant_id == tenant_id and not all(_is_inside(parse_network(n), granted) for n in a.value.networks)
    ]
    return [f"{_listed(names)} would list networks outside of those granted."] if names else []


def _listed(names: list[str]) -> str:
    """`a, b and c`; of many the first ones, and how many more."""
    names = sorted(names)
    if len(names) > _NAMED:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# ---------------------------------------------------------------- the default


def servers_of(directory: Directory, owner: int) -> list[ServerRecord]:
    """An owner's servers, oldest first."""
    return sorted((directory.servers[i] for i in directory.owned.get(owner, ())), key=lambda record: record.id)


def default_of(directory: Directory, owner: int) -> ServerRecord | None:
    """An owner's default."""
    number = directory.defaults.get(owner)
    return None if number is None else directory.servers[number]
