"""Timers of sessions that sleep, or whose hub was down. On real databases."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from machinehub.clock import ManualClock, SystemClock
from machinehub.errors import Unavailable
from machinehub.limits import Limits
from tests.durable import TIMERS, asleep, count, hub_on, send
from tests.support import running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support import Client


async def log_of(client: Client, path: str) -> list[str]:
    log: list[str] = (await client.http.get(f"/{path}")).json()["snapshot"]["context"]["log"]
    return log


async def has_log(client: Client, path: str, wanted: list[str]) -> bool:
    return await log_of(client, path) == wanted


async def test_timers_fire_after_the_hub_was_down(database_url: str, tmp_path: Path) -> None:
    clock = ManualClock()
    async with hub_on(database_url, tmp_path, clock=clock) as client:
        machine = await client.deploy(TIMERS)
        for session in ("s", "stopped"):
            await send(client, f"{machine}/{session}", "GO")
        await send(client, f"{machine}/stopped", "STOP")
    clock.move_to(clock.now_ms() + 1000)
    async with hub_on(database_url, tmp_path, clock=clock) as client:

        async def fired() -> list[str] | None:
            client.hub.sessions.scheduler.fire()
            log = await log_of(client, f"{machine}/s")
            return log if len(log) == 2 else None

        assert await until(fired) == ["100", "500"]
        clock.move_to(clock.now_ms() + 60_000)
        await asleep(client, machine, "s")

        async def is_done() -> bool:
            client.hub.sessions.scheduler.fire()  # it wakes the session, then fires again
            if client.find(machine, "s") is None:
                return False
            frame = (await client.http.get(f"/{machine}/s")).json()
            return bool(frame["snapshot"]["status"] == "done")

        await until(is_done)
        stopped = (await client.http.get(f"/{machine}/stopped")).json()
        assert (stopped["snapshot"]["value"], stopped["snapshot"]["context"]["log"]) == ("idle", [])
        entries = (await client.http.get(f"/api/v1/machines/{machine}/sessions/s/journal")).json()[
            "data"
        ]
        assert [entry["kind"] for entry in entries] == ["start", "event", "timer", "timer", "timer"]


async def test_a_clock_that_is_put_forward_is_followed_soon(tmp_path: Path) -> None:
    """Timers that were waiting went on waiting as long as they had meant to."""
    ahead_ns = 0
    clock = SystemClock(lambda: time.time_ns() + ahead_ns)
    async with running_hub(tmp_path, clock=clock) as client:
        machine = await client.deploy(
            'import { createMachine } from "xstate"; export default createMachine({ initial: "a", '
            'states: { a: { after: { 300000: "b" } }, b: { tags: "b" } } });'
        )
        await client.http.get(f"/{machine}/s")
        ahead_ns = 3600 * 1_000_000_000
        waiting = {"condition": {"tag": "b"}, "timeout_ms": 60_000}
        answer = await client.http.post(f"/{machine}/s/wait", json=waiting)
        assert answer.json()["snapshot"]["value"] == "b"


async def test_a_sleeping_session_is_woken_by_its_timer(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1) as client:
        machine = await client.deploy(TIMERS)
        await send(client, f"{machine}/s", "GO")
        await asleep(client, machine, "s")
        # Nobody asks for it meanwhile: the timers alone bring it back.
        await until(lambda: client.find(machine, "s") is not None)
        await until(lambda: has_log(client, f"{machine}/s", ["100", "500"]))


async def test_a_timer_that_could_not_be_served_fires_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was taken off the alarm, and nobody put it back."""
    clock = ManualClock()
    async with running_hub(tmp_path, clock=clock) as client:
        machine = await client.deploy(TIMERS)
        await send(client, f"{machine}/s", "GO")
        await asleep(client, machine, "s")
        scheduler, refused = client.hub.sessions.scheduler, asyncio.Event()

        async def no_image(_digest: str) -> Any:
            refused.set()
            raise Unavailable("unavailable", "the database is away")

        with monkeypatch.context() as patch:
            patch.setattr(client.hub.catalog, "image", no_image)
            patch.setattr(client.hub.catalog, "at_hand", lambda _digest: None)
            clock.move_to(clock.now_ms() + 600)
            scheduler.fire()  # both timers are due
            await refused.wait()
            await asleep(client, machine, "s")

        async def have_fired() -> bool:
            clock.move_to(clock.now_ms() + 1000)
            scheduler.fire()
            return await has_log(client, f"{machine}/s", ["100", "500"])

        await until(have_fired)


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
    clock = ManualClock()
    async with running_hub(tmp_path, workers=1, clock=clock) as client:
        machine = await client.deploy(source)
        for number in range(60):
            await client.http.get(f"/{machine}/s{number}")
    clock.move_to(clock.now_ms() + 1000)
    async with running_hub(
        tmp_path, workers=1, limits=Limits(live_sessions=8), clock=clock
    ) as client:
        most = 0

        async def have_fired() -> bool:
            nonlocal most
            client.hub.sessions.scheduler.fire()
            most = max(most, client.hub.sessions.placement.live_count)
            return await count(client, "journal") == 120

        await until(have_fired)
        assert most <= 16
