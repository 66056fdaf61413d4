"""Handing messages over by REST, and seeing what became of them. The verdict comes from the bytes that arrive."""

import base64
import email
import email.policy
import json
from email.message import EmailMessage
from typing import Any

import httpx2
import pytest

from tests.support.web import HOSTNAME, Web, fields_of, is_problem

HELLO: dict[str, Any] = {"from": "Ada <ada@example.org>", "to": "bob@example.net", "subject": "Hello", "text": "Hi\n"}


async def parsed(web: Web, identifier: str) -> EmailMessage:
    """Read what was kept with a second parser."""
    found = email.message_from_bytes(await web.raw(identifier), policy=email.policy.default)
    assert isinstance(found, EmailMessage)
    return found


async def send(client: httpx2.AsyncClient, message: Any, **options: Any) -> httpx2.Response:
    return await client.post("/api/v1/messages", json=message, **options)


async def test_one_message_is_taken_and_delivered(
    web: Web, administrator: httpx2.AsyncClient, sandbox: dict[str, Any]
) -> None:
    answer = await send(administrator, HELLO)
    assert answer.status_code == 202
    identifier = answer.json()["id"]
    assert answer.json() == {"id": identifier}
    shown = await web.message(identifier)
    assert (shown["mail_from"], shown["subject"]) == ("ada@example.org", "Hello")
    (recipient,) = shown["recipients"]
    assert (recipient["address"], recipient["server"]) == ("bob@example.net", "sandbox")
    assert recipient["route"] == "global-default"
    assert shown["origin"]["protocol"] == "rest" and shown["origin"]["by"] == "token"
    timeline = (await administrator.get(f"/api/v1/messages/{identifier}/timeline")).json()["items"]
    assert timeline[0]["kind"] == "accepted"
    assert "sandbox took responsibility for bob@example.net." in [entry["text"] for entry in timeline]
    message = await parsed(web, identifier)
    assert message["From"] == "Ada <ada@example.org>"
    assert message["Message-ID"] == f"<{identifier}@{HOSTNAME}>"
    assert message.get_content() == "Hi\r\n"


async def test_every_field_reaches_the_message(
    web: Web, administrator: httpx2.AsyncClient, sandbox: dict[str, Any]
) -> None:
    picture = bytes(range(256))
    answer = await send(
        administrator,
        {
            "from": {"address": "ada@example.org", "name": "Ada Löwe"},
            "to": ["bob@example.net", "Bob Two <two@example.net>", {"address": "three@example.net"}],
            "cc": "copy@example.net",
            "bcc": ["hidden@example.net", "BOB@example.net"],
            "reply_to": "answers@example.org",
            "subject": "Grüße, a subject",
            "text": "Größe\n",
            "html": '<p>Größe <img src="cid:logo"></p>',
            "attachments": [
                {"name": "logo.png", "content_type": "image/png", "content": base64.b64encode(picture).decode(),
                 "content_id": "logo", "inline": True},
                {"name": "übersicht.bin", "content": base64.encodebytes(picture).decode()},
            ],
            "headers": {"X-Ticket": "4711", "X-Name": "Größe"},
            "mail_from": "bounces@example.org",
            "priority": "high",
            "expires_at": "2099-01-01T00:00:00+01:00",
        },
    )  # fmt: skip
    assert answer.status_code == 202, answer.text
    shown = await web.message(answer.json()["id"])
    assert shown["mail_from"] == "bounces@example.org"
    assert shown["priority"] == "high"
    assert shown["expires_at"] == "2098-12-31T23:00:00.000Z"
    assert [r["address"] for r in shown["recipients"]] == [
        "bob@example.net", "two@example.net", "three@example.net", "copy@example.net", "hidden@example.net",
    ]  # fmt: skip
    message = await parsed(web, answer.json()["id"])
    assert message["From"] == "Ada Löwe <ada@example.org>"
    assert message["To"] == "bob@example.net, Bob Two <two@example.net>, three@example.net"
    assert message["Subject"] == "Grüße, a subject"
    assert (message["Cc"], message["Bcc"], message["Reply-To"]) == ("copy@example.net", None, "answers@example.org")
    assert (message["X-Ticket"], message["X-Name"]) == ("4711", "Größe")
    assert b"hidden@" not in await web.raw(answer.json()["id"])
    body = message.get_body(("plain",))
    assert body is not None and body.get_content() == "Größe\r\n"
    files = {part.get_filename(): part.get_payload(decode=True) for part in message.walk() if part.get_filename()}
    assert files == {"logo.png": picture, "übersicht.bin": picture}


