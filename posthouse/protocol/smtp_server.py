"""The server side of an SMTP submission session (RFC 5321, 6409) as a state machine without I/O.

What goes in: the octets of the client, in any pieces. What comes out: the octets of the replies, and now and then one
thing that only others can do - start TLS, take a message over, close - which stands in `pending`. While something is
pending, input is kept and not read, so that a client that sends ahead (RFC 2920) stays in step.

Who may submit what is decided by the policy; addresses are read by `posthouse.model.address`; the content goes through
`posthouse.protocol.smtp_server_data`; what it needs and gives is in `posthouse.protocol.smtp_server_contract`, whose
names can be had from here too. Nothing here knows sockets, clocks, tasks, the store or a logger.

Where it is strict: commands end in CR LF (a line that ends in LF alone is answered 500 5.5.2 and not carried out), no
control characters, one transaction at a time, EHLO or HELO first, no password without TLS except on loopback.
Where it is lenient, because devices are: HELO instead of EHLO before AUTH and parameters, spaces after the colon, paths
without brackets, any printable name in EHLO, lines of content of any length. Source routes are dropped.
"""

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from posthouse.errors import PosthouseError, TooManyRequests
from posthouse.model.address import fast_ascii_address
from posthouse.model.message import Envelope, EnvelopeRecipient, Origin
from posthouse.protocol import smtp_server_replies as replies
from posthouse.protocol.smtp_server_contract import (
    Close,
    Notice,
    OpenContent,
    Pending,
    Sender,
    SessionSettings,
    StartTls,
    SubmissionPolicy,
    Submitted,
    Tally,
)
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


