"""Starts programs for tests and ends them by process id: child processes, their folders, ports and deadlines.

Nothing here knows any server; `postgres`, `postfix`, `dovecot`, `sink` and `posthouse` build on it. No program is ever
ended by its name, because other people's servers may run on the same machine.
"""

import atexit
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Below the range from which the kernel takes ports for outgoing connections, so that none of those gets in between.
PORT_RANGE = (20_000, 32_000)
# Where distributions keep servers' programs, which an ordinary user's PATH may lack.
PROGRAM_FOLDERS = ("/usr/sbin", "/sbin", "/usr/local/sbin")

_given_out: set[int] = set()
_random = random.SystemRandom()  # apart from the generator that property tests reset


class NotReady(AssertionError):
    """Something that a test waits for did not come true within its time."""


def free_port(host: str = "127.0.0.1") -> int:
    """Give a TCP port on which nothing listens, never the same one twice in this process."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(1000):
        port = _random.randrange(*PORT_RANGE)
        if port in _given_out:
            continue
        with socket.socket(family) as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
        _given_out.add(port)
        return port
    raise NotReady(f"No free port on {host}.")


def wait_until(
    condition: Callable[[], T], what: str = "the condition", *, timeout_s: float = 10.0, every_s: float = 0.01
) -> T:
    """Call `condition` until it is true and return what it gave. Raises NotReady after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise NotReady(f"Waited {timeout_s:g} s in vain for {what}.")
        time.sleep(every_s)


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Say whether something takes connections there."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1):
        return True
    return False


def program(name: str, *folders: str) -> str:
    """Find a server program; the folders are looked into first. Raises FileNotFoundError naming it."""
    path = os.pathsep.join([*folders, os.environ.get("PATH", os.defpath), *PROGRAM_FOLDERS])
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(f"The program {name} is missing; tests/debian-packages.txt names the packages.")
    return found


@contextlib.contextmanager
def server_folder(name: str) -> Iterator[Path]:
    """Give a new folder that servers running as other users can reach (pytest's own are closed to them)."""
    folder = Path(tempfile.mkdtemp(prefix=f"posthouse-test-{name}-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def children_of(pid: int) -> list[int]:
    """List all descendants of a process, nearest first."""
    try:
        direct = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return direct + [deeper for child in direct for deeper in children_of(child)]


def rss_octets(pid: int) -> int:
    """Give the resident memory of one process in octets, 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


class Child:
    """One program started for a test in a process group of its own; its output goes to `log_path`."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        log_path: Path,
        *,
        user: str | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.name = Path(arguments[0]).name
        self.log_path = log_path
        # `user` is for programs that refuse to run as root; an ordinary user starts them as they are.
        identity = {"user": user, "group": user, "extra_groups": []} if user and os.geteuid() == 0 else {}
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [str(argument) for argument in arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=dict(environment) if environment is not None else None,
                cwd=cwd,
                **identity,  # type: ignore[call-overload]
            )
        atexit.register(self.kill)

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def log(self) -> str:
        """Give all that the program has printed so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def wait_for(self, condition: Callable[[], T], what: str, *, timeout_s: float = 20.0) -> T:
        """Wait for a condition; fails at once, with the log, when the program ends before."""

        def alive_and_met() -> T:
            value = condition()
            if not value and not self.running:
                raise NotReady(f"{self.name} ended with {self.process.returncode} before {what}:\n{self.log()[-4000:]}")
            return value

        try:
            return wait_until(alive_and_met, what, timeout_s=timeout_s)
        except NotReady as problem:
            raise NotReady(f"{problem}\n{self.name} said:\n{self.log()[-4000:]}") from None

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the program alone."""
        if self.running:
            self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM, *, timeout_s: float = 10.0) -> int:
        """Ask the program to end, insist after `timeout_s`, and return its exit status."""
        self.send_signal(number)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
        self.kill()  # what it left behind in its group
        return int(self.process.returncode)

    def kill(self) -> None:
        """Kill the program and all of its group at once."""
        atexit.unregister(self.kill)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(10)


def freeze(pid: int) -> None:
    """Stop a process and its descendants where they stand (SIGSTOP): alive for the kernel, silent for everyone."""
    for each in [pid, *children_of(pid)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGSTOP)


def thaw(pid: int) -> None:
    """Let a frozen process and its descendants go on."""
    for each in [*reversed(children_of(pid)), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, signal.SIGCONT)
