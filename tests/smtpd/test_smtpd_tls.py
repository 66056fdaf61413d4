"""STARTTLS and implicit TLS at the SMTP listeners, and the certificate's files changing beneath them."""

import base64
import ipaddress
import os
import shutil
import socket
import ssl
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from posthouse.errors import ConfigurationError
from posthouse.protocol.smtp_server import SessionSettings
from posthouse.smtpd.connections import ListenerSettings
from posthouse.smtpd.tls import ServerCertificate
from tests.support.certificates import CertificateAuthority, Leaf
from tests.support.processes import wait_until
from tests.support.smtp_listener import HOST, LOOPS, LineClient, ManualClock, RunningListener
from tests.support.submission import KeepingHandler, ListPolicy

Start = Callable[..., RunningListener]
LOGIN = "AUTH PLAIN " + base64.b64encode(b"\0shop\0secret").decode()
TRANSACTION = ("MAIL FROM:<a@example.org>", "RCPT TO:<b@example.org>", "DATA")


@pytest.fixture
def leaf(authority: CertificateAuthority) -> Leaf:
    return authority.issue()


@pytest.fixture(params=LOOPS)
def start(request: pytest.FixtureRequest, leaf: Leaf) -> Iterator[Start]:
    """Start listeners with a certificate, each with either event loop."""
    with ExitStack() as stack:

        def begin(**options: Any) -> RunningListener:
            options.setdefault("certificate", ServerCertificate(leaf.chain_file, leaf.key_file))
            return stack.enter_context(RunningListener(request.param, **options))

        yield begin


def test_starttls_encrypts_and_starts_afresh(start: Start, authority: CertificateAuthority) -> None:
    running = start()
    with LineClient(running.port) as client:
        client.send(b"EHLO before\r\n")
        assert "STARTTLS" in client.reply()
        assert client.say("STARTTLS") == ["220"]
        client.start_tls(authority.client_context())
        assert client.say(TRANSACTION[0]) == ["503"]
        client.send(b"EHLO after\r\n")
        capabilities = client.reply()
        assert "STARTTLS" not in capabilities
        assert "AUTH PLAIN LOGIN" in capabilities
        assert client.say(LOGIN, *TRANSACTION, "hello\r\n.", "STARTTLS", "QUIT")[-3:] == ["250", "503", "221"]
        assert client.closed
    (submitted,) = running.keeping.taken
    assert submitted.origin.tls == "TLSv1.3"
    assert submitted.origin.helo == "after"
    assert submitted.origin.admitted_by == "credential"


def test_implicit_tls_carries_large_messages(start: Start, authority: CertificateAuthority) -> None:
    running = start()
    line = b"x" * 70 + b"\r\n"
    with LineClient(running.tls_port, context=authority.client_context()) as client:
        assert client.say("EHLO c", *TRANSACTION) == ["250", "250", "250", "354"]
        client.send(line * 100_000 + b".\r\n")
        assert client.reply().startswith("250 ")
    assert running.keeping.contents == [line * 100_000]
    wait_until(lambda: running.listener.open_connections == 0)


def test_the_clients_close_is_answered(start: Start, authority: CertificateAuthority) -> None:
    running = start(handler=(handler := KeepingHandler(at_once=False)))
    with LineClient(running.tls_port, context=authority.client_context()) as client:
        client.send("\r\n".join(("EHLO c", *TRANSACTION)).encode() + b"\r\n.\r\n")
        wait_until(lambda: handler.waiting)
        running.in_loop(handler.release)
        assert [client.reply()[:3] for _ in range(5)] == ["250", "250", "250", "354", "250"]
        assert isinstance(client.socket, ssl.SSLSocket)
        client.socket.unwrap()
    wait_until(lambda: running.listener.open_connections == 0)


@pytest.mark.parametrize("apart", [False, True], ids=["in one segment", "before the handshake"])
def test_commands_sent_before_the_handshake_are_never_carried_out(
    start: Start, authority: CertificateAuthority, apart: bool
) -> None:
    running = start()
    injected = b"EHLO evil\r\nMAIL FROM:<evil@example.org>\r\n"
    with LineClient(running.port) as client:
        assert client.say("EHLO c") == ["250"]
        client.send(b"STARTTLS\r\n" + (b"" if apart else injected))
        assert client.reply().startswith("220 ")
        if apart:
            client.send(injected)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                client.start_tls(authority.client_context())
            wait_until(lambda: running.listener.counters.tls_failures == 1)
        else:
            client.start_tls(authority.client_context())
            # Had the injected EHLO counted, MAIL would be taken; had the MAIL, it would be called nested.
            client.send(b"MAIL FROM:<a@example.org>\r\n")
            assert client.reply().startswith("503 5.5.1 Send EHLO first")


