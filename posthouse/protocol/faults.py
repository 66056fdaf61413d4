"""Everything that can go wrong between us and a server, by name, and the one table that translates foreign exceptions.

A `DeliveryFault` says in which stage it happened, whose fault it is, a stable cause and a sentence for people. `CAUSES`
is the list of all causes; `translate` turns what sockets, resolvers and TLS raise into one of them. What follows from a
fault is decided in `model/policy.py`.
"""

import errno
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from posthouse.model.outcome import Outcome, Reply, Result, Scope, Stage
from posthouse.model.replies import classify


@dataclass(frozen=True, slots=True)
class Cause:
    """What is known of a cause beforehand. `stage` None: it can happen anywhere, and whoever raises it says where."""

    stage: Stage | None
    scope: Scope
    detail: str
    result: Result = Result.DEFERRED


CAUSES: Mapping[str, Cause] = {
    # --- finding and reaching the server
    "host-unusable": Cause(Stage.RESOLVE, Scope.SERVER, "The host name cannot be used."),
    "name-not-found": Cause(Stage.RESOLVE, Scope.SERVER, "The name of the server does not exist in the DNS."),
    "no-address": Cause(Stage.RESOLVE, Scope.SERVER, "The name of the server exists but has no address."),
    "resolver-failed": Cause(Stage.RESOLVE, Scope.SERVER, "The DNS resolver gave no answer about the server's name."),
    "resolver-timeout": Cause(Stage.RESOLVE, Scope.SERVER, "The DNS resolver did not answer in time."),
    "egress-forbidden": Cause(Stage.CONNECT, Scope.SERVER, "Connections to this address are not permitted here."),
    "connect-refused": Cause(Stage.CONNECT, Scope.SERVER, "Nothing listens on this port: the connection was refused."),
    "connect-timeout": Cause(
        Stage.CONNECT, Scope.SERVER, "The server did not answer the connection in time; a firewall may drop it."
    ),
    "unreachable": Cause(Stage.CONNECT, Scope.SERVER, "There is no way through the network to the server's address."),
    "connect-denied": Cause(
        Stage.CONNECT, Scope.SERVER, "This machine does not permit the connection; a local firewall may forbid it."
    ),
    "connect-failed": Cause(Stage.CONNECT, Scope.SERVER, "The connection could not be made."),
    "local-resources": Cause(
        Stage.CONNECT, Scope.CONNECTION, "This machine is out of file descriptors, ports or memory."
    ),
    # --- the conversation
    "greeting-timeout": Cause(
        Stage.GREETING, Scope.SERVER, "The server took the connection but did not greet in time."
    ),
    "not-smtp": Cause(Stage.GREETING, Scope.SERVER, "What answers on this port does not speak SMTP."),
    "reply": Cause(None, Scope.SERVER, "The server refused."),
    "reply-timeout": Cause(None, Scope.CONNECTION, "The server did not reply in time."),
    "reply-garbled": Cause(None, Scope.CONNECTION, "The server's reply is not SMTP."),
    "out-of-step": Cause(None, Scope.CONNECTION, "The server sent replies to commands that were not given."),
    "reset": Cause(None, Scope.CONNECTION, "The connection was reset."),
    "closed": Cause(None, Scope.CONNECTION, "The server closed the connection."),
    "connection-lost": Cause(None, Scope.CONNECTION, "The connection was lost."),
    "stale-connection": Cause(
        None, Scope.CONNECTION, "The server ended the kept connection before this message was begun."
    ),
    "lease-lost": Cause(None, Scope.NOBODY, "The work was given up here because its lease had run out."),
    "mark-failed": Cause(Stage.DATA, Scope.NOBODY, "The note that the message is about to be sent could not be kept."),
    "content-unreadable": Cause(Stage.DATA, Scope.NOBODY, "The stored message could not be read."),
    "internal": Cause(None, Scope.CONNECTION, "Posthouse made a mistake here; its log says more."),
    "ehlo-name-unusable": Cause(
        Stage.CAPABILITY, Scope.SERVER, "The configured EHLO name holds a character that it must not."
    ),
    # --- TLS
    "tls-wrong-port": Cause(
        Stage.TLS,
        Scope.SERVER,
        "Port and TLS mode do not fit: one side speaks TLS at once, the other clear text first.",
    ),
    "starttls-missing": Cause(Stage.TLS, Scope.SERVER, "The server does not offer STARTTLS, which is required."),
    "starttls-refused": Cause(Stage.TLS, Scope.SERVER, "The server offers STARTTLS but refused it."),
    "starttls-injection": Cause(
        Stage.TLS, Scope.SERVER, "Somebody sent text between STARTTLS and the handshake: a known attack."
    ),
    "tls-handshake-failed": Cause(Stage.TLS, Scope.SERVER, "The TLS handshake failed."),
    "tls-timeout": Cause(Stage.TLS, Scope.SERVER, "The TLS handshake was not finished in time."),
    "tls-version": Cause(Stage.TLS, Scope.SERVER, "The server speaks no TLS version that is permitted here."),
    "tls-weak": Cause(Stage.TLS, Scope.SERVER, "The server's key exchange or signature is too weak."),
    "certificate-expired": Cause(Stage.TLS, Scope.SERVER, "The server's certificate has expired."),
    "certificate-not-yet-valid": Cause(
        Stage.TLS, Scope.SERVER, "The server's certificate is not valid yet; one of the two clocks may be wrong."
    ),
    "certificate-name": Cause(Stage.TLS, Scope.SERVER, "The server's certificate is for another name."),
    "certificate-name-cn-only": Cause(
        Stage.TLS,
        Scope.SERVER,
        "The server's certificate has its name in the old place only (CN, no subject alternative name).",
    ),
    "certificate-self-signed": Cause(Stage.TLS, Scope.SERVER, "The server's certificate is signed by itself alone."),
    "certificate-unknown-authority": Cause(
        Stage.TLS, Scope.SERVER, "The server's certificate comes from an authority that is not trusted here."
    ),
    "certificate-incomplete-chain": Cause(
        Stage.TLS,
        Scope.SERVER,
        "The server does not send the intermediate certificate that its own one was issued by.",
    ),
    "certificate-weak": Cause(
        Stage.TLS, Scope.SERVER, "A certificate of the server has a key or hash that is too weak."
    ),
    "certificate-revoked": Cause(Stage.TLS, Scope.SERVER, "The server's certificate has been revoked."),
    "certificate-purpose": Cause(Stage.TLS, Scope.SERVER, "The server's certificate is not made for servers."),
    "certificate-strict": Cause(
        Stage.TLS, Scope.SERVER, "A certificate of the server breaks a rule of RFC 5280 that strict checking enforces."
    ),
    "certificate-invalid": Cause(Stage.TLS, Scope.SERVER, "The server's certificate chain is not valid."),
    "certificate-pin": Cause(Stage.TLS, Scope.SERVER, "The server's certificate is not the pinned one."),
    "certificate-settings": Cause(Stage.TLS, Scope.SERVER, "The added certificates cannot be used."),
    # --- signing in
    "auth-not-offered": Cause(Stage.AUTHENTICATE, Scope.ACCOUNT, "The server offers no sign-in (AUTH)."),
    "auth-cleartext-forbidden": Cause(
        Stage.AUTHENTICATE,
        Scope.SERVER,
        "The connection is not encrypted, and sending the password in clear text is not allowed for this server.",
    ),
    "mechanism-not-offered": Cause(
        Stage.AUTHENTICATE, Scope.ACCOUNT, "The server offers none of the sign-in mechanisms that can be used."
    ),
    "auth-failed": Cause(Stage.AUTHENTICATE, Scope.ACCOUNT, "The server refused the sign-in."),
    "auth-garbled": Cause(
        Stage.AUTHENTICATE, Scope.SERVER, "The server's part of the sign-in does not follow the mechanism."
    ),
    "password-missing": Cause(Stage.AUTHENTICATE, Scope.ACCOUNT, "No password is stored for this server."),
    "password-unusable": Cause(
        Stage.AUTHENTICATE, Scope.ACCOUNT, "User name or password hold a character that the mechanism cannot carry."
    ),
    # --- the message
    "sender-unusable": Cause(
        Stage.SENDER, Scope.MESSAGE, "The sender address cannot be written in an SMTP command.", Result.REJECTED
    ),
    "address-unusable": Cause(
        Stage.RECIPIENT, Scope.RECIPIENT, "The address cannot be written in an SMTP command.", Result.REJECTED
    ),
    "smtputf8-missing": Cause(
        None,
        Scope.RECIPIENT,
        "An address or header needs SMTPUTF8, which the server does not offer; nothing was sent.",
        Result.REJECTED,
    ),
    "message-too-large": Cause(
        Stage.SENDER,
        Scope.MESSAGE,
        "The message is larger than what the server announces to take; nothing was sent.",
        Result.REJECTED,
    ),
    "cannot-reencode": Cause(
        Stage.DATA,
        Scope.MESSAGE,
        "The server cannot take this message as it is, and it cannot be re-encoded without breaking it.",
        Result.REJECTED,
    ),
    "content-unsafe": Cause(
        Stage.DATA,
        Scope.MESSAGE,
        "The message holds a bare CR, a bare LF or a NUL, which must not be sent.",
        Result.REJECTED,
    ),
    "too-many-recipients": Cause(
        Stage.RECIPIENT, Scope.RECIPIENT, "The server takes no more recipients in one transaction."
    ),
}


