"""Stock programs hand mail over to the SMTP listeners: smtplib, aiosmtplib, swaks, curl, smtp-source."""

import asyncio
import smtplib
import subprocess
from collections.abc import Iterator
from email.message import EmailMessage

import aiosmtplib
import pytest

from posthouse.smtpd.tls import ServerCertificate
from tests.support.certificates import CertificateAuthority
from tests.support.processes import program
from tests.support.smtp_listener import HOST, LOOPS, RunningListener
from tests.support.submission import ListPolicy

BODY = "Hello,\n\n.a line with a dot\n..two\n" + "a long line " * 200 + "\nGrüße\n"


@pytest.fixture(params=LOOPS)
def running(request: pytest.FixtureRequest, authority: CertificateAuthority) -> Iterator[RunningListener]:
    """Only who logs in may send."""
    leaf = authority.issue()
    certificate = ServerCertificate(leaf.chain_file, leaf.key_file)
    policy = ListPolicy(passwords={"shop": "secret"})
    with RunningListener(request.param, policy=policy, certificate=certificate) as listener:
        yield listener


def message(subject: str = "Hello") -> EmailMessage:
    made = EmailMessage()
    made["From"] = "a@example.org"
    made["To"] = "b@example.org, c@example.org"
    made["Subject"] = subject
    made.set_content(BODY, cte="8bit")
    return made


def check_kept(running: RunningListener, *, tls: bool = True, recipients: tuple[str, ...] = ("b", "c")) -> bytes:
    """Check that one message was kept as it was sent; returns its content."""
    ((submitted, content),) = zip(running.keeping.taken, running.keeping.contents, strict=True)
    assert isinstance(content, bytes)
    assert submitted.envelope.mail_from == "a@example.org"
    assert [each.address for each in submitted.envelope.recipients] == [f"{each}@example.org" for each in recipients]
    assert submitted.sender.label == "shop"
    assert bool(submitted.origin.tls) == tls
    return content


def in_wire_form(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode()


def test_smtplib_over_starttls(running: RunningListener, authority: CertificateAuthority) -> None:
    with smtplib.SMTP("localhost", running.port, timeout=10) as client:
        client.starttls(context=authority.client_context())
        client.login("shop", "secret")
        assert client.send_message(message()) == {}
    assert check_kept(running).endswith(in_wire_form(BODY))


def test_smtplib_over_implicit_tls_with_login(running: RunningListener, authority: CertificateAuthority) -> None:
    with smtplib.SMTP_SSL("localhost", running.tls_port, timeout=10, context=authority.client_context()) as client:
        client.ehlo()
        client.user, client.password = "shop", "secret"
        client.auth("LOGIN", client.auth_login)
        assert client.send_message(message()) == {}
    assert check_kept(running).endswith(in_wire_form(BODY))


def test_smtplib_on_loopback_in_clear_with_smtputf8(running: RunningListener) -> None:
    with smtplib.SMTP(HOST, running.port, timeout=10) as client:
        client.login("shop", "secret")
        refused = client.sendmail(
            "a@example.org", ["b@example.org", "ü@example.org"], "Subject: ü\r\n\r\nü\r\n".encode(), ["SMTPUTF8"]
        )
        assert refused == {}
        assert client.mail("not an address")[0] == 501
    check_kept(running, tls=False, recipients=("b", "ü"))
    assert running.keeping.taken[0].envelope.smtputf8


def test_smtplib_without_a_login_is_refused(running: RunningListener) -> None:
    with smtplib.SMTP(HOST, running.port, timeout=10) as client:
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login("shop", "wrong")
        with pytest.raises(smtplib.SMTPSenderRefused) as refused:
            client.send_message(message())
        assert refused.value.smtp_code == 530


def test_aiosmtplib_over_starttls(running: RunningListener, authority: CertificateAuthority) -> None:
    async def send() -> None:
        for subject in ("first", "second"):
            await aiosmtplib.send(
                message(subject),
                hostname="localhost",
                port=running.port,
                username="shop",
                password="secret",
                start_tls=True,
                tls_context=authority.client_context(),
            )

    asyncio.run(send())
    assert len(running.keeping.taken) == 2
    assert all(isinstance(each, bytes) and each.endswith(in_wire_form(BODY)) for each in running.keeping.contents)


SWAKS = [
    ["--tls", "--auth", "PLAIN"],
    ["--tls", "--auth", "LOGIN"],
    ["--tlsc", "--auth", "PLAIN"],
    ["--auth", "LOGIN"],
    ["--tls", "--auth", "PLAIN", "--pipeline"],
]


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("options", SWAKS, ids=" ".join)
def test_swaks(running: RunningListener, options: list[str]) -> None:
    port = running.tls_port if "--tlsc" in options else running.port
    done = subprocess.run(
        [
            program("swaks"), "--server", HOST, "--port", str(port), "--from", "a@example.org", "--au", "shop",
            "--ap", "secret", "--to", "b@example.org,c@example.org", "--body", "Hello\n.dot", *options,
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "250 2.0.0 Ok: queued as 0000000000001" in done.stdout
    assert b"Hello\r\n.dot\r\n" in check_kept(running, tls=any(option.startswith("--tls") for option in options))


@pytest.mark.usefixtures("programs")
def test_curl(running: RunningListener, authority: CertificateAuthority) -> None:
    done = subprocess.run(
        [
            program("curl"), "--silent", "--show-error", "--ssl-reqd", "--cacert", str(authority.file),
            "--url", f"smtp://localhost:{running.port}", "--user", "shop:secret", "--mail-from", "a@example.org",
            "--mail-rcpt", "b@example.org", "--mail-rcpt", "c@example.org", "--upload-file", "-",
        ],
        input=b"Subject: x\r\n\r\n.dot\r\n",
        capture_output=True,
        timeout=30,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert check_kept(running) == b"Subject: x\r\n\r\n.dot\r\n"


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("loop_kind", LOOPS)
def test_smtp_source(loop_kind: str, kept: bool) -> None:
    with RunningListener(loop_kind) as running:
        arguments = [program("smtp-source"), *(["-d"] if kept else []), "-s", "20", "-m", "300", "-l", "4096"]
        subprocess.run([*arguments, f"{HOST}:{running.port}"], check=True, timeout=60)
        assert running.listener.counters.messages_accepted == 300
        assert running.listener.counters.connections == (20 if kept else 300)
