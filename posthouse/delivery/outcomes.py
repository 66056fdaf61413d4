"""What is written of an attempt, and what a message looks like on its way: values in, values out."""

from typing import Any

from posthouse.delivery.lanes import Job
from posthouse.model.directory import Directory, ServerRecord
from posthouse.model.message import Envelope, EnvelopeRecipient, Traits
from posthouse.model.outcome import Outcome, Result
from posthouse.model.policy import Decision
from posthouse.model.server import SenderOverride
from posthouse.protocol.sender import with_sender
from posthouse.store.messages import QueuedMessage, QueuedRecipient
from posthouse.transports.base import Session


def wants_success(recipient: QueuedRecipient, outcome: Outcome, session: Session | None) -> bool:
    """Whether the sender asked to hear of success and the server will not say it (RFC 3461 section 4.1)."""
    return (
        bool(recipient.notify)
        and outcome.result is Result.DELIVERED
        and "SUCCESS" in recipient.notify.upper()
        and session is not None
        and not session.facts.passes_on_dsn
    )


def envelope_of(message: QueuedMessage) -> Envelope:
    """The envelope for the recipients that are in hand."""
    return Envelope(
        message.mail_from,
        tuple(EnvelopeRecipient(r.address, r.notify, r.orcpt) for r in message.recipients),
        message.ret,
        message.envid,
        bool(message.traits & (Traits.UTF8_HEADER | Traits.UTF8_ADDRESS)),
    )


def with_servers_sender(record: ServerRecord, message: QueuedMessage) -> tuple[str, bytes, tuple[str, ...]]:
    """Envelope sender, header and what was changed, after the server's rule on senders. The null sender stays."""
    value = record.value
    assert value.sender_address is not None
    replaces = value.sender_override is SenderOverride.ALWAYS
    header, changes = with_sender(message.header[:-2], value.sender_address, value.sender_name, replace=replaces)
    mail_from = message.mail_from
    if replaces and mail_from and mail_from != value.sender_address:
        mail_from = value.sender_address
        changes += ("The envelope sender was replaced by the server's.",)
    return mail_from, header + b"\r\n", changes


def remote_of(session: Session | None) -> str:
    """The address that was spoken to, or ""."""
    return session.facts.remote if session is not None else ""


def settle_values(recipient: QueuedRecipient, outcome: Outcome, decision: Decision, now_ms: int) -> tuple[Any, ...]:
    """The values of SETTLE for a recipient."""
    last = str(outcome.reply) if outcome.reply is not None else outcome.detail
    return (
        int(decision.state), int(decision.reason), now_ms + int(decision.delay_s * 1000),
        recipient.attempts + decision.counts, decision.uncertain, now_ms, last[:1000].replace("\x00", ""),
        recipient.id, recipient.lease,
    )  # fmt: skip


def outcome_item(recipient: QueuedRecipient, outcome: Outcome) -> dict[str, Any]:
    """What the event of the attempt says of a recipient."""
    item: dict[str, Any] = {"r": recipient.id, "result": outcome.result.value}
    if outcome.reply is not None:
        item["reply"] = str(outcome.reply)
    if outcome.detail:
        item["detail"] = outcome.detail
    if outcome.result is not Result.DELIVERED:
        item["stage"] = outcome.stage.value
        item["cause"] = outcome.cause
        item["scope"] = outcome.scope.value
    return item


def split_too_many(message: QueuedMessage, outcomes: list[Outcome]) -> list[QueuedRecipient]:
    """Recipients that the server wants in another transaction; they follow at once, if this one took any."""
    later = [r for r, o in zip(message.recipients, outcomes, strict=True) if o.cause == "too-many-recipients"]
    return later if len(later) < len(outcomes) else []


def attempt_data(
    job: Job, items: list[dict[str, Any]], session: Session | None, directory: Directory
) -> dict[str, Any]:
    """What an event of the kind "attempt" holds (model/timeline.py reads it)."""
    data: dict[str, Any] = {"outcomes": items}
    if session is not None:
        facts = session.facts
        data["remote"] = facts.remote
        data["tls"] = facts.tls_version
        if facts.tls_fell_back:
            data["tls_fell_back"] = True
    if job.changes:
        data["changes"] = job.changes
    if job.fallback_for:
        held = directory.servers.get(job.fallback_for)
        data["fallback_for"] = held.name if held else ""
    return data
