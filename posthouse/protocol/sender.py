"""The sender of a server: put in place of the message's, or where the message brings none.

The original goes to Reply-To, so that answers find their way. Only fields of the header change; a signature over the
body (S/MIME, PGP) stays valid, one over From (DKIM) does not.
"""

from posthouse.model.address import NamedAddress, parse_address
from posthouse.protocol.headers import put_in_front, remove_fields, scan, write_addresses


def with_sender(header: bytes, address: str, name: str | None, *, replace: bool) -> tuple[bytes, tuple[str, ...]]:
    """The header with From set to the server's sender where it has none, or in any case with `replace`.

    `header` comes with its last CRLF. Returns it with a sentence per change; none: it is as it was.
    """
    facts = scan(header)
    if facts.from_value is not None and not replace:
        return header, ()
    front = write_addresses("From", [NamedAddress(parse_address(address), name or "")])
    if facts.from_value is None:
        return put_in_front(header, front), ("From was set to the server's sender.",)
    changes = ["From was replaced by the server's sender."]
    if facts.reply_to_value is None:
        front += b"Reply-To:" + _folded(facts.from_value) + b"\r\n"
        changes.append("Reply-To was set to the original From.")
    return put_in_front(remove_fields(header, ("from", "sender")), front), tuple(changes)


def _folded(value: bytes) -> bytes:
    """A field's value as it stood, with a space in front."""
    return value if value[:1] in (b" ", b"\t") else b" " + value
