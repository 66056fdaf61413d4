"""One connection of the SMTP face: carries octets between a transport and a `ServerSession`.

In order: caps, PROXY header (from configured peers only), implicit TLS, session, STARTTLS. No task is made per message
or connection; everything happens in callbacks. What the session wants done stands in its `pending`.
"""

import asyncio
import ssl
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import TypeVar, cast

import structlog

from posthouse.errors import LocalFault, PosthouseError
from posthouse.protocol.proxy_protocol import ProxyFault, parse_proxy_header, plain_ip
from posthouse.protocol.smtp_server import Close, ServerSession, StartTls, Submitted, format_reply, reply_to_error
from posthouse.smtpd.connections import Service, capped_as
from posthouse.smtpd.tls import TlsLayer

_TOO_MANY = format_reply(421, "4.7.0", "Too many connections")
_SHUTTING_DOWN = format_reply(421, "4.3.2", "Service is shutting down")
_TIMED_OUT = format_reply(421, "4.4.2", "Timeout")
_FAULT = format_reply(421, "4.3.0", "Internal fault")
_NOT_TAKEN = LocalFault("The message could not be taken.")

_Argument = TypeVar("_Argument")

_log = structlog.get_logger()


class _Phase(Enum):
    PROXY = "proxy"
    # Implicit TLS or STARTTLS.
    HANDSHAKE = "handshake"
    SESSION = "session"
    # Our last words are said; what still comes is dropped.
    CLOSING = "closing"


