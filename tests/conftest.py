"""Fixtures: one hub for the tests that only talk to one; tests that break things start their
own.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.databases import new_database, postgres_server
from tests.support import Client, running_hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from playwright.async_api import Browser


SLOW = frozenset((Path(__file__).parent / "slow.txt").read_text().split())
"""Tests that take more than about three seconds each: `make slow` runs them, `make test` the others.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.split("[")[0] in SLOW:
            item.add_marker("slow")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    async with running_hub(tmp_path_factory.mktemp("hub"), workers=2) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    from tests.browser import chromium  # here, since most tests need none

    async with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a Postgres server; `new_database` makes databases on it."""
    with postgres_server(tmp_path_factory.mktemp("pg"), survives_power_cut=False) as url:
        yield url


@pytest_asyncio.fixture(loop_scope="session", params=["sqlite", "postgres"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A fresh database of either kind: tests that take this run twice."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'hub.db'}"
    return await new_database(request.getfixturevalue("postgres"))
