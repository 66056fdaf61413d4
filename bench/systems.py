"""What is measured: Posthouse on each database, Postfix as Debian ships it, and nothing at all in between.

Each system takes mail on `port` and brings it to the sink that it was started with. All keep their files on the same
file system, and all that keep mail sync it before they answer.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from tests.support.certificates import Leaf
from tests.support.postfix import Postfix, PostfixOptions
from tests.support.postgres import PostgresServer
from tests.support.posthouse import PosthouseProcess
from tests.support.processes import server_folder


@dataclass(frozen=True, slots=True)
class System:
    """A relay that is running."""

    name: str
    port: int
    # The process behind it, where it is Posthouse.
    node: PosthouseProcess | None = None


@contextmanager
def bare(sink_port: int) -> Iterator[System]:
    """Nothing in between: the sender speaks to the sink."""
    yield System("bare", sink_port)


@contextmanager
def postfix(sink_port: int) -> Iterator[System]:
    """Postfix as a relay, with Debian's settings but for ports, folders and the next server."""
    with server_folder("bench-postfix") as folder:
        # The log goes to the system's logger, as on Debian; the sink is the relayhost.
        server = Postfix(folder, PostfixOptions(relay_to=f"127.0.0.1:{sink_port}", log=False, message_size_limit=0))
        server.start()
        try:
            yield System("postfix", server.port)
        finally:
            server.stop()


@contextmanager
def posthouse_sqlite(sink_port: int, *, tls: Leaf | None = None) -> Iterator[System]:
    """Posthouse on SQLite, everything on."""
    with server_folder("bench-posthouse") as folder:
        node = PosthouseProcess(folder / "data", options=_tls_options(tls))
        with _relaying(node, sink_port):
            yield System("posthouse sqlite", node.smtp_port, node)


@contextmanager
def posthouse_postgres(sink_port: int, *, tls: Leaf | None = None) -> Iterator[System]:
    """Posthouse, one node, on a PostgreSQL with its default settings."""
    with ExitStack() as stack:
        database = PostgresServer(stack.enter_context(server_folder("bench-postgres")))
        stack.callback(database.stop)
        database.start()
        folder = stack.enter_context(server_folder("bench-posthouse"))
        node = PosthouseProcess(folder / "data", database=database.create_database(), options=_tls_options(tls))
        stack.enter_context(_relaying(node, sink_port))
        yield System("posthouse postgresql", node.smtp_port, node)


SYSTEMS = {
    "bare": bare,
    "postfix": postfix,
    "sqlite": posthouse_sqlite,
    "postgresql": posthouse_postgres,
}


@contextmanager
def _relaying(node: PosthouseProcess, sink_port: int) -> Iterator[None]:
    """Run a node that sends everything to the sink and takes mail from this machine without a password."""
    try:
        node.start()
        server = ("--kind", "smtp", "--host", "127.0.0.1", "--port", str(sink_port), "--tls", "none", "--default")
        node.cli("server", "add", "office", *server)
        node.cli("application", "add", "scanner", "--network", "127.0.0.0/8")
        assert node.token  # made now, lest a measurement pay for it
        yield
    finally:
        node.stop()


def _tls_options(tls: Leaf | None) -> list[str]:
    return ["--tls-cert", str(tls.chain_file), "--tls-key", str(tls.key_file)] if tls else []
