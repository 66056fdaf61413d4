"""The administration job: everything that is configured is saved, shown, compared and restored here.

Each method asks the actor for permission, changes the store in one transaction, and has the change in force on this
node when it returns. Inside the transaction the directory is read as that transaction sees it, the rules of
`model/consistency.py` are asked, the objects and the audit entries are written, and the directory is built once more
from what was written: what could not be read back is not saved. A tenant's actor meets `NotFound` for everything
outside of the tenant.

It does not decide where mail goes (`model/routing.py`), nor what becomes of mail whose server is gone (`delivery.py`):
it says how many recipients wait.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Row

from posthouse.clock import Clock
from posthouse.errors import Conflict, FieldProblem, InvalidInput, NotAuthenticated, NotFound, NotPermitted
from posthouse.model.actor import Actor, Permission, Role
from posthouse.model.certificate import Certificate
from posthouse.model.certificate_facts import normalised_pem
from posthouse.model.consistency import (
    default_of,
    no_such_tenant,
    obstacles_to_deleting,
    obstacles_to_saving,
    problems_between,
    servers_of,
)
from posthouse.model.directory import Credential, Directory, ServerRecord
from posthouse.model.fields import Value
from posthouse.model.identifier import IdentifierSource, format_id, parse_id
from posthouse.model.installation import Installation
from posthouse.model.problems import read_value
from posthouse.model.record import (
    SECRET_NOT_SET,
    SECRET_SET,
    Record,
    changed_bindings,
    get_path,
    left_out_secrets,
    owner_number,
    patched_shape,
    placeholders,
    secret_paths,
    secrets_of,
    with_path,
    without_path,
)
from posthouse.model.server import SERVER_KINDS, ServerCommon
from posthouse.store import configuration, credentials, messages
from posthouse.store.configuration import NOUNS, Change, Noun, load_directory
from posthouse.store.credentials import API_KEY, SMTP, TOKEN, CredentialInfo, Issued
from posthouse.store.database import Database
from posthouse.store.directory_source import DirectorySource
from posthouse.store.vault import KeyRing

T = TypeVar("T")
ServerValue = ServerCommon

# Names of credentials are shown in lists and logs.
_MAX_NAME = 100


@dataclass(frozen=True, slots=True)
class Deletion:
    """What was deleted, and sentences that whoever asked should read."""

    deleted: tuple[int, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a list; `next` is the cursor of the following part, None at the end."""

    items: tuple[T, ...]
    next: int | None


@dataclass(frozen=True, slots=True)
class ObjectFilter:
    """What a list of objects is narrowed to. None: not narrowed. `tenant_id` 0: the global ones."""

    tenant_id: int | None = None
    name: str | None = None
    search: str | None = None
    enabled: bool | None = None
    kind: str | None = None


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One entry of an object's history: what that version changed, field -> [before, after]."""

    version: int
    at_ms: int
    actor: str
    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """An earlier version as shown: secrets are `set` or `not set`."""

    version: int
    at_ms: int
    actor: str
    shape: Mapping[str, Any]


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


@dataclass(frozen=True, slots=True)
class ApplicationKeys:
    """What a new application is told once."""

    api_key: str = field(repr=False)
    smtp_username: str
    smtp_password: str = field(repr=False)


