"""Servers, tenants, applications and certificates: the same verbs, carried out by the administration."""

from typing import Any

import httpx2
import pytest

from posthouse.model.record import SECRET_NOT_SET, SECRET_SET
from tests.support.certificates import CertificateAuthority
from tests.support.web import Web, fields_of, is_problem

OFFICE = {
    "kind": "smtp",
    "name": "office",
    "host": "smtp.example.org",
    "auth": {"type": "password", "username": "u", "password": "first"},
}


async def test_what_is_added_is_shown_with_its_place_and_version(administrator: httpx2.AsyncClient) -> None:
    answer = await administrator.post("/api/v1/servers", json=OFFICE)
    assert answer.status_code == 201
    added = answer.json()
    assert answer.headers["location"] == f"/api/v1/servers/{added['id']}"
    assert answer.headers["etag"] == '"1"'
    assert (added["version"], added["is_default"], added["tenant_name"]) == (1, True, None)
    assert added["auth"]["password"] == SECRET_SET
    assert added["state"] == {
        "held": "", "cause": "", "detail": "", "since_at": None, "next_try_at": None, "failures": 0,
        "last_delivery_at": None,
    }  # fmt: skip
    shown = await administrator.get(answer.headers["location"])
    assert shown.json() == added
    assert added["created_at"].endswith("Z") and len(added["created_at"]) == len("2026-11-20T14:05:00.000Z")


async def test_a_secret_left_out_is_kept_and_null_removes_it(web: Web, administrator: httpx2.AsyncClient) -> None:
    added = (await administrator.post("/api/v1/servers", json=OFFICE)).json()
    path = f"/api/v1/servers/{added['id']}"
    assert (await administrator.patch(path, json={"comments": "x"})).json()["auth"]["password"] == SECRET_SET
    whole = {**OFFICE, "auth": {"type": "password", "username": "u"}, "comments": "y"}
    assert (await administrator.put(path, json=whole)).json()["auth"]["password"] == SECRET_SET
    (record,) = web.hub.directory.servers.values()
    assert record.value.auth.password.get_secret_value() == "first"  # type: ignore[union-attr]
    moved = await administrator.patch(path, json={"host": "other.example.org"})
    assert fields_of(is_problem(moved, 422, "invalid-input")) == ["auth.password"]
    removed = await administrator.patch(path, json={"auth": {"password": None}})
    assert removed.json()["auth"]["password"] == SECRET_NOT_SET


async def test_a_change_from_another_version_is_refused(administrator: httpx2.AsyncClient) -> None:
    added = (await administrator.post("/api/v1/tenants", json={"name": "Harbour"})).json()
    path = f"/api/v1/tenants/{added['id']}"
    assert (await administrator.patch(path, json={"comments": "1"}, headers={"If-Match": '"1"'})).headers[
        "etag"
    ] == '"2"'
    late = await administrator.patch(path, json={"comments": "2"}, headers={"If-Match": '"1"'})
    assert late.status_code == 409
    wrong = await administrator.patch(path, json={"comments": "2"}, headers={"If-Match": "W/1"})
    assert wrong.status_code == 422
    assert (await administrator.get(path)).json()["comments"] == "1"


async def test_lists_are_paged_by_cursor_and_filtered(web: Web, administrator: httpx2.AsyncClient) -> None:
    tenant = await web.add("tenants", name="Harbour")
    for number in range(7):
        await web.add("servers", kind="capture", name=f"box {number}", comments="odd" if number % 2 else "even")
    await web.add("servers", kind="smtp", name="office", host="h.example", tenant_id=tenant["id"], enabled=True)
    names: list[str] = []
    cursor = None
    while True:
        query = {"limit": "3", "kind": "capture", **({"cursor": cursor} if cursor else {})}
        page = (await administrator.get("/api/v1/servers", params=query)).json()
        names += [item["name"] for item in page["items"]]
        assert len(page["items"]) <= 3
        if not (cursor := page["next"]):
            break
    assert names == [f"box {number}" for number in range(7)]

    async def listed(**query: str) -> list[str]:
        found = (await administrator.get("/api/v1/servers", params=query)).json()["items"]
        return [item["name"] for item in found]

    assert await listed(name="box 3") == ["box 3"]
    assert await listed(search="ODD") == ["box 1", "box 3", "box 5"]
    assert await listed(kind="smtp") == ["office"]
    assert await listed(tenant=tenant["id"]) == ["office"]
    assert await listed(tenant="global", search="office") == []
    assert await listed(enabled="false") == []
    owned = (await administrator.get(f"/api/v1/servers?tenant={tenant['id']}")).json()["items"][0]
    assert owned["tenant_name"] == "Harbour"


