"""Several hubs on one Postgres and one NATS: what it costs that a session is elsewhere, and how
long nobody has it when its node is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake
from websockets.typing import Subprotocol

from bench.hub import BenchHub
from bench.processes import cpu_s
from machinehub.cluster.placing import place
from machinehub.ids import Digest, EventId, MachineId, NodeId, Seq, SessionId, SessionKey
from machinehub.model import (
    CheckpointWrite,
    Entry,
    Kind,
    Release,
    Retention,
    SavedCheckpoint,
    SessionRecord,
    TurnWrite,
)
from machinehub.settings import normalise_database_url
from machinehub.store.database import Database
from machinehub.store.engine import open_engine
from machinehub.store.nodes import NodeRecord, NodeStore, fence_of
from machinehub.store.schema import migrate
from machinehub.store.sessions import SessionStore
from tests.cluster.clusters import nats_server
from tests.databases import embedded_server, new_database
from tests.support import Socket

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS: Final = 4
SESSIONS: Final = 100
Rows = list[tuple[str, str, str]]


def cluster(data: str, measure: Callable[..., dict[str, Any]]) -> Rows:
    server = embedded_server(Path(data))
    try:
        return asyncio.run(_measure(server, data, measure))
    finally:
        server.cleanup()


async def _measure(server: Any, data: str, measure: Callable[..., dict[str, Any]]) -> Rows:
    async with nats_server() as nats:
        database = await new_database(server.get_uri())
        shared = {"MACHINEHUB_DATABASE_URL": database, "MACHINEHUB_NATS_URL": nats.url}
        alone = {"MACHINEHUB_DATABASE_URL": await new_database(server.get_uri())}
        rows = await asyncio.to_thread(_local, data, measure, alone, shared, server)
        rows += await asyncio.to_thread(_elsewhere, data, measure, shared)
        rows += await _claims(await new_database(server.get_uri()))
        rows += await _rows(server)
        rows += await _failover(data, await new_database(server.get_uri()), nats.url)
        return rows


def _local(
    data: str,
    measure: Callable[..., Any],
    alone: dict[str, str],
    shared: dict[str, str],
    server: Any,
) -> Rows:
    """One node, in turns with a hub of its own."""
    found: dict[str, list[dict[str, Any]]] = {"alone": [], "node": []}
    database_us: list[float] = []
    with (
        BenchHub(f"{data}/alone", command=(), **alone) as one,
        BenchHub(f"{data}/node", command=(), **shared) as two,
    ):
        machines = {"alone": one.deploy()[2], "node": two.deploy()[2]}
        for number in range(ROUNDS):
            order = [("alone", one), ("node", two)]
            for name, hub in order if number % 2 else order[::-1]:
                before = sum(cpu_s(server.get_pid()).values())
                ran = measure(
                    "events", hub, machines[name], sessions=SESSIONS, clients=1, seconds=3
                )
                spent = sum(cpu_s(server.get_pid()).values()) - before
                found[name].append(ran)
                if name == "node":
                    database_us.append(spent / (ran["events_per_s"] * 3) * 1e6)
    own, node = (median(map(_us, found[name])) for name in ("alone", "node"))
    return [
        ("an event of 100 local sessions, a hub of its own on Postgres: CPU", f"{own:.0f} us", ""),
        ("the same, one node with NATS", f"{node:.0f} us", ""),
        ("against each other", f"{node / own:.2f}", "1.05"),
        ("CPU of Postgres beside it, per event", f"{median(database_us):.0f} us", "24 us"),
    ]


def _elsewhere(data: str, measure: Callable[..., Any], shared: dict[str, str]) -> Rows:
    with (
        BenchHub(f"{data}/a", command=(), **shared) as one,
        BenchHub(f"{data}/b", command=(), **shared) as two,
    ):
        machine = one.deploy()[2]
        nodes: dict[NodeId, int] = {}
        while len(nodes) < 2:
            listed = httpx.get(f"{one.url}/api/v1/nodes").json()["data"]
            nodes = {NodeId(each["id"]): each["capacity"] for each in listed}
        (me,) = (NodeId(each["id"]) for each in listed if each["answers"])
        here: list[str] = []
        there: list[str] = []
        number = 0
        while len(here) < SESSIONS or len(there) < SESSIONS:
            name = f"s{number}"
            number += 1
            mine = place(nodes, MachineId(machine), SessionId(name)) == me
            (here if mine else there).append(name)
        both: dict[str, Any] = {"pids": [two.pid]}
        found: dict[str, list[dict[str, Any]]] = {"here": [], "there": [], "one": [], "two": []}
        for _ in range(ROUNDS):
            for name, names in (("here", here), ("there", there)):
                found[name].append(
                    measure(
                        "events",
                        one,
                        machine,
                        sessions=SESSIONS,
                        clients=1,
                        seconds=3,
                        names=names[:SESSIONS],
                        **both,
                    )
                )
            for name, ports in (("one", []), ("two", [two.port])):
                found[name].append(
                    measure(
                        "events",
                        one,
                        machine,
                        sessions=1,
                        clients=100,
                        seconds=3,
                        names=here[:1],
                        ports=ports,
                        **both,
                    )
                )
    local, remote = (median(map(_us, found[name])) for name in ("here", "there"))
    fan, spread = (
        median(each["deliveries_per_cpu_s"] for each in found[name]) for name in ("one", "two")
    )
    p50 = [median(each["p50_ms"] for each in found[name]) for name in ("here", "there")]
    return [
        (
            "an event of 100 sessions, clients on the node that has them: CPU of both",
            f"{local:.0f} us",
            "",
        ),
        ("clients on the other node", f"{remote:.0f} us", ""),
        ("against each other", f"{remote / local:.2f}", "1.7"),
        ("p50 of those, under full load", f"{p50[0]:.1f} and {p50[1]:.1f} ms", ""),
        ("1 session x 100 clients on its node: deliveries per CPU-second", f"{fan:,.0f}", ""),
        ("50 of them on the other node", f"{spread:,.0f}", ""),
        ("against each other", f"{spread / fan:.2f}", "0.9"),
    ]


async def _claims(url: str) -> Rows:
    """A sleeping session is loaded, with and without being claimed."""
    engine = open_engine(normalise_database_url(url))
    await migrate(engine)
    database = Database(engine)
    plain, node = SessionStore(database, Retention()), NodeId("n" * 12)
    claiming = SessionStore(database, Retention(), node=node)
    record = NodeRecord(id=node, name="", lock=1, capacity=1, software="", started_at_ms=0)
    await NodeStore(database).join(record)
    for number in range(1, 201):
        session = SessionRecord(
            key=SessionKey(number), machine_id=MachineId("m"), session_id=SessionId(str(number)),
            version=1, digest=Digest("d"), hears_presence=False, created_at_ms=0,
        )  # fmt: skip
        entry = Entry(Seq(1), 0, Kind.START, b"{}", 0, EventId("e"), changed=True)
        saved = SavedCheckpoint(
            seq=Seq(1), data=b"x" * 5000, snapshot=b"{}", finished=False, timers={}, at_ms=0
        )
        key = SessionKey(number)
        await plain.commit([TurnWrite(key=key, entry=entry, created=session)])
        await plain.commit([CheckpointWrite(key, saved)])
    times: dict[str, list[float]] = {"plain": [], "claiming": []}
    database.fence_by(fence_of(node, lambda: None))
    for number in range(1, 201):
        for name, store in (("plain", plain), ("claiming", claiming)):
            began = time.perf_counter()
            stored = await store.load(MachineId("m"), SessionId(str(number)))
            times[name].append((time.perf_counter() - began) * 1000)
        assert stored is not None
        await claiming.commit([Release(SessionKey(number), stored.claim)])
    await engine.dispose()
    more = median(times["claiming"]) - median(times["plain"])
    return [("claim of a sleeping session, added to its load, p50", f"{more:.2f} ms", "1 ms")]


async def _rows(server: Any) -> Rows:
    """Journal rows in batches of 100: one statement for each, or one for all (`unnest`)."""
    connection = await asyncpg.connect(await new_database(server.get_uri()))
    await connection.execute(
        "CREATE TABLE j (key bigint, seq bigint, attempt int, kind varchar(32), input bytea,"
        " now_ms bigint, event_id bytea, changed bool, PRIMARY KEY (key, seq, attempt))"
    )
    await connection.execute("CREATE UNIQUE INDEX ON j (key, event_id)")
    columns = [
        "bigint[]",
        "bigint[]",
        "int[]",
        "text[]",
        "bytea[]",
        "bigint[]",
        "bytea[]",
        "bool[]",
    ]
    unnest = ", ".join(f"${number}::{kind}" for number, kind in enumerate(columns, 1))
    one = "INSERT INTO j VALUES (" + ", ".join(f"${number}" for number in range(1, 9)) + ")"
    found: Rows = []
    seq = 0
    for name in ("one statement a row", "one `unnest` statement a batch"):
        before, began, count = sum(cpu_s(server.get_pid()).values()), time.perf_counter(), 0
        while time.perf_counter() - began < 4:
            seq += 1
            rows = [
                (key, seq, 0, "event", b"x" * 150, 0, b"event-%d" % seq, True) for key in range(100)
            ]
            async with connection.transaction():
                if name.startswith("one statement"):
                    await connection.executemany(one, rows)
                else:
                    await connection.execute(
                        f"INSERT INTO j SELECT * FROM unnest({unnest})",
                        *map(list, zip(*rows, strict=True)),
                    )
            count += len(rows)
        elapsed = time.perf_counter() - began
        spent = sum(cpu_s(server.get_pid()).values()) - before
        found.append(
            (
                f"journal rows, {name}",
                f"{count / elapsed:,.0f} a second, {spent / count * 1e6:.0f} us of Postgres a row",
                "24 us",
            )
        )
    await connection.close()
    return found


async def _failover(data: str, database: str, nats: str) -> Rows:
    """100 sessions with a client each, on three nodes, one of which is killed."""
    shared = {
        "MACHINEHUB_DATABASE_URL": database,
        "MACHINEHUB_NATS_URL": nats,
        "MACHINEHUB_WORKERS": "1",
    }
    waits: list[float] = []
    with contextlib.ExitStack() as stack:
        hubs = []
        for number in range(3):
            hub = BenchHub(f"{data}/f{number}", command=(), **shared)
            hubs.append(await asyncio.to_thread(stack.enter_context, hub))
        machine = (await asyncio.to_thread(hubs[0].deploy))[2]
        killed_at: list[float] = []
        stop = asyncio.Event()

        async def client(number: int) -> None:
            at, sent, waited = number, 0, False
            while not stop.is_set():
                url = f"ws://127.0.0.1:{hubs[at % 3].port}/{machine}/f{number}"
                with contextlib.suppress(OSError, TimeoutError, ConnectionClosed, InvalidHandshake):
                    async with connect(
                        url, subprotocols=[Subprotocol("machinehub.v1")], open_timeout=2
                    ) as connection:
                        socket = Socket(connection)
                        while not stop.is_set():
                            was_killed = bool(killed_at)
                            sent += 1
                            await socket.event("increment", event_id=f"{number}-{sent}")
                            if was_killed and not waited:
                                waited = True
                                waits.append(time.perf_counter() - killed_at[0])
                            await asyncio.sleep(0.1)
                at += 1
                await asyncio.sleep(0.05)

        running = [asyncio.ensure_future(client(number)) for number in range(SESSIONS)]
        await asyncio.sleep(4)
        os.kill(hubs[1].pid, signal.SIGKILL)
        killed_at.append(time.perf_counter())
        async with asyncio.timeout(60):
            while len(waits) < SESSIONS:
                await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*running)
    # Two thirds had nothing to do with the node that was killed.
    hit = sorted(each for each in waits if each > 0.3)
    assert hit
    return [
        (
            f"kill -9 of one of three nodes, {len(hit)} of 100 sessions hit: silence, p50",
            f"{median(hit):.1f} s",
            "2 s",
        ),
        ("p99", f"{hit[int(len(hit) * 0.99)]:.1f} s", "4 s"),
    ]


def _us(ran: dict[str, Any]) -> float:
    assert not ran["rejected"]
    return float(ran["hub_us"] + ran["workers_us"])
