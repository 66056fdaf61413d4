"""Notification: tells the sender of a message that it failed, where the application asked for that (RFC 3464), and that
it was relayed, where the sender asked for that (RFC 3461) and the next server does not report by itself.

The report is made when the failure is recorded, and its rows go into the same commit, so that neither a crash between
the two nor a second try of the write can lose or double it. A report has the null sender and takes the route of the
original; one that cannot be sent ends in an event, never in another report (RFC 5321 section 6.1, threat A26). The event
of the failure is written always; events are what webhooks will be fed from.
"""

from collections.abc import Callable
from typing import Any

import structlog

from posthouse.errors import PosthouseError
from posthouse.model.address import AddressFault, parse_address
from posthouse.model.identifier import format_id
from posthouse.model.message import Envelope, EnvelopeRecipient, Origin, Traits
from posthouse.model.outcome import Outcome, Reply, Result
from posthouse.model.record import at
from posthouse.protocol.headers import scan
from posthouse.protocol.report import Action, FailedRecipient, failure_report, is_automatic
from posthouse.store.content import ReceivedContent, traits_of
from posthouse.store.database import Statement
from posthouse.store.directory_source import DirectorySource
from posthouse.store.messages import QueuedMessage, QueuedRecipient
from posthouse.submission import Handover, Submission

log = structlog.get_logger()

Row = tuple[Statement, tuple[Any, ...]]
_INTERNAL = Origin("internal")


class Notification:
    """The job: what delivery calls Reports."""

    def __init__(self, submission: Submission, directory: DirectorySource, *, hostname: str) -> None:
        self._submission = submission
        self._directory = directory
        self._hostname = hostname

    def rows_for(
        self, message: QueuedMessage, reported: list[tuple[QueuedRecipient, Outcome]], remote: str
    ) -> tuple[list[Row], Callable[[PosthouseError | None], None]] | None:
        """Rows of a report about `reported`, and what to call after their commit; None where none is due."""
        wanted = [(recipient, outcome) for recipient, outcome in reported if _wants_report(recipient, outcome)]
        if not wanted or not self._is_due(message):
            return None
        try:
            built = self._submission.internal(self._report(message, wanted, remote))
        except PosthouseError as error:
            log.warning("notification: no report of failure", message=format_id(message.id), cause=error.code)
            return None
        except Exception:
            log.exception("notification: a report of failure could not be written", message=format_id(message.id))
            return None

        def done(error: PosthouseError | None) -> None:
            if error is None:
                self._submission.committed(built)
            else:
                self._submission.withdraw(built)

        return built.rows, done

    def _is_due(self, message: QueuedMessage) -> bool:
        """Never to the null sender, never about what an automat wrote (RFC 3834 section 2)."""
        application = self._directory.current.applications.get(message.application_id)
        if not message.mail_from or application is None or not application.value.bounces:
            return False
        return not is_automatic(scan(message.header[:-2]))

    def _report(self, message: QueuedMessage, failed: list[tuple[QueuedRecipient, Outcome]], remote: str) -> Handover:
        # Without the empty line that ends it.
        original = message.header[:-2]
        header, body = failure_report(
            reporting_mta=self._hostname,
            header_from=self._directory.current.installation.postmaster_address or f"postmaster@{self._hostname}",
            to=message.mail_from,
            arrived_at=at(message.received_ms),
            envelope_id=message.envid,
            recipients=[_failed(recipient, outcome, remote) for recipient, outcome in failed],
            original_header=original,
            original_body=message.body if message.ret == "FULL" else None,
        )
        content = ReceivedContent(header, body, None, len(header) + 2 + len(body), traits_of(body))
        needs_utf8 = bool(message.traits & Traits.UTF8_ADDRESS) and not _is_ascii(message.mail_from)
        envelope = Envelope("", (EnvelopeRecipient(message.mail_from, notify="NEVER"),), smtputf8=needs_utf8)
        return Handover(envelope, content, _INTERNAL, message.application_id, message.tenant_id)


def _wants_report(recipient: QueuedRecipient, outcome: Outcome) -> bool:
    """NOTIFY of the recipient: absent means failures are reported (RFC 3461 section 4.1)."""
    wanted = "SUCCESS" if outcome.result is Result.DELIVERED else "FAILURE"
    return (not recipient.notify and wanted == "FAILURE") or wanted in recipient.notify.upper()


def _failed(recipient: QueuedRecipient, outcome: Outcome, remote: str) -> FailedRecipient:
    reply = outcome.reply
    return FailedRecipient(
        address=recipient.address,
        original_recipient=recipient.orcpt,
        status=status_of(outcome),
        reply=reply,
        detail=outcome.detail,
        remote_mta=remote,
        # The next server takes it further, without reports of its own (RFC 3464 section 2.3.3).
        action=Action.RELAYED if outcome.result is Result.DELIVERED else Action.FAILED,
    )


def status_of(outcome: Outcome) -> str:
    """The enhanced code for the report (RFC 3463): the server's own, else one that fits."""
    reply: Reply | None = outcome.reply
    if reply is not None and reply.enhanced:
        return reply.enhanced
    if outcome.result is Result.DELIVERED:
        return "2.0.0"
    if outcome.cause == "expired" or reply is None or reply.is_transient:
        # Persistent transient: delivery time expired.
        return "4.4.7"
    return "5.0.0"


def _is_ascii(address: str) -> bool:
    try:
        return parse_address(address).is_ascii_local
    except AddressFault:
        return address.isascii()
