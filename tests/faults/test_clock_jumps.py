"""F9: the system clock jumps by hours while mail waits: nothing expires early, nothing stands still, nothing comes twice."""

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.support.hub import Hub
from tests.support.ledger import Ledger, LedgerSink, compare
from tests.support.processes import wait_until


class SystemClock:
    """The clock that a process under libfaketime sees: real time and what is in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.jump_to("+0")

    def jump_to(self, offset: str) -> None:
        """Set how far the clock is from real time, such as `+3h`."""
        draft = self._path.with_suffix(".new")
        draft.write_text(f"{offset}\n")
        draft.replace(self._path)

    def environment(self) -> dict[str, str]:
        library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
        assert library is not None, "libfaketime is missing; tests/debian-packages.txt names the packages."
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._path),
            "FAKETIME_NO_CACHE": "1",
            # Only the wall clock jumps, as when a time server or a person sets it.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


@pytest.fixture
def clock(tmp_path: Path, programs: None) -> SystemClock:
    """Give a clock that can be set."""
    return SystemClock(tmp_path / "clock")


@pytest.mark.parametrize("jump", ["+3h", "-3h"])
def test_mail_goes_on_in_its_own_time_when_the_clock_jumps(
    start_hub: Callable[..., Hub], sink: LedgerSink, ledger: Ledger, clock: SystemClock, jump: str
) -> None:
    sink.rules.recipient_reply = lambda address, before: "451 4.2.1 later" if "late" in address and before < 2 else None
    hub = start_hub(sink.port, environment=clock.environment())
    hub.retry_after(2)
    hub.submit(["late@example.org"], ledger=ledger)
    # This one would be long past its time three hours later; that one is not due before.
    answer = hub.post(
        {
            "from": "a@example.org",
            "to": ["later@example.org"],
            "text": "x",
            "headers": {"X-Token": "expires"},
            "expires_at": _in(600),
        }
    )
    assert answer.status == 202, answer.body
    ledger.acknowledge("expires", ["later@example.org"])
    answer = hub.post({"from": "a@example.org", "to": ["soon@example.org"], "text": "x", "send_at": _in(1800)})
    assert answer.status == 202, answer.body
    wait_until(lambda: len(hub.queue()) > 0 and hub.in_queue() == 3, "three waiting recipients", timeout_s=10)
    clock.jump_to(jump)
    jumped_at = time.monotonic()
    wait_until(lambda: abs(_clock_of(hub) - time.time()) > 10_000, "the jump as the process sees it", timeout_s=5)
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "all mail that is due", timeout_s=20)
    assert time.monotonic() - jumped_at < 15
    # And back.
    clock.jump_to("+0")
    hub.submit(ledger=ledger)
    wait_until(lambda: not compare(ledger, sink.arrivals()).lost, "new mail", timeout_s=20)
    assert compare(ledger, sink.arrivals()).doubled == {}
    assert [a for a in sink.arrivals() if a.recipient == "soon@example.org"] == []
    assert hub.in_queue() == 1


def _in(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


def _clock_of(hub: Hub) -> float:
    """Give what the process takes for the time, as its answers are dated."""
    date = hub.node.request("GET", "/healthz", token="").headers["date"]
    return parsedate_to_datetime(date).timestamp()
