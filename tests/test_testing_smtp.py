"""The shipped SMTP server misbehaves as its names say, seen by Python's smtplib, by plain sockets and by swaks."""

import asyncio
import smtplib
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from posthouse.testing.smtp import MisbehavingServer, run_in_thread
from posthouse.testing.smtp_misbehaviours import (
    CATALOGUE,
    AuthOffer,
    Stage,
    Tls,
    announcing_size,
    auth,
    auth_refused,
    close_within_content,
    connections_at_most,
    greylisting,
    messages_per_connection,
    on_first,
    permanent_at,
    replies_by_recipient,
    reply_at,
    starttls,
    without,
)
from tests.support.certificates import CertificateAuthority
from tests.support.processes import program, wait_until

Start = Callable[..., MisbehavingServer]
MAIL = b"Subject: x\r\n\r\n.one\r\ntwo\r\n"
STAGES_IN_CLEAR: list[Stage] = [stage for stage in Stage if stage not in (Stage.STARTTLS, Stage.EHLO_AFTER_TLS)]


@pytest.fixture
def start(authority: CertificateAuthority) -> Iterator[Start]:
    """Give a function that starts the server with some misbehaviours, with a certificate that `authority` signed."""
    with ExitStack() as stack:
        context = authority.issue().server_context()
        yield lambda *misbehaviours, **options: stack.enter_context(
            run_in_thread(MisbehavingServer(*misbehaviours, tls=context, **options))
        )


def walk(server: MisbehavingServer, timeout_s: float = 5.0) -> list[bytes]:
    """Walk through all stages in clear, whatever is said, and give the replies as they came, up to EOF or silence."""
    steps = [
        b"EHLO me\r\n",
        b"AUTH PLAIN AGFubmEAc2VjcmV0\r\n",
        b"MAIL FROM:<a@b.test>\r\n",
        b"RCPT TO:<c@d.test>\r\n",
        b"DATA\r\n",
        MAIL + b".\r\n",
        b"RSET\r\n",
        b"QUIT\r\n",
    ]
    replies = []
    with socket.create_connection((server.host, server.port), timeout=timeout_s) as client:
        try:
            for step in [b"", *steps]:
                client.sendall(step)
                replies.append(reply_from(client))
                if replies[-1] == b"":
                    break
        except (ConnectionError, TimeoutError) as problem:
            replies.append(type(problem).__name__.encode())
    return replies


def reply_from(client: socket.socket) -> bytes:
    """Read one reply: up to a line that is not marked as followed by another."""
    reply = b""
    while not reply.endswith(b"\r\n") or reply.split(b"\r\n")[-2][3:4] == b"-":
        octets = client.recv(65536)
        if not octets:
            break
        reply += octets
    return reply


def position(stage: Stage) -> int:
    """Give where a stage's reply stands in `walk`."""
    return STAGES_IN_CLEAR.index(stage)


class TestInOrder:
    def test_it_takes_mail_and_writes_it_down(self, start: Start, authority: CertificateAuthority) -> None:
        server = start()
        with smtplib.SMTP("localhost", server.port) as client:
            client.ehlo("me")
            client.starttls(context=authority.client_context())
            client.login("anna", "secret")
            client.sendmail("a@b.test", ["c@d.test", "e@d.test"], MAIL, ["BODY=8BITMIME"], ["NOTIFY=NEVER"])
        (message,) = server.messages
        assert message.content == MAIL
        assert message.recipients == ("c@d.test", "e@d.test")
        assert "BODY=8BITMIME" in message.mail_parameters
        assert message.recipient_parameters["c@d.test"] == "NOTIFY=NEVER"
        assert message.under_tls
        assert message.accepted
        (session,) = server.sessions
        assert session.clear_lines == [b"ehlo me", b"STARTTLS"]
        assert session.tls_lines[0].startswith(b"ehlo")
        assert session.logins == [("anna", "secret")]

    def test_every_reply_in_clear_is_the_usual_one(self, start: Start) -> None:
        codes = [reply[:3] for reply in walk(start())]
        assert codes == [b"220", b"250", b"235", b"250", b"250", b"354", b"250", b"250", b"221"]

    async def test_it_is_an_async_context_manager(self) -> None:
        async with MisbehavingServer() as server:
            reader, writer = await asyncio.open_connection(server.host, server.port)
            assert (await reader.readline()).startswith(b"220")
            writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(server.host, server.port)


