"""Secrets at rest: AES-256-GCM under a key ring, each sealed value bound to its row and field (threat A13).

The key ring is a text file, mode 0600, one key a line, the newest first: `<key id> <32 octets in base64>`; or the same
in POSTHOUSE_KEYS, with commas for line ends. The first key seals; all of them open. It never enters a backup.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from posthouse.errors import ConfigurationError, SecretUnreadable

KEY_OCTETS = 32
NONCE_OCTETS = 12  # NIST SP 800-38D section 8.2: 96 bits, here random; far below 2^32 seals under one key.


class KeyRing:
    """The keys of this installation. Nodes of one installation share it."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        if not keys:
            raise ConfigurationError(
                "The key ring is empty.", remedy="Restore the key file; without it secrets are lost."
            )
        self._keys = keys
        self.current = next(iter(keys))
        self._ciphers = {key_id: AESGCM(key) for key_id, key in keys.items()}
        # A key of its own purpose, so that a credential's digest and a sealed secret never share one.
        self._mac_keys = {
            key_id: hmac.digest(key, b"posthouse credential", hashlib.sha256) for key_id, key in keys.items()
        }

    def seal(self, plain: str, *, bound_to: str) -> tuple[str, bytes]:
        """(key id, nonce + ciphertext). `bound_to` names table, row and field; opening needs the same."""
        nonce = secrets.token_bytes(NONCE_OCTETS)
        return self.current, nonce + self._ciphers[self.current].encrypt(nonce, plain.encode(), bound_to.encode())

    def open(self, key_id: str, sealed: bytes, *, bound_to: str) -> str:
        """The plain secret. Raises SecretUnreadable: a clear refusal, never an empty secret."""
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise SecretUnreadable(
                f"The key {key_id} that sealed a secret is not in the key ring.",
                remedy="Restore the key file that belongs to this database, or enter the secret again.",
            )
        try:
            return cipher.decrypt(sealed[:NONCE_OCTETS], sealed[NONCE_OCTETS:], bound_to.encode()).decode()
        except (InvalidTag, ValueError):
            raise SecretUnreadable(
                "A sealed secret does not belong to the row in which it stands, or was altered.",
                remedy="Enter the secret again, and find out who changed the database.",
            ) from None

    def digest(self, plain: str, *, key_id: str | None = None) -> tuple[str, bytes]:
        """(key id, HMAC-SHA-256) of a credential with enough random bits of its own (design.md section 10)."""
        key_id = key_id or self.current
        key = self._mac_keys.get(key_id)
        if key is None:
            raise SecretUnreadable(
                f"The key {key_id} is not in the key ring.",
                remedy="Restore the key file that belongs to this database.",
            )
        return key_id, hmac.digest(key, plain.encode("utf-8", "surrogatepass"), hashlib.sha256)

    def matches(self, plain: str, key_id: str, digest: bytes) -> bool:
        """Whether `plain` is the credential behind `digest`, in constant time. An unknown key matches nothing."""
        if key_id not in self._mac_keys:
            return False
        return hmac.compare_digest(self.digest(plain, key_id=key_id)[1], digest)

    def knows(self, key_id: str) -> bool:
        """Whether the key is in the ring."""
        return key_id in self._keys


def load_keys(text: str) -> dict[str, bytes]:
    """Read a key ring. Raises ConfigurationError naming the line, never its content."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(text.replace(",", "\n").splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        key_id, _, encoded = line.partition(" ")
        try:
            key = base64.b64decode(encoded.strip(), validate=True)
        except binascii.Error:
            key = b""
        if len(key) != KEY_OCTETS or not key_id.isalnum():
            raise ConfigurationError(
                f"Line {number} of the key ring is not a key.", remedy="A line is: key id, space, 32 octets in base64."
            )
        keys[key_id] = key
    return keys


def new_key_line() -> str:
    """A fresh key as a line of the key ring."""
    return f"k{secrets.token_hex(4)} {base64.b64encode(secrets.token_bytes(KEY_OCTETS)).decode()}"


def open_key_ring(path: Path, environment: str | None) -> KeyRing:
    """The ring of POSTHOUSE_KEYS, else of the file; a missing file is made, 0600, before anything can be sealed.

    Raises ConfigurationError for a ring that cannot be read or that others may read.
    """
    if environment:
        return KeyRing(load_keys(environment))
    if not path.exists():
        _make_key_file(path)
    if path.stat().st_mode & 0o077:
        raise ConfigurationError(
            f"Others than its owner can read the key file {path.name}.", remedy=f"Run: chmod 600 {path}"
        )
    return KeyRing(load_keys(path.read_text()))


def _make_key_file(path: Path) -> None:
    """Make the file whole or not at all; where two processes do it at once, one file wins and both use it."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(new_key_line() + "\n")
        file.flush()
        os.fsync(file.fileno())
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
