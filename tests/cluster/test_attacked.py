"""What an attack on several nodes found: each finding is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest

import machinehub.app
from machinehub.clock import SystemClock
from machinehub.cluster import machines, wire
from machinehub.cluster.links import HEAD
from machinehub.cluster.subscription import PATIENCE_S
from machinehub.errors import Unavailable
from machinehub.ids import MachineId
from machinehub.session.decide.conditions import Condition
from tests.cluster.clusters import Nats, nats_server, node_of, running_cluster
from tests.cluster.test_nodes import session_at
from tests.databases import new_database
from tests.support import COUNTER, Client, problem, running_hub, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("attacked")

SHOWS = """
import { setup, assign } from "xstate";
export const view = ({ snapshot, member }: any) => {
  let x = 0;
  for (let i = 0; i < 300000; i++) x += i;
  return { n: snapshot.context.n, who: member.id };
};
export default setup({}).createMachine({
  context: { n: 0 }, on: { tap: { actions: assign({ n: ({ context }: any) => context.n + 1 }) } },
});
"""
SHOUTS = """
import { setup, emit } from "xstate";
export default setup({}).createMachine({
  context: {}, on: { shout: { actions: emit(({ event }: any) => ({ type: "shouted", n: event.n })) } },
});
"""
LATE = """
import { setup } from "xstate";
export default setup({}).createMachine({
  initial: "on", states: { on: { after: { 1500: "off" } }, off: {} },
});
"""


@contextlib.asynccontextmanager
async def cluster_with_nats(
    folder: Path, postgres: str, **settings: Any
) -> AsyncIterator[tuple[Client, Client, Nats]]:
    database = await new_database(postgres)
    async with (
        nats_server() as nats,
        running_hub(folder / "a", database_url=database, nats_url=nats.url, **settings) as a,
        running_hub(folder / "b", database_url=database, nats_url=nats.url, **settings) as b,
    ):
        await until(lambda: all(len(node_of(each).membership.nodes) == 2 for each in (a, b)))
        yield a, b, nats


async def with_session(a: Client, b: Client, source: str = COUNTER) -> tuple[str, str]:
    """A machine, and a session of it that the first node has."""
    machine = await a.deploy(source)
    session = session_at([a, b], machine, 0)
    await a.http.put(f"/{machine}/{session}", json={})
    assert a.find(machine, session) is not None
    return machine, session


async def test_a_frame_that_cannot_be_spelled_takes_no_other_with_it(
    postgres: str, tmp_path: Path
) -> None:
    async with running_cluster(tmp_path, postgres, 2) as (a, b):
        machine, session = await with_session(a, b)
        async with b.socket(f"{machine}/{session}") as socket:
            await socket.until("snapshot")
            sessions = node_of(b).sessions
            (client,) = sessions.clients
            wrong = Condition(state={"a": 99999999999999999999})
            wait = asyncio.create_task(sessions.wait(client.address, client.visitor, wrong))
            assert (await socket.event("increment"))["outcome"] == "accepted"
            with pytest.raises(OverflowError):
                await wait
        answer = await b.http.post(
            f"/{machine}/{session}/wait",
            json={"condition": {"matches": {"a": 99999999999999999999}}, "timeout_ms": 100},
        )
        problem(answer, 400, "invalid_condition")


async def test_a_wrong_clock_does_not_spread(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ahead(SystemClock):
        def __init__(self) -> None:
            super().__init__(wall_ns=lambda: time.time_ns() + 5 * 3600 * 10**9)

    database = await new_database(postgres)
    async with nats_server() as nats:
        there: dict[str, Any] = {"database_url": database, "nats_url": nats.url}
        with monkeypatch.context() as patched:
            patched.setattr(machinehub.app, "SystemClock", Ahead)
            first = running_hub(tmp_path / "a", **there)
            await first.__aenter__()
        try:
            async with running_hub(tmp_path / "b", **there) as b:
                ahead_ms = b.hub.sessions._clock.now_ms() - time.time() * 1000
                assert ahead_ms < 60_000
        finally:
            await first.__aexit__(None, None, None)


async def test_views_are_shown_before_their_session_moves(postgres: str, tmp_path: Path) -> None:
    async with running_cluster(tmp_path, postgres, 2) as (a, b):
        machine, session = await with_session(a, b, SHOWS)
        path = f"{machine}/{session}"
        async with contextlib.AsyncExitStack() as stack:
            sockets = [await stack.enter_async_context(node.socket(path)) for node in (a, b, a, b)]
            for socket in sockets:
                await socket.until("snapshot")
            for number in range(6):
                for each, socket in enumerate(sockets):
                    event = {"type": "event", "id": f"{each}-{number}", "event": {"type": "tap"}}
                    await socket.send_raw(event)
            draining = asyncio.create_task(node_of(a).drain())
            late = [await stack.enter_async_context(node.socket(path)) for node in (a, b, a, b)]
            await draining
            for socket in [*sockets, *late]:
                while socket.snapshot.get("n") != 24:
                    frame = await socket.receive(30)
                    assert frame["type"] != "error", frame


async def test_a_link_that_breaks_when_a_client_is_let_in(postgres: str, tmp_path: Path) -> None:
    async with running_cluster(tmp_path, postgres, 2) as (a, b):
        machine, session = await with_session(a, b)
        links, remote = node_of(b).links, node_of(b)._remote
        told, armed = remote.told, [True]

        def hear(node: Any, frame: wire.ToEdge) -> None:
            told(node, frame)
            if isinstance(frame, wire.Answer) and armed and remote.clients:
                armed.clear()
                link = links._calling[node]  # a packet of it, with others missing before
                head = HEAD.pack(b"A", node.encode(), link.name, link._expected + 5, False)
                links.receive(head + b"\x90")

        remote.told = hear
        async with b.socket(f"{machine}/{session}") as socket:
            await socket.until("snapshot")
            assert not armed
            assert (await socket.event("increment"))["outcome"] == "accepted"
            await a.http.post(f"/{machine}/{session}", json={"type": "increment"})
            while socket.snapshot["context"]["count"] != 2:
                await socket.receive()


async def test_a_link_that_breaks_repeats_no_emitted_event(postgres: str, tmp_path: Path) -> None:
    async with running_cluster(tmp_path, postgres, 2) as (a, b):
        machine, session = await with_session(a, b, SHOUTS)
        async with b.socket(f"{machine}/{session}") as socket:
            await socket.until("snapshot")
            for number in range(3):
                await socket.event({"type": "shout", "n": number})
            node_of(b).links.give_up(node_of(a).node)
            await socket.event({"type": "shout", "n": 3})
            await socket.settle()
            heard = [each["event"]["n"] for each in socket.seen if each["type"] == "emitted"]
            assert heard == [0, 1, 2, 3]


async def test_a_machine_that_could_not_be_deleted_is_open_again(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machines, "DELETED_S", 0.1)
    async with running_cluster(tmp_path, postgres, 2) as (a, b):
        machine, _ = await with_session(a, b)
        at_b = session_at([a, b], machine, 1)

        async def away(_machine: object) -> None:
            raise Unavailable("unavailable", "the database is away")

        with monkeypatch.context() as patched:
            patched.setattr(a.hub.sessions.deletions._store, "keys_of", away)
            answer = await a.http.delete(f"/api/v1/machines/{machine}")
            assert answer.status_code == 503
        sent = await a.http.post(f"/{machine}/{at_b}", json={"type": "increment"})
        assert sent.status_code == 200
        # A node that deletes a machine may end before it has.
        await node_of(b)._here.do(wire.CloseMachine(MachineId(machine)))

        async def answers() -> bool:
            sent = await b.http.post(f"/{machine}/{at_b}", json={"type": "increment"})
            return sent.status_code == 200

        await until(answers)


async def test_a_machine_made_private_while_nats_is_away(postgres: str, tmp_path: Path) -> None:
    async with cluster_with_nats(tmp_path, postgres, token="mh_own") as (a, b, nats):
        machine, session = await with_session(a, b)
        at_b = session_at([a, b], machine, 1)
        path = f"{machine}/{at_b}"
        async with b.socket(path) as socket:
            await socket.until("snapshot")
            await node_of(b)._machines.look()
            await nats.kill()
            await a.http.patch(f"/api/v1/machines/{machine}", json={"private": True})
            with contextlib.suppress(Exception):
                while True:
                    await socket.receive(30)
            assert socket.connection.close_code == 4010
        assert session


async def test_a_new_token_counts_on_all_nodes(postgres: str, tmp_path: Path) -> None:
    async with running_cluster(tmp_path, postgres, 2, token="mh_own") as (a, b):
        for number in range(3):
            made = await a.http.post(
                "/api/v1/projects/default/tokens", json={"name": f"t{number}", "scopes": ["read"]}
            )
            headers = {"Authorization": f"Bearer {made.json()['token']}"}

            answer = await b.http.get("/api/v1/machines", headers=headers)
            assert answer.status_code == 200


async def test_sessions_that_cannot_be_loaded_keep_nobody_from_theirs(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machinehub.cluster.sweeper.AT_ONCE", 5)
    database = await new_database(postgres)
    async with nats_server() as nats:
        there: dict[str, Any] = {"database_url": database, "nats_url": nats.url}
        async with running_hub(tmp_path / "a", **there) as a:
            machine = await a.deploy(LATE)
            for number in range(12):
                await a.http.put(f"/{machine}/bad{number}", json={})
            await a.http.put(f"/{machine}/good", json={})
        connection = await asyncpg.connect(database.replace("postgresql+asyncpg", "postgresql"))
        try:
            bad = "SELECT key FROM sessions WHERE convert_from(session_id, 'UTF8') LIKE 'bad%'"
            for table in ("journal", "checkpoints"):
                await connection.execute(f"DELETE FROM {table} WHERE key IN ({bad})")
            waits = f"SELECT count(*) FROM timers WHERE NOT key IN ({bad})"
            async with running_hub(tmp_path / "b", **there):

                async def has_fired() -> bool:
                    left = await connection.fetchval(waits)
                    return int(left) == 0

                await until(has_fired)
        finally:
            await connection.close()


async def test_who_waited_long_waits_on_when_the_node_goes(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_cluster(tmp_path, postgres, 2) as (a, b):
        machine, session = await with_session(a, b)
        clock = node_of(b).sessions._clock
        real, later = clock.monotonic_s, [0.0]
        monkeypatch.setattr(clock, "monotonic_s", lambda: real() + later[0])
        waiting = asyncio.create_task(
            b.http.post(
                f"/{machine}/{session}/wait",
                json={"condition": "done", "timeout_ms": 20_000},
            )
        )
        await until(lambda: a.watchers(machine, session))
        later[0] = 2 * PATIENCE_S
        await node_of(a).drain()
        await until(lambda: b.watchers(machine, session))
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError, httpx.HTTPError):
            await waiting


async def test_the_last_node_goes_on_while_it_drains(postgres: str, tmp_path: Path) -> None:
    async with running_cluster(tmp_path, postgres, 1) as (a,):
        machine = await a.deploy(COUNTER)
        await node_of(a).drain()
        answer = await a.http.post(f"/{machine}/s", json={"type": "increment"})
        assert answer.status_code == 200, json.dumps(answer.json())


async def test_a_time_of_a_calendar_is_sent_by_one_node(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And noted once, though all of them look."""
    ahead_ns = (60 - time.time() % 60 - 3) * 10**9  # three seconds to the minute

    class Ahead(SystemClock):
        def __init__(self) -> None:
            super().__init__(wall_ns=lambda: time.time_ns() + int(ahead_ns))

    monkeypatch.setattr(machinehub.app, "SystemClock", Ahead)
    async with running_cluster(tmp_path, postgres, 2) as nodes:
        deployed = await nodes[0].http.post(
            "/api/v1/deployments",
            json={
                "name": "bell",
                "entry": "m.ts",
                "files": {"m.ts": COUNTER},
                "cron": [
                    {"name": "e", "expression": "* * * * *", "session": "s", "event": "increment"}
                ],
                "private": False,
            },
        )
        machine = deployed.json()["machine"]["id"]
        path = f"/api/v1/machines/{machine}/cron"

        async def ran() -> list[Any]:
            (entry,) = (await nodes[1].http.get(path)).json()["data"]
            return list(entry["runs"])

        await until(ran)
        await asyncio.gather(*(node.hub.calendar.look() for node in nodes))
        assert [run["outcome"] for run in await ran()] == ["accepted"]
        answer = await nodes[1].http.get(f"/{machine}/s")
        assert answer.json()["snapshot"]["context"] == {"count": 1}