def test_no_password_is_taken_in_clear_beyond_loopback(start: Start) -> None:
    policy = ListPolicy(passwords={"shop": "secret"})
    running = start(policy=policy, settings=ListenerSettings(proxy_networks=(ipaddress.IPv4Network("127.0.0.0/8"),)))
    with LineClient(running.port, banner=False) as client:
        client.send(b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 25\r\n")
        client.reply()
        assert client.say("EHLO c", LOGIN, TRANSACTION[0]) == ["250", "538", "530"]
    assert policy.logins == []


@pytest.mark.parametrize("together", [False, True])
def test_a_proxy_header_goes_before_implicit_tls(start: Start, authority: CertificateAuthority, together: bool) -> None:
    running = start(
        policy=ListPolicy(admitted=("203.0.113.",)),
        settings=ListenerSettings(proxy_networks=(ipaddress.IPv4Network("127.0.0.1/32"),)),
    )
    header = b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 25\r\n"
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = authority.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection((HOST, running.tls_port), 10) as client:
        if not together:
            client.sendall(header)
            header = b""

        def exchange(step: Callable[[], Any]) -> Any:
            nonlocal header
            while True:
                try:
                    return step()
                except ssl.SSLWantReadError:
                    client.sendall(header + outgoing.read())
                    header = b""
                    incoming.write(client.recv(65536))

        exchange(tls.do_handshake)
        assert exchange(lambda: tls.read(1000)).startswith(b"220 ")
        tls.write(b"EHLO c\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n.\r\n")
        client.sendall(outgoing.read())
        wait_until(lambda: running.keeping.taken)
    assert running.keeping.taken[0].origin.peer == "203.0.113.7"


def test_a_handshake_that_stands_still_ends(start: Start) -> None:
    clock = ManualClock()
    running = start(clock=clock)
    with LineClient(running.tls_port, banner=False) as silent, LineClient(running.port) as half:
        assert half.say("EHLO c", "STARTTLS") == ["250", "220"]
        half.send(b"\x16\x03\x01\x02")
        wait_until(lambda: running.listener.open_connections == 2)
        running.in_loop(lambda: None)
        clock.advance(31)
        assert silent.closed
        assert half.closed
    assert running.listener.counters.timeouts == 2


def test_garbage_instead_of_a_handshake_ends_the_connection(start: Start) -> None:
    running = start()
    with socket.create_connection((HOST, running.tls_port), 10) as client:
        client.sendall(b"EHLO c\r\n" * 10)
        while client.recv(1000):
            pass
    assert running.listener.counters.tls_failures == 1


def test_old_versions_are_refused(start: Start, authority: CertificateAuthority) -> None:
    running = start()
    context = authority.client_context()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with LineClient(running.tls_port, context=context) as client:
        assert client.say("NOOP") == ["250"]
    with warnings.catch_warnings():
        # That it is deprecated is the point.
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        LineClient(running.tls_port, context=context)


# --- the certificate's files -----------------------------------------------------------------------------------------


def served_certificate(port: int, context: ssl.SSLContext) -> bytes | None:
    with LineClient(port, context=context) as client:
        assert isinstance(client.socket, ssl.SSLSocket)
        return client.socket.getpeercert(binary_form=True)


def replace(source: Path, target: Path) -> None:
    """Put a file in the place of another as careful programs do."""
    beside = target.with_suffix(".new")
    shutil.copyfile(source, beside)
    os.replace(beside, target)


def der(leaf: Leaf) -> bytes:
    return leaf.certificate.public_bytes(serialization.Encoding.DER)


def test_a_changed_certificate_is_used_and_a_broken_one_is_not(
    start: Start, authority: CertificateAuthority, leaf: Leaf, tmp_path: Path
) -> None:
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    replace(leaf.chain_file, chain)
    replace(leaf.key_file, key)
    clock = ManualClock()
    running = start(certificate=ServerCertificate(chain, key), clock=clock)
    context = authority.client_context()
    with LineClient(running.port) as before:
        assert served_certificate(running.tls_port, context) == der(leaf)
        other = authority.issue()
        replace(other.chain_file, chain)
        # The new chain does not go with the old key: the old pair stays in use.
        clock.advance(6)
        for _ in range(20):
            assert served_certificate(running.tls_port, context) == der(leaf)
        replace(other.key_file, key)
        clock.advance(6)
        wait_until(lambda: served_certificate(running.tls_port, context) == der(other))
        chain.unlink()
        clock.advance(6)
        for _ in range(20):
            assert served_certificate(running.tls_port, context) == der(other)
        assert before.say("NOOP") == ["250"]


def test_files_that_cannot_be_used_at_the_start_are_a_configuration_error(leaf: Leaf, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        ServerCertificate(tmp_path / "none.pem", leaf.key_file)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        ServerCertificate(leaf.key_file, leaf.key_file)


def test_a_key_with_a_passphrase_fails_instead_of_asking(leaf: Leaf, tmp_path: Path) -> None:
    key = serialization.load_pem_private_key(leaf.key_file.read_bytes(), None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"passphrase"),
        )
    )
    with pytest.raises(ConfigurationError, match="passphrase"):
        ServerCertificate(leaf.chain_file, locked)


def test_no_certificate_means_no_starttls() -> None:
    session = SessionSettings("mail.example.org", starttls_offered=True)
    with RunningListener(session=session) as running, LineClient(running.port) as client:
        client.send(b"EHLO c\r\n")
        assert "STARTTLS" not in client.reply()
        assert client.say("STARTTLS") == ["502"]
