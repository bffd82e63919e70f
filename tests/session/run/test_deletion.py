"""Deleted and expired sessions: nothing of them is left, and nothing of them goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from machinehub.clock import ManualClock
from tests.durable import TIMERS, asleep, count, hub_on, send
from tests.support import running_hub, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_nothing_of_a_deleted_machine_goes_on(tmp_path: Path) -> None:
    """Sessions that woke, or were forked, while their machine was deleted ran on where nobody saw
    them.
    """
    source = (
        'import { createMachine } from "xstate"; export default createMachine({ initial: "a", '
        'states: { a: { after: { 50: "b" } }, b: { after: { 50: "a" } } } });'
    )
    async with running_hub(tmp_path, workers=1) as client:
        machine = await client.deploy(source)
        for number in range(20):
            await client.http.get(f"/{machine}/s{number}")
        forking = [
            asyncio.create_task(
                client.http.post(
                    f"/api/v1/machines/{machine}/sessions/s0/fork", json={"session": f"f{n}"}
                )
            )
            for n in range(8)
        ]
        client.hub.sessions.housekeeper.hibernate()
        assert (await client.http.delete(f"/api/v1/machines/{machine}")).status_code == 204
        for task in forking:
            await task
        await until(lambda: len(client.hub.sessions.registry) == 0)
        # Whatever still ran would have been written before this, which comes behind it.
        await send(client, f"{await client.deploy(TIMERS, name='after')}/s", "GO")
        tables = ("sessions", "journal", "checkpoints", "timers")
        assert [await count(client, table) for table in tables] == [1, 2, 0, 3]


async def test_deleting_a_session_deletes_all_of_it(database_url: str, tmp_path: Path) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(TIMERS)
        for session in ("asleep", "awake"):
            await send(client, f"{machine}/{session}", "GO", "go")
        await asleep(client, machine, "asleep")
        async with client.socket(f"{machine}/awake"):
            for session in ("asleep", "awake"):
                assert (
                    await client.http.delete(f"/api/v1/machines/{machine}/sessions/{session}")
                ).status_code == 204
                assert (
                    await client.http.delete(f"/api/v1/machines/{machine}/sessions/{session}")
                ).status_code == 404
                assert (
                    await client.http.get(f"/api/v1/machines/{machine}/sessions/{session}")
                ).status_code == 404
        assert [
            await count(client, table) for table in ("sessions", "journal", "checkpoints", "timers")
        ] == [0, 0, 0, 0]
        assert (await send(client, f"{machine}/awake", "GO", "go")).json()["seq"] == 2
        assert (await client.http.delete(f"/api/v1/machines/{machine}")).status_code == 204
        assert await count(client, "journal") == 0


async def test_finished_sessions_expire(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock()
    source = (
        'import { createMachine } from "xstate"; export default createMachine({ initial: "a", '
        'states: { a: { on: { END: "b" } }, b: { type: "final" } } });'
    )
    async with hub_on(database_url, tmp_path, clock=clock, expire_finished_s=60) as client:
        machine = await client.deploy(source)
        await send(client, f"{machine}/over", "END")
        await send(client, f"{machine}/going", "NOP")
        clock.move_to(clock.now_ms() + 59_000)
        assert await client.hub.sessions.housekeeper.expire() == 0
        clock.move_to(clock.now_ms() + 2_000)
        assert await client.hub.sessions.housekeeper.expire() == 1
        listed = (await client.http.get(f"/api/v1/machines/{machine}/sessions")).json()["data"]
        assert [session["id"] for session in listed] == ["going"]
