"""Attaches strace to a running process: to see its system calls, or to have some of them fail."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.processes import program


@contextlib.contextmanager
def strace(pid: int, log: Path, *options: str) -> Iterator[None]:
    """Trace a process and its threads into `log` for as long as the context lasts."""
    arguments = [program("strace"), "-f", "-p", str(pid), "-o", str(log), *options]
    tracer = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    try:
        assert tracer.stderr is not None
        line = tracer.stderr.readline()
        assert "attached" in line, f"strace: {line}"
        yield
    finally:
        tracer.terminate()
        tracer.communicate(timeout=10)
