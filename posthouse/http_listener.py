"""An HTTP listener: uvicorn on a socket that is bound before anything starts, without signal handlers or logs of its own."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from posthouse.errors import ConfigurationError

BACKLOG = 512
# Requests that are still being answered when the process stops.
GRACE_S = 5


class _Server(uvicorn.Server):
    """Signals belong to the process, not to one of its listeners."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal."""
        yield


class HttpListener:
    """Serves an ASGI application on HOST:PORT, with TLS where a certificate is given, or on a Unix socket (0600)."""

    def __init__(
        self,
        application: Any,
        *,
        address: tuple[str, int] | None = None,
        path: Path | None = None,
        certificate: tuple[Path, Path] | None = None,
        shares_port: bool = False,
    ) -> None:
        self._address = address
        self._path = path
        self._shares_port = shares_port
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        self.bound: tuple[str, int] | None = None
        options: dict[str, Any] = {}
        if certificate is not None:
            options = {"ssl_certfile": str(certificate[0]), "ssl_keyfile": str(certificate[1])}
        self._server = _Server(
            uvicorn.Config(
                application,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=30,
                timeout_graceful_shutdown=GRACE_S,
                backlog=BACKLOG,
                **options,
            )
        )

    async def start(self) -> None:
        """Listen. Raises ConfigurationError where the address is taken."""
        self._socket = self._bind_path() if self._path is not None else self._bind_address()
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]), name="http")
        while not self._server.started:
            if self._task.done():
                await self._task
                raise ConfigurationError("The HTTP listener ended at once.")
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        """Finish what is being answered, then close."""
        self._server.should_exit = True
        if self._task is not None:
            await asyncio.wait([self._task], timeout=GRACE_S + 2)
        if self._socket is not None:
            self._socket.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _bind_address(self) -> socket.socket:
        assert self._address is not None
        host, port = self._address
        try:
            family, kind, protocol, _, target = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            bound = socket.socket(family, kind, protocol)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if self._shares_port:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            bound.bind(target)
        except OSError as error:
            raise ConfigurationError(
                f"HTTP cannot listen on {host}:{port}: {error.strerror}.", remedy="Choose another address or port."
            ) from None
        name = bound.getsockname()
        self.bound = (name[0], name[1])
        return bound

    def _bind_path(self) -> socket.socket:
        assert self._path is not None
        self._path.unlink(missing_ok=True)
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The path of a Unix socket has little room (108 octets); a deep data directory is reached by its open handle.
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        before = os.umask(0o177)
        try:
            bound.bind(f"/proc/self/fd/{directory}/{self._path.name}")
        finally:
            os.umask(before)
            os.close(directory)
        return bound
