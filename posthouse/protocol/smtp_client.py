"""The client's side of SMTP as pure dialogues: generators that yield what to send and are given what came back.

No I/O: `smtp_connection.py` runs them on a socket, tests run them on a script, diagnosis runs them one by one. Sources:
RFC 5321, 2920 (PIPELINING), 1870 (SIZE), 6152 (8BITMIME), 6531 (SMTPUTF8), 3461 (DSN), 4954 (AUTH), 3207 (STARTTLS),
9422 (LIMITS).

A dialogue is given exactly as many replies as it asked for. Where the conversation ends before that, `Interrupted` is
thrown into it, with the replies of the present group that did come; dialogues that can lose nothing let it pass.

Every configured or received value is checked where the command line is built, before a byte is written (`Unsafe`).
"""

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, Protocol, TypeVar, cast

import idna

from posthouse.model.auth import PasswordAuth
from posthouse.model.message import Envelope, EnvelopeRecipient
from posthouse.model.outcome import Outcome, Reply, Result, Scope, Stage
from posthouse.model.replies import classify
from posthouse.protocol.faults import DeliveryFault, refused
from posthouse.protocol.sasl import SaslExchange, SaslFault, decode_challenge, password_exchanges

T = TypeVar("T")

Patience = Literal["greeting", "command", "data_start", "data_block", "data_end"]

# RFC 5321 section 4.5.3.1.8 obliges servers to take 100; many take more and say 452 where it is enough.
MAX_RECIPIENTS = 1000
# RFC 4954 section 4: with its arguments AUTH must fit into 512 octets, else the response goes by itself.
MAX_AUTH_LINE = 512
# Challenge and answer: LOGIN needs two rounds, a refused token one more.
MAX_AUTH_ROUNDS = 4
# Above this, content goes out piece by piece, so that a loss within it is known to be one before the final dot.
SINGLE_WRITE_OCTETS = 64 * 1024


class Send(NamedTuple):
    """Write `data`, wait for `replies` replies, each within the time named by `timeout`. `secret`: show it nowhere."""

    data: bytes
    replies: int
    timeout: Patience
    stage: Stage
    secret: bool = False


class Stream(NamedTuple):
    """Write the pieces through the stuffer, as fast as the server takes them; no reply is expected."""

    pieces: Callable[[], AsyncIterator[bytes]]
    stuffer: "DotStuffer"
    stage: Stage = Stage.DATA


class Pause(NamedTuple):
    """Await something of our own before going on. What it raises becomes the fault `mark-failed`."""

    until: Callable[[], Awaitable[None]]
    stage: Stage = Stage.DATA


Step = Send | Stream | Pause
Dialogue = Generator[Step, list[Reply], T]


class Interrupted(Exception):
    """The conversation ended inside a step. `replies` of the group came before; `sent`: the step's data was written."""

    def __init__(self, fault: DeliveryFault, replies: Sequence[Reply] = (), *, sent: bool = True) -> None:
        super().__init__(fault.cause)
        self.fault = fault
        self.replies = list(replies)
        self.sent = sent


class Unsafe(ValueError):
    """A value cannot stand in a command line: it holds a line end, a control character, or would end the address."""


# --- building commands ------------------------------------------------------------------------------------------------

_ORDINARY = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,128}@[A-Za-z0-9._-]{1,255}").fullmatch
# Dot-string or quoted string, then a domain or an address literal; beyond ASCII all but controls and line ends.
_BEYOND = "\xa0-\u2027\u202a-\ud7ff\ue000-\U0010ffff"
_GENERAL = re.compile(
    rf"(?:[A-Za-z0-9.!#$%&'*+/=?^_`{{|}}~{_BEYOND}-]+|\"(?:[ !#-\[\]-~{_BEYOND}]|\\[ -~])*\")"
    rf"@(?:[A-Za-z0-9._{_BEYOND}-]+|\[[A-Za-z0-9.:-]+\])"
).fullmatch
_POSTMASTER = re.compile("postmaster", re.IGNORECASE).fullmatch
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*").fullmatch
_ORCPT = re.compile(r"[A-Za-z0-9-]+;(?:[!-*,-<>-~]|\+[0-9A-F]{2})+").fullmatch
_NOTIFY = re.compile(r"(?:NEVER|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY)){0,2})", re.IGNORECASE).fullmatch
_EHLO_NAME = re.compile(r"[A-Za-z0-9._-]{1,255}|\[[A-Za-z0-9.:-]{2,64}\]").fullmatch
_UNSAFE_OCTET = re.compile(rb"[\x00-\x1f\x7f]").search


