"""A composed program for each test, on SQLite in an empty folder."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest_asyncio

from tests.support.web import Web


@pytest_asyncio.fixture
async def web(tmp_path: Path) -> AsyncIterator[Web]:
    """Give a started program without any server."""
    made = Web(tmp_path / "data")
    await made.start()
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def administrator(web: Web) -> httpx2.AsyncClient:
    """Give a caller with a global administrator's token."""
    return web.caller(await web.token())


@pytest_asyncio.fixture
async def sandbox(web: Web) -> dict[str, object]:
    """Give the capture server that is the global default."""
    return await web.sandbox()
