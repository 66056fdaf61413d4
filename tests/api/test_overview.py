"""The queue, captured mail, events, health, the explanation of routes, and sign-in links."""

from typing import Any

import httpx2

from tests.support.processes import free_port
from tests.support.web import Web, fields_of, is_problem, until

HELLO = {"from": "ada@example.org", "to": "bob@example.net", "subject": "Hello", "text": "Hi\n"}


async def test_a_held_queue_waits_says_why_and_moves_again(
    web: Web, administrator: httpx2.AsyncClient, sandbox: dict[str, Any]
) -> None:
    assert (await administrator.get("/api/v1/queue")).json() == {"sending_off": None, "items": [], "next": None}
    path = f"/api/v1/queue/{sandbox['id']}"
    held = await administrator.post(f"{path}/hold", json={"detail": "It moves tonight."})
    assert (held.json()["server_id"], held.json()["state"]["held"]) == (sandbox["id"], "operator")
    sent = (await administrator.post("/api/v1/messages", json=HELLO)).json()["id"]
    (line,) = (await administrator.get("/api/v1/queue")).json()["items"]
    assert (line["server"], line["waiting"], line["sending"], line["held"]) == ("sandbox", 1, 0, "operator")
    assert line["detail"] == "It moves tonight." and "held" in line["why_waiting"]
    assert line["oldest_at"].endswith("Z")
    assert (await administrator.get(f"/api/v1/servers/{sandbox['id']}")).json()["state"]["held"] == "operator"
    released = await administrator.post(f"{path}/release")
    assert released.json()["state"]["held"] == ""
    await web.message(sent)
    is_problem(await administrator.post("/api/v1/queue/0000000000000/hold"), 404, "not-found")
    problem = is_problem(await administrator.post(f"{path}/hold", json={"detail": "x\ny"}), 422, "invalid-input")
    assert fields_of(problem) == ["detail"]


async def test_the_queue_of_a_server_that_cannot_be_reached_says_so(
    web: Web, administrator: httpx2.AsyncClient
) -> None:
    await web.add("servers", kind="smtp", name="gone", host="127.0.0.1", port=free_port(), tls_mode="none")
    await administrator.post("/api/v1/messages", json=HELLO)

    async def line() -> Any:
        items = (await administrator.get("/api/v1/queue")).json()["items"]
        return items[0] if items and items[0]["held"] else None

    found = await until(line)
    assert (found["server"], found["held"]) == ("gone", "server")
    assert found["cause"] and found["detail"] and found["next_try_at"] and found["why_waiting"]

    async def event() -> Any:
        # Written after the state is in force.
        events = (await administrator.get("/api/v1/events")).json()["items"]
        return next((each for each in events if each["kind"] == "server.held"), None)

    assert await until(event)


async def test_captured_mail_is_listed_and_paged(
    web: Web, administrator: httpx2.AsyncClient, sandbox: dict[str, Any]
) -> None:
    items = (await administrator.post("/api/v1/messages", json=[HELLO] * 5)).json()["items"]
    for item in items:
        await web.message(item["id"])
    page = (await administrator.get("/api/v1/captured?limit=3")).json()
    rest = (await administrator.get(f"/api/v1/captured?limit=3&cursor={page['next']}")).json()
    found = [line["id"] for line in page["items"] + rest["items"]]
    assert found == [item["id"] for item in reversed(items)]
    assert rest["next"] is None and page["items"][0]["server_id"] == sandbox["id"]
    other = await web.add("servers", kind="capture", name="other")
    assert (await administrator.get(f"/api/v1/captured?server={other['id']}")).json()["items"] == []


