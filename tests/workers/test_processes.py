"""Real processes that are killed, stopped and told to go: workers, forges, hubs."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from machinehub.session.decide.lifecycle import Stage
from tests.processes import alive, deploy, hub_process
from tests.support import CACHE, COUNTER, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

POISON = (
    'import { assign, createMachine } from "xstate"; export default createMachine({ context: { '
    "n: 0 }, on: { INC: { actions: assign({ n: ({ context }) => context.n + 1 }) } } });"
)


async def test_killing_workers_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """Clients count in several sessions, checkpoints included, while workers die; they notice only
    a delay.
    """
    async with running_hub(tmp_path, workers=2) as client:
        machine = await client.deploy(COUNTER)
        stop = asyncio.Event()

        names = [f"s{number}" for number in range(4)]
        acknowledged = dict.fromkeys(names, 0)

        async def count(name: str) -> None:
            async with client.socket(f"{machine}/{name}") as socket:
                while not stop.is_set():
                    assert (await socket.event("increment"))["outcome"] == "accepted"
                    acknowledged[name] += 1

        async def all_acknowledged(more: int) -> None:
            """Waits until each session has taken so many more events."""
            wanted = {name: number + more for name, number in acknowledged.items()}
            await until(lambda: all(acknowledged[name] >= wanted[name] for name in names))

        counting = [asyncio.create_task(count(name)) for name in names]
        for round_ in range(6):
            await all_acknowledged(20)
            living = await until(lambda: len(pids := client.worker_pids()) == 2 and pids)
            os.kill(living[round_ % 2], signal.SIGKILL)
        await all_acknowledged(1)
        stop.set()
        await asyncio.gather(*counting)
        for name, count_ in acknowledged.items():
            frame = (await client.http.get(f"/{machine}/{name}")).json()
            assert frame["snapshot"]["context"]["count"] == count_ == frame["seq"] - 1
        assert client.hub.pool.restarts == 6


async def test_timers_and_promises_survive_a_worker(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1) as client:
        machine = await client.deploy(
            'import { createMachine, fromPromise } from "xstate"; export default createMachine({ '
            'initial: "a", states: { a: { invoke: { src: fromPromise(async () => { await new '
            'Promise((done) => setTimeout(done, 800)); return 1; }), onDone: "b" } }, b: { after: '
            '{ 100: "c" } }, c: {} } });'
        )
        async with client.socket(f"{machine}/s") as socket:
            await socket.until("snapshot")
            os.kill(client.worker_pids()[0], signal.SIGKILL)
            assert (await socket.until("update"))["snapshot"]["value"] == "b"
            assert (await socket.until("update"))["snapshot"]["value"] == "c"


async def test_a_silent_worker_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("machinehub.workers.pool.SILENCE_S", 1.0)
    async with running_hub(tmp_path, workers=1) as client:
        machine = await client.deploy(COUNTER)
        async with client.socket(f"{machine}/s") as socket:
            await socket.event("increment")
            zombie = client.worker_pids()[0]
            os.kill(zombie, signal.SIGSTOP)
            assert (await socket.event("increment"))["seq"] == 3
            assert zombie not in client.worker_pids()


async def test_an_idle_session_leaves_its_worker_and_comes_back(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1) as client:
        machine = await client.deploy(COUNTER)
        async with client.socket(f"{machine}/s") as socket:
            for _ in range(20):
                await socket.event("increment")
            await client.put_to_sleep(machine, "s")
            session = client.find(machine, "s")
            assert session is not None
            assert session.checkpoint is not None
            await socket.settle()
            assert client.place(machine, "s").stage is Stage.OFF
            assert (await socket.event("increment"))["seq"] == 22
            assert socket.snapshot["context"] == {"count": 21}


async def test_a_forge_that_dies_fails_its_build_and_is_replaced(tmp_path: Path) -> None:
    async with running_hub(tmp_path, workers=1) as client:
        forge = client.hub.pool._forge
        assert forge is not None
        assert forge.process is not None
        building = asyncio.create_task(
            client.http.post(
                "/api/v1/deployments",
                json={"name": "a", "entry": "a.ts", "files": {"a.ts": "for (;;);"}},
            )
        )
        builds: Any = client.hub.pool.builds
        await until(lambda: builds._answer is not None)
        os.kill(forge.process.pid, signal.SIGKILL)
        assert (await building).json()["code"] == "build_crashed"
        await client.deploy(COUNTER)


# --- hubs as processes of their own


async def test_sigterm_says_goodbye(tmp_path: Path) -> None:
    from websockets.asyncio.client import connect

    async with hub_process(tmp_path) as hub:
        url = await deploy(hub.url)
        async with (
            connect(url.replace("http", "ws", 1) + "/s") as socket,
            httpx.AsyncClient() as http,
        ):
            await socket.recv()
            async with http.stream("GET", url + "/s", headers={"Accept": "text/event-stream"}):
                children = hub.children()
                assert children
                hub.process.send_signal(signal.SIGTERM)
                with pytest.raises(ConnectionClosed) as closed:
                    while True:
                        await socket.recv()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1001
                await asyncio.wait_for(hub.process.wait(), 60)
        assert hub.process.returncode == 0
        assert not any(alive(child) for child in children)


async def test_a_killed_hub_leaves_no_workers_and_starts_again(tmp_path: Path) -> None:
    async with hub_process(tmp_path) as hub:
        url = await deploy(hub.url)
        children = hub.children()
        hub.process.kill()
        await hub.process.communicate()
        await until(lambda: not any(alive(child) for child in children))
    async with hub_process(tmp_path) as hub, httpx.AsyncClient() as http:
        machine = url.rsplit("/", 1)[1]
        assert (await http.get(f"{hub.url}/{machine}/s")).json()["snapshot"]["context"] == {
            "count": 0
        }


async def test_hubs_that_must_not_start(tmp_path: Path) -> None:
    async with hub_process(tmp_path / "a", "--host", "0.0.0.0", wait=False) as hub:
        assert "refusing to listen on 0.0.0.0 without a token" in (await hub.output()).replace(
            "\n", " "
        )
        assert hub.process.returncode == 1
    async with (
        hub_process(tmp_path / "b") as first,
        hub_process(tmp_path / "c", wait=False, port=int(first.url.rsplit(":", 1)[1])) as second,
    ):
        assert "cannot listen on" in await second.output()
        assert second.process.returncode == 1


async def test_a_damaged_cache_is_built_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    for number, path in enumerate(sorted(CACHE.glob("*.cwasm"))):
        content = path.read_bytes()
        if path.name.startswith("engine"):  # esbuild's takes too long to build again in a test
            content = (
                content[: len(content) // 2]
                if number % 2
                else content[:5000] + b"\0" * 64 + content[5064:]
            )
        (cache / path.name).write_bytes(content)
    async with hub_process(tmp_path / "data", MACHINEHUB_CACHE=str(cache)) as hub:
        assert (await deploy(hub.url)).startswith(hub.url)
