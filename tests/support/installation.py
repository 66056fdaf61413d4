"""A whole node in the test's own process and event loop, and short words for what tests do with it."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

from posthouse.app import Posthouse
from posthouse.errors import PosthouseError
from posthouse.model.actor import COMMAND
from posthouse.model.identifier import format_id
from posthouse.model.message import Envelope, EnvelopeRecipient, Origin, RecipientState
from posthouse.settings import Settings
from posthouse.submission import Handover
from posthouse.testing.smtp import MisbehavingServer
from posthouse.tracking import ShownMessage

PATIENCE_S = 20.0


class Installation:
    """A started node with what tests say to it."""

    def __init__(self, posthouse: Posthouse) -> None:
        self.posthouse = posthouse
        self.application_id = 0

    async def add_server(self, target: MisbehavingServer | int, name: str = "office", **fields: Any) -> int:
        """Add an SMTP server that points at a port of 127.0.0.1; the first one is the default."""
        port = target if isinstance(target, int) else target.port
        shape = {"kind": "smtp", "name": name, "host": "127.0.0.1", "port": port, "tls_mode": "none", **fields}
        return (await self.posthouse.administration.create(COMMAND, "server", shape)).id

    async def edit_server(self, server_id: int, **fields: Any) -> None:
        await self.posthouse.administration.patch(COMMAND, "server", server_id, fields)

    async def add_application(self, name: str = "shop", **fields: Any) -> int:
        record = await self.posthouse.administration.create(COMMAND, "application", {"name": name, **fields})
        self.application_id = record.id
        return record.id

    async def settings(self, **fields: Any) -> None:
        await self.posthouse.administration.change_installation(COMMAND, fields)

    async def send(
        self,
        *recipients: str,
        mail_from: str = "anna@example.org",
        raw: bytes = b"From: anna@example.org\r\nSubject: Hello\r\n\r\nHello.\r\n",
        **more: Any,
    ) -> int:
        """Submit a message; returns its id. Raises the refusal."""
        answer = (await self.posthouse.submission.accept([self.handover(recipients, mail_from, raw, **more)]))[0]
        if isinstance(answer, PosthouseError):
            raise answer
        return answer

    def handover(self, recipients: Sequence[str], mail_from: str, raw: bytes, **more: Any) -> Handover:
        buffer = self.posthouse.submission.open_content()
        buffer.write(raw)
        addressees = tuple(EnvelopeRecipient(r) for r in recipients or ("bob@example.net",))
        return Handover(
            Envelope(mail_from, addressees),
            buffer.finish(),
            Origin("rest", "127.0.0.1"),
            self.application_id,
            0,
            **more,
        )

    async def show(self, message_id: int) -> ShownMessage:
        return await self.posthouse.tracking.show(COMMAND, message_id)

    async def timeline(self, message_id: int) -> list[str]:
        """The timeline as lines: text, and the server's words in brackets."""
        entries = await self.posthouse.tracking.timeline(COMMAND, message_id)
        return [f"{e.text} [{e.quote}]" if e.quote else e.text for e in entries]

    async def until_state(self, message_id: int, state: RecipientState) -> ShownMessage:
        """Wait until the message is in a state; fails with its timeline."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            shown = await self.show(message_id)
            if shown.state is state:
                return shown
            if time.monotonic() > deadline:
                lines = "\n".join(await self.timeline(message_id))
                raise AssertionError(f"{format_id(message_id)} is {shown.state.name}, not {state.name}:\n{lines}")
            await asyncio.sleep(0.02)

    async def until_held(self, server_id: int) -> Any:
        await until(lambda: bool(self.posthouse.delivery.state_of(server_id).held), "the server is held")
        return self.posthouse.delivery.state_of(server_id)


async def until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come: {what}")
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def installation(data: Path, **settings: Any) -> AsyncIterator[Installation]:
    """Give a node that works on `data`, without HTTP and SMTP listeners of its own unless the settings name them."""
    posthouse = Posthouse(Settings(data=data, hostname="posthouse.test", **settings))
    await posthouse.start()
    try:
        yield Installation(posthouse)
    finally:
        await posthouse.stop()