async def test_the_event_feed_goes_on_after_what_was_read(
    web: Web, administrator: httpx2.AsyncClient, sandbox: dict[str, Any]
) -> None:
    empty = (await administrator.get("/api/v1/events")).json()
    assert empty == {"items": [], "next": None}
    seen: list[str] = []
    after = ""
    for _ in range(3):
        sent = (await administrator.post("/api/v1/messages", json=HELLO)).json()["id"]
        await web.message(sent)
        page = (await administrator.get(f"/api/v1/events{after}")).json()
        assert [event["message_id"] for event in page["items"]] == [sent]
        (outcome,) = page["items"][0]["data"]["outcomes"]
        recipient = (await web.message(sent))["recipients"][0]
        assert (outcome["recipient_id"], outcome["result"]) == (recipient["id"], "delivered")
        seen.append(page["next"])
        after = f"?after={page['next']}"
    assert seen == sorted(set(seen))
    nothing = (await administrator.get(f"/api/v1/events{after}")).json()
    assert nothing == {"items": [], "next": seen[-1]}


async def test_health_says_what_holds_mail_up(web: Web, administrator: httpx2.AsyncClient) -> None:
    before = (await administrator.get("/api/v1/health")).json()
    assert (before["ready"], before["reasons"], before["database"]) == (True, [], "sqlite")
    assert before["sending_off"] == "There is no enabled global default server."
    server = await web.sandbox()
    await administrator.post(f"/api/v1/queue/{server['id']}/hold")
    await administrator.post("/api/v1/messages", json=HELLO)
    after = (await administrator.get("/api/v1/health")).json()
    assert (after["sending_off"], after["servers_held"], after["waiting"]) == (None, 1, 1)


async def test_a_route_is_explained_and_nothing_is_sent(
    web: Web, administrator: httpx2.AsyncClient, sandbox: dict[str, Any]
) -> None:
    tenant = await web.add("tenants", name="Harbour")
    shop = await web.add("applications", name="shop", tenant_id=tenant["id"])
    await web.add(
        "servers", kind="capture", name="own", tenant_id=tenant["id"], from_filter=["harbour.example"],
        max_message_octets=1024,
    )  # fmt: skip

    async def explained(**body: Any) -> Any:
        answer = await administrator.post("/api/v1/routes/explain", json={"to": ["x@example.net"], **body})
        assert answer.status_code == 200, answer.text
        return answer.json()["items"][0]

    own = await explained(**{"from": "a@harbour.example", "tenant": tenant["id"]})
    assert (own["server"], own["reason"]) == ("own", "tenant-domain")
    same = await explained(**{"from": "a@harbour.example", "application": shop["id"]})
    assert same == own
    passed = await explained(**{"from": "a@harbour.example", "tenant": tenant["id"], "size": 5000})
    assert passed["server"] == "sandbox" and "own was passed over" in passed["passed_over"][0]
    fax = await explained(**{"from": "a@b.example", "to": ["+4940123@fax"]})
    assert (fax["server"], fax["reason"]) == (None, "no-route")
    assert (await administrator.get("/api/v1/messages")).json()["items"] == []
    for wrong, field in (
        ({"from": "x"}, "from"), ({"from": "a@b.example", "to": ["x"]}, "to.0"), ({"from": "a@b.example", "to": []}, "to"),
        ({"from": "a@b.example", "size": True}, "size"),
    ):  # fmt: skip
        answer = await administrator.post("/api/v1/routes/explain", json={"to": ["x@example.net"], **wrong})
        assert fields_of(is_problem(answer, 422, "invalid-input")) == [field]


async def test_a_link_leads_to_the_pages_of_this_installation(web: Web, administrator: httpx2.AsyncClient) -> None:
    made = await administrator.post("/api/v1/links")
    assert made.status_code == 201
    assert made.json()["url"].startswith("http://localhost:8025/sign-in?link=")
    assert made.json()["expires_at"].endswith("Z")
    assert (await administrator.post("/api/v1/links", json={})).json()["url"] != made.json()["url"]
    is_problem(await administrator.post("/api/v1/links", json={"x": 1}), 422, "invalid-input")
