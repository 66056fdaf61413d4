"""The content of messages: header and body. Small ones stand in the database beside each other; above 256 KiB the body
goes to the content store (design.md section 7): a directory on SQLite, chunked rows on PostgreSQL.

A body in the content store is durable before the row that names it is committed; what a crash leaves without a row is
swept by `sweep`. Memory stays flat: bodies are written and read in pieces.
"""

import asyncio
import contextlib
import errno
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from sqlalchemy import Connection, delete, insert, select

from posthouse.errors import InvalidInput, LocalFault, StoreFull, StoreUnavailable
from posthouse.model.identifier import format_id, parse_id
from posthouse.model.message import Traits
from posthouse.protocol.headers import split
from posthouse.store import schema
from posthouse.store.database import Database
from posthouse.store.vault import sync_directory

# Above this a body leaves the database (design.md section 7); a header never may be larger (threat A18).
INLINE_OCTETS = 256 * 1024
MAX_HEADER_OCTETS = 256 * 1024
PIECE_OCTETS = 256 * 1024
# RFC 5321 section 4.5.3.1.6: 1000 with CRLF.
MAX_LINE_OCTETS = 998

INLINE, STORED, PRUNED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class ReceivedContent:
    """What was handed in: the header block with its last CRLF, and the body in memory or as a file of the spool."""

    header: bytes
    body: bytes | None
    spooled: Path | None
    size: int
    body_traits: int

    def discard(self) -> None:
        """Drop the spooled file: the message was refused."""
        if self.spooled is not None:
            with contextlib.suppress(OSError):
                self.spooled.unlink()


