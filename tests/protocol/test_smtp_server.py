"""The SMTP server session as a state machine: dialogues, and the same dialogue cut into any pieces."""

import base64
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posthouse.errors import PosthouseError, StoreFull, TooManyRequests
from posthouse.model.message import EnvelopeRecipient, Origin
from posthouse.protocol.smtp_server import (
    BareLineEnds,
    Close,
    Pending,
    ServerSession,
    SessionSettings,
    StartTls,
    Submitted,
    Tally,
    format_reply,
)
from posthouse.protocol.smtp_server_data import GATHER_OCTETS
from tests.support.submission import ListPolicy, MemoryContent

SETTINGS = SessionSettings("mail.example.org", max_message_octets=200_000, max_recipients=5, starttls_offered=True)
MAIL = "MAIL FROM:<a@example.org>"
FORGED = "MAIL FROM:<forged@example.org>"
RCPT = "RCPT TO:<b@example.org>"
OPENING = f"EHLO client\r\n{MAIL}\r\n{RCPT}\r\nDATA\r\n".encode()


def open_session(
    settings: SessionSettings = SETTINGS,
    *,
    policy: ListPolicy | None = None,
    peer: str = "192.0.2.1",
    encrypted: bool = False,
    loopback: bool = False,
    tally: Tally | None = None,
    open_content: Callable[[int | None], MemoryContent] = MemoryContent,
) -> ServerSession:
    return ServerSession(
        settings,
        policy or ListPolicy(admitted=("192.0.2.",), passwords={"shop": "secret"}),
        peer=peer,
        encrypted=encrypted,
        loopback=loopback,
        open_content=open_content,
        tls_version="TLSv1.3" if encrypted else "",
        tally=tally,
    )


def run(session: ServerSession, data: bytes, *, piece: int = 0) -> tuple[str, list[tuple[Submitted, bytes]]]:
    """Feed `data`, answering every message; returns what the client saw and the messages."""
    messages = []
    seen = b""
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)] if piece else [data]
    for each in pieces:
        session.receive(each)
        while isinstance(session.pending, Submitted):
            submitted = session.pending
            messages.append((submitted, submitted.content.finish()))
            session.resume_reply((250, "2.0.0", "Ok: queued as 1"))
        seen += session.take_output()
    assert all(line.isascii() and "\r" not in line for line in seen.decode().split("\r\n"))
    return seen.decode("ascii"), messages  # type: ignore[return-value]


def codes(seen: str) -> list[str]:
    """The code and enhanced code of each reply."""
    return [
        " ".join(line.split(" ")[: 2 if line[:1] in "245" and line[4:5].isdigit() else 1])
        for line in seen.split("\r\n")
        if line[3:4] == " "
    ]


def say(session: ServerSession, *lines: str) -> list[str]:
    """Send lines one by one; returns the code of each reply."""
    return [code for line in lines for code in codes(run(session, line.encode() + b"\r\n")[0])]


def pending(session: ServerSession) -> Pending | None:
    """What is pending now, whatever was known of it before."""
    return session.pending


def plain(username: str, password: str, authorisation: str = "") -> str:
    return base64.b64encode(f"{authorisation}\0{username}\0{password}".encode()).decode()


