"""The administration job itself: who may call, what is one transaction, and what is answered."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from posthouse.administration.editing import (
    Editing,
    find_object,
    noun_of,
    objects_of,
    owner_of_shape,
    stopped_sentence,
    waiting_recipients,
)
from posthouse.clock import Clock
from posthouse.errors import InvalidInput, NotAuthenticated, NotFound, NotPermitted
from posthouse.model.actor import Actor, Permission, Role
from posthouse.model.consistency import no_such_tenant
from posthouse.model.directory import Credential, Directory
from posthouse.model.identifier import IdentifierSource
from posthouse.model.installation import Installation
from posthouse.model.problems import read_value
from posthouse.model.record import (
    SECRET_NOT_SET,
    SECRET_SET,
    Record,
    at,
    get_path,
    patched_shape,
    secret_paths,
    with_path,
)
from posthouse.model.server import SERVER_KINDS
from posthouse.store import configuration, credentials, messages
from posthouse.store.configuration import AuditEntry, KeptVersion, Transaction
from posthouse.store.credentials import API_KEY, SMTP, TOKEN, CredentialInfo, Issued
from posthouse.store.database import Database
from posthouse.store.directory_source import DirectorySource
from posthouse.store.vault import KeyRing

T = TypeVar("T")

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
class VersionInfo:
    """One entry of an object's history: what that version changed, field -> [before, after]."""

    version: int
    at_ms: int
    actor: str
    changes: Mapping[str, Any]

    @property
    def at(self) -> str:
        """When, as ISO 8601 UTC with milliseconds."""
        return at(self.at_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")


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
        return find_object(self._source.current, actor, word, object_id)

    # ------------------------------------------------------------ saving

    async def create(self, actor: Actor, word: str, shape: Mapping[str, Any]) -> Record[Any]:
        """Make an object of a shape with strict JSON types; a tenant's actor makes it the tenant's. An owner's first
        server becomes its default. Raises InvalidInput, Conflict."""
        number, after = await self._change(actor, lambda e: e.create(word, shape))
        return _record_in(after, word, number)

    async def create_application(self, actor: Actor, shape: Mapping[str, Any]) -> tuple[Record[Any], ApplicationKeys]:
        """Make an application together with an API key and an SMTP credential, told this once."""

        def work(editing: Editing) -> tuple[int, ApplicationKeys]:
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

        def work(editing: Editing) -> None:
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

        def work(editing: Editing) -> None:
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

        def work(editing: Editing) -> None:
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

        def work(editing: Editing) -> list[str]:
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
        kept = await self._versions(actor, word, object_id)
        return [
            VersionInfo(
                later.version,
                later.at_ms,
                later.actor,
                configuration.difference_of_versions(earlier.shape if earlier else None, later.shape, word),
            )
            for later, earlier in zip(kept, [*kept[1:], None], strict=True)
        ]

    async def version(self, actor: Actor, word: str, object_id: int, number: int) -> dict[str, Any]:
        """An earlier version as shown: its fields beside `version`. Raises NotFound."""
        actor.require(Permission.READ)
        for kept in await self._versions(actor, word, object_id):
            if kept.version == number:
                return {"version": number, **_shown_version(word, kept.shape)}
        raise NotFound(f"There is no version {number} of this {word}.")

    async def _versions(self, actor: Actor, word: str, object_id: int) -> list[KeptVersion]:
        """The versions that the actor may see: those of a time with another owner are that owner's."""
        noun_of(word)
        kept = await self._database.read(lambda c: configuration.read_versions(c, word, object_id))
        seen = [each for each in kept if actor.reaches(owner_of_shape(word, object_id, each.shape))]
        if not seen or seen[0] is not kept[0]:
            raise NotFound(f"There is no such {word}.")
        return seen

    async def restore(
        self, actor: Actor, word: str, object_id: int, number: int, secrets: Mapping[str, str] | None = None
    ) -> Record[Any]:
        """Make an earlier version the next one, with the secrets of its time; one that is no longer there must come in
        `secrets` (path -> plain), else InvalidInput names it. Which server is the default stays as it is."""

        def work(editing: Editing) -> None:
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

        def work(editing: Editing) -> bool:
            before = editing.directory.installation
            value = read_value(Installation, patched_shape(before, patch, None))
            if value != before:
                editing.change.save_installation(value, before)
            return before.sending_enabled and not value.sending_enabled

        switched_off, after = await self._change(actor, work)
        if not switched_off:
            return after.installation, ()
        counts = await self._database.read(messages.queue_counts)
        return after.installation, (stopped_sentence("Sending is off", sum(row._mapping["count"] for row in counts)),)

    # ------------------------------------------------------------ credentials

    async def keys(self, actor: Actor, application_id: int) -> list[CredentialInfo]:
        """An application's keys and passwords, without the secrets."""
        record = self.show(actor, "application", application_id)
        return await self._database.read(lambda c: credentials.of_application(c, record.id))

    async def issue_key(
        self, actor: Actor, application_id: int, kind: str, name: str = ""
    ) -> tuple[CredentialInfo, str]:
        """A further `api_key` or `smtp` credential of an application, and its key or password, told this once."""
        if kind not in (API_KEY, SMTP):
            raise InvalidInput.of("kind", "not-a-choice", f"Choose one of: {API_KEY}, {SMTP}.")
        _check_name(name, required=False)
        issued, _ = await self._change(actor, lambda e: e.issue_key(e.find("application", application_id), kind, name))
        return issued.info, issued.plain

    async def revoke_key(self, actor: Actor, application_id: int, key_id: int) -> None:
        """Revoke one credential of an application; in force on all nodes within a second. Raises NotFound."""

        def work(editing: Editing) -> None:
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
        self, actor: Actor, name: str, role: str, tenant_id: int | None = None, expires_at: datetime | None = None
    ) -> tuple[CredentialInfo, str]:
        """A token for REST, told this once: role administrator, operator or auditor, bound to a tenant where one is
        given. A tenant's actor makes tokens of the tenant."""
        _check_name(name, required=True)
        if role not in (Role.ADMINISTRATOR, Role.OPERATOR, Role.AUDITOR):
            raise InvalidInput.of("role", "not-a-choice", "Choose one of: administrator, operator, auditor.")
        expires_ms = None if expires_at is None else int(expires_at.timestamp() * 1000)
        if expires_ms is not None and expires_ms <= self._clock.now_ms():
            raise InvalidInput.of("expires_at", "out-of-range", "This time has passed. Choose a later one.")
        owner = actor.tenant_id if tenant_id is None else tenant_id

        def work(editing: Editing) -> Issued:
            if not actor.reaches(owner) or (owner and owner not in editing.directory.tenants):
                raise InvalidInput([no_such_tenant()])
            return credentials.issue(
                editing.change, kind=TOKEN, name=name, tenant_id=owner, role=role, expires_ms=expires_ms, owner=owner
            )

        issued, _ = await self._change(actor, work)
        return issued.info, issued.plain

    async def revoke_token(self, actor: Actor, token_id: int) -> None:
        """Revoke a token; in force on all nodes within a second. Raises NotFound."""

        def work(editing: Editing) -> None:
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
        entries = await self._database.read(
            lambda c: configuration.read_audit(
                c, tenant_id=actor.tenant_id, noun=noun, object_id=object_id, before=before, limit=limit + 1
            )
        )
        return Page(tuple(entries[:limit]), entries[limit - 1].version if len(entries) > limit else None)

    async def prune_secrets(self, now_ms: int | None = None) -> None:
        """Remove secrets that were replaced more than 30 days before `now_ms` (default: the clock's)."""
        at_ms = self._clock.now_ms() if now_ms is None else now_ms
        await self._database.write(lambda c: configuration.prune_secrets(c, at_ms))

    # ------------------------------------------------------------ the transaction

    async def _change(self, actor: Actor, function: Callable[[Editing], T]) -> tuple[T, Directory]:
        """Run `function` in one transaction, and put the directory that follows from it in force."""
        actor.require(Permission.CONFIGURE)
        transaction = Transaction(
            self._ring,
            self._ids,
            actor,
            self._clock.now_ms(),
            lambda: self._source.current,
            lambda change, directory: function(Editing(change, directory)),
        )
        result, after = await self._database.write(transaction)
        self._source.install(after)
        return result, after

    async def _count_waiting(self, server_ids: Sequence[int]) -> int:
        return await self._database.read(lambda c: messages.count_waiting(c, server_ids))


def _record_in(directory: Directory, word: str, number: int) -> Record[Any]:
    return objects_of(directory, word)[number]


def _require_global(actor: Actor) -> None:
    if actor.tenant_id:
        raise NotFound("There is nothing here.")


def _check_name(name: str, *, required: bool) -> None:
    if len(name) > _MAX_NAME or not name.isprintable() or (required and not name.strip()):
        raise InvalidInput.of(
            "name", "not-a-name", f"A name has up to {_MAX_NAME} characters that can be seen, and no line ends."
        )


def _shown_version(word: str, shape: dict[str, Any]) -> dict[str, Any]:
    model = noun_of(word).model_for_input(shape)
    for path in secret_paths(model):
        holder = get_path(shape, path.rpartition(".")[0]) if "." in path else shape
        if isinstance(holder, dict):
            shape = with_path(shape, path, SECRET_NOT_SET if get_path(shape, path) is None else SECRET_SET)
    return shape


def _waiting_sentence(count: int, what: str) -> list[str]:
    return [f"{waiting_recipients(count)} there and will be {what}."] if count else []