class DeliveryFault(Exception):
    """Something between us and the server failed. Carries all that policy, timeline and diagnosis want to know.

    `reply` is the server's own, where it gave one. No text holds a secret.
    """

    def __init__(
        self,
        cause: str,
        *,
        stage: Stage | None = None,
        scope: Scope | None = None,
        detail: str = "",
        reply: Reply | None = None,
        retry_after_s: float | None = None,
        result: Result | None = None,
    ) -> None:
        known = CAUSES.get(cause, CAUSES["reply"])
        self.cause = cause
        self.stage: Stage = stage or known.stage or Stage.CONNECT
        self.scope: Scope = scope or known.scope
        self.result: Result = result or known.result
        self.detail = detail or known.detail
        self.reply = reply
        self.retry_after_s = retry_after_s
        # What each address of the server answered, where addresses were tried (`dial.Attempt`).
        self.attempts: tuple[object, ...] = ()
        super().__init__(cause)

    def __str__(self) -> str:
        said = f" It said: {self.reply}" if self.reply is not None else ""
        return f"{self.detail}{said}"

    def outcome(self) -> Outcome:
        """The outcome of a recipient that this fault kept from being served."""
        return Outcome(self.result, self.scope, self.stage, self.reply, self.cause, self.detail, self.retry_after_s)


