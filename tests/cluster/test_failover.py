"""Nodes as processes, which are killed, stopped and cut off; Postgres and NATS go away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from tests.cluster.clusters import Nats, nats_server
from tests.databases import new_database
from tests.processes import Postgres, Process, deploy, hub_process
from tests.protocols.sky.replicas import config_of, replica
from tests.support import COUNTER, Socket, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("failover")


@contextlib.asynccontextmanager
async def cluster(
    folder: Path, database: str, nats: Nats, count: int = 3, **environment: Any
) -> AsyncIterator[list[Process]]:
    async with contextlib.AsyncExitStack() as stack:
        nodes: list[Process] = []
        for number in range(count):
            log = stack.enter_context((folder / f"node{number}.log").open("wb"))
            nodes.append(
                await stack.enter_async_context(
                    hub_process(
                        folder / str(number),
                        log=log,
                        MACHINEHUB_DATABASE_URL=database,
                        MACHINEHUB_NATS_URL=nats.url,
                        MACHINEHUB_WORKERS="1",
                        **environment,
                    )
                )
            )
        yield nodes


class Tapper:
    """A client that presses a counter, sends again what was not acknowledged, and comes back,
    to another node if need be. It keeps what it was told.
    """

    def __init__(self, nodes: list[str], path: str, name: str) -> None:
        self.nodes = nodes
        self.path = path
        self.name = name
        self.acknowledged: dict[str, int] = {}
        self.longest_s = 0.0
        self.seq = 0
        self.stop = False

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        sent = at = 0
        pending: str | None = None
        while not self.stop or pending is not None:
            url = self.nodes[at % len(self.nodes)].replace("http", "ws", 1) + "/" + self.path
            with contextlib.suppress(OSError, TimeoutError, ConnectionClosed, InvalidHandshake):
                async with connect(
                    url,
                    subprotocols=[Subprotocol("machinehub.v1")],
                    open_timeout=1,
                    close_timeout=0.1,
                ) as connection:
                    socket = Socket(connection)
                    while not self.stop or pending is not None:
                        if pending is None:
                            sent += 1
                            pending, began_s = f"{self.name}-{sent}", loop.time()
                        ack = await asyncio.wait_for(socket.event("increment", event_id=pending), 5)
                        if ack["outcome"] == "rejected":
                            assert ack["error"]["code"] == "unavailable", ack
                            await asyncio.sleep(0.05)
                            continue
                        self.acknowledged[pending] = ack["seq"]
                        self.longest_s = max(self.longest_s, loop.time() - began_s)
                        pending = None
                        await asyncio.sleep(0.01)
            at += 1
            await asyncio.sleep(0.05)


async def check(url: str, machine: str, session: str, tappers: list[Tapper]) -> None:
    """Every acknowledged event is in the journal once, at the seq that was told; the journal has no
    gap; the state is what it comes to.
    """
    entries: list[dict[str, Any]] = []
    async with httpx.AsyncClient(base_url=url, timeout=20) as http:
        api = f"/api/v1/machines/{machine}/sessions/{session}"
        after = ""
        while True:
            page = (await http.get(f"{api}/journal?limit=100{after}")).json()
            entries += page["data"]
            if page["next"] is None:
                break
            after = f"&cursor={page['next']}"
        snapshot = (await http.get(f"/{machine}/{session}")).json()
        replay = (await http.post(f"{api}/replay")).json()
    applied = [entry for entry in entries if entry["outcome"] == "accepted"]
    assert [entry["seq"] for entry in applied] == list(range(1, len(applied) + 1))
    places = {entry["id"]: entry["seq"] for entry in applied if entry.get("id")}
    assert len(places) == len(applied) - 1
    for tapper in tappers:
        told = tapper.acknowledged
        assert {name: places.get(name) for name in told} == told
        assert list(told.values()) == sorted(told.values())
    assert snapshot["snapshot"]["context"]["count"] == len(applied) - 1
    assert replay["verified"]


async def owner_of(nodes: list[Process], machine: str, session: str) -> Process:
    async with httpx.AsyncClient(timeout=5) as http:

        async def has(node: Process) -> bool:
            text = (await http.get(node.url + "/metrics")).text
            return (
                f'machinehub_busiest_session_turns{{machine="{machine}",session="{session}"}}'
                in text
            )

        async def find() -> Process | None:
            for node in nodes:
                if await has(node):
                    return node
            return None

        found: Process = await until(find)
        return found


async def begin(
    nodes: list[Process], machine: str, session: str, count: int = 6
) -> tuple[list[Tapper], list[asyncio.Task[None]]]:
    urls = [node.url for node in nodes]
    tappers = [
        Tapper(urls[number % len(urls) :] + urls, f"{machine}/{session}", f"t{number}")
        for number in range(count)
    ]
    running = [asyncio.ensure_future(tapper.run()) for tapper in tappers]
    await until(lambda: all(len(tapper.acknowledged) > 5 for tapper in tappers))
    return tappers, running


async def go_on(tappers: list[Tapper], more: int = 10) -> None:
    """All of them are acknowledged more."""
    before = [len(tapper.acknowledged) for tapper in tappers]
    await until(
        lambda: all(
            len(tapper.acknowledged) > had + more
            for tapper, had in zip(tappers, before, strict=True)
        )
    )


async def end(tappers: list[Tapper], running: list[asyncio.Task[None]]) -> None:
    for tapper in tappers:
        tapper.stop = True
    await asyncio.gather(*running)


async def test_the_node_that_has_a_session_is_killed(postgres: str, tmp_path: Path) -> None:
    database = await new_database(postgres)
    async with nats_server() as nats, cluster(tmp_path, database, nats) as nodes:
        machine = (await deploy(nodes[0].url, COUNTER)).rsplit("/", 1)[1]
        tappers, running = await begin(nodes, machine, "s")
        for _ in range(2):
            living = [node for node in nodes if node.process.returncode is None]
            victim = await owner_of(living, machine, "s")
            victim.process.kill()
            await victim.process.wait()
            await go_on(tappers)
        await end(tappers, running)
        living = [node for node in nodes if node.process.returncode is None]
        await check(living[0].url, machine, "s", tappers)


async def test_a_stopped_node_that_goes_on_is_fenced(postgres: str, tmp_path: Path) -> None:
    database = await new_database(postgres)
    async with nats_server() as nats, cluster(tmp_path, database, nats) as nodes:
        machine = (await deploy(nodes[0].url, COUNTER)).rsplit("/", 1)[1]
        tappers, running = await begin(nodes, machine, "s")
        victim = await owner_of(nodes, machine, "s")
        os.kill(victim.process.pid, signal.SIGSTOP)
        await go_on(tappers)
        os.kill(victim.process.pid, signal.SIGCONT)
        assert await asyncio.wait_for(victim.process.wait(), 30) != 0  # it ends itself
        await go_on(tappers)
        await end(tappers, running)
        living = [node for node in nodes if node is not victim]
        await check(living[0].url, machine, "s", tappers)


async def test_postgres_goes_away_and_comes_back(tmp_path: Path) -> None:
    postgres = Postgres(tmp_path)
    try:
        async with nats_server() as nats, cluster(tmp_path, postgres.url, nats) as nodes:
            machine = (await deploy(nodes[0].url, COUNTER)).rsplit("/", 1)[1]
            tappers, running = await begin(nodes, machine, "s")
            postgres.kill()
            async with httpx.AsyncClient(timeout=20) as http:

                async def refuses() -> bool:
                    answer = await http.post(
                        f"{nodes[0].url}/{machine}/s", json={"type": "increment"}
                    )
                    return answer.status_code == 503

                await until(refuses)
            postgres.start()
            await go_on(tappers)
            await end(tappers, running)
            assert [node.process.returncode for node in nodes] == [None] * 3
            await check(nodes[0].url, machine, "s", tappers)
    finally:
        postgres.stop()


async def test_nats_goes_away_and_comes_back_empty(postgres: str, tmp_path: Path) -> None:
    database = await new_database(postgres)
    async with nats_server() as nats, cluster(tmp_path, database, nats) as nodes:
        machine = (await deploy(nodes[0].url, COUNTER)).rsplit("/", 1)[1]
        tappers, running = await begin(nodes, machine, "s")
        victim = await owner_of(nodes, machine, "s")
        at_home = Tapper([victim.url], f"{machine}/s", "home")
        running.append(asyncio.ensure_future(at_home.run()))
        await until(lambda: at_home.acknowledged)
        await nats.kill()
        await go_on([at_home], 20)  # those on the owner's own edge go on
        await nats.start()
        await go_on([*tappers, at_home])
        await end([*tappers, at_home], running)
        await check(nodes[0].url, machine, "s", [*tappers, at_home])


async def test_a_rolling_restart_loses_nothing(postgres: str, tmp_path: Path) -> None:
    database = await new_database(postgres)
    async with nats_server() as nats, contextlib.AsyncExitStack() as stack:
        nodes = await stack.enter_async_context(cluster(tmp_path, database, nats))
        machine = (await deploy(nodes[0].url, COUNTER)).rsplit("/", 1)[1]
        tappers, running = await begin(nodes, machine, "s")
        for number, node in enumerate(list(nodes)):
            node.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(node.process.wait(), 30) == 0
            again = await stack.enter_async_context(
                hub_process(
                    tmp_path / f"again{number}",
                    port=int(node.url.rsplit(":", 1)[1]),
                    MACHINEHUB_DATABASE_URL=database,
                    MACHINEHUB_NATS_URL=nats.url,
                    MACHINEHUB_WORKERS="1",
                )
            )
            nodes[number] = again
            await go_on(tappers)
        await end(tappers, running)
        await check(nodes[0].url, machine, "s", tappers)


async def test_statelys_clients_survive_the_owner(postgres: str, tmp_path: Path) -> None:
    """A replica on each node: what was sent while their session moved reaches all of them once."""
    database = await new_database(postgres)
    async with nats_server() as nats, cluster(tmp_path, database, nats) as nodes:
        config = await config_of(await deploy(nodes[0].url, COUNTER), tmp_path)
        machine = config.name.split("-")[0]
        async with contextlib.AsyncExitStack() as stack:
            clients = {
                node: await stack.enter_async_context(
                    replica(config, int(node.url.rpartition(":")[2]), "s")
                )
                for node in nodes
            }
            for number, each in enumerate(clients.values(), 1):
                await each.send("increment")
                for other in clients.values():
                    await other.until_state(context={"count": number})
            victim = await owner_of(nodes, machine, "s")
            victim.process.kill()
            await victim.process.wait()
            living = [each for node, each in clients.items() if node is not victim]
            for number, each in enumerate(living, 4):
                await each.send("increment")
                for other in living:
                    await other.until_state(context={"count": number})
            for each in living:
                assert len([said for said in each.said if "started" in said]) == 1
