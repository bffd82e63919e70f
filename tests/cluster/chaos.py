"""`make chaos-cluster`: three nodes under load, while one fault after the other hits them.

Nodes are killed, told to stop and stopped; Postgres and NATS are killed; what a node sends to
either, or hears of it, is held up or cut. In the end every acknowledged event must be in the
journal once, at the seq that its sender was told, and the state must be what the journal comes to.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.cluster.clusters import Nats, nats_server
from tests.cluster.test_failover import Tapper, check
from tests.processes import Postgres, Process, deploy, start_hub, until_ready
from tests.support import COUNTER, free_port, until
from tests.wires import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SESSIONS = 3
TAPPERS = 6


def _signal(node: Process, number: signal.Signals) -> None:
    """Nothing where it has ended by itself, as a node does that was declared dead."""
    with contextlib.suppress(ProcessLookupError):
        node.process.send_signal(number)


class Cluster:
    """Three nodes, each with wires of its own to Postgres and NATS."""

    def __init__(self, folder: Path, postgres: Postgres, nats: Nats, chance: random.Random) -> None:
        self._folder = folder
        self._postgres = postgres
        self._nats = nats
        self._chance = chance
        socket = folder / "pg" / "postgres" / ".s.PGSQL.5432"
        self.wires = [
            {
                "postgres": Wire(lambda: asyncio.open_unix_connection(socket)),
                "nats": Wire(lambda: asyncio.open_connection("127.0.0.1", nats.port)),
            }
            for _ in range(3)
        ]
        self.ports = [free_port() for _ in range(3)]
        self.nodes: list[Process] = []
        self._starts = 0

    async def start(self) -> None:
        for wires in self.wires:
            for wire in wires.values():
                await wire.start()
        for number in range(3):
            self.nodes.append(await self._start(number))
        for node in self.nodes:
            await until_ready(node.url)

    async def _start(self, number: int) -> Process:
        self._starts += 1
        wires = self.wires[number]
        with (self._folder / f"node{number}-{self._starts}.log").open("wb") as log:
            return await start_hub(
                self._folder / str(number),
                port=self.ports[number],
                log=log,
                MACHINEHUB_DATABASE_URL=(
                    f"postgresql://postgres@127.0.0.1:{wires['postgres'].port}/postgres"
                ),
                MACHINEHUB_NATS_URL=f"nats://127.0.0.1:{wires['nats'].port}",
                MACHINEHUB_WORKERS="1",
            )

    async def stop(self) -> None:
        for node in self.nodes:
            _signal(node, signal.SIGKILL)
            await node.process.wait()
        for wires in self.wires:
            for wire in wires.values():
                await wire.stop()

    async def heal(self) -> None:
        """What ended is started again, as an orchestrator does."""
        for wires in self.wires:
            for wire in wires.values():
                wire.mend()
        for number, node in enumerate(self.nodes):
            if node.process.returncode is not None:
                self.nodes[number] = await self._start(number)
        for number, node in enumerate(self.nodes):
            while True:
                try:
                    await until_ready(node.url, within_s=15)
                    break
                except TimeoutError:  # it ended once more: it had been declared dead
                    if node.process.returncode is None:
                        continue
                    node = self.nodes[number] = await self._start(number)

    async def fault(self) -> str:
        """One of many, at some node."""
        chance = self._chance
        number = chance.randrange(3)
        node, wires = self.nodes[number], self.wires[number]
        wire = wires[chance.choice(("postgres", "nats"))]
        pause_s = chance.choice((0.2, 1, 3, 6))
        what = chance.choice(
            (
                "kill",
                "kill",
                "stop",
                "pause",
                "cut",
                "hold up",
                "hold down",
                "flap",
                "postgres",
                "nats",
            )
        )
        match what:
            case "kill":
                _signal(node, signal.SIGKILL)
                await node.process.wait()
                await asyncio.sleep(pause_s / 3)
            case "stop":
                _signal(node, signal.SIGTERM)
                await asyncio.wait_for(node.process.wait(), 60)
            case "pause":
                _signal(node, signal.SIGSTOP)
                await asyncio.sleep(pause_s)
                _signal(node, signal.SIGCONT)
            case "cut":
                wire.cut()
                await asyncio.sleep(pause_s)
            case "hold up" | "hold down":
                wire.hold(what.split()[1])
                await asyncio.sleep(pause_s)
            case "flap":
                for _ in range(5):
                    wire.cut()
                    await asyncio.sleep(chance.random() / 2)
                    wire.mend()
                    await asyncio.sleep(chance.random() / 2)
            case "postgres":
                self._postgres.kill()
                await asyncio.sleep(pause_s / 3)
                await asyncio.to_thread(self._postgres.start)
            case "nats":
                await self._nats.kill()
                await asyncio.sleep(pause_s / 3)
                await self._nats.start()
        return f"{what} at node {number}, {pause_s} s"


@contextlib.asynccontextmanager
async def running(folder: Path, chance: random.Random) -> AsyncIterator[Cluster]:
    folder.chmod(0o755)
    (folder / "pg").mkdir()
    postgres = Postgres(folder / "pg")
    try:
        async with nats_server() as nats:
            cluster = Cluster(folder, postgres, nats, chance)
            try:
                await cluster.start()
                yield cluster
            finally:
                await cluster.stop()
    finally:
        postgres.stop()


def all_go_on(tappers: list[Tapper], before: list[int]) -> bool:
    return all(
        len(tapper.acknowledged) > had + 2 for tapper, had in zip(tappers, before, strict=True)
    )


async def run(folder: Path, *, seed: int, faults: int) -> None:
    """Raises `AssertionError` for what must not be."""
    chance = random.Random(seed)
    async with running(folder, chance) as cluster:
        urls = [node.url for node in cluster.nodes]
        machine = (await deploy(urls[0], COUNTER)).rsplit("/", 1)[1]
        tappers = [
            Tapper(urls[number % 3 :] + urls, f"{machine}/s{number % SESSIONS}", f"t{number}")
            for number in range(TAPPERS)
        ]
        tapping = [asyncio.ensure_future(tapper.run()) for tapper in tappers]
        for number in range(faults):
            before = [len(tapper.acknowledged) for tapper in tappers]
            what = await cluster.fault()
            await cluster.heal()
            await until(partial(all_go_on, tappers, before), within_s=90)
            assert not any(task.done() for task in tapping)
            print(f"{number + 1}/{faults} {what}", flush=True)
        for tapper in tappers:
            tapper.stop = True
        await asyncio.gather(*tapping)
        for number in range(SESSIONS):
            mine = [tapper for tapper in tappers if tapper.path.endswith(f"s{number}")]
            await check(cluster.nodes[0].url, machine, f"s{number}", mine)


if __name__ == "__main__":
    seed_, faults_ = (int(each) for each in sys.argv[1:3])
    with tempfile.TemporaryDirectory(prefix="machinehub-chaos-") as name:
        asyncio.run(run(Path(name), seed=seed_, faults=faults_))
        print(f"seed {seed_}: every acknowledged event is there once")