async def test_clocks_that_are_hours_apart(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is taken for dead, and a timer fires once, wherever its session goes."""

    class Ahead(SystemClock):
        def __init__(self) -> None:
            super().__init__(wall_ns=lambda: time.time_ns() + 5 * 3600 * 10**9)

    database = await new_database(postgres)
    async with nats_server() as nats:
        there: dict[str, Any] = {"database_url": database, "nats_url": nats.url}
        async with running_hub(tmp_path / "a", **there) as a:
            with monkeypatch.context() as patched:
                patched.setattr(machinehub.app, "SystemClock", Ahead)
                ahead = running_hub(tmp_path / "b", **there)
                b = await ahead.__aenter__()
            try:
                await until(
                    lambda: all(len(node_of(each).membership.nodes) == 2 for each in (a, b))
                )
                machine = await a.deploy(LATE)
                session = session_at([a, b], machine, 1)
                await a.http.put(f"/{machine}/{session}", json={})
                assert b.find(machine, session) is not None

                async def timers() -> int:
                    journal = await a.http.get(
                        f"/api/v1/machines/{machine}/sessions/{session}/journal"
                    )
                    return [each["kind"] for each in journal.json()["data"]].count("timer")

                await until(timers)
                await node_of(b).drain()
                answer = await a.http.get(
                    f"/{machine}/{session}", headers={"Accept": "application/json"}
                )
                assert answer.json()["snapshot"]["value"] == "off"
                assert await timers() == 1
                assert len(node_of(a).membership.nodes) == 2
            finally:
                await ahead.__aexit__(None, None, None)
