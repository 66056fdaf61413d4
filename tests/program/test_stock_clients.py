"""Stock programs hand mail over, and it arrives through a real Postfix: the whole way, as an administrator sees it."""

import base64
import json
import smtplib
import ssl
import subprocess
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

import pytest

from tests.support.certificates import CertificateAuthority
from tests.support.postfix import Postfix, PostfixOptions
from tests.support.posthouse import PosthouseProcess
from tests.support.processes import program
from tests.support.sink import CaptureServer

Start = Callable[..., PosthouseProcess]


class Way:
    """Posthouse with TLS, a Postfix behind it, and a sink behind that."""

    def __init__(self, node: PosthouseProcess, sink: CaptureServer, authority: Path) -> None:
        self.node = node
        self.sink = sink
        self.authority = authority
        self.shop = node.cli("application", "add", "shop")

    def arrived(self) -> str:
        """The body of the one message that arrived."""
        message = self.sink.wait_for_one()
        assert message.objections == ()
        assert message.mail_from == "shop@example.org"
        assert message.addresses == ["you@example.net"]
        (line,) = self.node.cli("message", "list", "--state", "delivered")["items"]
        assert line["application"] == "shop"
        return message.body.decode().strip()


@pytest.fixture
def way(
    start_posthouse: Start,
    start_postfix: Callable[[PostfixOptions], Postfix],
    sink: CaptureServer,
    authority: CertificateAuthority,
) -> Way:
    postfix = start_postfix(PostfixOptions(relay_to=f"127.0.0.1:{sink.port}"))
    leaf = authority.issue()
    node = start_posthouse(options=["--tls-cert", str(leaf.chain_file), "--tls-key", str(leaf.key_file)])
    node.cli(
        "server",
        "add",
        "postfix",
        "--kind",
        "smtp",
        "--host",
        "127.0.0.1",
        "--port",
        str(postfix.port),
        "--tls",
        "none",
    )
    return Way(node, sink, authority.file)


def run(*command: str, stdin: str = "", cwd: Path | None = None) -> None:
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, cwd=cwd, check=False)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout}{done.stderr}"


def test_swaks_with_a_password_over_starttls(way: Way, programs: None) -> None:
    run(
        program("swaks"), "--server", f"127.0.0.1:{way.node.smtp_port}", "--tls", "--auth", "PLAIN",
        "--auth-user", way.shop["smtp_username"], "--auth-password", way.shop["smtp_password"],
        "--from", "shop@example.org", "--to", "you@example.net", "--body", "Hello by swaks.",
    )  # fmt: skip
    assert way.arrived() == "Hello by swaks."


def test_curl_by_smtp(way: Way, programs: None, tmp_path: Path) -> None:
    message = tmp_path / "message"
    message.write_bytes(b"From: shop@example.org\r\nSubject: curl\r\n\r\nHello by curl.\r\n")
    run(
        program("curl"), "--silent", "--show-error", f"smtp://localhost:{way.node.smtp_port}", "--ssl-reqd",
        "--cacert", str(way.authority), "--user", f"{way.shop['smtp_username']}:{way.shop['smtp_password']}",
        "--mail-from", "shop@example.org", "--mail-rcpt", "you@example.net", "--upload-file", str(message),
    )  # fmt: skip
    assert way.arrived() == "Hello by curl."


def test_curl_by_rest(way: Way, programs: None) -> None:
    body = {"from": "shop@example.org", "to": "you@example.net", "subject": "curl", "text": "Hello by REST."}
    run(
        program("curl"), "--silent", "--show-error", "--fail", f"{way.node.http}/api/v1/messages",
        "-H", f"Authorization: Bearer {way.shop['api_key']}", "-H", "Content-Type: application/json",
        "-d", json.dumps(body),
    )  # fmt: skip
    assert way.arrived() == "Hello by REST."


def test_msmtp(way: Way, programs: None, tmp_path: Path) -> None:
    settings = tmp_path / "msmtprc"
    settings.write_text(
        f"account default\nhost localhost\nport {way.node.smtp_port}\ntls on\ntls_starttls on\n"
        f"tls_trust_file {way.authority}\nauth on\nuser {way.shop['smtp_username']}\n"
        f"password {way.shop['smtp_password']}\nfrom shop@example.org\n"
    )
    settings.chmod(0o600)
    text = "From: shop@example.org\nTo: you@example.net\nSubject: msmtp\n\nHello by msmtp.\n"
    run(program("msmtp"), "-C", str(settings), "you@example.net", stdin=text)
    assert way.arrived() == "Hello by msmtp."


def test_s_nail(way: Way, programs: None, tmp_path: Path) -> None:
    user, password = way.shop["smtp_username"], way.shop["smtp_password"]
    run(
        program("s-nail"), "-:/", "-S", "v15-compat", "-S", f"mta=smtp://{user}:{password}@localhost:{way.node.smtp_port}",
        "-S", "smtp-use-starttls", "-S", "smtp-auth=plain", "-S", "tls-verify=strict", "-S", f"tls-ca-file={way.authority}",
        "-S", "from=shop@example.org", "-S", "sendwait", "-s", "s-nail", "you@example.net",
        stdin="Hello by s-nail.\n", cwd=tmp_path,
    )  # fmt: skip
    assert way.arrived() == "Hello by s-nail."


def test_smtplib(way: Way) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "shop@example.org", "you@example.net", "smtplib"
    message.set_content("Hello by smtplib.")
    with smtplib.SMTP("localhost", way.node.smtp_port, timeout=30) as client:
        client.starttls(context=ssl.create_default_context(cafile=str(way.authority)))
        client.login(way.shop["smtp_username"], way.shop["smtp_password"])
        client.send_message(message)
    assert way.arrived() == "Hello by smtplib."


def test_the_command_line(way: Way) -> None:
    way.node.cli("application", "delete", "shop", "--yes")
    way.node.cli(
        "send", "--from", "shop@example.org", "--to", "you@example.net", "--subject", "cli", "--text", "Hello by hand."
    )
    assert way.sink.wait_for_one().body.decode().strip() == "Hello by hand."


def test_attachments_arrive_whole(way: Way) -> None:
    octets = bytes(range(256)) * 500
    body = {
        "from": "Łódź Shop <shop@example.org>",
        "to": ["you@example.net"],
        "subject": "Grüße 🎉",
        "text": "Ärger",
        "html": "<p>Ärger</p>",
        "attachments": [
            {
                "name": "naïve.bin",
                "content_type": "application/octet-stream",
                "content": base64.b64encode(octets).decode(),
            }
        ],
    }
    answer = way.node.request("POST", "/api/v1/messages", json_body=body, token=way.shop["api_key"])
    assert answer.status == 202
    way.arrived()
    from email import message_from_bytes
    from email.policy import default

    message = message_from_bytes(way.sink.messages[0].content, policy=default)
    assert message["Subject"] == "Grüße 🎉"
    assert message["From"].addresses[0].display_name == "Łódź Shop"
    (attachment,) = message.iter_attachments()
    assert attachment.get_filename() == "naïve.bin" and attachment.get_content() == octets
