"""Plays a dialogue of the SMTP client against a script: what must be sent, and what comes back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TypeVar

from posthouse.model.message import Envelope, EnvelopeRecipient
from posthouse.protocol.faults import DeliveryFault
from posthouse.protocol.smtp_client import Dialogue, Interrupted, Pause, Send, Stream
from posthouse.protocol.smtp_reply import ReplyReader

T = TypeVar("T")
HEADER = b"From: a@example.org\r\nSubject: x\r\n\r\n"
BODY = b"One line\r\n.A dot\r\n"
WIRE = HEADER + b"One line\r\n..A dot\r\n.\r\n"


@dataclass(frozen=True)
class Lost:
    """The connection ends here: after these replies of the group, for this cause."""

    cause: str = "closed"
    replies: str = ""
    sent: bool = True


def play(dialogue: Dialogue[T], *exchanges: tuple[bytes, str | Lost]) -> T:
    """Run the dialogue through (sent, answered) pairs and give what it returns; the whole script must be used."""
    remaining = list(exchanges)
    answer: object = None
    while True:
        try:
            step = dialogue.throw(answer) if isinstance(answer, Exception) else dialogue.send(answer)  # type: ignore[arg-type]
        except StopIteration as end:
            assert not remaining, f"never sent: {[sent for sent, _ in remaining]}"
            result: T = end.value
            return result
        if isinstance(step, Stream):
            wire = asyncio.run(streamed(step))
            assert remaining, f"not in the script: {wire!r}"
            sent, replied = remaining.pop(0)
            assert wire == sent
            answer = [] if replied == "" else interruption(replied, step.stage)
            continue
        if isinstance(step, Pause):
            asyncio.run(_await(step))
            answer = []
            continue
        assert remaining, f"not in the script: {step.data!r}"
        sent, replied = remaining.pop(0)
        assert step.data == sent
        answer = replies_for(step, replied) if isinstance(replied, str) else interruption(replied, step.stage)


def replies_for(step: Send, text: str) -> object:
    """Give the replies of a script line; fewer than asked for would hang on a socket, so that they must be as many."""
    replies = ReplyReader().feed(text.replace("\n", "\r\n").encode() + b"\r\n")
    assert len(replies) == step.replies, f"{step.data!r} waits for {step.replies} replies"
    return replies


def interruption(lost: str | Lost, stage: object) -> Interrupted:
    assert isinstance(lost, Lost)
    before = ReplyReader().feed(lost.replies.replace("\n", "\r\n").encode() + b"\r\n") if lost.replies else []
    return Interrupted(DeliveryFault(lost.cause, stage=stage), before, sent=lost.sent)  # type: ignore[arg-type]


async def streamed(step: Stream) -> bytes:
    return b"".join([step.stuffer.feed(piece) async for piece in step.pieces()])


async def _await(step: Pause) -> None:
    await step.until()


@dataclass
class Message:
    """Content as the dialogue wants it."""

    header: bytes = HEADER
    body: bytes | None = BODY
    stored: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        return len(self.header) + (len(self.body) if self.body is not None else sum(map(len, self.stored)))

    async def chunks(self) -> AsyncIterator[bytes]:
        for piece in self.stored:
            yield piece


def envelope(*recipients: str, mail_from: str = "from@example.org", **parameters: str) -> Envelope:
    return Envelope(mail_from, tuple(EnvelopeRecipient(address) for address in recipients), **parameters)  # type: ignore[arg-type]
