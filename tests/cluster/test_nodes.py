"""Three nodes on one Postgres and one NATS: any client may come to any of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from machinehub.errors import Unavailable
from tests.cluster.clusters import nats_server, node_of, running_cluster
from tests.databases import new_database
from tests.support import COUNTER, Client, running_hub, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("cluster")

PRESENCE = """
import { setup, assign } from "xstate";
export default setup({
  types: { context: {} as { there: string[] }, events: {} as { type: string } },
}).createMachine({
  context: { there: [] },
  on: {
    "presence.joined": {
      actions: assign({ there: ({ context, event }: any) => [...context.there, event.sender.id] }),
    },
    "presence.left": {
      actions: assign({
        there: ({ context, event }: any) => context.there.filter((id: string) => id !== event.sender.id),
      }),
    },
    nothing: {},
  },
});
"""
TICKER = """
import { setup, assign } from "xstate";
export default setup({ types: { context: {} as { ticks: number } } }).createMachine({
  context: { ticks: 0 },
  initial: "waiting",
  states: {
    waiting: { on: { arm: "armed" } },
    armed: { after: { 1500: { target: "waiting", actions: assign({ ticks: ({ context }) => context.ticks + 1 }) } } },
  },
});
"""


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def nodes(
    postgres: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[list[Client]]:
    async with running_cluster(tmp_path_factory.mktemp("nodes"), postgres) as running:
        yield running


def owners(nodes: list[Client], machine: str, session: str) -> list[Client]:
    return [node for node in nodes if node.find(machine, session) is not None]


def session_at(nodes: list[Client], machine: str, index: int) -> str:
    """A name of a session that the node of this number should have."""
    from machinehub.cluster.placing import place
    from machinehub.ids import MachineId, SessionId

    wanted = node_of(nodes[index]).node
    capacities = node_of(nodes[0]).membership.capacities
    names = (f"s{number}" for number in range(1000))
    return next(
        name for name in names if place(capacities, MachineId(machine), SessionId(name)) == wanted
    )


async def test_three_clients_of_three_nodes_share_a_session(nodes: list[Client]) -> None:
    machine = await nodes[0].deploy(COUNTER, name="shared")
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(node.socket(f"{machine}/one")) for node in nodes]
        for socket in sockets:
            assert (await socket.receive())["type"] == "snapshot"
        seqs = [(await socket.event("increment"))["seq"] for socket in sockets]
        assert seqs == [2, 3, 4]
        for socket in sockets:
            while socket.seq < 4:
                await socket.receive()
            assert socket.snapshot["context"]["count"] == 3
        assert len(owners(nodes, machine, "one")) == 1


async def test_what_is_asked_over_http_is_asked_of_the_owner(nodes: list[Client]) -> None:
    machine = await nodes[0].deploy(COUNTER, name="asked")
    session = session_at(nodes, machine, 0)
    other = nodes[1].http
    created = await other.put(f"/{machine}/{session}", json=None)
    assert created.status_code in (200, 201), created.text
    sent = await other.post(f"/{machine}/{session}", json={"type": "increment"})
    assert sent.json()["snapshot"]["context"]["count"] == 1
    assert owners(nodes, machine, session) == [nodes[0]]
    key = {"Idempotency-Key": "once"}
    first = await other.post(f"/{machine}/{session}", json={"type": "increment"}, headers=key)
    again = await nodes[2].http.post(
        f"/{machine}/{session}", json={"type": "increment"}, headers=key
    )
    assert first.json()["seq"] == again.json()["seq"]
    moved = await other.post(
        f"/{machine}/{session}", json={"type": "increment"}, headers={"If-Match": '"1"'}
    )
    assert moved.status_code == 412
    api = f"/api/v1/machines/{machine}/sessions"
    assert (await other.get(f"{api}/{session}")).json()["seq"] == 3
    listed = (await other.get(api)).json()["data"]
    assert [(each["id"], each["live"]) for each in listed] == [(session, True)]
    journal = (await other.get(f"{api}/{session}/journal")).json()["data"]
    assert [entry.get("id") for entry in journal] == [None, None, "once"]
    assert (await other.post(f"{api}/{session}/replay")).json()["verified"]
    forked = await nodes[2].http.post(f"{api}/{session}/fork", json={"session": "child"})
    assert forked.status_code == 201, forked.text
    waiting = asyncio.ensure_future(
        other.post(f"/{machine}/{session}/wait", json={"condition": {"matches": "nowhere"}})
    )
    restarted = await other.post(f"{api}/{session}/restart")
    assert restarted.json()["seq"] == 1
    waiting.cancel()
    assert (await nodes[2].http.delete(f"{api}/{session}")).status_code == 204
    assert (await other.get(f"{api}/{session}")).status_code == 404


async def test_events_of_eight_clients_of_two_nodes_have_one_order(nodes: list[Client]) -> None:
    machine = await nodes[0].deploy(COUNTER, name="ordered")
    each = 50

    async def client(number: int) -> list[int]:
        async with nodes[number % 2].socket(f"{machine}/busy") as socket:
            await socket.receive()
            return [(await socket.event("increment"))["seq"] for _ in range(each)]

    found = await asyncio.gather(*(client(number) for number in range(8)))
    assert all(seqs == sorted(seqs) for seqs in found)
    assert sorted(seq for seqs in found for seq in seqs) == list(range(2, 2 + 8 * each))
    seen = [(await node.http.get(f"/{machine}/busy")).json() for node in nodes]
    assert all(snapshot == seen[0] for snapshot in seen)
    assert seen[0]["snapshot"]["context"]["count"] == 8 * each


async def test_a_session_that_begins_on_two_nodes_at_once_is_one(nodes: list[Client]) -> None:
    machine = await nodes[0].deploy(COUNTER, name="twins")

    async def press(number: int, session: str) -> int:
        answer = await nodes[number].http.post(f"/{machine}/{session}", json={"type": "increment"})
        assert answer.status_code == 200, answer.text
        return int(answer.json()["seq"])

    for turn in range(5):
        seqs = await asyncio.gather(*(press(number % 3, f"t{turn}") for number in range(9)))
        assert sorted(seqs) == list(range(2, 11))


async def test_a_deployment_is_live_on_all_nodes(nodes: list[Client]) -> None:
    machine = await nodes[0].deploy(COUNTER, name="twice")
    for node in nodes:  # and remembers it
        assert (await node.http.get(f"/{machine}/before")).status_code == 200
    await nodes[1].deploy(COUNTER.replace("count: 0", "count: 7"), name="twice2")
    body = {"name": "twice", "entry": "machine.ts", "private": False}
    body["files"] = {"machine.ts": COUNTER.replace("count: 0", "count: 41")}
    assert (await nodes[2].http.post("/api/v1/deployments", json=body)).status_code == 201

    async def is_live(node: Client, name: str) -> bool:
        return bool((await node.http.get(f"/{machine}/{name}")).json()["version"] == 2)

    for number, node in enumerate(nodes):
        attempt = 0
        while not await is_live(node, f"new{number}-{attempt}"):
            attempt += 1


async def test_presence_of_clients_of_several_nodes(nodes: list[Client]) -> None:
    machine = await nodes[0].deploy(PRESENCE, name="crowd")
    session = session_at(nodes, machine, 2)
    async with nodes[0].socket(f"{machine}/{session}?key=aaaaaaaaaaaaaaaaaaaa") as one:
        await one.receive()
        async with nodes[1].socket(f"{machine}/{session}?key=bbbbbbbbbbbbbbbbbbbb") as two:
            await two.receive()
            while (await one.until("presence"))["count"] < 2:
                pass
            await two.send_raw({"type": "presence", "metadata": {"name": "Two"}})
            while "Two" not in json.dumps(frame := await one.until("presence")):
                pass
            assert frame["count"] == 2
            shown = (await nodes[2].http.get(f"/{machine}/{session}/presence")).json()
            assert shown["count"] == 2
        while (await one.until("presence"))["count"] > 1:
            pass
        while len(one.snapshot["context"]["there"]) != 1:
            await one.receive()


async def test_a_session_moves_when_its_node_is_drained(postgres: str, tmp_path: Path) -> None:
    async with running_cluster(tmp_path, postgres) as nodes:
        machine = await nodes[0].deploy(PRESENCE.replace("nothing: {}", "nothing: {}"), name="m")
        session = session_at(nodes, machine, 0)
        async with contextlib.AsyncExitStack() as stack:
            sockets = [
                await stack.enter_async_context(
                    node.socket(f"{machine}/{session}?key={'abc'[number] * 20}")
                )
                for number, node in enumerate(nodes)
            ]
            for socket in sockets:
                await socket.receive()
                while len(socket.snapshot["context"]["there"]) < 3:
                    await socket.receive()
            before = max(socket.seq for socket in sockets)
            waiting = asyncio.ensure_future(
                nodes[1].http.post(f"/{machine}/{session}/wait", json={"condition": "done"})
            )
            await until(lambda: nodes[0].watchers(machine, session))
            sending = [asyncio.ensure_future(socket.event("nothing")) for socket in sockets]
            await node_of(nodes[0]).drain()
            assert [(await ack)["outcome"] for ack in sending] == ["accepted"] * 3
            assert nodes[0].find(machine, session) is None
            for socket in sockets:
                assert (await socket.event("nothing"))["outcome"] == "accepted"
            assert len(owners(nodes, machine, session)) == 1
            kinds = [frame["type"] for socket in sockets for frame in socket.seen]
            assert kinds.count("snapshot") == 3  # nobody was taken back to the beginning
            assert "error" not in kinds
            entries = (
                await nodes[2].http.get(f"/api/v1/machines/{machine}/sessions/{session}/journal")
            ).json()["data"]
            told = [entry for entry in entries if entry["kind"] == "presence"]
            assert [entry["event"]["type"] for entry in told] == ["presence.joined"] * 3
            assert [entry["seq"] for entry in entries] == list(range(1, before + 7))
            waiting.cancel()


async def test_a_timer_of_a_sleeping_session_fires_once(nodes: list[Client]) -> None:
    machine = await nodes[0].deploy(TICKER, name="ticker")
    session = session_at(nodes, machine, 0)
    answer = await nodes[1].http.post(f"/{machine}/{session}", json={"type": "arm"})
    assert answer.json()["snapshot"]["value"] == "armed"
    (owner,) = owners(nodes, machine, session)
    found = owner.find(machine, session)
    assert found is not None
    await owner.hub.sessions.handover.hand_over(found)  # nobody has it
    assert owners(nodes, machine, session) == []

    async def ticked() -> bool:
        entries = (
            await nodes[2].http.get(f"/api/v1/machines/{machine}/sessions/{session}/journal")
        ).json()["data"]
        return [entry["kind"] for entry in entries].count("timer") == 1

    await until(ticked)
    seen = (await nodes[0].http.get(f"/{machine}/{session}")).json()["snapshot"]
    assert seen["value"] == "waiting"
    assert seen["context"]["ticks"] == 1


async def test_a_machine_is_deleted_on_all_nodes(nodes: list[Client]) -> None:
    machine = await nodes[0].deploy(COUNTER, name="doomed")
    async with contextlib.AsyncExitStack() as stack:
        for number, node in enumerate(nodes):
            name = session_at(nodes, machine, number)
            socket = await stack.enter_async_context(node.socket(f"{machine}/{name}"))
            await socket.receive()
        other = await stack.enter_async_context(nodes[1].socket(f"{machine}/{name}"))
        await other.receive()
        assert (await nodes[1].http.delete(f"/api/v1/machines/{machine}")).status_code == 204
        with contextlib.suppress(Exception):
            while True:
                await other.receive()
        assert other.connection.close_code == 4004

    async def is_gone(node: Client) -> bool:
        return (await node.http.get(f"/{machine}/x")).status_code == 404

    for node in nodes:
        await until(partial(is_gone, node))


async def test_logs_are_those_of_all_nodes(nodes: list[Client]) -> None:
    source = """
    import { setup } from "xstate";
    export default setup({}).createMachine({
      on: { say: { actions: ({ event }: any) => console.log(event.text) } },
    });
    """
    machine = await nodes[0].deploy(source, name="talks")
    names = [session_at(nodes, machine, number) for number in range(3)]

    async def say(text: str) -> None:
        for name in names:
            event = {"type": "say", "text": f"{text} {name}"}
            assert (await nodes[0].http.post(f"/{machine}/{name}", json=event)).status_code == 200

    await say("before")
    logs = f"/api/v1/machines/{machine}/logs"
    read = (await nodes[1].http.get(logs)).json()["data"]
    assert [line["text"] for line in read] == [f"before {name}" for name in names]
    accepts = {"Accept": "text/event-stream"}
    wanted = {f"{when} {name}" for when in ("before", "after") for name in names}
    async with nodes[2].http.stream("GET", logs, headers=accepts) as stream:
        seen: set[str] = set()
        saying = asyncio.ensure_future(until(partial(say_until, say, seen, wanted)))
        async for line in stream.aiter_lines():
            if line.startswith("data: "):
                seen.add(json.loads(line[6:])["text"])
            if seen >= wanted:
                break
        await saying


async def say_until(say: Any, seen: set[str], wanted: set[str]) -> bool:
    """Again and again: following begins a moment after it was asked for."""
    await say("after")
    return seen >= wanted


async def test_a_large_snapshot_crosses_in_parts(nodes: list[Client]) -> None:
    source = """
    import { setup, assign } from "xstate";
    export default setup({ types: { context: {} as { text: string } } }).createMachine({
      context: { text: "" },
      on: { grow: { actions: assign({ text: "x".repeat(200_000) }) } },
    });
    """
    machine = await nodes[0].deploy(source, name="large")
    session = session_at(nodes, machine, 0)
    for node in nodes[1:]:
        node_of(node).links._bus.packet_bytes_max = 100_000
    try:
        async with nodes[1].socket(f"{machine}/{session}") as socket:
            await socket.receive()
            node_of(nodes[0]).links._bus.packet_bytes_max = 100_000
            assert (await socket.event("grow"))["outcome"] == "accepted"
            assert len(socket.snapshot["context"]["text"]) == 200_000
    finally:
        for node in nodes:
            node_of(node).links._bus.packet_bytes_max = 1024 * 1024


async def test_a_second_hub_without_nats_refuses_to_start(postgres: str, tmp_path: Path) -> None:
    database = await new_database(postgres)
    async with running_hub(tmp_path / "a", database_url=database):
        with pytest.raises(Unavailable, match="MACHINEHUB_NATS_URL"):
            async with running_hub(tmp_path / "b", database_url=database):
                pass
        async with nats_server() as nats:
            with pytest.raises(Unavailable, match="shares its database with nobody"):
                async with running_hub(tmp_path / "c", database_url=database, nats_url=nats.url):
                    pass


async def test_nats_that_does_not_answer_is_said_at_the_start(
    postgres: str, tmp_path: Path
) -> None:
    database = await new_database(postgres)
    with pytest.raises(Unavailable, match="MACHINEHUB_NATS_URL"):
        async with running_hub(tmp_path, database_url=database, nats_url="nats://127.0.0.1:1"):
            pass