def command_line(line: str) -> bytes:
    """One command as octets. Raises Unsafe where it holds a control character."""
    data = line.encode("utf-8")
    if _UNSAFE_OCTET(data):
        raise Unsafe("A command line holds a control character.")
    return data + b"\r\n"


def path(address: str, *, utf8: bool = False) -> str:
    """The address as it stands between the angle brackets of MAIL and RCPT. Raises Unsafe.

    Without `utf8` an international domain becomes A-labels, and a local part beyond ASCII is refused.
    """
    if _ORDINARY(address):
        return address
    return _general_path(address, utf8)


@lru_cache(maxsize=1024)
def _general_path(address: str, utf8: bool) -> str:
    if not address or _POSTMASTER(address):
        return address
    if not _GENERAL(address):
        raise Unsafe("The address holds a character that would end it or inject a command.")
    if address.isascii() or utf8:
        return address
    local, _, domain = address.rpartition("@")
    if not local.isascii():
        raise Unsafe("The part before the @ needs SMTPUTF8.")
    try:
        return f"{local}@{idna.encode(domain, uts46=True).decode('ascii')}"
    except (idna.IDNAError, UnicodeError):
        raise Unsafe("The international domain is not valid.") from None


def needs_smtputf8(address: str) -> bool:
    """Whether an address needs SMTPUTF8, because its local part is beyond ASCII (RFC 6531 section 3.2)."""
    return not address.isascii() and not address.rpartition("@")[0].isascii()


def xtext(value: str) -> str:
    """Encode as xtext (RFC 3461 section 4)."""
    return "".join(c if "!" <= c <= "~" and c not in "+=" else "".join(f"+{o:02X}" for o in c.encode()) for c in value)


def essential_parameters(*, eight_bit: bool, utf8: bool) -> str:
    """Those parameters of MAIL without which the message must not go, each with a space in front."""
    return (" BODY=8BITMIME" if eight_bit else "") + (" SMTPUTF8" if utf8 else "")


def optional_parameters(envelope: Envelope, capabilities: "Capabilities", size: int) -> str:
    """Those that the server offers and the message has a use for (RFC 1870, 3461), each with a space in front."""
    parameters = f" SIZE={size}" if capabilities.size is not None else ""
    if capabilities.dsn and (envelope.ret or envelope.envid):
        if envelope.ret.upper() in ("FULL", "HDRS"):
            parameters += f" RET={envelope.ret.upper()}"
        if envelope.envid:
            parameters += f" ENVID={envelope.envid if _XTEXT(envelope.envid) else xtext(envelope.envid)}"
    return parameters


def mail_command(mail_from: str, parameters: str = "", *, utf8: bool = False) -> bytes:
    """MAIL FROM. Raises Unsafe."""
    return command_line(f"MAIL FROM:<{path(mail_from, utf8=utf8)}>{parameters}")


def rcpt_command(recipient: EnvelopeRecipient, *, dsn: bool = False, utf8: bool = False) -> bytes:
    """RCPT TO; where `dsn`, with NOTIFY and ORCPT as far as they are RFC 3461's. Raises Unsafe."""
    parameters = ""
    if dsn and (recipient.notify or recipient.orcpt):
        if _NOTIFY(recipient.notify):
            parameters += f" NOTIFY={recipient.notify.upper()}"
        if _ORCPT(recipient.orcpt):
            parameters += f" ORCPT={recipient.orcpt}"
    address = path(recipient.address, utf8=utf8)
    if not address:
        raise Unsafe("A recipient cannot be empty.")
    return command_line(f"RCPT TO:<{address}>{parameters}")


# --- content ----------------------------------------------------------------------------------------------------------


# Up to so many dots, looking at each is quicker than looking for two octets in a row.
_FEW_DOTS = 32


class DotStuffer:
    """Doubles dots at line starts (RFC 5321 section 4.5.2), over whatever borders the content is cut at.

    A last line of defence against content out of which a lenient server would read a second message: a dot behind a
    bare LF is doubled like any other, one behind a bare CR is refused with Unsafe, and so are NUL, which some servers
    drop, and content in which CR and LF do not go in pairs. That all of them are pairs is what submission sees to.
    """

    __slots__ = ("_at_line_start", "_carry", "octets")

    def __init__(self) -> None:
        self._at_line_start = True
        self._carry = b""
        self.octets = 0

    def feed(self, piece: bytes) -> bytes:
        """The next piece as it goes on the wire. Raises Unsafe."""
        if self._carry:
            piece, self._carry = self._carry + piece, b""
        if piece.endswith(b"\r"):
            # Whether it is bare, the next piece will say.
            piece, self._carry = piece[:-1], b"\r"
        if not piece:
            return piece
        if piece.count(b"\r") != piece.count(b"\n") or b"\0" in piece:
            raise Unsafe("The content holds a bare CR or LF, or a NUL.")
        starts_with_dot = self._at_line_start and piece.startswith(b".")
        self._at_line_start = piece.endswith(b"\n")
        if b"." in piece and _has_dot_after_line_feed(piece):
            piece = piece.replace(b"\n.", b"\n..")
        if starts_with_dot:
            piece = b"." + piece
        self.octets += len(piece)
        return piece

    def end(self) -> bytes:
        """What ends the content. Raises Unsafe where it ends in a bare CR."""
        if self._carry:
            raise Unsafe("The content ends in a bare CR.")
        return b".\r\n" if self._at_line_start else b"\r\n.\r\n"


