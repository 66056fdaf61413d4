"""Every fault has one name, and every foreign exception is translated into one."""

import ast
import errno
import socket
import ssl
from collections import Counter
from pathlib import Path

import pytest

import posthouse
from posthouse.model.outcome import Reply, Result, Scope, Stage
from posthouse.protocol import faults
from posthouse.protocol.faults import CAUSES, FOREIGN, DeliveryFault, refused, translate

R, C, G, T, A, D = (
    Stage.RESOLVE, Stage.CONNECT, Stage.GREETING, Stage.TLS, Stage.AUTHENTICATE, Stage.DATA,
)  # fmt: skip


def certificate_error(code: int) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message, error.reason = code, "it is bad", "CERTIFICATE_VERIFY_FAILED"
    return error


def tls_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, f"[SSL: {reason}] {reason.lower()} (_ssl.c:1000)")
    error.reason = reason
    return error


TRANSLATIONS: list[tuple[BaseException, Stage, str]] = [
    (socket.gaierror(socket.EAI_NONAME, "x"), R, "name-not-found"),
    (socket.gaierror(socket.EAI_NODATA, "x"), R, "no-address"),
    (socket.gaierror(socket.EAI_AGAIN, "x"), R, "resolver-failed"),
    (socket.gaierror(socket.EAI_FAIL, "x"), R, "resolver-failed"),
    (TimeoutError(), R, "resolver-timeout"),
    (UnicodeError("label too long"), R, "host-unusable"),
    (ConnectionRefusedError(errno.ECONNREFUSED, "x"), C, "connect-refused"),
    (TimeoutError(), C, "connect-timeout"),
    (OSError(errno.ETIMEDOUT, "x"), C, "connect-timeout"),
    (OSError(errno.EHOSTUNREACH, "x"), C, "unreachable"),
    (OSError(errno.ENETUNREACH, "x"), C, "unreachable"),
    (OSError(errno.EADDRNOTAVAIL, "x"), C, "unreachable"),
    (OSError(errno.EAFNOSUPPORT, "x"), C, "unreachable"),
    (PermissionError(errno.EACCES, "x"), C, "connect-denied"),
    (PermissionError(errno.EPERM, "x"), C, "connect-denied"),
    (OSError(errno.EMFILE, "x"), C, "local-resources"),
    (OSError(errno.ENOBUFS, "x"), C, "local-resources"),
    (ConnectionResetError(errno.ECONNRESET, "x"), C, "reset"),
    (OSError("Multiple exceptions"), C, "connect-failed"),
    (TimeoutError(), G, "greeting-timeout"),
    (ConnectionResetError(), G, "reset"),
    (EOFError(), G, "closed"),
    (TimeoutError(), A, "reply-timeout"),
    (TimeoutError(), D, "reply-timeout"),
    (OSError(errno.ETIMEDOUT, "x"), D, "reply-timeout"),
    (BrokenPipeError(), D, "closed"),
    (OSError(errno.EHOSTUNREACH, "x"), D, "connection-lost"),
    (OSError("odd"), D, "connection-lost"),
    (tls_error("DECRYPTION_FAILED_OR_BAD_RECORD_MAC"), D, "connection-lost"),
    (TimeoutError(), T, "tls-timeout"),
    (ConnectionResetError(), T, "tls-handshake-failed"),
    (ConnectionAbortedError("SSL handshake is taking too long"), T, "tls-handshake-failed"),
    (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), T, "tls-handshake-failed"),
    (tls_error("SSLV3_ALERT_HANDSHAKE_FAILURE"), T, "tls-handshake-failed"),
    (tls_error("TLSV1_ALERT_PROTOCOL_VERSION"), T, "tls-version"),
    (tls_error("UNSUPPORTED_PROTOCOL"), T, "tls-version"),
    (tls_error("WRONG_VERSION_NUMBER"), T, "tls-wrong-port"),
    (tls_error("RECORD_LAYER_FAILURE"), T, "tls-wrong-port"),
    (tls_error("DH_KEY_TOO_SMALL"), T, "tls-weak"),
    (tls_error("EE_KEY_TOO_SMALL"), T, "certificate-weak"),
    (certificate_error(10), T, "certificate-expired"),
    (certificate_error(9), T, "certificate-not-yet-valid"),
    (certificate_error(62), T, "certificate-name"),
    (certificate_error(64), T, "certificate-name"),
    (certificate_error(18), T, "certificate-self-signed"),
    (certificate_error(19), T, "certificate-unknown-authority"),
    (certificate_error(20), T, "certificate-unknown-authority"),
    (certificate_error(21), T, "certificate-unknown-authority"),
    (certificate_error(66), T, "certificate-weak"),
    (certificate_error(68), T, "certificate-weak"),
    (certificate_error(23), T, "certificate-revoked"),
    (certificate_error(26), T, "certificate-purpose"),
    (certificate_error(89), T, "certificate-strict"),
    (certificate_error(92), T, "certificate-strict"),
    (certificate_error(25), T, "certificate-invalid"),
    (RuntimeError("a mistake of ours"), D, "internal"),
]


