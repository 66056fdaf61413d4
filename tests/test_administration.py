"""The administration job on both databases: saving, secrets, defaults, history, credentials, and who may do what.

The cast is fixed: `OWNER` administers the installation, `member` the tenant Alder, `stranger` the tenant Birch.
"""

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import structlog
from sqlalchemy.engine import URL

from posthouse.administration import Administration
from posthouse.errors import Conflict, InvalidInput, NotAuthenticated, NotFound, NotPermitted, PosthouseError
from posthouse.model.actor import COMMAND, Actor, Role
from posthouse.model.identifier import format_id, parse_id
from posthouse.model.record import Record, shown_shape
from posthouse.store import credentials, schema, server_state
from posthouse.store.database import Database
from posthouse.store.vault import KeyRing
from tests.support.certificates import CertificateAuthority
from tests.support.clock import ManualClock
from tests.support.databases import KINDS, Node, empty_store, new_ring, started_node

OWNER = COMMAND
AUDITOR = Actor("token", 9, "auditor", Role.AUDITOR)
OPERATOR = Actor("token", 8, "operator", Role.OPERATOR)

# What must be found nowhere but sealed.
CANARY = "kanarienvogel-7731"
DAY_MS = 86_400_000


@pytest.fixture(params=KINDS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[URL]:
    """Give the URL of a new database with Posthouse's tables."""
    with empty_store(str(request.param), tmp_path, request) as url:
        yield url


@pytest.fixture
async def node(store_url: URL) -> AsyncIterator[Node]:
    """Give a node on an empty database."""
    async with started_node(store_url) as started:
        yield started


@pytest.fixture
def admin(node: Node) -> Administration:
    """Give its administration."""
    return node.administration


@dataclass
class Tenants:
    """The two tenants, by identifier, and the actors that administer them."""

    alder: str
    birch: str
    member: Actor
    stranger: Actor


@pytest.fixture
async def tenants(admin: Administration) -> Tenants:
    """Give the tenants Alder and Birch; both were granted networks."""
    alder = await admin.create(OWNER, "tenant", {"name": "Alder", "networks": ["10.1.0.0/16"]})
    birch = await admin.create(OWNER, "tenant", {"name": "Birch", "networks": ["10.0.0.0/8"]})
    member = Actor("token", 1, "member", Role.ADMINISTRATOR, alder.id)
    stranger = Actor("token", 2, "stranger", Role.ADMINISTRATOR, birch.id)
    return Tenants(format_id(alder.id), format_id(birch.id), member, stranger)


def smtp(name: str = "office", **fields: Any) -> dict[str, Any]:
    return {"kind": "smtp", "name": name, "host": "smtp.example.org", **fields}


def password(secret: str | None = CANARY, **fields: Any) -> dict[str, Any]:
    auth = {"type": "password", "username": "mailer", **fields}
    return auth if secret is None else {**auth, "password": secret}


def problems(caught: pytest.ExceptionInfo[InvalidInput]) -> list[tuple[str, str]]:
    return [(problem.field, problem.code) for problem in caught.value.problems]


def defaults(node: Node, owner: int = 0) -> list[str]:
    """Give the names of an owner's defaults: exactly one where it has servers."""
    servers = node.source.current.servers.values()
    return [record.name for record in servers if record.tenant_id == owner and record.value.is_default]


async def put_waiting(node: Node, server: Record[Any], count: int) -> None:
    """Let recipients wait for a server."""

    def insert(connection: sqlalchemy.Connection) -> None:
        for _ in range(count):
            connection.execute(
                sqlalchemy.insert(schema.recipient).values(
                    id=node.ids(), message_id=1, address="a@example.org", notify="", orcpt="", state=1, reason=0,
                    server_id=server.id, route="global-default", priority=1, due_ms=0, lease=0, attempts=0, uncertain=0,
                    changed_ms=0, last="",
                )
            )  # fmt: skip

    await node.database.write(insert)


# ---------------------------------------------------------------- saving


async def test_a_server_that_is_added_is_in_force_at_once(node: Node, admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp())
    assert (record.version, record.name, record.value.effective_port) == (1, "office", 587)
    assert node.source.current.servers[record.id] == record
    assert admin.show(OWNER, "server", record.id) == record


async def test_another_node_sees_it_with_its_next_look(node: Node, store_url: URL) -> None:
    async with started_node(store_url, ring=node.ring, number=1) as other:
        record = await node.administration.create(OWNER, "server", smtp(auth=password()))
        assert record.id not in other.source.current.servers
        await other.source.refresh()
        assert other.source.current.servers[record.id] == record


async def test_each_fault_names_its_field_and_nothing_is_half_saved(node: Node, admin: Administration) -> None:
    with pytest.raises(InvalidInput) as caught:
        await admin.create(
            OWNER,
            "server",
            smtp(
                port=70000, tls_mode="ssl", enabled="yes", max_connections=True, colour="red",
                auth={"type": "password", "password": 5}, fallback_server_id="nonsense",
            ),
        )  # fmt: skip
    assert sorted(problems(caught)) == [
        ("auth.password", "wrong-type"),
        ("auth.username", "missing"),
        ("colour", "unknown-field"),
        ("enabled", "wrong-type"),
        ("fallback_server_id", "not-an-identifier"),
        ("max_connections", "wrong-type"),
        ("port", "out-of-range"),
        ("tls_mode", "not-a-choice"),
    ]
    assert "Port must be between 1 and 65535." in str(caught.value)
    assert not node.source.current.servers
    assert (await admin.audit(OWNER)).items == ()


@pytest.mark.parametrize("shape", [{}, {"kind": "telex"}, {"kind": 3}, {"kind": None}])
async def test_an_unknown_kind_is_a_fault_of_the_kind(admin: Administration, shape: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        await admin.create(OWNER, "server", {"name": "x", **shape})
    assert [field for field, _ in problems(caught)] == ["kind"]


async def test_a_fault_of_the_whole_value_names_the_field_that_it_means(admin: Administration) -> None:
    with pytest.raises(InvalidInput) as caught:
        await admin.create(OWNER, "server", smtp(verification="pinned"))
    assert problems(caught) == [("pin_sha256", "not-allowed")]


async def test_names_are_unique_per_owner(admin: Administration, tenants: Tenants) -> None:
    await admin.create(OWNER, "server", smtp())
    await admin.create(OWNER, "server", smtp(tenant_id=tenants.alder))
    with pytest.raises(Conflict) as caught:
        await admin.create(OWNER, "server", smtp())
    assert (caught.value.field, caught.value.code) == ("name", "name-taken")


async def test_a_patch_changes_what_it_names(admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp(port=2525, comments="old", auth=password()))
    changed = await admin.patch(
        OWNER, "server", record.id, {"comments": "new", "port": None, "auth": {"password": "other"}}
    )
    assert (changed.version, changed.value.comments, changed.value.port) == (2, "new", None)
    assert changed.value.auth.username == "mailer"
    assert changed.value.auth.password.get_secret_value() == "other"


async def test_a_patch_to_another_way_to_sign_in_drops_what_belonged_to_the_former(admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp(auth=password()))
    changed = await admin.patch(OWNER, "server", record.id, {"auth": {"type": "none"}})
    assert shown_shape(changed.value)["auth"] == {"type": "none"}
    assert changed.secrets == {}


async def test_a_patch_to_another_kind_keeps_what_both_have(admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp(comments="kept", auth=password()))
    changed = await admin.patch(OWNER, "server", record.id, {"kind": "capture", "keep_messages": 5})
    assert (changed.value.kind, changed.value.comments, changed.value.keep_messages) == ("capture", "kept", 5)


async def test_a_change_from_an_old_version_is_refused(admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp())
    await admin.patch(OWNER, "server", record.id, {"comments": "first"}, expected_version=1)
    with pytest.raises(Conflict) as caught:
        await admin.patch(OWNER, "server", record.id, {"comments": "second"}, expected_version=1)
    assert caught.value.code == "version-changed"
    assert admin.show(OWNER, "server", record.id).value.comments == "first"


async def test_what_changes_nothing_makes_no_version(admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp(auth=password()))
    again = await admin.replace(OWNER, "server", record.id, smtp(auth=password(None)))
    assert again == record
    assert len(await admin.history(OWNER, "server", record.id)) == 1


async def test_values_of_which_no_directory_can_be_made_are_not_saved(node: Node, admin: Administration) -> None:
    """Whatever slips past validation must not keep every node from reading its configuration."""
    record = await admin.create(OWNER, "application", {"name": "shop"})
    with pytest.raises(InvalidInput):
        await admin.patch(OWNER, "application", record.id, {"allowed_senders": ["*.foo@example.org"]})
    broken = record.value.model_copy(update={"allowed_senders": ("a@b@c",), "comments": "x"})

    def work(editing: Any) -> None:
        editing.change.save("application", broken, record, record.secrets, "edit")

    with pytest.raises(PosthouseError):
        await admin._change(OWNER, work)
    node.source.current = type(node.source.current)()
    assert (await node.source.refresh()).applications[record.id] == record


# ---------------------------------------------------------------- references between objects


async def test_a_tenant_must_exist(admin: Administration) -> None:
    with pytest.raises(InvalidInput) as caught:
        await admin.create(OWNER, "server", smtp(tenant_id=format_id(12345)))
    assert problems(caught) == [("tenant_id", "no-such-tenant")]


async def test_a_fallback_is_of_the_same_owner_or_global(admin: Administration, tenants: Tenants) -> None:
    everyone = await admin.create(OWNER, "server", smtp("everyone"))
    theirs = await admin.create(OWNER, "server", smtp("theirs", tenant_id=tenants.birch))
    await admin.create(OWNER, "server", smtp("a", tenant_id=tenants.alder, fallback_server_id=format_id(everyone.id)))
    for number in (theirs.id, 4711):
        with pytest.raises(InvalidInput) as caught:
            await admin.create(
                OWNER, "server", smtp("b", tenant_id=tenants.alder, fallback_server_id=format_id(number))
            )
        assert problems(caught) == [("fallback_server_id", "no-such-server")]


async def test_fallbacks_make_no_circle(admin: Administration) -> None:
    a = await admin.create(OWNER, "server", smtp("a"))
    b = await admin.create(OWNER, "server", smtp("b", fallback_server_id=format_id(a.id)))
    c = await admin.create(OWNER, "server", smtp("c", fallback_server_id=format_id(b.id)))
    for target in (a, b, c):
        with pytest.raises(InvalidInput) as caught:
            await admin.patch(OWNER, "server", a.id, {"fallback_server_id": format_id(target.id)})
        assert problems(caught) == [("fallback_server_id", "cycle")]


async def test_what_others_rely_on_is_not_deleted(
    admin: Administration, tenants: Tenants, authority: CertificateAuthority
) -> None:
    spare = await admin.create(OWNER, "server", smtp("spare"))
    root = await admin.create(OWNER, "certificate", {"name": "root", "pem": authority.pem})
    office = await admin.create(
        OWNER,
        "server",
        smtp(
            verification="added", certificate_ids=[format_id(root.id)], fallback_server_id=format_id(spare.id),
            is_default=True,
        ),
    )  # fmt: skip
    for word, record in (("server", spare), ("certificate", root)):
        with pytest.raises(Conflict, match="of office") as caught:
            await admin.delete(OWNER, word, [record.id])
        assert caught.value.code == "in-use"
    with pytest.raises(Conflict, match="of office"):
        await admin.patch(OWNER, "server", spare.id, {"tenant_id": tenants.alder})
    assert (await admin.delete(OWNER, "server", [office.id, spare.id])).deleted == (office.id, spare.id)
    assert (await admin.delete(OWNER, "certificate", [root.id])).deleted == (root.id,)


async def test_a_certificate_is_of_the_same_owner_or_global(
    admin: Administration, tenants: Tenants, authority: CertificateAuthority
) -> None:
    theirs = await admin.create(
        OWNER, "certificate", {"name": "root", "pem": authority.pem, "tenant_id": tenants.birch}
    )
    with pytest.raises(InvalidInput) as caught:
        await admin.create(
            OWNER,
            "server",
            smtp(verification="added", certificate_ids=[format_id(theirs.id)], tenant_id=tenants.alder),
        )
    assert problems(caught) == [("certificate_ids", "no-such-certificate")]


async def test_a_tenant_that_still_owns_something_is_not_deleted(admin: Administration, tenants: Tenants) -> None:
    server = await admin.create(OWNER, "server", smtp(tenant_id=tenants.alder))
    with pytest.raises(Conflict, match="Alder still has the server office"):
        await admin.delete(OWNER, "tenant", [parse_id(tenants.alder) or 0])
    await admin.delete(OWNER, "server", [server.id])
    await admin.delete(OWNER, "tenant", [parse_id(tenants.alder) or 0])


async def test_certificates_are_read_when_they_are_added(
    node: Node, admin: Administration, authority: CertificateAuthority
) -> None:
    record = await admin.create(
        OWNER, "certificate", {"name": "root", "pem": f"a comment\n{authority.pem}\nand another"}
    )
    assert record.value.pem.startswith("-----BEGIN CERTIFICATE-----")
    assert "comment" not in record.value.pem
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n-----END RSA PRIVATE KEY-----"
    for pem, code in (
        (f"{authority.pem}{key}", "private-key"),
        ("nothing of the kind", "not-a-certificate"),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", "not-a-certificate"),
        ("-----BEGIN CERTIFICATE-----\n" * 5000, "not-a-certificate"),
    ):
        with pytest.raises(InvalidInput) as caught:
            await admin.create(OWNER, "certificate", {"name": "bad", "pem": pem})
        assert problems(caught) == [("pem", code)]
        assert CANARY not in str(caught.value)


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("network", ["0.0.0.0/0", "::/0", "0.0.0.0/1", "203.0.112.0/23", "10.0.0.0/7", "2001:db9::/48"])
async def test_wide_networks_need_a_confirmation(admin: Administration, network: str) -> None:
    shape = {"name": "scanner", "networks": ["192.0.2.10", network]}
    with pytest.raises(InvalidInput) as caught:
        await admin.create(OWNER, "application", shape)
    assert problems(caught) == [("networks", "wide-network")]
    assert network not in str(caught.value)
    await admin.create(OWNER, "application", {**shape, "allow_wide_networks": True})


async def test_a_tenant_lists_only_networks_that_it_was_granted(admin: Administration, tenants: Tenants) -> None:
    with pytest.raises(InvalidInput) as caught:
        await admin.create(
            tenants.member, "application", {"name": "scanner", "networks": ["10.1.2.0/24", "10.2.0.0/24", "fd00::1"]}
        )
    assert problems(caught) == [("networks", "network-not-granted")] * 2
    await admin.create(tenants.member, "application", {"name": "scanner", "networks": ["10.1.2.0/24"]})


async def test_a_grant_is_not_withdrawn_from_under_an_application(admin: Administration, tenants: Tenants) -> None:
    await admin.create(tenants.member, "application", {"name": "scanner", "networks": ["10.1.2.0/24"]})
    with pytest.raises(Conflict, match="scanner"):
        await admin.patch(OWNER, "tenant", parse_id(tenants.alder) or 0, {"networks": ["10.1.3.0/24"]})
    await admin.patch(OWNER, "tenant", parse_id(tenants.alder) or 0, {"networks": ["10.1.2.0/23"]})


async def test_a_network_belongs_to_one_application_and_whose_is_not_told(
    admin: Administration, tenants: Tenants
) -> None:
    await admin.create(tenants.stranger, "application", {"name": "their-printer", "networks": ["10.1.2.0/24"]})
    with pytest.raises(InvalidInput) as caught:
        await admin.create(tenants.member, "application", {"name": "scanner", "networks": ["10.1.2.7/24"]})
    assert problems(caught) == [("networks", "network-taken")]
    assert "printer" not in str(caught.value)
    assert "Birch" not in str(caught.value)


# ---------------------------------------------------------------- secrets


async def test_it_keeps_the_secret_when_left_out(admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp(auth=password()))
    for changed in (
        await admin.replace(OWNER, "server", record.id, smtp(auth=password(None), comments="a")),
        await admin.patch(OWNER, "server", record.id, {"comments": "b"}),
        await admin.replace(OWNER, "server", record.id, smtp(auth=password("set"), comments="c")),
    ):
        assert changed.value.auth.password.get_secret_value() == CANARY
        assert changed.secrets == record.secrets


@pytest.mark.parametrize(
    ("patch", "label"),
    [
        ({"host": "evil.example"}, "Host"),
        ({"port": 2525}, "Port"),
        ({"tls_mode": "implicit"}, "TLS"),
        ({"verification": "none"}, "Certificate check"),
        ({"pin_sha256": "ab" * 32}, "Pinned certificate"),
        ({"minimum_tls_version": "1.0"}, "Oldest TLS version"),
        ({"allow_cleartext_password": True}, "Send the password in clear text"),
        ({"auth": {"username": "other"}}, "User name"),
        ({"auth": {"mechanism": "PLAIN"}}, "Mechanism"),
    ],
)
async def test_a_stored_secret_is_never_pointed_elsewhere(
    admin: Administration, patch: dict[str, Any], label: str
) -> None:
    record = await admin.create(OWNER, "server", smtp(auth=password()))
    with pytest.raises(InvalidInput) as caught:
        await admin.patch(OWNER, "server", record.id, patch)
    assert problems(caught) == [("auth.password", "secret-needed")]
    assert label in str(caught.value)
    assert admin.show(OWNER, "server", record.id) == record
    auth = {**patch.get("auth", {}), "password": "entered again"}
    changed = await admin.patch(OWNER, "server", record.id, {**patch, "auth": auth})
    assert changed.value.auth.password.get_secret_value() == "entered again"


async def test_moving_a_server_to_another_owner_asks_for_its_secret(admin: Administration, tenants: Tenants) -> None:
    record = await admin.create(OWNER, "server", smtp(auth=password()))
    with pytest.raises(InvalidInput) as caught:
        await admin.patch(OWNER, "server", record.id, {"tenant_id": tenants.alder})
    assert problems(caught) == [("auth.password", "secret-needed")]
    assert "Owner" in str(caught.value)


async def test_null_removes_a_secret(admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp(auth=password()))
    changed = await admin.patch(OWNER, "server", record.id, {"auth": {"password": None}})
    assert changed.value.auth.password is None
    assert changed.secrets == {}


async def test_what_is_shown_in_place_of_a_secret_is_never_taken_for_one(admin: Administration) -> None:
    with pytest.raises(InvalidInput) as caught:
        await admin.create(OWNER, "server", smtp(auth=password("set")))
    assert problems(caught) == [("auth.password", "secret-placeholder")]
    record = await admin.create(OWNER, "server", smtp(auth=password(None)))
    shown = shown_shape(record.value)
    assert shown["auth"]["password"] == "not set"
    assert await admin.replace(OWNER, "server", record.id, shown) == record
    with pytest.raises(InvalidInput):
        await admin.replace(OWNER, "server", record.id, smtp(auth=password("set")))


async def secret_rows(node: Node) -> list[Any]:
    table = schema.secret
    return list(await node.database.read(lambda c: c.execute(sqlalchemy.select(table).order_by(table.c.id)).all()))


async def test_replaced_secrets_stay_sealed_for_thirty_days(node: Node, admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp(auth=password("first")))
    await admin.patch(OWNER, "server", record.id, {"auth": {"password": "second"}})
    replaced_ms = node.clock.now_ms()
    assert [row.replaced_ms for row in await secret_rows(node)] == [replaced_ms, None]
    await admin.prune_secrets(replaced_ms + 30 * DAY_MS - 1)
    assert len(await secret_rows(node)) == 2
    await admin.prune_secrets(replaced_ms + 30 * DAY_MS)
    assert [row.replaced_ms for row in await secret_rows(node)] == [None]


async def test_replace_and_forget(node: Node, admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp(auth=password("first")))
    other = await admin.create(OWNER, "server", smtp("other", auth=password("first")))
    await admin.patch(OWNER, "server", other.id, {"auth": {"password": "second"}})
    await admin.patch(OWNER, "server", record.id, {"auth": {"password": "second"}}, forget=True)
    assert [(row.object_id, row.replaced_ms is None) for row in await secret_rows(node)] == [
        (other.id, False),
        (other.id, True),
        (record.id, True),
    ]


async def test_secrets_are_found_nowhere(
    node: Node, admin: Administration, caplog: pytest.LogCaptureFixture, store_url: URL, tmp_path: Path
) -> None:
    """Canaries in every way a secret comes in; then everything that can be read is searched, in several encodings."""
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    with structlog.testing.capture_logs() as logged:
        record = await admin.create(OWNER, "server", smtp(auth=password()))
        await admin.patch(OWNER, "server", record.id, {"auth": {"password": CANARY + "2"}})
        application, keys = await admin.create_application(OWNER, {"name": "shop"})
        _, token = await admin.create_token(OWNER, "ci", "administrator")
        said += [repr(record), str(record), repr(node.source.current), repr(keys), repr(application)]
        said += [repr(await admin.history(OWNER, "server", record.id)), repr(await admin.audit(OWNER))]
        said += [repr(await admin.version(OWNER, "server", record.id, n)) for n in (1, 2)]
        said += [repr(await admin.keys(OWNER, application.id)), repr(await admin.tokens(OWNER))]
        for shape in (
            smtp("x", auth=password(CANARY * 100)),
            smtp("x", auth={"type": "password", "password": CANARY, "username": 5}),
            smtp("x", auth=CANARY),
            smtp("x", port=CANARY),
            smtp("x", password=CANARY),
            smtp(CANARY + "\n", host=CANARY + " " + CANARY, sender_address=CANARY, from_filter=[CANARY + "@@"]),
            {**smtp("x"), "kind": CANARY},
            smtp(auth=password()),
        ):
            with pytest.raises(PosthouseError) as caught:
                await admin.create(OWNER, "server", shape)
            said += [
                str(caught.value),
                repr(caught.value),
                repr(caught.value.__context__),
                repr(caught.value.__cause__),
            ]
        with pytest.raises(NotAuthenticated) as refused:
            admin.authenticate_bearer(token + "x")
        said.append(str(refused.value))
    said += [repr(logged), caplog.text, json.dumps(await everything(node.database))]
    if node.database.is_sqlite:
        await node.database.read(lambda c: c.exec_driver_sql("SELECT 1"))
        said += [path.read_bytes().decode("latin-1") for path in tmp_path.glob("posthouse.db*")]
    secrets = [CANARY, keys.api_key.rpartition("_")[2], keys.smtp_password, token.rpartition("_")[2]]
    for secret in secrets:
        for form in (secret, base64.b64encode(secret.encode()).decode().rstrip("="), secret.encode().hex()):
            assert not [text[:200] for text in said if form in text]


async def everything(database: Database) -> list[Any]:
    """Give all rows of all tables; octets as text of the same code points."""

    def read(connection: sqlalchemy.Connection) -> list[Any]:
        rows = [row for table in schema.metadata.sorted_tables for row in connection.execute(sqlalchemy.select(table))]
        return [[v.decode("latin-1") if isinstance(v, bytes) else v for v in row] for row in rows]

    return await database.read(read)


# ---------------------------------------------------------------- the default


async def test_the_first_server_of_an_owner_becomes_its_default(
    node: Node, admin: Administration, tenants: Tenants
) -> None:
    first = await admin.create(OWNER, "server", smtp("first", is_default=False))
    second = await admin.create(OWNER, "server", smtp("second"))
    theirs = await admin.create(tenants.member, "server", smtp("theirs"))
    assert (first.value.is_default, second.value.is_default, theirs.value.is_default) == (True, False, True)
    assert node.source.current.defaults == {0: first.id, theirs.tenant_id: theirs.id}


async def test_making_another_the_default_demotes_the_first(node: Node, admin: Administration) -> None:
    first = await admin.create(OWNER, "server", smtp("first"))
    second = await admin.create(OWNER, "server", smtp("second"))
    assert (await admin.make_default(OWNER, second.id)).version == 2
    assert defaults(node) == ["second"]
    assert admin.show(OWNER, "server", first.id).version == 2
    third = await admin.create(OWNER, "server", smtp("third", is_default=True))
    assert defaults(node) == ["third"]
    await admin.patch(OWNER, "server", first.id, {"is_default": True})
    assert defaults(node) == ["first"]
    actions = [(e.object_id, e.action) for e in (await admin.audit(OWNER)).items]
    assert actions[:4] == [(first.id, "edit"), (third.id, "demote"), (third.id, "create"), (second.id, "demote")]


async def test_making_the_default_the_default_changes_nothing(admin: Administration) -> None:
    first = await admin.create(OWNER, "server", smtp("first"))
    assert await admin.make_default(OWNER, first.id) == first


async def test_the_default_goes_only_with_a_successor(node: Node, admin: Administration, tenants: Tenants) -> None:
    first = await admin.create(OWNER, "server", smtp("first"))
    second = await admin.create(OWNER, "server", smtp("second"))
    off = await admin.create(OWNER, "server", smtp("off", enabled=False))
    theirs = await admin.create(tenants.member, "server", smtp("theirs"))
    for successor in (None, first.id, off.id, theirs.id, 4711):
        with pytest.raises(Conflict) as caught:
            await admin.delete(OWNER, "server", [first.id], successor=successor)
        assert caught.value.code == "successor-needed"
        with pytest.raises(Conflict) as caught:
            await admin.set_enabled(OWNER, first.id, False, successor=successor)
        assert caught.value.code == "successor-needed"
    for patch in ({"enabled": False}, {"is_default": False}, {"tenant_id": tenants.alder}):
        with pytest.raises(Conflict) as caught:
            await admin.patch(OWNER, "server", first.id, patch)
        assert caught.value.code == "successor-needed"
    with pytest.raises(Conflict):
        await admin.make_default(OWNER, off.id)
    assert defaults(node) == ["first"]
    record, _ = await admin.set_enabled(OWNER, first.id, False, successor=second.id)
    assert (record.value.enabled, record.value.is_default) == (False, False)
    assert defaults(node) == ["second"]
    await admin.set_enabled(OWNER, first.id, True)
    await admin.delete(OWNER, "server", [second.id], successor=first.id)
    assert defaults(node) == ["first"]


async def test_a_default_whose_owner_has_only_disabled_ones_left_goes_without_a_successor(
    node: Node, admin: Administration
) -> None:
    first = await admin.create(OWNER, "server", smtp("first"))
    await admin.create(OWNER, "server", smtp("off", enabled=False))
    await admin.delete(OWNER, "server", [first.id])
    assert defaults(node) == ["off"]


async def test_several_are_deleted_in_one_transaction_or_none(node: Node, admin: Administration) -> None:
    a, b, c, d = [await admin.create(OWNER, "server", smtp(name)) for name in "abcd"]
    with pytest.raises(Conflict):
        await admin.delete(OWNER, "server", [b.id, a.id])
    with pytest.raises(NotFound):
        await admin.delete(OWNER, "server", [b.id, 4711])
    with pytest.raises(Conflict):
        await admin.delete(OWNER, "server", [a.id, b.id], successor=b.id)
    assert len(node.source.current.servers) == 4

    def hold(connection: sqlalchemy.Connection) -> None:
        for each in (a, d):
            server_state.store(connection, server_state.ServerState(each.id, held="operator"))

    await node.database.write(hold)
    deletion = await admin.delete(OWNER, "server", [a.id, b.id, a.id], successor=d.id)
    assert deletion.deleted == (a.id, b.id)
    assert await node.database.read(lambda c: [s.server_id for s in server_state.load_since(c, 0)]) == [d.id]
    assert defaults(node) == ["d"]
    assert set(node.source.current.servers) == {c.id, d.id}


async def test_the_last_one_may_go_with_a_warning_that_counts_who_waits(
    node: Node, admin: Administration, tenants: Tenants
) -> None:
    office = await admin.create(OWNER, "server", smtp())
    theirs = await admin.create(tenants.member, "server", smtp("theirs"))
    await put_waiting(node, office, 3)
    await put_waiting(node, theirs, 2)
    record, warnings = await admin.set_enabled(OWNER, office.id, False)
    assert record.value.is_default
    assert (
        warnings[0] == "Sending stops: there is no enabled global server any more. 5 recipients wait until it goes on."
    )
    assert warnings[1].startswith("3 recipients wait there")
    assert node.source.current.sending_off_reason()
    await admin.set_enabled(OWNER, office.id, True)
    assert node.source.current.sending_off_reason() is None
    deletion = await admin.delete(tenants.member, "server", [theirs.id])
    assert deletion.warnings == (
        "Alder has no enabled server of its own any more: its mail goes through the global one.",
        "2 recipients wait there and will be routed again or held.",
    )
    deletion = await admin.delete(OWNER, "server", [office.id])
    assert "5 recipients wait" in deletion.warnings[0]


async def test_a_server_that_moves_keeps_one_default_for_each_owner(
    node: Node, admin: Administration, tenants: Tenants
) -> None:
    alder = tenants.member.tenant_id
    office = await admin.create(OWNER, "server", smtp())
    moved = await admin.patch(OWNER, "server", office.id, {"tenant_id": tenants.alder})
    assert (defaults(node), defaults(node, alder)) == ([], ["office"])
    first = await admin.create(OWNER, "server", smtp("first"))
    assert not (await admin.create(OWNER, "server", smtp("second"))).value.is_default
    await admin.patch(OWNER, "server", moved.id, {"tenant_id": None})
    assert (defaults(node), defaults(node, alder)) == (["first"], [])
    with pytest.raises(Conflict):
        await admin.patch(OWNER, "server", first.id, {"tenant_id": tenants.alder})


async def test_two_nodes_at_once_leave_exactly_one_default(store_url: URL, node: Node) -> None:
    """Both want another default, again and again, while servers come and go; the database itself must agree."""
    async with started_node(store_url, ring=node.ring, number=1) as other:
        first = [await node.administration.create(OWNER, "server", smtp(f"s{n}")) for n in range(6)]
        nodes = [node, other]

        async def promote(n: int) -> None:
            await nodes[n % 2].administration.make_default(OWNER, first[n % 6].id)

        async def come_and_go(n: int) -> None:
            administration = nodes[n % 2].administration
            record = await administration.create(OWNER, "server", smtp(f"guest{n}", is_default=n % 3 == 0))
            # The default by now: it may be refused, and then it stays.
            try:
                await administration.delete(OWNER, "server", [record.id])
            except Conflict as error:
                assert error.code == "successor-needed"

        await asyncio.gather(*(promote(n) for n in range(20)), *(come_and_go(n) for n in range(10)))
        for each in nodes:
            await each.source.refresh()
            assert len(defaults(each)) == 1
        assert node.source.current.servers == other.source.current.servers
        versions = await node.database.read(
            lambda c: c.execute(sqlalchemy.select(schema.change.c.id).order_by(schema.change.c.id)).scalars().all()
        )
        assert list(versions) == list(range(1, len(versions) + 1))


async def test_two_nodes_that_add_a_first_server_at_once(store_url: URL, node: Node) -> None:
    async with started_node(store_url, ring=node.ring, number=1) as other:
        await asyncio.gather(
            *(each.administration.create(OWNER, "server", smtp(f"{number}-{each is node}"))
              for number in range(5) for each in (node, other))
        )  # fmt: skip
        await node.source.refresh()
        assert len(node.source.current.servers) == 10
        assert len(defaults(node)) == 1


# ---------------------------------------------------------------- history


async def test_history_tells_who_changed_what(admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp(auth=password()))
    await admin.patch(OWNER, "server", record.id, {"comments": "new"})
    await admin.patch(OWNER, "server", record.id, {"auth": {"password": "other"}})
    third, second, first = await admin.history(OWNER, "server", record.id)
    assert (third.version, second.version, first.version) == (3, 2, 1)
    assert third.changes == {"auth.password": ["set", "changed"]}
    assert second.changes == {"comments": ["", "new"]}
    assert (second.actor, second.at[-1]) == ("command line", "Z")
    assert first.changes["host"] == [None, "smtp.example.org"]
    assert first.changes["auth.password"] == ["not set", "set"]
    old = await admin.version(OWNER, "server", record.id, 1)
    assert (old["version"], old["comments"], old["auth"]["password"]) == (1, "", "set")
    with pytest.raises(NotFound):
        await admin.version(OWNER, "server", record.id, 4)


async def test_a_restore_uses_the_secret_of_its_time(node: Node, admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp(auth=password("first")))
    await admin.patch(OWNER, "server", record.id, {"host": "other.example", "auth": {"password": "second"}})
    restored = await admin.restore(OWNER, "server", record.id, 1)
    assert (restored.version, restored.value.host) == (3, "smtp.example.org")
    assert restored.value.auth.password.get_secret_value() == "first"
    # In use again: it is not pruned with the replaced ones.
    await admin.prune_secrets(node.clock.now_ms() + 31 * DAY_MS)
    node.source.current = type(node.source.current)()
    directory = await node.source.refresh()
    assert directory.servers[record.id].value.auth.password.get_secret_value() == "first"  # type: ignore[union-attr]


async def test_a_restore_asks_for_a_secret_that_is_gone(node: Node, admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp(auth=password("first")))
    await admin.patch(OWNER, "server", record.id, {"auth": {"password": "second"}}, forget=True)
    with pytest.raises(InvalidInput) as caught:
        await admin.restore(OWNER, "server", record.id, 1)
    assert problems(caught) == [("auth.password", "secret-needed")]
    restored = await admin.restore(OWNER, "server", record.id, 1, {"auth.password": "entered"})
    assert restored.value.auth.password.get_secret_value() == "entered"


async def test_a_restore_obeys_todays_rules(node: Node, admin: Administration) -> None:
    spare = await admin.create(OWNER, "server", smtp("spare"))
    record = await admin.create(OWNER, "server", smtp(fallback_server_id=format_id(spare.id)))
    await admin.make_default(OWNER, record.id)
    await admin.patch(OWNER, "server", record.id, {"fallback_server_id": None})
    await admin.delete(OWNER, "server", [spare.id])
    with pytest.raises(InvalidInput) as caught:
        await admin.restore(OWNER, "server", record.id, 1)
    assert problems(caught) == [("fallback_server_id", "no-such-server")]
    restored = await admin.restore(OWNER, "server", record.id, 3)
    assert restored.value.is_default
    assert restored.value.fallback_server_id is None


async def test_a_deleted_object_keeps_its_history(admin: Administration) -> None:
    record = await admin.create(OWNER, "server", smtp())
    await admin.delete(OWNER, "server", [record.id])
    assert len(await admin.history(OWNER, "server", record.id)) == 1
    with pytest.raises(NotFound):
        await admin.restore(OWNER, "server", record.id, 1)


# ---------------------------------------------------------------- credentials


async def test_an_application_is_told_its_keys_once(node: Node, admin: Administration) -> None:
    record, keys = await admin.create_application(OWNER, {"name": "Web Shop"})
    actor = admin.authenticate_bearer(keys.api_key)
    assert actor == Actor("application", record.id, "Web Shop", Role.APPLICATION, 0)
    assert keys.smtp_username.startswith("web-shop-")
    found = credentials.recognise(node.source.current, node.ring, "smtp", keys.smtp_username, keys.smtp_password)
    assert found is not None
    assert found.application_id == record.id
    kinds = [
        (info.kind, info.handle in keys.api_key + keys.smtp_username) for info in await admin.keys(OWNER, record.id)
    ]
    assert kinds == [("api_key", True), ("smtp", True)]
    # 160 random bits each.
    assert len(base64.b32decode(keys.smtp_password.upper())) == 20


async def test_wrong_credentials_match_nothing(node: Node, admin: Administration) -> None:
    _, keys = await admin.create_application(OWNER, {"name": "shop"})
    info, token = await admin.create_token(OWNER, "ci", "administrator")
    _, handle, secret = token.split("_")
    for text in (
        "", "_", "__", "pht_", token[:-1], token + "a", token.upper(), f"phk_{handle}_{secret}", f"pht_{handle}_",
        f"pht_{keys.smtp_username}_{keys.smtp_password}", f"pht_nobody00_{secret}", "x" * 100_000, "pht_\ud800_\ud800",
        keys.smtp_password, f" {token}",
    ):  # fmt: skip
        with pytest.raises(NotAuthenticated):
            admin.authenticate_bearer(text)
    for username, secret in (
        (keys.smtp_username, keys.smtp_password + "x"), (keys.smtp_username, ""), ("", ""), (info.handle, token),
        (keys.smtp_username.upper(), keys.smtp_password),
    ):  # fmt: skip
        assert credentials.recognise(node.source.current, node.ring, "smtp", username, secret) is None


async def test_a_revoked_credential_is_refused_at_once_and_on_other_nodes(node: Node, store_url: URL) -> None:
    admin = node.administration
    async with started_node(store_url, ring=node.ring, number=1) as other:
        watching = asyncio.create_task(other.source.watch())
        try:
            application, keys = await admin.create_application(OWNER, {"name": "shop"})
            info, token = await admin.create_token(OWNER, "ci", "operator")
            await asyncio.wait_for(until(lambda: len(other.source.current.credentials) == 3), 5)
            assert other.administration.authenticate_bearer(token).role is Role.OPERATOR
            api_key = (await admin.keys(OWNER, application.id))[0]
            began = asyncio.get_running_loop().time()
            await admin.revoke_token(OWNER, info.id)
            await admin.revoke_key(OWNER, application.id, api_key.id)
            for text in (token, keys.api_key):
                with pytest.raises(NotAuthenticated):
                    admin.authenticate_bearer(text)
            await asyncio.wait_for(until(lambda: len(other.source.current.credentials) == 1), 5)
            # Design.md section 7 promises one second; the rest is for a busy machine.
            assert asyncio.get_running_loop().time() - began < 2.0
            with pytest.raises(NotAuthenticated):
                other.administration.authenticate_bearer(token)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0.01)


async def test_tokens_expire(node: Node, admin: Administration) -> None:
    clock = node.clock
    assert isinstance(clock, ManualClock)
    expires_at = datetime.fromtimestamp(clock.now_ms() / 1000 + 60, UTC)
    _, token = await admin.create_token(OWNER, "ci", "auditor", None, expires_at)
    assert admin.authenticate_bearer(token).role is Role.AUDITOR
    clock.advance(60)
    with pytest.raises(NotAuthenticated):
        admin.authenticate_bearer(token)
    with pytest.raises(InvalidInput) as caught:
        await admin.create_token(OWNER, "late", "auditor", None, expires_at)
    assert problems(caught) == [("expires_at", "out-of-range")]


@pytest.mark.parametrize(
    "change",
    [{"role": "administrator"}, {"tenant_id": 0}, {"expires_ms": None}, {"kind": "api_key"}, {"handle": "elsewhere"}],
)
async def test_a_credential_altered_in_the_database_is_worthless(
    node: Node, admin: Administration, tenants: Tenants, change: dict[str, Any]
) -> None:
    """A digest holds for the row that it was made for, with everything that decides what it is good for."""
    expires_at = datetime.fromtimestamp(node.clock.now_ms() / 1000 + 60, UTC)
    info, token = await admin.create_token(tenants.member, "ci", "auditor", None, expires_at)
    table = schema.credential
    await node.database.write(lambda c: c.execute(table.update().where(table.c.id == info.id).values(**change)))
    node.source.current = type(node.source.current)()
    await node.source.refresh()
    secret = token.rpartition("_")[2]
    for text in (token, f"pht_elsewhere_{secret}", f"phk_{info.handle}_{secret}"):
        with pytest.raises(NotAuthenticated):
            admin.authenticate_bearer(text)


async def test_keys_of_a_disabled_application_or_tenant_are_refused(admin: Administration, tenants: Tenants) -> None:
    record, keys = await admin.create_application(tenants.member, {"name": "shop"})
    assert admin.authenticate_bearer(keys.api_key).tenant_id == tenants.member.tenant_id
    await admin.patch(OWNER, "tenant", tenants.member.tenant_id, {"enabled": False})
    with pytest.raises(NotPermitted):
        admin.authenticate_bearer(keys.api_key)
    await admin.patch(OWNER, "tenant", tenants.member.tenant_id, {"enabled": True})
    await admin.patch(OWNER, "application", record.id, {"enabled": False})
    with pytest.raises(NotPermitted):
        admin.authenticate_bearer(keys.api_key)


async def test_a_key_follows_its_application_to_another_tenant(admin: Administration, tenants: Tenants) -> None:
    record, keys = await admin.create_application(OWNER, {"name": "shop"})
    await admin.patch(OWNER, "application", record.id, {"tenant_id": tenants.alder})
    assert admin.authenticate_bearer(keys.api_key).tenant_id == tenants.member.tenant_id


async def test_deleting_an_application_revokes_its_credentials(node: Node, admin: Administration) -> None:
    record, keys = await admin.create_application(OWNER, {"name": "shop"})
    await admin.delete(OWNER, "application", [record.id])
    assert not node.source.current.credentials
    with pytest.raises(NotAuthenticated):
        admin.authenticate_bearer(keys.api_key)


async def test_deleting_a_tenant_revokes_its_tokens(admin: Administration, tenants: Tenants) -> None:
    _, token = await admin.create_token(tenants.member, "ci", "administrator")
    await admin.delete(OWNER, "tenant", [tenants.member.tenant_id])
    with pytest.raises(NotAuthenticated):
        admin.authenticate_bearer(token)


async def test_use_is_written_down_later_and_together(node: Node, admin: Administration) -> None:
    assert isinstance(node.clock, ManualClock)
    _, token = await admin.create_token(OWNER, "ci", "auditor")
    await admin.write_last_used()
    assert (await admin.tokens(OWNER))[0].last_used_ms is None
    before = node.database.commits
    for _ in range(100):
        admin.authenticate_bearer(token)
    node.clock.advance(5)
    await admin.write_last_used()
    await admin.write_last_used()
    assert node.database.commits == before + 1
    assert (await admin.tokens(OWNER))[0].last_used_ms == node.clock.now_ms()


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x00", "x" * 101, "a\u2028b", "a\u202eb"])
async def test_names_of_tokens_hold_nothing_that_could_steer(admin: Administration, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        await admin.create_token(OWNER, name, "auditor")
    assert problems(caught) == [("name", "not-a-name")]


async def test_a_token_never_has_the_role_of_an_application(admin: Administration) -> None:
    for role in ("application", "root", ""):
        with pytest.raises(InvalidInput) as caught:
            await admin.create_token(OWNER, "ci", role)
        assert problems(caught) == [("role", "not-a-choice")]


# ---------------------------------------------------------------- settings


async def test_settings_are_changed_and_audited(node: Node, admin: Administration) -> None:
    server = await admin.create(OWNER, "server", smtp())
    await put_waiting(node, server, 1)
    value, warnings = await admin.change_installation(OWNER, {"sending_enabled": False, "max_recipients": 5})
    assert (value.sending_enabled, value.max_recipients) == (False, 5)
    assert warnings == ("Sending is off. 1 recipient waits until it goes on.",)
    entry = (await admin.audit(OWNER)).items[0]
    assert (entry.noun, entry.action) == ("settings", "edit")
    assert entry.changes == {"sending_enabled": [True, False], "max_recipients": [1000, 5]}
    value, warnings = await admin.change_installation(OWNER, {"max_recipients": None})
    assert (value.max_recipients, value.sending_enabled, warnings) == (1000, False, ())
    with pytest.raises(InvalidInput) as caught:
        await admin.change_installation(
            OWNER, {"max_recipients": 0, "colour": 1, "retry_delays_s": [0], "postmaster_address": "a@b\r\nBcc: c@d"}
        )
    assert {field for field, _ in problems(caught)} == {
        "max_recipients",
        "colour",
        "retry_delays_s",
        "postmaster_address",
    }
    assert admin.installation(OWNER) == node.source.current.installation


# ---------------------------------------------------------------- who may do what


async def test_a_tenant_makes_its_own_objects_only(admin: Administration, tenants: Tenants) -> None:
    record = await admin.create(tenants.member, "server", smtp())
    assert record.tenant_id == tenants.member.tenant_id
    for foreign in (tenants.birch, format_id(4711)):
        with pytest.raises(InvalidInput) as caught:
            await admin.create(tenants.member, "server", smtp("x", tenant_id=foreign))
        assert problems(caught) == [("tenant_id", "no-such-tenant")]
        with pytest.raises(InvalidInput) as caught:
            await admin.patch(tenants.member, "server", record.id, {"tenant_id": foreign})
        assert problems(caught) == [("tenant_id", "no-such-tenant")]
    with pytest.raises(InvalidInput):
        await admin.patch(tenants.member, "server", record.id, {"tenant_id": None})
    info, _ = await admin.create_token(tenants.member, "ci", "administrator")
    assert info.tenant_id == tenants.member.tenant_id
    for foreign_number in (0, tenants.stranger.tenant_id):
        with pytest.raises(InvalidInput):
            await admin.create_token(tenants.member, "ci", "administrator", foreign_number)


@pytest.mark.parametrize("whose", ["alder", "global"])
async def test_a_stranger_meets_nothing_of_another_owner(
    admin: Administration, tenants: Tenants, whose: str, authority: CertificateAuthority
) -> None:
    """Every method, for every noun, by identifier: not found, and nothing happens."""
    maker = tenants.member if whose == "alder" else OWNER
    server = await admin.create(maker, "server", smtp(auth=password()))
    certificate = await admin.create(maker, "certificate", {"name": "root", "pem": authority.pem})
    application, _ = await admin.create_application(maker, {"name": "shop"})
    key = (await admin.keys(maker, application.id))[0]
    token, _ = await admin.create_token(maker, "ci", "auditor")
    before = (await admin.audit(OWNER)).items
    stranger = tenants.stranger
    found = [("server", server.id), ("certificate", certificate.id), ("application", application.id)]
    if whose == "alder":
        found.append(("tenant", tenants.member.tenant_id))
    for word, number in found:
        with pytest.raises(NotFound):
            admin.show(stranger, word, number)
        for attempt in (
            admin.replace(stranger, word, number, {}),
            admin.patch(stranger, word, number, {"comments": "x"}),
            admin.delete(stranger, word, [number]),
            admin.history(stranger, word, number),
            admin.version(stranger, word, number, 1),
            admin.restore(stranger, word, number, 1),
        ):
            with pytest.raises(NotFound):
                await attempt
    others: list[Coroutine[Any, Any, object]] = [
        admin.make_default(stranger, server.id),
        admin.set_enabled(stranger, server.id, False),
        admin.keys(stranger, application.id),
        admin.issue_key(stranger, application.id, "api_key"),
        admin.revoke_key(stranger, application.id, key.id),
        admin.revoke_token(stranger, token.id),
        admin.change_installation(stranger, {"sending_enabled": False}),
    ]
    for other in others:
        with pytest.raises(NotFound):
            await other
    with pytest.raises(NotFound):
        admin.installation(stranger)
    own, _ = await admin.create_application(stranger, {"name": "own"})
    with pytest.raises(NotFound):
        await admin.revoke_key(stranger, own.id, key.id)
    assert await admin.tokens(stranger) == []
    assert {entry.tenant_id for entry in (await admin.audit(stranger)).items} == {stranger.tenant_id}
    assert (await admin.audit(OWNER)).items[-len(before) :] == before


async def test_a_tenants_administrator_sees_the_tenant_and_cannot_change_it(
    admin: Administration, tenants: Tenants
) -> None:
    number = tenants.member.tenant_id
    assert admin.show(tenants.member, "tenant", number).name == "Alder"
    for attempt in (
        admin.patch(tenants.member, "tenant", number, {"networks": ["0.0.0.0/0"]}),
        admin.delete(tenants.member, "tenant", [number]),
        admin.create(tenants.member, "tenant", {"name": "Cedar"}),
    ):
        with pytest.raises(NotPermitted):
            await attempt


async def test_history_of_the_time_with_another_owner_stays_with_that_owner(
    admin: Administration, tenants: Tenants
) -> None:
    record = await admin.create(tenants.member, "server", smtp(comments="of Alder"))
    await admin.patch(OWNER, "server", record.id, {"tenant_id": tenants.birch, "comments": ""})
    assert [entry.version for entry in await admin.history(tenants.stranger, "server", record.id)] == [2]
    for attempt in (
        admin.version(tenants.stranger, "server", record.id, 1),
        admin.restore(tenants.stranger, "server", record.id, 1),
        admin.history(tenants.member, "server", record.id),
    ):
        with pytest.raises(NotFound):
            await attempt


@pytest.mark.parametrize("actor", [AUDITOR, OPERATOR], ids=["auditor", "operator"])
async def test_only_administrators_configure(admin: Administration, actor: Actor) -> None:
    server = await admin.create(OWNER, "server", smtp())
    application, _ = await admin.create_application(OWNER, {"name": "shop"})
    for attempt in (
        admin.create(actor, "server", smtp("x")),
        admin.create_application(actor, {"name": "x"}),
        admin.replace(actor, "server", server.id, smtp()),
        admin.patch(actor, "server", server.id, {}),
        admin.delete(actor, "server", [server.id]),
        admin.make_default(actor, server.id),
        admin.set_enabled(actor, server.id, False),
        admin.restore(actor, "server", server.id, 1),
        admin.change_installation(actor, {}),
        admin.issue_key(actor, application.id, "api_key"),
        admin.revoke_key(actor, application.id, 1),
        admin.create_token(actor, "x", "auditor"),
        admin.revoke_token(actor, 1),
    ):
        with pytest.raises(NotPermitted):
            await attempt
    assert admin.show(actor, "server", server.id) == server
    assert admin.installation(actor).sending_enabled
    assert len((await admin.audit(actor)).items) == 4


async def test_an_application_reads_no_configuration(admin: Administration) -> None:
    server = await admin.create(OWNER, "server", smtp())
    _, keys = await admin.create_application(OWNER, {"name": "shop"})
    actor = admin.authenticate_bearer(keys.api_key)
    with pytest.raises(NotPermitted):
        admin.show(actor, "server", server.id)
    for attempt in (
        admin.history(actor, "server", server.id), admin.tokens(actor), admin.audit(actor), admin.keys(actor, actor.id)
    ):  # fmt: skip
        with pytest.raises(NotPermitted):
            await attempt


async def test_every_change_is_audited_with_its_actor(node: Node, admin: Administration, tenants: Tenants) -> None:
    record = await admin.create(tenants.member, "server", smtp(auth=password()))
    await admin.patch(tenants.member, "server", record.id, {"comments": "x"})
    application, _ = await admin.create_application(tenants.member, {"name": "shop"})
    info, _ = await admin.issue_key(tenants.member, application.id, "smtp", "printer")
    await admin.revoke_key(tenants.member, application.id, info.id)
    await admin.delete(tenants.member, "server", [record.id])
    page = await admin.audit(tenants.member)
    told = [(e.noun, e.action, e.object_name) for e in reversed(page.items)]
    handles = [i.handle for i in await admin.keys(tenants.member, application.id)]
    assert told == [
        ("tenant", "create", "Alder"),
        ("server", "create", "office"),
        ("server", "edit", "office"),
        ("application", "create", "shop"),
        ("credential", "issue", handles[0]),
        ("credential", "issue", handles[1]),
        ("credential", "issue", "printer"),
        ("credential", "revoke", "printer"),
        ("server", "delete", "office"),
    ]
    assert {(e.actor_kind, e.actor_name) for e in page.items[:-1]} == {("token", "member")}
    first = await admin.audit(OWNER, noun="server", limit=2)
    assert [e.action for e in first.items] == ["delete", "edit"]
    rest = await admin.audit(OWNER, noun="server", before=first.next, limit=2)
    assert ([e.action for e in rest.items], rest.next) == (["create"], None)


async def test_an_unknown_kind_of_object_is_not_found(admin: Administration) -> None:
    with pytest.raises(NotFound):
        admin.show(OWNER, "mailbag", 1)
    with pytest.raises(NotFound):
        await admin.create(OWNER, "mailbag", {})


# ---------------------------------------------------------------- the key ring


async def test_another_key_ring_is_a_clear_refusal(node: Node, store_url: URL) -> None:
    await node.administration.create(OWNER, "server", smtp(auth=password()))
    with pytest.raises(PosthouseError, match="not in the key ring"):
        async with started_node(store_url, ring=new_ring(), number=1):
            pass


async def test_sealed_values_swapped_between_rows_do_not_open(node: Node, admin: Administration) -> None:
    a = await admin.create(OWNER, "server", smtp("a", auth=password("one")))
    b = await admin.create(OWNER, "server", smtp("b", auth=password("two")))
    table = schema.secret
    rows = {row.id: row for row in await secret_rows(node)}
    number_a, number_b = a.secrets["auth.password"], b.secrets["auth.password"]

    def swap(connection: sqlalchemy.Connection) -> None:
        connection.execute(table.update().where(table.c.id == number_a).values(sealed=rows[number_b].sealed))
        connection.execute(table.update().where(table.c.id == number_b).values(sealed=rows[number_a].sealed))

    await node.database.write(swap)
    node.source.current = type(node.source.current)()
    with pytest.raises(PosthouseError, match="does not belong to the row"):
        await node.source.refresh()


async def test_nobody_reads_a_ring_in_a_representation(node: Node) -> None:
    assert isinstance(node.ring, KeyRing)
    assert "object at" in repr(node.ring)