def _has_dot_after_line_feed(piece: bytes) -> bool:
    """Whether a dot must be doubled. Raises Unsafe for a dot behind a bare CR."""
    if piece.count(b".") > _FEW_DOTS:
        if b"\r." in piece:
            raise Unsafe("The content holds a bare CR.")
        return b"\n." in piece
    found = False
    at = piece.find(b".", 1)
    while at > 0:
        before = piece[at - 1]
        if before == 10:
            found = True
        elif before == 13:
            raise Unsafe("The content holds a bare CR.")
        at = piece.find(b".", at + 1)
    return found


# --- opening ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the server offered in its reply to EHLO. `size` None: not announced; 0: no fixed limit (RFC 1870)."""

    name: str = ""
    esmtp: bool = False
    size: int | None = None
    pipelining: bool = False
    eight_bit: bool = False
    smtputf8: bool = False
    dsn: bool = False
    starttls: bool = False
    enhanced: bool = False
    chunking: bool = False
    auth: frozenset[str] = frozenset()
    # RFC 9422: MAILMAX, RCPTMAX, RCPTDOMAINMAX.
    limits: tuple[tuple[str, int], ...] = ()
    lines: tuple[str, ...] = ()

    def limit(self, name: str) -> int | None:
        """One of the limits; None where it was not given."""
        return dict(self.limits).get(name)


_FLAGS = {
    "PIPELINING": "pipelining",
    "8BITMIME": "eight_bit",
    "SMTPUTF8": "smtputf8",
    "DSN": "dsn",
    "STARTTLS": "starttls",
    "ENHANCEDSTATUSCODES": "enhanced",
    "CHUNKING": "chunking",
}


def parse_capabilities(reply: Reply) -> Capabilities:
    """Read the reply to EHLO (RFC 5321 section 4.1.1.1). What is not understood is ignored."""
    first, *lines = reply.text.split("\n")
    found: dict[str, bool] = {}
    size: int | None = None
    auth: set[str] = set()
    limits: dict[str, int] = {}
    for line in lines:
        # "AUTH=LOGIN" is how servers wrote it before RFC 2554, and some still do beside the right form.
        words = re.sub(r"^(AUTH)=", r"\1 ", line.strip(), flags=re.IGNORECASE).split()
        keyword = words[0].upper() if words else ""
        if keyword in _FLAGS:
            found[_FLAGS[keyword]] = True
        elif keyword == "SIZE":
            size = int(words[1]) if len(words) > 1 and re.fullmatch(r"[0-9]{1,18}", words[1]) else 0
        elif keyword == "AUTH":
            auth.update(word.upper() for word in words[1:])
        elif keyword == "LIMITS":
            limits = _parse_limits(words[1:])
    return Capabilities(
        name=first.split()[0] if first.split() else "",
        esmtp=True,
        size=size,
        auth=frozenset(auth),
        limits=tuple(limits.items()),
        lines=tuple(lines),
        **found,
    )


def _parse_limits(words: list[str]) -> dict[str, int]:
    """RFC 9422 section 3: values are 1 to 999999; unknown names and malformed values are ignored."""
    pairs = (re.fullmatch(r"(MAILMAX|RCPTMAX|RCPTDOMAINMAX)=([1-9][0-9]{0,5})", word.upper()) for word in words)
    return {pair[1]: int(pair[2]) for pair in pairs if pair is not None}


def greeting() -> Dialogue[Reply]:
    """Wait for the server's greeting. Raises DeliveryFault where it is not 220."""
    (reply,) = yield Send(b"", 1, "greeting", Stage.GREETING)
    if reply.code != 220:
        raise refused(Stage.GREETING, reply, detail="The server refused the connection in its greeting.")
    return reply


