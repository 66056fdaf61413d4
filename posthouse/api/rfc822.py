"""A message as it is (message/rfc822), read from the body of a request piece by piece, with flat memory.

Line ends: a message in which lines end in LF alone, as files on Unix do, is given CRLF; one that mixes them, or that
has CR alone or NUL, is refused, so that no next server can see a second message in it (threat A2).
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.requests import Request

from posthouse.api.message_input import envelope_of, read_address, read_mail_from
from posthouse.api.reading import pieces
from posthouse.errors import InvalidInput, MessageTooLarge
from posthouse.model.address import AddressFault, NamedAddress, parse_header_addresses
from posthouse.model.message import Envelope
from posthouse.protocol.headers import HeaderFacts, scan
from posthouse.store.content import ContentBuffer, ReceivedContent


@dataclass(frozen=True, slots=True)
class RawMessage:
    """What was read: envelope, content in memory or in the spool, and a digest over all octets as they came."""

    envelope: Envelope
    content: ReceivedContent
    digest: bytes


async def read_message(
    request: Request,
    open_content: Callable[[int | None], ContentBuffer],
    *,
    limit: int,
    mail_from: str | None,
    recipients: Sequence[str],
) -> RawMessage:
    """Read a message of at most `limit` octets. Envelope: what is given, else From and To, Cc and Bcc.

    Raises InvalidInput, MessageTooLarge, StoreFull; the buffer is then empty again.
    """
    content, digest = await _read_content(request, open_content, limit)
    try:
        return RawMessage(_envelope(content, mail_from, recipients), content, digest)
    except InvalidInput:
        content.discard()
        raise


async def _read_content(
    request: Request, open_content: Callable[[int | None], ContentBuffer], limit: int
) -> tuple[ReceivedContent, bytes]:
    buffer = open_content(None)
    lines = LineEnds()
    digest = hashlib.sha256()
    try:
        async for piece in pieces(request, limit, _too_large):
            digest.update(piece)
            buffer.write(lines.take(piece))
        buffer.write(lines.finish())
        return buffer.finish(), digest.digest()
    except BaseException:
        buffer.abandon()
        raise


def _too_large(limit: int) -> MessageTooLarge:
    return MessageTooLarge(f"The message is larger than the limit of {limit} octets.")


class LineEnds:
    """Makes the line ends of a message CRLF, or refuses it; fed piece by piece."""

    def __init__(self) -> None:
        # None until the first line end says how lines end.
        self._bare: bool | None = None
        self._held = b""

    def take(self, piece: bytes) -> bytes:
        """The piece with its line ends put right; an octet may be held back for the next. Raises InvalidInput."""
        work = self._held + piece
        self._held = b""
        if work.endswith(b"\r"):
            work, self._held = work[:-1], b"\r"
        return self._checked(work)

    def finish(self) -> bytes:
        """What was held back. Raises InvalidInput: nothing can follow a CR any more."""
        held, self._held = self._held, b""
        return self._checked(held)

    def _checked(self, work: bytes) -> bytes:
        crlf = work.count(b"\r\n")
        if self._bare is None and b"\n" in work:
            self._bare = not work[: work.index(b"\n") + 1].endswith(b"\r\n")
        if work.count(b"\r") != crlf or b"\0" in work or (self._bare and crlf):
            raise _bad_line_ends()
        if self._bare:
            return work.replace(b"\n", b"\r\n")
        if work.count(b"\n") != crlf:
            raise _bad_line_ends()
        return work


def _bad_line_ends() -> InvalidInput:
    return InvalidInput.of(
        "body", "bad-line-ends",
        "The message mixes line ends, or holds a CR alone or a NUL. End every line with CRLF, or every line with LF.",
    )  # fmt: skip


def _envelope(content: ReceivedContent, mail_from: str | None, recipients: Sequence[str]) -> Envelope:
    facts = scan(content.header)
    to = [read_address(text, f"to.{at}") for at, text in enumerate(recipients)] or _header_recipients(facts)
    sender = read_mail_from(mail_from) if mail_from is not None else _header_sender(facts)
    return envelope_of(sender, to, utf8_header=not facts.is_ascii and _is_utf8(content.header))


def _header_sender(facts: HeaderFacts) -> str:
    if facts.from_value is None:
        raise InvalidInput.of("mail_from", "missing", "The message has no From. Name the envelope sender: mail_from.")
    found = _addresses(facts.from_value, "From")
    if not found:
        raise InvalidInput.of("mail_from", "missing", "From holds no address. Name the envelope sender: mail_from.")
    return str(found[0].address)


def _header_recipients(facts: HeaderFacts) -> list[NamedAddress]:
    found: list[NamedAddress] = []
    for name, values in (("To", facts.to_values), ("Cc", facts.cc_values), ("Bcc", facts.bcc_values)):
        for value in values:
            found += _addresses(value, name)
    return found


def _addresses(value: bytes, name: str) -> list[NamedAddress]:
    try:
        return parse_header_addresses(value)
    except AddressFault as fault:
        raise InvalidInput.of(name, "bad-address", str(fault)) from None


def _is_utf8(header: bytes) -> bool:
    try:
        header.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