@pytest.mark.parametrize(
    ("error", "stage", "cause"), TRANSLATIONS, ids=[f"{s}-{c}-{n}" for n, (_, s, c) in enumerate(TRANSLATIONS)]
)
def test_a_foreign_exception_has_a_cause(error: BaseException, stage: Stage, cause: str) -> None:
    fault = translate(error, stage)
    assert fault.cause == cause
    assert fault.result is Result.DEFERRED
    assert fault.stage is (stage if CAUSES[cause].stage is None or cause == "internal" else fault.stage)


def test_every_row_of_the_translation_is_used() -> None:
    used = {
        next(n for n, row in enumerate(FOREIGN) if isinstance(error, row.kind) and row.when(error))
        for error, _, cause in TRANSLATIONS
        if cause != "internal"
    }
    # No Python that is still in use raises the plain CertificateError: it is an alias of the one above it.
    unused = {n for n in range(len(FOREIGN)) if n not in used and FOREIGN[n].kind is not ssl.CertificateError}
    assert [FOREIGN[n] for n in sorted(unused)] == []


def test_every_cause_is_known_and_none_is_idle() -> None:
    folder = Path(posthouse.__file__).parent
    paths = [
        *(folder / "protocol").glob("*.py"),
        *(folder / "transports").glob("*.py"),
        folder / "model" / "replies.py",
    ]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    named = [
        node.args[0].value
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in ("DeliveryFault", "opening_fault")
        and node.args
        and isinstance(node.args[0], ast.Constant)
    ]
    assert set(named) - set(CAUSES) == set(), "raised, but not in the table"
    mentioned = Counter(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    assert {cause for cause in CAUSES if mentioned[cause] < 2} == set(), "in the table, but never raised"


def test_no_fault_before_the_message_costs_mail() -> None:
    about_mail = {Stage.SENDER, Stage.RECIPIENT, Stage.DATA, None}
    assert all(cause.result is Result.DEFERRED or cause.stage in about_mail for cause in CAUSES.values())
    for cause, known in CAUSES.items():
        assert known.detail.endswith("."), cause


def test_a_fault_passes_through_translation_and_gives_its_outcome() -> None:
    fault = DeliveryFault("connect-refused")
    assert translate(fault, Stage.DATA) is fault
    outcome = fault.outcome()
    assert (outcome.result, outcome.scope, outcome.stage, outcome.cause) == (
        Result.DEFERRED, Scope.SERVER, Stage.CONNECT, "connect-refused",
    )  # fmt: skip


def test_a_refusal_keeps_the_servers_words() -> None:
    fault = refused(Stage.AUTHENTICATE, Reply(535, "5.7.8", "No"))
    assert fault.outcome().reply == Reply(535, "5.7.8", "No")
    assert "535 5.7.8 No" in str(fault)


def test_a_broken_connection_before_the_first_mail_is_the_servers_trouble() -> None:
    assert translate(ConnectionResetError(), Stage.AUTHENTICATE).scope is Scope.SERVER
    assert translate(ConnectionResetError(), Stage.DATA).scope is Scope.CONNECTION
    assert faults.opening_fault("local-resources", Stage.CONNECT).scope is Scope.CONNECTION