async def test_the_default_moves_and_its_successor_is_named(web: Web, administrator: httpx2.AsyncClient) -> None:
    first, second = [await web.add("servers", kind="capture", name=name) for name in ("first", "second")]
    assert (first["is_default"], second["is_default"]) == (True, False)
    made = await administrator.post(f"/api/v1/servers/{second['id']}/default")
    assert made.json()["is_default"] is True
    assert (await administrator.get(f"/api/v1/servers/{first['id']}")).json()["is_default"] is False
    refused = await administrator.post(f"/api/v1/servers/{second['id']}/disable")
    is_problem(refused, 409, "successor-needed")
    disabled = await administrator.post(f"/api/v1/servers/{second['id']}/disable?successor={first['id']}")
    assert (disabled.json()["enabled"], disabled.json()["is_default"]) == (False, False)
    enabled = await administrator.post(f"/api/v1/servers/{second['id']}/enable")
    assert enabled.json()["enabled"] is True
    is_problem(await administrator.delete(f"/api/v1/servers/{first['id']}"), 409, "successor-needed")
    gone = await administrator.delete(f"/api/v1/servers/{first['id']}?successor={second['id']}")
    assert gone.json() == {"deleted": [first["id"]], "warnings": []}
    last = await administrator.post("/api/v1/servers/delete", json={"ids": [second["id"]]})
    assert last.json()["deleted"] == [second["id"]]
    assert "Sending stops" in last.json()["warnings"][0]


async def test_several_are_deleted_all_or_none(web: Web, administrator: httpx2.AsyncClient) -> None:
    first, second = [await web.add("tenants", name=name) for name in ("first", "second")]
    body = {"ids": [first["id"], "0000000000000"]}
    is_problem(await administrator.post("/api/v1/tenants/delete", json=body), 404, "not-found")
    assert (await administrator.get(f"/api/v1/tenants/{first['id']}")).status_code == 200
    body = {"ids": [first["id"], second["id"]]}
    assert (await administrator.post("/api/v1/tenants/delete", json=body)).json()["deleted"] == body["ids"]
    refused: list[dict[str, Any]] = [{}, {"ids": []}, {"ids": "x"}, {"ids": [1]}, {"ids": body["ids"], "extra": 1}]
    for wrong in refused:
        is_problem(await administrator.post("/api/v1/tenants/delete", json=wrong), 422, "invalid-input")


async def test_the_history_is_compared_and_restored(administrator: httpx2.AsyncClient) -> None:
    added = (await administrator.post("/api/v1/servers", json=OFFICE)).json()
    path = f"/api/v1/servers/{added['id']}"
    await administrator.patch(path, json={"comments": "new", "auth": {"password": "second"}})
    entries = (await administrator.get(f"{path}/history")).json()["items"]
    assert [entry["version"] for entry in entries] == [2, 1]
    assert entries[0]["changes"]["comments"] == ["", "new"]
    assert entries[0]["actor"] == "administrator of the tests"
    assert "second" not in str(entries)
    version = (await administrator.get(f"{path}/history/1")).json()
    assert (version["version"], version["comments"], version["auth"]["password"]) == (1, "", SECRET_SET)
    is_problem(await administrator.get(f"{path}/history/9"), 404, "not-found")
    restored = await administrator.post(f"{path}/restore", json={"version": 1})
    assert (restored.json()["version"], restored.json()["comments"]) == (3, "")
    is_problem(await administrator.post(f"{path}/restore", json={"version": 0}), 422, "invalid-input")


async def test_a_restore_asks_for_a_secret_that_is_gone(administrator: httpx2.AsyncClient) -> None:
    added = (await administrator.post("/api/v1/servers", json=OFFICE)).json()
    path = f"/api/v1/servers/{added['id']}"
    await administrator.patch(f"{path}?forget=true", json={"auth": {"password": "second"}})
    asked = await administrator.post(f"{path}/restore", json={"version": 1})
    assert fields_of(is_problem(asked, 422, "invalid-input")) == ["auth.password"]
    given = {"version": 1, "secrets": {"auth.password": "third"}}
    assert (await administrator.post(f"{path}/restore", json=given)).status_code == 200


@pytest.mark.parametrize("collection", ["servers", "tenants", "applications", "certificates"])
async def test_a_name_is_taken_once(
    web: Web, administrator: httpx2.AsyncClient, collection: str, authority: CertificateAuthority
) -> None:
    fields: dict[str, Any] = {"name": "same"}
    if collection == "servers":
        fields["kind"] = "capture"
    if collection == "certificates":
        fields["pem"] = authority.pem
    assert (await administrator.post(f"/api/v1/{collection}", json=fields)).status_code == 201
    problem = is_problem(await administrator.post(f"/api/v1/{collection}", json=fields), 409, "name-taken")
    assert fields_of(problem) == ["name"]


