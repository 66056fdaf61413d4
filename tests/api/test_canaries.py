"""Secrets never leave (promise 6, threat A12): planted in every field that takes one, and searched in all that comes out."""

import base64
import json
import quopri
from typing import Any
from urllib.parse import quote

import pytest

from tests.support.web import Web


def written(secret: str) -> list[str]:
    """Give a secret in every way in which it could hide."""
    octets = secret.encode()
    forms = [
        secret, secret.lower(), secret.upper(), secret[::-1], quote(secret, safe=""), octets.hex(),
        base64.b64encode(octets).decode().rstrip("=")[:-1], base64.b32encode(octets).decode().rstrip("=")[:-1],
        json.dumps(secret)[1:-1], quopri.encodestring(octets).decode(), repr(secret)[1:-1],
    ]  # fmt: skip
    # Base64 of the same octets behind one or two others.
    for lead in (b"\0", b"\0\0", b"u\0"):
        forms.append(base64.b64encode(lead + octets).decode()[4:-4])
    return [form for form in dict.fromkeys(forms) if len(form) > 8]


async def test_no_planted_secret_comes_out_anywhere(
    web: Web, capfd: pytest.CaptureFixture[str], authority: Any
) -> None:
    answers: list[str] = []
    secrets: dict[str, str] = {}

    def plant(name: str) -> str:
        secrets[name] = f"{name}-Kanarienvogel%/ä1"
        return secrets[name]

    token = await web.token()
    caller = web.caller(token)

    async def call(method: str, path: str, **options: Any) -> Any:
        answer = await caller.request(method, f"/api/v1/{path}", **options)
        answers.append(answer.text + str(answer.headers))
        return answer

    password = {"type": "password", "username": "u"}
    office = {"kind": "smtp", "name": "office", "host": "127.0.0.1", "port": 9, "tls_mode": "none",
              "allow_cleartext_password": True}  # fmt: skip
    added = await call("POST", "servers", json={**office, "auth": {**password, "password": plant("first")}})
    path = f"servers/{added.json()['id']}"
    await call("PATCH", path, json={"auth": {"password": plant("second")}})
    await call("PUT", path, json={**office, "auth": {**password, "password": plant("third")}})
    await call("POST", f"{path}/restore", json={"version": 1, "secrets": {"auth.password": plant("restored")}})
    # Refused, each in its own way, with a secret in it.
    refused: list[tuple[str, str, Any]] = [
        ("POST", "servers", {**office, "auth": {**password, "password": plant("taken-name")}}),
        ("POST", "servers", {**office, "name": "x", "port": 0, "auth": {**password, "password": plant("bad-port")}}),
        ("POST", "servers", {**office, "name": "x", "password": plant("wrong-place")}),
        ("POST", "servers", {**office, "name": "x", "auth": plant("no-object")}),
        ("POST", "servers", {**office, "name": "x", "auth": {**password, "password": [plant("a-list")]}}),
        ("POST", "servers", {**office, "name": "x", "auth": {**password, plant("as-a-key"): 1}}),
        ("PATCH", path, {"host": "other.example", "auth": {"password": plant("x" * 2000)}}),
        ("PATCH", path, {"auth": {"type": plant("as-a-tag")}}),
        ("POST", f"{path}/restore", {"version": 99, "secrets": {"auth.password": plant("no-version")}}),
        ("POST", f"{path}/restore", {"version": 1, "secrets": {"nothing": plant("no-field")}}),
        ("POST", "messages", {"from": "a@b.example", "to": "c@d.example", "password": plant("in-a-message")}),
        ("POST", "tokens", {"name": "x", "role": plant("as-a-role")}),
        ("POST", f"{path}/keys", {"kind": plant("nowhere")}),
    ]
    for method, where, body in refused:
        await call(method, where, json=body)
    await call(
        "POST",
        "servers",
        content=json.dumps({"x": plant("cut-off")})[:-1],
        headers={"Content-Type": "application/json"},
    )
    await call("POST", "servers", content=plant("plain").encode(), headers={"Content-Type": "text/plain"})
    await call("GET", f"servers?password={quote(plant('in-the-query'))}")
    await call("GET", f"{quote(plant('in-the-path'))}")
    nobody = web.caller(plant("as-a-token").encode().hex())
    secrets["as-a-token"] = secrets["as-a-token"].encode().hex()
    answers.append((await nobody.get("/api/v1/servers")).text)
    # What is told once is a secret from then on.
    shop = (await caller.post("/api/v1/applications", json={"name": "shop"})).json()
    key = (await caller.post(f"/api/v1/applications/{shop['id']}/keys", json={"kind": "smtp"})).json()
    link = (await caller.post("/api/v1/links")).json()["url"].rpartition("=")[2]
    secrets |= {
        "api_key": shop["api_key"].rpartition("_")[2],
        "smtp": shop["smtp_password"],
        "key": key["smtp_password"],
    }
    secrets |= {"token": token.rpartition("_")[2], "link": link}
    await web.caller(shop["api_key"]).post("/api/v1/messages", json={"from": "a@b.example", "to": "c@d.example"})
    for where in (
        *("servers", path, f"{path}/history", f"{path}/history/1", f"{path}/history/2"),
        *("applications", f"applications/{shop['id']}", f"applications/{shop['id']}/keys"),
        *("tokens", "audit?limit=1000", "events", "queue", "health", "settings", "messages", "openapi.json"),
    ):  # fmt: skip
        await call("GET", where)
    answers.append((await web.command.get("/metrics")).text)
    signed_in = await web.caller(None).post("/sign-in", data={"link": link})
    answers.append(signed_in.text)
    cookie = signed_in.headers["set-cookie"].partition("=")[2].partition(";")[0]
    secrets["cookie"] = cookie
    answers.append((await web.caller(None).get("/", headers={"Cookie": f"posthouse={cookie}"})).text)

    out = "".join(capfd.readouterr())
    for name, secret in secrets.items():
        for form in written(secret):
            for answer in answers:
                assert form not in answer, f"{name}: {form!r} in an answer"
            assert form not in out, f"{name}: {form!r} in the log"


async def test_no_planted_secret_stands_in_the_store(web: Web) -> None:
    secret = "Kanarienvogel-im-Bergwerk"
    await web.add(
        "servers",
        kind="smtp",
        name="x",
        host="h.example",
        auth={"type": "password", "username": "u", "password": secret},
    )
    shop = await web.add("applications", name="shop")
    token = await web.token()
    link = (await web.command.post("/api/v1/links")).json()["url"].rpartition("=")[2]
    cookie = (
        (await web.caller(None).post("/sign-in", data={"link": link}))
        .headers["set-cookie"]
        .partition("=")[2]
        .partition(";")[0]
    )
    plain = [secret, shop["api_key"].rpartition("_")[2], shop["smtp_password"], token.rpartition("_")[2], link, cookie]
    kept = b"".join(path.read_bytes() for path in web.hub.settings.data.glob("posthouse.db*"))
    assert b"shop" in kept
    for text in plain:
        for form in written(text):
            assert form.encode() not in kept, form
