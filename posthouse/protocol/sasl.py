"""SASL mechanisms as pure exchanges (RFC 4422): what the client says first, and what it answers to a challenge.

One exchange serves one attempt. SMTP, IMAP and POP3 wrap the same octets differently; base64 and line framing are
theirs. Passwords: PLAIN (RFC 4616), LOGIN (draft-murchison-sasl-login), CRAM-MD5 (RFC 2195). Tokens: XOAUTH2 (Google's
and Microsoft's documents) and OAUTHBEARER (RFC 7628).
"""

import binascii
import hashlib
import hmac
import json
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from posthouse.model.auth import Mechanism

# A challenge of ours is a nonce or a JSON error; nothing longer is meant well.
MAX_CHALLENGE_OCTETS = 16 * 1024


class SaslFault(Exception):
    """The credential cannot be carried by the mechanism, or the server's challenge is not the mechanism's."""


class SaslExchange(Protocol):
    """One attempt at signing in."""

    @property
    def name(self) -> str:
        """The mechanism's registered name."""

    @property
    def secrets(self) -> Sequence[str]:
        """What must never be shown."""

    @property
    def reveals_secret(self) -> bool:
        """Whether whoever reads the line learns the password or token."""

    def initial(self) -> bytes | None:
        """What the client says first; None where the server must speak first."""

    def respond(self, challenge: bytes) -> bytes:
        """Answer a challenge. Raises SaslFault where it is not the mechanism's."""


def _checked(*values: str) -> None:
    """Refuse NUL, which PLAIN uses between its parts and no mechanism can carry."""
    if any("\0" in value for value in values):
        raise SaslFault("User name or password hold a NUL.")


class Plain:
    """PLAIN (RFC 4616): authorisation identity empty, user, password."""

    name = "PLAIN"
    reveals_secret = True

    def __init__(self, username: str, password: str) -> None:
        _checked(username, password)
        self._message = f"\0{username}\0{password}".encode()
        self.secrets = (password,)

    def initial(self) -> bytes:
        return self._message

    def respond(self, challenge: bytes) -> bytes:
        # Some servers do not read an initial response and ask for it again.
        return self._message


class Login:
    """LOGIN: the server asks for the user, then for the password. What it calls them is not looked at."""

    name = "LOGIN"
    reveals_secret = True

    def __init__(self, username: str, password: str) -> None:
        _checked(username, password)
        self._answers = [username.encode(), password.encode()]
        self.secrets = (password,)

    def initial(self) -> None:
        return None

    def respond(self, challenge: bytes) -> bytes:
        if not self._answers:
            raise SaslFault("The server asks for more than user name and password.")
        return self._answers.pop(0)


class CramMd5:
    """CRAM-MD5 (RFC 2195): proves the password without sending it."""

    name = "CRAM-MD5"
    reveals_secret = False

    def __init__(self, username: str, password: str) -> None:
        _checked(username, password)
        self._username = username.encode()
        self._password = password.encode()
        self.secrets = (password,)

    def initial(self) -> None:
        return None

    def respond(self, challenge: bytes) -> bytes:
        if not challenge:
            raise SaslFault("The server sent an empty challenge.")
        digest = hmac.new(self._password, challenge, hashlib.md5).hexdigest()
        return self._username + b" " + digest.encode()


class XOAuth2:
    """XOAUTH2. A challenge is an error in JSON; it is answered with nothing, and the server then refuses."""

    name = "XOAUTH2"
    reveals_secret = True

    def __init__(self, user: str, token: str) -> None:
        self._message = xoauth2(user, token)
        self.secrets = (token,)
        # What the server said about the token, where it said something.
        self.error: Mapping[str, Any] = {}

    def initial(self) -> bytes:
        return self._message

    def respond(self, challenge: bytes) -> bytes:
        self.error = decode_error(challenge)
        return b""


class OAuthBearer:
    """OAUTHBEARER (RFC 7628). An error in JSON is answered with one octet 1 (section 3.2.3)."""

    name = "OAUTHBEARER"
    reveals_secret = True

    def __init__(self, user: str, token: str, host: str = "", port: int = 0) -> None:
        self._message = oauthbearer(user, token, host, port)
        self.secrets = (token,)
        self.error: Mapping[str, Any] = {}

    def initial(self) -> bytes:
        return self._message

    def respond(self, challenge: bytes) -> bytes:
        self.error = decode_error(challenge)
        return b"\x01"


def xoauth2(user: str, token: str) -> bytes:
    """The client's message of XOAUTH2, before base64. Raises SaslFault."""
    _refuse_control(user, token)
    return f"user={user}\x01auth=Bearer {token}\x01\x01".encode()


def oauthbearer(user: str, token: str, host: str = "", port: int = 0) -> bytes:
    """The client's message of OAUTHBEARER (RFC 7628 section 3.1), before base64. Raises SaslFault."""
    _refuse_control(user, token, host)
    # RFC 5801 section 4: "=" and "," of the authorisation identity are escaped.
    identity = user.replace("=", "=3D").replace(",", "=2C")
    pairs = [f"host={host}\x01"] if host else []
    pairs += [f"port={port}\x01"] if port else []
    return f"n,a={identity},\x01{''.join(pairs)}auth=Bearer {token}\x01\x01".encode()


def _refuse_control(*values: str) -> None:
    if any(character < " " or character == "\x7f" for value in values for character in value):
        raise SaslFault("User name or token hold a control character.")


def decode_error(challenge: bytes) -> Mapping[str, Any]:
    """The error that a server put into a challenge (RFC 7628 section 3.2.2); {} where it is none."""
    try:
        value = json.loads(challenge.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def decode_challenge(text: str) -> bytes:
    """The octets of a challenge in base64; empty stays empty. Raises SaslFault."""
    if len(text) > MAX_CHALLENGE_OCTETS:
        raise SaslFault("The server's challenge is too long.")
    try:
        return b64decode(text.strip().encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise SaslFault("The server's challenge is not base64.") from None


# Strongest first: what does not show the password comes before what does.
_PASSWORD_MECHANISMS: Mapping[Mechanism, Callable[[str, str], SaslExchange]] = {
    Mechanism.CRAM_MD5: CramMd5,
    Mechanism.PLAIN: Plain,
    Mechanism.LOGIN: Login,
}


def password_exchanges(
    mechanism: Mechanism, username: str, password: str, offered: frozenset[str]
) -> list[SaslExchange]:
    """The exchanges to try, in order, among those that the server offers. Raises SaslFault."""
    wanted = _PASSWORD_MECHANISMS if mechanism is Mechanism.AUTO else {mechanism: _PASSWORD_MECHANISMS[mechanism]}
    return [kind(username, password) for name, kind in wanted.items() if name.value in offered]
