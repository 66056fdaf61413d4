"""What stands before every route: problems for everything that is no success, the Host check, protecting header fields."""

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from posthouse.api.front import SECURITY_HEADERS, Front, host_name
from posthouse.api.reading import MAX_JSON_OCTETS
from posthouse.model.application import parse_network
from tests.support.web import Web, fields_of, is_problem

SECRET = "kt5w-canary-of-the-front"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/v1/nothing", 404, "not-found"),
        ("GET", "/api/v1", 404, "not-found"),
        ("GET", "/api/", 404, "not-found"),
        ("GET", "/api/v1/servers/", 404, "not-found"),
        ("GET", "/api/v1/servers/0000000000000", 404, "not-found"),
        ("GET", "/api/v1/messages/zzzzzzzzzzzzz", 404, "not-found"),
        ("OPTIONS", "/api/v1/servers", 405, "method-not-allowed"),
        ("BREW", "/api/v1/servers", 405, "method-not-allowed"),
        ("PUT", "/api/v1/servers", 405, "method-not-allowed"),
        ("POST", "/healthz", 405, "method-not-allowed"),
        ("POST", "/api/v1/openapi.json", 405, "method-not-allowed"),
        ("GET", "/api/v1/servers?limit=0", 422, "invalid-input"),
        ("GET", "/api/v1/servers?limit=1.0", 422, "invalid-input"),
        ("GET", "/api/v1/servers?limit=ten", 422, "invalid-input"),
        ("GET", "/api/v1/servers?enabled=1", 422, "invalid-input"),
        ("GET", "/api/v1/servers?nmae=office", 422, "invalid-input"),
        ("GET", "/api/v1/servers?name=a&name=b", 422, "invalid-input"),
        ("GET", "/api/v1/messages?since=yesterday", 422, "invalid-input"),
        ("GET", "/api/v1/messages?text=%00", 422, "invalid-input"),
        ("GET", "/api/v1/messages?cursor=x", 422, "invalid-input"),
    ],
)
async def test_every_refusal_is_a_problem(
    administrator: httpx2.AsyncClient, method: str, path: str, status: int, code: str
) -> None:
    is_problem(await administrator.request(method, path), status, code)


async def test_an_unknown_method_names_all_that_are_offered(administrator: httpx2.AsyncClient) -> None:
    answer = await administrator.request("OPTIONS", "/api/v1/servers/0000000000000")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, PATCH, PUT"


