"""The SMTP listeners: sockets, plain and with implicit TLS, and the one watch over all their connections.

The watch ends what is too slow, reads a changed certificate again and reports what was turned away; there is no timer
per connection. Who may submit and what becomes of a message is decided by the policy and the handler that it is given.
"""

import asyncio
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog

from posthouse.errors import ConfigurationError
from posthouse.protocol.smtp_server import OpenContent, SessionSettings, SubmissionPolicy
from posthouse.smtpd.connections import Counters, ListenerSettings, Service, SubmissionHandler
from posthouse.smtpd.protocol import SubmissionProtocol
from posthouse.smtpd.tls import ServerCertificate

# Files that the rest of the process needs: database, content, deliveries, pages.
RESERVED_FILES = 128
# How often the certificate's files are looked at.
CERTIFICATE_CHECK_S = 5.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class BoundAddress:
    """Where a listener listens."""

    host: str
    port: int
    implicit_tls: bool


class Listener:
    """Listens for SMTP on any number of addresses.

    STARTTLS is offered, and implicit TLS possible, where there is a certificate.
    """

    def __init__(
        self,
        settings: ListenerSettings,
        session_settings: SessionSettings,
        *,
        policy: SubmissionPolicy,
        handler: SubmissionHandler,
        open_content: OpenContent,
        certificate: ServerCertificate | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = Service(
            settings=settings,
            session_settings=replace(session_settings, starttls_offered=certificate is not None),
            policy=policy,
            handler=handler,
            open_content=open_content,
            certificate=certificate,
            clock=clock,
            max_connections=_possible_connections(settings.max_connections),
        )
        self._servers: list[asyncio.AbstractServer] = []
        self._addresses: list[BoundAddress] = []
        self._timer: asyncio.TimerHandle | None = None
        self._certificate_checked_at = clock()
        self._refused_reported = 0

    @property
    def addresses(self) -> tuple[BoundAddress, ...]:
        """Where it listens, with the real ports."""
        return tuple(self._addresses)

    @property
    def counters(self) -> Counters:
        """What was seen since the start."""
        return self._service.counters

    @property
    def open_connections(self) -> int:
        """How many connections there are now."""
        return len(self._service.connections.open)

    async def start(self, host: str, port: int, *, implicit_tls: bool = False) -> tuple[BoundAddress, ...]:
        """Listen on `host` and `port` (0 = any free one) too; returns the addresses bound, several for a name.

        Raises ConfigurationError where the address cannot be bound, or implicit TLS has no certificate.
        """
        if implicit_tls and self._service.certificate is None:
            raise ConfigurationError("Implicit TLS needs a certificate.", remedy="Give --tls-cert and --tls-key.")
        loop = asyncio.get_running_loop()
        service = self._service
        try:
            server = await loop.create_server(
                lambda: SubmissionProtocol(service, implicit_tls=implicit_tls),
                host,
                port,
                backlog=service.settings.backlog,
                reuse_port=service.settings.shares_ports or None,
            )
        except OSError as error:
            raise ConfigurationError(
                f"SMTP cannot listen on {host} port {port}: {error.strerror or error}.",
                remedy="Choose another address or port, or end the program that has it.",
            ) from error
        self._servers.append(server)
        bound = tuple(_bound_address(each.getsockname(), implicit_tls) for each in server.sockets)
        self._addresses += bound
        for address in bound:
            _log.info("smtp.listening", host=address.host, port=address.port, implicit_tls=implicit_tls)
        if self._timer is None:
            self._timer = loop.call_later(service.settings.sweep_interval_s, self._sweep)
        return bound

    async def drain(self, timeout_s: float) -> bool:
        """Accept nothing more, let messages on their way come to their end, then close all.

        Sessions without a message are told 421 at once. False where something was still going on after `timeout_s` and
        was cut off; a message whose 250 was not sent may then be submitted again by its client.
        """
        self._service.draining = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        self._addresses.clear()
        for connection in list(self._service.connections.open):
            connection.wind_down()
        # The sweep goes on meanwhile: it ends clients that do not close their side.
        in_time = await self._service.connections.wait_until_empty(timeout_s)
        if not in_time:
            _log.warning("smtp.connections_cut_off", count=self.open_connections)
            for connection in list(self._service.connections.open):
                connection.abort()
            await self._service.connections.wait_until_empty(1.0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return in_time

    async def stop(self) -> None:
        """End at once."""
        await self.drain(0.0)

    def _sweep(self) -> None:
        service = self._service
        self._timer = asyncio.get_running_loop().call_later(service.settings.sweep_interval_s, self._sweep)
        now = service.clock()
        for connection in list(service.connections.open):
            connection.check_times(now)
        if service.certificate is not None and now - self._certificate_checked_at >= CERTIFICATE_CHECK_S:
            self._certificate_checked_at = now
            service.certificate.reload_if_changed()
        refused = service.counters.refused
        if refused != self._refused_reported:
            # One line for all of them: whoever floods the port shall not flood the log.
            _log.warning("smtp.connections_refused", count=refused - self._refused_reported, open=self.open_connections)
            self._refused_reported = refused


def _bound_address(name: tuple[str, int], implicit_tls: bool) -> BoundAddress:
    return BoundAddress(name[0], name[1], implicit_tls)


def _possible_connections(wanted: int) -> int:
    """The cap on connections, lowered where the process may not open so many files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY or wanted + RESERVED_FILES <= files:
        return wanted
    possible = max(files - RESERVED_FILES, files // 2)
    _log.warning("smtp.connection_cap_lowered", wanted=wanted, possible=possible, open_files_limit=files)
    return min(wanted, possible)
