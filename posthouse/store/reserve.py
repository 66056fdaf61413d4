"""A file that is given up when the disk is full, so that outcomes can still be recorded (design.md section 10)."""

import contextlib
import os
import shutil
from pathlib import Path

import structlog

log = structlog.get_logger()

MAX_OCTETS = 16 * 1024 * 1024
# It is made again when this many times its size is free.
COMFORT = 3


class Reserve:
    """The reserve file of a data directory. `is_given_up` while submission has to refuse."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "reserve"
        self.is_given_up = False

    def make(self) -> None:
        """Make the file, where there is room for it: the smaller of 16 MiB and a tenth of the file system."""
        usage = shutil.disk_usage(self._directory)
        size = min(MAX_OCTETS, usage.total // 10)
        if self._path.exists() and self._path.stat().st_size >= size:
            self.is_given_up = False
            return
        if usage.free < COMFORT * size:
            self.is_given_up = self.is_given_up or usage.free < size
            return
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                self._path.unlink()
            return
        if self.is_given_up:
            log.info("store: there is room again; submission is taken up")
        self.is_given_up = False

    def give_up(self) -> bool:
        """Free the file's space. False where that has been done already."""
        first = not self.is_given_up
        self.is_given_up = True
        try:
            self._path.unlink()
        except OSError:
            return False
        if first:
            log.error("store: the disk is full; the reserve is given up and submission refuses until there is room")
        return True

    def has_room(self) -> bool:
        """Whether new mail may be taken."""
        return not self.is_given_up
