"""Real processes, killed at random under load: workers, hubs, databases.

Nothing that was acknowledged is lost, nothing is done twice.

`CHAOS_KILLS` says how many (8 for each database in `make test`, 200 in `make chaos`), `CHAOS_SEED`
in which order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from tests.processes import Postgres, deploy, start_hub, until_ready
from tests.support import free_port

if TYPE_CHECKING:
    from pathlib import Path

    from tests.processes import Process

KILLS = int(os.environ.get("CHAOS_KILLS", "8"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
SESSIONS = 5
MACHINE = """
import { assign, createMachine, raise } from "xstate";

// Every `arm` is followed, 200 ms later, by one `fired`.
export default createMachine({
  context: { count: 0, armed: 0, fired: 0 },
  on: {
    increment: { actions: assign({ count: ({ context }) => context.count + 1 }) },
    arm: { actions: [assign({ armed: ({ context }) => context.armed + 1 }), raise({ type: "fired" }, { delay: 200, id: ({ context }) => `t${context.armed}` })] },
    fired: { actions: assign({ fired: ({ context }) => context.fired + 1 }) },
    fail: { actions: () => { throw new Error("no"); } },
  },
});
"""


@dataclass
class Counter:
    """A client that sends until it is told to stop, each event until it knows what became of it."""

    url: str
    session: str
    name: str
    over_http: bool
    chance: random.Random
    stop: asyncio.Event
    sent: dict[str, str] = field(default_factory=dict)
    acks: dict[str, tuple[int, str]] = field(default_factory=dict)
    reconnects: int = 0

    def next_event(self) -> tuple[str, str]:
        event_id = f"{self.name}-{len(self.sent) + 1}"
        self.sent[event_id] = event = self.chance.choices(["increment", "arm", "fail"], [8, 2, 1])[
            0
        ]
        return event_id, event

    async def run(self) -> None:
        if self.over_http:
            async with httpx.AsyncClient(timeout=8) as http:
                while not self.stop.is_set():
                    await self._post(http, *self.next_event())
        else:
            waiting: tuple[str, str] | None = None
            while not self.stop.is_set() or waiting:
                with contextlib.suppress(OSError, WebSocketException, TimeoutError):
                    async with connect(
                        f"{self.url.replace('http', 'ws', 1)}/{self.session}",
                        open_timeout=5,
                        ping_interval=None,
                    ) as socket:
                        while not self.stop.is_set() or waiting:
                            waiting = waiting or self.next_event()
                            await socket.send(
                                json.dumps(
                                    {
                                        "type": "event",
                                        "id": waiting[0],
                                        "event": {"type": waiting[1]},
                                    }
                                )
                            )
                            if await self._ack(socket, waiting[0]):
                                waiting = None
                self.reconnects += 1
                await asyncio.sleep(0.05)

    async def _ack(self, socket: Any, event_id: str) -> bool:
        """Whether the event is settled; unavailable hubs are asked again."""
        while True:
            frame = json.loads(await asyncio.wait_for(socket.recv(), 8))
            if frame["type"] == "ack" and frame["id"] == event_id:
                if frame.get("error", {}).get("code") == "unavailable":
                    await asyncio.sleep(0.1)
                    return False
                self._settle(event_id, frame["seq"], frame["outcome"])
                return True

    async def _post(self, http: httpx.AsyncClient, event_id: str, event: str) -> None:
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = await http.post(
                    f"{self.url}/{self.session}",
                    json={"type": event},
                    headers={"Idempotency-Key": event_id},
                )
                if answer.status_code in (200, 422):
                    self._settle(
                        event_id,
                        answer.json().get("seq", 0),
                        "accepted" if answer.status_code == 200 else "rejected",
                    )
                    return
                assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.1)

    def _settle(self, event_id: str, seq: int, outcome: str) -> None:
        self.acks[event_id] = (seq, outcome)
        assert outcome == ("rejected" if self.sent[event_id] == "fail" else "accepted")


class Chaos:
    def __init__(self, folder: Path, postgres: Postgres | None, **environment: Any) -> None:
        self.environment: dict[str, Any] = environment
        self.chance = random.Random(SEED)
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.postgres = postgres
        self.port = free_port()
        self.killed = {"worker": 0, "hub": 0, "database": 0}
        self.hub: Process | None = None

    async def start(self) -> None:
        environment = dict(self.environment)
        if self.postgres:
            environment["MACHINEHUB_DATABASE_URL"] = self.postgres.url
        with (self.folder / "hub.log").open("ab") as log:
            self.hub = await start_hub(
                self.folder,
                port=self.port,
                log=log,
                MACHINEHUB_WORKERS="2",
                **environment,
            )

    async def kill_hub(self) -> None:
        assert self.hub is not None
        with contextlib.suppress(ProcessLookupError):
            self.hub.process.kill()
        await self.hub.process.wait()

    async def kill_something(self) -> None:
        assert self.hub is not None
        victim = self.chance.choices(
            ["worker", "hub", "database"], [5, 2, 2 if self.postgres else 0]
        )[0]
        self.killed[victim] += 1
        if victim == "worker":
            children = self.hub.children()
            if children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.chance.choice(children), signal.SIGKILL)
        elif victim == "hub":
            await self.kill_hub()
            await self.start()
        elif self.postgres is not None:
            await asyncio.to_thread(self.postgres.kill)
            await asyncio.sleep(self.chance.random())
            await asyncio.to_thread(self.postgres.start)
        if (
            self.hub.process.returncode is not None
        ):  # it had been started while its database was away
            await self.start()


async def chaos(folder: Path, postgres: Postgres | None) -> None:
    world = Chaos(folder, postgres)
    await world.start()
    try:
        assert world.hub is not None
        await until_ready(world.hub.url)
        url = await deploy(world.hub.url, MACHINE)
        stop = asyncio.Event()
        clients = [
            Counter(
                url,
                f"s{number % SESSIONS}",
                f"c{number}",
                number % 4 == 0,
                random.Random(SEED + number),
                stop,
            )
            for number in range(SESSIONS * 2)
        ]
        running = [asyncio.create_task(client.run()) for client in clients]
        for _ in range(KILLS):
            await asyncio.sleep(world.chance.random() * 0.4)
            await world.kill_something()
            if world.chance.random() < 0.5:
                await until_alive(world)
        stop.set()
        await until_alive(world)
        await asyncio.wait_for(asyncio.gather(*running), 60)
        await check(url, clients)
        await world.kill_hub()
        await world.start()
        await until_alive(world)
        await check(url, clients)
        print(
            f"\n{world.killed}, {sum(len(client.sent) for client in clients)} events, "
            f"{sum(client.reconnects for client in clients)} reconnects"
        )
    finally:
        await world.kill_hub()


async def until_alive(world: Chaos) -> None:
    while True:
        assert world.hub is not None
        if world.hub.process.returncode is not None:
            await world.start()
        with contextlib.suppress(TimeoutError):
            await until_ready(world.hub.url, within_s=5)
            return


async def check(url: str, clients: list[Counter]) -> None:
    """Per session: the counter is the number of distinct events, each is in the journal once, and
    the journal says what the memory says.
    """
    base, machine = url.rsplit("/", 1)
    async with httpx.AsyncClient(timeout=60) as http:
        for session in sorted({client.session for client in clients}):
            events = {
                event_id: event
                for client in clients
                if client.session == session
                for event_id, event in client.sent.items()
            }
            wanted = {
                "count": list(events.values()).count("increment"),
                "armed": list(events.values()).count("arm"),
            }
            wanted["fired"] = wanted["armed"]
            deadline = time.monotonic() + 20
            while (
                found := (await http.get(f"{url}/{session}")).json()["snapshot"]["context"]
            ) != wanted and time.monotonic() < deadline:
                assert found["fired"] <= wanted["fired"], "a timer fired twice"
                await asyncio.sleep(0.2)  # timers may still be on their way
            assert found == wanted
            entries = await journal(
                http, f"{base}/api/v1/machines/{machine}/sessions/{session}/journal"
            )
            ids = [entry["id"] for entry in entries if entry["kind"] == "event"]
            assert sorted(ids) == sorted(events), "an event is in the journal twice, or not at all"
            by_id = {entry["id"]: entry for entry in entries if entry["kind"] == "event"}
            for client in clients:
                for event_id, (seq, outcome) in (
                    client.acks.items() if client.session == session else ()
                ):
                    assert (by_id[event_id]["outcome"], seq or by_id[event_id]["seq"]) == (
                        outcome,
                        by_id[event_id]["seq"],
                    )
            replay = (
                await http.post(f"{base}/api/v1/machines/{machine}/sessions/{session}/replay")
            ).json()
            assert replay["verified"], replay
            assert replay["snapshot"]["context"] == wanted


async def journal(http: httpx.AsyncClient, url: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = (await http.get(f"{url}?limit=500{cursor}")).json()
        entries += page["data"]
        if page["next"] is None:
            return entries
        cursor = f"&cursor={page['next']}"


async def test_sqlite_under_chaos(tmp_path: Path) -> None:
    await chaos(tmp_path, None)


async def test_postgres_under_chaos(tmp_path: Path) -> None:
    postgres = Postgres(tmp_path)
    try:
        await chaos(tmp_path / "hub", postgres)
    finally:
        postgres.stop()
