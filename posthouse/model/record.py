"""A stored object: its value with identifier, version and times; and how stored, shown and accepted shapes differ.

Stored: secrets by the number of their row. Shown: `set` or `not set`. Accepted: a new secret, or none to keep the stored
one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, SecretStr

from posthouse.model.fields import FieldDescription, Value, describe, union_members
from posthouse.model.identifier import parse_id

V = TypeVar("V", bound=Value)

SECRET_SET = "set"  # noqa: S105 - what is shown in place of a secret
SECRET_NOT_SET = "not set"  # noqa: S105
SECRET_CHANGED = "changed"  # noqa: S105 - what stands in place of a new secret in a comparison


@dataclass(frozen=True, slots=True)
class Record(Generic[V]):
    """A value as stored. `secrets` maps the path of each secret that is set to the number of its row."""

    id: int
    version: int
    value: V
    created_ms: int
    changed_ms: int
    secrets: Mapping[str, int]

    @property
    def tenant_id(self) -> int:
        """The owner; 0 is global."""
        return owner_number(self.value)

    @property
    def name(self) -> str:
        """The name among the objects of its owner."""
        return str(getattr(self.value, "name"))  # noqa: B009 - Value itself declares none

    @property
    def changed_at(self) -> datetime:
        """When it was last changed."""
        return at(self.changed_ms)


def owner_number(value: Value) -> int:
    """The tenant that owns the value, as a number; 0 is global."""
    text = getattr(value, "tenant_id", None)
    return _number(text) if text else 0


@lru_cache(maxsize=65_536)
def _number(text: str) -> int:
    # Asked for each server whenever the directory is made, and few tenants own them all.
    return parse_id(text) or 0


def at(ms: int) -> datetime:
    """Stored milliseconds as an aware time."""
    return datetime.fromtimestamp(ms / 1000, UTC)


@cache
def fields_of(model: type[Value]) -> tuple[FieldDescription, ...]:
    """The declared fields of a model, read once."""
    return tuple(describe(model))


def secret_paths(model: type[Value]) -> tuple[str, ...]:
    """The paths of the model's secrets."""
    return tuple(f.path for f in fields_of(model) if f.is_secret)


def plain_shape(value: Value) -> dict[str, Any]:
    """Everything but the secrets, as JSON values; a secret that is set stands as True, else as None."""
    shape: dict[str, Any] = value.model_dump(mode="json")
    for path in secret_paths(type(value)):
        holder, key = _holder(shape, path)
        if holder is not None and key in holder:
            holder[key] = True if holder[key] is not None else None
    return shape


def shown_shape(value: Value) -> dict[str, Any]:
    """The value as every face shows it."""
    shape = plain_shape(value)
    for path in secret_paths(type(value)):
        holder, key = _holder(shape, path)
        if holder is not None and key in holder:
            holder[key] = SECRET_SET if holder[key] else SECRET_NOT_SET
    return shape


def secrets_of(value: Value) -> dict[str, str]:
    """The plain secrets that the value holds, by path."""
    found = {}
    for path in secret_paths(type(value)):
        secret = _get(value, path)
        if isinstance(secret, SecretStr):
            found[path] = secret.get_secret_value()
    return found


def stored_shape(value: Value, secrets: Mapping[str, int]) -> dict[str, Any]:
    """The value as stored: each secret by the number of its row."""
    shape = plain_shape(value)
    for path in secret_paths(type(value)):
        holder, key = _holder(shape, path)
        if holder is not None and key in holder:
            holder[key] = secrets.get(path)
    return shape


def with_secrets(shape: dict[str, Any], model: type[Value], open_secret: Callable[[str, int], str]) -> dict[str, int]:
    """Put the plain secrets into a stored shape, in place. Returns path -> number of the row."""
    numbers: dict[str, int] = {}
    for path in secret_paths(model):
        holder, key = _holder(shape, path)
        if holder is not None and isinstance(holder.get(key), int):
            numbers[path] = holder[key]
            holder[key] = open_secret(path, holder[key])
    return numbers


def bound_values(value: Value) -> dict[str, Any]:
    """The fields to which the value's secrets are bound (design.md section 3)."""
    shape = plain_shape(value)
    found = {}
    for described in fields_of(type(value)):
        if described.binds_secret:
            holder, key = _holder(shape, described.path)
            found[described.path] = holder.get(key) if holder is not None else None
    return found


def changed_bindings(before: Value, after: Value) -> tuple[str, ...]:
    """Labels of the fields that bind secrets and differ: the reasons to ask for a stored secret again."""
    earlier, later = bound_values(before), bound_values(after)
    labels = {f.path: f.label for value in (before, after) for f in fields_of(type(value))}
    paths = dict.fromkeys((*later, *earlier))
    return tuple(dict.fromkeys(labels[path] for path in paths if earlier.get(path) != later.get(path)))


