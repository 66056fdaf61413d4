"""The sandbox: takes every message and sends none. What it took stays in the store and is shown (`tracking`)."""

from dataclasses import dataclass

from posthouse.model.message import Envelope
from posthouse.model.outcome import Outcome, Reply, Result, Scope, Stage
from posthouse.transports.base import Guard, OutgoingContent

_KEPT = Outcome(
    Result.DELIVERED, Scope.NOBODY, Stage.DATA, reply=Reply(250, "2.0.0", "Kept in the sandbox; nothing left.")
)
_LOST = Outcome(Result.DEFERRED, Scope.NOBODY, Stage.DATA, cause="lease-lost")


@dataclass(frozen=True, slots=True)
class CaptureFacts:
    """No far side: nothing was spoken."""

    remote: str = ""
    tls_version: str = ""
    tls_fell_back: bool = False
    passes_on_dsn: bool = False


class CaptureSession:
    """One place in the sandbox; there is no connection behind it."""

    # Delivered messages are listed as captured.
    keeps = True
    usable = True
    facts = CaptureFacts()

    async def send(self, envelope: Envelope, content: OutgoingContent, guard: Guard) -> list[Outcome]:
        """Keep the message: it is in the store already, so that nothing can fail here."""
        return [_KEPT if guard.alive() else _LOST] * len(envelope.recipients)

    async def close(self) -> None:
        """Nothing is open."""


class CaptureTransport:
    """See transports/base.py."""

    async def open(self) -> CaptureSession:
        """A session; always possible."""
        return CaptureSession()
