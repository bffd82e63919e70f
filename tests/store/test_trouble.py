"""A database that is full, read-only or damaged: what readiness, problems and logs say of it."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from machinehub.control.health import Health
from machinehub.metrics import Metrics
from machinehub.store.trouble import cause_of
from tests.cli.test_cli import run
from tests.durable import asleep, damage, send
from tests.processes import hub_process
from tests.support import COUNTER, problem, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Client


async def pragma(client: Client, text: str) -> None:
    """Of the connection that writes."""
    writer = client.hub._database._writer
    assert writer is not None

    def work() -> None:
        assert writer._connection is not None
        with writer._busy:
            writer._connection.raw.execute(f"PRAGMA {text}")

    await asyncio.wrap_future(writer._executor.submit(work))


async def readiness(client: Client) -> tuple[int, Any, Any]:
    answer = await client.http.get("/readyz")
    return answer.status_code, answer.json()["database"], answer.json().get("reason")


@pytest.mark.parametrize(
    ("breaks", "mends", "reason", "words"),
    [
        ("max_page_count = 1", "max_page_count = 1000000", "disk_full", "ENOSPC"),
        ("query_only = ON", "query_only = OFF", "read_only", "read-only"),
    ],
)
async def test_a_database_that_cannot_be_written_is_not_ready(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaks: str,
    mends: str,
    reason: str,
    words: str,
) -> None:
    """It can be read all the while."""
    monkeypatch.setattr("machinehub.session.run.journal.GIVE_UP_S", 0.5)
    monkeypatch.setattr("machinehub.session.run.journal.LATELY_S", 4.0)
    async with running_hub(tmp_path) as client:
        machine = await client.deploy(COUNTER)
        assert (await send(client, f"{machine}/s")).status_code == 200
        assert await readiness(client) == (200, True, None)
        await pragma(client, breaks)

        async def is_told() -> bool:
            # Some events still find room in pages that are there.
            sent = await client.http.post(f"/{machine}/s", json={"type": "x", "text": "y" * 9000})
            if sent.status_code == 200:
                return False
            body = problem(sent, 503, "unavailable")
            return body["reason"] == reason and words in body["detail"]

        async def is_not_ready() -> bool:
            return await readiness(client) == (503, False, reason)

        await until(is_told)
        await until(is_not_ready)
        assert (await client.http.get(f"/{machine}/s")).status_code in (200, 503)
        await pragma(client, mends)

        async def is_well() -> bool:
            return (await readiness(client))[0] == 200

        async def is_accepted() -> bool:
            return bool((await send(client, f"{machine}/s")).status_code == 200)

        await until(is_well)
        await until(is_accepted)


async def test_damaged_pages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever reads them, or by looking through the file while the hub runs."""
    monkeypatch.setattr("machinehub.store.integrity.AT_ONCE_BYTES", 0)
    async with running_hub(tmp_path) as client:
        machine = await client.deploy(COUNTER)
        for name in range(30):
            await send(client, f"{machine}/{name}")
    damage_pages(tmp_path / "hub.db")
    async with running_hub(tmp_path) as client:

        async def is_told() -> bool:
            return await readiness(client) == (503, False, "damaged")

        await until(is_told)


