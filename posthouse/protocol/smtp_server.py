"""The server side of an SMTP submission session (RFC 5321, 6409) as a state machine without I/O.

What goes in: the octets of the client, in any pieces. What comes out: the octets of the replies, and now and then one
thing that only others can do - start TLS, take a message over, close - which stands in `pending`. While something is
pending, input is kept and not read, so that a client that sends ahead (RFC 2920) stays in step.

Who may submit what is decided by the policy; addresses are read by `posthouse.model.address`; the content goes through
`posthouse.protocol.smtp_server_data`. Nothing here knows sockets, clocks, tasks, the store or a logger.

Where it is strict: commands end in CR LF (a line that ends in LF alone is answered 500 5.5.2 and not carried out), no
control characters, one transaction at a time, EHLO or HELO first, no password without TLS except on loopback.
Where it is lenient, because devices are: HELO instead of EHLO before AUTH and parameters, spaces after the colon, paths
without brackets, any printable name in EHLO, lines of content of any length. Source routes are dropped.
"""

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, TypeAlias

from posthouse.errors import PosthouseError, TooManyRequests
from posthouse.model.address import fast_ascii_address
from posthouse.model.message import Envelope, EnvelopeRecipient, Origin
from posthouse.protocol.smtp_server_data import BareLineEnds, ContentBuffer, DataFault, DataReader
from posthouse.protocol.smtp_server_syntax import (
    BAD_MAIL_SYNTAX,
    BAD_RCPT_SYNTAX,
    NEEDS_SMTPUTF8,
    Rejected,
    format_reply,
    read_address,
    read_base64,
    read_helo,
    read_mail_parameters,
    read_rcpt_parameters,
    reply_to_error,
    split_path,
)

__all__ = [
    "BareLineEnds",
    "Close",
    "ContentBuffer",
    "Notice",
    "OpenContent",
    "Pending",
    "Sender",
    "ServerSession",
    "SessionSettings",
    "StartTls",
    "SubmissionPolicy",
    "Submitted",
    "Tally",
    "format_reply",
    "reply_to_error",
]


# --- what others bring -----------------------------------------------------------------------------------------------


class Sender(Protocol):
    """Whoever was recognised: by the network at connect, or by a credential."""

    @property
    def label(self) -> str:
        """A short name for logs."""


class SubmissionPolicy(Protocol):
    """Who may submit, and what. Every call is answered from memory, at once; none may block."""

    def admit(self, peer_ip: str) -> Sender | None:
        """Whoever may submit from this address without a credential (network allow-list), or None."""

    def authenticate(self, username: str, password: str, peer_ip: str) -> Sender | None:
        """Whose credential this is, or None. Raises TooManyRequests while guesses are being slowed down."""

    def check_mail_from(self, sender: Sender, mail_from: str, size: int | None, smtputf8: bool) -> None:
        """Raise PosthouseError where the sender may not use `mail_from` ("" = null sender) or submit at all."""

    def check_recipient(self, sender: Sender, address: str) -> None:
        """Raise PosthouseError where no server can carry mail to `address`."""


