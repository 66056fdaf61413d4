"""What is configured, in the store: objects with their versions and secrets, the change log, and the directory.

Functions take a connection inside a transaction; whoever calls decides what is one transaction. Every change takes the
next configuration version under a lock, so that versions are gapless in commit order and a node that has seen version n
has seen everything before it.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from pydantic import ValidationError
from sqlalchemy import Connection, Row, Table, delete, func, insert, select, text, update

from posthouse.errors import Conflict, InvalidInput, LocalFault, NotFound, SecretUnreadable
from posthouse.model.actor import Actor
from posthouse.model.application import Application
from posthouse.model.certificate import Certificate
from posthouse.model.directory import Credential, Directory, ServerRecord
from posthouse.model.fields import Value
from posthouse.model.identifier import IdentifierSource, format_id
from posthouse.model.installation import Installation
from posthouse.model.problems import member_of
from posthouse.model.record import (
    SECRET_CHANGED,
    SECRET_NOT_SET,
    SECRET_SET,
    Record,
    get_path,
    owner_number,
    secret_paths,
    secrets_of,
    stored_shape,
    with_secrets,
    without_path,
)
from posthouse.model.server import SERVER_KINDS, server_adapter
from posthouse.model.tenant import Tenant
from posthouse.store import schema
from posthouse.store.vault import KeyRing

T = TypeVar("T")

# Any constant: the lock under which configuration versions are given out (PostgreSQL; SQLite has one writer).
_VERSION_LOCK = 7_015_001

# What other nodes listen to (PostgreSQL).
CHANNEL = "posthouse_configuration"

# Above this many changes since the last look the whole directory is read again.
_INCREMENTAL = 500

# Replaced secrets stay this long, so that an earlier version can be restored (design.md section 3).
KEEP_REPLACED_SECRETS_MS = 30 * 86_400_000


@dataclass(frozen=True, slots=True)
class Noun:
    """A kind of configured object: its word, table and model."""

    word: str
    table: Table
    model: type[Value]

    def model_for_input(self, shape: Mapping[str, Any]) -> type[Value]:
        """Like `model_for`, for a shape that somebody sent. Raises InvalidInput for a tag that does not exist."""
        return member_of(SERVER_KINDS, shape) if self.word == "server" else self.model

    def parse(self, shape: Mapping[str, Any]) -> Value:
        """The value behind a stored shape."""
        if self.word == "server":
            return server_adapter.validate_python(shape)
        return self.model.model_validate(shape)

    def model_for(self, shape: Mapping[str, Any]) -> type[Value]:
        """The class of the value behind a shape: for a tagged union the member that the tag names."""
        if self.word == "server":
            return SERVER_KINDS[str(shape.get("kind", ""))]
        return self.model


NOUNS = {
    noun.word: noun
    for noun in (
        Noun("tenant", schema.tenant, Tenant),
        Noun("server", schema.server, Value),
        Noun("application", schema.application, Application),
        Noun("certificate", schema.certificate, Certificate),
    )
}

# Nouns of the change log that have no versions of their own.
INSTALLATION = "settings"
CREDENTIAL = "credential"


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """A version of an object as it was saved: `shape` is the stored one, secrets by the number of their row."""

    version: int
    at_ms: int
    actor: str
    shape: dict[str, Any]


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change of the configuration. `version` is the configuration version that it made."""

    version: int
    at_ms: int
    actor_kind: str
    actor_id: int
    actor_name: str
    tenant_id: int
    noun: str
    object_id: int
    object_name: str
    action: str
    changes: Mapping[str, Any]