class SubmissionProtocol(asyncio.Protocol):
    """Adapts a `ServerSession` to asyncio."""

    __slots__ = (
        "_awaited",
        "_content_octets",
        "_counted_peer",
        "_early",
        "_ended",
        "_implicit_tls",
        "_moved_at",
        "_peer",
        "_phase",
        "_reading_paused",
        "_reply",
        "_service",
        "_session",
        "_since",
        "_steps",
        "_submitting",
        "_tls",
        "_transport",
        "_writing_paused",
    )

    _transport: asyncio.Transport

    def __init__(self, service: Service, *, implicit_tls: bool) -> None:
        self._service = service
        self._implicit_tls = implicit_tls
        self._session: ServerSession | None = None
        self._tls: TlsLayer | None = None
        self._phase = _Phase.SESSION
        self._peer = ""
        # What is counted against the cap per peer.
        self._counted_peer: str | None = None
        # Octets of a PROXY header that is not complete.
        self._early = b""
        self._ended = False
        # The message that the handler works on, and its answer where that came before submit returned.
        self._awaited: Submitted | None = None
        self._submitting = False
        self._reply: bytes | None = None
        self._reading_paused = False
        self._writing_paused = False
        # What the sweep saw last: when the present command or message began, and when its octets last grew.
        self._since = service.clock()
        self._moved_at = self._since
        self._steps = 0
        self._content_octets = 0

    # --- beginning ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        service = self._service
        service.counters.connections += 1
        peername = transport.get_extra_info("peername")
        if not peername:
            # The client has gone before we looked.
            self.abort()
            return
        self._peer = plain_ip(peername[0])
        if service.draining:
            self._turn_away(_SHUTTING_DOWN)
        elif len(service.connections.open) >= service.max_connections:
            self._turn_away(_TOO_MANY)
        else:
            service.connections.open.add(self)
            if service.is_proxy(self._peer):
                self._phase = _Phase.PROXY
            else:
                self._guard(self._begin, b"")

    def _turn_away(self, reply: bytes) -> None:
        self._service.counters.refused += 1
        self._begin_closing()
        # A client that begins with TLS could not read it.
        if not self._implicit_tls:
            self._transport.write(reply)
        self._transport.close()

    def _begin(self, data: bytes) -> None:
        """Start with the client proper, whose first octets are `data`."""
        service = self._service
        counted = capped_as(self._peer)
        if not service.connections.add_peer(counted, service.settings.max_connections_per_peer):
            self._turn_away(_TOO_MANY)
            return
        self._counted_peer = counted
        if self._implicit_tls:
            self._start_tls()
            if data:
                self._receive_encrypted(data)
        else:
            self._phase = _Phase.SESSION
            self._open_session()
            if data:
                self._receive_clear(data)

    def _open_session(self) -> None:
        service = self._service
        tls = self._tls
        session = self._session = ServerSession(
            service.session_settings,
            service.policy,
            peer=self._peer,
            encrypted=tls is not None,
            loopback=self._is_loopback(),
            open_content=service.open_content,
            tls_version=tls.version if tls is not None else "",
            tally=service.counters.sessions,
        )
        self._send(session.greeting())

    def _is_loopback(self) -> bool:
        """Whether nothing of the way is a network: the client, and the balancer where one speaks for it."""
        hop = self._transport.get_extra_info("peername")[0] if self._service.settings.proxy_networks else self._peer
        return _is_loopback_address(self._peer) and _is_loopback_address(plain_ip(hop))

    # --- input ---

    def data_received(self, data: bytes) -> None:
        if self._tls is not None:
            self._guard(self._receive_encrypted, data)
        elif self._phase is _Phase.SESSION:
            self._guard(self._receive_clear, data)
        elif self._phase is _Phase.PROXY:
            self._guard(self._receive_proxy_header, data)

    def _guard(self, step: Callable[[_Argument], None], argument: _Argument) -> None:
        """Do a step. After a fault of ours this client is told to come back; the others never notice."""
        try:
            step(argument)
        except Exception:
            _log.exception("smtp.fault", peer=self._peer)
            self._end(_FAULT)

    def _receive_clear(self, data: bytes) -> None:
        session = self._session
        if session is not None:
            session.receive(data)
            self._advance(session)

    def _receive_proxy_header(self, data: bytes) -> None:
        data = self._early + data
        try:
            header = parse_proxy_header(data)
        except ProxyFault as fault:
            self._service.counters.proxy_failures += 1
            _log.warning("smtp.proxy_header_refused", peer=self._peer, reason=str(fault))
            self.abort()
            return
        if header is None:
            self._early = data
            return
        self._early = b""
        if header.peer is not None:
            self._peer = header.peer
        self._begin(data[header.length :])

    def _receive_encrypted(self, data: bytes) -> None:
        tls = self._tls
        if tls is None or self._is_closing:
            return
        try:
            clear = tls.receive(data)
        except ssl.SSLError as error:
            self._fail_tls(tls, error)
            return
        output = tls.take_output()
        if output:
            self._transport.write(output)
        if self._phase is _Phase.HANDSHAKE and tls.established:
            self._finish_handshake(tls)
        if clear:
            self._receive_clear(clear)
        if tls.ended and not self._is_closing:
            self._end_input()

    def eof_received(self) -> bool:
        """The client has closed its side. What it sent before is still answered."""
        return self._end_input()

    def _end_input(self) -> bool:
        """Note the end of input; True while a message that came before is being kept."""
        self._ended = True
        session = self._session
        if session is not None and isinstance(session.pending, Submitted) and self._phase is _Phase.SESSION:
            return True
        self._begin_closing()
        if self._tls is not None:
            self._transport.write(self._tls.end())
        self._transport.close()
        return False

    # --- what the session wants ---

    def _advance(self, session: ServerSession) -> None:
        output = session.take_output()
        if output:
            self._send(output)
        if session.notices:
            self._log_notices(session)
        if session.pending is not None:
            self._act(session)

    def _act(self, session: ServerSession) -> None:
        """Do what is pending, until something has to be waited for or nothing is pending any more."""
        while (pending := session.pending) is not None:
            if isinstance(pending, Submitted):
                if self._awaited is pending or not self._submit(session, pending):
                    break
            elif isinstance(pending, StartTls):
                if self._phase is _Phase.SESSION:
                    self._start_tls()
                break
            else:
                self._close(pending)
                return
        self._set_reading(session)

    def _submit(self, session: ServerSession, submitted: Submitted) -> bool:
        """Hand a message over; True where the answer was there at once and the session has gone on."""
        self._awaited = submitted
        self._submitting = True
        try:
            self._service.handler.submit(submitted, partial(self._done, submitted))
        except Exception:
            _log.exception("smtp.fault", peer=self._peer)
            self._done(submitted, _NOT_TAKEN)
        self._submitting = False
        reply, self._reply = self._reply, None
        if reply is None:
            return False
        self._resume(session, reply)
        return True

    def _done(self, submitted: Submitted, result: str | PosthouseError) -> None:
        """The handler's answer: 250 or the error's reply. After the connection was lost it changes nothing."""
        if self._awaited is not submitted:
            return
        self._awaited = None
        if isinstance(result, str):
            self._service.counters.messages_accepted += 1
            reply = b"250 2.0.0 Ok: queued as " + result.encode("ascii") + b"\r\n"
        else:
            self._service.counters.messages_refused += 1
            reply = reply_to_error(result)
        if self._submitting:
            self._reply = reply
            return
        session = self._session
        if session is None or self._phase is not _Phase.SESSION:
            return
        self._guard(partial(self._resume, session), reply)
        self._guard(self._act, session)

    def _resume(self, session: ServerSession, reply: bytes) -> None:
        session.resume_reply(reply)
        output = session.take_output()
        if output:
            self._send(output)
        if session.notices:
            self._log_notices(session)
        if self._ended and session.pending is None:
            session.end(b"")

    def _log_notices(self, session: ServerSession) -> None:
        for notice in session.notices:
            _log.info(notice.event, **notice.facts)
        session.notices.clear()

    # --- TLS ---

    def _start_tls(self) -> None:
        certificate = self._service.certificate
        if certificate is None:
            raise RuntimeError("TLS was offered without a certificate")
        self._phase = _Phase.HANDSHAKE
        self._since = self._service.clock()
        self._tls = TlsLayer(certificate.context)

    def _finish_handshake(self, tls: TlsLayer) -> None:
        self._phase = _Phase.SESSION
        self._since = self._service.clock()
        if self._session is None:
            self._open_session()
        else:
            self._session.resume_tls(tls.version)

    def _fail_tls(self, tls: TlsLayer, error: ssl.SSLError) -> None:
        self._service.counters.tls_failures += 1
        _log.info("smtp.tls_failed", peer=self._peer, reason=error.reason or "unknown")
        alert = tls.take_output()
        if alert:
            self._transport.write(alert)
        self._begin_closing()
        self._transport.close()

    # --- output and flow ---

    def _send(self, data: bytes) -> None:
        tls = self._tls
        self._transport.write(data if tls is None or not tls.established else tls.send(data))

    def pause_writing(self) -> None:
        """The client does not read: read no more from it."""
        self._writing_paused = True
        if self._session is not None:
            self._set_reading(self._session)

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._session is not None:
            self._set_reading(self._session)

    def _set_reading(self, session: ServerSession) -> None:
        pause = self._writing_paused or session.wants_pause
        if pause == self._reading_paused or self._is_closing:
            return
        self._reading_paused = pause
        if pause:
            self._transport.pause_reading()
        elif not self._ended:
            self._transport.resume_reading()

    # --- end ---

    @property
    def _is_closing(self) -> bool:
        return self._phase is _Phase.CLOSING

    def _begin_closing(self) -> None:
        self._phase = _Phase.CLOSING
        self._since = self._service.clock()

    def _close(self, pending: Close) -> None:
        """Close after the last words. Unless the client asked for it, give it time to read them.

        Closing at once while unread input is there makes the kernel send a reset, which may overtake the reply.
        """
        if self._is_closing:
            return
        self._begin_closing()
        if self._tls is not None:
            self._transport.write(self._tls.end())
        if pending.asked or self._ended or self._service.draining:
            self._transport.close()
            return
        self._transport.write_eof()
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def _end(self, reply: bytes) -> None:
        """Say `reply` and close, whatever is going on."""
        session = self._session
        if session is None or self._phase is not _Phase.SESSION:
            self.abort()
            return
        session.end(reply)
        self._advance(session)

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = _Phase.CLOSING
        self._awaited = None
        if self._session is not None:
            self._session.connection_lost()
        if self._counted_peer is not None:
            self._service.connections.remove_peer(self._counted_peer)
            self._counted_peer = None
        self._service.connections.remove(self)

    # --- called by the listener ---

    def wind_down(self) -> None:
        """End as soon as no message is on its way in or being kept."""
        if self._session is None or self._phase is _Phase.HANDSHAKE:
            self._end(b"")
        elif self._phase is _Phase.SESSION:
            self._session.wind_down()
            self._advance(self._session)

    def abort(self) -> None:
        """End at once."""
        self._begin_closing()
        self._transport.abort()

    def check_times(self, now: float) -> None:
        """End what takes longer than the settings allow."""
        settings = self._service.settings
        session = self._session
        if self._is_closing:
            if now - self._since >= settings.linger_s:
                self._transport.abort()
        elif self._phase is not _Phase.SESSION or session is None:
            if now - self._since >= settings.handshake_timeout_s:
                self._service.counters.timeouts += 1
                self.abort()
        elif self._is_too_slow(session, now):
            self._service.counters.timeouts += 1
            _log.info("smtp.timeout", peer=self._peer, reading_content=session.is_reading_content)
            self._end(_TIMED_OUT)

    def _is_too_slow(self, session: ServerSession, now: float) -> bool:
        settings = self._service.settings
        if session.steps != self._steps or self._awaited is not None:
            self._steps = session.steps
            self._since = self._moved_at = now
            self._content_octets = 0
            return False
        if not session.is_reading_content:
            return now - self._since >= settings.idle_timeout_s
        if session.content_octets != self._content_octets:
            self._content_octets = session.content_octets
            self._moved_at = now
        return now - self._moved_at >= settings.idle_timeout_s or now - self._since >= settings.content_timeout_s


def _is_loopback_address(ip: str) -> bool:
    return ip.startswith("127.") or ip == "::1"