def encode(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# --- dialogues -------------------------------------------------------------------------------------------------------

# Each: name, lines of the client, codes of the replies. The client speaks from a listed network, in clear.
BEGUN = ["250", "250 2.1.0", "250 2.1.5"]
DIALOGUES: list[tuple[str, list[str], list[str]]] = [
    ("HELO", ["HELO c", MAIL, RCPT, "DATA", "x\r\n."], [*BEGUN, "354", "250 2.0.0"]),
    ("any case", ["ehlo c", MAIL.lower(), RCPT.lower(), "data", "."], [*BEGUN, "354", "250 2.0.0"]),
    ("MAIL first", [MAIL], ["503 5.5.1"]),
    ("EHLO without name", ["EHLO", "EHLO ", "HELO"], ["501 5.5.4"] * 3),
    ("RCPT before MAIL", ["EHLO c", RCPT, "DATA"], ["250", "503 5.5.1", "503 5.5.1"]),
    ("DATA before RCPT", ["EHLO c", MAIL, "DATA"], ["250", "250 2.1.0", "503 5.5.1"]),
    ("DATA, none left", ["EHLO c", MAIL, "RCPT TO:<nobody@x>", "DATA"], ["250", "250 2.1.0", "550 5.7.1", "554 5.5.1"]),
    ("nested MAIL", ["EHLO c", MAIL, MAIL], ["250", "250 2.1.0", "503 5.5.1"]),
    ("RSET", ["EHLO c", MAIL, "RSET", RCPT, MAIL], ["250", "250 2.1.0", "250 2.0.0", "503 5.5.1", "250 2.1.0"]),
    ("EHLO resets", ["EHLO c", MAIL, "EHLO c", RCPT], ["250", "250 2.1.0", "250", "503 5.5.1"]),
    ("arguments", ["RSET x", "DATA x", "QUIT x", "STARTTLS x", "NOOP x"], ["501 5.5.4"] * 4 + ["250 2.0.0"]),
    ("others", ["VRFY a", "HELP", "EXPN l", "BDAT 3"], ["252 2.0.0", "214 2.0.0", "502 5.5.1", "502 5.5.1"]),
    ("no verb", ["", " ", "MAILFROM:<a@b>", "DATAX"], ["500 5.5.2"] * 4),
    ("SIZE too large", ["EHLO c", MAIL + " SIZE=200001", MAIL + " SIZE=200000"], ["250", "552 5.3.4", "250 2.1.0"]),
    ("sender refused", ["EHLO c", FORGED, RCPT, "DATA"], ["250", "550 5.7.1", *["503 5.5.1"] * 2]),
    ("too many recipients", ["EHLO c", MAIL, *[RCPT] * 6], ["250", "250 2.1.0"] + ["250 2.1.5"] * 5 + ["452 4.5.3"]),
    ("HTTP", ["GET / HTTP/1.1", "EHLO c"], ["500 5.5.2"]),
    ("QUIT", ["QUIT", "NOOP"], ["221 2.0.0"]),
    ("control characters", ["NOOP\0", "NO\rOP", "NOOP\x1b[2J", "MAIL FROM:<a\t@b>", "NOOP\x7f"], ["500 5.5.2"] * 5),
    ("bare LF", ["NOOP\nNOOP"], ["500 5.5.2", "250 2.0.0"]),
    ("line too long", ["NOOP " + "x" * 12_300, "NOOP"], ["500 5.5.2", "250 2.0.0"]),
    ("longest line", ["NOOP " + "x" * (12_288 - 7), "NOOP " + "x" * (12_288 - 6)], ["250 2.0.0", "500 5.5.2"]),
    ("AUTH in clear", ["EHLO c", "AUTH PLAIN " + plain("shop", "secret")], ["250", "538 5.7.11"]),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "expected"), [case[1:] for case in DIALOGUES], ids=[case[0] for case in DIALOGUES])
