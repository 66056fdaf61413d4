"""How an SMTP server can misbehave: the stages of a session, the rules that it follows, and what changes them, by name.

The functions make misbehaviours, and `CATALOGUE` holds those that need no value, by the names that the command takes.
Values only; `posthouse.testing.smtp` is the server that follows them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Stage(StrEnum):
    """The point of a session at which the server owes a reply."""

    GREETING = "greeting"
    EHLO = "ehlo"
    STARTTLS = "starttls"
    # The EHLO under TLS.
    EHLO_AFTER_TLS = "ehlo_after_tls"
    # The reply that ends the login.
    AUTH = "auth"
    MAIL = "mail"
    RCPT = "rcpt"
    DATA = "data"
    # The reply to the final dot: the message is complete, and the sender does not know its fate yet.
    DOT = "dot"
    RSET = "rset"
    QUIT = "quit"


class Tls(StrEnum):
    """What becomes of STARTTLS."""

    OFFERED = "offered"
    NOT_OFFERED = "not_offered"
    # As by a device in between that overwrites the keyword (RFC 3207 6).
    STRIPPED = "stripped"
    REFUSED = "refused"
    THEN_GARBAGE = "then_garbage"
    THEN_CLOSE = "then_close"
    # A reply in clear follows the 220, for the client to take as the first one under TLS.
    INJECTS_REPLY = "injects_reply"


class AuthOffer(StrEnum):
    """When AUTH is offered and taken."""

    ALWAYS = "always"
    AFTER_TLS = "after_tls"
    # Offered and taken in clear, and gone under TLS.
    BEFORE_TLS = "before_tls"
    NEVER = "never"


class Then(StrEnum):
    """How a session goes on after an act."""

    GO_ON = "go_on"
    CLOSE = "close"
    # Read on and stay silent.
    HANG = "hang"


@dataclass(frozen=True, slots=True)
class Act:
    """What is done in the place of a reply: octets are sent, and then the session goes on, closes or hangs."""

    octets: bytes = b""
    then: Then = Then.GO_ON


@dataclass(frozen=True, slots=True)
class Rules:
    """All that can be told to one session. Misbehaviours change it; `session_number` counts from 1."""

    session_number: int = 1
    acts: Mapping[Stage, Act] = field(default_factory=dict)
    extensions: tuple[str, ...] = ("PIPELINING", "SIZE 104857600", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES", "DSN")
    tls: Tls = Tls.OFFERED
    auth: AuthOffer = AuthOffer.ALWAYS
    mechanisms: str = "PLAIN LOGIN"
    # The reply to every login; None takes each.
    auth_reply: str | None = None
    echoes_credentials: bool = False
    # Replies to single recipients, at RCPT.
    recipient_replies: Mapping[str, str] = field(default_factory=dict)
    greylists: bool = False
    # The size limit in octets that MAIL and the content are held to.
    size_limit_octets: int | None = None
    delay_s: float = 0.0
    # Octets of content after which the connection is closed, in the middle of the message.
    closes_within_content_octets: int | None = None
    messages_per_connection: int | None = None
    max_connections: int | None = None


Misbehaviour = Callable[[Rules], Rules]


def encoded_reply(reply: str) -> bytes:
    """Encode a reply; further lines get the code of the first."""
    code, _, text = reply.partition(" ")
    lines = text.split("\n")
    marked = [f"{code}-{line}" for line in lines[:-1]] + [f"{code} {lines[-1]}"]
    return "".join(f"{line}\r\n" for line in marked).encode()


def _right_code(stage: Stage) -> bytes:
    """Give the code of success at a stage."""
    codes = {Stage.GREETING: b"220", Stage.STARTTLS: b"220", Stage.AUTH: b"235", Stage.DATA: b"354", Stage.QUIT: b"221"}
    return codes.get(stage, b"250")


# -- Misbehaviours at any stage -----------------------------------------------------------------------------------


def act_at(stage: Stage, act: Act) -> Misbehaviour:
    """Do anything in the place of the reply of `stage`."""
    return lambda rules: replace(rules, acts={**rules.acts, stage: act})


def close_at(stage: Stage) -> Misbehaviour:
    """Close the connection where the reply of `stage` is due; at `DOT` the message has been taken."""
    return act_at(stage, Act(then=Then.CLOSE))


def hang_at(stage: Stage) -> Misbehaviour:
    """Stay silent from the reply of `stage` on, with the connection open."""
    return act_at(stage, Act(then=Then.HANG))


def reply_at(stage: Stage, reply: str) -> Misbehaviour:
    """Give this reply at `stage`, such as "550 5.7.1 Not from here"; line feeds make it a multi-line one."""
    return act_at(stage, Act(encoded_reply(reply)))


def temporary_at(stage: Stage, text: str = "4.3.0 Come back later") -> Misbehaviour:
    """Refuse for now: 451 at `stage` (454 for STARTTLS and AUTH, RFC 3207 and RFC 4954)."""
    code = "454" if stage in (Stage.STARTTLS, Stage.AUTH) else "451"
    return reply_at(stage, f"{code} {text}")


def permanent_at(stage: Stage, text: str = "5.7.1 Not here") -> Misbehaviour:
    """Refuse for good: 550 at `stage` (554 for the greeting, 535 for AUTH)."""
    code = {Stage.GREETING: "554", Stage.AUTH: "535"}.get(stage, "550")
    return reply_at(stage, f"{code} {text}")


def shutting_down_at(stage: Stage, text: str = "4.3.2 Service shutting down") -> Misbehaviour:
    """Say 421 at `stage` and close (RFC 5321 3.8)."""
    return act_at(stage, Act(encoded_reply(f"421 {text}"), then=Then.CLOSE))


def garbage_at(stage: Stage) -> Misbehaviour:
    """Send octets that are no reply at all."""
    return act_at(stage, Act(b"\x00\xff\x16\x03garbage\x80\r\n"))


def non_numeric_at(stage: Stage) -> Misbehaviour:
    """Reply with words and no code."""
    return act_at(stage, Act(b"OK, go on\r\n"))


def long_line_at(stage: Stage, octets: int = 2500) -> Misbehaviour:
    """Reply rightly, in one line far above the 512 octets of RFC 5321 4.5.3.1.5."""
    return act_at(stage, Act(_right_code(stage) + b" " + b"x" * (octets - 6) + b"\r\n"))


def multi_line_at(stage: Stage, lines: int = 40) -> Misbehaviour:
    """Reply rightly, in many lines."""
    code = _right_code(stage)
    return act_at(stage, Act((code + b"-one of many lines\r\n") * (lines - 1) + code + b" the last one\r\n"))


def eight_bit_at(stage: Stage) -> Misbehaviour:
    """Reply rightly, with text in Latin-1."""
    return act_at(stage, Act(_right_code(stage) + b" Sch\xf6n, gr\xfc\xdf dich\r\n"))


def unfinished_at(stage: Stage) -> Misbehaviour:
    """Begin a multi-line reply, and hang before its last line."""
    return act_at(stage, Act(_right_code(stage) + b"-to be continued\r\n", then=Then.HANG))


# -- Misbehaviours of their own -----------------------------------------------------------------------------------


def close_within_content(octets: int = 1000) -> Misbehaviour:
    """Close after that many octets of the content, before the final dot was read."""
    return lambda rules: replace(rules, closes_within_content_octets=octets)


def replies_by_recipient(replies: Mapping[str, str]) -> Misbehaviour:
    """Reply to RCPT by address; who is not named is taken."""
    return lambda rules: replace(rules, recipient_replies={**rules.recipient_replies, **replies})


def greylisting() -> Misbehaviour:
    """Answer 451 to the first try of each triple of client address, sender and recipient, and take the next."""
    return lambda rules: replace(rules, greylists=True)


def starttls(what: Tls) -> Misbehaviour:
    """Let STARTTLS go wrong in one of its ways."""
    return lambda rules: replace(rules, tls=what)


def auth(when: AuthOffer, mechanisms: str = "PLAIN LOGIN") -> Misbehaviour:
    """Offer AUTH at these times only, with these mechanisms (PLAIN and LOGIN are understood)."""
    return lambda rules: replace(rules, auth=when, mechanisms=mechanisms)


def auth_refused(reply: str = "535 5.7.8 Authentication credentials invalid") -> Misbehaviour:
    """Refuse every login with this reply, such as Microsoft's or Google's texts with 535, 454 or 534."""
    return lambda rules: replace(rules, auth_reply=reply)


def echoing_credentials() -> Misbehaviour:
    """Refuse every login and repeat the credentials in the reply, encoded and plain."""
    return lambda rules: replace(rules, echoes_credentials=True)


def announcing_size(octets: int) -> Misbehaviour:
    """Offer SIZE with this limit and keep to it: 552 at MAIL, and at the dot."""

    def change(rules: Rules) -> Rules:
        kept = tuple(each for each in rules.extensions if not each.startswith("SIZE"))
        return replace(rules, extensions=(*kept, f"SIZE {octets}"), size_limit_octets=octets)

    return change


def without(*keywords: str) -> Misbehaviour:
    """Leave extensions out of the answer to EHLO, by keyword: PIPELINING, SIZE, 8BITMIME, SMTPUTF8, DSN ..."""

    def change(rules: Rules) -> Rules:
        return replace(rules, extensions=tuple(e for e in rules.extensions if e.split(" ")[0] not in keywords))

    return change


def slow(delay_s: float = 1.0) -> Misbehaviour:
    """Wait that many seconds before every reply."""
    return lambda rules: replace(rules, delay_s=delay_s)


def messages_per_connection(count: int) -> Misbehaviour:
    """Take that many messages on a connection, then say 421 to the next MAIL and close."""
    return lambda rules: replace(rules, messages_per_connection=count)


def connections_at_most(count: int) -> Misbehaviour:
    """Greet connections above that many at a time with 421 and close them."""
    return lambda rules: replace(rules, max_connections=count)


def on_first(count: int, *misbehaviours: Misbehaviour) -> Misbehaviour:
    """Misbehave on the first `count` connections only; later ones find the server in order."""

    def change(rules: Rules) -> Rules:
        return combined(misbehaviours, rules) if rules.session_number <= count else rules

    return change


def combined(misbehaviours: Sequence[Misbehaviour], rules: Rules) -> Rules:
    """Give the rules after all the changes, in their order."""
    for change in misbehaviours:
        rules = change(rules)
    return rules


_AT_EVERY_STAGE: Mapping[str, Callable[[Stage], Misbehaviour]] = {
    "close": close_at,
    "hang": hang_at,
    "temporary": temporary_at,
    "permanent": permanent_at,
    "shutting_down": shutting_down_at,
    "garbage": garbage_at,
    "non_numeric": non_numeric_at,
    "long_line": long_line_at,
    "multi_line": multi_line_at,
    "eight_bit": eight_bit_at,
    "unfinished": unfinished_at,
}

# Every misbehaviour that needs no value of its own, by the name that the command takes: `close_at_data`, `greylisting`.
CATALOGUE: Mapping[str, Misbehaviour] = {
    **{f"{name}_at_{stage}": make(stage) for name, make in _AT_EVERY_STAGE.items() for stage in Stage},
    **{f"starttls_{what}": starttls(what) for what in Tls},
    **{f"auth_{when}": auth(when) for when in AuthOffer},
    "auth_refused": auth_refused(),
    "auth_throttled": auth_refused("454 4.7.0 Temporary authentication failure"),
    "auth_too_weak": auth_refused("534 5.7.9 Application-specific password required"),
    "echoing_credentials": echoing_credentials(),
    "close_within_content": close_within_content(),
    "greylisting": greylisting(),
    "small_size": announcing_size(10_000),
    "slow": slow(),
    "one_message_per_connection": messages_per_connection(1),
    "one_connection": connections_at_most(1),
    **{
        f"no_{keyword.lower()}": without(keyword)
        for keyword in ("PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES")
    },
}
