"""Timers of sessions that sleep, or whose hub was down. On real databases."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from machinehub.clock import ManualClock
from machinehub.errors import Unavailable
from machinehub.limits import Limits
from tests.durable import TIMERS, asleep, count, hub_on, send
from tests.support import running_hub

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_timers_fire_after_the_hub_was_down(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock()
    async with hub_on(database_url, tmp_path, clock=clock) as client:
        machine = await client.deploy(TIMERS)
        for session in ("s", "stopped"):
            await send(client, f"{machine}/{session}", "GO")
        await send(client, f"{machine}/stopped", "STOP")
    clock.move_to(clock.now_ms() + 1000)
    async with hub_on(database_url, tmp_path, clock=clock) as client:
        client.hub.sessions.scheduler.fire()
        for _ in range(200):
            found = (await client.http.get(f"/{machine}/s")).json()
            if len(found["snapshot"]["context"]["log"]) == 2:
                break
            client.hub.sessions.scheduler.fire()
            await asyncio.sleep(0.01)
        assert found["snapshot"]["context"]["log"] == ["100", "500"]
        clock.move_to(clock.now_ms() + 60_000)
        await asleep(client, machine, "s")
        for _ in range(200):
            client.hub.sessions.scheduler.fire()  # it wakes the session, then fires again
            if (
                client.find(machine, "s") is not None
                and (await client.http.get(f"/{machine}/s")).json()["snapshot"]["status"] == "done"
            ):
                break
            await asyncio.sleep(0.01)
        assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["status"] == "done"
        stopped = (await client.http.get(f"/{machine}/stopped")).json()
        assert (stopped["snapshot"]["value"], stopped["snapshot"]["context"]["log"]) == ("idle", [])
        entries = (await client.http.get(f"/api/v1/machines/{machine}/sessions/s/journal")).json()[
            "data"
        ]
        assert [entry["kind"] for entry in entries] == ["start", "event", "timer", "timer", "timer"]


async def test_a_sleeping_session_is_woken_by_its_timer(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1) as client:
        machine = await client.deploy(TIMERS)
        await send(client, f"{machine}/s", "GO")
        await asleep(client, machine, "s")
        await asyncio.sleep(0.8)
        assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"]["log"] == [
            "100",
            "500",
        ]


async def test_a_timer_that_could_not_be_served_fires_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken off the alarm, and nobody put it back."""
    async with running_hub(tmp_path, workers=1) as client:
        machine = await client.deploy(TIMERS)
        await send(client, f"{machine}/s", "GO")
        await asleep(client, machine, "s")

        async def no_image(_digest: str) -> Any:
            raise Unavailable("unavailable", "the database is away")

        with monkeypatch.context() as patch:
            patch.setattr(client.hub.catalog, "image", no_image)
            patch.setattr(client.hub.catalog, "at_hand", lambda _digest: None)
            await asyncio.sleep(0.8)
        for _ in range(60):
            seen = (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"]["log"]
            if len(seen) == 2:
                break
            await asyncio.sleep(0.1)
        assert seen == ["100", "500"]


async def test_thousands_of_overdue_timers_do_not_wake_everybody_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the hub was down: each session is woken, but only so many are live at a time."""
    monkeypatch.setattr("machinehub.session.run.housekeeping.FRESH_MS", 0)
    monkeypatch.setattr("machinehub.session.run.housekeeping.SWEEP_S", 0.02)
    source = (
        'import { createMachine } from "xstate"; export default createMachine({ initial: "a", '
        'states: { a: { after: { 1000: "b" } }, b: {} } });'
    )
    async with running_hub(tmp_path, workers=1) as client:
        machine = await client.deploy(source)
        for number in range(60):
            await client.http.get(f"/{machine}/s{number}")
    await asyncio.sleep(1)
    async with running_hub(tmp_path, workers=1, limits=Limits(live_sessions=8)) as client:
        most, fired = 0, 0
        for _ in range(400):
            most = max(most, client.hub.sessions.placement.live_count)
            fired = await count(client, "journal") - 60
            if fired == 60:
                break
            await asyncio.sleep(0.02)
        assert fired == 60
        assert most <= 16