async def test_a_list_is_answered_in_order_with_problems_that_name_the_items_own_fields(
    web: Web, administrator: httpx2.AsyncClient, sandbox: dict[str, Any]
) -> None:
    items: list[Any] = [
        HELLO,
        {**HELLO, "to": ["bob@example.net", "no address"]},
        {**HELLO, "colour": "red"},
        {**HELLO, "subject": True},
        {**HELLO, "attachments": [{"name": "x", "content": "***"}]},
        {**HELLO, "server": "nowhere"},
        {"to": "bob@example.net"},
        {"from": "ada@example.org"},
        "text",
        {**HELLO, "subject": "the last"},
    ]
    answer = await send(administrator, items)
    assert answer.status_code == 202
    found = answer.json()["items"]
    assert [sorted(item) for item in found] == [["id"], *[["problem"]] * 8, ["id"]]
    problems = [item["problem"] for item in found[1:-1]]
    assert [fields_of(problem) for problem in problems] == [
        ["to.1"], ["colour"], ["subject"], ["attachments.0.content"], ["server"], ["from"], ["to"], [""],
    ]  # fmt: skip
    assert problems[4]["status"] == 404
    assert (await web.message(found[-1]["id"]))["subject"] == "the last"


async def test_a_list_of_which_nothing_can_be_taken_is_422(administrator: httpx2.AsyncClient, sandbox: Any) -> None:
    answer = await send(administrator, [{}, {**HELLO, "to": "x"}])
    assert answer.status_code == 422
    assert [sorted(item) for item in answer.json()["items"]] == [["problem"], ["problem"]]


@pytest.mark.parametrize("items", [[], [HELLO] * 1001])
async def test_an_empty_or_endless_list_is_refused(
    administrator: httpx2.AsyncClient, sandbox: Any, items: list[Any]
) -> None:
    is_problem(await send(administrator, items), 422, "invalid-input")


async def test_a_thousand_messages_go_in_one_call(web: Web, administrator: httpx2.AsyncClient, sandbox: Any) -> None:
    answer = await send(administrator, [{**HELLO, "subject": str(number)} for number in range(1000)])
    identifiers = [item["id"] for item in answer.json()["items"]]
    assert len(set(identifiers)) == 1000
    assert (await web.message(identifiers[-1]))["subject"] == "999"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"from": "no address"}, "from"),
        ({"from": ["a@b.example", "c@d.example"]}, "from"),
        ({"from": "a@b.example, c@d.example"}, "from"),
        ({"from": {"address": "x"}}, "from.address"),
        ({"from": {"address": "a@b.example", "nam": "x"}}, "from.nam"),
        ({"to": []}, "to"),
        ({"to": [1]}, "to.0"),
        ({"to": {"name": "x"}}, "to.address"),
        ({"cc": ["a@b.example", "bad address@x"]}, "cc.1"),
        ({"bcc": "a@b@c"}, "bcc"),
        ({"reply_to": "x"}, "reply_to"),
        ({"mail_from": "x"}, "mail_from"),
        ({"headers": {"Subject": "two"}}, "headers.Subject"),
        ({"headers": {"X Y": "z"}}, "headers"),
        ({"headers": {"X-Y": 1}}, "headers.X-Y"),
        ({"headers": ["X-Y: z"]}, "headers"),
        ({"text": 1}, "text"),
        ({"html": False}, "html"),
        ({"text": "\x00"}, "text"),
        ({"attachments": {}}, "attachments"),
        ({"attachments": [{"content": ""}]}, "attachments.0.name"),
        ({"attachments": [{"name": "x", "content": "YQ"}]}, "attachments.0.content"),
        ({"attachments": [{"name": "x", "content": "Y\u00e4=="}]}, "attachments.0.content"),
        ({"attachments": [{"name": "x", "content": "", "content_type": "pdf"}]}, "attachments.0.content_type"),
        ({"send_at": "tomorrow"}, "send_at"),
        ({"send_at": "2026-11-20T14:05:00"}, "send_at"),
        ({"send_at": 1790000000}, "send_at"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": 1}, "priority"),
        ({"server": ""}, "server"),
        ({"nothing": 1}, "nothing"),
    ],
)
async def test_what_cannot_be_taken_names_its_field_and_nothing_is_kept(
    administrator: httpx2.AsyncClient, sandbox: Any, change: dict[str, Any], field: str
) -> None:
    problem = is_problem(await send(administrator, {**HELLO, **change}), 422, "invalid-input")
    assert fields_of(problem) == [field]
    assert (await administrator.get("/api/v1/messages")).json()["items"] == []


