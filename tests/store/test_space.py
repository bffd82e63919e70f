"""What versions take, and how a database becomes smaller again."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import TYPE_CHECKING

import sqlalchemy as sa

from machinehub.store.space import give_back
from machinehub.store.tables import images, versions
from tests.cli.test_cli import run
from tests.durable import asleep, hub_on, send
from tests.support import COUNTER, problem, running_hub

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support import Client


async def rows(client: Client, table: sa.Table) -> int:
    async with client.hub.engine.connect() as connection:
        return int(await connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0)


def changed(number: int) -> str:
    return COUNTER + f"\nexport const change = {number};\n"


async def test_small_changes_take_little_space(tmp_path: Path) -> None:
    """40 deployments here; 500 must stay below 20 MB."""
    async with running_hub(tmp_path) as client:
        await client.deploy(changed(0))
        before = (tmp_path / "hub.db").stat().st_size
        for number in range(1, 41):
            await client.deploy(changed(number))
        await client.deploy(changed(40))
        assert await rows(client, images) == 41
    grown = (tmp_path / "hub.db").stat().st_size - before
    assert grown / 40 < 20 * 2**20 / 500


async def test_an_older_template_is_kept(database_url: str, tmp_path: Path) -> None:
    """A hub whose template is another one runs what was compressed against an earlier one."""
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/s")
        await asleep(client, machine, "s")
        pool, catalog = client.hub.pool, client.hub.catalog
        (known,) = catalog._images
        assert catalog.at_hand(known).template == pool.template  # type: ignore[union-attr]
        catalog._images.clear()
        pool.template = "another one's"
        assert (await send(client, f"{machine}/s")).json()["seq"] == 3
        loaded = catalog.at_hand(known)
        assert loaded is not None
        given = await client.hub.pool.builds.parts()
        assert loaded.template_code == given.template


async def test_versions_that_nothing_uses_are_pruned(database_url: str, tmp_path: Path) -> None:
    async with hub_on(database_url, tmp_path) as client:
        for number in range(1, 10):
            machine = await client.deploy(changed(number))
            if number in (2, 4):
                await send(client, f"{machine}/s{number}")
        await asleep(client, machine, "s2")
        await client.http.post(f"/api/v1/machines/{machine}/versions/3/activate")
        listed = await run("versions", machine, "--prune", "--keep", "2", "--json", client=client)
        assert json.loads(listed.stdout) == {"deleted": [1, 5, 6, 7]}
        assert "4 versions deleted" in listed.stderr
        assert await rows(client, versions) == await rows(client, images) == 5
        left = (await client.http.get(f"/api/v1/machines/{machine}/versions")).json()["data"]
        assert [each["number"] for each in left] == [9, 8, 4, 3, 2]
        for path, version in (("s2", 2), ("s4", 4), ("new", 3)):
            await send(client, f"{machine}/{path}")
            session = await client.http.get(f"/api/v1/machines/{machine}/sessions/{path}")
            assert session.json()["version"] == version
        again = await client.http.post(f"/api/v1/machines/{machine}/versions/prune", json={})
        assert again.json() == {"deleted": []}
        wrong = await client.http.post(
            f"/api/v1/machines/{machine}/versions/prune", json={"keep": 0}
        )
        problem(wrong, 400, "invalid_body")
        assert await client.deploy(changed(1)) == machine  # it can come again
        newest = (await client.http.get(f"/api/v1/machines/{machine}")).json()
        assert newest["active_version"] == 10


async def test_space_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machinehub.store.space.PAGES_KEPT", 8)
    async with running_hub(tmp_path) as client:
        machine = await client.deploy(COUNTER)
        for number in range(30):
            event = {"type": "increment", "filler": "x" * 20_000}
            await client.http.post(f"/{machine}/{number}", json=event)
        await client.http.delete(f"/api/v1/machines/{machine}")
        database = client.hub._database
        while await database.write(give_back):
            pass
        with sqlite3.connect(tmp_path / "hub.db") as connection:
            assert connection.execute("PRAGMA freelist_count").fetchone()[0] <= 8 + 256
        connection.close()


async def test_an_older_database_gives_space_back_after_vacuum(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as client:
        await client.deploy(COUNTER)
        refused = await run("db", "vacuum", "--data", str(tmp_path))
        assert "another hub uses" in refused.stderr
    path = tmp_path / "hub.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = DELETE")
    connection.execute("PRAGMA auto_vacuum = NONE")
    connection.execute("VACUUM")
    connection.execute("CREATE TABLE filler AS SELECT randomblob(4000000) AS b")
    connection.execute("DROP TABLE filler")
    connection.close()
    done = await asyncio.wait_for(run("db", "vacuum", "--data", str(tmp_path)), 60)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_size < 2_000_000
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA auto_vacuum").fetchone()[0] == 2
    connection.close()
