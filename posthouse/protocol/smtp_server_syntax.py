"""Reads what clients write in SMTP commands: paths, parameters of MAIL and RCPT, names, SASL responses; writes replies.

Pure functions. Each reader raises Rejected with the reply that the fault deserves. What an address may look like is
decided in `posthouse.model.address`; who may use it is the policy's question.
"""

import binascii
import re
from dataclasses import dataclass

from posthouse.errors import PosthouseError
from posthouse.model.address import AddressFault, fast_ascii_address, parse_address

# RFC 5321 section 4.5.3.1.5: a reply line has at most 512 octets; room is left for code, enhanced code and CR LF.
MAX_REPLY_TEXT = 490
# RFC 3461 section 4.4 and 4.2.
MAX_ENVID_OCTETS = 100
MAX_ORCPT_OCTETS = 500
# RFC 5321 section 4.5.3.1.2 with room for names that break it; the name only ends in Received and in logs.
MAX_HELO_OCTETS = 255

_UNPRINTABLE = re.compile(r"[^ -~]+")
_PATH = re.compile(rb'<((?:"(?:[^"\\]|\\.)*+"|[^"<>])*+)>')
_BARE_PATH = re.compile(rb'((?:"(?:[^"\\]|\\.)*+"|[^" <>])++)')
# RFC 5321 section 4.1.2: A-d-l ":" before the mailbox.
_HOP = rb"@(?:[A-Za-z0-9._-]++|\[[!-Z^-~]*+\])"
_ROUTE = re.compile(_HOP + rb"(?:," + _HOP + rb")*+:")
# RFC 5321 section 4.1.2 (esmtp-param); values beyond ASCII come with RFC 6533 section 3 only.
_PARAMETER = re.compile(rb"([A-Za-z0-9][A-Za-z0-9-]*+)(?:=([!-<>-~\x80-\xff]++))?")
_SIZE = re.compile(r"[0-9]{1,20}")
# RFC 3461 section 4.
_XTEXT = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*+")
_ORCPT = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*+;(?:[!-<>-~]|[^\x00-\x9f])++")
_NOTIFY = frozenset(("SUCCESS", "FAILURE", "DELAY"))


class Rejected(Exception):
    """The command cannot be taken; `reply` is the whole reply that says so.

    `counts` is whether it speaks against the client: an address that cannot be read is its user's mistake.
    """

    def __init__(self, reply: bytes, *, counts: bool = True) -> None:
        super().__init__(reply)
        self.reply = reply
        self.counts = counts


def format_reply(code: int, enhanced: str, text: str) -> bytes:
    """One reply line (RFC 5321 section 4.2, RFC 2034). The text becomes printable ASCII, cut where it is too long."""
    line = _UNPRINTABLE.sub(lambda found: " " if found[0].isspace() else "?", text)[:MAX_REPLY_TEXT]
    return f"{code} {enhanced} {line}\r\n".encode("ascii")


def reply_to_error(error: PosthouseError) -> bytes:
    """The reply with which an error of Posthouse is answered."""
    return format_reply(error.smtp_code, error.smtp_enhanced, str(error))


BAD_MAIL_SYNTAX = format_reply(501, "5.5.4", "Syntax: MAIL FROM:<address>")
BAD_RCPT_SYNTAX = format_reply(501, "5.5.4", "Syntax: RCPT TO:<address>")
BAD_PARAMETER = format_reply(501, "5.5.4", "A parameter is malformed or given twice")
UNKNOWN_PARAMETER = format_reply(555, "5.5.4", "This parameter is not supported here")
NEEDS_SMTPUTF8 = format_reply(553, "5.6.7", "Addresses beyond ASCII need the parameter SMTPUTF8 on MAIL")
BAD_BASE64 = format_reply(501, "5.5.2", "The response is not valid base64")


@dataclass(frozen=True, slots=True)
class MailParameters:
    """The parameters of MAIL: SIZE (octets, RFC 1870), BODY (RFC 6152), SMTPUTF8 (RFC 6531), RET, ENVID (RFC 3461)."""

    size: int | None = None
    eight_bit: bool = False
    smtputf8: bool = False
    ret: str = ""
    envid: str = ""


@dataclass(frozen=True, slots=True)
class RcptParameters:
    """The parameters of RCPT: NOTIFY in upper case, ORCPT as it was given (RFC 3461)."""

    notify: str = ""
    orcpt: str = ""


def split_path(text: bytes, syntax: bytes) -> tuple[bytes, bytes]:
    """Split what follows `FROM:` or `TO:` into the path without its brackets and the parameters behind it.

    Spaces before the path and missing brackets are taken, as devices write them. Raises Rejected with `syntax`.
    """
    text = text.lstrip(b" ")
    found = _PATH.match(text) if text.startswith(b"<") else _BARE_PATH.match(text)
    if found is None:
        raise Rejected(syntax)
    rest = text[found.end() :]
    if rest and not rest.startswith(b" "):
        raise Rejected(syntax)
    return found[1], rest