# Threat A6: CR, LF, NUL, line ends of other alphabets, and encoded-words that hold them.
INJECTIONS = [
    "x\r\nBcc: victim@example.com", "x\nBcc: victim@example.com", "x\rBcc: victim@example.com", "x\x00y",
    "x\x0bBcc: victim@example.com", "x\x0cy", "x\x1cy", "x\x85Bcc: victim@example.com", "x\u2028Bcc: victim@example.com",
    "x\u2029y", "=?utf-8?q?x=0D=0ABcc:_victim@example.com?=", "=?utf-8?b?eA0KQmNjOiB2aWN0aW1AZXhhbXBsZS5jb20=?=",
]  # fmt: skip


@pytest.mark.parametrize(
    "field",
    [
        "subject",
        "from",
        "from.name",
        "to",
        "to.name",
        "reply_to.name",
        "header",
        "header-name",
        "file",
        "type",
        "id",
        "mail_from",
    ],
)
async def test_no_field_makes_another_header(
    web: Web, administrator: httpx2.AsyncClient, sandbox: Any, field: str
) -> None:
    for injection in INJECTIONS:
        await try_injection(web, administrator, field, injection)


async def try_injection(web: Web, administrator: httpx2.AsyncClient, field: str, injection: str) -> None:
    def named(name: str) -> dict[str, str]:
        return {"address": "ok@example.org", "name": name}

    file = {"name": "f", "content": "", "content_type": "text/plain"}
    changes: dict[str, dict[str, Any]] = {
        "subject": {"subject": injection},
        "from": {"from": f"{injection} <ok@example.org>"},
        "from.name": {"from": named(injection)},
        "to": {"to": f"{injection}@example.org"},
        "to.name": {"to": [named(injection)]},
        "reply_to.name": {"reply_to": [named(injection)]},
        "header": {"headers": {"X-Y": injection}},
        "header-name": {"headers": {f"X-{injection}": "y"}},
        "file": {"attachments": [{**file, "name": injection}]},
        "type": {"attachments": [{**file, "content_type": f"text/plain; name={injection}"}]},
        "id": {"attachments": [{**file, "content_id": injection}], "html": "<p>"},
        "mail_from": {"mail_from": f"{injection}@example.org"},
    }
    answer = await send(administrator, {**HELLO, **changes[field]})
    if answer.status_code == 422:
        assert injection not in answer.text
        return
    raw = await web.raw(answer.json()["id"])
    header = raw.partition(b"\r\n\r\n")[0]
    assert not any(line.lower().startswith(b"bcc") for line in header.splitlines())
    for part in email.message_from_bytes(raw).walk():
        assert part["Bcc"] is None
    assert email.message_from_bytes(raw, policy=email.policy.default)["Bcc"] is None
    assert raw.count(b"\n") == raw.count(b"\r\n") == raw.count(b"\r") and b"\0" not in raw


