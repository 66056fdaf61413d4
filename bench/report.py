"""Writes bench/RESULTS.md: each measurement owns a section of it, with the command, the date and the machine."""

import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.processes import program

RESULTS = Path(__file__).with_name("RESULTS.md")


def table_of(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out a table in Markdown under its title."""
    lines = [f"#### {title}", "", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows), ""])


def _sync_time_ms() -> float:
    """Measure what one small append with fdatasync costs where the systems keep their files."""
    with tempfile.TemporaryFile() as file:
        times = []
        for _ in range(200):
            file.write(b"x" * 4096)
            file.flush()
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def machine() -> str:
    """Describe the machine in one line."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    where = _file_system_of(Path(tempfile.gettempdir()))
    version = subprocess.run(
        [program("postconf"), "-d", "-h", "mail_version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return (
        f"{os.cpu_count()} cores ({model}), Linux {platform.release()}, Python {platform.python_version()}, "
        f"Postfix {version}, files on {where}, {_sync_time_ms():.2f} ms for an fdatasync, "
        f"load {os.getloadavg()[0]:.1f} at the start"
    )


def write_section(path: Path, name: str, text: str) -> None:
    """Put a section into the results, in the place of the one of the same name, and leave the others."""
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    section = f"{start}\n{text.strip()}\n{end}\n"
    old = path.read_text() if path.exists() else "# Results\n\nWritten by `make bench` and `make soak`.\n"
    before, found, rest_of_it = old.partition(start)
    if found:
        after = rest_of_it.partition(end)[2].lstrip("\n")
        path.write_text(before + section + ("\n" + after if after else ""))
    else:
        path.write_text(old.rstrip("\n") + "\n\n" + section)


def _file_system_of(folder: Path) -> str:
    """Name the kind of a folder's file system, as the kernel does."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    around = [(mount, kind) for mount, kind in mounts if folder.resolve().is_relative_to(mount)]
    return max(around, key=lambda each: len(each[0]))[1]
