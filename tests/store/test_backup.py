"""Backups: taken while a hub works, checked, and put back; before each upgrade; and what a database
says of itself.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from machinehub.errors import Unavailable
from machinehub.store.backup import back_up, restore
from machinehub.store.schema import newest_revision
from sandbox.compression import Template, pack, unpack
from tests.cli.test_cli import run
from tests.databases import new_database
from tests.durable import send
from tests.processes import deploy, hub_process
from tests.store.test_trouble import damage_pages
from tests.support import COUNTER, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_backup_under_load_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    data, copy, again = tmp_path / "data", tmp_path / "copy.db", tmp_path / "again"
    counts: dict[str, int] = {}
    done = asyncio.Event()
    async with hub_process(data) as hub, httpx.AsyncClient(timeout=60) as http:
        machine = await deploy(hub.url)
        path = machine.removeprefix(hub.url)

        async def load(session: str) -> None:
            while not done.is_set():
                sent = await http.post(f"{machine}/{session}", json={"type": "increment"})
                assert sent.status_code == 200, sent.text
                counts[session] = sent.json()["snapshot"]["context"]["count"]

        loading = [asyncio.create_task(load(f"s{number}")) for number in range(10)]
        await until(lambda: _ended(loading) or sum(counts.values()) >= 500)
        before = dict(counts)
        taken = await run("backup", str(copy), "--data", str(data))
        assert taken.returncode == 0, taken.stderr
        assert "10 sessions" in taken.stdout
        more = counts["s0"] + 20
        await until(lambda: _ended(loading) or counts["s0"] >= more)
        refused = await run("restore", str(copy), "--data", str(data))
        assert refused.returncode == 1
        assert "another hub uses" in refused.stderr
        done.set()
        await asyncio.gather(*loading)
    assert copy.stat().st_mode & 0o777 == 0o600
    restored = await run("restore", str(copy), "--data", str(again))
    assert restored.returncode == 0, restored.stderr
    async with hub_process(again) as hub, httpx.AsyncClient(timeout=60) as http:
        for session, count in before.items():
            found = (await http.get(f"{hub.url}{path}/{session}")).json()
            assert found["snapshot"]["context"]["count"] >= count
        checked = await run("verify", MACHINEHUB_SERVER=hub.url)
        assert checked.returncode == 0, checked.stderr
        assert checked.stdout.startswith("10 sessions, ")


def _ended(tasks: list[asyncio.Task[None]]) -> bool:
    return any(task.done() for task in tasks)


async def test_a_database_that_is_replaced_is_kept(tmp_path: Path) -> None:
    for name, sessions in (("a", 1), ("b", 2)):
        async with running_hub(tmp_path / name) as client:
            machine = await client.deploy(COUNTER)
            for number in range(sessions):
                await send(client, f"{machine}/{number}")
    copy = tmp_path / "a.copy"
    back_up(tmp_path / "a" / "hub.db", copy)
    restored = await run("restore", str(copy), "--data", str(tmp_path / "b"))
    assert restored.returncode == 0, restored.stderr
    (aside,) = (tmp_path / "b").glob("hub.db.replaced-*")
    assert str(aside) in restored.stderr.replace("\n", "")
    assert back_up(aside, tmp_path / "aside.copy").sessions == 2
    assert back_up(tmp_path / "b" / "hub.db", tmp_path / "b.copy").sessions == 1


async def test_a_damaged_backup_is_not_put_back(tmp_path: Path) -> None:
    async with running_hub(tmp_path / "data") as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/s")
    copy = tmp_path / "copy.db"
    back_up(tmp_path / "data" / "hub.db", copy)
    before = (tmp_path / "data" / "hub.db").read_bytes()
    damage_pages(copy)
    for bad in (copy, tmp_path / "missing.db"):
        refused = await run("restore", str(bad), "--data", str(tmp_path / "data"))
        assert refused.returncode == 1
        assert "Traceback" not in refused.stderr
    again = await run("backup", str(copy), "--data", str(tmp_path / "data"))
    assert "is there already" in again.stderr
    assert (tmp_path / "data" / "hub.db").read_bytes() == before
    assert not list((tmp_path / "data").glob("*unfinished*"))


NEWER = ("effects", "secrets")


def make_older(path: Path) -> None:
    """Undoes the newest migrations."""
    with sqlite3.connect(path) as connection:
        for table in ("notes", "nodes", "beats", "places", "calendar", "calendar_runs", *NEWER):
            connection.execute(f"DROP TABLE {table}")
        for column in ("owner", "claims"):
            connection.execute(f"ALTER TABLE sessions DROP COLUMN {column}")
        connection.execute("DROP TABLE projects")
        for table in ("jwt_keys", "revocations", "audit"):
            connection.execute(f"DROP TABLE {table}")
        columns_ = ("project_id", "scopes", "expires_at_ms", "used_at_ms", "publishable", "origins")
        for column in columns_:
            connection.execute(f"ALTER TABLE tokens DROP COLUMN {column}")
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(
            "CREATE TABLE older (id VARCHAR(32) NOT NULL PRIMARY KEY, name VARCHAR(64) NOT NULL "
            "CONSTRAINT uq_machines_name UNIQUE, created_at_ms BIGINT NOT NULL, "
            "active_version INTEGER DEFAULT '0' NOT NULL)"
        )
        columns = "id, name, created_at_ms, active_version"
        connection.execute(f"INSERT INTO older SELECT {columns} FROM machines")
        connection.execute("DROP TABLE machines")
        connection.execute("ALTER TABLE older RENAME TO machines")
        templates = "SELECT images.digest, image, engines.engine FROM images, engines"
        for digest, image, template in connection.execute(
            f"{templates} WHERE engines.digest = images.template"
        ).fetchall():
            kept = Template(unpack(template, bytes_max=2**24)).unpack(image, bytes_max=2**24)
            update = "UPDATE images SET image = ? WHERE digest = ?"
            connection.execute(update, (pack(kept), digest))
        connection.execute("ALTER TABLE images DROP COLUMN template")
        connection.execute("ALTER TABLE sessions DROP COLUMN compacted_to")
        connection.execute("UPDATE alembic_version SET version_num = '0005'")
    connection.close()


@pytest.mark.parametrize("wanted", [True, False])
async def test_before_an_upgrade_the_database_is_copied(tmp_path: Path, wanted: bool) -> None:
    async with running_hub(tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/s")
    make_older(tmp_path / "hub.db")
    status = await run("db", "status", "--data", str(tmp_path), "--json")
    assert json.loads(status.stdout) == {
        "database": str(tmp_path / "hub.db"),
        "schema": "0005",
        "newest": newest_revision(),
        "in_use": False,
        "copies": [],
    }
    async with running_hub(tmp_path, backup_before_upgrade=wanted) as client:
        assert (await send(client, f"{machine}/s")).json()["seq"] == 3
    copy = tmp_path / "hub.db.schema-0005"
    assert copy.exists() == wanted
    if wanted:
        assert back_up(copy, tmp_path / "look").revision == "0005"
        restored = await run("restore", str(copy), "--data", str(tmp_path))
        assert restored.returncode == 0, restored.stderr
        async with running_hub(tmp_path) as client:
            assert (await send(client, f"{machine}/s")).json()["seq"] == 3


async def test_a_database_says_how_it_stands(tmp_path: Path, postgres: str) -> None:
    empty = await run("db", "status", "--data", str(tmp_path / "none"))
    assert "none: the database is empty" in empty.stdout
    for command in ("size", "reset-clock"):
        missing = await run("db", command, "--data", str(tmp_path / "none"))
        assert (missing.returncode, "there is no database" in missing.stderr) == (1, True)
    assert not (tmp_path / "none").exists()
    url = await new_database(postgres)
    all_settings: tuple[dict[str, Any], ...] = ({}, {"MACHINEHUB_DATABASE_URL": url})
    for settings in all_settings:
        async with hub_process(tmp_path / "data", **settings) as hub:
            await deploy(hub.url)
            status = await run("db", "status", "--data", str(tmp_path / "data"), **settings)
            assert status.returncode == 0, status.stderr
            assert newest_revision() in status.stdout
            assert ("in_use    yes" in status.stdout) == (not settings)
            sizes = await run("db", "size", "--data", str(tmp_path / "data"), **settings)
            assert sizes.returncode == 0, sizes.stderr
            assert "engines" in sizes.stdout
            assert "total" in sizes.stdout
    refused = await run("backup", "x.db", MACHINEHUB_DATABASE_URL=url)
    assert refused.returncode == 1
    assert "pg_dump" in refused.stderr


async def test_what_a_hub_makes_is_its_users_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with hub_process(data) as hub:
        await deploy(hub.url)
        assert data.stat().st_mode & 0o777 == 0o700
        modes = {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()}
        assert modes
        assert set(modes.values()) == {0o600}, modes


async def test_a_path_is_a_path(tmp_path: Path) -> None:
    """What means something in a URI means nothing in a file's name."""
    data = tmp_path / "w#x?mode=rwc%20 é"
    async with running_hub(data) as client:
        await send(client, f"{await client.deploy(COUNTER)}/s")
    found = back_up(data / "hub.db", tmp_path / "copy")
    assert (found.machines, found.sessions) == (1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", data.name]
    (tmp_path / "empty.db").touch()
    with pytest.raises(Unavailable, match="no database of a hub"):
        back_up(tmp_path / "empty.db", tmp_path / "again")


async def test_what_was_replaced_can_be_put_back_whole(tmp_path: Path) -> None:
    """With what stood in its log; and two that are replaced in one second are two files."""
    async with running_hub(tmp_path / "a") as client:
        await send(client, f"{await client.deploy(COUNTER)}/s")
    copy = tmp_path / "copy"
    back_up(tmp_path / "a" / "hub.db", copy)
    path = tmp_path / "a" / "hub.db"
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA wal_autocheckpoint = 0")
    writer.execute("INSERT INTO notes VALUES ('late', x'00')")
    writer.commit()
    log = path.with_name("hub.db-wal").read_bytes()
    main = path.read_bytes()
    writer.close()
    path.write_bytes(main)
    path.with_name("hub.db-wal").write_bytes(log)  # as after a kill
    for _ in range(3):
        restored = await run("restore", str(copy), "--data", str(path.parent))
        assert restored.returncode == 0, restored.stderr
    asides = sorted(
        each for each in path.parent.glob("hub.db.replaced-*") if "-wal" not in each.name
    )
    assert len(asides) == 3
    notes = []
    for aside in asides:
        with sqlite3.connect(aside) as connection:
            notes.append(("late",) in connection.execute("SELECT name FROM notes").fetchall())
        connection.close()
    assert sorted(notes) == [False, False, True]


async def test_the_log_of_a_database_that_is_gone_is_no_part_of_a_restored_one(
    tmp_path: Path,
) -> None:
    """SQLite would play it into whatever file has the name: nothing in a log says whose it is."""
    data = tmp_path / "a"
    async with running_hub(data) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/s")
    copy, path = tmp_path / "copy", data / "hub.db"
    back_up(path, copy)
    writer = sqlite3.connect(path)
    writer.execute("DELETE FROM sessions")
    writer.commit()
    log = path.with_name("hub.db-wal").read_bytes()
    writer.close()
    path.unlink()
    path.with_name("hub.db-wal").write_bytes(log)  # as after a kill, without the database
    refused = await run("tokens", "create", "--name", "x", "--data", str(data))
    assert refused.returncode == 1
    assert "put that one back" in refused.stderr.replace("\n", " ")
    restored = await run("restore", str(copy), "--data", str(data))
    assert restored.returncode == 0, restored.stderr
    assert [each.read_bytes() for each in data.glob("*.replaced-*-wal")] == [log]
    async with running_hub(data) as client:
        assert (await client.http.get(f"/{machine}/s")).json()["seq"] == 2


async def test_a_restore_that_fails_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_hub(tmp_path / "a") as client:
        await send(client, f"{await client.deploy(COUNTER)}/s")
    copy, path = tmp_path / "copy", tmp_path / "a" / "hub.db"
    back_up(path, copy)
    before = path.read_bytes()

    def fails(_path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("machinehub.store.backup._sync", fails)
    with pytest.raises(Unavailable, match="Input/output error"):
        restore(copy, path, aside=tmp_path / "aside")
    assert path.read_bytes() == before
    assert not (tmp_path / "aside").exists()
