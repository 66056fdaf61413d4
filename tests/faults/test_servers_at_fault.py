"""F10, F11, F14: servers that go wrong at every step of the conversation, and a primary that comes and goes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from posthouse.model.message import RecipientState
from posthouse.testing.smtp import MisbehavingServer
from posthouse.testing.smtp_misbehaviours import CATALOGUE, Stage, on_first
from tests.support.hub import Hub
from tests.support.installation import Installation, installation
from tests.support.ledger import Ledger, LedgerSink, Load, LoadOptions, compare
from tests.support.processes import wait_until

State = RecipientState

# ---------------------------------------------------------------- F11

STAGES = (Stage.GREETING, Stage.EHLO, Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.DOT, Stage.QUIT)
# Odd, and right: the mail goes through as if nothing were.
RIGHT = ("long_line", "multi_line", "eight_bit")
# No reply at all, or none that can be read.
SILENT = ("close", "hang", "garbage", "non_numeric", "unfinished")
REFUSING = ("temporary", "permanent", "shutting_down")


@dataclass
class Case:
    """One way to go wrong at one stage, on the first connection; the server is in order afterwards."""

    name: str
    stage: Stage
    server: MisbehavingServer
    server_id: int = 0
    message_id: int = 0
    was_held: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}_at_{self.stage}"

    @property
    def is_refused_for_good(self) -> bool:
        """Only what is said about sender, recipient or content ends a message."""
        return self.name == "permanent" and self.stage in (Stage.MAIL, Stage.RCPT, Stage.DATA, Stage.DOT)

    @property
    def is_uncertain(self) -> bool:
        """The message was sent whole, and nobody knows what became of it."""
        return self.name in SILENT and self.stage is Stage.DOT


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path) as started:
        await started.add_application()
        await started.settings(retry_delays_s=[1])
        yield started


async def run_all(node: Installation, cases: list[Case]) -> None:
    """Send a message through each case's server, all at once, and wait until each has come to its end."""
    for number, case in enumerate(cases):
        case.server_id = await node.add_server(
            case.server,
            case.label,
            from_filter=[f"d{number}.example"],
            reply_timeout_s=1.0,
            data_end_timeout_s=1.0,
            idle_s=0,
        )
    for number, case in enumerate(cases):
        sender = f"anna@d{number}.example"
        case.message_id = await node.send(
            mail_from=sender, raw=f"From: {sender}\r\nMessage-ID: <{number}@d.example>\r\n\r\nx\r\n".encode()
        )
    deadline = time.monotonic() + 60
    ends = {State.DELIVERED, State.FAILED, State.UNCERTAIN}
    while True:
        unfinished = [case for case in cases if (await node.show(case.message_id)).state not in ends]
        if not unfinished:
            return
        assert time.monotonic() < deadline, [case.label for case in unfinished]
        for case in unfinished:
            if node.posthouse.delivery.state_of(case.server_id).held:
                # Nobody waits for the next try of a server here.
                case.was_held = True
                await node.posthouse.delivery.release(case.server_id)
        await asyncio.sleep(0.2)


async def test_whatever_goes_wrong_at_whichever_step_no_message_is_lost_and_none_is_doubled_without_saying_so(
    node: Installation,
) -> None:
    async with AsyncExitStack() as stack:
        cases = []
        for name in (*RIGHT, *SILENT, *REFUSING):
            for stage in STAGES:
                wrong = on_first(1, CATALOGUE[f"{name}_at_{stage}"])
                cases.append(Case(name, stage, await stack.enter_async_context(MisbehavingServer(wrong))))
        await run_all(node, cases)
        faults = [fault for case in cases if (fault := await what_is_wrong(node, case))]
        assert faults == []


async def what_is_wrong(node: Installation, case: Case) -> str:
    """Judge one case by what its server has seen, and what the timeline says."""
    shown = await node.show(case.message_id)
    story = "\n".join(await node.timeline(case.message_id))
    copies = case.server.messages
    taken = [message for message in copies if message.accepted]
    if case.is_refused_for_good:
        if shown.state is not State.FAILED or taken:
            return f"{case.label}: {shown.state.name}, {len(taken)} copies; expected a failure\n{story}"
        return "" if "550" in story else f"{case.label}: the server's words are missing\n{story}"
    # A reply that began with 250- and never ended says neither yes nor no.
    allowed = (1, 2) if case.name == "unfinished" and case.is_uncertain else (1,)
    if shown.state is not State.DELIVERED or len(taken) not in allowed:
        return f"{case.label}: {shown.state.name}, {len(taken)} copies\n{story}"
    if case.name in RIGHT and (case.was_held or len(copies) != 1 or shown.recipients[0].attempts != 1):
        return f"{case.label}: was not taken as right\n{story}"
    if case.is_uncertain:
        ids = {message.content.partition(b"Message-ID: ")[2].split(b"\r\n")[0] for message in copies}
        if len(copies) != 2 or len(ids) != 1 or "second copy" not in story:
            return f"{case.label}: {len(copies)} copies of {ids}\n{story}"
    elif len([message for message in copies if message.content]) > 1 + (case.stage is Stage.DOT):
        return f"{case.label}: {len(copies)} copies\n{story}"
    return ""


# ---------------------------------------------------------------- F14


def test_a_primary_that_comes_and_goes_loses_nothing_and_no_message_goes_to_both(
    start_hub: Callable[..., Hub], start_sink: Callable[..., LedgerSink], ledger: Ledger
) -> None:
    primary, fallback = start_sink(), start_sink()
    hub = start_hub(primary.port)
    spare = hub.add_server("spare", fallback.port)
    hub.node.cli("server", "edit", "office", "--fallback-server-id", spare)
    hub.retry_after(1)
    primary.rules.dot_delay_s = 0.03
    cuts = []
    options = LoadOptions(smtp_sessions=5, rest_sessions=1, api_key=hub.api_key, pause_s=0.02)
    with Load(ledger, [hub.node.smtp_port], [hub.node.http_port], options) as load:
        for _ in range(4):
            count = primary.count()
            wait_until(lambda n=count: primary.count() > n + 20, "mail at the primary", timeout_s=30)  # type: ignore[misc]
            cuts.append(time.monotonic())
            primary.stop()
            count = fallback.count()
            wait_until(lambda n=count: fallback.count() > n + 20, "mail at the fallback", timeout_s=30)  # type: ignore[misc]
            primary.start()
            hub.node.cli("queue", "release", "office")
        load.stop()

    def arrivals() -> list:  # type: ignore[type-arg]
        return primary.arrivals() + fallback.arrivals()

    wait_until(lambda: not compare(ledger, arrivals()).lost, "all acknowledged mail", timeout_s=60)
    hub.wait_until_quiet()
    verdict = compare(ledger, arrivals())
    assert verdict.lost == []
    assert verdict.unexplained([cut + 0.05 for cut in cuts]) == {}
    both = {(a.token, a.recipient) for a in primary.arrivals()} & {(a.token, a.recipient) for a in fallback.arrivals()}
    assert both == set()


# ---------------------------------------------------------------- F10


def test_a_reply_that_is_lost_each_time_is_resent_three_times_and_then_a_person_decides(
    hub: Hub, sink: LedgerSink
) -> None:
    sink.rules.dot_reply = lambda token, before: ""
    hub.retry_after(1)
    token = hub.submit()
    wait_until(lambda: hub.states_of(token) == ["uncertain"], "the end of the resends", timeout_s=60, every_s=0.1)
    assert len(sink.of(token)) == 4
    assert set(sink.message_ids[token]) == {f"<{token}@load.example.org>"}
    assert "second copy" in hub.timeline_of(token)
