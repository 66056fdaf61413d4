"""Schemathesis against the document: no fault of ours, nothing undocumented, nothing taken that the document refuses.

The short form: a few cases for each operation, the same ones in each run, over HTTP to a program in this process.
"""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks

from posthouse.api.application import document, make_rest
from tests.support.web import Web

# Left out on purpose: `positive_data_acceptance`, because rules between fields, names that are taken and hosts that are
# none cannot be told in a schema.
NOT_CHECKED = [checks.positive_data_acceptance]
EXAMPLES = 10
# `make soak`: other cases in each run.
MANY_EXAMPLES = 150

# What refuses made-up data: 413 and 421 do as well, where it is too large or names another host.
REFUSALS = ["400", "401", "403", "404", "405", "409", "413", "415", "421", "422", "429", "503"]
config = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REFUSALS}}})
schema = schemathesis.openapi.from_dict(document(make_rest(None, None)), config=config)


@schemathesis.serializer("message/rfc822")
def as_it_is(_context: Any, value: Any) -> Any:
    """A raw message is sent as the text that was made up for it."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


class Program:
    """A program in an event loop of its own thread, listening for HTTP."""

    def __init__(self, data: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="program", daemon=True)
        self._thread.start()
        self._web = Web(data, http="127.0.0.1:0")
        self._run(self._web.start())
        self._run(self._web.sandbox())
        self.token = self._run(self._web.token())
        self.url = f"http://127.0.0.1:{self._web.hub.http_addresses[0][1]}"

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def stop(self) -> None:
        self._run(self._web.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    made = Program(tmp_path_factory.mktemp("program"))
    yield made
    made.stop()


@schemathesis.hook
def filter_case(_context: Any, case: schemathesis.Case[Any]) -> bool:
    """Leave out what no URL can tell: that a text should have been a number, or the only one of a list."""
    return all(
        isinstance(value, str) or name in ("limit", "enabled", "forget") or (isinstance(value, list) and len(value) > 1)
        for name, value in (case.query or {}).items()
    )


def try_case(case: schemathesis.Case[Any], program: Program) -> None:
    headers = {"Authorization": f"Bearer {program.token}"}
    case.call_and_validate(base_url=program.url, headers=headers, excluded_checks=NOT_CHECKED)


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_the_program_does_what_its_document_says(case: schemathesis.Case[Any], program: Program) -> None:
    try_case(case, program)


@pytest.mark.soak
@schema.parametrize()
@settings(max_examples=MANY_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_it_does_so_for_many_more_cases(case: schemathesis.Case[Any], program: Program) -> None:
    try_case(case, program)
