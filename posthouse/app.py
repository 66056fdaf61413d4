"""The composition: the only place where settings, store, jobs and faces meet. No module keeps one of these as a global.

`Posthouse` is one node. `start` opens the store and begins the jobs; with `listen` the faces too. Two of them run side by
side in one process without knowing of each other, unless they share a database.
"""

import asyncio
import contextlib
import fcntl
import gc
import os
import shutil
import socket
from pathlib import Path

import structlog
from starlette.types import ASGIApp

from posthouse import logs
from posthouse.administration import Administration
from posthouse.api.application import make_api
from posthouse.clock import Clock
from posthouse.console.application import make_console
from posthouse.delivery import Delivery
from posthouse.errors import ConfigurationError, LocalFault
from posthouse.http_listener import HttpListener
from posthouse.maintenance import Maintenance
from posthouse.model.actor import COMMAND
from posthouse.model.directory import Directory, ServerRecord
from posthouse.model.identifier import IdentifierSource
from posthouse.model.server import CaptureServer, SmtpServer
from posthouse.notification import Notification
from posthouse.protocol.egress import administrator_egress, public_egress
from posthouse.protocol.smtp_server import SessionSettings
from posthouse.settings import Settings, split_listener
from posthouse.smtpd.connections import ListenerSettings
from posthouse.smtpd.handover import SubmissionHandover
from posthouse.smtpd.listener import Listener
from posthouse.smtpd.tls import ServerCertificate
from posthouse.store import messages, nodes
from posthouse.store.content import ContentStore, DirectoryContentStore, RowContentStore
from posthouse.store.credentials import require_keys
from posthouse.store.database import Database, database_url
from posthouse.store.directory_source import DirectorySource
from posthouse.store.migrate import upgrade
from posthouse.store.reserve import Reserve
from posthouse.store.vault import open_key_ring
from posthouse.submission import Submission
from posthouse.tracking import Tracking
from posthouse.transports.base import Transport
from posthouse.transports.capture import CaptureTransport
from posthouse.transports.smtp import SmtpTransport

log = structlog.get_logger()

CONTROL_SOCKET = "control.sock"
# New objects between two looks of the garbage collector. Mail makes few cycles and many objects.
GC_THRESHOLD = 20_000
# How long stopping waits for SMTP sessions with a message on the way.
DRAIN_S = 10.0