def damage_pages(path: Path) -> None:
    """Overwrites pages of the journal and of sessions, but not the schema."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    tables = "SELECT rootpage FROM sqlite_master WHERE tbl_name IN ('journal', 'checkpoints')"
    roots = [row[0] for row in connection.execute(tables)]
    connection.close()
    with path.open("r+b") as file:
        for root in roots:
            file.seek((root - 1) * 4096)
            file.write(b"\xff" * 4096)


@pytest.mark.parametrize("how", ["pages", "header", "cut"])
async def test_a_damaged_file_is_refused_at_the_start(tmp_path: Path, how: str) -> None:
    async with running_hub(tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/s")
    path = tmp_path / "hub.db"
    if how == "pages":
        damage_pages(path)
    elif how == "header":
        path.write_bytes(b"no database at all, " * 1000)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    async with hub_process(tmp_path, wait=False) as hub:
        lines = (await hub.output()).splitlines()
        said = " ".join(lines)
        assert hub.process.returncode == 1
        assert "Traceback" not in said
        assert "damaged" in said
        assert "machinehub restore" in said
        assert len([line for line in lines if "damaged" in line]) == 1


def test_causes_are_found_under_what_wraps_them() -> None:
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = 13
    assert cause_of(sa.exc.OperationalError("INSERT", {}, full)) == "disk_full"
    assert cause_of(OSError(28, "No space left on device")) == "disk_full"

    class FromPostgres(Exception):
        sqlstate = "25006"

    assert cause_of(sa.exc.DBAPIError("INSERT", {}, FromPostgres())) == "read_only"
    assert cause_of(TimeoutError()) == "unreachable"


async def test_low_disk_space_is_said_before_it_is_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free = [100 * 2**20]

    class Usage:
        total = 10 * 2**30

        @property
        def free(self) -> int:
            return free[0]

    monkeypatch.setattr("shutil.disk_usage", lambda _folder: Usage())
    metrics = Metrics()
    looking = Health(None, None, metrics, folder=tmp_path)  # type: ignore[arg-type]
    for _ in range(3):
        looking.look_at_disk(tmp_path)
    assert [record.message for record in caplog.records if "100 MiB" in record.message] == [
        f"100 MiB are free on the disk of {tmp_path}: events are refused when it is full"
    ]
    assert b"machinehub_disk_free_bytes 1.048576e+08" in metrics.expose()
    free[0] = 9 * 2**30
    with caplog.at_level("INFO"):
        looking.look_at_disk(tmp_path)
    assert "again" in caplog.records[-1].message


async def test_a_file_that_was_taken_away_is_not_written_any_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is acknowledged is in the file that the hub will start on."""
    async with running_hub(tmp_path) as client:
        machine = await client.deploy(COUNTER)
        assert (await send(client, f"{machine}/s")).json()["seq"] == 2
        (tmp_path / "hub.db").rename(tmp_path / "moved.db")
        refused = await send(client, f"{machine}/s")
        assert problem(refused, 503, "unavailable")["reason"] == "moved"
        assert await readiness(client) == (503, False, "moved")
        assert "was moved or deleted" in caplog.text
        refused = await client.http.get("/api/v1/machines")
        assert problem(refused, 503, "unavailable")["reason"] == "moved"
        made = await run("tokens", "create", "--name", "x", "--data", str(tmp_path))
        assert made.returncode == 1
        assert "put that one back" in made.stderr
        assert not (tmp_path / "hub.db").exists()
        (tmp_path / "moved.db").rename(tmp_path / "hub.db")

        async def goes_on() -> bool:
            return bool((await send(client, f"{machine}/s")).status_code == 200)

        await until(goes_on)
        assert (await client.http.get(f"/{machine}/s")).json()["seq"] == 3


async def test_rows_that_are_none_of_ours_are_damage(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/s")
        await asleep(client, machine, "s")
        await damage(client, "UPDATE checkpoints SET timers = :junk", {"junk": b"\xff\xff"})
        await until(lambda: client.find(machine, "s") is None)
        refused = await send(client, f"{machine}/s")
        assert problem(refused, 503, "unavailable")["reason"] == "damaged"

        async def is_told() -> bool:
            return await readiness(client) == (503, False, "damaged")

        await until(is_told)


async def test_what_can_be_read_of_a_damaged_database_is_saved(tmp_path: Path) -> None:
    data, saved = tmp_path / "data", tmp_path / "saved.db"
    async with running_hub(data) as client:
        machine = await client.deploy(COUNTER)
        for name in range(400):
            await send(client, f"{machine}/{name}")
    path = data / "hub.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    leaves = connection.execute(
        "SELECT pageno FROM dbstat WHERE name = 'journal' AND pagetype = 'leaf' ORDER BY pageno"
    ).fetchall()
    connection.close()
    with path.open("r+b") as file:
        for (page,) in leaves[2:4]:
            file.seek((page - 1) * 4096)
            file.write(b"\xff" * 4096)
    recovered = await run("db", "recover", str(saved), "--data", str(data), "--json")
    assert recovered.returncode == 0, recovered.stderr
    counts = json.loads(recovered.stdout)
    assert (counts["machines"], counts["sessions"], counts["versions"]) == (1, 400, 1)
    assert 400 < counts["journal"] < 800
    restored = await run("restore", str(saved), "--data", str(data))
    assert restored.returncode == 0, restored.stderr
    async with running_hub(data) as client:
        # Their checkpoints were whole: they go on, though their past is gone.
        for name in range(400):
            assert (await send(client, f"{machine}/{name}")).json()["seq"] == 3
