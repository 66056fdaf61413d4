"""What REST needs of the composed program (`posthouse/app.py`), as a protocol: no face imports the composition."""

from typing import Annotated, Protocol

from fastapi import Depends
from starlette.requests import Request

from posthouse.administration import Administration
from posthouse.clock import Clock
from posthouse.delivery import Delivery
from posthouse.metrics import Connections
from posthouse.model.directory import Directory
from posthouse.settings import Settings
from posthouse.store.database import Database
from posthouse.submission import Submission
from posthouse.tracking import Tracking


class Posthouse(Protocol):
    """The composed program."""

    @property
    def settings(self) -> Settings:
        """The settings of the process."""

    @property
    def clock(self) -> Clock:
        """The time."""

    @property
    def database(self) -> Database:
        """The store."""

    @property
    def directory(self) -> Directory:
        """The present snapshot of the configuration."""

    @property
    def administration(self) -> Administration:
        """The job that changes the configuration."""

    @property
    def submission(self) -> Submission:
        """The job that takes mail."""

    @property
    def tracking(self) -> Tracking:
        """The job that shows and steers what was taken."""

    @property
    def delivery(self) -> Delivery:
        """The job that sends."""

    @property
    def smtp(self) -> Connections | None:
        """The SMTP listener, where this process has one."""

    @property
    def http_addresses(self) -> list[tuple[str, int]]:
        """Where this process listens for HTTP, with the real ports."""

    def readiness(self) -> list[str]:
        """Why work cannot be taken at present, as sentences; empty while it can."""


def _hub(request: Request) -> Posthouse:
    hub: Posthouse = request.app.state.hub
    return hub


Hub = Annotated[Posthouse, Depends(_hub)]
