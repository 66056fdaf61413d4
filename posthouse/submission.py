"""Submission: takes mail from applications, decides where it goes, and keeps it before anyone is told it was taken.

A handover is envelope, content and what the application asked for. `build` checks and routes it and makes its rows;
`submit` (SMTP: one message, by callback) and `accept` (REST, command line: several, awaited) commit them and pass what
can be sent at once to delivery, already leased. 250 and 202 follow the commit, never the other way round (promise 1).
"""

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import structlog

from posthouse.clock import Clock
from posthouse.errors import (
    Conflict,
    InvalidInput,
    LocalFault,
    MessageTooLarge,
    NoRoute,
    PosthouseError,
    Refused,
    SenderNotAllowed,
    SendingOff,
    StoreFull,
    TooManyRequests,
)
from posthouse.model.address import AddressFault, AddressSet, parse_address, parse_header_addresses
from posthouse.model.application import Application
from posthouse.model.directory import Directory
from posthouse.model.identifier import IdentifierSource, format_id
from posthouse.model.limits import FailureThrottle
from posthouse.model.message import Envelope, EnvelopeRecipient, Origin, RecipientState, Traits, WaitingReason
from posthouse.model.record import Record
from posthouse.model.routing import Need, Route, choose, is_fax, routing_sender
from posthouse.protocol.headers import (
    HeaderFacts,
    HeaderTooLong,
    decode_for_people,
    fold_long_header_lines,
    put_in_front,
    remove_fields,
    scan,
)
from posthouse.protocol.smtp_server import Sender
from posthouse.store import messages
from posthouse.store.content import INLINE, MAX_LINE_OCTETS, STORED, ContentBuffer, ContentStore, ReceivedContent
from posthouse.store.credentials import SMTP, recognise
from posthouse.store.database import Append, Database, Statement
from posthouse.store.directory_source import DirectorySource
from posthouse.store.messages import (
    INSERT_CONTENT,
    INSERT_IDEMPOTENCY,
    INSERT_MESSAGE,
    INSERT_RECIPIENT,
    QueuedMessage,
    QueuedRecipient,
)
from posthouse.store.vault import KeyRing

log = structlog.get_logger()

# A lease in seconds (design.md section 6).
LEASE_S = 30.0
IDEMPOTENCY_MS = 24 * 3_600_000
# Guessing 160 bits is hopeless; this keeps the log and the processor from being busy with it (threat A17).
AUTH_FAILURES, AUTH_WINDOW_S = 10, 60.0
PRIORITIES = {"high": 0, "normal": 1, "low": 2}
# How far ahead a message may be scheduled.
MAX_SCHEDULE_MS = 366 * 86_400_000

