"""Damage in a session's journal and checkpoints: it is found, named, and what is whole can be had."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from tests.cli.test_cli import run
from tests.durable import asleep, damage, hub_on, send
from tests.support import COUNTER, problem, running_hub

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Client


async def counted(client: Client, machine: str, session: str, times: int) -> None:
    for _ in range(times):
        assert (await send(client, f"{machine}/{session}")).status_code == 200


async def gap(client: Client, machine: str, session: str, seq: int) -> None:
    """One line of a sleeping session's journal is gone."""
    await asleep(client, machine, session)
    of = "(SELECT key FROM sessions WHERE session_id = :session)"
    sql = f"DELETE FROM journal WHERE seq = :seq AND key = {of}"
    await damage(client, sql, {"seq": seq, "session": session.encode()})


async def drop_checkpoints(client: Client) -> None:
    await damage(client, "DELETE FROM checkpoints", {})


async def state(client: Client, path: str) -> Any:
    return await client.http.get(f"/api/v1/machines/{path}")


async def test_a_missing_input_is_named_when_the_session_is_restored(
    database_url: str, tmp_path: Path
) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await counted(client, machine, "s", 9)
        await gap(client, machine, "s", 5)
        await drop_checkpoints(client)
    async with hub_on(database_url, tmp_path) as client:
        body = problem(await send(client, f"{machine}/s"), 503, "session_damaged")
        assert "input 5" in body["detail"]
        assert "at 4" in body["detail"]
        # Nothing was done, and what was before the gap is there.
        before = await state(client, f"{machine}/sessions/s?at=4")
        assert before.json()["snapshot"]["context"]["count"] == 3
        behind = await state(client, f"{machine}/sessions/s?at=7")
        assert "input 5 is missing" in problem(behind, 503, "session_damaged")["detail"]
        forked = await client.http.post(
            f"/api/v1/machines/{machine}/sessions/s/fork", json={"session": "saved"}
        )
        assert forked.json()["parent"] == {"id": "s", "at": 4}
        assert (await send(client, f"{machine}/saved")).json()["snapshot"]["context"]["count"] == 4


async def test_a_gap_behind_a_checkpoint_leaves_the_session_as_it_is(
    database_url: str, tmp_path: Path
) -> None:
    """It goes on; its past cannot be had in one piece, and `verify` says so."""
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER, name="counted")
        await counted(client, machine, "whole", 3)
        await counted(client, machine, "s", 9)
        await gap(client, machine, "s", 5)
        assert (await send(client, f"{machine}/s")).json()["seq"] == 11
        found = await run("verify", client=client)
        assert found.returncode == 6, found
        assert "counted/s: input 5 is missing from the journal" in found.stderr
        assert "2 sessions, " in found.stdout
        assert "1 damaged" in found.stdout
        assert (await run("verify", "counted/whole", client=client)).returncode == 0
        one = await run("verify", "counted/s", "--json", client=client)
        assert (one.returncode, len(json.loads(one.stdout))) == (6, 1)
        # What comes behind the checkpoint can be had, and what is before the gap.
        forked = await client.http.post(
            f"/api/v1/machines/{machine}/sessions/s/fork", json={"session": "copy"}
        )
        assert forked.json()["parent"]["at"] == 11


@pytest.mark.parametrize("how", ["memory", "cut", "other"])
async def test_a_memory_that_differs_is_found(tmp_path: Path, how: str) -> None:
    async with running_hub(tmp_path) as client:
        machine = await client.deploy(COUNTER, name="counted")
        await counted(client, machine, "s", 5)
        await counted(client, machine, "t", 8)
        for session in ("s", "t"):
            await asleep(client, machine, session)
        async with client.hub.engine.begin() as connection:
            found = await connection.execute(
                sa.text(
                    "SELECT session_id, sessions.key, data FROM sessions JOIN checkpoints ON "
                    "checkpoints.key = sessions.key"
                )
            )
            saved = {bytes(row[0]): (row[1], bytes(row[2])) for row in found}
        key, data = saved[b"s"]
        wrong = {
            "memory": data[:-9] + bytes(byte ^ 1 for byte in data[-9:]),
            "cut": data[: len(data) // 2],
            "other": saved[b"t"][1],
        }[how]
        await damage(
            client,
            "UPDATE checkpoints SET data = :data WHERE key = :key",
            {"data": wrong, "key": key},
        )
    async with running_hub(tmp_path) as client:
        checked = await run("verify", "counted/s", client=client)
        assert checked.returncode == 6
        assert "the memory at input 6" in checked.stderr
        assert (await run("verify", "counted/t", client=client)).returncode == 0