async def test_an_application_tells_its_keys_once(web: Web, administrator: httpx2.AsyncClient) -> None:
    added = (await administrator.post("/api/v1/applications", json={"name": "Web Shop"})).json()
    once = {added["api_key"], added["smtp_password"]}
    assert added["api_key"].startswith("phk_") and added["smtp_username"].startswith("web-shop-")
    path = f"/api/v1/applications/{added['id']}"
    made = (await administrator.post(f"{path}/keys", json={"kind": "smtp", "name": "second"})).json()
    once |= {made["smtp_password"]}
    assert "api_key" not in made
    keys = (await administrator.get(f"{path}/keys?limit=2")).json()
    assert [key["kind"] for key in keys["items"]] == ["api_key", "smtp"]
    rest = (await administrator.get(f"{path}/keys?cursor={keys['next']}")).json()
    assert [key["name"] for key in rest["items"]] == ["second"] and rest["next"] is None
    for answer in (
        await administrator.get(path), await administrator.get("/api/v1/applications"), await administrator.get(f"{path}/keys"),
        await administrator.get(f"{path}/history"), await administrator.get("/api/v1/audit"),
    ):  # fmt: skip
        assert not any(secret in answer.text for secret in once)
    key = web.caller(added["api_key"])
    assert (await key.get("/api/v1/messages")).status_code == 200
    revoked = await administrator.delete(f"{path}/keys/{keys['items'][0]['id']}")
    assert revoked.json() == {"revoked": keys["items"][0]["id"]}
    is_problem(await key.get("/api/v1/messages"), 401, "not-authenticated")
    is_problem(await administrator.delete(f"{path}/keys/{keys['items'][0]['id']}"), 404, "not-found")
    is_problem(await administrator.post(f"{path}/keys", json={"kind": "cookie"}), 422, "invalid-input")


async def test_a_token_is_told_once_and_ends(web: Web, administrator: httpx2.AsyncClient) -> None:
    made = await administrator.post(
        "/api/v1/tokens", json={"name": "ci", "role": "auditor", "expires_at": "2099-01-01T00:00:00Z"}
    )
    assert made.status_code == 201
    token = made.json()["token"]
    assert token.startswith(f"pht_{made.json()['handle']}_")
    listed = (await administrator.get("/api/v1/tokens")).text
    assert token not in listed and made.json()["handle"] in listed
    for wrong in (
        {"name": "x", "role": "application"}, {"name": "", "role": "auditor"}, {"name": "x"},
        {"name": "x", "role": "auditor", "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "x", "role": "auditor", "expires_at": "2099-01-01T00:00:00"},
        {"name": "x", "role": "auditor", "expires_at": 4070908800},
        {"name": "x", "role": "auditor", "tenant_id": "0000000000000"},
    ):  # fmt: skip
        is_problem(await administrator.post("/api/v1/tokens", json=wrong), 422, "invalid-input")


async def test_settings_are_changed_by_a_merge_patch(web: Web, administrator: httpx2.AsyncClient) -> None:
    assert (await administrator.get("/api/v1/settings")).json()["sending_enabled"] is True
    off = await administrator.patch("/api/v1/settings", json={"sending_enabled": False})
    assert off.json()["sending_enabled"] is False
    assert off.json()["warnings"] == ["Sending is off. 0 recipients wait until it goes on."]
    headers = {"Content-Type": "application/merge-patch+json"}
    on = await administrator.patch("/api/v1/settings", content=b'{"sending_enabled": null}', headers=headers)
    assert (on.json()["sending_enabled"], on.json()["warnings"]) == (True, [])
    for wrong in ({"sending_enabled": 1}, {"max_hops": 0}, {"nothing": 1}, {"nothing": None}, {"retry_delays_s": [0]}):
        is_problem(await administrator.patch("/api/v1/settings", json=wrong), 422, "invalid-input")
    audit = (await administrator.get("/api/v1/audit?noun=settings")).json()["items"]
    assert audit[-1]["changes"] == {"sending_enabled": [True, False]}
    assert audit[-1]["actor"]["name"] == "administrator of the tests"


async def test_the_audit_log_is_paged_and_filtered(web: Web, administrator: httpx2.AsyncClient) -> None:
    tenant = await web.add("tenants", name="Harbour")
    for number in range(4):
        await administrator.patch(f"/api/v1/tenants/{tenant['id']}", json={"comments": str(number)})
    page = (await administrator.get(f"/api/v1/audit?object={tenant['id']}&limit=3")).json()
    assert [entry["changes"]["comments"][1] for entry in page["items"]] == ["3", "2", "1"]
    rest = (await administrator.get(f"/api/v1/audit?object={tenant['id']}&cursor={page['next']}")).json()
    assert (len(rest["items"]), rest["next"]) == (2, None)
    is_problem(await administrator.get("/api/v1/audit?noun=nothing"), 422, "invalid-input")