@pytest.mark.parametrize("end", ["\r\n.\r\n", "\n.\n", "\r.\r", "\n.\r\n", "\r\n.\n", ".\r\n"])
async def test_a_text_cannot_smuggle_a_second_message(
    web: Web, administrator: httpx2.AsyncClient, sandbox: Any, end: str
) -> None:
    answer = await send(administrator, {**HELLO, "text": f"one{end}MAIL FROM:<x@y.example>\r\n"})
    raw = await web.raw(answer.json()["id"])
    assert raw.count(b"\n") == raw.count(b"\r\n") == raw.count(b"\r")


# ---------------------------------------------------------------- message/rfc822

RAW = (
    b"From: Ada <ada@example.org>\r\nTo: bob@example.net\r\nCc: c@example.net\r\nBcc: d@example.net\r\n"
    b"Subject: raw\r\n\r\nbody\r\n"
)


async def send_raw(client: httpx2.AsyncClient, content: Any, **query: Any) -> httpx2.Response:
    headers = {"Content-Type": "message/rfc822"}
    return await client.post("/api/v1/messages", content=content, params=query, headers=headers)


async def test_a_raw_message_takes_its_envelope_from_the_header(
    web: Web, administrator: httpx2.AsyncClient, sandbox: Any
) -> None:
    answer = await send_raw(administrator, RAW)
    assert answer.status_code == 202, answer.text
    shown = await web.message(answer.json()["id"])
    assert shown["mail_from"] == "ada@example.org"
    assert [r["address"] for r in shown["recipients"]] == ["bob@example.net", "c@example.net", "d@example.net"]
    raw = await web.raw(answer.json()["id"])
    assert raw.endswith(RAW.replace(b"Bcc: d@example.net\r\n", b""))


async def test_a_raw_message_takes_its_envelope_from_the_query(
    web: Web, administrator: httpx2.AsyncClient, sandbox: Any
) -> None:
    answer = await send_raw(administrator, RAW, mail_from="", to=["x@example.net", "y@example.net"], priority="low")
    shown = await web.message(answer.json()["id"])
    assert (shown["mail_from"], shown["priority"]) == ("", "low")
    assert [r["address"] for r in shown["recipients"]] == ["x@example.net", "y@example.net"]


async def test_line_feeds_of_a_file_become_line_ends_of_mail(
    web: Web, administrator: httpx2.AsyncClient, sandbox: Any
) -> None:
    answer = await send_raw(administrator, RAW.replace(b"\r\n", b"\n"))
    assert (await web.raw(answer.json()["id"])).endswith(b"Subject: raw\r\n\r\nbody\r\n")


@pytest.mark.parametrize(
    "body",
    [
        b"one\ntwo\r\n", b"one\rtwo\r\n", b"one\0two\r\n", b"one\r\n.\n", b"one\n.\nMAIL FROM:<x@y.example>\r\n",
        b"one\r\r\n", b"one\r", b"one\r\n\r",
    ],
)  # fmt: skip
async def test_mixed_line_ends_are_refused_however_they_are_cut(
    administrator: httpx2.AsyncClient, sandbox: Any, body: bytes
) -> None:
    message = RAW + body

    async def cut(size: int) -> Any:
        for at in range(0, len(message), size):
            yield message[at : at + size]

    for size in (1, 7, 100_000):
        problem = is_problem(await send_raw(administrator, cut(size)), 422, "invalid-input")
        assert problem["errors"][0]["code"] == "bad-line-ends"
    assert (await administrator.get("/api/v1/messages")).json()["items"] == []