class Administration:
    """Saves and shows what is configured. See the module's text for what holds of every method."""

    def __init__(
        self,
        database: Database,
        ring: KeyRing,
        ids: IdentifierSource,
        clock: Clock,
        directory_source: DirectorySource,
    ) -> None:
        self._database = database
        self._ring = ring
        self._ids = ids
        self._clock = clock
        self._source = directory_source

    # ------------------------------------------------------------ showing

    def show(self, actor: Actor, word: str, object_id: int) -> Record[Any]:
        """One object. Raises NotFound."""
        actor.require(Permission.READ)
        return _find(self._source.current, actor, word, object_id)

    def list_objects(
        self, actor: Actor, word: str, wanted: ObjectFilter | None = None, *, after: int | None = None, limit: int = 100
    ) -> Page[Record[Any]]:
        """The objects that the actor may see, oldest first, after the cursor `after`."""
        actor.require(Permission.READ)
        wanted = wanted or ObjectFilter()
        rest = sorted(
            (
                record
                for record in _objects(self._source.current, word).values()
                if record.id > (after or 0) and _may_see(actor, word, record) and _fits(record, word, wanted)
            ),
            key=lambda record: record.id,
        )
        return Page(tuple(rest[:limit]), rest[limit - 1].id if len(rest) > limit else None)

    # ------------------------------------------------------------ saving

    async def create(self, actor: Actor, word: str, shape: Mapping[str, Any]) -> Record[Any]:
        """Make an object of a shape with strict JSON types; a tenant's actor makes it the tenant's. An owner's first
        server becomes its default. Raises InvalidInput, Conflict."""
        number, after = await self._change(actor, lambda e: e.create(word, shape))
        return _record_in(after, word, number)

    async def create_application(self, actor: Actor, shape: Mapping[str, Any]) -> tuple[Record[Any], ApplicationKeys]:
        """Make an application together with an API key and an SMTP credential, told this once."""

        def work(editing: "_Editing") -> tuple[int, ApplicationKeys]:
            number = editing.create("application", shape)
            record = configuration.read_object(editing.change.connection, self._ring, "application", number)
            key, smtp = (editing.issue_key(record, kind, "") for kind in (API_KEY, SMTP))
            return number, ApplicationKeys(key.plain, smtp.info.handle, smtp.plain)

        (number, keys), after = await self._change(actor, work)
        return _record_in(after, "application", number), keys

    async def replace(
        self,
        actor: Actor,
        word: str,
        object_id: int,
        shape: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        forget: bool = False,
    ) -> Record[Any]:
        """Replace the whole value. A secret left out is kept while every field that binds it is unchanged, else
        InvalidInput asks for it; `is_default` left out stays as it is. `forget`: replaced secrets go at once. What
        changes nothing makes no version. Raises InvalidInput, Conflict, NotFound."""

        def work(editing: "_Editing") -> None:
            before = editing.find(word, object_id, expected_version)
            editing.update(word, before, dict(shape), forget=forget)

        _, after = await self._change(actor, work)
        return _record_in(after, word, object_id)

    async def patch(
        self,
        actor: Actor,
        word: str,
        object_id: int,
        merge_patch: Mapping[str, Any],
        *,
        expected_version: int | None = None,
        forget: bool = False,
    ) -> Record[Any]:
        """Change the fields that a merge patch names (RFC 7396); null gives a field its default and removes a secret.
        Otherwise as `replace`."""

        def work(editing: "_Editing") -> None:
            before = editing.find(word, object_id, expected_version)
            shape = patched_shape(before.value, merge_patch, SERVER_KINDS if word == "server" else None)
            if "is_default" not in merge_patch:
                shape.pop("is_default", None)
            editing.update(word, before, shape, forget=forget)

        _, after = await self._change(actor, work)
        return _record_in(after, word, object_id)

    async def delete(self, actor: Actor, word: str, ids: Sequence[int], *, successor: int | None = None) -> Deletion:
        """Delete objects, all or none. Raises Conflict where something still needs one of them, and, code
        `successor-needed`, where a default goes whose owner has other enabled servers and none of them is named."""
        numbers = tuple(dict.fromkeys(ids))
        waiting = await self._count_waiting(numbers) if word == "server" else 0
        warnings, _ = await self._change(actor, lambda e: e.delete(word, numbers, successor))
        return Deletion(numbers, (*warnings, *_waiting_sentence(waiting, "routed again or held")))

    async def make_default(self, actor: Actor, object_id: int) -> Record[Any]:
        """Make a server its owner's default; the present one is demoted in the same transaction."""

        def work(editing: "_Editing") -> None:
            before = editing.find("server", object_id)
            editing.save_server(before, before.value, before.secrets, asked_default=True, action="default")

        _, after = await self._change(actor, work)
        return _record_in(after, "server", object_id)

    async def set_enabled(
        self, actor: Actor, object_id: int, enabled: bool, *, successor: int | None = None
    ) -> tuple[Record[Any], tuple[str, ...]]:
        """Enable or disable a server. Returns it, and sentences that whoever asked should read. Raises Conflict, code
        `successor-needed`, where the default is disabled while its owner has other enabled servers."""
        waiting = 0 if enabled else await self._count_waiting([object_id])

        def work(editing: "_Editing") -> list[str]:
            before = editing.find("server", object_id)
            value = before.value.model_copy(update={"enabled": enabled})
            editing.save_server(
                before, value, before.secrets, action="enable" if enabled else "disable", successor=successor
            )
            return [] if enabled else editing.warnings_without([before.id])

        warnings, after = await self._change(actor, work)
        sentences = _waiting_sentence(waiting, "held or routed again")
        return _record_in(after, "server", object_id), (*warnings, *sentences)

    # ------------------------------------------------------------ history

    async def history(self, actor: Actor, word: str, object_id: int) -> list[VersionInfo]:
        """The versions of an object, newest first, each with what it changed; also of a deleted one. Raises
        NotFound."""
        actor.require(Permission.READ)
        rows = await self._versions(actor, word, object_id)
        shapes = [json.loads(row.config) for row in rows]
        return [
            VersionInfo(
                row.version, row.at_ms, row.actor_name, configuration.difference_of_versions(earlier, shape, word)
            )
            for row, shape, earlier in zip(rows, shapes, [*shapes[1:], None], strict=True)
        ]

    async def version(self, actor: Actor, word: str, object_id: int, number: int) -> StoredVersion:
        """An earlier version as shown. Raises NotFound."""
        actor.require(Permission.READ)
        for row in await self._versions(actor, word, object_id):
            if row.version == number:
                return StoredVersion(number, row.at_ms, row.actor_name, _shown_version(word, json.loads(row.config)))
        raise NotFound(f"There is no version {number} of this {word}.")

    async def _versions(self, actor: Actor, word: str, object_id: int) -> list[Row[Any]]:
        """The versions that the actor may see: those of a time with another owner are that owner's."""
        _noun(word)
        rows = await self._database.read(lambda c: configuration.read_versions(c, word, object_id))
        seen = [row for row in rows if actor.reaches(_owner_of_shape(word, object_id, json.loads(row.config)))]
        if not seen or (object_id in _objects(self._source.current, word) and seen[0] is not rows[0]):
            raise NotFound(f"There is no such {word}.")
        return seen

    async def restore(
        self, actor: Actor, word: str, object_id: int, number: int, secrets: Mapping[str, str] | None = None
    ) -> Record[Any]:
        """Make an earlier version the next one, with the secrets of its time; one that is no longer there must come in
        `secrets` (path -> plain), else InvalidInput names it. Which server is the default stays as it is."""

        def work(editing: "_Editing") -> None:
            editing.restore(word, editing.find(word, object_id), number, secrets or {})

        _, after = await self._change(actor, work)
        return _record_in(after, word, object_id)

    # ------------------------------------------------------------ settings of the installation

    def installation(self, actor: Actor) -> Installation:
        """The settings of the installation. Raises NotFound for a tenant's actor."""
        actor.require(Permission.READ)
        _require_global(actor)
        return self._source.current.installation

    async def change_installation(self, actor: Actor, patch: Mapping[str, Any]) -> tuple[Installation, tuple[str, ...]]:
        """Change the settings that a merge patch names; null gives one its default. Returns them, and a warning with
        the number of waiting recipients where sending was switched off."""
        actor.require(Permission.CONFIGURE)
        _require_global(actor)

        def work(editing: "_Editing") -> bool:
            before = editing.directory.installation
            value = read_value(Installation, patched_shape(before, patch, None))
            if value != before:
                editing.change.save_installation(value, before)
            return before.sending_enabled and not value.sending_enabled

        switched_off, after = await self._change(actor, work)
        if not switched_off:
            return after.installation, ()
        return after.installation, (_stopped("Sending is off", await self._count_waiting(list(after.servers))),)

    # ------------------------------------------------------------ credentials

    async def keys(self, actor: Actor, application_id: int) -> list[CredentialInfo]:
        """An application's keys and passwords, without the secrets."""
        record = self.show(actor, "application", application_id)
        return await self._database.read(lambda c: credentials.of_application(c, record.id))

    async def issue_key(self, actor: Actor, application_id: int, kind: str, name: str = "") -> Issued:
        """A further `api_key` or `smtp` credential of an application; its secret is told this once."""
        if kind not in (API_KEY, SMTP):
            raise InvalidInput.of("kind", "not-a-choice", f"Choose one of: {API_KEY}, {SMTP}.")
        _check_name(name, required=False)
        issued, _ = await self._change(actor, lambda e: e.issue_key(e.find("application", application_id), kind, name))
        return issued

    async def revoke_key(self, actor: Actor, application_id: int, key_id: int) -> None:
        """Revoke one credential of an application; in force on all nodes within a second. Raises NotFound."""

        def work(editing: "_Editing") -> None:
            record = editing.find("application", application_id)
            for info in credentials.of_application(editing.change.connection, record.id):
                if info.id == key_id:
                    return credentials.revoke(editing.change, info, record.tenant_id)
            raise NotFound("This application has no such key.")

        await self._change(actor, work)

    async def tokens(self, actor: Actor) -> list[CredentialInfo]:
        """The tokens that the actor may see, without the secrets."""
        actor.require(Permission.READ)
        return await self._database.read(lambda c: credentials.tokens(c, actor.tenant_id or None))

    async def create_token(
        self, actor: Actor, name: str, role: str, tenant_id: int | None = None, expires_at_ms: int | None = None
    ) -> Issued:
        """A token for REST, told this once: role administrator, operator or auditor, bound to a tenant where one is
        given. A tenant's actor makes tokens of the tenant."""
        _check_name(name, required=True)
        if role not in (Role.ADMINISTRATOR, Role.OPERATOR, Role.AUDITOR):
            raise InvalidInput.of("role", "not-a-choice", "Choose one of: administrator, operator, auditor.")
        if expires_at_ms is not None and expires_at_ms <= self._clock.now_ms():
            raise InvalidInput.of("expires_at", "out-of-range", "This time has passed. Choose a later one.")
        owner = actor.tenant_id if tenant_id is None else tenant_id

        def work(editing: "_Editing") -> Issued:
            if not actor.reaches(owner) or (owner and owner not in editing.directory.tenants):
                raise InvalidInput([no_such_tenant()])
            return credentials.issue(
                editing.change, kind=TOKEN, name=name, tenant_id=owner, role=role, expires_ms=expires_at_ms, owner=owner
            )

        issued, _ = await self._change(actor, work)
        return issued

    async def revoke_token(self, actor: Actor, token_id: int) -> None:
        """Revoke a token; in force on all nodes within a second. Raises NotFound."""

        def work(editing: "_Editing") -> None:
            for info in credentials.tokens(editing.change.connection, actor.tenant_id or None):
                if info.id == token_id:
                    return credentials.revoke(editing.change, info, info.tenant_id)
            raise NotFound("There is no such token.")

        await self._change(actor, work)

    def authenticate_bearer(self, text: str) -> Actor:
        """The actor behind a token or an API key. Takes the same time whether the handle is known or not. Raises
        NotAuthenticated, and NotPermitted for the key of an application that is disabled."""
        directory = self._source.current
        credential = credentials.recognise_bearer(directory, self._ring, text)
        if credential is None or self._has_expired(credential):
            raise NotAuthenticated(
                "The token or API key is not valid.", remedy="Check that it is complete, not expired and not revoked."
            )
        self._source.credential_used(credential.id)
        if credential.kind == TOKEN:
            return Actor("token", credential.id, credential.name, Role(credential.role), credential.tenant_id)
        if not directory.is_active(credential.application_id):
            raise NotPermitted("This application is disabled.", remedy="Ask the administrator of Posthouse.")
        application = directory.applications[credential.application_id]
        return Actor("application", application.id, application.name, Role.APPLICATION, application.tenant_id)

    def _has_expired(self, credential: Credential) -> bool:
        return credential.expires_ms is not None and credential.expires_ms <= self._clock.now_ms()

    async def write_last_used(self) -> None:
        """Write down which credentials were used since the last call; called once a minute."""
        used, now_ms = self._source.take_used(), self._clock.now_ms()
        if used:
            await self._database.write(lambda c: credentials.write_last_used(c, used, now_ms))

    # ------------------------------------------------------------ audit and upkeep

    async def audit(
        self,
        actor: Actor,
        *,
        before: int | None = None,
        noun: str | None = None,
        object_id: int | None = None,
        limit: int = 100,
    ) -> Page[AuditEntry]:
        """The changes that were made, newest first, before the cursor `before`; a tenant's actor sees the tenant's."""
        actor.require(Permission.READ)
        rows = await self._database.read(
            lambda c: configuration.changes(
                c, tenant_id=actor.tenant_id, noun=noun, object_id=object_id, before=before, limit=limit + 1
            )
        )
        return Page(tuple(map(_audit_entry, rows[:limit])), rows[limit - 1].id if len(rows) > limit else None)

    async def prune_secrets(self, now_ms: int) -> int:
        """Remove secrets that were replaced more than 30 days ago. Returns how many."""
        return await self._database.write(lambda c: configuration.prune_secrets(c, now_ms))

    # ------------------------------------------------------------ the transaction

    async def _change(self, actor: Actor, function: Callable[["_Editing"], T]) -> tuple[T, Directory]:
        """Run `function` in one transaction, and put the directory that follows from it in force."""
        actor.require(Permission.CONFIGURE)
        attempts: list[tuple[Change, T, Directory]] = []

        def work(connection: Connection) -> tuple[T, Directory]:
            if attempts and attempts[-1][0].is_committed(connection):
                # The connection broke during the commit, which had succeeded: nothing is done twice.
                return attempts[-1][1:]
            change = Change(connection, self._ring, self._ids, actor, self._clock.now_ms())
            editing = _Editing(change, load_directory(connection, self._ring, self._source.current))
            result = function(editing)
            after = _read_back(connection, self._ring, editing.directory)
            attempts.append((change, result, after))
            return result, after

        result, after = await self._database.write(work)
        self._source.install(after)
        return result, after

    async def _count_waiting(self, server_ids: Sequence[int]) -> int:
        return await self._database.read(lambda c: messages.count_waiting(c, server_ids))


