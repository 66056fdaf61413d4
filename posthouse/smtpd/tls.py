"""TLS for the SMTP listeners: the certificate, read again when its files change, and TLS over any transport.

`TlsLayer` keeps the handshake and the records apart from the sockets. So the same code serves implicit TLS, STARTTLS
and a PROXY header in front of either, on asyncio and uvloop alike, and nothing that was read in clear gets past it.
"""

import contextlib
import ssl
from pathlib import Path

import structlog

from posthouse.errors import ConfigurationError

_READ_OCTETS = 65_536

_log = structlog.get_logger()


class ServerCertificate:
    """The certificate chain and key with which the listeners answer; `context` is always a working one.

    Raises ConfigurationError where the files cannot be used at the start.
    """

    def __init__(self, chain_file: Path, key_file: Path) -> None:
        self._chain_file = chain_file
        self._key_file = key_file
        self._seen = self._signature()
        try:
            self.context = self._load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigurationError(
                f"The certificate {chain_file} and key {key_file} cannot be used: {_reason(error)}.",
                remedy="Check that both are PEM, belong together, are readable, and that the key has no passphrase.",
            ) from error

    def reload_if_changed(self) -> bool:
        """Read the files again if they changed. A pair that cannot be used is logged, and the old one stays in use."""
        signature = self._signature()
        if signature == self._seen:
            return False
        # Also after a failure: it is logged once for each change, not at every look.
        self._seen = signature
        try:
            self.context = self._load()
        except (OSError, ssl.SSLError) as error:
            _log.error("smtp.certificate_unusable", file=str(self._chain_file), reason=_reason(error))
            return False
        _log.info("smtp.certificate_reloaded", file=str(self._chain_file))
        return True

    def _signature(self) -> tuple[tuple[int, int, int], ...]:
        return tuple(_file_signature(path) for path in (self._chain_file, self._key_file))

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # RFC 8997: nothing below TLS 1.2.
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
        # An empty passphrase, so that an encrypted key fails instead of asking on the terminal.
        context.load_cert_chain(self._chain_file, self._key_file, password="")
        return context


def _file_signature(path: Path) -> tuple[int, int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def _reason(error: OSError) -> str:
    """What went wrong, without paths or key material."""
    if isinstance(error, ssl.SSLError):
        return error.reason or "the files are not a valid pair"
    return error.strerror or type(error).__name__


class TlsLayer:
    """The server's end of one TLS connection, between octets of the wire and octets in clear. Does no I/O."""

    __slots__ = ("_incoming", "_object", "_outgoing", "ended", "established")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # The handshake is done.
        self.established = False
        # The client has closed its side (RFC 8446 section 6.1).
        self.ended = False

    @property
    def version(self) -> str:
        """The version in use, such as TLSv1.3."""
        return self._object.version() or ""

    def receive(self, data: bytes) -> bytes:
        """Take octets of the wire; returns what they say in clear. Raises ssl.SSLError, after which nothing works."""
        self._incoming.write(data)
        try:
            if not self.established:
                self._object.do_handshake()
                self.established = True
            return self._read()
        except ssl.SSLWantReadError:
            return b""

    def _read(self) -> bytes:
        pieces = []
        try:
            while piece := self._object.read(_READ_OCTETS):
                pieces.append(piece)
            self.ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def send(self, data: bytes) -> bytes:
        """Encrypt; returns octets for the wire."""
        self._object.write(data)
        return self._outgoing.read()

    def take_output(self) -> bytes:
        """Octets of the wire that the handshake or an alert wants to send."""
        return self._outgoing.read()

    def end(self) -> bytes:
        """Octets that close our side."""
        if self.established:
            # It wants the client's close, for which nobody waits, or is broken already.
            with contextlib.suppress(ssl.SSLError):
                self._object.unwrap()
        return self._outgoing.read()
