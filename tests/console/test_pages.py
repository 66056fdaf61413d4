"""The pages: what they show to whom, and that nothing in a mail reaches the browser as anything but text."""

import html
import re
from typing import Any

import httpx2
import pytest

from posthouse.console.application import PLAIN_COOKIE, SECURE_COOKIE
from posthouse.sessions import LINK_MS, SESSION_MS
from tests.support.web import Web, is_problem

HELLO = {"from": "Ada <ada@example.org>", "to": "bob@example.net", "subject": "Hello there", "text": "Hi\n"}


async def link_of(web: Web) -> str:
    made = await web.command.post("/api/v1/links")
    return str(made.json()["url"]).rpartition("link=")[2]


async def signed_in(web: Web, base_url: str = "http://localhost") -> httpx2.AsyncClient:
    """Give a browser with a session."""
    browser = web.caller(None, base_url=base_url)
    answer = await browser.post("/sign-in", data={"link": await link_of(web)})
    assert answer.status_code == 303 and answer.headers["location"] == "/"
    return browser


async def captured(web: Web, **message: Any) -> str:
    sent = await web.command.post("/api/v1/messages", json={**HELLO, **message})
    identifier = str(sent.json()["id"])
    await web.message(identifier)
    return identifier


async def test_without_a_session_only_the_way_to_a_link_is_shown(web: Web, sandbox: Any) -> None:
    identifier = await captured(web)
    browser = web.caller(None)
    page = await browser.get("/")
    assert page.status_code == 200 and "posthouse user link" in page.text
    assert "Hello there" not in page.text
    one = await browser.get(f"/captured/{identifier}")
    assert (one.status_code, one.headers["location"]) == (303, "/")
    for cookie in (PLAIN_COOKIE, SECURE_COOKIE):
        for value in ("", "x", "A" * 43, await link_of(web)):
            page = await web.caller(None).get("/", headers={"Cookie": f"{cookie}={value}"})
            assert "Hello there" not in page.text


async def test_looking_at_a_link_uses_nothing_up_and_pressing_the_button_does(web: Web, sandbox: Any) -> None:
    await captured(web)
    link = await link_of(web)
    browser = web.caller(None)
    for _ in range(3):
        page = await browser.get(f"/sign-in?link={link}")
        assert page.text.count("<button") == 1 and link in page.text
        assert "set-cookie" not in page.headers
    done = await browser.post("/sign-in", data={"link": link})
    assert done.status_code == 303
    assert "Hello there" in (await browser.get("/")).text
    again = await web.caller(None).post("/sign-in", data={"link": link})
    assert again.status_code == 401 and "set-cookie" not in again.headers
    assert "used before" in again.text and "posthouse user link" in again.text


@pytest.mark.parametrize("link", ["", "x", "A" * 43, "' OR 1=1 --", "\udcff", "ä" * 2000])
async def test_a_link_that_is_none_opens_nothing(web: Web, link: str) -> None:
    answer = await web.caller(None).post("/sign-in", content=b"link=" + link.encode("utf-8", "surrogatepass"))
    assert answer.status_code == 401
    assert "set-cookie" not in answer.headers


async def test_a_link_lasts_an_hour_and_a_session_twelve(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    browser, late = await signed_in(web), await link_of(web)
    now_ms = web.hub.clock.now_ms
    monkeypatch.setattr(web.hub.clock, "now_ms", lambda: now_ms() + LINK_MS + 1000)
    assert (await web.caller(None).post("/sign-in", data={"link": late})).status_code == 401
    assert "Sign out" in (await browser.get("/")).text
    monkeypatch.setattr(web.hub.clock, "now_ms", lambda: now_ms() + SESSION_MS + 1000)
    assert "Sign out" not in (await browser.get("/")).text


async def test_the_cookie_fits_the_scheme(web: Web) -> None:
    plain = await web.caller(None).post("/sign-in", data={"link": await link_of(web)})
    assert plain.headers["set-cookie"].startswith(f"{PLAIN_COOKIE}=")
    for part in ("HttpOnly", "Path=/", "SameSite=lax"):
        assert part in plain.headers["set-cookie"]
    assert "Secure" not in plain.headers["set-cookie"] and "Domain" not in plain.headers["set-cookie"]
    secure = await web.caller(None, base_url="https://localhost").post("/sign-in", data={"link": await link_of(web)})
    assert secure.headers["set-cookie"].startswith(f"{SECURE_COOKIE}=")
    assert SECURE_COOKIE.startswith("__Host-") and "Secure" in secure.headers["set-cookie"]


async def test_signing_out_ends_the_session_on_the_server(web: Web, sandbox: Any) -> None:
    browser = await signed_in(web)
    stolen = dict(browser.cookies)[PLAIN_COOKIE]
    page = (await browser.get("/")).text
    token = re.findall(r'name="token" value="([^"]+)"', page)[0]
    assert stolen not in page
    forged = await browser.post("/sign-out", data={"token": "x"})
    assert forged.status_code == 401 and "Sign out" in (await browser.get("/")).text
    assert (await browser.post("/sign-out", data={"token": token})).status_code == 303
    again = await web.caller(None).get("/", headers={"Cookie": f"{PLAIN_COOKIE}={stolen}"})
    assert "Sign out" not in again.text


async def test_browsers_are_not_told_to_hide_where_our_own_forms_come_from(web: Web) -> None:
    # With no-referrer a browser sends "Origin: null" with the form of the sign-in page, and is refused as foreign.
    answer = await web.caller(None).get("/")
    assert answer.headers["referrer-policy"] == "same-origin"


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost.evil.example"},
    ],
)
async def test_another_site_can_post_nothing(web: Web, headers: dict[str, str]) -> None:
    link = await link_of(web)
    answer = await web.caller(None).post("/sign-in", data={"link": link}, headers=headers)
    assert answer.status_code == 401 and "set-cookie" not in answer.headers
    ours = {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost"}
    assert (await web.caller(None).post("/sign-in", data={"link": link}, headers=ours)).status_code == 303


async def test_each_sign_in_has_a_session_of_its_own(web: Web) -> None:
    browser = web.caller(None)
    browser.cookies.set(PLAIN_COOKIE, "fixed-by-somebody-else")
    await browser.post("/sign-in", data={"link": await link_of(web)})
    first = browser.cookies.jar
    values = {cookie.value for cookie in first}
    other = await signed_in(web)
    assert not values & {cookie.value for cookie in other.cookies.jar}
    assert (
        "Sign out"
        not in (await web.caller(None).get("/", headers={"Cookie": f"{PLAIN_COOKIE}=fixed-by-somebody-else"})).text
    )


async def test_captured_mail_is_listed_newest_first_and_paged(web: Web, sandbox: Any) -> None:
    for number in range(53):
        await captured(web, subject=f"Subject {number:02}")
    browser = await signed_in(web)
    page = (await browser.get("/")).text
    assert re.findall(r"Subject (\d\d)", page) == [f"{number:02}" for number in range(52, 2, -1)]
    older = html.unescape(re.findall(r'href="(/\?before=[^"]+)"', page)[0])
    assert re.findall(r"Subject (\d\d)", (await browser.get(older)).text) == ["02", "01", "00"]


async def test_no_mail_yet_says_how_to_send_one(web: Web) -> None:
    assert "posthouse send" in (await (await signed_in(web)).get("/")).text


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}</pre></title>'