def _read_back(connection: Connection, ring: KeyRing, before: Directory) -> Directory:
    """The directory that follows from a change. Raises InvalidInput, and so undoes the change, where none does."""
    try:
        return load_directory(connection, ring, before)
    except ValueError:
        pass
    raise InvalidInput.of("", "not-allowed", "These values do not fit together: mail could not be routed with them.")


class _Editing:
    """One change being made: the rules that need both the directory and the store."""

    def __init__(self, change: Change, directory: Directory) -> None:
        self.change = change
        self.directory = directory
        self.actor = change.actor

    def find(self, word: str, object_id: int, expected_version: int | None = None) -> Record[Any]:
        """The object to change. Raises NotFound, Conflict where another version is current, NotPermitted for a tenant
        that is to be changed by its own actor."""
        record = _find(self.directory, self.actor, word, object_id)
        if word == "tenant":
            self._require_global_administrator()
        if expected_version is not None and expected_version != record.version:
            raise Conflict(
                f"This {word} was changed meanwhile: its version is {record.version}.", code="version-changed",
                remedy="Read it again, and make the change from there.",
            )  # fmt: skip
        return record

    def _require_global_administrator(self) -> None:
        if self.actor.tenant_id:
            raise NotPermitted("Tenants are made and changed by global administrators only.", remedy="Ask one of them.")

    # ---------------------------------------------------------------- saving

    def create(self, word: str, shape: Mapping[str, Any]) -> int:
        """A new object."""
        noun = _noun(word)
        if word == "tenant":
            self._require_global_administrator()
        elif self.actor.tenant_id and shape.get("tenant_id") is None:
            shape = {**shape, "tenant_id": format_id(self.actor.tenant_id)}
        model = noun.model_for_input(shape)
        _refuse_placeholders(shape, model)
        value = read_value(model, shape)
        return self._save(word, None, value, {}, asked_default=_asked(shape), action="create")

    def update(self, word: str, before: Record[Any], shape: dict[str, Any], *, forget: bool) -> None:
        """The next version of an object. Secrets that the shape leaves out are kept where they may be."""
        model = _noun(word).model_for_input(shape)
        for path in placeholders(shape, model):
            if path not in before.secrets and get_path(shape, path) == SECRET_SET:
                _refuse_placeholders(shape, model)
            shape = without_path(shape, path)
        kept = {path: before.secrets[path] for path in left_out_secrets(shape, model) if path in before.secrets}
        stored = secrets_of(before.value)
        asked = _asked(shape)
        for path in kept:
            shape = with_path(shape, path, stored[path])
        value = read_value(model, shape)
        _require_unchanged_bindings(before.value, value, kept)
        self._save(word, before, value, kept, asked_default=asked, action="edit")
        if forget:
            self.change.forget_replaced(word, before.id)

    def restore(self, word: str, before: Record[Any], number: int, given: Mapping[str, str]) -> None:
        """An earlier version as the next one."""
        noun = _noun(word)
        shape = configuration.read_version(self.change.connection, word, before.id, number)
        if not self.actor.reaches(_owner_of_shape(word, before.id, shape)):
            raise NotFound(f"There is no version {number} of this {word}.")
        model = noun.model_for_input(shape)
        _refuse_unknown_secrets(given, model)
        kept: dict[str, int] = {}
        for path in secret_paths(model):
            row = get_path(shape, path)
            if row is None:
                continue
            plain = given.get(path)
            if plain is None:
                plain = configuration.open_secret(self.change.connection, self.change.ring, word, before.id, path, row)
                if plain is None:
                    raise InvalidInput.of(
                        path, "secret-needed", f"The secret of version {number} is no longer kept. Enter it to restore."
                    )
                kept[path] = row
            shape = with_path(shape, path, plain)
        shape.pop("is_default", None)
        self._save(word, before, read_value(model, shape), kept, asked_default=None, action="restore")

    def _save(
        self,
        word: str,
        before: Record[Any] | None,
        value: Value,
        kept: Mapping[str, int],
        *,
        asked_default: bool | None,
        action: str,
    ) -> int:
        if isinstance(value, Certificate):
            value = value.model_copy(update={"pem": normalised_pem(value.pem)})
        if isinstance(value, ServerCommon):
            return self.save_server(before, value, kept, asked_default=asked_default, action=action)
        self._check(before, value)
        return self._write(word, before, value, kept, action)

    def _write(self, word: str, before: Record[Any] | None, value: Value, kept: Mapping[str, int], action: str) -> int:
        """Save a checked value, unless it changes nothing."""
        if before is not None and value == before.value and secrets_of(value) == secrets_of(before.value):
            return before.id
        return self.change.save(word, value, before, kept, action)

    def _check(self, before: Record[Any] | None, value: Value) -> None:
        if not isinstance(value, ServerCommon) and getattr(value, "tenant_id", None) is None and self.actor.tenant_id:
            raise InvalidInput([no_such_tenant()])
        if "tenant_id" in type(value).model_fields and not self.actor.reaches(owner_number(value)):
            raise InvalidInput([no_such_tenant()])
        problems = problems_between(self.directory, value, before.id if before else 0)
        if problems:
            raise InvalidInput(problems)
        obstacles = obstacles_to_saving(self.directory, before, value) if before is not None else []
        if obstacles:
            raise Conflict(" ".join(obstacles), code="in-use", remedy="Change those first.")

    # ---------------------------------------------------------------- servers and their default

    def save_server(
        self,
        before: ServerRecord | None,
        value: ServerCommon,
        kept: Mapping[str, int],
        *,
        action: str,
        asked_default: bool | None = None,
        successor: int | None = None,
    ) -> int:
        """Save a server, and move the default of its owner, or of the owner that it leaves, where that follows.

        `asked_default` None: nobody asked for it to become or to stay the default.
        """
        owner = owner_number(value)
        mates = [r for r in servers_of(self.directory, owner) if before is None or r.id != before.id]
        was_default = before is not None and before.tenant_id == owner and before.value.is_default
        leaves = before is not None and before.tenant_id != owner and before.value.is_default
        is_default = not mates or asked_default is True or (was_default and asked_default is not False)
        others_enabled = any(r.value.enabled for r in mates)
        heir: ServerRecord | None = None
        if was_default and not is_default:
            heir = self._heir(mates, successor)
        elif is_default and was_default and not value.enabled and before.value.enabled and others_enabled:  # type: ignore[union-attr]
            heir = self._heir(mates, successor)
            is_default = False
        elif is_default and not was_default and not value.enabled and others_enabled:
            raise Conflict(
                "A server that is not enabled cannot become the default while its owner has enabled ones.",
                code="default-disabled", remedy="Enable it first.",
            )  # fmt: skip
        elif leaves and before is not None:
            heir = self._heir([r for r in servers_of(self.directory, before.tenant_id) if r.id != before.id], successor)
        value = value.model_copy(update={"is_default": is_default})
        self._check(before, value)
        present = default_of(self.directory, owner)
        if is_default and present is not None and (before is None or present.id != before.id):
            self._set_default(present, False)
        number = self._write("server", before, value, kept, action)
        if heir is not None:
            self._set_default(heir, True)
        return number

    def _heir(self, rest: Sequence[ServerRecord], successor: int | None) -> ServerRecord | None:
        """Who becomes the default among those that stay; None where nobody stays. Raises Conflict where the request
        must name one."""
        enabled = [r for r in rest if r.value.enabled]
        if not enabled:
            return rest[0] if rest else None
        for record in enabled:
            if record.id == successor:
                return record
        raise Conflict(
            "This is the default, and its owner has other enabled servers."
            if successor is None
            else "The named successor is not an enabled server of the same owner that stays.",
            code="successor-needed",
            remedy="Make another server the default first, or name it as the successor when disabling or deleting.",
        )

    def _set_default(self, record: ServerRecord, is_default: bool) -> None:
        value = record.value.model_copy(update={"is_default": is_default})
        self.change.save("server", value, record, record.secrets, "default" if is_default else "demote")

    # ---------------------------------------------------------------- deleting

    def delete(self, word: str, numbers: Sequence[int], successor: int | None) -> list[str]:
        """Delete objects; returns warnings."""
        records = [self.find(word, number) for number in numbers]
        obstacles = [s for r in records for s in obstacles_to_deleting(self.directory, r, numbers)]
        if obstacles:
            raise Conflict(" ".join(obstacles), code="in-use", remedy="Change or delete those first.")
        heirs = self._heirs_after(records, successor) if word == "server" else []
        warnings = self.warnings_without(numbers) if word == "server" else []
        for record in records:
            self._revoke_credentials_of(word, record)
            self.change.delete(word, record)
        for heir in heirs:
            self._set_default(heir, True)
        return warnings

    def _heirs_after(self, leaving: Sequence[ServerRecord], successor: int | None) -> list[ServerRecord]:
        numbers = {r.id for r in leaving}
        owners = [r.tenant_id for r in leaving if r.value.is_default]
        heirs = [
            self._heir([r for r in servers_of(self.directory, owner) if r.id not in numbers], successor)
            for owner in owners
        ]
        return [heir for heir in heirs if heir is not None]

    def _revoke_credentials_of(self, word: str, record: Record[Any]) -> None:
        connection = self.change.connection
        if word == "application":
            for info in credentials.of_application(connection, record.id):
                credentials.revoke(self.change, info, record.tenant_id)
        elif word == "tenant":
            for info in credentials.tokens(connection, record.id):
                credentials.revoke(self.change, info, record.id)

    def warnings_without(self, numbers: Sequence[int]) -> list[str]:
        """What it means that these servers go or are disabled: for the owners that have no enabled one any more."""
        gone = set(numbers)
        found = []
        for owner in sorted({self.directory.servers[n].tenant_id for n in gone}):
            if any(r.value.enabled and r.id not in gone for r in servers_of(self.directory, owner)):
                continue
            if owner:
                name = self.directory.tenants[owner].name
                found.append(f"{name} has no enabled server of its own any more: its mail goes through the global one.")
            else:
                everything = messages.count_waiting(self.change.connection, list(self.directory.servers))
                found.append(_stopped("Sending stops: there is no enabled global server any more", everything))
        return found

    # ---------------------------------------------------------------- credentials

    def issue_key(self, application: Record[Any], kind: str, name: str) -> Issued:
        """A new credential of an application."""
        return credentials.issue(
            self.change,
            kind=kind,
            name=name,
            application_id=application.id,
            slug=credentials.slug_of(application.name) if kind == SMTP else "",
            owner=application.tenant_id,
        )