class Posthouse:
    """One node of an installation."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock = Clock()
        self._lock: int | None = None
        self._watch: asyncio.Task[None] | None = None
        self.maintenance: Maintenance | None = None
        self._http: list[HttpListener] = []
        self.smtp: Listener | None = None
        self.listening = False

    @property
    def directory(self) -> Directory:
        """The present configuration."""
        return self.directory_source.current

    @property
    def control_socket(self) -> Path:
        """Where the command line reaches this process."""
        return self.settings.data / CONTROL_SOCKET

    # ------------------------------------------------------------ life

    async def start(self, *, listen: bool = True) -> None:
        """Open the store, begin the jobs, and listen. Raises ConfigurationError, SecretUnreadable, StoreUnavailable.

        Without `listen` only what the command line needs to work on the store: nothing is sent.
        """
        try:
            self._open_data_directory()
            await self._open_store()
            self._compose()
            if listen:
                await self._begin_jobs()
                await self._listen()
                self.listening = True
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End in good order: no new mail, what is on the wire ends, the rest goes back to the store."""
        self.listening = False
        if self.smtp is not None:
            await self.smtp.drain(DRAIN_S)
        for listener in self._http:
            await listener.stop()
        self._http.clear()
        if hasattr(self, "submission"):
            await self.submission.drain()
            await self.delivery.stop()
        if self.maintenance is not None:
            await self.maintenance.stop()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if hasattr(self, "database"):
            await self.database.close()
        self._close_data_directory()

    # ------------------------------------------------------------ data directory

    def _open_data_directory(self) -> None:
        data = self.settings.data
        try:
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in ("spool", "content"):
                (data / name).mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"The data directory {data} cannot be used: {error.strerror}.",
                remedy="Name another one with --data, or make it writable.",
            ) from None
        self.reserve = Reserve(data)
        if not (self.settings.database or "").startswith("postgres"):
            self._take_lock(data)
        self.reserve.make()

    def _take_lock(self, data: Path) -> None:
        """One process per data directory: SQLite has one writer, and the second would not know of the first's leases."""
        descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ConfigurationError(
                f"Another Posthouse works on {data}.", remedy="End it, or name another directory with --data."
            ) from None
        self._lock = descriptor

    def _close_data_directory(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # ------------------------------------------------------------ composing

    async def _open_store(self) -> None:
        settings = self.settings
        self.ring = open_key_ring(settings.data / "keys", settings.keys)
        url = database_url(settings.database, settings.data)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, upgrade, url)
        self.database = Database(url, on_full=self.reserve.give_up)
        self.database.start()
        now_ms = self.clock.now_ms()
        name = f"{socket.gethostname()}:{os.getpid()}"
        self.member = await self.database.write(lambda connection: nodes.join(connection, name, now_ms))
        self.ids = IdentifierSource(self.member.number, self.clock.now_ms)
        self.directory_source = DirectorySource(self.database, self.ring)
        await self.directory_source.refresh()
        require_keys(self.directory, self.ring)

    def _compose(self) -> None:
        settings, database, directory = self.settings, self.database, self.directory_source
        contents: ContentStore = (
            DirectoryContentStore(settings.data / "content") if database.is_sqlite else RowContentStore(database)
        )
        self.administration = Administration(database, self.ring, self.ids, self.clock, directory)
        self.delivery = Delivery(
            database=database,
            directory=directory,
            ids=self.ids,
            clock=self.clock,
            contents=contents,
            make_transport=self._make_transport,
            memory_octets=settings.memory_octets,
        )
        self.submission = Submission(
            database=database,
            directory=directory,
            ring=self.ring,
            ids=self.ids,
            clock=self.clock,
            contents=contents,
            spool=settings.data / "spool",
            hostname=settings.hostname,
            delivery=self.delivery,
            has_room=self.reserve.has_room,
        )
        self.notification = Notification(self.submission, directory, hostname=settings.hostname)
        self.delivery.reports = self.notification
        self.tracking = Tracking(
            database=database,
            directory=directory,
            ids=self.ids,
            clock=self.clock,
            contents=contents,
            delivery=self.delivery,
        )
        self._contents = contents

    def _make_transport(self, record: ServerRecord, directory: Directory) -> Transport:
        """The transport of a server: a new kind is a line here."""
        value = record.value
        if isinstance(value, CaptureServer):
            return CaptureTransport()
        assert isinstance(value, SmtpServer)
        egress = public_egress() if record.tenant_id else administrator_egress
        return SmtpTransport(
            value,
            added_pem=directory.added_pem(record),
            ehlo_name=value.ehlo_name or self.settings.hostname,
            egress=egress,
        )

    # ------------------------------------------------------------ working

    async def _begin_jobs(self) -> None:
        jobs = self.settings.wanted_jobs
        if self.database.is_sqlite:
            now_ms = self.clock.now_ms()
            resumed = await self.database.write(lambda connection: messages.forget_leases(connection, now_ms))
            if resumed:
                log.info("delivery: taking up what was in hand when the process ended", recipients=resumed)
        self._watch = asyncio.create_task(self.directory_source.watch(), name="directory-watch")
        self.maintenance = Maintenance(
            database=self.database,
            directory=self.directory_source,
            clock=self.clock,
            contents=self._contents,
            delivery=self.delivery,
            reserve=self.reserve,
            member=self.member,
            spool=self.settings.data / "spool",
            write_last_used=self.administration.write_last_used,
            prune_secrets=self.administration.prune_secrets,
        )
        if "delivery" in jobs:
            await self.delivery.start()
        self.maintenance.start()

    async def _listen(self) -> None:
        settings, jobs = self.settings, self.settings.wanted_jobs
        certificate = None
        if settings.tls_cert is not None and settings.tls_key is not None:
            certificate = ServerCertificate(settings.tls_cert, settings.tls_key)
        if "submission" in jobs:
            await self._listen_for_smtp(certificate)
        await self._listen_for_http()

    async def _listen_for_smtp(self, certificate: ServerCertificate | None) -> None:
        settings = self.settings
        installation = self.directory.installation
        self.smtp = Listener(
            ListenerSettings(
                max_connections=settings.max_connections,
                max_connections_per_peer=settings.max_connections_per_address,
                proxy_networks=settings.networks("proxy_protocol"),
                shares_ports=settings.shares_ports,
            ),
            SessionSettings(
                hostname=settings.hostname,
                max_message_octets=installation.max_message_octets,
                max_recipients=installation.max_recipients,
            ),
            policy=self.submission,
            handler=SubmissionHandover(self.submission),
            open_content=self.submission.open_content,
            certificate=certificate,
        )
        if settings.smtp:
            await self.smtp.start(*split_listener(settings.smtp))
        if settings.smtps:
            await self.smtp.start(*split_listener(settings.smtps), implicit_tls=True)

    async def _listen_for_http(self) -> None:
        settings = self.settings
        if settings.http:
            address = split_listener(settings.http)
            await self._serve(HttpListener(self._web(), address=address, shares_port=settings.shares_ports))
        if settings.https and settings.tls_cert and settings.tls_key:
            await self._serve(
                HttpListener(
                    self._web(),
                    address=split_listener(settings.https),
                    certificate=(settings.tls_cert, settings.tls_key),
                    shares_port=settings.shares_ports,
                )
            )
        # Of several workers in one data directory the first one answers the command line.
        if settings.worker <= 1:
            await self._serve(HttpListener(make_api(self, trusted_actor=COMMAND), path=self.control_socket))

    def _web(self) -> ASGIApp:
        """REST and pages as people and programs reach them, with a credential or a session."""
        return make_api(self, trusted_actor=None, pages=make_console(self))

    async def _serve(self, listener: HttpListener) -> None:
        await listener.start()
        self._http.append(listener)

    @property
    def http_addresses(self) -> list[tuple[str, int]]:
        """Where pages and REST are reached, with the real ports."""
        return [listener.bound for listener in self._http if listener.bound is not None]

    def command_api(self) -> ASGIApp:
        """The API as the command line calls it in this process, where no node runs."""
        return make_api(self, trusted_actor=COMMAND)

    # ------------------------------------------------------------ health

    def readiness(self) -> list[str]:
        """Why work cannot be taken at present, as sentences; empty while it can."""
        reasons = []
        if not self.listening:
            reasons.append("Posthouse is starting or stopping.")
        if self.database.down_since is not None:
            reasons.append("The database cannot be written.")
        if not self.reserve.has_room():
            reasons.append("No space is left in the data directory.")
        return reasons

    def free_octets(self) -> int:
        """Free space of the data directory."""
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self.settings.data).free
        return 0


async def run(settings: Settings, *, started: asyncio.Event | None = None, stop: asyncio.Event) -> None:
    """Serve until `stop` is set."""
    logs.configure(settings.log_format, settings.log_level)
    posthouse = Posthouse(settings)
    try:
        await posthouse.start()
    except LocalFault as fault:
        raise ConfigurationError(fault.detail, remedy=fault.remedy) from fault
    # What the start has made stays for good: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    if started is not None:
        started.set()
    try:
        await stop.wait()
    finally:
        await posthouse.stop()
