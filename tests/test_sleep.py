"""Sessions that nobody uses sleep in the database, and wake when somebody asks or a timer is due.

On real databases.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from machinehub.clock import ManualClock
from machinehub.errors import Unavailable
from machinehub.limits import Limits
from machinehub.session.decide.lifecycle import Phase, Stage
from tests.durable import TIMERS, asleep, count, hub_on, send
from tests.support import COUNTER, running_hub

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

# --- sleep


async def test_sleeping_sessions_are_in_the_database_only(
    database_url: str, tmp_path: Path
) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        for _ in range(3):
            await send(client, f"{machine}/alone", event_id="same")
        await asleep(client, machine, "alone")
        assert client.find(machine, "alone") is None
        async with client.socket(f"{machine}/watched") as socket:
            await socket.event("increment", event_id="w")
            await asleep(client, machine, "watched")
            watched = client.find(machine, "watched")
            assert watched is not None
            assert (watched.phase, watched.tail, watched.checkpoint) == (Phase.ASLEEP, [], None)
            assert client.place(machine, "watched").stage is Stage.OFF
            await socket.settle()
            assert (await client.http.get(f"/{machine}/watched")).json()["seq"] == 2
            assert watched.phase is Phase.ASLEEP
            assert (await socket.event("increment", event_id="w"))["seq"] == 2
            assert (await socket.event("increment"))["seq"] == 3
            assert socket.snapshot["context"] == {"count": 2}
        assert (await client.http.get(f"/{machine}/alone")).json()["snapshot"]["context"] == {
            "count": 1
        }
        assert (await send(client, f"{machine}/alone", event_id="same")).json()["seq"] == 2
        conditional = await send(client, f"{machine}/alone", **{"If-Match": '"2"'})
        assert (conditional.status_code, conditional.json()["seq"]) == (200, 3)


async def test_too_many_live_sessions_make_the_oldest_sleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machinehub.session.run.housekeeping.FRESH_MS", 0)
    async with running_hub(tmp_path, workers=1, limits=Limits(live_sessions=5)) as client:
        machine = await client.deploy(COUNTER)
        for number in range(30):
            await send(client, f"{machine}/s{number}")
        for _ in range(100):
            client.hub.sessions.housekeeper.sweep()
            if len(list(client.hub.sessions.placement.live)) <= 5:
                break
            await asyncio.sleep(0.02)
        assert len(list(client.hub.sessions.placement.live)) == 5
        answers = [
            (await send(client, f"{machine}/s{number}")).json()["snapshot"]["context"]
            for number in range(30)
        ]
        assert answers == [{"count": 2}] * 30


# --- timers


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