# A command line: no control characters, CR LF at its end.
_is_clean_line = re.compile(rb"[^\x00-\x1f\x7f]*+\r\n").fullmatch
_fast_mail = re.compile(
    rb"[Ff][Rr][Oo][Mm]:<([!-;=?-~]{1,254})>(?: [Ss][Ii][Zz][Ee]=([0-9]{1,20}))?(?: BODY=(7BIT|8BITMIME))?"
).fullmatch
_fast_rcpt = re.compile(rb"[Tt][Oo]:<([!-;=?-~]{1,254})>").fullmatch
_TLS_RECORD = b"\x16\x03"
# Pieces sent ahead that are kept: what comes octet by octet costs many times its size.
_MAX_WAITING_PIECES = 1_000


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
        return self._waiting_octets > self._settings.max_waiting_octets or len(self._waiting) > _MAX_WAITING_PIECES

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
            self._close(replies.SHUTTING_DOWN)
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
            self._close(replies.SHUTTING_DOWN)

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
                raise Rejected(replies.LINE_TOO_LONG)
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
            raise Rejected(replies.CONTROL_CHARACTER if line.endswith(b"\r\n") else replies.BARE_LF)

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
            self._close(replies.TOO_MANY_ERRORS)

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
            raise Rejected(replies.NEEDS_NAME)
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
        self._output.append(replies.OK)

    def _noop(self, argument: bytes) -> None:
        self._output.append(replies.OK)

    def _help(self, argument: bytes) -> None:
        self._output.append(replies.HELP)

    def _vrfy(self, argument: bytes) -> None:
        self._output.append(replies.NOT_VERIFIED)

    def _quit(self, argument: bytes) -> None:
        _want_no_argument(argument)
        self._close(replies.GOODBYE, asked=True)

    def _unknown(self, argument: bytes) -> None:
        raise Rejected(replies.UNKNOWN)

    def _not_implemented(self, argument: bytes) -> None:
        raise Rejected(replies.NOT_IMPLEMENTED)

    def _foreign(self, argument: bytes) -> None:
        """The first line of HTTP: somebody makes a browser or a proxy speak to us. Nothing of it is read further."""
        self._notice("smtp.foreign_protocol")
        self._close(replies.WRONG_PROTOCOL)

    def _starttls(self, argument: bytes) -> None:
        _want_no_argument(argument)
        if self.encrypted:
            raise Rejected(replies.TLS_ACTIVE)
        if not self._settings.starttls_offered:
            raise Rejected(replies.NO_STARTTLS)
        self._output.append(replies.TLS_READY)
        self._transaction = None
        self.pending = StartTls()

    # --- AUTH (RFC 4954) ---

    def _auth(self, argument: bytes) -> None:
        if self._helo is None:
            raise Rejected(replies.EHLO_FIRST)
        if self._authenticated:
            raise Rejected(replies.AUTH_DONE)
        if self._transaction is not None:
            raise Rejected(replies.AUTH_IN_MAIL)
        if not self._may_authenticate:
            raise Rejected(replies.AUTH_NEEDS_TLS)
        mechanism, _, initial = argument.strip(b" ").partition(b" ")
        steps = _MECHANISMS.get(mechanism.upper())
        if steps is None:
            raise Rejected(replies.AUTH_UNKNOWN)
        question, answer = steps
        if initial:
            answer(self, initial.strip(b" "))
        else:
            self._ask(question, answer)

    def _ask(self, question: bytes, answer: "Callable[[ServerSession, bytes], None]") -> None:
        def take(line: bytes) -> None:
            if line == b"*":
                raise Rejected(replies.AUTH_CANCELLED)
            answer(self, line)

        self._output.append(question)
        self._sasl = take

    def _plain_response(self, line: bytes) -> None:
        """RFC 4616: authorisation identity, NUL, user, NUL, password."""
        parts = read_base64(line).split(b"\0")
        if len(parts) != 3 or not parts[1]:
            raise Rejected(replies.AUTH_MALFORMED)
        authorisation, username, password = (_read_utf8(part) for part in parts)
        # Nobody may act for somebody else.
        self._decide_auth(username, password, permitted=authorisation in ("", username))

    def _login_username(self, line: bytes) -> None:
        self._username = _read_utf8(read_base64(line))
        self._ask(replies.ASK_PASSWORD, ServerSession._login_password)

    def _login_password(self, line: bytes) -> None:
        username, self._username = self._username, ""
        self._decide_auth(username, _read_utf8(read_base64(line)), permitted=True)

    def _decide_auth(self, username: str, password: str, *, permitted: bool) -> None:
        try:
            sender = self._policy.authenticate(username, password, self.peer) if permitted else None
        except TooManyRequests as error:
            self._notice("smtp.authentication_slowed", retry_after_s=error.retry_after_s)
            raise Rejected(format_reply(454, "4.7.0", str(error) or replies.AUTH_SLOWED)) from None
        if sender is None:
            self._fail_auth()
            return
        self.sender = sender
        self._authenticated = True
        self._origin = None
        self._tally.auth_successes += 1
        self._output.append(replies.AUTH_OK)

    def _fail_auth(self) -> None:
        self.auth_failures += 1
        self._tally.auth_failures += 1
        self._notice("smtp.authentication_failed", failures=self.auth_failures)
        if self.auth_failures >= self._settings.max_auth_failures:
            self._output.append(replies.AUTH_FAILED)
            self._close(replies.TOO_MANY_GUESSES)
        else:
            raise Rejected(replies.AUTH_FAILED)

    # --- the transaction ---

    def _mail(self, argument: bytes) -> None:
        if self._helo is None:
            raise Rejected(replies.EHLO_FIRST)
        sender = self.sender
        if sender is None:
            tls_first = self._settings.starttls_offered and not self._may_authenticate
            raise Rejected(replies.TLS_NEEDED if tls_first else replies.AUTH_NEEDED)
        if self._transaction is not None:
            raise Rejected(replies.NESTED_MAIL)
        self._mail_refused = True
        transaction = self._read_mail(argument)
        size = transaction.size
        if size is not None and size > self._settings.max_message_octets:
            self._tally.too_large += 1
            self._output.append(replies.TOO_LARGE)
            return
        self._policy.check_mail_from(sender, transaction.mail_from, size, transaction.smtputf8)
        self._mail_refused = False
        self._transaction = transaction
        self._output.append(replies.MAIL_OK)

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
            raise Rejected(replies.MAIL_FIRST, counts=not self._mail_refused)
        if len(transaction.recipients) >= self._settings.max_recipients:
            self._output.append(replies.TOO_MANY_RECIPIENTS)
            return
        transaction.rcpt_seen = True
        recipient = self._read_rcpt(argument, transaction.smtputf8)
        self._policy.check_recipient(self.sender, recipient.address)
        transaction.recipients.append(recipient)
        self._output.append(replies.RCPT_OK)

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
            raise Rejected(replies.MAIL_FIRST, counts=not self._mail_refused)
        if not transaction.recipients:
            raise Rejected(
                replies.NO_RECIPIENTS if transaction.rcpt_seen else replies.RCPT_FIRST, counts=not transaction.rcpt_seen
            )
        settings = self._settings
        content = self._open_content(transaction.size)
        self._reader = DataReader(content, limit=settings.max_message_octets, bare=settings.bare_line_ends)
        self._output.append(replies.GO_AHEAD)

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
            self._output.append(replies.TOO_LARGE)
        elif reader.fault is DataFault.BAD_CHARACTERS:
            self._tally.bad_line_ends += 1
            self._notice("smtp.bad_line_ends_refused")
            self._output.append(replies.BAD_CHARACTERS)
        elif reader.error is not None:
            self._output.append(reply_to_error(reader.error))
        if self._winding_down:
            self._close(replies.SHUTTING_DOWN)

    def _describe(self) -> Origin:
        """Where the messages of this session come from; made once and again when something of it changed."""
        admitted_by = "credential" if self._authenticated else "network"
        self._origin = Origin("smtp", self.peer, self._helo or "", self._tls_version, admitted_by)
        return self._origin


def _want_no_argument(argument: bytes) -> None:
    if argument and not argument.isspace():
        raise Rejected(replies.NO_ARGUMENT)


def _read_utf8(octets: bytes) -> str:
    try:
        return octets.decode()
    except UnicodeDecodeError:
        raise Rejected(replies.AUTH_MALFORMED) from None


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
    b"PLAIN": (replies.ASK_RESPONSE, ServerSession._plain_response),
    b"LOGIN": (replies.ASK_USERNAME, ServerSession._login_username),
}