@pytest.mark.parametrize(
    ("raw", "query", "field"),
    [
        (b"To: a@b.example\r\n\r\nx", {}, "mail_from"),
        (b"From: a@b.example\r\n\r\nx", {}, "to"),
        (b"From: a@b.example, <c@d.example\r\nTo: x@y.example\r\n\r\nx", {}, "From"),
        (b"From: a@b.example\r\nTo: a@b@c\r\n\r\nx", {}, "To"),
        (RAW, {"mail_from": "x"}, "mail_from"),
        (RAW, {"to": ["a@b.example", "x"]}, "to.1"),
        (RAW, {"priority": "urgent"}, "priority"),
        (RAW, {"nothing": "1"}, "query"),
        (b"", {}, "mail_from"),
    ],
)
async def test_a_raw_message_that_cannot_be_taken_names_what(
    administrator: httpx2.AsyncClient, sandbox: Any, raw: bytes, query: dict[str, Any], field: str
) -> None:
    problem = is_problem(await send_raw(administrator, raw, **query), 422, "invalid-input")
    assert fields_of(problem) == [field]


async def test_a_message_above_the_limit_is_refused_before_and_while_it_is_read(
    web: Web, administrator: httpx2.AsyncClient, sandbox: Any
) -> None:
    await web.command.patch("/api/v1/settings", json={"max_message_octets": 1_000_000})
    is_problem(await send_raw(administrator, RAW + b"x" * 1_000_000), 413, "message-too-large")

    async def long() -> Any:
        yield RAW
        for _ in range(40):
            yield b"x" * 70 + b"\r\n" + b"y" * 60_000

    is_problem(await send_raw(administrator, long()), 413, "message-too-large")
    assert list((web.hub.settings.data / "spool").iterdir()) == []
    is_problem(await send(administrator, {**HELLO, "text": "x" * 1_000_000}), 413, "message-too-large")


async def test_a_large_raw_message_arrives_whole(web: Web, administrator: httpx2.AsyncClient, sandbox: Any) -> None:
    body = b"".join(b"%08d %s\r\n" % (number, b"x" * 60) for number in range(60_000))

    async def pieces() -> Any:
        yield RAW
        for at in range(0, len(body), 65_536):
            yield body[at : at + 65_536]

    answer = await send_raw(administrator, pieces())
    assert answer.status_code == 202, answer.text
    await web.message(answer.json()["id"])
    assert (await web.raw(answer.json()["id"])).endswith(b"body\r\n" + body)


async def test_query_parameters_do_not_go_with_json(administrator: httpx2.AsyncClient, sandbox: Any) -> None:
    answer = await administrator.post("/api/v1/messages?to=x@example.net", json=HELLO)
    is_problem(answer, 422, "invalid-input")
    plain = await administrator.post("/api/v1/messages", content=b"x", headers={"Content-Type": "text/plain"})
    is_problem(plain, 415, "unsupported-media-type")


# ---------------------------------------------------------------- rules


async def test_without_a_global_server_mail_is_refused_with_that_reason(administrator: httpx2.AsyncClient) -> None:
    problem = is_problem(await send(administrator, HELLO), 503, "sending-off")
    assert problem["detail"] == "There is no enabled global default server."
    is_problem(await send(administrator, [HELLO]), 503, "sending-off")
    is_problem(await send_raw(administrator, RAW), 503, "sending-off")


async def test_with_the_switch_off_mail_is_refused(web: Web, administrator: httpx2.AsyncClient, sandbox: Any) -> None:
    await web.command.patch("/api/v1/settings", json={"sending_enabled": False})
    problem = is_problem(await send(administrator, HELLO), 503, "sending-off")
    assert "switched off" in problem["detail"]


async def test_an_application_sends_only_as_it_may(web: Web, sandbox: Any) -> None:
    shop = await web.add("applications", name="shop", allowed_senders=["example.org", "me@example.com"])
    key = web.caller(shop["api_key"])
    for allowed in ("x@example.org", "Me <ME@example.com>"):
        assert (await send(key, {**HELLO, "from": allowed})).status_code == 202
    for refused in ("x@example.com", "x@sub.example.org", "x@example.org.evil.example"):
        is_problem(await send(key, {**HELLO, "from": refused}), 403, "sender-not-allowed")
    is_problem(await send(key, {**HELLO, "mail_from": "x@evil.example"}), 403, "sender-not-allowed")
    forged = b"From: x@example.org\r\nFrom: x@evil.example\r\nTo: bob@example.net\r\n\r\nx"
    is_problem(await send_raw(key, forged), 403, "sender-not-allowed")
    hidden = b"From: x@evil.example\r\nTo: bob@example.net\r\n\r\nx"
    is_problem(await send_raw(key, hidden, mail_from="x@example.org"), 403, "sender-not-allowed")


