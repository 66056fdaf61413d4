"""What the fault tests share: a hub with an SMTP server that points at a ledger's sink, on both kinds of database."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub import Hub
from tests.support.ledger import Ledger, LedgerSink, SinkRules
from tests.support.postgres import PostgresServer
from tests.support.posthouse import PosthouseProcess

KINDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Give the kind of database that the test runs on."""
    return str(request.param)


@pytest.fixture
def database(kind: str, request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Give the URL of a new database, or None for SQLite in the data directory."""
    if kind == "sqlite":
        yield None
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = server.create_database()
    yield url
    server.drop_database(url)


@pytest.fixture
def start_sink() -> Iterator[Callable[..., LedgerSink]]:
    """Give a function that starts a ledger's sink."""
    with ExitStack() as stack:
        yield lambda rules=None: stack.enter_context(LedgerSink(rules or SinkRules()))


@pytest.fixture
def sink(start_sink: Callable[..., LedgerSink]) -> LedgerSink:
    """Give a sink that takes everything."""
    return start_sink()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Give an empty ledger."""
    made = Ledger(tmp_path / "ledger")
    yield made
    made.close()


@pytest.fixture
def start_hub(start_posthouse: Callable[..., PosthouseProcess]) -> Callable[..., Hub]:
    """Give a function that starts a node with a default server on `port` and an application; options as for a node."""

    def start(port: int, *server_options: str, **options: Any) -> Hub:
        hub = Hub(start_posthouse(**options))
        hub.add_server("office", port, "--default", *server_options)
        hub.add_application()
        return hub

    return start


@pytest.fixture
def hub(start_hub: Callable[..., Hub], sink: LedgerSink) -> Hub:
    """Give a node on SQLite that delivers to `sink`."""
    return start_hub(sink.port)