class TestAtEveryStage:
    @pytest.mark.parametrize("stage", STAGES_IN_CLEAR)
    def test_close(self, start: Start, stage: Stage) -> None:
        replies = walk(start(CATALOGUE[f"close_at_{stage}"]))
        assert len(replies) == position(stage) + 1
        assert replies[-1] in (b"", b"ConnectionResetError")

    @pytest.mark.parametrize("stage", STAGES_IN_CLEAR)
    def test_hang(self, start: Start, stage: Stage) -> None:
        replies = walk(start(CATALOGUE[f"hang_at_{stage}"]), timeout_s=0.2)
        assert (len(replies), replies[-1]) == (position(stage) + 1, b"TimeoutError")

    @pytest.mark.parametrize("stage", STAGES_IN_CLEAR)
    @pytest.mark.parametrize("family", ["temporary", "permanent", "shutting_down", "garbage", "non_numeric"])
    def test_a_wrong_reply(self, start: Start, family: str, stage: Stage) -> None:
        reply = walk(start(CATALOGUE[f"{family}_at_{stage}"]))[position(stage)]
        begins = {
            "temporary": b"45",
            "permanent": b"5",
            "shutting_down": b"421 4.3.2",
            "garbage": b"\x00\xff",
            "non_numeric": b"OK",
        }
        assert reply.startswith(begins[family])

    @pytest.mark.parametrize("stage", STAGES_IN_CLEAR)
    @pytest.mark.parametrize("family", ["long_line", "multi_line", "eight_bit"])
    def test_an_odd_but_right_reply(self, start: Start, family: str, stage: Stage) -> None:
        server = start(CATALOGUE[f"{family}_at_{stage}"])
        replies = walk(server)
        assert [reply[:1] for reply in replies] == [b"2", b"2", b"2", b"2", b"2", b"3", b"2", b"2", b"2"]
        odd = replies[position(stage)]
        assert {"long_line": len(odd) == 2500, "multi_line": odd.count(b"\r\n") == 40, "eight_bit": not odd.isascii()}[
            family
        ]
        assert len(server.messages) == 1

    @pytest.mark.parametrize("stage", STAGES_IN_CLEAR)
    def test_an_unfinished_reply(self, start: Start, stage: Stage) -> None:
        server = start(CATALOGUE[f"unfinished_at_{stage}"])
        assert walk(server, timeout_s=0.2)[-1] == b"TimeoutError"

    def test_a_connection_lost_before_the_last_reply_has_taken_the_message(self, start: Start) -> None:
        server = start(CATALOGUE["close_at_dot"])
        with smtplib.SMTP("127.0.0.1", server.port) as client, pytest.raises(smtplib.SMTPServerDisconnected):
            client.sendmail("a@b.test", ["c@d.test"], MAIL)
        (message,) = server.messages
        assert message.content == MAIL
        assert not message.accepted

    def test_a_connection_lost_within_the_content_has_not(self, start: Start) -> None:
        server = start(close_within_content(10))
        with smtplib.SMTP("127.0.0.1", server.port) as client, pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
            client.sendmail("a@b.test", ["c@d.test"], MAIL)
        assert server.messages == []

    def test_any_text_can_be_the_reply(self, start: Start) -> None:
        server = start(reply_at(Stage.MAIL, "550 5.7.60 SMTP; Client\n5.7.60 does not have permissions"))
        with smtplib.SMTP("127.0.0.1", server.port) as client:
            client.ehlo()
            code, text = client.mail("a@b.test")
        assert (code, text) == (550, b"5.7.60 SMTP; Client\n5.7.60 does not have permissions")


