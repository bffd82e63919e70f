"""A database is one hub's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from machinehub.errors import Unavailable
from tests.databases import new_database
from tests.durable import hub_on, send
from tests.support import COUNTER, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_second_hub_on_one_postgres_is_refused(postgres: str, tmp_path: Path) -> None:
    database_url = await new_database(postgres)
    async with hub_on(database_url, tmp_path / "a") as first:
        machine = await first.deploy(COUNTER)
        with pytest.raises(Unavailable, match="another hub uses this database"):
            async with hub_on(database_url, tmp_path / "b"):
                pass
        assert (await send(first, f"{machine}/s")).status_code == 200
    async with hub_on(database_url, tmp_path / "b") as second:
        assert (await send(second, f"{machine}/s")).json()["seq"] == 3


async def test_sqlite_is_one_hubs(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1) as client:
        with pytest.raises(Unavailable, match="another hub"):
            async with running_hub(tmp_path, workers=1):
                pass
        assert (await client.http.get("/readyz")).status_code == 200
        (tmp_path / "hub.db").rename(tmp_path / "moved.db")

        async def is_ready() -> bool:
            answer = await client.http.get("/readyz")
            assert (answer.status_code == 200) == answer.json()["database"]
            return answer.status_code == 200

        async def is_not_ready() -> bool:
            return not await is_ready()

        await until(is_not_ready)
        (tmp_path / "moved.db").rename(tmp_path / "hub.db")
        await until(is_ready)
