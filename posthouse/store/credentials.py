"""API keys and SMTP passwords of applications, tokens of administrators (threat A25).

A credential is a handle, shown in clear, and a secret of 160 random bits, shown once. Kept is an HMAC-SHA-256 under a
key of the ring, over the secret together with everything that decides what it is good for: a digest that somebody
copies to another row, or a row whose role somebody changes, matches nothing.

An API key is `phk_<handle>_<secret>`, a token `pht_<handle>_<secret>`; an SMTP user name is `<application>-<handle>`
and the secret its password.
"""

import base64
import re
import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, delete, insert, or_, select, update

from posthouse.errors import SecretUnreadable
from posthouse.model.directory import Credential, Directory
from posthouse.model.identifier import format_id
from posthouse.model.record import at
from posthouse.store import schema
from posthouse.store.configuration import CREDENTIAL, Change
from posthouse.store.vault import KeyRing

API_KEY, SMTP, TOKEN = "api_key", "smtp", "token"
PREFIXES = {API_KEY: "phk", TOKEN: "pht"}
_KINDS = {prefix: kind for kind, prefix in PREFIXES.items()}

SECRET_OCTETS = 20  # 160 bits (design.md section 10)
_HANDLE_OCTETS = 5
# An SMTP user name stays within what small devices have room for.
_MAX_SLUG = 24
# Longer texts are not looked at: no credential of ours is.
_MAX_TEXT = 256


@dataclass(frozen=True, slots=True)
class CredentialInfo:
    """What is shown of a credential, again and again. Times in milliseconds."""

    id: int
    kind: str
    application_id: int
    tenant_id: int
    name: str
    role: str
    handle: str
    created_ms: int
    expires_ms: int | None
    last_used_ms: int | None


@dataclass(frozen=True, slots=True)
class Issued:
    """A new credential. `plain` is told once: the key or token; of an SMTP credential the password."""

    info: CredentialInfo
    plain: str = field(repr=False)


def issue(
    change: Change,
    *,
    kind: str,
    name: str,
    application_id: int = 0,
    tenant_id: int = 0,
    role: str = "",
    expires_ms: int | None = None,
    slug: str = "",
    owner: int = 0,
) -> Issued:
    """Make a credential and log it for the tenant `owner`. An application's own follow the application to whichever
    tenant it belongs, so their `tenant_id` is 0."""
    info = CredentialInfo(
        change.ids(), kind, application_id, tenant_id, name, role, _free_handle(change.connection, slug),
        change.now_ms, expires_ms, None,
    )  # fmt: skip
    secret = _random(SECRET_OCTETS)
    key_id, digest = change.ring.digest(_bound(info, secret))
    row = {n: getattr(info, n) for n in CredentialInfo.__slots__}
    change.connection.execute(insert(schema.credential).values(**row, key_id=key_id, digest=digest))
    change.log(CREDENTIAL, info.id, name or info.handle, owner, "issue", _facts(info))
    return Issued(info, secret if kind == SMTP else f"{PREFIXES[kind]}_{info.handle}_{secret}")


def revoke(change: Change, info: CredentialInfo, owner: int) -> None:
    """Remove a credential; in force on every node within a second of the commit."""
    change.connection.execute(delete(schema.credential).where(schema.credential.c.id == info.id))
    change.log(CREDENTIAL, info.id, info.name or info.handle, owner, "revoke", {})


def of_application(connection: Connection, application_id: int) -> list[CredentialInfo]:
    """An application's credentials, oldest first."""
    table = schema.credential
    return _infos(connection.execute(_shown().where(table.c.application_id == application_id).order_by(table.c.id)))


def tokens(connection: Connection, tenant_id: int | None = None) -> list[CredentialInfo]:
    """The tokens, oldest first; with `tenant_id` those bound to that tenant."""
    table = schema.credential
    query = _shown().where(table.c.kind == TOKEN).order_by(table.c.id)
    return _infos(connection.execute(query if tenant_id is None else query.where(table.c.tenant_id == tenant_id)))