class TestStartTls:
    @pytest.mark.parametrize("what", [Tls.NOT_OFFERED, Tls.STRIPPED])
    def test_it_is_not_offered(self, start: Start, what: Tls) -> None:
        with smtplib.SMTP("127.0.0.1", start(starttls(what)).port) as client:
            client.ehlo()
            assert not client.has_extn("starttls")
            assert client.has_extn("xxxxxxxa") is (what is Tls.STRIPPED)
            assert client.docmd("STARTTLS")[0] == 502

    def test_it_is_refused(self, start: Start) -> None:
        with smtplib.SMTP("127.0.0.1", start(starttls(Tls.REFUSED)).port) as client:
            client.ehlo()
            assert client.docmd("STARTTLS") == (454, b"4.7.0 TLS not available")

    @pytest.mark.parametrize("what", [Tls.THEN_GARBAGE, Tls.THEN_CLOSE])
    def test_the_handshake_fails(self, start: Start, authority: CertificateAuthority, what: Tls) -> None:
        with smtplib.SMTP("localhost", start(starttls(what)).port) as client, pytest.raises(OSError):
            client.starttls(context=authority.client_context())

    def test_a_reply_is_injected_before_the_handshake(self, start: Start) -> None:
        server = start(starttls(Tls.INJECTS_REPLY))
        with socket.create_connection((server.host, server.port), timeout=5) as client:
            reply_from(client)
            client.sendall(b"EHLO me\r\n")
            reply_from(client)
            client.sendall(b"STARTTLS\r\n")
            seen = client.recv(1000)
            assert seen.startswith(b"220 ")
            assert b"\r\n250-" in seen
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            context.wrap_socket(client).close()
        wait_until(lambda: server.sessions[0].closed, "the end of the session")
        assert server.sessions[0].tls_version == "TLSv1.3"

    def test_a_stage_under_tls_can_misbehave_alone(self, start: Start, authority: CertificateAuthority) -> None:
        server = start(CATALOGUE["close_at_ehlo_after_tls"])
        with smtplib.SMTP("localhost", server.port) as client:
            client.starttls(context=authority.client_context())
            with pytest.raises(smtplib.SMTPServerDisconnected):
                client.ehlo()


class TestAuth:
    @pytest.mark.parametrize(
        ("when", "in_clear", "under_tls"),
        [
            (AuthOffer.ALWAYS, True, True),
            (AuthOffer.AFTER_TLS, False, True),
            (AuthOffer.BEFORE_TLS, True, False),
            (AuthOffer.NEVER, False, False),
        ],
    )
    def test_it_is_offered_at_its_times(
        self, start: Start, authority: CertificateAuthority, when: AuthOffer, in_clear: bool, under_tls: bool
    ) -> None:
        with smtplib.SMTP("localhost", start(auth(when)).port) as client:
            client.ehlo()
            assert client.has_extn("auth") is in_clear
            client.starttls(context=authority.client_context())
            client.ehlo()
            assert client.has_extn("auth") is under_tls

    @pytest.mark.parametrize("reply", ["535 5.7.8 No", "454 4.7.0 Wait", "534 5.7.9 Too weak"])
    def test_it_is_refused_with_the_text_given(self, start: Start, reply: str) -> None:
        server = start(auth_refused(reply), auth(AuthOffer.ALWAYS, "PLAIN"))
        with smtplib.SMTP("127.0.0.1", server.port) as client:
            with pytest.raises(smtplib.SMTPAuthenticationError) as problem:
                client.login("anna", "secret")
            assert f"{problem.value.smtp_code} {bytes(problem.value.smtp_error).decode()}" == reply  # type: ignore[arg-type]
        assert server.sessions[0].logins == [("anna", "secret")]

    def test_credentials_are_repeated_in_the_reply(self, start: Start) -> None:
        server = start(CATALOGUE["echoing_credentials"], auth(AuthOffer.ALWAYS, "LOGIN"))
        refused = pytest.raises(smtplib.SMTPAuthenticationError, match="anna plain-secret")
        with smtplib.SMTP("127.0.0.1", server.port) as client, refused:
            client.login("anna", "plain-secret")


