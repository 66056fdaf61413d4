"""Fixtures that every test may ask for: real servers on free ports of 127.0.0.1, each ended when its test ends.

A fixture that starts a server marks the tests that use it, so that `make test-quick` can leave them out. Nothing is
skipped: where a program is missing, its tests fail and name it.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.support.certificates import CertificateAuthority
from tests.support.dovecot import Dovecot, DovecotOptions
from tests.support.postfix import Postfix, PostfixOptions
from tests.support.postgres import PostgresServer
from tests.support.posthouse import PosthouseProcess
from tests.support.processes import server_folder
from tests.support.sink import CaptureOptions, CaptureServer, CountingSink

# Which marker a test gets by using a fixture.
MARKERS = {
    "postgres_server": "postgres",
    "start_postgres": "postgres",
    "start_postfix": "servers",
    "start_dovecot": "servers",
    "counting_sink": "servers",
    "programs": "servers",
}


class Logged(Protocol):
    """A server that can say what it logged."""

    def log(self) -> str: ...


_SERVERS = pytest.StashKey[list[Logged]]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKERS:
                item.add_marker(MARKERS[fixture])


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the servers' logs beside a failure."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.failed:
        for server in item.stash.get(_SERVERS, []):
            report.sections.append((f"log of {type(server).__name__}", server.log()[-6000:]))


@pytest.fixture
def watch(request: pytest.FixtureRequest) -> Callable[[Logged], None]:
    """Give a function that has a server's log shown when the test fails."""
    watched = request.node.stash.setdefault(_SERVERS, [])
    return lambda server: watched.append(server)


@pytest.fixture
def programs() -> None:
    """Mark a test that runs mail programs of tests/debian-packages.txt (swaks, msmtp, strace ...)."""


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CertificateAuthority]:
    """Give the run's certificate authority; its files can be read by servers that run as other users."""
    with server_folder("authority") as folder:
        yield CertificateAuthority(folder)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """Give the run's PostgreSQL, shared by all tests: do not stop it (see `start_postgres`)."""
    with server_folder("postgres") as folder:
        server = PostgresServer(folder)
        server.start()
        yield server
        server.stop("immediate")


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Give the URL of a new, empty PostgreSQL database."""
    url = postgres_server.create_database()
    yield url
    postgres_server.drop_database(url)


@pytest.fixture
def start_postgres(watch: Callable[[Logged], None]) -> Iterator[Callable[..., PostgresServer]]:
    """Give a function that starts a PostgreSQL of the test's own, to be stopped, crashed and frozen."""
    with ExitStack() as stack:

        def start(**options: Any) -> PostgresServer:
            server = PostgresServer(stack.enter_context(server_folder("postgres")), **options)
            stack.callback(server.stop, "immediate")
            server.start()
            watch(server)
            return server

        yield start


@pytest.fixture
def start_postfix(watch: Callable[[Logged], None]) -> Iterator[Callable[[PostfixOptions], Postfix]]:
    """Give a function that starts a Postfix; several may run side by side."""
    with ExitStack() as stack:

        def start(options: PostfixOptions) -> Postfix:
            server = Postfix(stack.enter_context(server_folder("postfix")), options)
            stack.callback(server.stop)
            watch(server)
            server.start()
            return server

        yield start


@pytest.fixture
def start_dovecot(watch: Callable[[Logged], None]) -> Iterator[Callable[[DovecotOptions], Dovecot]]:
    """Give a function that starts a Dovecot."""
    with ExitStack() as stack:

        def start(options: DovecotOptions) -> Dovecot:
            server = Dovecot(stack.enter_context(server_folder("dovecot")), options)
            stack.callback(server.stop)
            watch(server)
            server.start()
            return server

        yield start


@pytest.fixture
def start_sink() -> Iterator[Callable[[CaptureOptions], CaptureServer]]:
    """Give a function that starts a capturing SMTP server."""
    with ExitStack() as stack:
        yield lambda options: stack.enter_context(CaptureServer(options))


@pytest.fixture
def sink(start_sink: Callable[[CaptureOptions], CaptureServer]) -> CaptureServer:
    """Give a capturing SMTP server without TLS and AUTH."""
    return start_sink(CaptureOptions())


@pytest.fixture
def counting_sink() -> Iterator[CountingSink]:
    """Give Postfix's smtp-sink."""
    with server_folder("sink") as folder:
        server = CountingSink(folder)
        server.start()
        yield server
        server.stop()


@pytest.fixture
def start_posthouse(tmp_path: Path, watch: Callable[[Logged], None]) -> Iterator[Callable[..., PosthouseProcess]]:
    """Give a function that starts a Posthouse node; arguments as for PosthouseProcess, `name` tells nodes apart."""
    with ExitStack() as stack:

        def start(name: str = "node", *, data: Path | None = None, **options: Any) -> PosthouseProcess:
            node = PosthouseProcess(data or tmp_path / name, **options)
            stack.callback(node.stop)
            watch(node)
            node.start()
            return node

        yield start


@pytest.fixture
def posthouse(start_posthouse: Callable[..., PosthouseProcess]) -> PosthouseProcess:
    """Give one Posthouse node on SQLite in an empty data folder."""
    return start_posthouse()