def read_address(path: bytes, *, enhanced: str, smtputf8: bool, lenient: bool) -> str:
    """The address in a path, as it goes on. A source route is dropped (RFC 5321 section 4.1.1.3, appendix C).

    Raises Rejected: 501 with `enhanced` for what is no address, 553 5.6.7 for one beyond ASCII without SMTPUTF8.
    """
    if path.startswith(b"@"):
        route = _ROUTE.match(path)
        path = path[route.end() :] if route else path
    if not path.isascii() and not smtputf8:
        raise Rejected(NEEDS_SMTPUTF8, counts=False)
    try:
        text = path.decode()
        return text if fast_ascii_address(text) else str(parse_address(text, lenient=lenient))
    except AddressFault as fault:
        raise Rejected(format_reply(501, enhanced, str(fault)), counts=False) from None
    except UnicodeDecodeError:
        raise Rejected(format_reply(501, enhanced, "The address is not valid UTF-8"), counts=False) from None


def read_mail_parameters(rest: bytes) -> MailParameters:
    """Read the parameters of MAIL. AUTH= (RFC 4954 section 5) is taken and not used. Raises Rejected."""
    size, eight_bit, smtputf8, ret, envid = None, False, False, "", ""
    for keyword, value in _read_parameters(rest).items():
        if keyword == "SIZE" and value is not None and _SIZE.fullmatch(value):
            size = int(value)
        elif keyword == "BODY" and value is not None and value.upper() in ("7BIT", "8BITMIME"):
            eight_bit = value.upper() == "8BITMIME"
        elif keyword == "SMTPUTF8" and value is None:
            smtputf8 = True
        elif keyword == "RET" and value is not None and value.upper() in ("FULL", "HDRS"):
            ret = value.upper()
        elif keyword == "ENVID" and value is not None and len(value) <= MAX_ENVID_OCTETS and _XTEXT.fullmatch(value):
            envid = value
        elif keyword != "AUTH" or value is None:
            known = keyword in ("SIZE", "BODY", "SMTPUTF8", "RET", "ENVID", "AUTH")
            raise Rejected(BAD_PARAMETER if known else UNKNOWN_PARAMETER)
    return MailParameters(size, eight_bit, smtputf8, ret, envid)


def read_rcpt_parameters(rest: bytes) -> RcptParameters:
    """Read the parameters of RCPT. Raises Rejected."""
    notify, orcpt = "", ""
    for keyword, value in _read_parameters(rest).items():
        if keyword == "NOTIFY" and value is not None:
            notify = _read_notify(value)
        elif keyword == "ORCPT" and value is not None and len(value) <= MAX_ORCPT_OCTETS and _ORCPT.fullmatch(value):
            orcpt = value
        else:
            raise Rejected(BAD_PARAMETER if keyword in ("NOTIFY", "ORCPT") else UNKNOWN_PARAMETER)
    return RcptParameters(notify, orcpt)


def _read_notify(value: str) -> str:
    """RFC 3461 section 4.1: NEVER alone, or a list of the others, each once."""
    notify = value.upper()
    words = notify.split(",")
    if notify != "NEVER" and (not _NOTIFY.issuperset(words) or len(set(words)) != len(words)):
        raise Rejected(BAD_PARAMETER)
    return notify


def _read_parameters(rest: bytes) -> dict[str, str | None]:
    parameters: dict[str, str | None] = {}
    for word in rest.split():
        found = _PARAMETER.fullmatch(word)
        if found is None:
            raise Rejected(BAD_PARAMETER)
        keyword = found[1].decode("ascii").upper()
        if keyword in parameters:
            raise Rejected(BAD_PARAMETER)
        try:
            parameters[keyword] = found[2].decode() if found[2] is not None else None
        except UnicodeDecodeError:
            raise Rejected(BAD_PARAMETER) from None
    return parameters


def read_helo(argument: bytes) -> str:
    """The name after EHLO or HELO, made printable ASCII: devices send names of any form, and it decides nothing."""
    return argument[:MAX_HELO_OCTETS].decode("ascii", "replace").replace("\ufffd", "?")


def read_base64(text: bytes) -> bytes:
    """Decode a SASL response (RFC 4954 section 4); `=` stands for an empty one. Raises Rejected."""
    if text == b"=":
        return b""
    try:
        return binascii.a2b_base64(text, strict_mode=True) if text else b""
    except binascii.Error:
        raise Rejected(BAD_BASE64) from None