# ---------------------------------------------------------------- small questions


def _noun(word: str) -> Noun:
    noun = NOUNS.get(word)
    if noun is None:
        raise NotFound("There is no such kind of object.")
    return noun


def _objects(directory: Directory, word: str) -> Mapping[int, Record[Any]]:
    found: Mapping[int, Record[Any]] = getattr(directory, f"{_noun(word).word}s")
    return found


def _may_see(actor: Actor, word: str, record: Record[Any]) -> bool:
    return actor.reaches(record.id if word == "tenant" else record.tenant_id)


def _find(directory: Directory, actor: Actor, word: str, object_id: int) -> Record[Any]:
    record = _objects(directory, word).get(object_id)
    if record is None or not _may_see(actor, word, record):
        raise NotFound(f"There is no such {word}.")
    return record


def _record_in(directory: Directory, word: str, number: int) -> Record[Any]:
    return _objects(directory, word)[number]


def _owner_of_shape(word: str, object_id: int, shape: Mapping[str, Any]) -> int:
    if word == "tenant":
        return object_id
    text = shape.get("tenant_id")
    return (parse_id(text) or 0) if isinstance(text, str) else 0


def _fits(record: Record[Any], word: str, wanted: ObjectFilter) -> bool:
    value = record.value
    if wanted.tenant_id is not None and (record.id if word == "tenant" else record.tenant_id) != wanted.tenant_id:
        return False
    if wanted.name is not None and record.name != wanted.name:
        return False
    if wanted.enabled is not None and getattr(value, "enabled", True) is not wanted.enabled:
        return False
    if wanted.kind is not None and getattr(value, "kind", None) != wanted.kind:
        return False
    if wanted.search is None:
        return True
    searched = (getattr(value, name, None) or "" for name in ("name", "comments", "host", "sender_address"))
    return any(wanted.search.casefold() in str(text).casefold() for text in searched)


