"""Sessions that nobody listens to, and whose timers go on: how often they fire, what is kept."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from playwright.async_api import expect

from machinehub.clock import ManualClock
from machinehub.limits import Limits
from tests.browser import chromium
from tests.cli.test_cli import run
from tests.durable import hub_on
from tests.support import problem, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support import Client

TICKER = """
import { setup, assign } from "xstate";
export default setup({}).createMachine({
  context: { ticks: 0, said: 0 },
  on: { SAY: { actions: assign({ said: ({ context }) => context.said + 1 }) } },
  initial: "on",
  states: {
    on: { after: { 100: { target: "on", reenter: true, actions: assign({ ticks: ({ context }) => context.ticks + 1 }) } } },
  },
});
"""
LIMITS = Limits(unattended_timers_per_min=60, unattended_timer_burst=20)


async def ticks(client: Client, path: str) -> int:
    found = (await client.http.get(f"/api/v1/machines/{path}")).json()
    return int(found["snapshot"]["context"]["ticks"])


async def pass_time(client: Client, clock: ManualClock, ms: int, step_ms: int = 100) -> None:
    """Moves the clock, firing what comes due, each turn committed before the next step."""
    sessions = client.hub.sessions
    for _ in range(ms // step_ms):
        clock.move_to(clock.now_ms() + step_ms)
        sessions.scheduler.fire()
        await until(lambda: not any(each.waiting for each in sessions.registry.all))


async def test_timers_that_nobody_listens_to_are_slowed_down(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_hub(tmp_path, clock=clock, limits=LIMITS) as client:
        machine = await client.deploy(TICKER)
        assert (await client.http.get(f"/{machine}/s")).status_code == 200
        path = f"{machine}/sessions/s"
        await pass_time(client, clock, 2_000)
        assert await ticks(client, path) == 20  # as it wants, up to the burst
        await pass_time(client, clock, 10_000)
        late = await ticks(client, path)
        assert 20 + 9 <= late <= 20 + 12
        lines = (await client.http.get(f"/api/v1/machines/{machine}/logs")).json()["data"]
        assert [line["level"] for line in lines] == ["warn"]
        assert "60 times a minute" in lines[0]["text"]
        held_back = re.search(
            r"(?m)^\w+held_back_total (\S+)", (await client.http.get("/metrics")).text
        )
        assert held_back is not None
        assert float(held_back[1]) >= 9
        async with client.socket(f"{machine}/s"):
            await pass_time(client, clock, 3_000)
            watched = await ticks(client, path)
            assert watched >= late + 19
        await until(lambda: not _watched(client))
        await pass_time(client, clock, 1_500)
        assert await ticks(client, path) >= watched + 14  # whoever left may come back: a new burst


CANCELS = """
import { setup, assign } from "xstate";
export default setup({}).createMachine({
  context: { late: 0 },
  initial: "idle",
  states: {
    idle: { on: { BEGIN: "waiting" } },
    waiting: { after: { 30000: "late" }, on: { END: "idle" } },
    late: { on: { BEGIN: "waiting" } },
  },
});
"""


async def test_timers_that_were_cancelled_cost_nothing(tmp_path: Path) -> None:
    """Whoever drives a session over HTTP is not slowed down by time-outs that never came."""
    clock = ManualClock()
    async with running_hub(tmp_path, clock=clock, limits=LIMITS) as client:
        machine = await client.deploy(CANCELS)
        for _ in range(100):
            for event in ("BEGIN", "END"):
                await client.http.post(f"/{machine}/s", json={"type": event})
            await pass_time(client, clock, 400)
        await client.http.post(f"/{machine}/s", json={"type": "BEGIN"})
        await pass_time(client, clock, 31_000, 1000)
        assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["value"] == "late"
        assert not (await client.http.get(f"/api/v1/machines/{machine}/logs")).json()["data"]


MANY = """
import { setup, assign } from "xstate";
const after = (ms) => ({ [ms]: { actions: assign({ log: ({ context }) => [...context.log, ms] }) } });
export default setup({}).createMachine({
  context: { log: [] },
  on: { AGAIN: { target: ".on", reenter: true } },
  initial: "on",
  states: { on: { after: Object.assign({}, ...Array.from({ length: 40 }, (_, n) => after(100 + 10 * n))) } },
});
"""


async def log_of(client: Client, machine: str) -> list[int]:
    found = (await client.http.get(f"/api/v1/machines/{machine}/sessions/s")).json()
    return list(found["snapshot"]["context"]["log"])


async def test_what_was_held_back_fires_in_its_order_when_somebody_comes(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_hub(tmp_path, clock=clock, limits=LIMITS) as client:
        machine = await client.deploy(MANY)
        await client.http.get(f"/{machine}/s")
        await pass_time(client, clock, 400, 50)
        assert len(await log_of(client, machine)) < 35
        async with client.socket(f"{machine}/s"):
            await pass_time(client, clock, 400, 20)
            assert await log_of(client, machine) == [100 + 10 * n for n in range(40)]


async def test_timers_set_again_and_again_are_kept_once(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_hub(tmp_path, clock=clock, limits=LIMITS) as client:
        machine = await client.deploy(MANY)
        for _ in range(40):
            await client.http.post(f"/{machine}/s", json={"type": "AGAIN"})
            await pass_time(client, clock, 600, 100)
        (ticking,) = client.hub.sessions.unattended._ticking.values()
        assert len(ticking.held) <= 2 * 64


async def test_held_timers_of_a_session_that_sleeps_fire(tmp_path: Path) -> None:
    """Each wakes it, at the rate, and is charged once."""
    clock = ManualClock()
    limits = Limits(unattended_timers_per_min=5, unattended_timer_burst=5)
    async with running_hub(tmp_path, clock=clock, limits=limits) as client:
        machine = await client.deploy(MANY)
        await client.http.get(f"/{machine}/s")
        for _ in range(50):
            await pass_time(client, clock, 12_000, 3_000)
            client.hub.sessions.housekeeper.sweep()
            await until(lambda: not _busy(client))
        assert await log_of(client, machine) == [100 + 10 * n for n in range(40)]


def _watched(client: Client) -> bool:
    sessions = client.hub.sessions
    return any(sessions.publisher.is_watched(each) for each in sessions.registry.all)


async def test_a_timer_a_second_is_not_slowed_down(tmp_path: Path) -> None:
    clock = ManualClock()
    slower = TICKER.replace("100:", "1000:")
    async with running_hub(tmp_path, clock=clock, limits=LIMITS) as client:
        machine = await client.deploy(slower)
        await client.http.get(f"/{machine}/s")
        await pass_time(client, clock, 100_000, 500)
        assert await ticks(client, f"{machine}/sessions/s") == 100
        assert not (await client.http.get(f"/api/v1/machines/{machine}/logs")).json()["data"]


async def entries(client: Client, path: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = (await client.http.get(f"/api/v1/machines/{path}/journal{cursor}")).json()
        found += page["data"]
        if page["next"] is None:
            return found
        cursor = f"?cursor={page['next']}"


async def test_what_ticks_on_is_compacted(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machinehub.session.run.housekeeping.TAIL_MAX", 50)
    clock = ManualClock()
    async with hub_on(database_url, tmp_path, clock=clock, limits=LIMITS) as client:
        machine = await client.deploy(TICKER)
        path = f"{machine}/sessions/s"
        sent = {"type": "SAY"}
        headers = {"Idempotency-Key": "once"}
        first = await client.http.post(f"/{machine}/s", json=sent, headers=headers)
        for _ in range(6):
            await pass_time(client, clock, 30_000, 500)
            client.hub.sessions.housekeeper.sweep()
            await until(lambda: not _busy(client))
        count = await ticks(client, path)
        assert count > 160
        left = await entries(client, path)
        assert len(left) < 130
        assert [entry["kind"] for entry in left[:2]] == ["start", "event"]
        session = (await client.http.get(f"/api/v1/machines/{path}")).json()
        assert session["compacted_to"] < left[2]["seq"]
        async with chromium() as browser:
            page = await browser.new_page()
            await page.goto(f"{client.url}/{machine}/s")
            await page.get_by_role("tab", name="history").click()
            await page.get_by_role("button", name="Older inputs").click()
            await expect(page.get_by_text("are not kept any more.")).to_be_visible()
        history = await run("history", f"{machine}/s", client=client)
        assert f"up to {session['compacted_to']} some are not kept" in history.stderr
        problem(
            await client.http.get(f"/api/v1/machines/{path}?at={session['compacted_to'] // 2}"),
            404,
            "history_pruned",
        )
        replayed = await client.http.post(f"/api/v1/machines/{path}/replay")
        assert replayed.json()["verified"] is True
        again = await client.http.post(f"/{machine}/s", json=sent, headers=headers)
        assert again.json()["seq"] == first.json()["seq"]
        forked = await client.http.post(f"/api/v1/machines/{path}/fork", json={"session": "copy"})
        assert forked.json()["compacted_to"] == forked.json()["seq"]
        whole = await run("verify", f"{machine}/copy", client=client)
        assert whole.returncode == 0, whole
    async with hub_on(database_url, tmp_path, clock=clock, limits=LIMITS) as client:
        assert await ticks(client, path) >= count
        assert await ticks(client, f"{machine}/sessions/copy") >= count


def _busy(client: Client) -> bool:
    sessions = client.hub.sessions
    return any(not sessions.housekeeper.at_rest(each) for each in sessions.registry.all)