def ehlo(name: str) -> Dialogue[Capabilities]:
    """Say EHLO, or HELO to a server that knows no EHLO (RFC 5321 section 3.2). Raises DeliveryFault."""
    if not _EHLO_NAME(name):
        raise DeliveryFault("ehlo-name-unusable")
    (reply,) = yield Send(command_line(f"EHLO {name}"), 1, "command", Stage.CAPABILITY)
    if 200 <= reply.code < 300:
        return parse_capabilities(reply)
    if reply.code in (500, 501, 502, 504):
        (reply,) = yield Send(command_line(f"HELO {name}"), 1, "command", Stage.CAPABILITY)
        if 200 <= reply.code < 300:
            return Capabilities(name=reply.text.split()[0] if reply.text.split() else "")
    raise refused(Stage.CAPABILITY, reply)


def starttls() -> Dialogue[Reply]:
    """Ask for TLS (RFC 3207 section 4). On return the handshake must follow at once. Raises DeliveryFault."""
    (reply,) = yield Send(b"STARTTLS\r\n", 1, "command", Stage.TLS)
    if reply.code != 220:
        raise refused(Stage.TLS, reply, cause="starttls-refused")
    return reply


def ask(line: str, stage: Stage) -> Dialogue[Reply]:
    """One command, one reply, whatever it is. Raises Unsafe."""
    (reply,) = yield Send(command_line(line), 1, "command", stage)
    return reply


def reset() -> Dialogue[Reply]:
    """RSET: drop a transaction that was begun."""
    return ask("RSET", Stage.SENDER)


def quit_() -> Dialogue[Reply]:
    """QUIT."""
    return ask("QUIT", Stage.DATA)


# --- signing in -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SignedIn:
    """How the sign-in went: by which mechanism, and which others were tried before."""

    mechanism: str
    tried: tuple[str, ...]
    reply: Reply


def password_sign_in(
    auth: PasswordAuth, capabilities: Capabilities, *, is_encrypted: bool, allow_cleartext: bool
) -> list[SaslExchange]:
    """The exchanges that may be tried with this server. Pure; raises DeliveryFault where there is none."""
    if not is_encrypted and not allow_cleartext:
        raise DeliveryFault("auth-cleartext-forbidden")
    if auth.password is None:
        raise DeliveryFault("password-missing")
    if not capabilities.auth:
        raise DeliveryFault("auth-not-offered")
    try:
        exchanges = password_exchanges(
            auth.mechanism, auth.username, auth.password.get_secret_value(), capabilities.auth
        )
    except SaslFault:
        raise DeliveryFault("password-unusable") from None
    if not exchanges:
        offered = ", ".join(sorted(capabilities.auth))
        raise DeliveryFault(
            "mechanism-not-offered", detail=f"The server offers {offered}; none of them can be used with this sign-in."
        )
    return exchanges


def authenticate(
    auth: PasswordAuth, capabilities: Capabilities, *, is_encrypted: bool, allow_cleartext: bool
) -> Dialogue[SignedIn]:
    """Sign in with user name and password (RFC 4954). Raises DeliveryFault; without TLS only where allowed."""
    return (
        yield from sign_in(
            password_sign_in(auth, capabilities, is_encrypted=is_encrypted, allow_cleartext=allow_cleartext)
        )
    )


def sign_in(exchanges: Sequence[SaslExchange]) -> Dialogue[SignedIn]:
    """Try the exchanges in order. Raises DeliveryFault.

    The next one is tried only where the server refused the mechanism. A refused password is never tried again with
    another mechanism: that locks accounts.
    """
    tried: list[str] = []
    for position, exchange in enumerate(exchanges):
        tried.append(exchange.name)
        reply = yield from _one_exchange(exchange)
        if reply.code == 235:
            return SignedIn(exchange.name, tuple(tried), reply)
        if not (_refuses_mechanism(reply) and position + 1 < len(exchanges)):
            raise _sign_in_refused(exchange, reply)
    raise DeliveryFault("mechanism-not-offered")