Row = tuple[Statement, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Admitted:
    """An application as recognised by the SMTP face: what protocol/smtp_server.py calls Sender."""

    label: str
    application: Record[Application]
    admitted_by: str


@dataclass(slots=True)
class Handover:
    """A message as handed in by a face. Times are milliseconds; `priority` 0 high, 1 normal, 2 low."""

    envelope: Envelope
    content: ReceivedContent
    origin: Origin
    application_id: int
    tenant_id: int
    server_id: int | None = None
    send_at_ms: int | None = None
    expires_ms: int | None = None
    priority: int = 1


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The key of a call, and a digest over the whole call."""

    application_id: int
    key: str
    digest: bytes


@dataclass(slots=True)
class Built:
    """A message ready for its commit: its rows, and the parts of it that delivery takes over afterwards."""

    id: int
    rows: list[Row]
    jobs: list[tuple[int, QueuedMessage]] = field(default_factory=list)
    spooled: Path | None = None


class HandOver(Protocol):
    """What submission needs of delivery."""

    def reserve(self, server_id: int, size: int, recipients: int) -> bool:
        """Whether the server's lane takes this now; if so the place is kept."""

    def cancel_reservation(self, server_id: int, size: int, recipients: int) -> None:
        """Give the place back: the commit failed."""

    def hand_over(self, server_id: int, message: QueuedMessage) -> None:
        """Take a committed message into a reserved place."""


class Counters:
    """What /metrics shows of submission."""

    __slots__ = ("accepted", "recipients", "refused")

    def __init__(self) -> None:
        self.accepted = 0
        self.recipients = 0
        self.refused = 0


class Submission:
    """The job. Its synchronous methods answer the SMTP face from memory alone."""

    def __init__(
        self,
        *,
        database: Database,
        directory: DirectorySource,
        ring: KeyRing,
        ids: IdentifierSource,
        clock: Clock,
        contents: ContentStore,
        spool: Path,
        hostname: str,
        delivery: HandOver,
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        self._database = database
        self._directory = directory
        self._ring = ring
        self._ids = ids
        self._clock = clock
        self._contents = contents
        self._spool = spool
        self._hostname = hostname
        self._delivery = delivery
        self._has_room = has_room
        self._throttle = FailureThrottle(limit=AUTH_FAILURES, window_s=AUTH_WINDOW_S)
        self._in_work: set[tuple[int, str]] = set()
        self._dates: tuple[int, str] = (0, "")
        self._tasks: set[asyncio.Task[None]] = set()
        self.counters = Counters()

    # ------------------------------------------------------------ admission (SMTP face, synchronous)

    def admit(self, peer: str) -> Admitted | None:
        """The application that lists the peer's network, or None."""
        directory = self._directory.current
        application_id = directory.application_by_address(peer)
        if application_id is None:
            return None
        record = directory.applications[application_id]
        return Admitted(record.name, record, "network")

    def authenticate(self, username: str, password: str, peer: str) -> Admitted | None:
        """The application behind a credential, or None. Raises TooManyRequests after repeated failures."""
        now = self._clock.monotonic()
        for key in (f"address {peer}", f"account {username.lower()}"):
            wait = self._throttle.retry_after_s(key, now)
            if wait:
                raise TooManyRequests("Too many failed sign-ins.", retry_after_s=int(wait) + 1)
        directory = self._directory.current
        # Equal work for unknown names, so that time tells nothing.
        credential = recognise(directory, self._ring, SMTP, username, password)
        expired = credential is not None and credential.expires_ms is not None and (
            credential.expires_ms <= self._clock.now_ms()
        )  # fmt: skip
        if credential is None or expired or not directory.is_active(credential.application_id):
            self._throttle.failed(f"address {peer}", now)
            self._throttle.failed(f"account {username.lower()}", now)
            return None
        self._throttle.succeeded(f"address {peer}")
        self._throttle.succeeded(f"account {username.lower()}")
        self._directory.credential_used(credential.id)
        record = directory.applications[credential.application_id]
        return Admitted(record.name, record, "credential")

    def check_mail_from(self, sender: Sender, mail_from: str, size: int | None, smtputf8: bool) -> None:
        """Raises the PosthouseError with which MAIL is refused."""
        assert isinstance(sender, Admitted)
        directory = self._directory.current
        self._require_sending(directory)
        application_id = sender.application.id
        if not directory.is_active(application_id):
            raise Refused("This application is disabled.", remedy="Ask the administrator of Posthouse.")
        limit = directory.installation.max_message_octets
        if size is not None and size > limit:
            raise MessageTooLarge(f"The message is larger than the limit of {limit} octets.")
        allowed = directory.allowed_senders.get(application_id)
        if allowed is not None and mail_from and not allowed.contains(parse_address(mail_from)):
            raise _sender_refused("envelope sender")

    def check_recipient(self, sender: Sender, address: str) -> None:
        """Raises the PosthouseError with which RCPT is refused."""
        if is_fax(address):
            raise NoRoute("There is no fax server.", remedy="Ask the administrator to add one.")

    def open_content(self, announced: int | None = None) -> ContentBuffer:
        """A buffer for the octets of one message."""
        return ContentBuffer(self._spool)

    # ------------------------------------------------------------ taking mail

    def submit(self, handover: Handover, done: Callable[[int | PosthouseError], None]) -> None:
        """Take one message; `done` is called once, in the event loop: with its id after the commit, or the refusal."""
        try:
            built = self.build(handover)
        except PosthouseError as error:
            self._refuse([handover], done, error)
            return
        except Exception:
            log.exception("submission: a message could not be taken")
            self._refuse([handover], done, LocalFault("Posthouse could not take this message."))
            return
        if built.spooled is not None:
            task = asyncio.get_running_loop().create_task(self._keep_then_commit(built, done))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._commit([built], (), lambda error: done(error or built.id))

    async def accept(
        self, handovers: Sequence[Handover], *, idempotency: IdempotencyKey | None = None
    ) -> list[int | PosthouseError]:
        """Take several messages in one commit: an id or the refusal for each, in order. Durable on return.

        Under an idempotency key the first call's answer is given again for 24 hours. Raises Conflict while that call is
        still in work, InvalidInput where the key came with another call, and LocalFault when nothing could be kept.
        """
        if idempotency is None:
            return await self._accept(handovers, None)
        known = await self._known_answer(idempotency)
        if known is not None:
            for handover in handovers:
                handover.content.discard()
            return known
        mark = (idempotency.application_id, idempotency.key)
        if mark in self._in_work:
            raise Conflict("A call with this Idempotency-Key is still in work.", code="idempotency-in-work")
        self._in_work.add(mark)
        try:
            return await self._accept(handovers, idempotency)
        finally:
            self._in_work.discard(mark)

    def build(self, handover: Handover) -> Built:
        """Check, route and make the rows of one message; places in lanes are reserved. Raises PosthouseError."""
        directory = self._directory.current
        self._require_sending(directory)
        envelope, content = handover.envelope, handover.content
        installation = directory.installation
        if content.size > installation.max_message_octets:
            raise MessageTooLarge(f"The message is larger than the limit of {installation.max_message_octets} octets.")
        if not envelope.recipients:
            raise InvalidInput.of("to", "no-recipient", "The message has no recipient.")
        if len(envelope.recipients) > installation.max_recipients:
            raise InvalidInput.of("to", "too-many-recipients", f"At most {installation.max_recipients} recipients.")
        self._check_times(handover)
        facts = scan(content.header)
        if facts.received_count >= installation.max_hops:
            raise Refused("The message has passed too many hosts: this is a loop.", code="loop")
        self._check_header_senders(directory, handover.application_id, facts)
        return self._assemble(directory, handover, facts)

    def internal(self, handover: Handover) -> Built:
        """Rows of a message that Posthouse itself writes, to be committed with what made it necessary."""
        return self._assemble(self._directory.current, handover, scan(handover.content.header))

    def committed(self, built: Built) -> None:
        """Count the message and hand its jobs to delivery."""
        self.counters.accepted += 1
        for server_id, job in built.jobs:
            self._delivery.hand_over(server_id, job)

    def withdraw(self, built: Built) -> None:
        """The commit failed: give the reserved places back and drop the spooled body."""
        for server_id, job in built.jobs:
            self._delivery.cancel_reservation(server_id, job.size, len(job.recipients))
        if built.spooled is not None:
            built.spooled.unlink(missing_ok=True)

    async def drain(self) -> None:
        """Wait for messages whose large bodies are being kept."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ------------------------------------------------------------ rules

    def _require_sending(self, directory: Directory) -> None:
        if not self._has_room():
            raise StoreFull("No space is left on the disk of Posthouse.", remedy="Send the message again later.")
        reason = directory.sending_off_reason()
        if reason is not None:
            raise SendingOff(reason, remedy="An administrator can switch it on again; then send the message again.")

    def _check_times(self, handover: Handover) -> None:
        if handover.send_at_ms is None and handover.expires_ms is None:
            return
        now_ms = self._clock.now_ms()
        if handover.send_at_ms is not None and handover.send_at_ms > now_ms + MAX_SCHEDULE_MS:
            raise InvalidInput.of("send_at", "too-far", "A message can be scheduled at most 366 days ahead.")
        if handover.expires_ms is not None and handover.expires_ms <= max(now_ms, handover.send_at_ms or 0):
            raise InvalidInput.of(
                "expires_at", "already-expired", "This must be later than now, and later than send_at."
            )

    def _check_header_senders(self, directory: Directory, application_id: int, facts: HeaderFacts) -> None:
        """The allow-list holds for From and Sender too, after one strict parse (threat A16)."""
        allowed = directory.allowed_senders.get(application_id)
        if allowed is None:
            return
        if facts.from_count > 1 or "sender" in facts.duplicates:
            raise SenderNotAllowed("The message has more than one From or Sender field.")
        for name, value in (("From", facts.from_value), ("Sender", facts.sender_value)):
            if value is not None:
                _require_allowed(allowed, name, value)

    # ------------------------------------------------------------ assembling

    def _assemble(self, directory: Directory, handover: Handover, facts: HeaderFacts) -> Built:
        now_ms = self._clock.now_ms()
        message_id = self._ids(now_ms)
        envelope, received = handover.envelope, handover.content
        traits = received.body_traits | _header_traits(facts, envelope)
        header, header_message_id, changes = self._header(handover, facts, message_id, now_ms)
        # The empty line between header and body is in the size of what came, and at the end of our header.
        size = received.size - len(received.header) - 2 + len(header)
        header_from = facts.from_value or b""
        routes = self._routes(directory, handover, header_from, Need(size, traits))
        inline = received.spooled is None
        waits = handover.send_at_ms is not None and handover.send_at_ms > now_ms
        built = Built(message_id, [], spooled=received.spooled)
        passed = tuple(sentence for route, _ in routes for sentence in route.passed_over)
        origin = _origin(handover.origin, tuple(changes), passed)
        built.rows.append(
            (
                INSERT_MESSAGE,
                (
                    message_id, handover.tenant_id, handover.application_id, now_ms, envelope.mail_from, envelope.ret,
                    envelope.envid, size, int(traits), header_message_id, _shown(header_from),
                    _shown(facts.subject or b""), handover.priority, handover.expires_ms, origin, INLINE if inline else STORED,
                ),
            )
        )  # fmt: skip
        built.rows.append((INSERT_CONTENT, (message_id, header, received.body)))
        for route, recipients in routes:
            job = QueuedMessage(
                message_id, handover.tenant_id, handover.application_id, now_ms, envelope.mail_from, envelope.ret,
                envelope.envid, size, int(traits), handover.expires_ms, header_message_id, INLINE if inline else STORED,
                header, received.body, [], envelope if len(routes) == 1 else None,
            )  # fmt: skip
            send_at_ms = handover.send_at_ms if waits else None
            self._add_recipients(built, job, route, recipients, handover.priority, send_at_ms)
        return built

    def _add_recipients(
        self,
        built: Built,
        job: QueuedMessage,
        route: Route,
        recipients: Sequence[EnvelopeRecipient],
        priority: int,
        send_at_ms: int | None,
    ) -> None:
        now_ms, server_id = job.received_ms, route.server.id
        leased = send_at_ms is None and self._delivery.reserve(server_id, job.size, len(recipients))
        if leased:
            state, reason, due, lease = RecipientState.SENDING, WaitingReason.DUE, now_ms + int(LEASE_S * 1000), 1
        elif send_at_ms is not None:
            state, reason, due, lease = RecipientState.WAITING, WaitingReason.SCHEDULED, send_at_ms, 0
        else:
            state, reason, due, lease = RecipientState.WAITING, WaitingReason.DUE, now_ms, 0
        for recipient in recipients:
            recipient_id = self._ids(now_ms)
            built.rows.append(
                (
                    INSERT_RECIPIENT,
                    (
                        recipient_id, built.id, recipient.address, recipient.notify, recipient.orcpt, int(state),
                        int(reason), server_id, route.reason, priority, due, lease, 0, 0, now_ms, "",
                    ),
                )
            )  # fmt: skip
            if leased:
                job.recipients.append(
                    QueuedRecipient(recipient_id, recipient.address, recipient.notify, recipient.orcpt, 1, 0, 0)
                )
        if leased:
            built.jobs.append((server_id, job))

    def _routes(
        self, directory: Directory, handover: Handover, header_from: bytes, need: Need
    ) -> list[tuple[Route, list[EnvelopeRecipient]]]:
        """The recipients by route. Today every recipient of a message takes the same one, but for fax numbers."""
        sender = routing_sender(directory, header_from, handover.envelope.mail_from)
        if handover.server_id is not None and handover.application_id:
            application = directory.applications.get(handover.application_id)
            if application is None or not application.value.may_name_server:
                raise Refused("This application may not choose the server.", field="server", code="server-not-allowed")
        route = choose(
            directory, tenant_id=handover.tenant_id, sender=sender, need=need, named_server_id=handover.server_id
        )
        for recipient in handover.envelope.recipients:
            if is_fax(recipient.address):
                raise NoRoute("There is no fax server.", field="to")
        return [(route, list(handover.envelope.recipients))]

    def _header(
        self, handover: Handover, facts: HeaderFacts, message_id: int, now_ms: int
    ) -> tuple[bytes, str, list[str]]:
        """The header as it will leave: Received in front, Message-ID and Date where missing, no Bcc (RFC 6409 section 8)."""
        changes: list[str] = []
        header = handover.content.header
        if facts.has_bcc:
            header = remove_fields(header, ("bcc", "resent-bcc"))
            changes.append("Bcc was removed.")
        if facts.message_id is None:
            # One that is there but empty must not stand beside ours.
            header = remove_fields(header, ("message-id",))
        date = self._date(now_ms)
        if facts.longest_line > MAX_LINE_OCTETS:
            header = _folded(header)
            changes.append("Over-long header lines were folded.")
        front = (
            f"{_received_from(handover.origin, handover.envelope.smtputf8, self._hostname)} id {format_id(message_id)};"
            f"\r\n\t{date}\r\n"
        )
        header_message_id = facts.message_id
        if header_message_id is None:
            header_message_id = f"<{format_id(message_id)}@{self._hostname}>"
            front += f"Message-ID: {header_message_id}\r\n"
            changes.append("Message-ID was added.")
        if not facts.has_date:
            front += f"Date: {date}\r\n"
            changes.append("Date was added.")
        return put_in_front(header, front.encode("ascii", "replace")) + b"\r\n", header_message_id, changes

    def _date(self, now_ms: int) -> str:
        second = now_ms // 1000
        if self._dates[0] != second:
            self._dates = (second, format_datetime(datetime.fromtimestamp(second, UTC)))
        return self._dates[1]

    # ------------------------------------------------------------ committing

    def _commit(
        self, built: Sequence[Built], more: Sequence[Row], done: Callable[[PosthouseError | None], None]
    ) -> None:
        def finish(error: PosthouseError | None) -> None:
            for message in built:
                if error is None:
                    self.committed(message)
                else:
                    self.withdraw(message)
            if error is not None:
                self.counters.refused += len(built)
            done(error)

        rows = built[0].rows if len(built) == 1 and not more else [*(r for b in built for r in b.rows), *more]
        self._database.append(Append(rows, finish, unique=built[0].id if built else 0))

    async def _keep_then_commit(self, built: Built, done: Callable[[int | PosthouseError], None]) -> None:
        try:
            await self._keep_body_or_withdraw(built)
        except PosthouseError as error:
            done(error)
            return
        self._commit([built], (), lambda error: done(error or built.id))

    async def _keep_body(self, built: Built) -> None:
        if built.spooled is not None:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, self._contents.keep, built.id, built.spooled)

    async def _keep_body_or_withdraw(self, built: Built) -> None:
        """Keep a large body; where that fails, what `build` reserved is given back. Raises PosthouseError."""
        try:
            await self._keep_body(built)
        except PosthouseError:
            self.withdraw(built)
            raise
        except Exception:
            log.exception("submission: a large body could not be kept")
            self.withdraw(built)
            raise LocalFault("Posthouse could not keep this message.") from None

    def _refuse(
        self, handovers: Sequence[Handover], done: Callable[[int | PosthouseError], None], error: PosthouseError
    ) -> None:
        for handover in handovers:
            handover.content.discard()
        self.counters.refused += len(handovers)
        done(error)

    async def _accept(
        self, handovers: Sequence[Handover], idempotency: IdempotencyKey | None
    ) -> list[int | PosthouseError]:
        answers: list[int | PosthouseError] = []
        built: list[Built] = []
        for handover in handovers:
            try:
                message = self.build(handover)
                await self._keep_body_or_withdraw(message)
            except PosthouseError as error:
                handover.content.discard()
                answers.append(error)
                continue
            built.append(message)
            answers.append(message.id)
        if not built:
            self.counters.refused += len(handovers)
            return answers
        more: list[Row] = []
        if idempotency is not None:
            answer = json.dumps([a if isinstance(a, int) else [a.code, a.detail, a.field] for a in answers])
            expires = self._clock.now_ms() + IDEMPOTENCY_MS
            row = (idempotency.application_id, idempotency.key, idempotency.digest, answer, expires)
            more.append((INSERT_IDEMPOTENCY, row))
        future: asyncio.Future[PosthouseError | None] = asyncio.get_running_loop().create_future()
        self._commit(built, more, lambda error: None if future.done() else future.set_result(error))
        fault = await future
        if fault is None:
            return answers
        if idempotency is not None and not isinstance(fault, LocalFault):
            # Another node was faster with the same key: its answer counts.
            known = await self._known_answer(idempotency)
            if known is not None:
                return known
        raise fault

    async def _known_answer(self, idempotency: IdempotencyKey) -> list[int | PosthouseError] | None:
        row = await self._database.read(
            lambda connection: messages.read_answer(connection, idempotency.application_id, idempotency.key)
        )
        if row is None or row.expires_ms <= self._clock.now_ms():
            return None
        if bytes(row.digest) != idempotency.digest:
            raise InvalidInput.of(
                "Idempotency-Key", "idempotency-mismatch", "This key came before with another call. Use a new key."
            )
        return [a if isinstance(a, int) else Refused(a[1], code=a[0], field=a[2]) for a in json.loads(row.answer)]


def call_digest(*parts: bytes) -> bytes:
    """A digest over a whole call, for its idempotency key."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _sender_refused(what: str) -> SenderNotAllowed:
    return SenderNotAllowed(
        f"This application may not use this {what}.",
        remedy="Use an address that the application lists, or have it listed by the administrator.",
    )


def _require_allowed(allowed: AddressSet, name: str, value: bytes) -> None:
    try:
        addresses = parse_header_addresses(value)
    except AddressFault as fault:
        raise SenderNotAllowed(f"The {name} field cannot be read without doubt: {fault}") from None
    if not addresses or not all(allowed.contains(a.address) for a in addresses):
        raise _sender_refused(f"address in {name}")


def _folded(header: bytes) -> bytes:
    try:
        return fold_long_header_lines(header)
    except HeaderTooLong as fault:
        raise InvalidInput.of("header", "header-line-too-long", str(fault)) from None


def _header_traits(facts: HeaderFacts, envelope: Envelope) -> int:
    traits: int = Traits.NONE
    if facts.is_signed:
        traits |= Traits.SIGNED
    if not facts.is_ascii:
        # Declared: UTF-8 headers that need SMTPUTF8. Undeclared octets are passed on as they are, as 8-bit content.
        traits |= Traits.UTF8_HEADER if envelope.smtputf8 else Traits.EIGHT_BIT
    if envelope.smtputf8 and not (
        envelope.mail_from.rpartition("@")[0].isascii()
        and all(r.address.rpartition("@")[0].isascii() for r in envelope.recipients)
    ):
        traits |= Traits.UTF8_ADDRESS
    return traits


def _shown(value: bytes) -> str:
    """A header value for lists: decoded where it has encoded-words, at most 500 characters."""
    if value.isascii() and b"=?" not in value and b"\n" not in value:
        return value[:500].decode("ascii").strip().replace("\x00", "")
    return decode_for_people(value)[:500].replace("\x00", "")


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@lru_cache(maxsize=1024)
def _received_from(origin: Origin, smtputf8: bool, hostname: str) -> str:
    """The part of a Received field that is the same for all messages of a session (RFC 5321 section 4.4)."""
    if origin.protocol != "smtp":
        return f"Received: by {hostname} (Posthouse) with HTTP"
    # RFC 3848 section 2: S for TLS, A for a credential; UTF8 by RFC 6531 section 4.3.
    kind = "UTF8SMTP" if smtputf8 else "ESMTP"
    kind += ("S" if origin.tls else "") + ("A" if origin.admitted_by == "credential" else "")
    peer = f"[IPv6:{origin.peer}]" if ":" in origin.peer else f"[{origin.peer}]"
    helo = origin.helo if origin.helo.isascii() and origin.helo else peer
    return f"Received: from {helo} ({peer})\r\n\tby {hostname} (Posthouse) with {kind}"


@lru_cache(maxsize=1024)
def _origin(origin: Origin, changes: tuple[str, ...], passed: tuple[str, ...]) -> str:
    """The JSON of where a message came in; the same for most messages of a session."""
    facts: dict[str, Any] = {
        "protocol": origin.protocol, "peer": origin.peer, "helo": origin.helo, "tls": origin.tls,
        "by": origin.admitted_by,
    }  # fmt: skip
    if changes:
        facts["changes"] = changes
    if passed:
        facts["passed_over"] = passed
    return _encode(facts)