class TestRecipientsAndLimits:
    def test_recipients_get_their_own_replies(self, start: Start) -> None:
        server = start(replies_by_recipient({"no@d.test": "550 5.1.1 Unknown", "later@d.test": "452 4.2.2 Full"}))
        with smtplib.SMTP("127.0.0.1", server.port) as client:
            refused = client.sendmail("a@b.test", ["yes@d.test", "no@d.test", "later@d.test"], MAIL)
        assert {address: code for address, (code, _) in refused.items()} == {"no@d.test": 550, "later@d.test": 452}
        assert server.messages[0].recipients == ("yes@d.test",)

    def test_greylisting_takes_the_second_try_of_each_triple(self, start: Start) -> None:
        server = start(greylisting())
        with smtplib.SMTP("127.0.0.1", server.port) as client:
            for recipient in ("c@d.test", "e@d.test"):
                with pytest.raises(smtplib.SMTPRecipientsRefused):
                    client.sendmail("a@b.test", [recipient], MAIL)
                assert client.sendmail("a@b.test", [recipient], MAIL) == {}
        assert len(server.messages) == 2

    def test_size_is_announced_and_kept_to(self, start: Start) -> None:
        with smtplib.SMTP("127.0.0.1", start(announcing_size(100)).port) as client:
            client.ehlo()
            assert client.esmtp_features["size"] == "100"
            assert client.mail("a@b.test", ["SIZE=101"])[0] == 552
            client.mail("a@b.test")
            client.rcpt("c@d.test")
            assert client.data(b"x\r\n" * 50)[0] == 552

    def test_extensions_can_be_missing(self, start: Start) -> None:
        with smtplib.SMTP("127.0.0.1", start(without("PIPELINING", "SMTPUTF8", "SIZE")).port) as client:
            client.ehlo()
            assert not any(client.has_extn(name) for name in ("pipelining", "smtputf8", "size"))
            assert client.has_extn("8bitmime")

    def test_a_connection_takes_some_messages_only(self, start: Start) -> None:
        server = start(messages_per_connection(2))
        with smtplib.SMTP("127.0.0.1", server.port) as client:
            for _ in range(2):
                client.sendmail("a@b.test", ["c@d.test"], MAIL)
            assert client.mail("a@b.test")[0] == 421
        assert len(server.messages) == 2

    def test_only_so_many_connections_stand(self, start: Start) -> None:
        server = start(connections_at_most(1))
        with smtplib.SMTP("127.0.0.1", server.port):
            with pytest.raises(smtplib.SMTPConnectError) as problem:
                smtplib.SMTP("127.0.0.1", server.port)
            assert problem.value.smtp_code == 421
        wait_until(lambda: server.open_connections == 0, "the end of the sessions")
        smtplib.SMTP("127.0.0.1", server.port).quit()

    def test_it_can_misbehave_at_first_only_and_change(self, start: Start) -> None:
        server = start(on_first(1, permanent_at(Stage.MAIL)))

        def code() -> int:
            with smtplib.SMTP("127.0.0.1", server.port) as client:
                client.ehlo()
                return client.mail("a@b.test")[0]

        assert (code(), code()) == (550, 250)
        server.misbehave(CATALOGUE["temporary_at_mail"])
        assert code() == 451
        server.misbehave()
        assert code() == 250

    def test_slow_waits_before_each_reply(self, start: Start) -> None:
        server = start(*[CATALOGUE["slow"]])
        with socket.create_connection((server.host, server.port), timeout=0.2) as client, pytest.raises(TimeoutError):
            client.recv(1)


class TestCommand:
    def test_swaks_meets_what_was_asked_for(self, programs: None) -> None:
        with command(
            "--port", "0", "--misbehave", "starttls_not_offered", "--recipient", "no@d.test=550 5.1.1 Nobody"
        ) as port:
            done = swaks(port, "no@d.test")
        assert done.returncode == 24  # swaks: no recipient was taken
        assert "550 5.1.1 Nobody" in done.stdout
        assert "STARTTLS" not in done.stdout

    def test_swaks_sends_under_tls_with_a_login(self, programs: None) -> None:
        with command("--port", "0") as port:
            done = swaks(port, "yes@d.test", "-tls", "-au", "anna", "-ap", "secret", "-a", "PLAIN")
        assert done.returncode == 0, done.stdout
        assert "250 2.0.0 Taken" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [(["--misbehave", "badly"], "invalid choice"), (["--reply", "lunch=250 ok"], "the stages are")],
    )
    def test_wrong_words_are_refused_with_the_right_ones(self, arguments: list[str], words: str) -> None:
        done = subprocess.run(_arguments(*arguments), capture_output=True, text=True, timeout=20)
        assert done.returncode == 2
        assert words in done.stderr

    def test_it_lists_its_names(self) -> None:
        done = subprocess.run(_arguments("--list"), capture_output=True, text=True, timeout=20)
        assert done.stdout.split() == list(CATALOGUE)


def _arguments(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "posthouse.testing.smtp", *arguments]


class command:
    """Runs the command and gives the port that it prints."""

    def __init__(self, *arguments: str) -> None:
        self._process = subprocess.Popen(_arguments(*arguments), stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline().rsplit(":", 1)[1])

    def __exit__(self, *exc_info: object) -> None:
        self._process.terminate()
        self._process.communicate(timeout=10)


def swaks(port: int, to: str, *options: str) -> "subprocess.CompletedProcess[str]":
    envelope = ["--server", "127.0.0.1", "--port", str(port), "--from", "a@b.test", "--to", to]
    return subprocess.run([program("swaks"), *envelope, *options], capture_output=True, text=True, timeout=30)


def test_each_name_of_the_catalogue_changes_the_rules() -> None:
    from posthouse.testing.smtp_misbehaviours import Rules

    in_order = {"starttls_offered", "auth_always"}
    unchanged = {name for name, change in CATALOGUE.items() if change(Rules()) == Rules()}
    assert unchanged == in_order