def test_dialogues(lines: list[str], expected: list[str]) -> None:
    assert say(open_session(), *lines) == expected


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("MAIL FROM:<>", ""),
        ("MAIL FROM: <a@example.org>", "a@example.org"),
        ("MAIL FROM:a@example.org", "a@example.org"),
        ("MAIL FROM: a@example.org SIZE=10", "a@example.org"),
        ("MAIL FROM:<a@example.org> ", "a@example.org"),
        ('MAIL FROM:<"a b"@example.org>', '"a b"@example.org'),
        ('MAIL FROM:<"a>b"@example.org>', '"a>b"@example.org'),
        ('MAIL FROM:<"a\\"b"@example.org> BODY=8BITMIME', '"a\\"b"@example.org'),
        ("MAIL FROM:<@hop.example,@two.example:a@example.org>", "a@example.org"),
        ("MAIL FROM:<a@[192.0.2.7]>", "a@[192.0.2.7]"),
        ("MAIL FROM:<a@localhost>", "a@localhost"),
        ("MAIL FROM:<4930123@fax>", "4930123@fax"),
        ("MAIL FROM:<ä@example.org> SMTPUTF8", "ä@example.org"),
        ("MAIL FROM:<a@bücher.example> SMTPUTF8", "a@bücher.example"),
        ("MAIL FROM:<a@example.org> AUTH=<> RET=hdrs ENVID=a+20b", "a@example.org"),
        ("MAIL FROM:<a@example.org> FOO", "555 5.5.4"),
        ("MAIL FROM:<a@example.org> SIZE", "501 5.5.4"),
        ("MAIL FROM:<a@example.org> SIZE=-1", "501 5.5.4"),
        ("MAIL FROM:<a@example.org> SIZE=1 SIZE=2", "501 5.5.4"),
        ("MAIL FROM:<a@example.org> BODY=BINARYMIME", "501 5.5.4"),
        ("MAIL FROM:<a@example.org> SMTPUTF8=x", "501 5.5.4"),
        ("MAIL FROM:<a@example.org> RET=ALL", "501 5.5.4"),
        ("MAIL FROM:<a@example.org> ENVID=a=b", "501 5.5.4"),
        ("MAIL FROM:<a@example.org> ENVID=" + "x" * 101, "501 5.5.4"),
        ("MAIL FROM:<a@example.org>SIZE=1", "501 5.5.4"),
        ("MAIL FROM:<a@example.org", "501 5.5.4"),
        ("MAIL FROM:", "501 5.5.4"),
        ("MAIL <a@example.org>", "501 5.5.4"),
        ("MAIL", "501 5.5.4"),
        ("MAIL FROM:<a>", "501 5.1.7"),
        ("MAIL FROM:<a@>", "501 5.1.7"),
        ("MAIL FROM:<@a>", "501 5.1.7"),
        ("MAIL FROM:<a b@example.org>", "501 5.1.7"),
        ("MAIL FROM:<a@b@example.org>", "501 5.1.7"),
        ("MAIL FROM:<a..b@example.org>", "501 5.1.7"),
        ("MAIL FROM:<ä@example.org>", "553 5.6.7"),
        ("MAIL FROM:<a@example.org\u2028> SMTPUTF8", "501 5.1.7"),
    ],
)
def test_mail_from(command: str, answer: str) -> None:
    session = open_session()
    replies = say(session, "EHLO c", command)
    if "@" in answer or not answer:
        assert replies == ["250", "250 2.1.0"]
        (_, (submitted, _)) = "", run(session, f"{RCPT}\r\nDATA\r\n.\r\n".encode())[1][0]
        assert submitted.envelope.mail_from == answer
    else:
        assert replies == ["250", answer]


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("RCPT TO:<b@example.org>", EnvelopeRecipient("b@example.org")),
        ("RCPT TO: b@example.org", EnvelopeRecipient("b@example.org")),
        ("RCPT TO:<@x.example:b@example.org>", EnvelopeRecipient("b@example.org")),
        ("RCPT TO:<b@example.org> NOTIFY=never", EnvelopeRecipient("b@example.org", "NEVER")),
        (
            "RCPT TO:<b@example.org> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;B+2Bx@example.org",
            EnvelopeRecipient("b@example.org", "SUCCESS,DELAY", "rfc822;B+2Bx@example.org"),
        ),
        ("RCPT TO:<b@example.org> NOTIFY=NEVER,DELAY", "501 5.5.4"),
        ("RCPT TO:<b@example.org> NOTIFY=DELAY,DELAY", "501 5.5.4"),
        ("RCPT TO:<b@example.org> NOTIFY=", "501 5.5.4"),
        ("RCPT TO:<b@example.org> ORCPT=b@example.org", "501 5.5.4"),
        ("RCPT TO:<b@example.org> SIZE=3", "555 5.5.4"),
        ("RCPT TO:<>", "501 5.1.3"),
        ("RCPT TO:<b>", "501 5.1.3"),
        ("RCPT TO:<ü@example.org>", "553 5.6.7"),
        ("RCPT TO:<nobody@example.org>", "550 5.7.1"),
        ("RCPT FROM:<b@example.org>", "501 5.5.4"),
    ],
)
def test_rcpt_to(command: str, answer: EnvelopeRecipient | str) -> None:
    session = open_session()
    replies = say(session, "EHLO c", MAIL, command)
    if isinstance(answer, str):
        assert replies[2] == answer
    else:
        assert replies[2] == "250 2.1.5"
        submitted = run(session, b"DATA\r\n.\r\n")[1][0][0]
        assert submitted.envelope.recipients == (answer,)