async def test_server_and_tenant_are_named_only_where_that_is_allowed(web: Web, sandbox: dict[str, Any]) -> None:
    tenant = await web.add("tenants", name="Harbour")
    other = await web.add("servers", kind="capture", name="other")
    theirs = await web.add("servers", kind="capture", name="theirs", tenant_id=tenant["id"])
    plain = web.caller((await web.add("applications", name="plain"))["api_key"])
    free = web.caller((await web.add("applications", name="free", may_name_server=True))["api_key"])
    is_problem(await send(plain, {**HELLO, "server": other["id"]}), 404, "not-found")
    is_problem(await send(free, {**HELLO, "server": theirs["id"]}), 404, "not-found")
    is_problem(await send(free, {**HELLO, "tenant": tenant["id"]}), 404, "not-found")
    for name in (other["id"], "other"):
        sent = await send(free, {**HELLO, "server": name})
        (recipient,) = (await web.message(sent.json()["id"]))["recipients"]
        assert (recipient["server"], recipient["route"]) == ("other", "named")
    for caller, where, server in (
        (web.caller(await web.token()), {"tenant": "Harbour"}, "theirs"),
        (web.caller(await web.token()), {"tenant": tenant["id"]}, "theirs"),
        (web.caller(await web.token("administrator", tenant["id"])), {}, "theirs"),
        (web.caller(await web.token()), {}, "sandbox"),
    ):
        sent = await send(caller, {**HELLO, **where})
        (recipient,) = (await web.message(sent.json()["id"]))["recipients"]
        assert recipient["server"] == server


async def test_a_scheduled_message_waits_and_can_be_cancelled_and_retried(
    web: Web, administrator: httpx2.AsyncClient, sandbox: Any
) -> None:
    sent = await send(administrator, {**HELLO, "to": ["a@x.example", "b@x.example"], "send_at": "2027-06-01T08:00:00Z"})
    path = f"/api/v1/messages/{sent.json()['id']}"
    shown = (await administrator.get(path)).json()
    assert [r["reason"] for r in shown["recipients"]] == ["scheduled", "scheduled"]
    assert shown["recipients"][0]["due_at"] == "2027-06-01T08:00:00.000Z"
    problem = is_problem(
        await administrator.post(f"{path}/cancel", json={"recipients": ["c@x.example"]}), 422, "invalid-input"
    )
    assert fields_of(problem) == ["recipients.0"]
    cancelled = await administrator.post(f"{path}/cancel", json={"recipients": ["A@x.example"]})
    assert cancelled.json()["changed"] == 1
    assert [r["state"] for r in cancelled.json()["recipients"]] == ["cancelled", "waiting"]
    second = shown["recipients"][1]["id"]
    assert (await administrator.post(f"{path}/cancel", json={"recipients": [second]})).json()["state"] == "cancelled"
    is_problem(await administrator.post(f"{path}/cancel"), 409, "conflict")
    assert (await administrator.post(f"{path}/retry")).json()["changed"] == 2
    await web.message(sent.json()["id"])


