"""What Prometheus reads at /metrics. A registry of its own for each process object, so that two can live side by side.

Counters are read from the jobs at the time of asking; nothing is counted twice, and the hot path knows nothing of this
module. Labels are bounded: above `MAX_SERVERS` servers the rest is one sum.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import posthouse
from posthouse.delivery import Delivery
from posthouse.errors import PosthouseError
from posthouse.model.actor import SYSTEM
from posthouse.model.identifier import format_id
from posthouse.submission import Submission
from posthouse.tracking import Tracking

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# A label for each server, up to this many (threat F6: memory of whoever scrapes, and ours).
MAX_SERVERS = 200
OTHER_SERVERS = "(others)"


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """What waits for a server, and whether it is held."""

    id: str
    name: str
    waiting: int
    sending: int
    held: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything that is shown, at one moment. `ready` is false where no work can be taken."""

    messages_accepted: int
    messages_refused: int
    recipients_delivered: int
    recipients_failed: int
    smtp_connections: int
    server_connections: int
    servers: tuple[ServerLoad, ...]
    ready: bool


class Connections(Protocol):
    """What is needed of the SMTP listener."""

    @property
    def open_connections(self) -> int:
        """How many connections there are now."""


class Watched(Protocol):
    """What is needed of the composed program."""

    @property
    def submission(self) -> Submission:
        """Counts what was taken."""

    @property
    def delivery(self) -> Delivery:
        """Counts what was sent."""

    @property
    def tracking(self) -> Tracking:
        """Knows the queue."""

    @property
    def smtp(self) -> Connections | None:
        """Knows the connections of applications."""

    def readiness(self) -> list[str]:
        """Why work cannot be taken at present."""


class _Figures(Collector):
    """Turns figures into metric families when they are asked for."""

    def __init__(self, version: str) -> None:
        self._version = version
        self.present: Callable[[], Figures] | None = None

    def collect(self) -> Iterator[Metric]:
        """The metric families."""
        build = GaugeMetricFamily("posthouse_build_info", "The version that runs.", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        if self.present is not None:
            figures = self.present()
            yield from _totals(figures)
            yield from _by_server(figures.servers)


def _totals(figures: Figures) -> Iterator[Metric]:
    for name, text, value in (
        ("posthouse_messages_accepted", "Messages taken in.", figures.messages_accepted),
        ("posthouse_messages_refused", "Messages refused at submission.", figures.messages_refused),
        ("posthouse_recipients_delivered", "Recipients for which a server took responsibility.",
         figures.recipients_delivered),
        ("posthouse_recipients_failed", "Recipients that finally failed or expired.", figures.recipients_failed),
    ):  # fmt: skip
        yield CounterMetricFamily(name, text, value=value)
    for name, text, count in (
        ("posthouse_smtp_connections", "Open connections of applications.", figures.smtp_connections),
        ("posthouse_server_connections", "Open connections to servers.", figures.server_connections),
        ("posthouse_servers_held", "Servers that are held.", sum(s.held for s in figures.servers)),
        ("posthouse_ready", "1 while work can be taken.", int(figures.ready)),
    ):
        yield GaugeMetricFamily(name, text, value=count)


def _by_server(servers: Iterable[ServerLoad]) -> Iterator[Metric]:
    queue = GaugeMetricFamily(
        "posthouse_queue_recipients", "Recipients that wait or are being sent.", labels=["server_id", "server", "state"]
    )
    ranked = sorted(servers, key=lambda s: s.waiting + s.sending, reverse=True)
    for load in ranked[:MAX_SERVERS]:
        # Names are unique per owner only.
        queue.add_metric([load.id, load.name, "waiting"], load.waiting)
        queue.add_metric([load.id, load.name, "sending"], load.sending)
    rest = ranked[MAX_SERVERS:]
    if rest:
        queue.add_metric(["", OTHER_SERVERS, "waiting"], sum(s.waiting for s in rest))
        queue.add_metric(["", OTHER_SERVERS, "sending"], sum(s.sending for s in rest))
    yield queue


class Metrics:
    """The registry of one process object."""

    def __init__(self, watched: Watched) -> None:
        self.registry = CollectorRegistry()
        self._watched = watched
        self._figures = _Figures(posthouse.__version__)
        self.registry.register(self._figures)

    async def render(self) -> bytes:
        """The text that Prometheus reads (exposition format 0.0.4). Without the database the queue is left out."""
        figures = await self._present_figures()
        self._figures.present = lambda: figures
        return generate_latest(self.registry)

    async def _present_figures(self) -> Figures:
        watched = self._watched
        try:
            lines = await watched.tracking.queue(SYSTEM)
        except PosthouseError:
            lines = []
        return Figures(
            messages_accepted=watched.submission.counters.accepted,
            messages_refused=watched.submission.counters.refused,
            recipients_delivered=watched.delivery.counters.delivered,
            recipients_failed=watched.delivery.counters.failed,
            smtp_connections=watched.smtp.open_connections if watched.smtp is not None else 0,
            server_connections=sum(len(lane.workers) for lane in watched.delivery.lanes().values()),
            servers=tuple(
                ServerLoad(format_id(x.server_id), x.server, x.waiting, x.sending, bool(x.state.held)) for x in lines
            ),
            ready=not watched.readiness(),
        )