def test_ehlo_lists_what_is_offered() -> None:
    seen, _ = run(open_session(), b"EHLO c\r\n")
    assert seen.split("\r\n")[:-1] == [
        "250-mail.example.org",
        "250-PIPELINING",
        "250-SIZE 200000",
        "250-STARTTLS",
        "250-8BITMIME",
        "250-SMTPUTF8",
        "250-DSN",
        "250-ENHANCEDSTATUSCODES",
        "250 LIMITS RCPTMAX=5",
    ]


@pytest.mark.parametrize(
    ("encrypted", "loopback", "starttls", "auth"),
    [(False, False, True, False), (False, True, True, True), (True, False, False, True)],
)
def test_auth_is_offered_under_tls_or_on_loopback_only(
    encrypted: bool, loopback: bool, starttls: bool, auth: bool
) -> None:
    seen, _ = run(open_session(encrypted=encrypted, loopback=loopback), b"EHLO c\r\n")
    assert ("STARTTLS" in seen, "AUTH PLAIN LOGIN" in seen) == (starttls, auth)


def test_the_greeting_names_no_version() -> None:
    assert open_session().greeting() == b"220 mail.example.org ESMTP ready\r\n"


# --- authentication --------------------------------------------------------------------------------------------------

RIGHT = [
    [f"AUTH PLAIN {plain('shop', 'secret')}"],
    [f"auth plain {plain('shop', 'secret', 'shop')}"],
    ["AUTH PLAIN", plain("shop", "secret")],
    ["AUTH LOGIN", encode("shop"), encode("secret")],
    [f"AUTH LOGIN {encode('shop')}", encode("secret")],
]


@pytest.mark.parametrize("lines", RIGHT)
def test_a_right_password_opens_the_way(lines: list[str]) -> None:
    session = open_session(peer="198.51.100.9", encrypted=True)
    replies = say(session, "EHLO c", MAIL, *lines, MAIL)
    assert replies == ["250", "530 5.7.0", *["334"] * (len(lines) - 1), "235 2.7.0", "250 2.1.0"]
    submitted = run(session, f"{RCPT}\r\nDATA\r\n.\r\n".encode())[1][0][0]
    assert submitted.sender.label == "shop"
    assert submitted.origin == Origin("smtp", "198.51.100.9", "c", "TLSv1.3", "credential")
    assert say(session, "AUTH PLAIN") == ["503 5.5.1"]


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        ([f"AUTH PLAIN {plain('shop', 'wrong')}"], "535 5.7.8"),
        ([f"AUTH PLAIN {plain('shop', 'secret', 'admin')}"], "535 5.7.8"),
        ([f"AUTH PLAIN {plain('', 'secret')}"], "501 5.5.2"),
        ([f"AUTH PLAIN {encode('shop')}"], "501 5.5.2"),
        (["AUTH PLAIN ="], "501 5.5.2"),
        (["AUTH PLAIN ???"], "501 5.5.2"),
        (["AUTH PLAIN AGE="], "501 5.5.2"),
        (["AUTH PLAIN", "*"], "501 5.7.0"),
        (["AUTH LOGIN", encode("shop"), "*"], "501 5.7.0"),
        (["AUTH LOGIN", encode("shop"), "/w=="], "501 5.5.2"),
        (["AUTH LOGIN", encode("shop"), encode("wrong")], "535 5.7.8"),
        (["AUTH CRAM-MD5"], "504 5.5.4"),
        (["AUTH"], "504 5.5.4"),
    ],
)
def test_anything_else_does_not(lines: list[str], reply: str) -> None:
    session = open_session(peer="198.51.100.9", encrypted=True)
    assert say(session, "EHLO c", *lines, MAIL)[-2:] == [reply, "530 5.7.0"]


def test_authentication_has_its_place() -> None:
    policy = ListPolicy(admitted=("192.0.2.",), passwords={"shop": "secret"})
    session = open_session(policy=policy, encrypted=True)
    login = f"AUTH PLAIN {plain('shop', 'secret')}"
    assert say(session, login, "EHLO c", MAIL, login, "RSET", login)[0] == "503 5.5.1"
    assert policy.logins == [("shop", "192.0.2.1")]