def _one_exchange(exchange: SaslExchange) -> Dialogue[Reply]:
    """AUTH with one mechanism, up to the reply that ends it."""
    pending: bytes | None = exchange.initial()
    line = b"AUTH " + exchange.name.encode("ascii")
    # RFC 4954 section 4: an empty initial response is written "=".
    initial = line + b" " + (b64encode(pending) or b"=") + b"\r\n" if pending is not None else b""
    if pending is not None and len(initial) <= MAX_AUTH_LINE:
        pending = None
        (reply,) = yield Send(initial, 1, "command", Stage.AUTHENTICATE, True)
    else:
        (reply,) = yield Send(line + b"\r\n", 1, "command", Stage.AUTHENTICATE)
    for _ in range(MAX_AUTH_ROUNDS):
        if reply.code != 334:
            return reply
        try:
            if pending is not None:
                answer, pending = pending, None
            else:
                answer = exchange.respond(decode_challenge(reply.text))
        except SaslFault as fault:
            # RFC 4954 section 4: "*" ends the exchange.
            yield Send(b"*\r\n", 1, "command", Stage.AUTHENTICATE)
            raise DeliveryFault("auth-garbled", detail=str(fault)) from None
        (reply,) = yield Send(b64encode(answer) + b"\r\n", 1, "command", Stage.AUTHENTICATE, True)
    if reply.code == 334:
        yield Send(b"*\r\n", 1, "command", Stage.AUTHENTICATE)
        raise DeliveryFault("auth-garbled", detail="The server never comes to an end of the sign-in.")
    return reply


_MECHANISM_REFUSED = re.compile(
    r"(?:no|un\w+|not?\s+\w+|invalid|bad)\b.{0,40}\b(?:mechanism|auth\w*\s+(?:type|method))|"
    r"(?:mechanism|auth\w*\s+(?:type|method))\b.{0,40}\b(?:not|un\w+|disabled|invalid)",
    re.IGNORECASE,
)


def _refuses_mechanism(reply: Reply) -> bool:
    """Whether the server refused the mechanism rather than the password (RFC 4954 section 4 and 6: 504)."""
    if reply.code == 504:
        return True
    return 500 <= reply.code < 600 and reply.code != 534 and bool(_MECHANISM_REFUSED.search(reply.text[:500]))


def _sign_in_refused(exchange: SaslExchange, reply: Reply) -> DeliveryFault:
    error = getattr(exchange, "error", None)
    status = error.get("status") if error else None
    detail = f"The server refused the token with status {str(status)[:40]}." if status else ""
    cause = "mechanism-not-offered" if reply.code == 504 else ""
    return refused(Stage.AUTHENTICATE, reply, cause=cause, detail=detail)


# --- a transaction ----------------------------------------------------------------------------------------------------


class Content(Protocol):
    """A message: `header` with the empty line that ends it, then `body`, or `chunks` that give it piecemeal."""

    @property
    def header(self) -> bytes: ...

    @property
    def body(self) -> bytes | None: ...

    @property
    def size(self) -> int:
        """Octets of header and body together."""

    def chunks(self) -> AsyncIterator[bytes]: ...


@dataclass(slots=True)
class Transaction:
    """What became of a transaction: one outcome per recipient in order, and whether the connection can go on."""

    outcomes: list[Outcome]
    is_usable: bool = True


def _always() -> bool:
    return True


def transaction(
    envelope: Envelope,
    content: Content,
    capabilities: Capabilities,
    *,
    eight_bit: bool = False,
    utf8_header: bool = False,
    alive: Callable[[], bool] = _always,
    mark: Callable[[], Awaitable[None]] | None = None,
    is_kept: bool = False,
    assume_utf8: bool = False,
) -> Dialogue[Transaction]:
    """Hand one message to the server: MAIL, RCPT, DATA and the content.

    `eight_bit`, `utf8_header`: octets above 127 in the body, in the header. `alive` is asked before MAIL and before the
    final dot; where it says no, nothing more is written. `mark` is awaited before the final dot. `is_kept`: the
    connection has carried a message before, so that its end before MAIL is answered says nothing about the server.
    `assume_utf8`: the server takes UTF-8 though it does not offer SMTPUTF8.

    Never raises for trouble with the server: a loss before the final dot is deferred, one after it, before the reply,
    is uncertain. What the server cannot take is rejected before a byte is written.
    """
    run = _Transaction(envelope, content, capabilities, eight_bit, utf8_header, alive, mark, is_kept, assume_utf8)
    if not alive():
        return run.give_up("lease-lost", Stage.SENDER)
    try:
        return (yield from run.dialogue())
    except Interrupted as interruption:
        return run.interrupted(interruption)


