"""The client's dialogues against scripts: every byte that is sent, and what each reply makes of each recipient."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from posthouse.model.auth import Mechanism, PasswordAuth
from posthouse.model.message import Envelope, EnvelopeRecipient
from posthouse.model.outcome import Outcome, Reply, Result, Scope, Stage
from posthouse.protocol.faults import DeliveryFault
from posthouse.protocol.sasl import OAuthBearer, XOAuth2
from posthouse.protocol.smtp_client import (
    SINGLE_WRITE_OCTETS,
    Capabilities,
    DotStuffer,
    Send,
    SignedIn,
    Transaction,
    Unsafe,
    authenticate,
    ehlo,
    greeting,
    mail_command,
    parse_capabilities,
    path,
    rcpt_command,
    sign_in,
    starttls,
    transaction,
    xtext,
)
from tests.protocol.dialogues import BODY, HEADER, WIRE, Lost, Message, envelope, play

STEPWISE = Capabilities(esmtp=True)
PIPELINED = Capabilities(esmtp=True, pipelining=True)
MAIL = b"MAIL FROM:<from@example.org>\r\n"
A, B, C = (b"RCPT TO:<%c@example.net>\r\n" % letter for letter in b"abc")
GROUP = MAIL + A + B + b"DATA\r\n"
THREE = envelope("a@example.net", "b@example.net", "c@example.net")
TWO = envelope("a@example.net", "b@example.net")
ONE = envelope("a@example.net")


def results(done: Transaction) -> list[tuple[Result, Scope, str]]:
    return [(outcome.result, outcome.scope, outcome.cause) for outcome in done.outcomes]


DELIVERED = (Result.DELIVERED, Scope.NOBODY, "reply")
LATER = (Result.DEFERRED, Scope.RECIPIENT, "reply")
GONE = (Result.REJECTED, Scope.RECIPIENT, "reply")
LOST = (Result.DEFERRED, Scope.CONNECTION, "closed")
UNCERTAIN = (Result.UNCERTAIN, Scope.CONNECTION, "closed")


# --- opening


def test_a_greeting_of_220_is_taken() -> None:
    assert play(greeting(), (b"", "220 mail.example.org ESMTP")).code == 220


@pytest.mark.parametrize("reply", ["554 No SMTP here", "421 4.3.2 Busy", "521 5.3.2 Never", "450 Wait", "250 Hello"])
def test_any_other_greeting_is_the_servers_fault_and_costs_no_mail(reply: str) -> None:
    with pytest.raises(DeliveryFault) as raised:
        play(greeting(), (b"", reply))
    assert (raised.value.stage, raised.value.result) == (Stage.GREETING, Result.DEFERRED)
    assert raised.value.scope in (Scope.SERVER, Scope.NOBODY)
    assert raised.value.reply is not None


def test_ehlo_reads_what_is_offered() -> None:
    offered = play(
        ehlo("me.example.org"),
        (
            b"EHLO me.example.org\r\n",
            "250-mail.example.org at your service\n250-SIZE 35882577\n250-8BITMIME\n250-AUTH PLAIN login XOAUTH2\n"
            "250-AUTH=CRAM-MD5\n250-STARTTLS\n250-pipelining\n250-DSN\n250-SMTPUTF8\n250-CHUNKING\n"
            "250-LIMITS RCPTMAX=20 MAILMAX=5 NEWMAX=1 RCPTDOMAINMAX=0\n250-X-UNKNOWN y\n250 ENHANCEDSTATUSCODES",
        ),
    )
    assert offered.name == "mail.example.org"
    assert offered.size == 35882577
    assert offered.auth == {"PLAIN", "LOGIN", "XOAUTH2", "CRAM-MD5"}
    assert offered.pipelining and offered.dsn and offered.smtputf8 and offered.chunking and offered.starttls
    assert offered.eight_bit and offered.enhanced and offered.esmtp
    assert dict(offered.limits) == {"RCPTMAX": 20, "MAILMAX": 5}
    assert "X-UNKNOWN y" in offered.lines


@pytest.mark.parametrize(
    ("line", "size"), [("SIZE", 0), ("SIZE 0", 0), ("SIZE 100", 100), ("SIZE x", 0), ("SIZE 9" + "9" * 40, 0)]
)
def test_a_size_that_cannot_be_read_is_no_limit(line: str, size: int) -> None:
    assert parse_capabilities(Reply(250, "", f"host\n{line}")).size == size


@pytest.mark.parametrize("code", [500, 502])
def test_a_server_without_ehlo_is_greeted_with_helo(code: int) -> None:
    offered = play(ehlo("me.org"), (b"EHLO me.org\r\n", f"{code} What?"), (b"HELO me.org\r\n", "250 old.example.org"))
    assert not offered.esmtp and not offered.pipelining and offered.size is None


def test_a_refused_ehlo_is_a_fault() -> None:
    with pytest.raises(DeliveryFault) as raised:
        play(ehlo("me.org"), (b"EHLO me.org\r\n", "550 5.7.1 Not you"))
    assert (raised.value.stage, raised.value.scope) == (Stage.CAPABILITY, Scope.SERVER)


@pytest.mark.parametrize("name", ["a\r\nMAIL FROM:<x>", "a b", "", "\0", "ä", "a>", "x" * 300])
def test_an_ehlo_name_that_could_inject_is_refused_before_a_byte_is_written(name: str) -> None:
    with pytest.raises(DeliveryFault) as raised:
        next(ehlo(name))
    assert raised.value.cause == "ehlo-name-unusable"


def test_a_refused_starttls_is_a_fault() -> None:
    with pytest.raises(DeliveryFault) as raised:
        play(starttls(), (b"STARTTLS\r\n", "454 4.7.0 TLS not available"))
    assert (raised.value.cause, raised.value.scope) == ("starttls-refused", Scope.SERVER)


# --- signing in


def auth(mechanism: Mechanism = Mechanism.AUTO, password: str = "pässword") -> PasswordAuth:
    return PasswordAuth(username="user", password=SecretStr(password), mechanism=mechanism)


def b64(text: str | bytes) -> bytes:
    return base64.b64encode(text.encode() if isinstance(text, str) else text)


PLAIN = b"AUTH PLAIN " + b64("\0user\0pässword") + b"\r\n"
LOGIN = ((b"AUTH LOGIN\r\n", "334 VXNlcm5hbWU6"), (b64("user") + b"\r\n", "334 UGFzc3dvcmQ6"))
SIGN_INS: dict[str, tuple[Mechanism, str, tuple[tuple[bytes, str], ...], str]] = {
    "PLAIN": (Mechanism.PLAIN, "PLAIN LOGIN", ((PLAIN, "235 2.7.0 Ok"),), "PLAIN"),
    "PLAIN asked for again": (
        Mechanism.PLAIN,
        "PLAIN",
        ((PLAIN, "334 "), (b64("\0user\0pässword") + b"\r\n", "235 Ok")),
        "PLAIN",
    ),
    "LOGIN": (Mechanism.LOGIN, "PLAIN LOGIN", (*LOGIN, (b64("pässword") + b"\r\n", "235 Ok")), "LOGIN"),
    "automatic takes PLAIN before LOGIN": (Mechanism.AUTO, "LOGIN PLAIN", ((PLAIN, "235 Ok"),), "PLAIN"),
    "automatic goes on after 504": (
        Mechanism.AUTO,
        "LOGIN PLAIN",
        ((PLAIN, "504 5.5.4 Unrecognized"), *LOGIN, (b64("pässword") + b"\r\n", "235 Ok")),
        "LOGIN",
    ),
    "automatic goes on after a refused mechanism": (
        Mechanism.AUTO,
        "LOGIN PLAIN",
        ((PLAIN, "535 5.7.8 no mechanism available"), *LOGIN, (b64("pässword") + b"\r\n", "235 Ok")),
        "LOGIN",
    ),
}


@pytest.mark.parametrize("name", SIGN_INS)
def test_a_password_signs_in(name: str) -> None:
    mechanism, offered, script, used = SIGN_INS[name]
    capabilities = Capabilities(auth=frozenset(offered.split()))
    done = play(authenticate(auth(mechanism), capabilities, is_encrypted=True, allow_cleartext=False), *script)
    assert isinstance(done, SignedIn)
    assert done.mechanism == used


def test_cram_md5_gives_the_digest_of_rfc_2195() -> None:
    value = PasswordAuth(username="tim", password=SecretStr("tanstaaftanstaaf"), mechanism=Mechanism.AUTO)
    capabilities = Capabilities(auth=frozenset({"CRAM-MD5", "PLAIN"}))
    done = play(
        authenticate(value, capabilities, is_encrypted=True, allow_cleartext=False),
        (b"AUTH CRAM-MD5\r\n", "334 PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+"),
        (b"dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw\r\n", "235 Ok"),
    )
    assert done.mechanism == "CRAM-MD5"


@pytest.mark.parametrize(
    ("reply", "cause", "scope"),
    [
        ("535 5.7.8 Username and Password not accepted", "auth-failed", Scope.ACCOUNT),
        ("535 5.7.3 Authentication unsuccessful", "auth-failed", Scope.ACCOUNT),
        ("534 5.7.9 Authentication mechanism is too weak", "auth-failed", Scope.ACCOUNT),
        (
            "550 5.7.30 Basic authentication is not supported for Client Submission.",
            "basic-auth-retired",
            Scope.ACCOUNT,
        ),
        ("454 4.7.0 Temporary authentication failure", "reply", Scope.SERVER),
        ("421 4.3.0 Temporary problem", "reply", Scope.SERVER),
        ("454 4.7.0 Too many login attempts, please try again later", "too-many-sign-ins", Scope.THROTTLE),
    ],
)
def test_a_refused_password_is_never_tried_with_another_mechanism(reply: str, cause: str, scope: Scope) -> None:
    capabilities = Capabilities(auth=frozenset({"LOGIN", "PLAIN"}))
    with pytest.raises(DeliveryFault) as raised:
        play(authenticate(auth(), capabilities, is_encrypted=True, allow_cleartext=False), (PLAIN, reply))
    fault = raised.value
    assert (fault.cause, fault.scope, fault.result) == (cause, scope, Result.DEFERRED)
    assert fault.stage is Stage.AUTHENTICATE


NO_SIGN_IN: dict[str, tuple[PasswordAuth, str, bool, str]] = {
    "clear text": (auth(), "PLAIN", False, "auth-cleartext-forbidden"),
    "clear text, even with a digest": (auth(), "CRAM-MD5", False, "auth-cleartext-forbidden"),
    "not offered": (auth(), "", True, "auth-not-offered"),
    "none of ours": (auth(), "GSSAPI XOAUTH2", True, "mechanism-not-offered"),
    "not the one that was chosen": (auth(Mechanism.CRAM_MD5), "PLAIN LOGIN", True, "mechanism-not-offered"),
    "no password": (PasswordAuth(username="user"), "PLAIN", True, "password-missing"),
    "NUL": (auth(password="a\0b"), "PLAIN", True, "password-unusable"),
}


@pytest.mark.parametrize("name", NO_SIGN_IN)
def test_without_a_way_to_sign_in_not_a_byte_is_sent(name: str) -> None:
    value, offered, is_encrypted, cause = NO_SIGN_IN[name]
    dialogue = authenticate(
        value, Capabilities(auth=frozenset(offered.split())), is_encrypted=is_encrypted, allow_cleartext=False
    )
    with pytest.raises(DeliveryFault) as raised:
        next(dialogue)
    assert raised.value.cause == cause


def test_clear_text_is_used_only_where_it_is_allowed() -> None:
    dialogue = authenticate(auth(), Capabilities(auth=frozenset({"PLAIN"})), is_encrypted=False, allow_cleartext=True)
    assert next(dialogue).secret  # type: ignore[union-attr]


def test_what_is_secret_is_marked() -> None:
    dialogue = authenticate(
        auth(Mechanism.LOGIN), Capabilities(auth=frozenset({"LOGIN"})), is_encrypted=True, allow_cleartext=False
    )
    steps = [next(dialogue), dialogue.send([Reply(334, "", "")]), dialogue.send([Reply(334, "", "")])]
    assert [step.secret for step in steps if isinstance(step, Send)] == [False, True, True]


def test_a_line_password_longer_than_a_command_goes_by_itself() -> None:
    password = "x" * 600
    done = play(
        authenticate(
            auth(Mechanism.PLAIN, password),
            Capabilities(auth=frozenset({"PLAIN"})),
            is_encrypted=True,
            allow_cleartext=False,
        ),
        (b"AUTH PLAIN\r\n", "334 "),
        (b64(f"\0user\0{password}") + b"\r\n", "235 Ok"),
    )
    assert done.mechanism == "PLAIN"


@pytest.mark.parametrize(
    ("mechanism", "script"),
    [
        (Mechanism.LOGIN, [(b"AUTH LOGIN\r\n", "334 not base64!"), (b"*\r\n", "501 Cancelled")]),
        (Mechanism.CRAM_MD5, [(b"AUTH CRAM-MD5\r\n", "334 "), (b"*\r\n", "501 Cancelled")]),
        (
            Mechanism.LOGIN,
            [*LOGIN, (b64("pässword") + b"\r\n", "334 VGhlbj8="), (b"*\r\n", "501 Cancelled")],
        ),
    ],
)
def test_a_senseless_challenge_ends_the_sign_in(mechanism: Mechanism, script: list[tuple[bytes, str]]) -> None:
    dialogue = authenticate(
        auth(mechanism), Capabilities(auth=frozenset({mechanism.value})), is_encrypted=True, allow_cleartext=False
    )
    with pytest.raises(DeliveryFault) as raised:
        play(dialogue, *script)
    assert raised.value.cause == "auth-garbled"


def test_a_refused_token_is_answered_and_its_status_kept() -> None:
    error = b64('{"status":"400","schemes":"Bearer","scope":"https://mail.google.com/"}').decode()
    exchange = XOAuth2("robot@example.com", "TESTTOKEN")
    first = b"AUTH XOAUTH2 dXNlcj1yb2JvdEBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciBURVNUVE9LRU4BAQ==\r\n"
    with pytest.raises(DeliveryFault) as raised:
        play(sign_in([exchange]), (first, f"334 {error}"), (b"\r\n", "535 5.7.8 Not accepted"))
    assert raised.value.cause == "auth-failed"
    assert "400" in raised.value.detail and exchange.error["schemes"] == "Bearer"


def test_oauthbearer_answers_its_error_with_one_octet() -> None:
    exchange = OAuthBearer("robot@example.com", "T" * 600)
    token = b64(exchange.initial()) + b"\r\n"
    with pytest.raises(DeliveryFault):
        play(
            sign_in([exchange]),
            (b"AUTH OAUTHBEARER\r\n", "334 "),
            (token, "334 " + b64('{"status":"invalid_token"}').decode()),
            (b"AQ==\r\n", "535 5.7.8 No"),
        )
    assert exchange.error == {"status": "invalid_token"}


# --- transactions


def test_without_pipelining_each_command_waits_for_its_reply() -> None:
    done = play(
        transaction(TWO, Message(), STEPWISE),
        (MAIL, "250 2.1.0 Ok"),
        (A, "250 2.1.5 Ok"),
        (B, "250 2.1.5 Ok"),
        (b"DATA\r\n", "354 Go"),
        (WIRE, "250 2.0.0 Queued as 1"),
    )
    assert results(done) == [DELIVERED, DELIVERED] and done.is_usable
    assert done.outcomes[0].reply == Reply(250, "2.0.0", "Queued as 1")


def test_with_pipelining_the_envelope_is_one_write() -> None:
    done = play(transaction(TWO, Message(), PIPELINED), (GROUP, "250 Ok\n250 Ok\n250 Ok\n354 Go"), (WIRE, "250 Queued"))
    assert results(done) == [DELIVERED, DELIVERED] and done.is_usable


# How each refusal looks, as seen by recipients a and b: the same with and without pipelining.
REPLIES: dict[str, tuple[list[str], list[tuple[Result, Scope, str]]]] = {
    "one recipient refused": (["250 Ok", "550 5.1.1 Unknown", "250 Ok", "354 Go", "250 Ok"], [GONE, DELIVERED]),
    "one recipient deferred": (["250 Ok", "250 Ok", "450 4.2.1 Busy", "354 Go", "250 Ok"], [DELIVERED, LATER]),
    "greylisted": (
        ["250 Ok", "451 4.7.1 Greylisted, try again in 5 minutes", "250 Ok", "354 Go", "250 Ok"],
        [(Result.DEFERRED, Scope.RECIPIENT, "greylisted"), DELIVERED],
    ),
    "552 at RCPT is temporary": (["250 Ok", "552 Too much", "250 Ok", "354 Go", "250 Ok"], [LATER, DELIVERED]),
    "forwarded": (["250 Ok", "251 Will forward", "252 Cannot VRFY", "354 Go", "250 Ok"], [DELIVERED, DELIVERED]),
    "too many recipients": (
        ["250 Ok", "250 Ok", "452 4.5.3 Too many recipients", "354 Go", "250 Ok"],
        [DELIVERED, (Result.DEFERRED, Scope.RECIPIENT, "too-many-recipients")],
    ),
    "452 without a word": (
        ["250 Ok", "250 Ok", "452 Later", "354 Go", "250 Ok"],
        [DELIVERED, (Result.DEFERRED, Scope.RECIPIENT, "too-many-recipients")],
    ),
    "452 for a full mailbox": (["250 Ok", "250 Ok", "452 4.2.2 Full", "354 Go", "250 Ok"], [DELIVERED, LATER]),
    "content refused": (
        ["250 Ok", "250 Ok", "250 Ok", "354 Go", "554 5.7.1 Spam"],
        [(Result.REJECTED, Scope.MESSAGE, "reply")] * 2,
    ),
    "content deferred": (
        ["250 Ok", "250 Ok", "250 Ok", "354 Go", "451 4.3.0 Later"],
        [(Result.DEFERRED, Scope.MESSAGE, "reply")] * 2,
    ),
    "quota dressed as permanent": (
        ["250 Ok", "250 Ok", "250 Ok", "354 Go", "550 5.4.5 Daily user sending limit exceeded."],
        [(Result.DEFERRED, Scope.THROTTLE, "daily-quota")] * 2,
    ),
}


@pytest.mark.parametrize("name", REPLIES)
def test_every_recipient_gets_its_outcome(name: str) -> None:
    replies, expected = REPLIES[name]
    pipelined = play(transaction(TWO, Message(), PIPELINED), (GROUP, "\n".join(replies[:4])), (WIRE, replies[4]))
    stepwise = play(
        transaction(TWO, Message(), STEPWISE),
        *zip((MAIL, A, B, b"DATA\r\n", WIRE), replies, strict=True),
    )
    assert results(pipelined) == results(stepwise) == expected
    assert pipelined.is_usable and stepwise.is_usable


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("550 5.7.60 Not allowed to send as", (Result.REJECTED, Scope.MESSAGE, "reply")),
        ("451 4.3.0 Later", (Result.DEFERRED, Scope.SERVER, "server-trouble")),
        ("450 4.7.1 Later", (Result.DEFERRED, Scope.MESSAGE, "reply")),
        ("530 5.7.57 Client not authenticated", (Result.DEFERRED, Scope.ACCOUNT, "auth-required")),
        ("503 5.5.1 Nested MAIL", (Result.DEFERRED, Scope.CONNECTION, "out-of-step")),
    ],
)
def test_a_refused_sender_counts_for_all_recipients(reply: str, expected: tuple[Result, Scope, str]) -> None:
    pipelined = play(transaction(TWO, Message(), PIPELINED), (GROUP, f"{reply}\n503 No\n503 No\n503 No"))
    stepwise = play(transaction(TWO, Message(), STEPWISE), (MAIL, reply))
    assert results(pipelined) == results(stepwise) == [expected] * 2
    assert pipelined.is_usable and stepwise.is_usable


def test_a_354_after_a_refused_sender_ends_the_connection() -> None:
    done = play(transaction(TWO, Message(), PIPELINED), (GROUP, "550 5.7.1 No\n250 Ok\n250 Ok\n354 Go"))
    assert results(done) == [(Result.REJECTED, Scope.MESSAGE, "reply")] * 2
    assert not done.is_usable


def test_a_354_though_no_recipient_was_taken_is_answered_with_a_lone_dot() -> None:
    done = play(
        transaction(TWO, Message(), PIPELINED),
        (GROUP, "250 Ok\n550 5.1.1 No\n450 Later\n354 Go"),
        (b".\r\n", "554 5.5.1 No valid recipients"),
    )
    assert results(done) == [GONE, LATER] and done.is_usable


@pytest.mark.parametrize("capabilities", [STEPWISE, PIPELINED])
def test_where_no_recipient_was_taken_the_transaction_is_reset(capabilities: Capabilities) -> None:
    script: list[tuple[bytes, str]] = [(MAIL, "250 Ok"), (A, "550 5.1.1 No"), (B, "450 Later")]
    if capabilities.pipelining:
        script = [(GROUP, "250 Ok\n550 5.1.1 No\n450 Later\n554 5.5.1 No valid recipients")]
    done = play(transaction(TWO, Message(), capabilities), *script, (b"RSET\r\n", "250 Ok"))
    assert results(done) == [GONE, LATER] and done.is_usable


@pytest.mark.parametrize("answer", ["500 What?", Lost()])
def test_outcomes_stand_whatever_rset_brings(answer: str | Lost) -> None:
    done = play(transaction(ONE, Message(), STEPWISE), (MAIL, "250 Ok"), (A, "550 5.1.1 No"), (b"RSET\r\n", answer))
    assert results(done) == [GONE] and not done.is_usable


@pytest.mark.parametrize("capabilities", [STEPWISE, PIPELINED])
@pytest.mark.parametrize("code", [451, 554])
def test_a_refused_data_counts_for_the_accepted_recipients(capabilities: Capabilities, code: int) -> None:
    data = f"{code} Not now"
    script: list[tuple[bytes, str]] = [(MAIL, "250 Ok"), (A, "250 Ok"), (B, "550 5.1.1 No"), (b"DATA\r\n", data)]
    if capabilities.pipelining:
        script = [(GROUP, f"250 Ok\n250 Ok\n550 5.1.1 No\n{data}")]
    done = play(transaction(TWO, Message(), capabilities), *script, (b"RSET\r\n", "250 Ok"))
    result = Result.DEFERRED if code == 451 else Result.REJECTED
    assert results(done) == [(result, Scope.MESSAGE, "reply"), GONE] and done.is_usable


def test_a_250_in_the_place_of_354_delivers_nothing() -> None:
    done = play(transaction(ONE, Message(), STEPWISE), (MAIL, "250 Ok"), (A, "250 Ok"), (b"DATA\r\n", "250 Ok"))
    assert results(done) == [(Result.DEFERRED, Scope.CONNECTION, "out-of-step")]
    assert not done.is_usable


# --- parameters


FULL = Capabilities(esmtp=True, size=0, eight_bit=True, smtputf8=True, dsn=True)


def first_lines(message: Envelope, capabilities: Capabilities, **options: bool) -> tuple[bytes, bytes]:
    """Give the MAIL and the first RCPT of a transaction."""
    dialogue = transaction(message, Message(), capabilities, **options)  # type: ignore[arg-type]
    mail = next(dialogue)
    rcpt = dialogue.send([Reply(250, "", "Ok")])
    assert isinstance(mail, Send) and isinstance(rcpt, Send)
    return mail.data, rcpt.data


SIZE = len(HEADER) + len(BODY)


def test_size_is_told_where_it_is_offered() -> None:
    assert first_lines(ONE, Capabilities(size=1000))[0] == b"MAIL FROM:<from@example.org> SIZE=%d\r\n" % SIZE
    assert first_lines(ONE, STEPWISE)[0] == MAIL


def test_8bitmime_is_asked_for_only_where_the_body_needs_it() -> None:
    assert b"BODY" not in first_lines(ONE, FULL)[0]
    assert b" BODY=8BITMIME" in first_lines(ONE, FULL, eight_bit=True)[0]


def test_smtputf8_is_asked_for_only_where_it_is_needed() -> None:
    assert b"SMTPUTF8" not in first_lines(ONE, FULL)[0]
    assert b" BODY=8BITMIME SMTPUTF8" in first_lines(ONE, FULL, utf8_header=True)[0]
    mail, rcpt = first_lines(envelope("jörg@exämple.org"), FULL)
    assert b" SMTPUTF8" in mail and rcpt == "RCPT TO:<jörg@exämple.org>\r\n".encode()


def test_an_international_domain_becomes_a_labels_where_smtputf8_is_missing() -> None:
    mail, rcpt = first_lines(envelope("joe@exämple.org", mail_from="me@exämple.org"), STEPWISE)
    assert (mail, rcpt) == (b"MAIL FROM:<me@xn--exmple-cua.org>\r\n", b"RCPT TO:<joe@xn--exmple-cua.org>\r\n")


def test_a_recipient_that_needs_smtputf8_is_rejected_alone() -> None:
    done = play(
        transaction(envelope("jörg@example.net", "a@example.net"), Message(), STEPWISE),
        (MAIL, "250 Ok"),
        (A, "250 Ok"),
        (b"DATA\r\n", "354 Go"),
        (WIRE, "250 Ok"),
    )
    assert results(done) == [(Result.REJECTED, Scope.RECIPIENT, "smtputf8-missing"), DELIVERED]
    assert done.outcomes[0].reply is not None and done.outcomes[0].reply.enhanced == "5.6.7"


@pytest.mark.parametrize("case", ["sender", "header"])
def test_a_message_that_needs_smtputf8_is_rejected_before_a_byte_is_sent(case: str) -> None:
    message = envelope("a@example.net", mail_from="jörg@example.org") if case == "sender" else ONE
    done = play(transaction(message, Message(), STEPWISE, utf8_header=case == "header"))
    assert results(done) == [(Result.REJECTED, Scope.MESSAGE, "smtputf8-missing")] and done.is_usable
    assert done.outcomes[0].reply is not None and done.outcomes[0].reply.enhanced == "5.6.7"


def test_utf8_goes_without_its_parameter_where_the_server_is_known_to_take_it() -> None:
    mail, rcpt = first_lines(envelope("jörg@example.org"), STEPWISE, assume_utf8=True)
    assert mail == MAIL and rcpt == "RCPT TO:<jörg@example.org>\r\n".encode()


def test_a_message_above_the_announced_size_is_rejected_before_a_byte_is_sent() -> None:
    done = play(transaction(TWO, Message(), Capabilities(size=SIZE - 1)))
    assert results(done) == [(Result.REJECTED, Scope.MESSAGE, "message-too-large")] * 2 and done.is_usable
    assert done.outcomes[0].reply is not None and done.outcomes[0].reply.enhanced == "5.3.4"
    play(transaction(ONE, Message(), Capabilities(size=SIZE)), (MAIL[:-2] + b" SIZE=%d\r\n" % SIZE, "550 No"))


def test_dsn_parameters_are_passed_on_where_they_are_offered() -> None:
    message = Envelope(
        "from@example.org",
        (EnvelopeRecipient("a@example.net", "failure,DELAY", "rfc822;A+2Bx@example.net"),),
        ret="hdrs",
        envid="QQ+2B314",
    )
    mail, rcpt = first_lines(message, Capabilities(dsn=True))
    assert mail == b"MAIL FROM:<from@example.org> RET=HDRS ENVID=QQ+2B314\r\n"
    assert rcpt == b"RCPT TO:<a@example.net> NOTIFY=FAILURE,DELAY ORCPT=rfc822;A+2Bx@example.net\r\n"
    assert first_lines(message, STEPWISE) == (MAIL, A)


@pytest.mark.parametrize(
    ("notify", "orcpt"),
    [("NEVER,SUCCESS", ""), ("FAILURE\r\nRSET", ""), ("", "rfc822;a b"), ("", "rfc822;a\r\nQUIT"), ("", "nothing")],
)
def test_dsn_parameters_that_are_malformed_are_left_out(notify: str, orcpt: str) -> None:
    assert rcpt_command(EnvelopeRecipient("a@example.net", notify, orcpt), dsn=True) == A


def test_an_envid_that_is_no_xtext_is_encoded() -> None:
    assert (
        b"ENVID=a+20b+3Dc+2B+0D+0A"
        in first_lines(Envelope("from@example.org", ONE.recipients, envid="a b=c+\r\n"), Capabilities(dsn=True))[0]
    )
    assert xtext("ä+") == "+C3+A4+2B"


@pytest.mark.parametrize("code", [501, 504, 555])
@pytest.mark.parametrize("pipelining", [True, False])
def test_a_refused_parameter_is_left_out_at_a_second_try(code: int, pipelining: bool) -> None:
    capabilities = Capabilities(size=0, dsn=True, eight_bit=True, pipelining=pipelining)
    message = Envelope("from@example.org", ONE.recipients, envid="x")
    full = b"MAIL FROM:<from@example.org> BODY=8BITMIME SIZE=%d ENVID=x\r\n" % SIZE
    essential = b"MAIL FROM:<from@example.org> BODY=8BITMIME\r\n"
    end = [(WIRE, "250 Ok")]
    script: list[tuple[bytes, str]] = [
        (full, f"{code} 5.5.4 Unsupported"), (essential, "250 Ok"), (A, "250 Ok"), (b"DATA\r\n", "354 Go"), *end,
    ]  # fmt: skip
    if pipelining:
        rest = A + b"DATA\r\n"
        script = [(full + rest, f"{code} No\n503 No\n503 No"), (essential + rest, "250 Ok\n250 Ok\n354 Go"), *end]
    done = play(transaction(message, Message(), capabilities, eight_bit=True), *script)
    assert results(done) == [DELIVERED] and done.is_usable


def test_without_parameters_there_is_no_second_try() -> None:
    done = play(transaction(ONE, Message(), STEPWISE), (MAIL, "555 5.5.4 No"))
    assert results(done) == [(Result.REJECTED, Scope.MESSAGE, "reply")]


def test_recipients_above_the_announced_limit_wait_for_another_transaction() -> None:
    done = play(
        transaction(THREE, Message(), Capabilities(limits=(("RCPTMAX", 2),))),
        (MAIL, "250 Ok"),
        (A, "250 Ok"),
        (B, "250 Ok"),
        (b"DATA\r\n", "354 Go"),
        (WIRE, "250 Ok"),
    )
    assert results(done) == [DELIVERED, DELIVERED, (Result.DEFERRED, Scope.RECIPIENT, "too-many-recipients")]


# --- losses


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("at", range(5))
def test_a_loss_before_the_final_dot_is_deferred_and_after_it_uncertain(pipelining: bool, at: int) -> None:
    commands = (MAIL, A, B, b"DATA\r\n", WIRE)
    replies = ["250 Ok", "250 Ok", "550 5.1.1 No", "354 Go", "250 Ok"]
    script: list[tuple[bytes, str | Lost]] = [*zip(commands[:at], replies[:at], strict=True), (commands[at], Lost())]
    if pipelining:
        script = [(GROUP, Lost(replies="\n".join(replies[:at])))]
        if at == 4:
            script = [(GROUP, "\n".join(replies[:4])), (WIRE, Lost())]
    capabilities = PIPELINED if pipelining else STEPWISE
    done = play(transaction(TWO, Message(), capabilities), *script)
    first = UNCERTAIN if at == 4 else LOST
    second = GONE if at > 2 else LOST
    assert results(done) == [first, second]
    assert not done.is_usable
    expected = [Stage.SENDER, Stage.RECIPIENT, Stage.RECIPIENT, Stage.DATA, Stage.DATA][at]
    assert done.outcomes[0].stage is expected


def test_a_dot_that_was_not_written_is_no_uncertainty() -> None:
    done = play(
        transaction(ONE, Message(), PIPELINED),
        (MAIL + A + b"DATA\r\n", "250 Ok\n250 Ok\n354 Go"),
        (WIRE, Lost(sent=False)),
    )
    assert results(done) == [LOST]


def test_a_354_in_reply_to_the_final_dot_is_uncertain() -> None:
    done = play(
        transaction(ONE, Message(), PIPELINED),
        (MAIL + A + b"DATA\r\n", "250 Ok\n250 Ok\n354 Go"),
        (WIRE, "354 Go"),
    )
    assert results(done) == [(Result.UNCERTAIN, Scope.CONNECTION, "out-of-step")] and not done.is_usable


@pytest.mark.parametrize("is_kept", [True, False])
def test_421_says_something_about_the_server_only_on_a_fresh_connection(is_kept: bool) -> None:
    done = play(transaction(ONE, Message(), STEPWISE, is_kept=is_kept), (MAIL, "421 4.4.2 Timeout, closing"))
    expected = (Scope.CONNECTION, "stale-connection") if is_kept else (Scope.SERVER, "reply")
    assert results(done) == [(Result.DEFERRED, *expected)] and not done.is_usable


def test_a_kept_connection_that_is_gone_costs_nothing() -> None:
    done = play(transaction(ONE, Message(), PIPELINED, is_kept=True), (MAIL + A + b"DATA\r\n", Lost("reset")))
    assert results(done) == [(Result.DEFERRED, Scope.CONNECTION, "stale-connection")]


def test_421_to_the_final_dot_is_a_refusal_not_an_uncertainty() -> None:
    done = play(
        transaction(ONE, Message(), PIPELINED, is_kept=True),
        (MAIL + A + b"DATA\r\n", "250 Ok\n250 Ok\n354 Go"),
        (WIRE, "421 4.3.0 Closing"),
    )
    assert results(done) == [(Result.DEFERRED, Scope.CONNECTION, "reply")] and not done.is_usable


def test_421_to_one_recipient_defers_all_that_had_none() -> None:
    done = play(
        transaction(THREE, Message(), STEPWISE, is_kept=True),
        (MAIL, "250 Ok"),
        (A, "250 Ok"),
        (B, "421 4.3.0 Closing"),
    )
    assert results(done) == [(Result.DEFERRED, Scope.CONNECTION, "reply")] * 3 and not done.is_usable


# --- guard and mark


def test_without_a_lease_nothing_is_written() -> None:
    done = play(transaction(TWO, Message(), PIPELINED, alive=lambda: False))
    assert results(done) == [(Result.DEFERRED, Scope.NOBODY, "lease-lost")] * 2 and not done.is_usable


def test_a_lease_that_ends_before_the_final_dot_stops_it() -> None:
    answers = iter([True, False])
    done = play(
        transaction(TWO, Message(), PIPELINED, alive=lambda: next(answers)),
        (GROUP, "250 Ok\n250 Ok\n550 5.1.1 No\n354 Go"),
    )
    assert results(done) == [(Result.DEFERRED, Scope.NOBODY, "lease-lost"), GONE] and not done.is_usable


@pytest.mark.parametrize("size", [10, SINGLE_WRITE_OCTETS])
def test_the_mark_comes_before_the_final_dot_and_the_lease_is_looked_at_after_it(size: int) -> None:
    order: list[str] = []

    async def mark() -> None:
        order.append("mark")

    def alive() -> bool:
        order.append("alive")
        return True

    body = b"x" * size + b"\r\n"
    stream: list[tuple[bytes, str]] = [(HEADER + body, ""), (b".\r\n", "250 Ok")]
    end = stream if size == SINGLE_WRITE_OCTETS else [(HEADER + body + b".\r\n", "250 Ok")]
    done = play(
        transaction(ONE, Message(body=body), PIPELINED, alive=alive, mark=mark),
        (MAIL + A + b"DATA\r\n", "250 Ok\n250 Ok\n354 Go"),
        *end,
    )
    assert results(done) == [DELIVERED] and order == ["alive", "mark", "alive"]


# --- content


STUFFED = {
    b"": b".\r\n",
    b"a": b"a\r\n.\r\n",
    b"a\r\n": b"a\r\n.\r\n",
    b".": b"..\r\n.\r\n",
    b".\r\n": b"..\r\n.\r\n",
    b"..\r\n.a\r\n": b"...\r\n..a\r\n.\r\n",
    b"a.b\r\n.\r\n.\r\n": b"a.b\r\n..\r\n..\r\n.\r\n",
    b"\r\n.\r\n": b"\r\n..\r\n.\r\n",
    b"." * 100 + b"\r\n.": b"." * 101 + b"\r\n..\r\n.\r\n",
}


@pytest.mark.parametrize("content", STUFFED)
def test_dots_are_doubled(content: bytes) -> None:
    stuffer = DotStuffer()
    assert stuffer.feed(content) + stuffer.end() == STUFFED[content]


@given(st.lists(st.sampled_from([b".", b"\r\n", b"a", b"..", b"x" * 40 + b"." * 40])).map(b"".join), st.data())
def test_dots_are_doubled_alike_however_content_is_cut(content: bytes, data: st.DataObject) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=8).map(sorted))
    stuffer = DotStuffer()
    pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    wire = b"".join(map(stuffer.feed, pieces)) + stuffer.end()
    assert wire.endswith(b"\r\n.\r\n") or wire == b".\r\n"
    text = wire[: -len(b".\r\n")]
    lines = [line[1:] if line.startswith(b".") else line for line in text.split(b"\r\n")]
    arrived = b"\r\n".join(lines)
    assert arrived == content or arrived == content + b"\r\n"
    assert b"\r\n.\r\n" not in b"\r\n" + text


SMUGGLED = [
    b"\n.\n", b"\n.\r\n", b"\r.\r\n", b"\r.\r", b"\r\n.\r", b"\r\n.\n", b"\n.\r", b"\r.\n", b"\r\n\0.\r\n",
    b"\r\r\n.\r\n", b"\n\r.\r\n", b"\r.\n\n", b"\n.\r\r", b"a\nb", b"a\rb",
]  # fmt: skip


@pytest.mark.parametrize("dots", [0, 100], ids=["few dots", "many dots"])
@pytest.mark.parametrize("sequence", SMUGGLED)
def test_no_form_of_an_end_of_data_leaves_inside_content(sequence: bytes, dots: int) -> None:
    """Threat A2: whatever a lenient server takes for an end of data is doubled or refused."""
    content = b"Subject: x\r\n\r\none" + b"." * dots + sequence + b"MAIL FROM:<evil@example.org>\r\n"
    for cut in range(len(content)):
        stuffer = DotStuffer()
        try:
            wire = stuffer.feed(content[:cut]) + stuffer.feed(content[cut:]) + stuffer.end()
        except Unsafe:
            continue
        # Some servers drop NUL before they look.
        seen = wire[: -len(b"\r\n.\r\n")].replace(b"\0", b"")
        for end_of_data in (b"\n.\n", b"\n.\r", b"\r.\r", b"\r.\n"):
            assert end_of_data not in seen, (end_of_data, cut)


def test_unsafe_content_is_rejected_and_the_connection_dropped() -> None:
    done = play(
        transaction(ONE, Message(body=b"a\n.\nMAIL FROM:<evil@example.org>\r\n"), PIPELINED),
        (MAIL + A + b"DATA\r\n", "250 Ok\n250 Ok\n354 Go"),
    )
    assert results(done) == [(Result.REJECTED, Scope.MESSAGE, "content-unsafe")] and not done.is_usable


def test_large_content_is_streamed() -> None:
    body = (b"." + b"x" * 70 + b"\r\n") * 2000
    stuffed = (b".." + b"x" * 70 + b"\r\n") * 2000
    for message in (Message(body=body), Message(body=None, stored=(body[:100_000], body[100_000:]))):
        done = play(
            transaction(ONE, message, PIPELINED),
            (MAIL + A + b"DATA\r\n", "250 Ok\n250 Ok\n354 Go"),
            (HEADER + stuffed, ""),
            (b".\r\n", "250 Ok"),
        )
        assert results(done) == [DELIVERED]


# --- injection (threat A7)


HOSTILE = [
    "a@b\r\nRCPT TO:<evil@example.org>", "a@b\n", "a\r@b.org", "a\0@b.org", "a@b.org>", "a@b.org> SIZE=1", "<a@b.org>",
    "a b@c.org", "a@b.org\u2028", "a@b.org\x85", "a@b org", '"a\r\n"@b.org', '"a"b"@c.org', '"\\', "a@[1.2.3.4]>x",
    "a@b@c", "@b.org", "a@", "\u2029@b.org", "a\t@b.org", "a\x7f@b.org", "ü\r\n@b.org", '"<>"x@b.org', "a,b@c.org",
]  # fmt: skip


@pytest.mark.parametrize("utf8", [True, False])
@pytest.mark.parametrize("address", HOSTILE)
def test_an_address_that_could_inject_never_reaches_a_command(address: str, utf8: bool) -> None:
    with pytest.raises(Unsafe):
        mail_command(address, utf8=utf8)
    with pytest.raises(Unsafe):
        rcpt_command(EnvelopeRecipient(address), utf8=utf8)


GOOD: list[tuple[str, str]] = [
    ("", ""),
    ("a@b", "a@b"),
    ("john..doe@docomo.ne.jp", "john..doe@docomo.ne.jp"),
    ('"a b>"@example.org', '"a b>"@example.org'),
    ('"a\\"b"@example.org', '"a\\"b"@example.org'),
    ("a@[192.0.2.1]", "a@[192.0.2.1]"),
    ("a@[IPv6:2001:db8::1]", "a@[IPv6:2001:db8::1]"),
    ("o'neil+tag/x@ex_ample.org", "o'neil+tag/x@ex_ample.org"),
    ("Postmaster", "Postmaster"),
]


@pytest.mark.parametrize(("address", "written"), GOOD)
def test_real_addresses_are_written_as_they_are(address: str, written: str) -> None:
    assert path(address) == written


@given(st.text(max_size=40))
def test_no_address_makes_a_second_line_or_parameter(address: str) -> None:
    try:
        line = mail_command(address, utf8=True)
    except Unsafe:
        return
    assert line.count(b"\r") == line.count(b"\n") == 1 and line.endswith(b">\r\n")
    assert not any(octet < 32 for octet in line[:-2])


@pytest.mark.parametrize("pipelining", [True, False])
def test_hostile_recipients_are_rejected_alone(pipelining: bool) -> None:
    message = envelope("a@example.net", "x@y\r\nRCPT TO:<evil@example.org>")
    script: list[tuple[bytes, str]] = [(MAIL, "250 Ok"), (A, "250 Ok"), (b"DATA\r\n", "354 Go"), (WIRE, "250 Ok")]
    if pipelining:
        script = [(MAIL + A + b"DATA\r\n", "250 Ok\n250 Ok\n354 Go"), (WIRE, "250 Ok")]
    done = play(transaction(message, Message(), PIPELINED if pipelining else STEPWISE), *script)
    assert results(done) == [DELIVERED, (Result.REJECTED, Scope.RECIPIENT, "address-unusable")]


def test_a_hostile_sender_is_rejected_before_a_byte_is_written() -> None:
    done = play(transaction(envelope("a@example.net", mail_from="x@y>\r\nRSET"), Message(), PIPELINED))
    assert results(done) == [(Result.REJECTED, Scope.MESSAGE, "sender-unusable")] and done.is_usable


def test_the_null_sender_is_written() -> None:
    assert mail_command("") == b"MAIL FROM:<>\r\n"


def test_a_message_without_recipients_sends_nothing() -> None:
    assert play(transaction(envelope(), Message(), PIPELINED)).outcomes == []


def test_no_recipient_is_without_an_outcome() -> None:
    done = play(
        transaction(THREE, Message(), PIPELINED),
        (MAIL + A + B + C + b"DATA\r\n", Lost(replies="250 Ok")),
    )
    assert len(done.outcomes) == 3 and all(isinstance(outcome, Outcome) for outcome in done.outcomes)