def test_a_listed_network_without_credential_stays_what_it_is_after_a_wrong_password() -> None:
    session = open_session(encrypted=True)
    say(session, "EHLO c", f"AUTH PLAIN {plain('shop', 'wrong')}")
    assert say(session, MAIL, RCPT) == ["250 2.1.0", "250 2.1.5"]


def test_guessing_ends_the_session() -> None:
    tally = Tally()
    session = open_session(peer="198.51.100.9", encrypted=True, tally=tally)
    replies = say(session, "EHLO c", *[f"AUTH PLAIN {plain('shop', str(n))}" for n in range(9)])
    assert replies == ["250", *["535 5.7.8"] * 5, "421 4.7.0"]
    assert session.pending == Close(asked=False)
    assert tally.auth_failures == 5
    assert not any("shop" in str(notice.facts) or "secret" in str(notice.facts) for notice in session.notices)


def test_slowed_guesses_are_answered_as_temporary() -> None:
    policy = ListPolicy(login_error=TooManyRequests("Too many attempts.", retry_after_s=60))
    session = open_session(policy=policy, encrypted=True)
    assert say(session, "EHLO c", f"AUTH PLAIN {plain('shop', 'secret')}") == ["250", "454 4.7.0"]


def test_nobody_relays_without_credential_or_listed_network() -> None:
    session = open_session(peer="198.51.100.9")
    assert say(session, "EHLO c", MAIL, RCPT, "DATA", "MAIL FROM:<>")[1:] == [
        "530 5.7.0",
        *["503 5.5.1"] * 2,
        "530 5.7.0",
    ]


# --- TLS -------------------------------------------------------------------------------------------------------------


def test_starttls_forgets_what_was_said_before() -> None:
    session = open_session(loopback=True)
    login = f"AUTH PLAIN {plain('shop', 'secret')}"
    assert say(session, "EHLO before", login, MAIL, "STARTTLS") == ["250", "235 2.7.0", "250 2.1.0", "220 2.0.0"]
    assert session.pending == StartTls()
    session.resume_tls("TLSv1.3")
    assert say(session, RCPT, MAIL, "EHLO after", MAIL) == ["503 5.5.1", "503 5.5.1", "250", "250 2.1.0"]
    submitted = run(session, f"{RCPT}\r\nDATA\r\n.\r\n".encode())[1][0][0]
    assert submitted.origin == Origin("smtp", "192.0.2.1", "after", "TLSv1.3", "network")
    assert say(session, "STARTTLS") == ["503 5.5.1"]


def test_what_was_sent_behind_starttls_is_dropped() -> None:
    session = open_session()
    session.receive(b"EHLO c\r\nSTARTTLS\r\nEHLO evil\r\n" + MAIL.encode() + b"\r\n")
    assert codes(session.take_output().decode()) == ["250", "220 2.0.0"]
    session.resume_tls("TLSv1.3")
    assert session.take_output() == b""
    assert say(session, MAIL) == ["503 5.5.1"]
    assert [notice.event for notice in session.notices] == ["smtp.input_before_tls_dropped"]


def test_starttls_is_refused_where_it_is_not_offered() -> None:
    assert say(open_session(SessionSettings("mail.example.org")), "EHLO c", "STARTTLS") == ["250", "502 5.5.1"]


@pytest.mark.parametrize("piece", [0, 1])
def test_a_tls_record_on_the_plain_port_ends_the_session(piece: int) -> None:
    session = open_session()
    assert run(session, b"\x16\x03\x01\x02\x00\x01", piece=piece) == ("", [])
    assert session.pending == Close(asked=False)
    assert session.notices[0].event == "smtp.tls_on_plain_port"


# --- content ---------------------------------------------------------------------------------------------------------

CONTENTS = [
    (b".\r\n", b""),
    (b"\r\n.\r\n", b"\r\n"),
    (b"x\r\n.\r\n", b"x\r\n"),
    (b"..\r\n.\r\n", b".\r\n"),
    (b"..x\r\n...y\r\n.z\r\n.\r\n", b".x\r\n..y\r\nz\r\n"),
    (b"a\r\n..\r\n..\r\n.\r\n", b"a\r\n.\r\n.\r\n"),
    (b"x" * 5000 + b"\r\n.\r\n", b"x" * 5000 + b"\r\n"),
    (b"\xff\xfe\x80\r\n.\r\n", b"\xff\xfe\x80\r\n"),
]