def refused(stage: Stage, reply: Reply, *, cause: str = "", detail: str = "") -> DeliveryFault:
    """The fault that a negative reply makes. Never a loss of mail: the result is deferred, whatever the code."""
    verdict = classify(stage, reply)
    return DeliveryFault(
        cause or verdict.cause,
        stage=stage,
        scope=verdict.scope,
        detail=detail,
        reply=reply,
        retry_after_s=verdict.retry_after_s,
        result=Result.DEFERRED,
    )


class ForeignRow(NamedTuple):
    """One row of the translation: exceptions of `kind` for which `when` holds have this cause."""

    kind: type[BaseException]
    cause: str
    when: Callable[[BaseException], bool] = lambda error: True


def _number(*numbers: int) -> Callable[[BaseException], bool]:
    return lambda error: isinstance(error, OSError) and error.errno in numbers


def _verify(*codes: int) -> Callable[[BaseException], bool]:
    return lambda error: getattr(error, "verify_code", None) in codes


def _reason(*words: str) -> Callable[[BaseException], bool]:
    return lambda error: any(word in (getattr(error, "reason", None) or str(error)) for word in words)


def _numbers(module: object, *names: str) -> tuple[int, ...]:
    """Give the numbers behind names that not every platform has."""
    return tuple(getattr(module, name) for name in names if hasattr(module, name))