class Change:
    """One configuration change being written: gives out the version, and writes objects and log under it."""

    def __init__(self, connection: Connection, ring: KeyRing, ids: IdentifierSource, actor: Actor, now_ms: int) -> None:
        self.connection = connection
        self.ring = ring
        self.ids = ids
        self.actor = actor
        self.now_ms = now_ms
        # The last audit entry that was written, by which a commit of unknown outcome is recognised.
        self.entry: dict[str, Any] | None = None
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _VERSION_LOCK})
        self.version = int(connection.execute(select(func.coalesce(func.max(schema.change.c.id), 0))).scalar_one())

    def is_committed(self, connection: Connection) -> bool:
        """Whether this change, whose commit had an unknown outcome, is in the store after all."""
        table = schema.change
        if self.entry is None:
            return False
        found = connection.execute(select(table).where(table.c.id == self.version)).first()
        return found is not None and {name: getattr(found, name) for name in self.entry} == self.entry

    def log(
        self, noun: str, object_id: int, object_name: str, tenant_id: int, action: str, difference: Mapping[str, Any]
    ) -> None:
        """Write the audit entry, which is the next configuration version."""
        self.version += 1
        self.entry = {
            "at_ms": self.now_ms,
            "actor_kind": self.actor.kind,
            "actor_id": self.actor.id,
            "actor_name": self.actor.name,
            "tenant_id": tenant_id,
            "noun": noun,
            "object_id": object_id,
            "object_name": object_name,
            "action": action,
            "difference": json.dumps(difference, ensure_ascii=False),
        }
        self.connection.execute(insert(schema.change).values(id=self.version, **self.entry))
        if self.connection.dialect.name == "postgresql":
            # Sent with the commit, once however many entries there are: other nodes look at the version (section 7).
            self.connection.execute(text("SELECT pg_notify(:channel, '')"), {"channel": CHANNEL})

    def save(self, word: str, value: Value, before: Record[Any] | None, kept: Mapping[str, int], action: str) -> int:
        """Write an object: a new one, or the next version of `before`. New plain secrets of the value are sealed;
        `kept` names the rows of those that stay. Returns the identifier. Raises Conflict where the name is taken."""
        noun = NOUNS[word]
        object_id = before.id if before else self.ids()
        self._refuse_taken_name(noun, object_id, value)
        numbers = {**kept, **self._seal(word, object_id, value, kept)}
        if before is not None:
            self._retire(set(before.secrets.values()) - set(numbers.values()))
            self._revive(numbers.values())
        version = before.version + 1 if before else 1
        config = json.dumps(stored_shape(value, numbers), ensure_ascii=False, separators=(",", ":"))
        row = {"config": config, "version": version, "changed_ms": self.now_ms, **_columns(noun, value)}
        if before is None:
            self.connection.execute(insert(noun.table).values(id=object_id, created_ms=self.now_ms, **row))
        else:
            self.connection.execute(update(noun.table).where(noun.table.c.id == object_id).values(**row))
        self.keep_version(word, object_id, version, config)
        owner = object_id if word == "tenant" else owner_number(value)
        self.log(word, object_id, str(row["name"]), owner, action, _difference(before, value))
        return object_id

    def keep_version(self, word: str, object_id: int, version: int, config: str) -> None:
        """Keep a version for `history`."""
        self.connection.execute(
            insert(schema.object_version).values(
                noun=word,
                object_id=object_id,
                version=version,
                at_ms=self.now_ms,
                actor_name=self.actor.name,
                config=config,
            )
        )

    def delete(self, word: str, record: Record[Any]) -> None:
        """Remove an object. Its versions stay for the history, its secrets until they are pruned."""
        table = NOUNS[word].table
        self.connection.execute(delete(table).where(table.c.id == record.id))
        self._retire(set(record.secrets.values()))
        owner = record.id if word == "tenant" else record.tenant_id
        self.log(word, record.id, record.name, owner, "delete", {})

    def _refuse_taken_name(self, noun: Noun, object_id: int, value: Value) -> None:
        columns = _columns(noun, value)
        where = [noun.table.c.name == columns["name"], noun.table.c.id != object_id]
        if "tenant_id" in columns:
            where.append(noun.table.c.tenant_id == columns["tenant_id"])
        if self.connection.execute(select(noun.table.c.id).where(*where)).first():
            raise Conflict(
                f"There is already a {noun.word} with this name.", remedy="Choose another name.", field="name",
                code="name-taken",
            )  # fmt: skip

    def _seal(self, word: str, object_id: int, value: Value, kept: Mapping[str, int]) -> dict[str, int]:
        numbers = {}
        for path, plain in secrets_of(value).items():
            if path in kept:
                continue
            number = self.ids()
            key_id, sealed = self.ring.seal(plain, bound_to=_binding(number, word, object_id, path))
            self.connection.execute(
                insert(schema.secret).values(
                    id=number,
                    noun=word,
                    object_id=object_id,
                    field=path,
                    key_id=key_id,
                    sealed=sealed,
                    created_ms=self.now_ms,
                )
            )
            numbers[path] = number
        return numbers

    def _retire(self, numbers: Iterable[int]) -> None:
        gone = list(numbers)
        if gone:
            self._mark_replaced(gone, self.now_ms)

    def _revive(self, numbers: Iterable[int]) -> None:
        """A restored version uses the secrets of its time again."""
        used = list(numbers)
        if used:
            self._mark_replaced(used, None)

    def _mark_replaced(self, numbers: list[int], at_ms: int | None) -> None:
        table = schema.secret
        self.connection.execute(update(table).where(table.c.id.in_(numbers)).values(replaced_ms=at_ms))

    def forget_replaced(self, word: str, object_id: int) -> None:
        """Remove the object's replaced secrets at once."""
        self.connection.execute(
            delete(schema.secret).where(
                schema.secret.c.noun == word,
                schema.secret.c.object_id == object_id,
                schema.secret.c.replaced_ms.is_not(None),
            )
        )

    def save_installation(self, value: Installation, before: Installation) -> None:
        """Write the settings of the installation."""
        after, earlier = value.model_dump(mode="json"), before.model_dump(mode="json")
        changed = {k: [earlier[k], v] for k, v in after.items() if earlier[k] != v}
        for name in changed:
            self.connection.execute(delete(schema.setting).where(schema.setting.c.name == name))
            self.connection.execute(insert(schema.setting).values(name=name, value=json.dumps(after[name])))
        self.log(INSTALLATION, 0, INSTALLATION, 0, "edit", changed)


