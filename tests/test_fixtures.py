"""Proves that the servers which the other tests rely on do what their fixtures say."""

import imaplib
import poplib
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import Future

import psycopg
import pytest

from tests.support.certificates import CertificateAuthority, Flaw
from tests.support.dovecot import Dovecot, DovecotOptions
from tests.support.postfix import Postfix, PostfixOptions
from tests.support.postgres import PostgresServer
from tests.support.posthouse import CommandFailed, PosthouseProcess
from tests.support.processes import NotReady, free_port, wait_until
from tests.support.sink import CaptureOptions, CaptureServer, CountingSink

StartPostfix = Callable[[PostfixOptions], Postfix]
StartDovecot = Callable[[DovecotOptions], Dovecot]
StartSink = Callable[[CaptureOptions], CaptureServer]
MAIL = b"From: anna@example.test\r\nTo: bert@example.test\r\nSubject: one\r\n\r\n.a line with a dot\r\nend\r\n"


def send(port: int, mail: bytes = MAIL, to: str = "bert@example.test") -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=10) as client:
        assert client.sendmail("anna@example.test", [to], mail) == {}


def test_a_free_port_is_given_once() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50


def test_waiting_ends_at_its_deadline() -> None:
    with pytest.raises(NotReady, match=r"0\.05 s in vain for the moon"):
        wait_until(lambda: False, "the moon", timeout_s=0.05)


class TestCaptureServer:
    def test_it_keeps_the_bytes_and_the_envelope(self, sink: CaptureServer) -> None:
        with smtplib.SMTP("127.0.0.1", sink.port) as client:
            client.ehlo("client.example.test")
            client.mail("anna@example.test", ["BODY=8BITMIME", "SIZE=200"])
            client.rcpt("bert@example.test", ["NOTIFY=NEVER"])
            client.rcpt("carl@example.test")
            client.data(MAIL)
        message = sink.wait_for_one()
        assert message.content == MAIL
        assert (message.mail_from, message.addresses) == (
            "anna@example.test",
            ["bert@example.test", "carl@example.test"],
        )
        assert message.parameters == {"BODY": "8BITMIME", "SIZE": "200"}
        assert message.recipients[0].parameters == {"NOTIFY": "NEVER"}
        assert message.header_values("subject") == ["one"]
        assert message.session.ehlo == "client.example.test"
        assert message.objections == ()
        wait_until(lambda: message.session.closed, "the end of the session")
        assert message.session.ended_with_quit

    @pytest.mark.parametrize(
        ("content", "parameters", "objection"),
        [
            (b"Subject: x\r\n\r\na\nb\r\n", "", "a bare CR or LF in the content"),
            (b"Subject: x\r\n\r\na\rb\r\n", "", "a bare CR or LF in the content"),
            (b"Subject: x\r\n\r\n" + b"y" * 999 + b"\r\n", "", "a line of 1001 octets"),
            (b"Subject: x\r\n\r\n\xc3\xa4\r\n", "", "octets above 127 in the body without BODY=8BITMIME"),
            (b"Subject: \xc3\xa4\r\n\r\nx\r\n", "", "octets above 127 in the header without SMTPUTF8"),
            (b"Subject: x\r\n\r\nx\r\n", " SIZE=3", "SIZE=3 announced for 17 octets"),
            (b"Subject: x\r\n\r\n\0\r\n", "", "a NUL in the content"),
        ],
    )
    def test_it_objects_to_what_a_strict_server_refuses(
        self, sink: CaptureServer, content: bytes, parameters: str, objection: str
    ) -> None:
        with socket.create_connection(("127.0.0.1", sink.port), timeout=10) as client:
            lines = client.makefile("rb")
            lines.readline()
            client.sendall(
                b"HELO x\r\nMAIL FROM:<a@b.test>" + parameters.encode() + b"\r\nRCPT TO:<c@d.test>\r\nDATA\r\n"
            )
            client.sendall(content + b".\r\nQUIT\r\n")
            assert lines.read().endswith(b"221 2.0.0 bye\r\n")
        assert sink.wait_for_one().objections == (objection,)

    def test_a_lone_lf_around_the_dot_ends_nothing(self, sink: CaptureServer) -> None:
        with socket.create_connection(("127.0.0.1", sink.port), timeout=10) as client:
            client.sendall(b"HELO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<c@d.test>\r\nDATA\r\n")
            client.sendall(b"a\n.\nMAIL FROM:<e@b.test>\r\n.\nb\r\n.\r\n")
            assert sink.wait_for_one().content == b"a\n.\nMAIL FROM:<e@b.test>\r\n\nb\r\n"

    def test_it_takes_tls_and_a_password(self, start_sink: StartSink, authority: CertificateAuthority) -> None:
        sink = start_sink(CaptureOptions(tls=authority.issue(), users={"anna": "secret"}))
        with smtplib.SMTP("localhost", sink.port) as client:
            client.starttls(context=authority.client_context())
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("anna", "wrong")
            client.login("anna", "secret")
            client.sendmail("a@b.test", ["c@d.test"], MAIL)
        session = sink.wait_for_one().session
        assert (session.tls_version, session.user) == ("TLSv1.3", "anna")

    def test_it_takes_implicit_tls(self, start_sink: StartSink, authority: CertificateAuthority) -> None:
        sink = start_sink(CaptureOptions(tls=authority.issue(), implicit_tls=True))
        with smtplib.SMTP_SSL("localhost", sink.port, context=authority.client_context()) as client:
            client.sendmail("a@b.test", ["c@d.test"], MAIL)
        assert sink.wait_for_one().session.tls_version == "TLSv1.3"

    def test_it_listens_again_after_a_stop(self, sink: CaptureServer) -> None:
        send(sink.port)
        sink.stop()
        with pytest.raises(ConnectionRefusedError):
            send(sink.port)
        sink.start()
        send(sink.port)
        assert len(sink.wait_for(2)) == 2