class _Transaction:
    """The state of one transaction: which recipients have their outcome, and how far the conversation has come."""

    __slots__ = (
        "_utf8", "alive", "asked", "begun", "capabilities", "content", "eight_bit", "ending", "envelope", "is_kept",
        "mark", "outcomes", "pipelined", "recipients", "utf8_header",
    )  # fmt: skip

    def __init__(
        self,
        envelope: Envelope,
        content: Content,
        capabilities: Capabilities,
        eight_bit: bool,
        utf8_header: bool,
        alive: Callable[[], bool],
        mark: Callable[[], Awaitable[None]] | None,
        is_kept: bool,
        assume_utf8: bool,
    ) -> None:
        self.envelope = envelope
        self.content = content
        self.capabilities = capabilities
        self.eight_bit = eight_bit
        self.utf8_header = utf8_header
        self.alive = alive
        self.mark = mark
        self.is_kept = is_kept
        self.outcomes: list[Outcome | None] = [None] * len(envelope.recipients)
        # Positions of the recipients named to the server, in the order of their RCPT, and of those it took.
        self.asked: list[int] = []
        self.recipients: list[int] = []
        # Whether addresses and header may stand in UTF-8.
        self._utf8 = capabilities.smtputf8 or assume_utf8
        # Where an interruption would find us: inside the group of MAIL, RCPT and DATA; MAIL accepted; the end written.
        self.pipelined = False
        self.begun = False
        self.ending = False

    def dialogue(self) -> Dialogue[Transaction]:
        fault = self.obstacle()
        if fault is not None:
            self.fill(fault.outcome())
            return self.done()
        commands = self.rcpt_commands()
        if not commands:
            return self.done()
        full, essential = self.parameters()
        try:
            mail = mail_command(self.envelope.mail_from, full, utf8=self._utf8)
        except Unsafe:
            self.fill(DeliveryFault("sender-unusable").outcome())
            return self.done()
        reply = yield from self.envelope_phase(mail, commands)
        if not self.begun and reply.code in (501, 504, 555) and full != essential:
            # The server offers an extension and refuses its parameter: once more without what can be left out.
            self.forget(self.asked)
            mail = mail_command(self.envelope.mail_from, essential, utf8=self._utf8)
            reply = yield from self.envelope_phase(mail, commands)
        if self.recipients and reply.code == 354:
            return (yield from self.content_phase())
        return (yield from self.without_content(reply))

    # Before a byte is written.

    def obstacle(self) -> DeliveryFault | None:
        """Why the server cannot take this message at all."""
        limit = self.capabilities.size
        if limit and self.content.size > limit:
            detail = (
                f"The message has {self.content.size} octets; the server announces to take {limit}. Nothing was sent."
            )
            return DeliveryFault(
                "message-too-large", detail=detail, reply=Reply(552, "5.3.4", "Message size exceeds the server's limit")
            )
        if not self._utf8 and (self.utf8_header or needs_smtputf8(self.envelope.mail_from)):
            return _smtputf8_missing(Stage.SENDER, Scope.MESSAGE)
        return None

    def rcpt_commands(self) -> list[bytes]:
        """The RCPT of each recipient that can be named; the others get their outcome."""
        capabilities = self.capabilities
        most = min((capabilities.limit("RCPTMAX") if capabilities.limits else None) or MAX_RECIPIENTS, MAX_RECIPIENTS)
        commands: list[bytes] = []
        for position, recipient in enumerate(self.envelope.recipients):
            if len(commands) == most:
                self.outcomes[position] = DeliveryFault("too-many-recipients").outcome()
                continue
            if not self._utf8 and needs_smtputf8(recipient.address):
                self.outcomes[position] = _smtputf8_missing(Stage.RECIPIENT, Scope.RECIPIENT).outcome()
                continue
            try:
                commands.append(rcpt_command(recipient, dsn=capabilities.dsn, utf8=self._utf8))
            except Unsafe:
                self.outcomes[position] = DeliveryFault("address-unusable").outcome()
            else:
                self.asked.append(position)
        return commands

    def parameters(self) -> tuple[str, str]:
        """All parameters of MAIL that help, and those alone without which the message must not go."""
        capabilities, envelope = self.capabilities, self.envelope
        utf8 = capabilities.smtputf8 and (
            self.utf8_header
            or not envelope.mail_from.isascii()
            or any(not envelope.recipients[position].address.isascii() for position in self.asked)
        )
        # RFC 6531 section 3.6: a header in UTF-8 is eight-bit content, too.
        eight_bit = capabilities.eight_bit and (self.eight_bit or self.utf8_header)
        essential = essential_parameters(eight_bit=eight_bit, utf8=utf8)
        return essential + optional_parameters(envelope, capabilities, self.content.size), essential

    # MAIL, RCPT and DATA. Returns the reply that ends the phase: that to DATA, or the refusal of MAIL, or the last one
    # to RCPT where no recipient was taken and DATA was not asked for.

    def envelope_phase(self, mail: bytes, commands: list[bytes]) -> Dialogue[Reply]:
        if self.capabilities.pipelining:
            return self.in_one_group(mail, commands)
        return self.step_by_step(mail, commands)

    def in_one_group(self, mail: bytes, commands: list[bytes]) -> Dialogue[Reply]:
        """RFC 2920 section 3.1: everything up to DATA in one write."""
        self.pipelined = True
        replies = yield Send(b"".join((mail, *commands, b"DATA\r\n")), len(commands) + 2, "command", Stage.SENDER)
        self.pipelined = False
        self.read_group(replies[:-1])
        last = replies[-1]
        if self.begun:
            return last
        if last.code == 354:
            # The server waits for content that belongs to nothing: nothing sane can follow on this connection.
            raise Interrupted(DeliveryFault("out-of-step", stage=Stage.SENDER), sent=False)
        return last if last.code == 421 else replies[0]

    def read_group(self, replies: list[Reply]) -> None:
        """Read the replies to MAIL and to as many RCPT as there are."""
        if not 200 <= replies[0].code < 300:
            self.refuse(Stage.SENDER, replies[0])
            return
        self.begun = True
        for position, reply in zip(self.asked, replies[1:], strict=False):
            self.recipient_reply(position, reply)

    def step_by_step(self, mail: bytes, commands: list[bytes]) -> Dialogue[Reply]:
        (reply,) = yield Send(mail, 1, "command", Stage.SENDER)
        if not 200 <= reply.code < 300:
            self.refuse(Stage.SENDER, reply)
            return reply
        self.begun = True
        for position, command in zip(self.asked, commands, strict=True):
            (reply,) = yield Send(command, 1, "command", Stage.RECIPIENT)
            self.recipient_reply(position, reply)
            if reply.code == 421:
                self.refuse(Stage.RECIPIENT, reply)
                self.recipients.clear()
                return reply
        if self.recipients:
            (reply,) = yield Send(b"DATA\r\n", 1, "data_start", Stage.DATA)
        return reply

    def recipient_reply(self, position: int, reply: Reply) -> None:
        if 200 <= reply.code < 300:
            self.recipients.append(position)
        elif self.recipients and _is_too_many(reply):
            # RFC 5321 section 4.5.3.1.10: enough for this transaction; the rest goes in another one at once.
            self.outcomes[position] = DeliveryFault("too-many-recipients", reply=reply).outcome()
        else:
            self.outcomes[position] = self.outcome_of(Stage.RECIPIENT, reply)

    # The content, after 354.

    def content_phase(self) -> Dialogue[Transaction]:
        try:
            end = yield from self.write_content()
        except Unsafe:
            return self.give_up("content-unsafe", Stage.DATA)
        if end is None:
            return self.give_up("lease-lost", Stage.DATA)
        self.ending = True
        (reply,) = yield end
        if 300 <= reply.code < 400:
            raise Interrupted(DeliveryFault("out-of-step", stage=Stage.DATA))
        self.fill(self.outcome_of(Stage.DATA, reply))
        return self.done(is_usable=reply.code != 421)

    def write_content(self) -> Generator[Step, list[Reply], Send | None]:
        """Write all but what ends the content; returns the step that ends it, or None where our lease is lost."""
        content = self.content
        stuffer = DotStuffer()
        if content.body is not None and content.size <= SINGLE_WRITE_OCTETS:
            wire = stuffer.feed(content.header) + stuffer.feed(content.body) + stuffer.end()
        else:
            yield Stream(_pieces(content), stuffer)
            wire = stuffer.end()
        if self.mark is not None:
            yield Pause(self.mark)
        return Send(wire, 1, "data_end", Stage.DATA) if self.alive() else None

    def without_content(self, reply: Reply) -> Dialogue[Transaction]:
        """The content is not wanted: end what was begun, so that the connection can carry the next message."""
        if self.recipients:
            if reply.code < 400:
                return self.give_up("out-of-step", Stage.DATA)
            self.fill(self.outcome_of(Stage.DATA, reply))
        if reply.code == 421:
            return self.done(is_usable=False)
        if not self.begun:
            return self.done()
        # RFC 2920 section 3.1: where DATA was accepted though no recipient was, a lone dot, whose reply means nothing.
        # Otherwise RSET. The outcomes stand, whatever it brings.
        is_open = reply.code == 354
        step = Send(b".\r\n", 1, "data_end", Stage.DATA) if is_open else Send(b"RSET\r\n", 1, "command", Stage.DATA)
        try:
            (answer,) = yield step
        except Interrupted:
            return self.done(is_usable=False)
        return self.done(is_usable=answer.code != 421 and (is_open or 200 <= answer.code < 300))

    # Outcomes.

    def outcome_of(self, stage: Stage, reply: Reply) -> Outcome:
        code = reply.code
        if 200 <= code < 300:
            return Outcome(Result.DELIVERED, Scope.NOBODY, stage, reply)
        if code < 400:
            # 3yz where it cannot be: the server and we are not in step.
            return DeliveryFault("out-of-step", stage=stage, reply=reply).outcome()
        result, scope, retry_after_s, cause = classify(stage, reply)
        if code == 421 and self.is_kept and stage is Stage.SENDER:
            # The end of a connection that has carried mail, whatever words it ends with: a fresh one tells more.
            result, scope, cause = Result.DEFERRED, Scope.CONNECTION, "stale-connection"
        elif code == 421 and scope is Scope.CONNECTION and not self.is_kept:
            # On a fresh connection another one would meet the same.
            scope = Scope.SERVER
        return Outcome(result, scope, stage, reply, cause, "", retry_after_s)

    def refuse(self, stage: Stage, reply: Reply) -> None:
        """Give every recipient that the server had taken or not answered yet the outcome of this reply."""
        outcome = self.outcome_of(stage, reply)
        for position in self.asked:
            if self.outcomes[position] is None:
                self.outcomes[position] = outcome

    def forget(self, positions: list[int]) -> None:
        for position in positions:
            self.outcomes[position] = None

    def fill(self, outcome: Outcome) -> None:
        """Give every recipient that has none this outcome."""
        outcomes = self.outcomes
        for position, present in enumerate(outcomes):
            if present is None:
                outcomes[position] = outcome

    def done(self, *, is_usable: bool = True) -> Transaction:
        return Transaction(cast(list[Outcome], self.outcomes), is_usable)

    def give_up(self, cause: str, stage: Stage) -> Transaction:
        """Stop here for a reason of our own; the connection is in the middle of something and must go."""
        self.fill(DeliveryFault(cause, stage=stage).outcome())
        return self.done(is_usable=False)

    def interrupted(self, interruption: Interrupted) -> Transaction:
        """The conversation ended: what was answered stands, the rest is deferred, or uncertain after the final dot."""
        if self.pipelined and interruption.replies:
            self.read_group(interruption.replies)
        self.fill(self.outcome_of_loss(interruption))
        return self.done(is_usable=False)

    def outcome_of_loss(self, interruption: Interrupted) -> Outcome:
        fault = interruption.fault
        if self.ending and interruption.sent:
            detail = f"{fault.detail} The message had been sent whole and no reply came: perhaps it was taken."
            return Outcome(Result.UNCERTAIN, Scope.CONNECTION, Stage.DATA, None, fault.cause, detail)
        stage = fault.stage
        if self.pipelined and interruption.replies:
            stage = Stage.RECIPIENT if len(interruption.replies) <= len(self.asked) else Stage.DATA
        if fault.reply is not None:
            return self.outcome_of(stage, fault.reply)
        if self.is_kept and not self.begun and fault.cause in _LOSSES:
            return DeliveryFault("stale-connection", stage=Stage.SENDER).outcome()
        return Outcome(fault.result, fault.scope, stage, None, fault.cause, fault.detail, fault.retry_after_s)


