"""Who may call what: roles, tenants, applications' keys; and how guessing is slowed down."""

from typing import Any

import pytest

from posthouse.api.bearer import FAILURES
from tests.support.web import Web, is_problem

# Every route of an object or a list that is no message's, with what an operator and an auditor get.
READING = [
    "servers", "tenants", "applications", "certificates", "tokens", "settings", "audit", "events", "queue", "captured",
    "health", "messages",
]  # fmt: skip


async def test_without_a_credential_everything_is_refused(web: Web) -> None:
    nobody = web.caller(None)
    for path in READING:
        answer = await nobody.get(f"/api/v1/{path}")
        is_problem(answer, 401, "not-authenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "field",
    [
        "Bearer",
        "Bearer ",
        "Bearer pht_x_y",
        "Bearer phk_x_y",
        "Basic cGh0Og==",
        "pht_aaaaaaaa_bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
        "Bearer " + "x" * 5000,
        "Bearer \xff\xfe",
    ],
)
async def test_a_wrong_credential_is_refused(web: Web, field: str) -> None:
    answer = await web.caller(None).get("/api/v1/servers", headers={b"Authorization": field.encode("latin-1")})
    is_problem(answer, 401, "not-authenticated")


async def test_part_of_a_token_or_one_letter_more_is_refused(web: Web) -> None:
    token = await web.token()
    for wrong in (token[:-1], token + "a", token.upper(), token[:-1] + ("a" if token[-1] != "a" else "b")):
        is_problem(await web.caller(wrong).get("/api/v1/servers"), 401, "not-authenticated")
    assert (await web.caller(token).get("/api/v1/servers")).status_code == 200


async def test_a_revoked_token_is_refused_at_once(web: Web) -> None:
    made = await web.add("tokens", name="short", role="auditor")
    caller = web.caller(made["token"])
    assert (await caller.get("/api/v1/servers")).status_code == 200
    await web.command.delete(f"/api/v1/tokens/{made['id']}")
    is_problem(await caller.get("/api/v1/servers"), 401, "not-authenticated")


async def test_an_operator_reads_and_operates_and_changes_nothing(web: Web, sandbox: dict[str, Any]) -> None:
    operator = web.caller(await web.token("operator"))
    for path in READING:
        assert (await operator.get(f"/api/v1/{path}")).status_code == 200, path
    assert (await operator.post(f"/api/v1/queue/{sandbox['id']}/hold")).status_code == 200
    is_problem(await operator.post("/api/v1/tenants", json={"name": "x"}), 403, "not-permitted")
    is_problem(await operator.delete(f"/api/v1/servers/{sandbox['id']}"), 403, "not-permitted")
    is_problem(await operator.patch("/api/v1/settings", json={"sending_enabled": False}), 403, "not-permitted")
    is_problem(await operator.post("/api/v1/tokens", json={"name": "x", "role": "operator"}), 403, "not-permitted")


async def test_an_auditor_only_reads(web: Web, sandbox: dict[str, Any]) -> None:
    auditor = web.caller(await web.token("auditor"))
    for path in READING:
        assert (await auditor.get(f"/api/v1/{path}")).status_code == 200, path
    is_problem(await auditor.post(f"/api/v1/queue/{sandbox['id']}/hold"), 403, "not-permitted")
    message = {"from": "a@example.org", "to": "b@example.net"}
    is_problem(await auditor.post("/api/v1/messages", json=message), 403, "not-permitted")


async def test_an_application_reaches_its_own_messages_and_nothing_else(web: Web, sandbox: dict[str, Any]) -> None:
    shop, scanner = await web.add("applications", name="shop"), await web.add("applications", name="scanner")
    mine, other = web.caller(shop["api_key"]), web.caller(scanner["api_key"])
    sent = await mine.post("/api/v1/messages", json={"from": "a@example.org", "to": "b@example.net"})
    path = f"/api/v1/messages/{sent.json()['id']}"
    for part in ("", "/timeline", "/raw"):
        assert (await mine.get(path + part)).status_code == 200
        is_problem(await other.get(path + part), 404, "not-found")
    is_problem(await other.post(path + "/cancel"), 404, "not-found")
    assert [m["id"] for m in (await mine.get("/api/v1/messages")).json()["items"]] == [sent.json()["id"]]
    assert (await other.get("/api/v1/messages")).json()["items"] == []
    for name in READING:
        if name != "messages":
            is_problem(await mine.get(f"/api/v1/{name}"), 403, "not-permitted")
    for name in ("servers", "tenants", "applications", "tokens", "links"):
        answer = await mine.post(f"/api/v1/{name}", json={})
        assert answer.status_code in (403, 422), name
    is_problem(await mine.post("/api/v1/links"), 403, "not-permitted")
    explained = await mine.post("/api/v1/routes/explain", json={"from": "a@b.c", "to": ["d@e.f"]})
    is_problem(explained, 403, "not-permitted")


