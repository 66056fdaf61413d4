"""/healthz, /readyz and /metrics: what they say, and to whom."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from posthouse.errors import StoreUnavailable
from posthouse.metrics import MAX_SERVERS, Figures, ServerLoad, _Figures
from tests.support.web import Web, is_problem

HELLO = {"from": "ada@example.org", "to": "bob@example.net"}


def samples(text: str) -> Iterator[tuple[str, dict[str, str], float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, dict(sample.labels), sample.value


def total(text: str, name: str) -> float:
    return sum(value for found, _, value in samples(text) if found == name)


async def test_health_and_readiness_are_open_to_all(web: Web) -> None:
    nobody = web.caller(None, peer="198.51.100.1")
    assert (await nobody.get("/healthz")).json() == {"status": "ok"}
    ready = await nobody.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "reasons": []})
    assert (await nobody.head("/healthz")).status_code == 200


async def test_without_its_database_it_is_alive_and_not_ready(web: Web) -> None:
    nobody = web.caller(None)
    web.hub.database.down_since = 1.0
    assert (await nobody.get("/healthz")).status_code == 200
    answer = await nobody.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (503, False)
    assert answer.json()["reasons"] == ["The database cannot be written."]


async def test_metrics_stay_without_the_database(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(*_arguments: object) -> None:
        raise StoreUnavailable("The database does not answer.")

    monkeypatch.setattr(web.hub.tracking, "queue", gone)
    answer = await web.caller(None, peer="127.0.0.1").get("/metrics")
    assert answer.status_code == 200
    assert total(answer.text, "posthouse_messages_accepted_total") == 0


async def test_a_lost_database_is_a_503_that_says_when_to_come_back(
    web: Web, administrator: httpx2.AsyncClient, sandbox: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(*_arguments: object) -> None:
        raise StoreUnavailable("The database does not answer.")

    monkeypatch.setattr(web.hub.database, "read", gone)
    answer = await administrator.get("/api/v1/messages")
    is_problem(answer, 503, "store-unavailable")
    assert answer.headers["retry-after"] == "5"


async def test_the_counters_count(web: Web, administrator: httpx2.AsyncClient, sandbox: dict[str, object]) -> None:
    sent = (
        await administrator.post("/api/v1/messages", json=[{**HELLO, "to": ["a@x.example", "b@x.example"]}] * 3)
    ).json()
    for item in sent["items"]:
        await web.message(item["id"])
    await administrator.post(f"/api/v1/queue/{sandbox['id']}/hold")
    await administrator.post("/api/v1/messages", json=HELLO)
    text = (await web.caller(None, peer="127.0.0.1").get("/metrics")).text
    assert total(text, "posthouse_messages_accepted_total") == 4
    assert total(text, "posthouse_recipients_delivered_total") == 6
    assert total(text, "posthouse_recipients_failed_total") == 0
    assert total(text, "posthouse_servers_held") == 1
    assert total(text, "posthouse_ready") == 1
    queue = {labels["state"]: value for name, labels, value in samples(text) if name == "posthouse_queue_recipients"}
    assert queue == {"waiting": 1, "sending": 0}


def test_the_number_of_labels_is_bounded() -> None:
    servers = tuple(ServerLoad(str(n), "same name", n, 0, False) for n in range(MAX_SERVERS + 50))
    collector = _Figures("1")
    collector.present = lambda: Figures(0, 0, 0, 0, 0, 0, servers, True)
    (queue,) = [family for family in collector.collect() if family.name == "posthouse_queue_recipients"]
    assert len(queue.samples) == 2 * (MAX_SERVERS + 1)
    assert sum(sample.value for sample in queue.samples) == sum(range(MAX_SERVERS + 50))


@pytest.mark.parametrize(
    ("peer", "headers", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("203.0.113.5", {}, 200),
        ("203.0.114.5", {}, 401),
        ("192.0.2.1", {}, 401),
        ("127.0.0.1", {"X-Forwarded-For": "198.51.100.1"}, 401),
        ("127.0.0.1", {"Forwarded": "for=198.51.100.1"}, 401),
    ],
)
async def test_metrics_are_open_to_loopback_and_listed_networks(
    tmp_path: Path, peer: str, headers: dict[str, str], status: int
) -> None:
    web = Web(tmp_path / "data", metrics_network="203.0.113.0/24")
    await web.start()
    try:
        answer = await web.caller(None, peer=peer).get("/metrics", headers=headers)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith(
            "text/plain; version=0.0.4" if status == 200 else "application/problem+json"
        )
    finally:
        await web.stop()


async def test_elsewhere_metrics_need_a_token(web: Web) -> None:
    assert (await web.caller(await web.token("auditor")).get("/metrics")).status_code == 200
    shop = await web.add("applications", name="shop")
    is_problem(await web.caller(shop["api_key"]).get("/metrics"), 403, "not-permitted")
    is_problem(await web.caller("pht_aaaaaaaa_x").get("/metrics"), 401, "not-authenticated")


async def test_a_spool_that_cannot_be_used_answers_503_and_health_stays(
    web: Web, administrator: httpx2.AsyncClient, sandbox: object
) -> None:
    # A full disk, which answers 507, is tried in tests/faults.
    shutil.rmtree(web.hub.settings.data / "spool")
    raw = b"From: a@b.example\r\nTo: c@d.example\r\n\r\n" + b"x" * 70 + b"\r\n" + b"y\r\n" * 200_000
    answer = await administrator.post("/api/v1/messages", content=raw, headers={"Content-Type": "message/rfc822"})
    is_problem(answer, 503, "store-unavailable")
    assert (await administrator.get("/healthz")).status_code == 200