async def test_a_message_is_shown_as_text_whatever_it_holds(web: Web, sandbox: Any) -> None:
    identifier = await captured(
        web,
        **{
            "from": {"address": "ada@example.org", "name": HOSTILE[:60]},
            "subject": HOSTILE,
            "text": f"one\n{HOSTILE}\ntwo \u202eback",
            "html": f"<p>{HOSTILE}</p>",
            "headers": {"X-Hostile": HOSTILE},
            "attachments": [{"name": HOSTILE.replace("/", "_"), "content": "PHNjcmlwdD4="}],
        },
    )
    browser = await signed_in(web)
    for path in ("/", f"/captured/{identifier}"):
        page = await browser.get(path)
        assert page.status_code == 200
        assert (
            "<script" not in page.text and "<img" not in page.text and "49" not in page.text.replace(identifier, "")[:0]
        )
        assert page.text.count("</title>") == 1
        assert html.escape(HOSTILE[:20], quote=False)[2:12] in page.text
        assert "\u202e" not in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src" not in policy and "unsafe" not in policy
    assert "X-Hostile" in page.text and "two" in page.text and "What happened" in page.text


async def test_a_message_without_text_and_one_that_is_gone(web: Web, sandbox: Any) -> None:
    identifier = await captured(web, text=None, html="<p>only this")
    browser = await signed_in(web)
    assert "no plain text" in (await browser.get(f"/captured/{identifier}")).text
    for path in ("/captured/0000000000000", "/captured/x", "/nothing"):
        page = await browser.get(path)
        assert page.status_code == 404 and page.headers["content-type"].startswith("text/html")


async def test_a_tenants_session_sees_the_tenants_mail_only(web: Web, sandbox: Any) -> None:
    tenant = await web.add("tenants", name="Harbour")
    token = await web.token("administrator", tenant["id"])
    link = (await web.caller(token).post("/api/v1/links")).json()["url"].rpartition("link=")[2]
    browser = web.caller(None)
    await browser.post("/sign-in", data={"link": link})
    foreign = await captured(web, subject="Of nobody")
    own = await captured(web, subject="Of the harbour", tenant=tenant["id"])
    page = (await browser.get("/")).text
    assert "Of the harbour" in page and "Of nobody" not in page
    assert (await browser.get(f"/captured/{own}")).status_code == 200
    assert (await browser.get(f"/captured/{foreign}")).status_code == 404


async def test_a_form_that_is_too_large_is_refused(web: Web) -> None:
    answer = await web.caller(None).post("/sign-in", content=b"link=" + b"x" * 100_000)
    assert answer.status_code == 413


async def test_the_command_line_has_no_pages(web: Web) -> None:
    is_problem(await web.command.get("/sign-in"), 404, "not-found")


async def test_a_page_loads_nothing_from_elsewhere(web: Web, sandbox: Any) -> None:
    identifier = await captured(web)
    browser = await signed_in(web)
    for path in ("/", f"/captured/{identifier}", "/sign-in?link=x"):
        text = (await browser.get(path)).text
        assert re.findall(r'(?:src|href)="(?!/)[^"#]', text) == []
        assert " style=" not in text and " on" + "click=" not in text
    sheet = await browser.get("/assets/posthouse.css")
    assert sheet.headers["content-type"].startswith("text/css") and "url(" not in sheet.text