# ---------------------------------------------------------------- accepted shapes


def patched_shape(value: Value, patch: Mapping[str, Any], members: Mapping[str, type[Value]] | None) -> dict[str, Any]:
    """The shape that a merge patch (RFC 7396) makes of a value; `members` are the kinds, where there are several.

    Secrets are left out unless the patch brings them; null there removes one. Another tag (`kind`, `auth.type`) starts
    with the fields that both members have, or with none for a nested value: a user name of one way to sign in means
    nothing to the next.
    """
    model = type(value)
    shape = plain_shape(value)
    for path in secret_paths(model):
        holder, key = _holder(shape, path)
        if holder is not None:
            holder.pop(key, None)
    wanted = (members or {}).get(str(patch.get("kind")), model)
    if wanted is not model:
        shape = {name: entry for name, entry in shape.items() if name in wanted.model_fields and name != "kind"}
    return _merge(shape, patch, wanted, frozenset(secret_paths(wanted)), "")


def _merge(
    shape: dict[str, Any], patch: Mapping[str, Any], model: type[BaseModel] | None, secrets: frozenset[str], prefix: str
) -> dict[str, Any]:
    merged = dict(shape)
    for name, entry in patch.items():
        info = model.model_fields.get(name) if model is not None else None
        if entry is None and prefix + name not in secrets and (model is None or info is not None):
            # An unknown name stays, and is refused with the rest: a misspelt one must not look like a change.
            merged.pop(name, None)
        elif isinstance(entry, Mapping):
            present = merged.get(name)
            base = present if isinstance(present, dict) else {}
            tag = info.discriminator if info is not None else None
            if isinstance(tag, str) and tag in entry and entry[tag] != base.get(tag):
                base = {}
            members = union_members(info) if info is not None else {}
            member = members.get(str({**base, **entry}.get(tag))) if isinstance(tag, str) else None
            merged[name] = _merge(base, entry, member, secrets, f"{prefix}{name}.")
        else:
            merged[name] = entry
    return merged


def left_out_secrets(shape: Mapping[str, Any], model: type[Value]) -> tuple[str, ...]:
    """The secrets that an accepted shape leaves out although it has the place for them."""
    found = []
    for described in fields_of(model):
        holder, key = _holder(shape, described.path)
        if described.is_secret and holder is not None and key not in holder and _has_place(holder, described):
            found.append(described.path)
    return tuple(found)


def _has_place(holder: Mapping[str, Any], described: FieldDescription) -> bool:
    """Whether the tag beside the field names a member of the union that has the field."""
    parent = described.path.rpartition(".")[0] + "."
    tags = {path.removeprefix(parent): values for path, values in described.applies.items() if path.startswith(parent)}
    return all(holder.get(tag) in values for tag, values in tags.items())


def placeholders(shape: Mapping[str, Any], model: type[Value]) -> tuple[str, ...]:
    """The secrets for which a shape holds what is only ever shown: somebody sends back what was read."""
    return tuple(path for path in secret_paths(model) if get_path(shape, path) in (SECRET_SET, SECRET_NOT_SET))


def without_path(shape: Mapping[str, Any], path: str) -> dict[str, Any]:
    """A copy of a shape without the entry at a dotted path."""
    name, _, rest = path.partition(".")
    copy = dict(shape)
    if not rest:
        copy.pop(name, None)
    elif isinstance(copy.get(name), Mapping):
        copy[name] = without_path(copy[name], rest)
    return copy


def with_path(shape: Mapping[str, Any], path: str, entry: Any) -> dict[str, Any]:
    """A copy of a shape with another entry at a dotted path; what lies between is made."""
    name, _, rest = path.partition(".")
    inner = shape.get(name)
    return {**shape, name: with_path(inner if isinstance(inner, Mapping) else {}, rest, entry) if rest else entry}


def get_path(shape: Mapping[str, Any], path: str) -> Any:
    """The entry at a dotted path, or None."""
    holder, key = _holder(shape, path)
    return holder.get(key) if holder is not None else None


def set_path(shape: dict[str, Any], path: str, entry: Any) -> None:
    """Set the entry at a dotted path; what lies between is made."""
    *between, last = path.split(".")
    for part in between:
        shape = shape.setdefault(part, {})
    shape[last] = entry


def _holder(shape: Any, path: str) -> tuple[dict[str, Any] | None, str]:
    """The innermost dictionary around a dotted path, where there is one, and the last name."""
    *between, last = path.split(".")
    for part in between:
        shape = shape.get(part) if isinstance(shape, dict) else None
    return (shape if isinstance(shape, dict) else None), last


def _get(value: Any, path: str) -> Any:
    for part in path.split("."):
        value = getattr(value, part, None)
    return value