async def test_head_is_get_without_the_content(administrator: httpx2.AsyncClient) -> None:
    answer = await administrator.head("/api/v1/servers")
    assert (answer.status_code, answer.content) == (200, b"")
    missing = await administrator.head("/api/v1/nothing")
    assert (missing.status_code, missing.content) == (404, b"")
    assert missing.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("body", "media_type", "status", "code"),
    [
        (b"", "application/json", 400, "malformed-json"),
        (b"{", "application/json", 400, "malformed-json"),
        (b'{"name": NaN}', "application/json", 400, "malformed-json"),
        (b'{"name": "\xff"}', "application/json", 400, "malformed-json"),
        (b'{"name": "\\ud800"}', "application/json", 400, "malformed-json"),
        (b"[" * 100_000, "application/json", 400, "malformed-json"),
        (b"[]", "application/json", 422, "invalid-input"),
        (b"null", "application/json", 422, "invalid-input"),
        (b"{}", "text/plain", 415, "unsupported-media-type"),
        (b"{}", "", 415, "unsupported-media-type"),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(
    administrator: httpx2.AsyncClient, body: bytes, media_type: str, status: int, code: str
) -> None:
    headers = {"Content-Type": media_type} if media_type else {}
    for path in ("/api/v1/servers", "/api/v1/tenants"):
        is_problem(await administrator.post(path, content=body, headers=headers), status, code)


async def test_types_are_strict_and_unknown_fields_refused(administrator: httpx2.AsyncClient) -> None:
    body = {"kind": "capture", "name": "x", "keep_messages": True, "enabled": 1, "max_connections": "3", "extra": 1}
    problem = is_problem(await administrator.post("/api/v1/servers", json=body), 422, "invalid-input")
    assert sorted(fields_of(problem)) == ["enabled", "extra", "keep_messages", "max_connections"]


async def test_an_announced_body_that_is_too_large_is_not_read(administrator: httpx2.AsyncClient) -> None:
    async def endless() -> Any:
        yield b"x"
        raise AssertionError("the body was read")

    headers = {"Content-Type": "application/json", "Content-Length": str(MAX_JSON_OCTETS + 1)}
    answer = await administrator.post("/api/v1/servers", content=endless(), headers=headers)
    is_problem(answer, 413, "body-too-large")
    assert answer.headers["connection"] == "close"


async def test_a_body_that_grows_too_large_is_given_up(administrator: httpx2.AsyncClient) -> None:
    async def long() -> Any:
        for _ in range(MAX_JSON_OCTETS // 65_536 + 2):
            yield b" " * 65_536

    answer = await administrator.post("/api/v1/servers", content=long(), headers={"Content-Type": "application/json"})
    is_problem(answer, 413, "body-too-large")


async def test_a_refusal_never_repeats_what_was_sent(administrator: httpx2.AsyncClient) -> None:
    password = {"type": "password", "username": "u", "password": SECRET}
    bodies: list[Any] = [
        {"kind": "smtp", "name": "x", "host": "h", "auth": {**password, "mechanism": SECRET}},
        {"kind": SECRET, "name": SECRET},
        {"kind": "smtp", "name": "x\n" + SECRET, "host": SECRET + " x", "auth": password},
        {"kind": "smtp", "name": "x", "host": "h", "auth": SECRET, "port": SECRET},
        [SECRET],
        SECRET,
    ]
    for body in bodies:
        answer = await administrator.post("/api/v1/servers", json=body)
        assert answer.status_code == 422
        assert SECRET not in answer.text
    answer = await administrator.post(
        "/api/v1/servers", content=json.dumps(SECRET)[:-1].encode(), headers={"Content-Type": "application/json"}
    )
    assert SECRET not in answer.text
    for path in (f"/api/v1/servers?limit={SECRET}", f"/api/v1/{SECRET}", f"/api/v1/servers/{SECRET}"):
        assert SECRET not in (await administrator.get(path)).text


async def test_a_fault_of_the_program_is_a_problem_and_the_log_tells_no_value(
    web: Web, administrator: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_arguments: object) -> None:
        raise ValueError(f"something about {SECRET}")

    monkeypatch.setattr(type(web.hub.administration), "installation", broken)
    answer = await administrator.get("/api/v1/settings")
    is_problem(answer, 500, "internal-error")
    logged = "".join(capfd.readouterr())
    assert SECRET not in answer.text + logged
    assert "api/settings.py" in logged


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        ("localhost", True),
        ("LOCALHOST:8025", True),
        ("127.0.0.1:8025", True),
        ("127.8.9.1", True),
        ("[::1]:8025", True),
        ("post.example.org", True),
        ("post.example.org:443", True),
        ("example.org", False),
        ("post.example.org.evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.0.2.1", False),
        ("", False),
        ("localhost:evil", False),
        ("[::1", False),
        ("[::1]evil", False),
        ("localhost@evil.example", False),
    ],
)
def test_the_host_is_ours_or_refused(host: str, taken: bool) -> None:
    async def nothing(*_arguments: object) -> None: ...

    front = Front(nothing, public_url="https://post.example.org/", check_host=True)
    assert front.is_ours(host) is taken


def test_without_a_public_url_an_empty_host_is_refused() -> None:
    async def nothing(*_arguments: object) -> None: ...

    assert not Front(nothing, public_url=None, check_host=True).is_ours("")
    assert host_name("") == ""


async def test_another_host_is_misdirected_on_tcp_and_of_no_concern_to_the_command_line(web: Web) -> None:
    for path in ("/api/v1/servers", "/", "/healthz", "/metrics"):
        answer = await web.caller(None).get(path, headers={"Host": "evil.example"})
        is_problem(answer, 421, "misdirected-request")
    assert (await web.command.get("/api/v1/servers", headers={"Host": "evil.example"})).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["/", "/healthz", "/readyz", "/metrics", "/api/v1/servers", "/api/v1/x", "/sign-in", "/x", "/assets/posthouse.css"],
)
async def test_protecting_header_fields_stand_on_everything(web: Web, path: str) -> None:
    answer = await web.caller(None).get(path)
    for name in SECURITY_HEADERS:
        assert name in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("peer", "forwarded", "seen"),
    [
        ("192.0.2.7", None, "192.0.2.7"),
        ("192.0.2.7", "203.0.113.9", "192.0.2.7"),
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "203.0.113.9, 10.0.0.2", "203.0.113.9"),
        ("10.0.0.1", "nonsense", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
    ],
)
async def test_only_a_trusted_proxy_speaks_for_others(peer: str, forwarded: str | None, seen: str) -> None:
    clients: list[str] = []

    async def look(scope: Any, _receive: Any, send: Any) -> None:
        clients.append(scope["client"][0])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    front = Front(look, public_url=None, check_host=True, trusted_proxies=[parse_network("10.0.0.0/8")])
    headers = {"X-Forwarded-For": forwarded} if forwarded is not None else {}
    transport = httpx2.ASGITransport(app=front, client=(peer, 1))
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
        await client.get("/", headers=headers)
    assert clients == [seen]


async def test_a_program_without_pages_answers_problems_there(web: Web) -> None:
    is_problem(await web.command.get("/"), 404, "not-found")


def test_no_module_of_the_face_imports_plain_httpx() -> None:
    folder = Path(__file__).parents[2] / "posthouse"
    for path in [*folder.glob("api/*.py"), *folder.glob("console/*.py")]:
        assert "import httpx\n" not in path.read_text()