@pytest.mark.parametrize("piece", [0, 1, 2, 3, 7])
@pytest.mark.parametrize(("wire", "content"), CONTENTS)
def test_content_arrives_without_stuffing_in_one_write(wire: bytes, content: bytes, piece: int) -> None:
    session = open_session()
    seen, messages = run(session, OPENING + wire + b"NOOP\r\n", piece=piece)
    assert codes(seen) == ["250", "250 2.1.0", "250 2.1.5", "354", "250 2.0.0", "250 2.0.0"]
    ((submitted, got),) = messages
    assert got == content
    assert isinstance(submitted.content, MemoryContent)
    assert len(submitted.content.writes) == bool(content)


SMUGGLED = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<v@example.org>\r\nDATA\r\nboo\r\n.\r\n"
FALSE_ENDS = [
    b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r", b"\r.\r\n", b"\n.\r", b"\r.\n", b"\r\r\n.\r\r\n",
    b"\r\n.\r\r\n", b"\r\n\0.\r\n", b"\r\n.\0\r\n", b"\n\r\n.\n\r\n", b"\r\n.\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("piece", [0, 1, 2, 5])
@pytest.mark.parametrize("false_end", FALSE_ENDS, ids=[repr(end) for end in FALSE_ENDS])
def test_only_the_true_end_ends_the_data(false_end: bytes, piece: int) -> None:
    tally = Tally()
    session = open_session(tally=tally)
    seen, messages = run(session, OPENING + b"Subject: x\r\n\r\nhi" + false_end + SMUGGLED + b"NOOP\r\n", piece=piece)
    assert codes(seen) == ["250", "250 2.1.0", "250 2.1.5", "354", "550 5.6.11", "250 2.0.0"]
    assert messages == []
    assert tally.bad_line_ends == 1


@pytest.mark.parametrize("piece", [0, 1, 2, 5])
@pytest.mark.parametrize("false_end", FALSE_ENDS, ids=[repr(end) for end in FALSE_ENDS])
def test_normalised_it_is_still_one_message(false_end: bytes, piece: int) -> None:
    settings = SessionSettings("mail.example.org", bare_line_ends=BareLineEnds.NORMALISE)
    session = open_session(settings)
    seen, messages = run(session, OPENING + b"hi" + false_end + SMUGGLED + b"NOOP\r\n", piece=piece)
    if b"\0" in false_end:
        assert codes(seen)[4:] == ["550 5.6.11", "250 2.0.0"]
        return
    assert codes(seen)[4:] == ["250 2.0.0", "250 2.0.0"]
    ((_, content),) = messages
    assert b"MAIL FROM:<evil@example.org>\r\n" in content
    assert content.count(b"\r\n") == content.count(b"\r") == content.count(b"\n")


@pytest.mark.parametrize("piece", [0, 1, 999])
def test_content_that_grows_too_large_is_read_to_its_end_and_refused(piece: int) -> None:
    kept: list[MemoryContent] = []

    def open_content(announced: int | None) -> MemoryContent:
        kept.append(MemoryContent(announced))
        return kept[-1]

    session = open_session(open_content=open_content)
    fits = b"x" * 199_998 + b"\r\n.\r\n"
    seen, messages = run(session, OPENING + fits + OPENING + b"x" + fits + b"NOOP\r\n", piece=piece)
    assert codes(seen)[3:5] == ["354", "250 2.0.0"]
    assert codes(seen)[-2:] == ["552 5.3.4", "250 2.0.0"]
    assert len(messages) == 1
    assert [content.abandoned for content in kept] == [False, True]


class FullContent(MemoryContent):
    def write(self, octets: bytes) -> None:
        if self.size + len(octets) > 100_000:
            raise StoreFull("No space is left.")
        super().write(octets)


def test_a_full_disk_in_the_middle_is_temporary_and_stays_in_step() -> None:
    session = open_session(open_content=FullContent)
    seen, messages = run(session, OPENING + b"x" * 150_000 + b"\r\n.\r\nNOOP\r\n", piece=8192)
    assert codes(seen)[3:] == ["354", "452 4.3.1", "250 2.0.0"]
    assert messages == []


def test_a_full_disk_at_data_is_temporary() -> None:
    def refuse(announced: int | None) -> MemoryContent:
        raise StoreFull("No space is left.")

    seen, _ = run(open_session(open_content=refuse), OPENING)
    assert codes(seen)[3:] == ["452 4.3.1"]


def test_large_content_is_streamed_and_little_is_held() -> None:
    settings = SessionSettings("mail.example.org")
    session = open_session(settings)
    line = b"x" * 998 + b"\r\n"
    session.receive(OPENING)
    session.receive(line * 1000)
    for _ in range(10):
        session.receive(line)
        assert session.content_octets >= 1_000_000 - 4
    session.receive(b".\r\n")
    assert isinstance(session.pending, Submitted)
    content = session.pending.content
    assert isinstance(content, MemoryContent)
    assert len(content.writes) == 2
    assert len(content.writes[0]) > GATHER_OCTETS
    assert content.finish() == line * 1010


def test_the_announced_size_reaches_the_content() -> None:
    session = open_session()
    session.receive(f"EHLO c\r\n{MAIL} SIZE=321 BODY=8BITMIME\r\n{RCPT}\r\nDATA\r\n.\r\n".encode())
    assert isinstance(session.pending, Submitted)
    assert isinstance(session.pending.content, MemoryContent)
    assert session.pending.content.announced == 321
    assert session.pending.eight_bit_declared
    assert session.pending.extended


def test_a_lost_connection_gives_the_content_up() -> None:
    kept: list[MemoryContent] = []

    def open_content(announced: int | None) -> MemoryContent:
        kept.append(MemoryContent(announced))
        return kept[-1]

    session = open_session(open_content=open_content)
    session.receive(OPENING + b"hello\r\n")
    session.connection_lost()
    session.connection_lost()
    assert kept[0].abandoned


# --- pending, pipelining, limits -------------------------------------------------------------------------------------


def test_nothing_is_read_while_a_message_is_pending() -> None:
    session = open_session()
    session.receive(OPENING + b"one\r\n.\r\n" + OPENING + b"two\r\n")
    session.receive(b".\r\nQUIT\r\n")
    assert codes(session.take_output().decode()) == ["250", "250 2.1.0", "250 2.1.5", "354"]
    session.resume_reply(format_reply(250, "2.0.0", "Ok: queued as 1"))
    assert codes(session.take_output().decode())[-1] == "354"
    assert isinstance(pending(session), Submitted)
    session.resume_reply((451, "4.3.0", "later"))
    assert codes(session.take_output().decode()) == ["451 4.3.0", "221 2.0.0"]
    assert pending(session) == Close(asked=True)


def test_much_that_was_sent_ahead_asks_for_a_pause() -> None:
    session = open_session(SessionSettings("mail.example.org", max_waiting_octets=1000))
    session.receive(OPENING + b".\r\n")
    seen = []
    for _ in range(2):
        session.receive(b"NOOP\r\n" * 100)
        seen.append(session.wants_pause)
    session.resume_reply((250, "2.0.0", "Ok"))
    assert [*seen, session.wants_pause] == [False, True, False]
    assert len(codes(session.take_output().decode())) == 4 + 1 + 200


def test_errors_end_the_session_and_a_message_forgives_them() -> None:
    session = open_session(SessionSettings("mail.example.org", max_errors=3))
    assert say(session, "FOO", "FOO", "EHLO c", MAIL, RCPT, "DATA", ".", "FOO", "FOO")[-1] == "500 5.5.2"
    assert pending(session) is None
    assert say(session, "FOO", "NOOP") == ["500 5.5.2", "421 4.7.0"]
    assert pending(session) == Close(asked=False)


def test_recipients_sent_along_with_a_refused_mail_are_no_errors() -> None:
    session = open_session()
    lines = ["EHLO c", FORGED, *[RCPT] * 100, "DATA", "NOOP"]
    assert say(session, *lines)[-1] == "250 2.0.0"


def test_unreadable_recipients_are_no_errors() -> None:
    assert say(open_session(), "EHLO c", MAIL, *["RCPT TO:<x>"] * 100, RCPT)[-1] == "250 2.1.5"


def test_winding_down_waits_for_the_message() -> None:
    idle = open_session()
    idle.wind_down()
    assert codes(idle.take_output().decode()) == ["421 4.3.2"]
    busy = open_session()
    busy.receive(OPENING)
    busy.wind_down()
    busy.receive(b"x\r\n.\r\n" + OPENING)
    assert isinstance(pending(busy), Submitted)
    busy.resume_reply((250, "2.0.0", "Ok"))
    assert codes(busy.take_output().decode())[-2:] == ["250 2.0.0", "421 4.3.2"]
    assert pending(busy) == Close(asked=False)


def test_replies_are_one_line_of_ascii() -> None:
    reply = format_reply(550, "5.7.1", "Größe\r\n250 2.0.0 Ok\x1b[2J" + "x" * 1000)
    assert reply.startswith(b"550 5.7.1 Gr?e 250 2.0.0 Ok?[2J")
    assert reply.count(b"\r\n") == 1
    assert len(reply) <= 512


def test_an_error_of_the_policy_becomes_its_reply() -> None:
    error = PosthouseError("The store rests.", remedy="Come back.")
    session = open_session(policy=ListPolicy(admitted=("192.",), refused_recipients={"b@example.org": error}))
    say(session, "EHLO c", MAIL)
    assert run(session, RCPT.encode() + b"\r\n")[0] == "451 4.3.0 The store rests. Come back.\r\n"


# --- generated input -------------------------------------------------------------------------------------------------

LINES = st.sampled_from(
    [
        "EHLO c", "HELO c", MAIL, MAIL + " SIZE=20", MAIL + " SMTPUTF8", "MAIL FROM:<>", RCPT, "RCPT TO:<nobody@x.org>",
        "RCPT TO:<ä@x.org>", "DATA", "RSET", "NOOP", "x", ".", "..", "", ".x", "text", "STARTTLS", "QUIT", "*",
        "AUTH LOGIN", "AUTH PLAIN", plain("shop", "secret"), encode("shop"), "a\nb", "a\rb", "\n.", "\0", "x" * 600,
        "\x16\x03",
    ]
)  # fmt: skip
STREAMS = st.lists(LINES, max_size=30).map(lambda lines: b"".join(line.encode() + b"\r\n" for line in lines))
# Most streams get into the data at once, where it matters most.
ANY_STREAM = st.one_of(STREAMS, STREAMS.map(lambda data: OPENING + data), st.binary(max_size=200).map(OPENING.__add__))


@settings(max_examples=400, deadline=None)
@given(ANY_STREAM, st.lists(st.integers(0, 1000), max_size=12), st.sampled_from(list(BareLineEnds)))
def test_cutting_the_input_changes_nothing(data: bytes, cuts: list[int], bare: BareLineEnds) -> None:
    chosen = SessionSettings("m.example.org", max_message_octets=500, max_command_octets=512, bare_line_ends=bare)
    whole, whole_messages = run(open_session(chosen, loopback=True), data)
    session = open_session(chosen, loopback=True)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    seen, messages = "", []
    for start, end in pairwise(edges):
        more, found = run(session, data[start:end])
        seen += more
        messages += found
    assert seen == whole
    assert [(m.envelope, content) for m, content in messages] == [
        (m.envelope, content) for m, content in whole_messages
    ]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_content_comes_through_unharmed_once_stuffed(content: bytes) -> None:
    chosen = SessionSettings("m.example.org")
    lines = content.replace(b"\0", b"").replace(b"\r", b"").split(b"\n")
    wire = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"
    _, messages = run(open_session(chosen), OPENING + wire)
    assert [got for _, got in messages] == [b"".join(line + b"\r\n" for line in lines)]


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_no_command_line_makes_it_fall_over(line: bytes) -> None:
    session = open_session(loopback=True)
    run(
        session,
        b"EHLO c\r\n" + line + b"\r\nMAIL FROM:" + line + b"\r\n" + MAIL.encode() + b"\r\nRCPT TO:" + line + b"\r\n",
    )
    run(session, b"AUTH PLAIN " + base64.b64encode(line) + b"\r\n")
