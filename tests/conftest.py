"""Fixtures: one hub for the tests that only talk to one; tests that break things start their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.support import Client, running_hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    async with running_hub(tmp_path_factory.mktemp("hub")) as running:
        yield running