def _asked(shape: Mapping[str, Any]) -> bool | None:
    asked = shape.get("is_default")
    return asked if isinstance(asked, bool) else None


def _require_global(actor: Actor) -> None:
    if actor.tenant_id:
        raise NotFound("There is nothing here.")


def _check_name(name: str, *, required: bool) -> None:
    if len(name) > _MAX_NAME or not name.isprintable() or (required and not name.strip()):
        raise InvalidInput.of(
            "name", "not-a-name", f"A name has up to {_MAX_NAME} characters that can be seen, and no line ends."
        )


def _refuse_placeholders(shape: Mapping[str, Any], model: type[Value]) -> None:
    found = placeholders(shape, model)
    if found:
        sentence = "This only says whether a secret is set. Enter the secret itself."
        raise InvalidInput([FieldProblem(path, "secret-placeholder", sentence) for path in found])


def _refuse_unknown_secrets(given: Mapping[str, str], model: type[Value]) -> None:
    known = secret_paths(model)
    if any(path not in known for path in given):
        names = ", ".join(known) or "none"
        raise InvalidInput.of("secrets", "unknown-field", f"That version has these secrets: {names}.")


def _require_unchanged_bindings(before: Value, after: Value, kept: Mapping[str, int]) -> None:
    """A stored secret can never be pointed at another host (design.md section 3)."""
    changed = changed_bindings(before, after) if kept else ()
    if changed:
        reason = " and ".join(f"“{label}”" for label in changed)
        raise InvalidInput(
            [FieldProblem(p, "secret-needed", f"Enter this again, because {reason} changed.") for p in kept],
            remedy="A stored secret is used only with the settings that it was entered for.",
        )


def _shown_version(word: str, shape: dict[str, Any]) -> dict[str, Any]:
    model = _noun(word).model_for_input(shape)
    for path in secret_paths(model):
        holder = get_path(shape, path.rpartition(".")[0]) if "." in path else shape
        if isinstance(holder, dict):
            shape = with_path(shape, path, SECRET_NOT_SET if get_path(shape, path) is None else SECRET_SET)
    return shape


def _recipients(count: int) -> str:
    return f"{count} recipient waits" if count == 1 else f"{count} recipients wait"


def _stopped(what: str, waiting: int) -> str:
    return f"{what}. {_recipients(waiting)} until it goes on."


def _waiting_sentence(count: int, what: str) -> list[str]:
    return [f"{_recipients(count)} there and will be {what}."] if count else []


def _audit_entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(
        row.id, row.at_ms, row.actor_kind, row.actor_id, row.actor_name, row.tenant_id, row.noun, row.object_id,
        row.object_name, row.action, json.loads(row.difference),
    )  # fmt: skip
