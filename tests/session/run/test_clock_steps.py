"""The computer's clock is set while a hub runs, and between two runs (libfaketime)."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.processes import deploy, hub_process
from tests.support import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.processes import Process

ALARMS = """
import { createMachine } from "xstate";
export default createMachine({
  initial: "idle",
  on: { SHORT: ".short", LONG: ".long" },
  states: { idle: {}, short: { after: { 1500: "rang" } }, long: { after: { 3600000: "rang" } }, rang: {} },
});
"""
HOUR_S = 3600
SOON_S = 20
"""Far longer than a hub takes to notice a step, and a third of what it once took."""


class Clock:
    """What the hub's process takes for the time: the computer's, and an offset that is set here."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)

    def set(self, offset_s: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset_s:+d}s\n")
        new.rename(self._file)

    @property
    def environment(self) -> dict[str, Any]:
        (library,) = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }


@contextlib.asynccontextmanager
async def hub(data: Path, clock: Clock) -> AsyncIterator[Process]:
    with (data.parent / "log").open("a") as log:
        async with hub_process(data, log=log, **clock.environment) as running:
            yield running


async def value(http: httpx.AsyncClient, url: str) -> str:
    found: str = (await http.get(url)).json()["snapshot"]["value"]
    return found


async def rings(http: httpx.AsyncClient, url: str) -> None:
    async def has_rung() -> bool:
        return await value(http, url) == "rang"

    await until(has_rung, within_s=SOON_S)


async def counted(http: httpx.AsyncClient, running: Process, direction: str) -> bool:
    text = (await http.get(f"{running.url}/metrics")).text
    found = re.search(rf'clock_steps_total{{direction="{direction}"}} (\S+)', text)
    return found is not None and float(found[1]) >= 1


async def test_a_clock_that_is_set_is_noticed_at_once(tmp_path: Path) -> None:
    """Forward, what has come due fires; back, timers go on from where they were."""
    clock = Clock(tmp_path / "offset")
    async with hub(tmp_path / "data", clock) as running, httpx.AsyncClient(timeout=20) as http:
        url = await deploy(running.url, ALARMS)
        await http.post(f"{url}/s", json={"type": "LONG"})
        assert await value(http, f"{url}/s") == "long"
        clock.set(HOUR_S + 5)
        await rings(http, f"{url}/s")
        assert await counted(http, running, "forward")
        await http.post(f"{url}/before", json={"type": "SHORT"})
        clock.set(-HOUR_S)
        await http.post(f"{url}/during", json={"type": "SHORT"})
        await rings(http, f"{url}/before")
        await rings(http, f"{url}/during")
        assert await counted(http, running, "back")
    said = (tmp_path / "log").read_text()
    assert "was put forward by" in said
    assert "was put back by" in said


async def test_timers_that_were_armed_during_a_step_back_are_right_after_a_kill(
    tmp_path: Path,
) -> None:
    clock = Clock(tmp_path / "offset")
    data = tmp_path / "data"
    async with hub(data, clock) as running, httpx.AsyncClient(timeout=20) as http:
        url = await deploy(running.url, ALARMS)
        clock.set(-HOUR_S)

        def is_noted() -> bool:
            with contextlib.closing(sqlite3.connect(data / "hub.db")) as connection:
                rows = connection.execute("SELECT name FROM notes").fetchall()
            return ("clock",) in rows

        await until(is_noted)
        await http.post(f"{url}/s", json={"type": "SHORT"})
        running.process.kill()
        await running.process.wait()
    path = url.removeprefix(running.url)
    async with hub(data, clock) as again, httpx.AsyncClient(timeout=20) as http:
        await rings(http, again.url + path + "/s")
        clock.set(0)  # it was put right
        await http.post(again.url + path + "/t", json={"type": "SHORT"})
        await rings(http, again.url + path + "/t")


async def test_a_step_back_while_no_hub_runs_is_made_up_for(tmp_path: Path) -> None:
    """Sessions' time is never behind what it was: their timers come late by no more than that."""
    clock = Clock(tmp_path / "offset")
    data = tmp_path / "data"
    async with hub(data, clock) as running, httpx.AsyncClient(timeout=20) as http:
        url = await deploy(running.url, ALARMS)
        await http.post(f"{url}/s", json={"type": "SHORT"})
        running.process.kill()
        await running.process.wait()
    clock.set(-HOUR_S)
    path = url.removeprefix(running.url)
    async with hub(data, clock) as again, httpx.AsyncClient(timeout=20) as http:
        await rings(http, again.url + path + "/s")