def write_last_used(connection: Connection, ids: Iterable[int], now_ms: int) -> None:
    """Write down that credentials were used; never back in time."""
    table = schema.credential
    rows = [{"row_id": each, "used_ms": now_ms} for each in ids]
    if rows:
        connection.execute(
            update(table)
            .where(
                table.c.id == bindparam("row_id"),
                or_(table.c.last_used_ms.is_(None), table.c.last_used_ms < bindparam("used_ms")),
            )
            .values(last_used_ms=bindparam("used_ms")),
            rows,
        )


# ---------------------------------------------------------------- recognising


def recognise_bearer(directory: Directory, ring: KeyRing, text: str) -> Credential | None:
    """The credential behind a token or API key; None for anything else. Takes the same time for known handles and
    unknown ones. Whether it has expired, or its application is enabled, is the caller's to ask."""
    prefix, _, rest = text[:_MAX_TEXT].partition("_")
    handle, _, secret = rest.partition("_")
    return recognise(directory, ring, _KINDS.get(prefix, ""), handle, secret)


def recognise(directory: Directory, ring: KeyRing, kind: str, handle: str, secret: str) -> Credential | None:
    """The credential of a kind with this handle and secret. Takes the same time for known handles and unknown ones."""
    known = directory.credentials.get(handle)
    credential = known if known is not None and known.kind == kind else _NOBODY
    matches = ring.matches(_bound(credential, secret[:_MAX_TEXT]), credential.key_id or ring.current, credential.digest)
    return credential if matches and credential is not _NOBODY else None


def require_keys(directory: Directory, ring: KeyRing) -> None:
    """Raises SecretUnreadable where credentials were made under a key that the ring lacks.

    A node that went on would answer every right password as a wrong one (threat A13). Sealed secrets are opened, and so
    checked, when the directory is read.
    """
    unknown = {c.key_id for c in directory.credentials.values() if not ring.knows(c.key_id)}
    if unknown:
        raise SecretUnreadable(
            f"Credentials were made under a key that the key ring lacks ({', '.join(sorted(unknown))}).",
            remedy="Restore the key file that belongs to this database; all nodes of an installation share one.",
        )


_NOBODY = Credential(0, "", 0, 0, "", "", "", "", bytes(32), None)


def _bound(credential: Credential | CredentialInfo, secret: str) -> str:
    """What is digested: the secret with all that it is good for. No part can hold the separator but the last."""
    return "\x00".join(
        (
            credential.kind,
            credential.handle,
            str(credential.application_id),
            str(credential.tenant_id),
            credential.role,
            str(credential.expires_ms),
            secret,
        )
    )


# ---------------------------------------------------------------- rows


def _shown() -> Select[Any]:
    """Everything but key and digest."""
    return select(*(schema.credential.c[name] for name in CredentialInfo.__slots__))


def _infos(rows: Iterable[Row[Any]]) -> list[CredentialInfo]:
    return [CredentialInfo(**row._mapping) for row in rows]


def _facts(info: CredentialInfo) -> dict[str, list[Any]]:
    shown = {
        "kind": info.kind,
        "handle": info.handle,
        "role": info.role or None,
        "application_id": format_id(info.application_id) if info.application_id else None,
        "tenant_id": format_id(info.tenant_id) if info.tenant_id else None,
        "expires_at": at(info.expires_ms).isoformat() if info.expires_ms is not None else None,
    }
    return {name: [None, value] for name, value in shown.items() if value is not None}


def _free_handle(connection: Connection, slug: str) -> str:
    while True:
        handle = "-".join(filter(None, (slug, _random(_HANDLE_OCTETS))))
        taken = select(schema.credential.c.id).where(schema.credential.c.handle == handle)
        if connection.execute(taken).first() is None:
            return handle


def _random(octets: int) -> str:
    return base64.b32encode(secrets.token_bytes(octets)).decode().lower()


def slug_of(name: str) -> str:
    """A name in letters, digits and hyphens, for the front of an SMTP user name."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name).strip("-")[:_MAX_SLUG].strip("-") or "application"