_LOOKUP = ssl.SSLCertVerificationError
# Numbers of X509_verify_cert_error, from OpenSSL's x509_vfy.h; Python gives them no names.
FOREIGN: tuple[ForeignRow, ...] = (
    ForeignRow(socket.gaierror, "no-address", _number(*_numbers(socket, "EAI_NODATA", "EAI_ADDRFAMILY"))),
    ForeignRow(socket.gaierror, "name-not-found", _number(*_numbers(socket, "EAI_NONAME"))),
    ForeignRow(socket.gaierror, "resolver-failed"),
    ForeignRow(_LOOKUP, "certificate-expired", _verify(10)),
    ForeignRow(_LOOKUP, "certificate-not-yet-valid", _verify(9)),
    ForeignRow(_LOOKUP, "certificate-name", _verify(62, 63, 64)),
    ForeignRow(_LOOKUP, "certificate-self-signed", _verify(18)),
    ForeignRow(_LOOKUP, "certificate-unknown-authority", _verify(2, 19, 20, 21, 27, 28)),
    ForeignRow(_LOOKUP, "certificate-weak", _verify(66, 67, 68)),
    ForeignRow(_LOOKUP, "certificate-revoked", _verify(23)),
    ForeignRow(_LOOKUP, "certificate-purpose", _verify(26)),
    ForeignRow(_LOOKUP, "certificate-strict", _verify(*range(80, 94))),
    ForeignRow(_LOOKUP, "certificate-invalid"),
    ForeignRow(ssl.SSLError, "certificate-weak", _reason("EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK")),
    ForeignRow(ssl.SSLError, "tls-weak", _reason("DH_KEY_TOO_SMALL", "BAD_ECC_CERT", "WRONG_SIGNATURE_TYPE")),
    ForeignRow(
        ssl.SSLError,
        "tls-version",
        _reason(
            "UNSUPPORTED_PROTOCOL", "ALERT_PROTOCOL_VERSION", "NO_PROTOCOLS_AVAILABLE", "VERSION_TOO_LOW",
            "WRONG_SSL_VERSION",
        ),
    ),
    ForeignRow(
        ssl.SSLError,
        "tls-wrong-port",
        _reason("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE", "PACKET_LENGTH"),
    ),
    ForeignRow(ssl.SSLError, "tls-handshake-failed"),
    ForeignRow(ssl.CertificateError, "certificate-name"),
    ForeignRow(ConnectionRefusedError, "connect-refused"),
    ForeignRow(ConnectionResetError, "reset"),
    ForeignRow(BrokenPipeError, "closed"),
    ForeignRow(ConnectionAbortedError, "closed"),
    ForeignRow(TimeoutError, "connect-timeout"),
    ForeignRow(EOFError, "closed"),
    ForeignRow(OSError, "connect-denied", _number(errno.EACCES, errno.EPERM)),
    ForeignRow(
        OSError,
        "unreachable",
        _number(
            errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL,
            errno.EAFNOSUPPORT, errno.ENONET if hasattr(errno, "ENONET") else errno.ENETUNREACH,
        ),
    ),
    ForeignRow(
        OSError,
        "local-resources",
        _number(errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRINUSE, errno.EAGAIN),
    ),
    ForeignRow(OSError, "connect-failed"),
    ForeignRow(UnicodeError, "host-unusable"),
)  # fmt: skip

# The same exception means something else in some stages: a timeout while connecting is none while replying.
STAGE_CAUSES: Mapping[tuple[Stage, str], str] = {
    (Stage.RESOLVE, "connect-timeout"): "resolver-timeout",
    (Stage.RESOLVE, "connect-failed"): "resolver-failed",
    (Stage.CONNECT, "closed"): "reset",
    (Stage.GREETING, "connect-timeout"): "greeting-timeout",
    (Stage.TLS, "connect-timeout"): "tls-timeout",
    (Stage.TLS, "reset"): "tls-handshake-failed",
    (Stage.TLS, "closed"): "tls-handshake-failed",
    (Stage.TLS, "connect-failed"): "tls-handshake-failed",
    **{
        (stage, before): after
        for stage in (Stage.CAPABILITY, Stage.AUTHENTICATE, Stage.SENDER, Stage.RECIPIENT, Stage.DATA)
        for before, after in (
            ("connect-timeout", "reply-timeout"),
            ("connect-failed", "connection-lost"),
            ("connect-refused", "reset"),
            ("unreachable", "connection-lost"),
            ("tls-handshake-failed", "connection-lost"),
            ("tls-wrong-port", "connection-lost"),
        )
    },
    (Stage.GREETING, "connect-failed"): "connection-lost",
}

# In these stages a fault keeps all mail from the server, not only what this connection was to carry.
_OPENING = frozenset({Stage.RESOLVE, Stage.CONNECT, Stage.GREETING, Stage.TLS, Stage.CAPABILITY, Stage.AUTHENTICATE})


def translate(error: BaseException, stage: Stage) -> DeliveryFault:
    """Turn what a socket, the resolver or TLS raised in `stage` into a fault. A DeliveryFault passes through."""
    if isinstance(error, DeliveryFault):
        return error
    cause = next((row.cause for row in FOREIGN if isinstance(error, row.kind) and row.when(error)), "internal")
    cause = STAGE_CAUSES.get((stage, cause), cause)
    return opening_fault(cause, stage, detail=_detail(error, cause))


def opening_fault(cause: str, stage: Stage, *, detail: str = "") -> DeliveryFault:
    """A fault in `stage`; before the first MAIL a lost connection is the server's trouble, later this connection's."""
    scope = CAUSES[cause].scope
    if stage in _OPENING and scope is Scope.CONNECTION and cause != "local-resources":
        scope = Scope.SERVER
    return DeliveryFault(cause, stage=stage, scope=scope, detail=detail)


def _detail(error: BaseException, cause: str) -> str:
    """The cause's sentence, with what OpenSSL calls it: that is what people search for."""
    reason = getattr(error, "verify_message", None) or getattr(error, "reason", None)
    if isinstance(error, ssl.SSLError) and isinstance(reason, str) and reason:
        return f"{CAUSES[cause].detail} OpenSSL says: {reason.replace('_', ' ').lower().rstrip('.')}."
    return ""