# Makes the buffer of one message; takes the octets that SIZE= announced, or None. May raise PosthouseError.
OpenContent: TypeAlias = Callable[[int | None], ContentBuffer]


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SessionSettings:
    """What holds for every session of a listener."""

    # The name in greeting and EHLO reply.
    hostname: str
    # The largest content that is taken, in octets; shown as SIZE (RFC 1870).
    max_message_octets: int = 50 * 1024 * 1024
    # Shown as RCPTMAX (RFC 9422); at least 100 (RFC 5321 section 4.5.3.1.8).
    max_recipients: int = 1_000
    # One command line with its line end. RFC 4954 section 4.9 asks for 12,288 octets, RFC 5321 for 512.
    max_command_octets: int = 12_288
    # Refused commands without a message in between after which the session ends: programs that guess, or talk another
    # protocol.
    max_errors: int = 20
    # Wrong passwords after which the session ends.
    max_auth_failures: int = 5
    starttls_offered: bool = False
    # AUTH without TLS, for peers on loopback.
    auth_offered_without_tls: bool = True
    bare_line_ends: BareLineEnds = BareLineEnds.REFUSE
    # Read addresses by the lenient rule of posthouse.model.address.
    lenient_addresses: bool = False
    # Octets sent ahead that are kept while something is pending; more raises `wants_pause`.
    max_waiting_octets: int = 256 * 1024

    @cached_property
    def greeting(self) -> bytes:
        """The first line of a session. It names no program version."""
        return f"220 {self.hostname} ESMTP ready\r\n".encode("ascii")

    @cached_property
    def helo_reply(self) -> bytes:
        """The reply to HELO."""
        return f"250 {self.hostname}\r\n".encode("ascii")

    @cached_property
    def ehlo_replies(self) -> dict[tuple[bool, bool], bytes]:
        """The replies to EHLO by (STARTTLS is offered, AUTH is offered)."""
        return {(tls, auth): self._ehlo_reply(tls, auth) for tls in (False, True) for auth in (False, True)}

    def _ehlo_reply(self, starttls: bool, auth: bool) -> bytes:
        lines = [self.hostname, "PIPELINING", f"SIZE {self.max_message_octets}"]
        if starttls:
            lines.append("STARTTLS")
        if auth:
            lines.append("AUTH PLAIN LOGIN")
        lines += ["8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES", f"LIMITS RCPTMAX={self.max_recipients}"]
        last = lines.pop()
        return ("".join(f"250-{line}\r\n" for line in lines) + f"250 {last}\r\n").encode("ascii")


# --- what comes out --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartTls:
    """The output is to be sent, then the TLS handshake done, then `resume_tls` called."""


@dataclass(frozen=True, slots=True)
class Close:
    """The output is to be sent, then the connection closed. `asked` = by QUIT: the client reads no further."""

    asked: bool


@dataclass(frozen=True, slots=True)
class Submitted:
    """A whole message, to be kept or refused, then `resume_reply` called.

    Whoever receives it finishes or abandons the content.
    """

    envelope: Envelope
    content: ContentBuffer
    sender: Sender
    origin: Origin
    # BODY=8BITMIME was given; what the content really holds is found out by the submission.
    eight_bit_declared: bool
    # EHLO, not HELO: decides the protocol name in Received (RFC 3848).
    extended: bool