class TestCertificates:
    @pytest.mark.parametrize(
        ("flaw", "reason"),
        [
            (Flaw.EXPIRED, "certificate has expired"),
            (Flaw.NOT_YET_VALID, "certificate is not yet valid"),
            (Flaw.WRONG_NAME, "Hostname mismatch"),
            (Flaw.SELF_SIGNED, "self-signed certificate"),
            (Flaw.CN_ONLY, "Hostname mismatch"),
            (Flaw.MISSING_INTERMEDIATE, "unable to get local issuer certificate"),
            (Flaw.WEAK_KEY, "key too (weak|small)"),
            (Flaw.UNKNOWN_AUTHORITY, "unable to get local issuer certificate"),
        ],
    )
    def test_each_flaw_is_refused_for_its_own_reason(
        self, start_sink: StartSink, authority: CertificateAuthority, flaw: Flaw, reason: str
    ) -> None:
        sink = start_sink(CaptureOptions(tls=authority.issue(flaw), implicit_tls=True))
        context = authority.client_context()
        context.hostname_checks_common_name = False
        # Distributions differ in the level they set; level 2 is what Debian sets.
        context.set_ciphers("DEFAULT:@SECLEVEL=2")
        with pytest.raises(ssl.SSLCertVerificationError, match=reason):
            smtplib.SMTP_SSL("localhost", sink.port, context=context)