def _binding(number: int, word: str, object_id: int, path: str) -> str:
    return f"secret/{number}/{word}/{object_id}/{path}"


def _columns(noun: Noun, value: Value) -> dict[str, Any]:
    """What stands in columns of its own beside the JSON, because the database keeps it unique."""
    shape = value.model_dump(include={"name", "enabled", "is_default"})
    columns = {name: shape[name] for name in ("name", "enabled", "is_default") if name in noun.table.c}
    if "tenant_id" in noun.table.c:
        columns["tenant_id"] = owner_number(value)
    return columns


def _difference(before: Record[Any] | None, value: Value) -> dict[str, list[Any]]:
    """Field -> [before, after] of what changed; of secrets only that they did."""
    earlier = _flat(stored_shape(before.value, {})) if before else {}
    difference = _pairs(earlier, _flat(stored_shape(value, {})))
    difference.update(_secret_pairs(secrets_of(before.value) if before else {}, secrets_of(value)))
    return difference


def difference_of_versions(
    earlier: Mapping[str, Any] | None, later: Mapping[str, Any], word: str
) -> dict[str, list[Any]]:
    """Field -> [before, after] between two stored shapes; of secrets only that they changed."""
    shapes = [dict(earlier or {}), dict(later)]
    numbers: list[dict[str, Any]] = []
    for index, shape in enumerate(shapes):
        paths = secret_paths(NOUNS[word].model_for(shape)) if shape else ()
        numbers.append({path: get_path(shape, path) for path in paths if get_path(shape, path) is not None})
        for path in paths:
            shapes[index] = without_path(shapes[index], path)
    return {**_pairs(_flat(shapes[0]), _flat(shapes[1])), **_secret_pairs(numbers[0], numbers[1])}