_LOSSES = frozenset({"closed", "reset", "connection-lost"})
# A full mailbox or disk has the same code as too many recipients.
_OTHER_THAN_COUNT = re.compile(r"storage|space|disk|full|quota|memory|greylist|try again", re.IGNORECASE)
_COUNT = re.compile(
    r"too many (?:valid )?(?:recipients|rcpt)|recipient limit|max\w* (?:number of )?recipients", re.IGNORECASE
)


def _is_too_many(reply: Reply) -> bool:
    """Whether a refusal of RCPT, after others were taken, means: no more in this transaction."""
    if reply.code == 452:
        if reply.enhanced == "4.5.3":
            return True
        return _COUNT.search(reply.text) is not None or (
            not reply.enhanced and _OTHER_THAN_COUNT.search(reply.text) is None
        )
    return reply.code in (451, 552) and _COUNT.search(reply.text) is not None


def _smtputf8_missing(stage: Stage, scope: Scope) -> DeliveryFault:
    # RFC 6531 section 3.5; the reply is ours, so that a bounce carries the right status.
    reply = Reply(553, "5.6.7", "The server does not offer SMTPUTF8, which this address or header needs")
    return DeliveryFault("smtputf8-missing", stage=stage, scope=scope, reply=reply)


def _pieces(content: Content) -> Callable[[], AsyncIterator[bytes]]:
    """The content piece by piece, from memory or from where it is kept."""

    async def pieces() -> AsyncIterator[bytes]:
        yield content.header
        if content.body is not None:
            for start in range(0, len(content.body), SINGLE_WRITE_OCTETS):
                yield content.body[start : start + SINGLE_WRITE_OCTETS]
        else:
            async for chunk in content.chunks():
                yield chunk

    return pieces
