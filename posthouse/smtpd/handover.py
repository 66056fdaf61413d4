"""Carries a message from an SMTP session to the submission job."""

from collections.abc import Callable
from typing import cast

from posthouse.errors import InvalidInput, PosthouseError
from posthouse.model.identifier import format_id
from posthouse.protocol.smtp_server import Submitted
from posthouse.store.content import ContentBuffer
from posthouse.submission import Admitted, Handover, Submission


class SubmissionHandover:
    """What `smtpd/connections.py` calls SubmissionHandler."""

    def __init__(self, submission: Submission) -> None:
        self._submission = submission

    def submit(self, submitted: Submitted, done: Callable[[str | PosthouseError], None]) -> None:
        """Hand the message to the job; the session is answered with its id after the commit."""
        sender = cast(Admitted, submitted.sender)
        try:
            content = cast(ContentBuffer, submitted.content).finish()
        except PosthouseError as error:
            submitted.content.abandon()
            done(error)
            return
        except ValueError:
            submitted.content.abandon()
            done(InvalidInput.of("content", "content-unreadable", "The message cannot be read."))
            return
        handover = Handover(
            submitted.envelope,
            content,
            submitted.origin,
            sender.application.id,
            sender.application.tenant_id,
        )
        self._submission.submit(handover, lambda answer: done(format_id(answer) if isinstance(answer, int) else answer))
