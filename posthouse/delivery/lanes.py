"""The way to one server on this node: what is in hand for it, its connections, and how much it takes."""

import asyncio
import collections
from dataclasses import dataclass

from posthouse.model.directory import ServerRecord
from posthouse.store.messages import QueuedMessage

# How long a claim holds (design.md section 6).
LEASE_S = 30.0
# A lane never holds more than this many messages, whatever its rate.
MAX_IN_HAND = 5_000


@dataclass(slots=True)
class Job:
    """A message in hand, with those recipients that go to one server."""

    message: QueuedMessage
    # Monotonic: the lease holds until then.
    deadline: float
    lost: bool = False
    fallback_for: int = 0
    # What the server's rules changed in the message, as sentences.
    changes: tuple[str, ...] = ()


class Lane:
    """The way to one server on this node."""

    def __init__(self, record: ServerRecord) -> None:
        self.record = record
        self.queue: collections.deque[Job] = collections.deque()
        # Messages reserved, queued or on the wire.
        self.in_hand = 0
        self.workers: set[asyncio.Task[None]] = set()
        # Workers with an open connection and nothing to send, and since when; the longest idle first.
        self.idle: collections.deque[tuple[asyncio.Future[Job | None], float]] = collections.deque()
        self.working: set[int] = set()
        # More is due in the store than the lane could take.
        self.has_backlog = False
        self.broken_connections = 0
        # The server took no more connections than `limit` at once; until then (monotonic) no more are tried.
        self.limit = 0
        self.limited_until = 0.0
        self.delivered = 0
        self.rate = 0.0
        self.delivered_before = 0
        self.delivered_noted = 0
        self.probing = False
        self.generation = 0

    @property
    def name(self) -> str:
        """The server's name."""
        return self.record.name

    def capacity(self) -> int:
        """What may be in hand: what the server takes in a third of a lease, at first twice its connections."""
        return min(MAX_IN_HAND, max(2 * self.record.value.max_connections, int(self.rate * LEASE_S / 3)))

    def measure(self) -> None:
        """Called each second."""
        done = self.delivered - self.delivered_before
        self.delivered_before = self.delivered
        self.rate = max(float(done), self.rate * 0.9)


def dismiss(waiter: "asyncio.Future[Job | None]") -> None:
    """Have the worker that waits close its connection."""
    if not waiter.done():
        waiter.set_result(None)
