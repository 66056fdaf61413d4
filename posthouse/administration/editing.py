"""One change of the configuration: the rules that need both the directory and the store.

Runs inside the transaction of `store/configuration.py`, with the directory as that transaction sees it, so that two
writers at once cannot both be right. Who may call, and what is answered, is `job.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from posthouse.errors import Conflict, FieldProblem, InvalidInput, NotFound, NotPermitted
from posthouse.model.actor import Actor
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
from posthouse.model.directory import Directory, ServerRecord
from posthouse.model.fields import Value
from posthouse.model.identifier import format_id, parse_id
from posthouse.model.problems import read_value
from posthouse.model.record import (
    SECRET_SET,
    Record,
    changed_bindings,
    get_path,
    left_out_secrets,
    owner_number,
    placeholders,
    secret_paths,
    secrets_of,
    with_path,
    without_path,
)
from posthouse.model.server import ServerCommon
from posthouse.store import configuration, credentials, messages, server_state
from posthouse.store.configuration import NOUNS, Change, Noun
from posthouse.store.credentials import SMTP, Issued


class Editing:
    """One change being made: the rules that need both the directory and the store."""

    def __init__(self, change: Change, directory: Directory) -> None:
        self.change = change
        self.directory = directory
        self.actor = change.actor

    def find(self, word: str, object_id: int, expected_version: int | None = None) -> Record[Any]:
        """The object to change. Raises NotFound, Conflict where another version is current, NotPermitted for a tenant
        that is to be changed by its own actor."""
        record = find_object(self.directory, self.actor, word, object_id)
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
        noun = noun_of(word)
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
        model = noun_of(word).model_for_input(shape)
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
        noun = noun_of(word)
        shape = configuration.read_version(self.change.connection, word, before.id, number)
        if not self.actor.reaches(owner_of_shape(word, before.id, shape)):
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
            if word == "server":
                server_state.forget(self.change.connection, record.id)
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
                everything = sum(row._mapping["count"] for row in messages.queue_counts(self.change.connection))
                found.append(stopped_sentence("Sending stops: there is no enabled global server any more", everything))
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


def noun_of(word: str) -> Noun:
    """The kind of object behind a word. Raises NotFound."""
    noun = NOUNS.get(word)
    if noun is None:
        raise NotFound("There is no such kind of object.")
    return noun


def objects_of(directory: Directory, word: str) -> Mapping[int, Record[Any]]:
    """All objects of a noun. Raises NotFound."""
    found: Mapping[int, Record[Any]] = getattr(directory, f"{noun_of(word).word}s")
    return found


def _may_see(actor: Actor, word: str, record: Record[Any]) -> bool:
    return actor.reaches(record.id if word == "tenant" else record.tenant_id)


def find_object(directory: Directory, actor: Actor, word: str, object_id: int) -> Record[Any]:
    """The object, where the actor may see it. Raises NotFound."""
    record = objects_of(directory, word).get(object_id)
    if record is None or not _may_see(actor, word, record):
        raise NotFound(f"There is no such {word}.")
    return record


def owner_of_shape(word: str, object_id: int, shape: Mapping[str, Any]) -> int:
    """The tenant that a stored shape belongs to; 0 is global."""
    if word == "tenant":
        return object_id
    text = shape.get("tenant_id")
    return (parse_id(text) or 0) if isinstance(text, str) else 0


def _asked(shape: Mapping[str, Any]) -> bool | None:
    asked = shape.get("is_default")
    return asked if isinstance(asked, bool) else None


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


def waiting_recipients(count: int) -> str:
    """The beginning of a sentence."""
    return f"{count} recipient waits" if count == 1 else f"{count} recipients wait"


def stopped_sentence(what: str, waiting: int) -> str:
    """A warning that mail does not leave any more."""
    return f"{what}. {waiting_recipients(waiting)} until it goes on."