Pending: TypeAlias = StartTls | Submitted | Close


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that an administrator may want to find in the log. The values hold no secret and no content."""

    event: str
    facts: dict[str, str | int]


@dataclass(slots=True)
class Tally:
    """Counters that several sessions share."""

    auth_successes: int = 0
    auth_failures: int = 0
    # Commands refused for their form or their place, not by the policy.
    command_errors: int = 0
    # Messages whose content was refused for bare CR, bare LF or NUL.
    bad_line_ends: int = 0
    too_large: int = 0


@dataclass(slots=True)
class _Transaction:
    """The mail transaction in progress (RFC 5321 section 3.3)."""

    mail_from: str
    size: int | None = None
    smtputf8: bool = False
    eight_bit: bool = False
    ret: str = ""
    envid: str = ""
    recipients: list[EnvelopeRecipient] = field(default_factory=list)
    # RCPT was sent, so that DATA without any recipient left is told apart from DATA out of place.
    rcpt_seen: bool = False


# --- replies ---------------------------------------------------------------------------------------------------------

_OK = format_reply(250, "2.0.0", "Ok")
_MAIL_OK = format_reply(250, "2.1.0", "Ok")
_RCPT_OK = format_reply(250, "2.1.5", "Ok")
_GO_AHEAD = b"354 End data with <CR><LF>.<CR><LF>\r\n"
_GOODBYE = format_reply(221, "2.0.0", "Goodbye")
_HELP = format_reply(214, "2.0.0", "Submission server. Commands: EHLO HELO AUTH STARTTLS MAIL RCPT DATA RSET NOOP QUIT")
_NOT_VERIFIED = format_reply(252, "2.0.0", "Not verified; send mail and see")
_TLS_READY = format_reply(220, "2.0.0", "Ready to start TLS")
_AUTH_OK = format_reply(235, "2.7.0", "Authentication successful")
# RFC 4954 section 4: the text after 334 is base64; LOGIN asks "Username:" and "Password:".
_ASK_RESPONSE = b"334 \r\n"
_ASK_USERNAME = b"334 VXNlcm5hbWU6\r\n"
_ASK_PASSWORD = b"334 UGFzc3dvcmQ6\r\n"

_BARE_LF = format_reply(500, "5.5.2", "Lines must end in CR LF")
_CONTROL_CHARACTER = format_reply(500, "5.5.2", "Control characters are not allowed in commands")
_LINE_TOO_LONG = format_reply(500, "5.5.2", "Line too long")
_UNKNOWN = format_reply(500, "5.5.2", "Command not recognised")
_NOT_IMPLEMENTED = format_reply(502, "5.5.1", "Command not implemented")
_NO_ARGUMENT = format_reply(501, "5.5.4", "This command takes no argument")
_NEEDS_NAME = format_reply(501, "5.5.4", "Syntax: EHLO name")
_EHLO_FIRST = format_reply(503, "5.5.1", "Send EHLO first")
_NESTED_MAIL = format_reply(503, "5.5.1", "A transaction is in progress")
_MAIL_FIRST = format_reply(503, "5.5.1", "Send MAIL first")
_RCPT_FIRST = format_reply(503, "5.5.1", "Send RCPT first")
_NO_RECIPIENTS = format_reply(554, "5.5.1", "No valid recipients")
_TOO_MANY_RECIPIENTS = format_reply(452, "4.5.3", "Too many recipients in one transaction")
_TOO_LARGE = format_reply(552, "5.3.4", "The message is larger than this server takes")
_BAD_CHARACTERS = format_reply(550, "5.6.11", "The message holds bare CR, bare LF or NUL; lines must end in CR LF")
_AUTH_NEEDED = format_reply(530, "5.7.0", "Authentication required")
_TLS_NEEDED = format_reply(530, "5.7.0", "Authentication required; issue STARTTLS first")
_AUTH_NEEDS_TLS = format_reply(538, "5.7.11", "Encryption is required to authenticate")
_AUTH_FAILED = format_reply(535, "5.7.8", "Authentication credentials invalid")
_AUTH_UNKNOWN = format_reply(504, "5.5.4", "Mechanism not supported; use PLAIN or LOGIN")
_AUTH_CANCELLED = format_reply(501, "5.7.0", "Authentication cancelled")
_AUTH_MALFORMED = format_reply(501, "5.5.2", "The response is malformed")
_AUTH_DONE = format_reply(503, "5.5.1", "Already authenticated")
_AUTH_IN_MAIL = format_reply(503, "5.5.1", "Not during a transaction")
_AUTH_SLOWED = "Too many failed attempts; try again later"
_NO_STARTTLS = format_reply(502, "5.5.1", "TLS is not available")
_TLS_ACTIVE = format_reply(503, "5.5.1", "TLS is active already")
_TOO_MANY_ERRORS = format_reply(421, "4.7.0", "Too many errors")
_TOO_MANY_GUESSES = format_reply(421, "4.7.0", "Too many failed attempts to authenticate")
_WRONG_PROTOCOL = format_reply(500, "5.5.2", "This is an SMTP server")
_SHUTTING_DOWN = format_reply(421, "4.3.2", "Service is shutting down")

# A command line: no control characters, CR LF at its end.
_is_clean_line = re.compile(rb"[^\x00-\x1f\x7f]*+\r\n").fullmatch
_fast_mail = re.compile(
    rb"[Ff][Rr][Oo][Mm]:<([!-;=?-~]{1,254})>(?: [Ss][Ii][Zz][Ee]=([0-9]{1,20}))?(?: BODY=(7BIT|8BITMIME))?"
).fullmatch
_fast_rcpt = re.compile(rb"[Tt][Oo]:<([!-;=?-~]{1,254})>").fullmatch
_TLS_RECORD = b"\x16\x03"


# --- the session -----------------------------------------------------------------------------------------------------


class ServerSession:
    """One session with one client.

    Feed `receive`, send `take_output`, then look at `pending`. `loopback` is true for peers on this machine;
    `encrypted` for connections that began with TLS, whose version is `tls_version`. The caller empties `notices`.
    """

    __slots__ = (
        "_authenticated",
        "_extended",
        "_helo",
        "_loopback",
        "_mail_refused",
        "_open_content",
        "_origin",
        "_output",
        "_partial",
        "_policy",
        "_reader",
        "_rest",
        "_rest_position",
        "_sasl",
        "_settings",
        "_skipping",
        "_tally",
        "_tls_version",
        "_transaction",
        "_username",
        "_waiting",
        "_waiting_octets",
        "_winding_down",
        "auth_failures",
        "encrypted",
        "errors",
        "notices",
        "peer",
        "pending",
        "sender",
        "steps",
    )

    def __init__(
        self,
        settings: SessionSettings,
        policy: SubmissionPolicy,
        *,
        peer: str,
        encrypted: bool,
        loopback: bool,
        open_content: OpenContent,
        tls_version: str = "",
        tally: Tally | None = None,
    ) -> None:
        self.peer = peer
        self.encrypted = encrypted
        self.pending: Pending | None = None
        self.notices: list[Notice] = []
        self.errors = 0
        self.auth_failures = 0
        # Grows with each command and each message read: what a watch on slow clients looks at.
        self.steps = 0
        self.sender = policy.admit(peer)
        self._settings = settings
        self._policy = policy
        self._loopback = loopback
        self._open_content = open_content
        self._tls_version = tls_version
        self._tally = tally if tally is not None else Tally()
        self._authenticated = False
        self._helo: str | None = None
        self._extended = False
        self._origin: Origin | None = None
        self._transaction: _Transaction | None = None
        # The last MAIL was refused for what it said: the RCPT and DATA that were sent along are no fault of the client.
        self._mail_refused = False
        # Reads the content while there is some to come.
        self._reader: DataReader | None = None
        # Reads the next line in an AUTH exchange.
        self._sasl: Callable[[bytes], None] | None = None
        self._username = ""
        self._output: list[bytes] = []
        # The beginning of a line whose end has not come.
        self._partial = bytearray()
        self._skipping = False
        # What came behind that which made something pending: the rest of that piece, then whole pieces.
        self._rest = b""
        self._rest_position = 0
        self._waiting: deque[bytes] = deque()
        self._waiting_octets = 0
        self._winding_down = False

    # --- for the caller ---

    def greeting(self) -> bytes:
        """The first line, to be sent once the connection (and implicit TLS) stands."""
        return self._settings.greeting

    def receive(self, data: bytes) -> None:
        """Take octets from the client. After `Close` became pending they are dropped."""
        if self.pending is None:
            self._read(data, 0)
        elif not isinstance(self.pending, Close):
            self._waiting.append(data)
            self._waiting_octets += len(data)

    def take_output(self) -> bytes:
        """The replies since the last call, in one piece."""
        output = self._output
        if not output:
            return b""
        joined = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return joined

    @property
    def wants_pause(self) -> bool:
        """Whether so much was sent ahead that no more should be read until something pending is resumed."""
        return self._waiting_octets > self._settings.max_waiting_octets

    @property
    def is_reading_content(self) -> bool:
        """Whether the client is in the middle of DATA."""
        return self._reader is not None

    @property
    def content_octets(self) -> int:
        """Octets of content read so far in this DATA."""
        return self._reader.octets if self._reader is not None else 0

    def resume_reply(self, reply: bytes | tuple[int, str, str]) -> None:
        """Answer the message that is pending and go on with what was sent ahead. Does nothing after `end`."""
        if not isinstance(self.pending, Submitted):
            return
        self.pending = None
        self.steps += 1
        self._output.append(reply if isinstance(reply, bytes) else format_reply(*reply))
        if self._winding_down:
            self._close(_SHUTTING_DOWN)
        else:
            self._resume()

    def resume_tls(self, tls_version: str = "") -> None:
        """Go on after the handshake. What was learned in clear is forgotten (RFC 3207 section 4.2)."""
        self.pending = None
        self.steps += 1
        self.encrypted = True
        self._tls_version = tls_version
        self._helo = None
        self._extended = False
        self._origin = None
        self._authenticated = False
        self.sender = self._policy.admit(self.peer)
        self._resume()

    def wind_down(self) -> None:
        """End the session as soon as no message is on its way in or being kept: 421 4.3.2 (RFC 5321 section 3.8)."""
        self._winding_down = True
        if self.pending is None and self._reader is None:
            self._close(_SHUTTING_DOWN)

    def end(self, reply: bytes) -> None:
        """Say `reply` and close, whatever is going on. Content that has not come to its end is given up."""
        if not isinstance(self.pending, Close):
            self._close(reply)

    def connection_lost(self) -> None:
        """Give up what can't come to its end any more. A message that is pending is not touched."""
        if not isinstance(self.pending, Submitted):
            self._close(b"")
        self._output.clear()

    # --- input ---

    def _resume(self) -> None:
        rest, position = self._rest, self._rest_position
        self._rest = b""
        self._read(rest, position)
        while self.pending is None and self._waiting:
            data = self._waiting.popleft()
            self._waiting_octets -= len(data)
            self._read(data, 0)

    def _read(self, data: bytes, position: int) -> None:
        end = len(data)
        while position < end:
            if self._reader is not None:
                position = self._reader.take(data, position)
                if position < 0:
                    return
                self._end_content(self._reader)
            else:
                line_end = data.find(b"\n", position) + 1
                if not line_end:
                    self._keep_partial(data[position:])
                    return
                line = data[position:line_end]
                position = line_end
                if self._partial or self._skipping:
                    line = self._complete(line)
                self._take_line(line)
            if self.pending is not None:
                # What stands behind STARTTLS or the end of the session is dropped.
                if isinstance(self.pending, Submitted):
                    self._rest, self._rest_position = data, position
                elif isinstance(self.pending, StartTls) and position < end:
                    self._notice("smtp.input_before_tls_dropped", octets=end - position)
                return

    def _keep_partial(self, data: bytes) -> None:
        if self._skipping:
            return
        partial = self._partial
        partial += data
        if len(partial) > self._settings.max_command_octets:
            self._skipping = True
            partial.clear()
        elif partial.startswith(_TLS_RECORD):
            self._refuse_tls_record()

    def _complete(self, line: bytes) -> bytes:
        """The whole line, of which `line` is the last part; an over-long one where its beginning was dropped."""
        if self._skipping:
            self._skipping = False
            return bytes(self._settings.max_command_octets) + b"\r\n"
        line = bytes(self._partial) + line
        self._partial.clear()
        return line

    def _take_line(self, line: bytes) -> None:
        self.steps += 1
        sasl, self._sasl = self._sasl, None
        try:
            if len(line) > self._settings.max_command_octets:
                raise Rejected(_LINE_TOO_LONG)
            if _is_clean_line(line) is None:
                self._refuse_line(line)
            elif sasl is not None:
                sasl(line[:-2])
            else:
                verb, _, argument = line[:-2].partition(b" ")
                _COMMANDS.get(verb.upper(), ServerSession._unknown)(self, argument)
        except Rejected as rejected:
            self._reject(rejected)
        except PosthouseError as error:
            self._output.append(reply_to_error(error))

    def _refuse_line(self, line: bytes) -> None:
        if line.startswith(_TLS_RECORD):
            self._refuse_tls_record()
        else:
            raise Rejected(_CONTROL_CHARACTER if line.endswith(b"\r\n") else _BARE_LF)

    def _refuse_tls_record(self) -> None:
        """A device set to implicit TLS on a port without it: closing is all it understands."""
        self._notice("smtp.tls_on_plain_port")
        self._close(b"")

    def _reject(self, rejected: Rejected) -> None:
        """Refuse a command for its form or place, and end the session when that happened too often."""
        self._output.append(rejected.reply)
        if not rejected.counts:
            return
        self.errors += 1
        self._tally.command_errors += 1
        if self.errors >= self._settings.max_errors:
            self._notice("smtp.too_many_errors", errors=self.errors)
            self._close(_TOO_MANY_ERRORS)

    def _close(self, reply: bytes, *, asked: bool = False) -> None:
        if reply:
            self._output.append(reply)
        if self._reader is not None:
            self._reader.abandon()
            self._reader = None
        self._transaction = None
        self._sasl = None
        self._partial.clear()
        self._rest = b""
        self._waiting.clear()
        self._waiting_octets = 0
        self.pending = Close(asked)

    def _notice(self, event: str, **facts: str | int) -> None:
        self.notices.append(Notice(event, {"peer": self.peer, **facts}))

    # --- commands without a transaction ---

    def _ehlo(self, argument: bytes) -> None:
        self._greeted(argument, extended=True)
        settings = self._settings
        offers = (settings.starttls_offered and not self.encrypted, self._may_authenticate and not self._authenticated)
        self._output.append(settings.ehlo_replies[offers])

    def _helo_command(self, argument: bytes) -> None:
        self._greeted(argument, extended=False)
        self._output.append(self._settings.helo_reply)

    def _greeted(self, argument: bytes, *, extended: bool) -> None:
        name = argument.strip(b" ")
        if not name:
            raise Rejected(_NEEDS_NAME)
        self._helo = read_helo(name)
        self._extended = extended
        self._origin = None
        self._transaction = None

    @property
    def _may_authenticate(self) -> bool:
        return self.encrypted or (self._loopback and self._settings.auth_offered_without_tls)

    def _rset(self, argument: bytes) -> None:
        _want_no_argument(argument)
        self._transaction = None
        self._output.append(_OK)

    def _noop(self, argument: bytes) -> None:
        self._output.append(_OK)

    def _help(self, argument: bytes) -> None:
        self._output.append(_HELP)

    def _vrfy(self, argument: bytes) -> None:
        self._output.append(_NOT_VERIFIED)

    def _quit(self, argument: bytes) -> None:
        _want_no_argument(argument)
        self._close(_GOODBYE, asked=True)

    def _unknown(self, argument: bytes) -> None:
        raise Rejected(_UNKNOWN)

    def _not_implemented(self, argument: bytes) -> None:
        raise Rejected(_NOT_IMPLEMENTED)

    def _foreign(self, argument: bytes) -> None:
        """The first line of HTTP: somebody makes a browser or a proxy speak to us. Nothing of it is read further."""
        self._notice("smtp.foreign_protocol")
        self._close(_WRONG_PROTOCOL)

    def _starttls(self, argument: bytes) -> None:
        _want_no_argument(argument)
        if self.encrypted:
            raise Rejected(_TLS_ACTIVE)
        if not self._settings.starttls_offered:
            raise Rejected(_NO_STARTTLS)
        self._output.append(_TLS_READY)
        self._transaction = None
        self.pending = StartTls()

    # --- AUTH (RFC 4954) ---

    def _auth(self, argument: bytes) -> None:
        if self._helo is None:
            raise Rejected(_EHLO_FIRST)
        if self._authenticated:
            raise Rejected(_AUTH_DONE)
        if self._transaction is not None:
            raise Rejected(_AUTH_IN_MAIL)
        if not self._may_authenticate:
            raise Rejected(_AUTH_NEEDS_TLS)
        mechanism, _, initial = argument.strip(b" ").partition(b" ")
        steps = _MECHANISMS.get(mechanism.upper())
        if steps is None:
            raise Rejected(_AUTH_UNKNOWN)
        question, answer = steps
        if initial:
            answer(self, initial.strip(b" "))
        else:
            self._ask(question, answer)

    def _ask(self, question: bytes, answer: "Callable[[ServerSession, bytes], None]") -> None:
        def take(line: bytes) -> None:
            if line == b"*":
                raise Rejected(_AUTH_CANCELLED)
            answer(self, line)

        self._output.append(question)
        self._sasl = take

    def _plain_response(self, line: bytes) -> None:
        """RFC 4616: authorisation identity, NUL, user, NUL, password."""
        parts = read_base64(line).split(b"\0")
        if len(parts) != 3 or not parts[1]:
            raise Rejected(_AUTH_MALFORMED)
        authorisation, username, password = (_read_utf8(part) for part in parts)
        # Nobody may act for somebody else.
        self._decide_auth(username, password, permitted=authorisation in ("", username))

    def _login_username(self, line: bytes) -> None:
        self._username = _read_utf8(read_base64(line))
        self._ask(_ASK_PASSWORD, ServerSession._login_password)

    def _login_password(self, line: bytes) -> None:
        username, self._username = self._username, ""
        self._decide_auth(username, _read_utf8(read_base64(line)), permitted=True)

    def _decide_auth(self, username: str, password: str, *, permitted: bool) -> None:
        try:
            sender = self._policy.authenticate(username, password, self.peer) if permitted else None
        except TooManyRequests as error:
            self._notice("smtp.authentication_slowed", retry_after_s=error.retry_after_s)
            raise Rejected(format_reply(454, "4.7.0", str(error) or _AUTH_SLOWED)) from None
        if sender is None:
            self._fail_auth()
            return
        self.sender = sender
        self._authenticated = True
        self._origin = None
        self._tally.auth_successes += 1
        self._output.append(_AUTH_OK)

    def _fail_auth(self) -> None:
        self.auth_failures += 1
        self._tally.auth_failures += 1
        self._notice("smtp.authentication_failed", failures=self.auth_failures)
        if self.auth_failures >= self._settings.max_auth_failures:
            self._output.append(_AUTH_FAILED)
            self._close(_TOO_MANY_GUESSES)
        else:
            raise Rejected(_AUTH_FAILED)

    # --- the transaction ---

    def _mail(self, argument: bytes) -> None:
        if self._helo is None:
            raise Rejected(_EHLO_FIRST)
        sender = self.sender
        if sender is None:
            tls_first = self._settings.starttls_offered and not self._may_authenticate
            raise Rejected(_TLS_NEEDED if tls_first else _AUTH_NEEDED)
        if self._transaction is not None:
            raise Rejected(_NESTED_MAIL)
        self._mail_refused = True
        transaction = self._read_mail(argument)
        size = transaction.size
        if size is not None and size > self._settings.max_message_octets:
            self._tally.too_large += 1
            self._output.append(_TOO_LARGE)
            return
        self._policy.check_mail_from(sender, transaction.mail_from, size, transaction.smtputf8)
        self._mail_refused = False
        self._transaction = transaction
        self._output.append(_MAIL_OK)

    def _read_mail(self, argument: bytes) -> _Transaction:
        found = _fast_mail(argument)
        if found is not None:
            address = found[1].decode("ascii")
            if fast_ascii_address(address):
                size = found[2]
                eight_bit = found[3] == b"8BITMIME"
                return _Transaction(address, int(size) if size is not None else None, eight_bit=eight_bit)
        if argument[:5].upper() != b"FROM:":
            raise Rejected(BAD_MAIL_SYNTAX)
        path, rest = split_path(argument[5:], BAD_MAIL_SYNTAX)
        given = read_mail_parameters(rest)
        address = ""
        if path:
            lenient = self._settings.lenient_addresses
            address = read_address(path, enhanced="5.1.7", smtputf8=given.smtputf8, lenient=lenient)
        return _Transaction(address, given.size, given.smtputf8, given.eight_bit, given.ret, given.envid)

    def _rcpt(self, argument: bytes) -> None:
        transaction = self._transaction
        if transaction is None or self.sender is None:
            raise Rejected(_MAIL_FIRST, counts=not self._mail_refused)
        if len(transaction.recipients) >= self._settings.max_recipients:
            self._output.append(_TOO_MANY_RECIPIENTS)
            return
        transaction.rcpt_seen = True
        recipient = self._read_rcpt(argument, transaction.smtputf8)
        self._policy.check_recipient(self.sender, recipient.address)
        transaction.recipients.append(recipient)
        self._output.append(_RCPT_OK)

    def _read_rcpt(self, argument: bytes, smtputf8: bool) -> EnvelopeRecipient:
        found = _fast_rcpt(argument)
        if found is not None:
            address = found[1].decode("ascii")
            if fast_ascii_address(address):
                return EnvelopeRecipient(address)
        if argument[:3].upper() != b"TO:":
            raise Rejected(BAD_RCPT_SYNTAX)
        path, rest = split_path(argument[3:], BAD_RCPT_SYNTAX)
        given = read_rcpt_parameters(rest)
        if not given.orcpt.isascii() and not smtputf8:
            raise Rejected(NEEDS_SMTPUTF8)
        lenient = self._settings.lenient_addresses
        address = read_address(path, enhanced="5.1.3", smtputf8=smtputf8, lenient=lenient)
        return EnvelopeRecipient(address, given.notify, given.orcpt)

    def _data(self, argument: bytes) -> None:
        _want_no_argument(argument)
        transaction = self._transaction
        if transaction is None:
            raise Rejected(_MAIL_FIRST, counts=not self._mail_refused)
        if not transaction.recipients:
            raise Rejected(_NO_RECIPIENTS if transaction.rcpt_seen else _RCPT_FIRST, counts=not transaction.rcpt_seen)
        settings = self._settings
        content = self._open_content(transaction.size)
        self._reader = DataReader(content, limit=settings.max_message_octets, bare=settings.bare_line_ends)
        self._output.append(_GO_AHEAD)

    def _end_content(self, reader: DataReader) -> None:
        transaction, sender = self._transaction, self.sender
        self._reader = None
        self._transaction = None
        self.steps += 1
        if reader.fault is not None:
            self._refuse_content(reader)
        elif transaction is not None and sender is not None:
            envelope = Envelope(
                transaction.mail_from,
                tuple(transaction.recipients),
                transaction.ret,
                transaction.envid,
                transaction.smtputf8,
            )
            origin = self._origin or self._describe()
            self.errors = 0
            self.pending = Submitted(envelope, reader.content, sender, origin, transaction.eight_bit, self._extended)

    def _refuse_content(self, reader: DataReader) -> None:
        if reader.fault is DataFault.TOO_LARGE:
            self._tally.too_large += 1
            self._output.append(_TOO_LARGE)
        elif reader.fault is DataFault.BAD_CHARACTERS:
            self._tally.bad_line_ends += 1
            self._notice("smtp.bad_line_ends_refused")
            self._output.append(_BAD_CHARACTERS)
        elif reader.error is not None:
            self._output.append(reply_to_error(reader.error))
        if self._winding_down:
            self._close(_SHUTTING_DOWN)

    def _describe(self) -> Origin:
        """Where the messages of this session come from; made once and again when something of it changed."""
        admitted_by = "credential" if self._authenticated else "network"
        self._origin = Origin("smtp", self.peer, self._helo or "", self._tls_version, admitted_by)
        return self._origin