class TestPostfix:
    def test_it_relays_to_another_server(self, start_postfix: StartPostfix, sink: CaptureServer) -> None:
        postfix = start_postfix(PostfixOptions(relay_to=f"127.0.0.1:{sink.port}"))
        send(postfix.port)
        message = sink.wait_for_one()
        assert message.body == MAIL.partition(b"\r\n\r\n")[2]
        assert "Postfix" in message.header_values("Received")[0]
        wait_until(lambda: not postfix.queued(), "an empty queue")
        wait_until(lambda: "status=sent" in postfix.log(), "a line in the log")

    def test_it_keeps_what_it_cannot_relay_and_tries_again_when_flushed(
        self, start_postfix: StartPostfix, sink: CaptureServer
    ) -> None:
        sink.stop()
        postfix = start_postfix(PostfixOptions(relay_to=f"127.0.0.1:{sink.port}"))
        send(postfix.port)
        wait_until(lambda: "status=deferred" in postfix.log(), "a deferred message")
        assert len(postfix.queued()) == 1
        sink.start()
        postfix.flush()
        sink.wait_for_one()

    def test_two_run_side_by_side(self, start_postfix: StartPostfix, sink: CaptureServer) -> None:
        near = start_postfix(PostfixOptions(relay_to=f"127.0.0.1:{sink.port}"))
        far = start_postfix(PostfixOptions(relay_to=f"127.0.0.1:{near.port}"))
        send(far.port)
        assert len(sink.wait_for_one().header_values("Received")) == 2

    def test_it_refuses_a_login_that_dovecot_refuses(
        self, start_postfix: StartPostfix, start_dovecot: StartDovecot, authority: CertificateAuthority
    ) -> None:
        leaf = authority.issue()
        dovecot = start_dovecot(DovecotOptions())
        postfix = start_postfix(PostfixOptions(tls=leaf, sasl=dovecot.auth_address, auth_in_clear=False))
        with smtplib.SMTP("localhost", postfix.port) as client:
            client.ehlo()
            assert "auth" not in client.esmtp_features
            client.starttls(context=authority.client_context())
            with pytest.raises(smtplib.SMTPRecipientsRefused):
                client.sendmail("anna@example.test", ["bert@example.test"], MAIL)
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("anna", "wrong")
            client.login("anna", "anna's secret")
            client.sendmail("anna@example.test", ["bert@example.test"], MAIL)
        mail = wait_until(lambda: postfix.delivered("bert"), "mail in bert's maildir")[0]
        assert mail.endswith(b"\n\n.a line with a dot\nend\n")

    @pytest.mark.parametrize("offered", [True, False])
    def test_smtputf8_can_be_left_out(self, start_postfix: StartPostfix, offered: bool) -> None:
        postfix = start_postfix(PostfixOptions(smtputf8=offered))
        with smtplib.SMTP("127.0.0.1", postfix.port) as client:
            client.ehlo()
            assert client.has_extn("smtputf8") is offered

    def test_implicit_tls_has_its_own_port(self, start_postfix: StartPostfix, authority: CertificateAuthority) -> None:
        postfix = start_postfix(PostfixOptions(tls=authority.issue()))
        assert postfix.tls_port
        with smtplib.SMTP_SSL("localhost", postfix.tls_port, context=authority.client_context()) as client:
            assert client.noop()[0] == 250


class TestDovecot:
    def test_it_shows_what_postfix_delivered(self, start_postfix: StartPostfix, start_dovecot: StartDovecot) -> None:
        postfix = start_postfix(PostfixOptions())
        dovecot = start_dovecot(DovecotOptions(mail_folder=postfix.mail_folder))
        send(postfix.port)
        wait_until(lambda: postfix.delivered("bert"), "mail in bert's maildir")
        imap = imaplib.IMAP4("127.0.0.1", dovecot.imap_port, timeout=10)
        imap.login("bert", "bert's secret")
        assert imap.select("INBOX")[1] == [b"1"]
        imap.logout()
        pop3 = poplib.POP3("127.0.0.1", dovecot.pop3_port, timeout=10)
        pop3.user("bert")
        pop3.pass_("bert's secret")
        assert pop3.stat()[0] == 1
        pop3.quit()

    def test_it_offers_tls_in_both_ways(self, start_dovecot: StartDovecot, authority: CertificateAuthority) -> None:
        dovecot = start_dovecot(DovecotOptions(tls=authority.issue(), require_tls=True))
        assert dovecot.imaps_port
        assert dovecot.pop3s_port
        with imaplib.IMAP4(dovecot.host, dovecot.imap_port, timeout=10) as imap:
            assert "LOGINDISABLED" in imap.capabilities
            imap.starttls(authority.client_context())
            imap.login("anna", "anna's secret")
        with imaplib.IMAP4_SSL(dovecot.host, dovecot.imaps_port, ssl_context=authority.client_context()) as imap:
            imap.login("anna", "anna's secret")
        pop3 = poplib.POP3_SSL(dovecot.host, dovecot.pop3s_port, context=authority.client_context(), timeout=10)
        pop3.user("anna")
        pop3.pass_("anna's secret")
        pop3.quit()