async def test_the_key_of_a_disabled_application_is_refused(web: Web, sandbox: dict[str, Any]) -> None:
    shop = await web.add("applications", name="shop")
    await web.command.patch(f"/api/v1/applications/{shop['id']}", json={"enabled": False})
    answer = await web.caller(shop["api_key"]).post(
        "/api/v1/messages", json={"from": "a@b.example", "to": "c@d.example"}
    )
    is_problem(answer, 403, "not-permitted")


async def test_an_smtp_password_is_no_api_key(web: Web) -> None:
    shop = await web.add("applications", name="shop")
    for text in (shop["smtp_password"], f"phk_{shop['smtp_username']}_{shop['smtp_password']}"):
        is_problem(await web.caller(text).get("/api/v1/messages"), 401, "not-authenticated")


async def test_a_tenants_administrator_meets_404_for_everything_outside(web: Web, sandbox: dict[str, Any]) -> None:
    harbour, lighthouse = await web.add("tenants", name="Harbour"), await web.add("tenants", name="Lighthouse")
    theirs = {
        "servers": await web.add("servers", kind="capture", name="s", tenant_id=lighthouse["id"]),
        "applications": await web.add("applications", name="a", tenant_id=lighthouse["id"]),
        "tenants": lighthouse,
    }
    key = web.caller(theirs["applications"]["api_key"])
    sent = (await key.post("/api/v1/messages", json={"from": "a@b.example", "to": "c@d.example"})).json()
    await web.message(sent["id"])
    member = web.caller(await web.token("administrator", harbour["id"]))
    for collection, foreign in {**theirs, "global": sandbox}.items():
        path = f"/api/v1/{'servers' if collection == 'global' else collection}/{foreign['id']}"
        is_problem(await member.get(path), 404, "not-found")
        is_problem(await member.get(f"{path}/history"), 404, "not-found")
        is_problem(await member.patch(path, json={"comments": "x"}), 404, "not-found")
        is_problem(await member.put(path, json={"name": "x"}), 404, "not-found")
        is_problem(await member.delete(path), 404, "not-found")
        is_problem(await member.post(f"{path}/restore", json={"version": 1}), 404, "not-found")
        listed = (await member.get(f"/api/v1/{path.split('/')[3]}")).json()["items"]
        assert foreign["id"] not in [item["id"] for item in listed]
    for part in ("", "/timeline", "/raw"):
        is_problem(await member.get(f"/api/v1/messages/{sent['id']}{part}"), 404, "not-found")
    is_problem(await member.post(f"/api/v1/messages/{sent['id']}/retry"), 404, "not-found")
    for server in (theirs["servers"]["id"], sandbox["id"]):
        for verb in ("hold", "release"):
            is_problem(await member.post(f"/api/v1/queue/{server}/{verb}"), 404, "not-found")
    is_problem(await member.get(f"/api/v1/servers?tenant={lighthouse['id']}"), 404, "not-found")
    is_problem(await member.get("/api/v1/servers?tenant=global"), 404, "not-found")
    is_problem(await member.get("/api/v1/settings"), 404, "not-found")
    for path in ("messages", "captured", "events", "tokens"):
        assert sent["id"] not in (await member.get(f"/api/v1/{path}")).text
    assert "Lighthouse" not in (await member.get("/api/v1/audit")).text
    explained = await member.post(
        "/api/v1/routes/explain", json={"from": "a@b.c", "to": ["d@e.f"], "tenant": lighthouse["id"]}
    )
    is_problem(explained, 404, "not-found")
    wrong = await member.post("/api/v1/messages", json={"from": "a@b.c", "to": "d@e.f", "tenant": lighthouse["id"]})
    is_problem(wrong, 404, "not-found")


async def test_guessing_from_one_address_is_slowed_down_and_others_go_on(web: Web) -> None:
    token = await web.token()
    guesser = web.caller("pht_aaaaaaaa_wrong", peer="192.0.2.66")
    for _ in range(FAILURES):
        is_problem(await guesser.get("/api/v1/servers"), 401, "not-authenticated")
    answer = await guesser.get("/api/v1/servers")
    is_problem(answer, 429, "too-many-requests")
    assert 1 <= int(answer.headers["retry-after"]) <= 61
    is_problem(await web.caller(token, peer="192.0.2.66").get("/api/v1/servers"), 429, "too-many-requests")
    assert (await web.caller(token, peer="192.0.2.67").get("/api/v1/servers")).status_code == 200


async def test_guessing_from_one_ipv6_network_counts_together(web: Web) -> None:
    for number in range(FAILURES):
        await web.caller("pht_aaaaaaaa_wrong", peer=f"2001:db8::{number + 1:x}").get("/api/v1/servers")
    answer = await web.caller("pht_aaaaaaaa_wrong", peer="2001:db8::ffff:1").get("/api/v1/servers")
    is_problem(answer, 429, "too-many-requests")
    is_problem(await web.caller("x", peer="2001:db8:0:1::1").get("/api/v1/servers"), 401, "not-authenticated")


async def test_a_success_ends_the_count(web: Web) -> None:
    token = await web.token()
    for _ in range(3):
        for _ in range(FAILURES - 1):
            await web.caller("pht_aaaaaaaa_wrong").get("/api/v1/servers")
        assert (await web.caller(token).get("/api/v1/servers")).status_code == 200