def _want_no_argument(argument: bytes) -> None:
    if argument and not argument.isspace():
        raise Rejected(_NO_ARGUMENT)


def _read_utf8(octets: bytes) -> str:
    try:
        return octets.decode()
    except UnicodeDecodeError:
        raise Rejected(_AUTH_MALFORMED) from None


_COMMANDS: dict[bytes, Callable[[ServerSession, bytes], None]] = {
    b"EHLO": ServerSession._ehlo,
    b"HELO": ServerSession._helo_command,
    b"MAIL": ServerSession._mail,
    b"RCPT": ServerSession._rcpt,
    b"DATA": ServerSession._data,
    b"RSET": ServerSession._rset,
    b"NOOP": ServerSession._noop,
    b"QUIT": ServerSession._quit,
    b"VRFY": ServerSession._vrfy,
    b"HELP": ServerSession._help,
    b"STARTTLS": ServerSession._starttls,
    b"AUTH": ServerSession._auth,
    b"EXPN": ServerSession._not_implemented,
    b"ETRN": ServerSession._not_implemented,
    b"TURN": ServerSession._not_implemented,
    b"SEND": ServerSession._not_implemented,
    b"SOML": ServerSession._not_implemented,
    b"SAML": ServerSession._not_implemented,
    b"BDAT": ServerSession._not_implemented,
    b"BURL": ServerSession._not_implemented,
    b"GET": ServerSession._foreign,
    b"POST": ServerSession._foreign,
    b"PUT": ServerSession._foreign,
    b"CONNECT": ServerSession._foreign,
    b"OPTIONS": ServerSession._foreign,
}

# What is asked where no initial response came, and what reads the first response.
_MECHANISMS: dict[bytes, tuple[bytes, Callable[[ServerSession, bytes], None]]] = {
    b"PLAIN": (_ASK_RESPONSE, ServerSession._plain_response),
    b"LOGIN": (_ASK_USERNAME, ServerSession._login_username),
}