def _pairs(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {k: [earlier.get(k), later.get(k)] for k in {**earlier, **later} if earlier.get(k) != later.get(k)}


def _secret_pairs(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, list[Any]]:
    pairs = {}
    for path in {**earlier, **later}:
        old, new = earlier.get(path), later.get(path)
        if old != new:
            after = SECRET_NOT_SET if new is None else SECRET_SET if old is None else SECRET_CHANGED
            pairs[path] = [SECRET_NOT_SET if old is None else SECRET_SET, after]
    return pairs


def _flat(shape: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in shape.items():
        if isinstance(entry, dict):
            flat.update(_flat(entry, f"{prefix}{key}."))
        else:
            flat[prefix + key] = entry
    return flat


class Transaction(Generic[T]):
    """One configuration change as a work of `Database.write`: returns what `function` returned and the directory after.

    `function` gets the change and the directory as the transaction sees it. What it wrote is read back before the
    commit: values of which no directory can be made are not saved, whatever let them through.
    """

    def __init__(
        self,
        ring: KeyRing,
        ids: IdentifierSource,
        actor: Actor,
        now_ms: int,
        known: Callable[[], Directory],
        function: Callable[[Change, Directory], T],
    ) -> None:
        self._ring = ring
        self._ids = ids
        self._actor = actor
        self._now_ms = now_ms
        self._known = known
        self._function = function
        self._attempt: tuple[Change, tuple[T, Directory]] | None = None

    def __call__(self, connection: Connection) -> tuple[T, Directory]:
        """Safe to run again: where an earlier commit of unknown outcome has succeeded, its answer is given again."""
        if self._attempt is not None and self._attempt[0].is_committed(connection):
            return self._attempt[1]
        change = Change(connection, self._ring, self._ids, self._actor, self._now_ms)
        directory = load_directory(connection, self._ring, self._known())
        answer = self._function(change, directory), _read_back(connection, self._ring, directory)
        self._attempt = change, answer
        return answer


def _read_back(connection: Connection, ring: KeyRing, before: Directory) -> Directory:
    try:
        return load_directory(connection, ring, before)
    except ValueError:
        pass
    # Outside of the handler: the error may hold the value.
    raise InvalidInput.of("", "not-allowed", "These values do not fit together: mail could not be routed with them.")


# ---------------------------------------------------------------- reading


def read_object(connection: Connection, ring: KeyRing, word: str, object_id: int) -> Record[Any]:
    """One object. Raises NotFound, SecretUnreadable."""
    table = NOUNS[word].table
    row = connection.execute(select(table).where(table.c.id == object_id)).first()
    if row is None:
        raise NotFound(f"There is no such {word}.")
    return _record(NOUNS[word], row, _SecretReader(connection, ring, word, [object_id]))


def read_version(connection: Connection, word: str, object_id: int, version: int) -> dict[str, Any]:
    """The stored shape of an earlier version. Raises NotFound."""
    table = schema.object_version
    config = connection.execute(
        select(table.c.config).where(table.c.noun == word, table.c.object_id == object_id, table.c.version == version)
    ).scalar()
    if config is None:
        raise NotFound(f"There is no version {version} of this {word}.")
    return cast(dict[str, Any], json.loads(config))


def read_versions(connection: Connection, word: str, object_id: int) -> list[KeptVersion]:
    """All versions of an object, newest first; also of a deleted one."""
    table = schema.object_version
    query = select(table).where(table.c.noun == word, table.c.object_id == object_id).order_by(table.c.version.desc())
    return [
        KeptVersion(row.version, row.at_ms, row.actor_name, json.loads(row.config)) for row in connection.execute(query)
    ]


def open_secret(connection: Connection, ring: KeyRing, word: str, object_id: int, path: str, number: int) -> str | None:
    """A sealed secret by the number of its row; None where it has been pruned."""
    row = connection.execute(select(schema.secret).where(schema.secret.c.id == number)).first()
    if row is None:
        return None
    return ring.open(row.key_id, row.sealed, bound_to=_binding(number, word, object_id, path))


class _SecretReader:
    """Opens the secrets of many objects of one noun with one query."""

    def __init__(self, connection: Connection, ring: KeyRing, word: str, only: Iterable[int] | None = None) -> None:
        self._ring = ring
        self._word = word
        query = select(schema.secret).where(schema.secret.c.noun == word, schema.secret.c.replaced_ms.is_(None))
        if only is not None:
            query = query.where(schema.secret.c.object_id.in_(list(only)))
        self._rows = {row.id: row for row in connection.execute(query)}

    def open(self, object_id: int, path: str, number: int) -> str:
        row = self._rows.get(number)
        if row is None:
            raise SecretUnreadable(
                f"A stored secret of the {self._word} {format_id(object_id)} is gone ({path}).",
                remedy="Restore the database from a backup.",
            )
        return self._ring.open(row.key_id, row.sealed, bound_to=_binding(number, self._word, object_id, path))


def _record(noun: Noun, row: Row[Any], secrets: _SecretReader) -> Record[Any]:
    shape = json.loads(row.config)
    try:
        numbers = with_secrets(shape, noun.model_for(shape), lambda path, number: secrets.open(row.id, path, number))
        return Record(row.id, row.version, noun.parse(shape), row.created_ms, row.changed_ms, numbers)
    except (ValidationError, KeyError):
        pass
    # Outside of the handler: pydantic's error holds the value.
    raise LocalFault(
        f"The stored {noun.word} {format_id(row.id)} cannot be read by this release.",
        remedy="Use the release that wrote it, or a newer one.",
    )


def prune_secrets(connection: Connection, now_ms: int) -> int:
    """Remove secrets that were replaced longer ago than they are kept. Returns how many."""
    table = schema.secret
    return connection.execute(delete(table).where(table.c.replaced_ms <= now_ms - KEEP_REPLACED_SECRETS_MS)).rowcount


def current_version(connection: Connection) -> int:
    """The configuration version."""
    return int(connection.execute(select(func.coalesce(func.max(schema.change.c.id), 0))).scalar_one())


def load_directory(connection: Connection, ring: KeyRing, known: Directory | None = None) -> Directory:
    """The directory of the present version. What did not change since `known` is taken from it.

    Raises SecretUnreadable: a key ring that does not belong to the database is refused, never read as empty secrets.
    """
    version = current_version(connection)
    if known is not None and known.version == version:
        return known
    changed = _changed_since(connection, known.version) if known is not None and known.version < version else None
    if known is None or changed is None:
        known, changed = Directory(), None
    objects: dict[str, dict[int, Any]] = {
        word: _load_objects(connection, ring, noun, getattr(known, f"{word}s"), changed) for word, noun in NOUNS.items()
    }
    return Directory(
        version=version,
        installation=_load_installation(connection),
        tenants=objects["tenant"],
        servers=cast(dict[int, ServerRecord], objects["server"]),
        applications=objects["application"],
        certificates=objects["certificate"],
        credentials=_load_credentials(connection, known, changed),
    ).prepare()


def _changed_since(connection: Connection, version: int) -> dict[str, set[int]] | None:
    """Noun -> identifiers of what changed after a version; None where that is so much that everything is read again."""
    rows = connection.execute(
        select(schema.change.c.noun, schema.change.c.object_id)
        .where(schema.change.c.id > version)
        .limit(_INCREMENTAL + 1)
    ).all()
    if len(rows) > _INCREMENTAL:
        return None
    changed: dict[str, set[int]] = {}
    for noun, object_id in rows:
        changed.setdefault(noun, set()).add(object_id)
    return changed


def _load_objects(
    connection: Connection,
    ring: KeyRing,
    noun: Noun,
    before: Mapping[int, Any],
    changed: Mapping[str, set[int]] | None,
) -> dict[int, Any]:
    """All objects of a noun. `changed` None: read all of them; else only what it names."""
    query = select(noun.table)
    only: set[int] | None = None
    objects = dict(before)
    if changed is not None:
        only = changed.get(noun.word, set())
        if not only:
            return objects
        for object_id in only:
            objects.pop(object_id, None)
        query = query.where(noun.table.c.id.in_(list(only)))
    secrets = _SecretReader(connection, ring, noun.word, only)
    for row in connection.execute(query):
        objects[row.id] = _record(noun, row, secrets)
    return objects


def _load_installation(connection: Connection) -> Installation:
    stored = {row.name: json.loads(row.value) for row in connection.execute(select(schema.setting))}
    return Installation.model_validate({k: v for k, v in stored.items() if k in Installation.model_fields})


def _load_credentials(
    connection: Connection, known: Directory, changed: Mapping[str, set[int]] | None
) -> Mapping[str, Credential]:
    table = schema.credential
    query = select(table)
    credentials: dict[str, Credential] = {}
    if changed is not None:
        only = changed.get(CREDENTIAL, set())
        if not only:
            return known.credentials
        credentials = {handle: c for handle, c in known.credentials.items() if c.id not in only}
        query = query.where(table.c.id.in_(list(only)))
    for row in connection.execute(query):
        credentials[row.handle] = Credential(
            row.id, row.kind, row.application_id, row.tenant_id, row.name, row.role, row.handle, row.key_id,
            bytes(row.digest), row.expires_ms,
        )  # fmt: skip
    return credentials


def read_audit(
    connection: Connection, *, tenant_id: int, noun: str | None, object_id: int | None, before: int | None, limit: int
) -> list[AuditEntry]:
    """The audit log, newest first; for a tenant its own entries only."""
    table = schema.change
    query = select(table).order_by(table.c.id.desc()).limit(limit)
    if tenant_id:
        query = query.where(table.c.tenant_id == tenant_id)
    if noun:
        query = query.where(table.c.noun == noun)
    if object_id is not None:
        query = query.where(table.c.object_id == object_id)
    if before is not None:
        query = query.where(table.c.id < before)
    return [
        AuditEntry(
            row.id, row.at_ms, row.actor_kind, row.actor_id, row.actor_name, row.tenant_id, row.noun, row.object_id,
            row.object_name, row.action, json.loads(row.difference),
        )
        for row in connection.execute(query)
    ]  # fmt: skip