async def test_lists_are_filtered_and_paged(
    web: Web, administrator: httpx2.AsyncClient, sandbox: dict[str, Any]
) -> None:
    shop = await web.add("applications", name="shop")
    key = web.caller(shop["api_key"])
    sent = (await send(administrator, [{**HELLO, "subject": f"number {n}"} for n in range(5)])).json()["items"]
    mine = (await send(key, {**HELLO, "subject": "of the shop", "to": "only@example.net"})).json()["id"]
    for item in [*sent, {"id": mine}]:
        await web.message(item["id"])

    async def listed(**query: Any) -> list[str]:
        page = (await administrator.get("/api/v1/messages", params=query)).json()
        return [item["id"] for item in page["items"]]

    everything = [mine, *reversed([item["id"] for item in sent])]
    assert await listed() == everything
    page = (await administrator.get("/api/v1/messages?limit=4")).json()
    rest = (await administrator.get(f"/api/v1/messages?limit=4&cursor={page['next']}")).json()
    assert [m["id"] for m in page["items"] + rest["items"]] == everything and rest["next"] is None
    assert await listed(application=shop["id"]) == [mine]
    assert await listed(server=sandbox["id"]) == everything
    assert await listed(state="delivered") == everything
    assert await listed(state="failed") == []
    assert await listed(address="ONLY@example.net") == [mine]
    assert await listed(text="the shop") == [mine]
    assert await listed(text="%") == []
    assert await listed(since="2099-01-01T00:00:00Z") == []
    assert await listed(until="2020-01-01T00:00:00Z") == []
    assert await listed(tenant="global") == everything
    first = (await administrator.get("/api/v1/messages?limit=1")).json()["items"][0]
    assert (first["application"], first["recipient_count"], first["first_recipient"]) == ("shop", 1, "only@example.net")


# ---------------------------------------------------------------- Idempotency-Key


async def test_a_repeated_call_is_answered_alike_and_carried_out_once(
    web: Web, administrator: httpx2.AsyncClient, sandbox: Any
) -> None:
    shop = await web.add("applications", name="shop")
    for caller in (administrator, web.caller(shop["api_key"])):
        before = len((await caller.get("/api/v1/messages")).json()["items"])
        items = [HELLO, {**HELLO, "to": "no address"}, {**HELLO, "subject": "two"}]
        key = {"Idempotency-Key": "order-4711"}
        first, second = await send(caller, items, headers=key), await send(caller, items, headers=key)
        assert first.status_code == second.status_code == 202
        assert first.json() == second.json()
        is_problem(await send(caller, [HELLO], headers=key), 422, "invalid-input")
        assert len((await caller.get("/api/v1/messages")).json()["items"]) == before + 2
        assert (await send(caller, items, headers={"Idempotency-Key": "order-4712"})).json() != first.json()


async def test_another_body_under_the_same_key_is_a_mismatch(administrator: httpx2.AsyncClient, sandbox: Any) -> None:
    headers = {"Content-Type": "message/rfc822", "Idempotency-Key": "k"}
    first = await administrator.post("/api/v1/messages?to=a@x.example", content=RAW, headers=headers)
    again = await administrator.post("/api/v1/messages?to=a@x.example", content=RAW, headers=headers)
    assert first.json() == again.json()
    for path, content in (("?to=b@x.example", RAW), ("?to=a@x.example", RAW + b"x")):
        answer = await administrator.post(f"/api/v1/messages{path}", content=content, headers=headers)
        assert is_problem(answer, 422, "invalid-input")["errors"][0]["code"] == "idempotency-mismatch"


async def test_the_keys_of_two_applications_never_meet(web: Web, sandbox: Any) -> None:
    first, second = [web.caller((await web.add("applications", name=name))["api_key"]) for name in ("a", "b")]
    key = {"Idempotency-Key": "same"}
    one, two = await send(first, HELLO, headers=key), await send(second, HELLO, headers=key)
    assert one.status_code == two.status_code == 202
    assert one.json() != two.json()


@pytest.mark.parametrize("key", ["", "x" * 256, "with space", "\xe4"])
async def test_a_key_that_is_none_is_refused(administrator: httpx2.AsyncClient, sandbox: Any, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode("latin-1"), b"Content-Type": b"application/json"}
    answer = await administrator.post("/api/v1/messages", content=json.dumps(HELLO).encode(), headers=headers)
    is_problem(answer, 422, "invalid-input")