class ContentBuffer:
    """Takes the octets of one message as they come and keeps at most `INLINE_OCTETS` of them in memory.

    `write` raises StoreFull where the spool has no space left. After `finish` or `abandon` it is used up.
    """

    __slots__ = ("_file", "_head", "_in_memory", "_path", "_run", "_spool", "_traits", "size")

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._in_memory: list[bytes] = []
        self._head: bytes | None = None
        self._file: BinaryIO | None = None
        self._path: Path | None = None
        self._traits: int = Traits.NONE
        # Octets of the present line so far.
        self._run = 0
        self.size = 0

    def write(self, data: bytes) -> None:
        """Take the next octets."""
        self.size += len(data)
        if self._file is not None:
            self._write_to_file(data)
        else:
            self._in_memory.append(data)
            if self.size > INLINE_OCTETS:
                self._start_file()

    def finish(self) -> ReceivedContent:
        """The whole message. Raises InvalidInput for a header that is too large, StoreFull."""
        if self._file is None:
            chunks = self._in_memory
            raw = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            self._in_memory = []
            header, body = split(raw)
            return ReceivedContent(header, body, None, self.size, traits_of(body))
        try:
            self._file.flush()
        except OSError as error:
            raise _spool_fault(error) from None
        self._file.close()
        self._file = None
        assert self._head is not None
        return ReceivedContent(self._head, None, self._path, self.size, self._traits)

    def abandon(self) -> None:
        """Forget what came."""
        self._in_memory = []
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _start_file(self) -> None:
        raw = b"".join(self._in_memory)
        self._in_memory = []
        header, body = split(raw)
        if len(header) > MAX_HEADER_OCTETS:
            raise InvalidInput.of("header", "header-too-large", "The header of the message is larger than 256 KiB.")
        self._head = header
        self._path = self._spool / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            self._file = open(self._path, "wb", buffering=PIECE_OCTETS)  # noqa: SIM115 - closed by finish or abandon
        except OSError as error:
            raise _spool_fault(error) from None
        self._write_to_file(body)

    def _write_to_file(self, data: bytes) -> None:
        assert self._file is not None
        self._traits |= self._look_at(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise _spool_fault(error) from None

    def _look_at(self, data: bytes) -> int:
        traits: int = Traits.NONE if data.isascii() else Traits.EIGHT_BIT
        lines = data.split(b"\n")
        lengths = [len(line) for line in lines]
        lengths[0] += self._run
        # The CR before a line feed is not part of the text; one octet more does no harm to the last, unfinished line.
        if max(lengths) > MAX_LINE_OCTETS + 1:
            traits |= Traits.LONG_LINES
        self._run = lengths[-1]
        return traits


def _spool_fault(error: OSError) -> LocalFault:
    reason = f"The message cannot be kept: {os.strerror(error.errno or 0)}."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreFull(reason, remedy="Free space in the data directory.")
    return StoreUnavailable(reason, remedy="Look at the disk and the limits of the process; then send it again.")


def traits_of(body: bytes) -> int:
    """What the octets of a body need from a server."""
    traits: int = Traits.NONE if body.isascii() else Traits.EIGHT_BIT
    if len(body) > MAX_LINE_OCTETS and max(map(len, body.split(b"\n"))) > MAX_LINE_OCTETS + 1:
        traits |= Traits.LONG_LINES
    return traits


class ContentStore(Protocol):
    """Where bodies above the inline limit lie. All methods block: call them in a thread."""

    def keep(self, message_id: int, spooled: Path) -> None:
        """Make the spooled body durable under the message's id. Raises StoreFull, StoreUnavailable."""

    def pieces(self, message_id: int) -> Iterator[bytes]:
        """The body, piece by piece. Raises FileNotFoundError where it is gone."""

    def remove(self, message_id: int) -> None:
        """Drop the body, if it is there."""

    def held(self) -> Iterator[int]:
        """The ids of all bodies that are there."""


class DirectoryContentStore:
    """Bodies as files, two levels deep, so that no directory grows too large."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _path(self, message_id: int) -> Path:
        name = format_id(message_id)
        # The last characters vary fastest.
        return self._root / name[-2:] / name

    def keep(self, message_id: int, spooled: Path) -> None:
        """See ContentStore. File first, then its name, then whatever names it."""
        target = self._path(message_id)
        try:
            descriptor = os.open(spooled, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if not target.parent.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                sync_directory(self._root)
            os.replace(spooled, target)
            sync_directory(target.parent)
        except OSError as error:
            raise _spool_fault(error) from None

    def pieces(self, message_id: int) -> Iterator[bytes]:
        """See ContentStore."""
        with open(self._path(message_id), "rb") as file:
            while piece := file.read(PIECE_OCTETS):
                yield piece

    def remove(self, message_id: int) -> None:
        """See ContentStore."""
        with contextlib.suppress(FileNotFoundError):
            self._path(message_id).unlink()

    def held(self) -> Iterator[int]:
        """See ContentStore."""
        for path in self._root.glob("??/*"):
            message_id = parse_id(path.name)
            if message_id is not None:
                yield message_id


class RowContentStore:
    """Bodies as rows of at most 256 KiB in the database, so that every node can read them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keep(self, message_id: int, spooled: Path) -> None:
        """See ContentStore. One transaction; the spooled file is gone afterwards."""
        table = schema.content_chunk

        def write(connection: Connection) -> None:
            with open(spooled, "rb") as file:
                number = 0
                while piece := file.read(PIECE_OCTETS):
                    connection.execute(insert(table).values(message_id=message_id, number=number, data=piece))
                    number += 1

        self._database.write_now(write)
        spooled.unlink(missing_ok=True)

    def pieces(self, message_id: int) -> Iterator[bytes]:
        """See ContentStore. One short read per piece: no transaction stays open while a slow server takes the mail."""
        table = schema.content_chunk
        number = 0
        while True:
            query = select(table.c.data).where(table.c.message_id == message_id, table.c.number == number)
            piece = self._database.read_now(lambda connection, q=query: connection.execute(q).scalar())  # type: ignore[misc]
            if piece is None:
                return
            yield bytes(piece)
            number += 1

    def remove(self, message_id: int) -> None:
        """See ContentStore."""
        table = schema.content_chunk
        self._database.write_now(lambda c: c.execute(delete(table).where(table.c.message_id == message_id)))

    def held(self) -> Iterator[int]:
        """See ContentStore."""
        query = select(schema.content_chunk.c.message_id).where(schema.content_chunk.c.number == 0)
        yield from self._database.read_now(lambda c: c.execute(query).scalars().all())


@dataclass(slots=True)
class StoredContent:
    """The content of a message on its way out: what `transports/base.py` calls OutgoingContent."""

    header: bytes
    body: bytes | None
    size: int
    traits: int
    message_id: int
    store: ContentStore | None

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, piece by piece, read in a thread."""
        if self.body is not None:
            yield self.body
            return
        assert self.store is not None
        pieces = self.store.pieces(self.message_id)
        loop = asyncio.get_running_loop()
        while True:
            piece = await loop.run_in_executor(None, next, pieces, b"")
            if not piece:
                return
            yield piece
