"""Attacks against the whole program; the verdict comes from what arrives at the far side."""

import contextlib
import smtplib
import socket
import time
from collections.abc import Callable

import pytest

from tests.support.posthouse import PosthouseProcess
from tests.support.processes import free_port, wait_until
from tests.support.sink import CaptureServer

SECOND = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\nSubject: smuggled\r\n\r\nsmuggled\r\n.\r\n"


@pytest.fixture
def node(posthouse: PosthouseProcess, sink: CaptureServer) -> PosthouseProcess:
    posthouse.cli(
        "server", "add", "office", "--kind", "smtp", "--host", "127.0.0.1", "--port", str(sink.port), "--tls", "none"
    )
    posthouse.cli("application", "add", "scanner", "--network", "127.0.0.0/8")
    return posthouse


def talk(port: int, octets: bytes) -> bytes:
    """Send octets after the greeting and EHLO, and read until the other side closes or is silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
        line.recv(1000)
        line.sendall(b"EHLO attacker\r\n" + octets + b"QUIT\r\n")
        line.settimeout(10)
        answer = b""
        with contextlib.suppress(TimeoutError):
            while piece := line.recv(65536):
                answer += piece
        return answer


ENDS = [
    b"\n.\n",
    b"\r\n.\n",
    b"\n.\r\n",
    b"\r.\r",
    b"\r\n.\r",
    b"\r.\r\n",
    b"\r\n\x00.\r\n",
    b"\n.\r",
    b"\r\n.\x00\r\n",
]


def test_no_other_end_of_data_smuggles_a_second_message_in(node: PosthouseProcess, sink: CaptureServer) -> None:
    for end in ENDS:
        first = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.net>\r\nDATA\r\nSubject: x\r\n\r\nbody" + end + SECOND
        answer = talk(node.smtp_port, first)
        # One message, refused or taken; and the session is in step: QUIT is answered.
        assert answer.count(b"queued as") <= 1, end
        assert b"\r\n221 " in answer, end
    _send(node, "after@example.org")
    wait_until(lambda: any(m.mail_from == "after@example.org" for m in sink.messages), "the last message", timeout_s=20)
    assert all(m.mail_from != "evil@example.org" and "victim@example.net" not in m.addresses for m in sink.messages)


def test_nothing_submitted_by_rest_is_a_second_message_for_a_lenient_server(
    node: PosthouseProcess, sink: CaptureServer
) -> None:
    for end in ENDS:
        answer = node.request(
            "POST",
            "/api/v1/messages?mail_from=a@example.org&to=b@example.net",
            body=b"From: a@example.org\r\nSubject: x\r\n\r\nbody" + end + SECOND,
            headers={"Content-Type": "message/rfc822"},
        )
        assert answer.status in (202, 422), (end, answer.body)
        text = (b"body" + end + SECOND).decode()
        body = {"from": "a@example.org", "to": "b@example.net", "subject": "x", "text": text}
        assert node.request("POST", "/api/v1/messages", json_body=body).status in (202, 422), end
    _send(node, "after@example.org")
    wait_until(lambda: any(m.mail_from == "after@example.org" for m in sink.messages), "the last message", timeout_s=20)
    for message in sink.messages:
        assert message.objections == ()
        assert message.mail_from in ("a@example.org", "after@example.org")
        # Nothing that a server which takes bare line ends would read as the end of the data.
        rest = message.content.replace(b"\r\n", b"")
        assert b"\r" not in rest and b"\n" not in rest


def _send(node: PosthouseProcess, mail_from: str, header_from: str | None = None, extra: str = "") -> None:
    with smtplib.SMTP("127.0.0.1", node.smtp_port, timeout=20) as client:
        client.sendmail(
            mail_from, ["b@example.net"], f"From: {header_from or mail_from}\r\n{extra}Subject: x\r\n\r\nx\r\n"
        )


SENDERS = [
    ("evil@example.com", "anna@example.org", ""),
    ("anna@example.org", "evil@example.com", ""),
    ("anna@example.org", "anna@example.org", "From: evil@example.com\r\n"),
    ("anna@example.org", "anna@example.org, evil@example.com", ""),
    ("anna@example.org", "anna@example.org <evil@example.com>", ""),
    ("anna@example.org", "=?utf-8?q?anna=40example=2Eorg_=3Cx=3E?= <evil@example.com>", ""),
    ("anna@example.org", "friends: anna@example.org, evil@example.com;", ""),
    ("anna@example.org", "anna@example.org (evil) <evil@example.com>", ""),
    ("anna@example.org", "anna@example.org", "Sender: evil@example.com\r\n"),
    ("anna@example.org", "anna@еxample.org", ""),
]


def test_an_application_sends_as_nobody_else(node: PosthouseProcess, sink: CaptureServer) -> None:
    node.cli("application", "edit", "scanner", "--allowed-senders", "example.org")
    for mail_from, header_from, extra in SENDERS:
        with pytest.raises((smtplib.SMTPException, UnicodeError)):
            _send(node, mail_from, header_from, extra)
    _send(node, "anna@example.org")
    assert [m.mail_from for m in sink.wait_for(1)] == ["anna@example.org"]


def test_strangers_cannot_relay(start_posthouse: Callable[..., PosthouseProcess], sink: CaptureServer) -> None:
    node = start_posthouse()
    node.cli(
        "server", "add", "office", "--kind", "smtp", "--host", "127.0.0.1", "--port", str(sink.port), "--tls", "none"
    )
    with smtplib.SMTP("127.0.0.1", node.smtp_port, timeout=20) as client:
        client.ehlo()
        assert client.mail("a@example.org")[0] == 530
        assert client.docmd("DATA")[0] in (503, 530)
    assert node.request("POST", "/api/v1/messages", json_body={"from": "a@b.example"}, token="phk_x_y").status == 401
    assert sink.messages == []


def test_guessing_passwords_is_slowed_down(node: PosthouseProcess) -> None:
    shop = node.cli("application", "add", "shop")
    codes = []
    for number in range(14):
        with smtplib.SMTP("127.0.0.1", node.smtp_port, timeout=20) as client:
            client.ehlo()
            try:
                client.login(shop["smtp_username"], f"guess{number}", initial_response_ok=True)
            except smtplib.SMTPResponseException as refusal:
                codes.append(refusal.smtp_code)
    assert codes[0] == 535 and codes[-1] in (454, 421)


def test_the_switch_keeps_everything_in_within_five_seconds(node: PosthouseProcess, sink: CaptureServer) -> None:
    """A15: nothing leaves once the switch is off: no waiting mail, no retry, no report of failure."""
    node.cli("application", "edit", "scanner", "--bounces")
    closed = free_port()
    node.cli("server", "edit", "office", "--port", str(closed))
    for _ in range(5):
        _send(node, "anna@example.org")
    node.cli("settings", "edit", "--no-sending-enabled")
    node.cli("server", "edit", "office", "--port", str(sink.port))
    with smtplib.SMTP("127.0.0.1", node.smtp_port, timeout=20) as client:
        client.ehlo()
        code, text = client.mail("anna@example.org")
        assert code == 451 and b"4.3.2" in text and b"switched off" in text
    refused = node.request(
        "POST", "/api/v1/messages", json_body={"from": "a@example.org", "to": "b@example.net", "text": "x"}
    )
    assert refused.status == 503 and refused.json()["code"] == "sending-off"
    time.sleep(5)
    assert sink.sessions == []
    node.cli("settings", "edit", "--sending-enabled")
    assert len(sink.wait_for(5)) == 5


def test_a_fresh_installation_listens_on_loopback_and_keeps_its_keys(posthouse: PosthouseProcess) -> None:
    mode = (posthouse.data / "keys").stat().st_mode & 0o777
    assert mode == 0o600
    assert (posthouse.data / "control.sock").stat().st_mode & 0o777 == 0o600
    assert posthouse.data.stat().st_mode & 0o077 == 0