class TestPostgres:
    def test_each_test_has_a_database_of_its_own(self, postgres_server: PostgresServer, database_url: str) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute("CREATE TABLE t (a int)")
        other = postgres_server.create_database()
        with psycopg.connect(other) as connection, pytest.raises(psycopg.errors.UndefinedTable):
            connection.execute("SELECT * FROM t")
        postgres_server.drop_database(other)
        assert postgres_server.execute("SHOW fsync") == [("on",)]

    def test_a_template_is_prepared_once(self, postgres_server: PostgresServer) -> None:
        calls = []

        def prepare(url: str) -> None:
            calls.append(url)
            with psycopg.connect(url) as connection:
                connection.execute("CREATE TABLE prepared (a int)")

        for _ in range(2):
            url = postgres_server.create_database(postgres_server.template("prepared_once", prepare))
            with psycopg.connect(url) as connection:
                assert connection.execute("SELECT count(*) FROM prepared").fetchone() == (0,)
            postgres_server.drop_database(url)
        assert len(calls) == 1

    def test_it_comes_back_after_a_crash_with_what_was_committed(
        self, start_postgres: Callable[..., PostgresServer]
    ) -> None:
        server = start_postgres()
        server.execute("CREATE TABLE t (a int)")
        server.execute("INSERT INTO t VALUES (1)")
        server.stop("immediate")
        with pytest.raises(psycopg.OperationalError):
            server.execute("SELECT 1")
        server.start()
        assert server.execute("SELECT a FROM t") == [(1,)]

    def test_a_frozen_server_is_silent_until_thawed(self, start_postgres: Callable[..., PostgresServer]) -> None:
        server = start_postgres(fsync=False)
        with psycopg.connect(server.url(), autocommit=True) as connection:
            server.freeze()
            answer: Future[object] = Future()
            asker = threading.Thread(target=lambda: answer.set_result(connection.execute("SELECT 1").fetchone()))
            asker.start()
            with pytest.raises(TimeoutError):
                answer.result(0.2)
            server.thaw()
            assert answer.result(10) == (1,)
            asker.join()


class TestPosthouseProcess:
    def test_it_delivers_and_comes_back_after_a_crash(self, posthouse: PosthouseProcess, sink: CaptureServer) -> None:
        server = ("--kind", "smtp", "--host", "127.0.0.1", "--port", str(sink.port), "--tls", "none", "--default")
        assert posthouse.cli("server", "add", "office", *server)["is_default"]
        posthouse.cli("application", "add", "scanner", "--network", "127.0.0.0/8")
        send(posthouse.smtp_port)
        assert sink.wait_for_one().objections == ()
        posthouse.kill9()
        assert not posthouse.running
        posthouse.restart()
        send(posthouse.smtp_port)
        assert len(sink.wait_for(2)) == 2
        assert posthouse.request("GET", "/api/v1/servers").json()["items"][0]["name"] == "office"
        assert posthouse.terminate() == 0

    def test_a_refusal_carries_status_and_words(self, posthouse: PosthouseProcess) -> None:
        with pytest.raises(CommandFailed) as refusal:
            posthouse.cli("server", "show", "nowhere")
        assert refusal.value.status == 1
        assert posthouse.request("GET", "/api/v1/servers", token="").status == 401


def test_smtp_sink_counts(counting_sink: CountingSink) -> None:
    for _ in range(3):
        send(counting_sink.port)
    counting_sink.wait_for(3)
    counting_sink.stop()
    counting_sink.start()
    send(counting_sink.port)
    counting_sink.wait_for(4)
    assert counting_sink.count() == 4
