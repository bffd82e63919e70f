"""What an attack on Stately's protocol found: each finding is tried again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from machinehub.limits import Limits
from machinehub.protocols.sky.places import Places
from machinehub.protocols.sky.superjson import NotSuperjson, read
from machinehub.session.port import Place
from tests.protocols.sky.replicas import config_of, replica
from tests.protocols.sky.test_sockets import PK, Sky, sky
from tests.support import COUNTER, Client, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

NOTES = """
import { assign, createMachine } from "xstate";
export default createMachine({
  context: { last: 0 }, on: { NOTE: { actions: assign({ last: ({ event }) => event.n }) } },
});
"""
TICKS = """
import { assign, createMachine } from "xstate";
export const machine = createMachine({
  id: "t", initial: "run", context: { n: 0 },
  states: {
    run: {
      after: { 100: { target: "run", reenter: true, actions: assign({ n: ({ context }) => context.n + 1 }) } },
      on: { STOP: "off" },
    },
    off: {},
  },
});
"""
UNNAMED = """
import { assign, createMachine, fromCallback, fromPromise, setup } from "xstate";
const inner = createMachine({ id: "inner", initial: "x", states: { x: {} } });
export const machine = setup({
  actors: {
    slow: fromPromise(() => new Promise((done) => setTimeout(() => done(7), 700))),
    ticks: fromCallback(({ sendBack }) => {
      const timer = setInterval(() => sendBack({ type: "TICK" }), 200);
      return () => clearInterval(timer);
    }),
  },
}).createMachine({
  id: "t", initial: "a", context: { v: 0 },
  states: {
    a: {
      invoke: [{ src: "slow", onDone: { target: "b", actions: assign({ v: ({ event }) => event.output }) } }, { src: inner }],
    },
    b: {},
  },
});
"""
DOTS = """
import { setup } from "xstate";
export const machine = setup({ delays: { "my.delay": 30 } }).createMachine({
  id: "t", initial: "o",
  states: { o: { on: { GO: "a" } }, a: { after: { "my.delay": "b" } }, b: {} },
});
"""


async def test_what_was_missed_is_sent_as_fast_as_it_is_read(tmp_path: Path) -> None:
    """More than may wait for a slow reader: it is not taken for one, and nothing comes twice."""
    limits = Limits(unsent_bytes=64 * 1024, unsent_bytes_soft=16 * 1024)
    async with running_hub(tmp_path, limits=limits) as hub:
        machine = await hub.deploy(NOTES)
        async with sky(hub, machine, pk=PK) as one:
            await one.init()
            await one.until("actor.start")
            await one.until("player.joined")
        for n in range(1, 151):
            event = {"type": "NOTE", "n": n, "more": "x" * 4000}
            await hub.http.post(f"/{machine}/s", json=event)
        async with sky(hub, machine, pk=PK) as again:
            await again.init()
            heard: list[int] = []
            while len(heard) < 150:
                message = await again.until("actor.send")
                heard.append(message["event"]["n"])
                if len(heard) % 10 == 0:
                    await asyncio.sleep(0.02)
            assert heard == [*range(1, 151)]


async def test_a_connection_that_breaks_before_its_start(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is new once more: without a start it would wait for ever."""
    machine = await client.deploy(COUNTER, name="sky-broken-start")
    asked, may = asyncio.Event(), asyncio.Event()
    real = client.hub.port.persisted

    async def slow(address: Any) -> Any:
        asked.set()
        await may.wait()
        return await real(address)

    with monkeypatch.context() as patched:
        patched.setattr(client.hub.port, "persisted", slow)
        async with sky(client, machine, pk=PK) as one:
            await one.init()
            await asked.wait()
            # What is sent now is not forgotten either.
            await one.event({"type": "increment"})
            one.connection.transport.abort()
        may.set()
    async with sky(client, machine, pk=PK) as again:
        await again.init()
        await again.until("actor.start")


async def test_what_is_sent_between_the_first_frame_and_the_start(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = await client.deploy(COUNTER, name="sky-between")
    asked, may = asyncio.Event(), asyncio.Event()
    real = client.hub.port.persisted

    async def slow(address: Any) -> Any:
        found = await real(address)
        asked.set()
        await may.wait()
        return found

    monkeypatch.setattr(client.hub.port, "persisted", slow)
    async with sky(client, machine) as one:
        await one.init()
        await asked.wait()
        await one.event({"type": "increment"})
        await one.connection.ping()
        may.set()
        await one.until("actor.start")

        async def counted() -> bool:
            answer = await client.http.get(f"/{machine}/s")
            return bool(answer.json()["snapshot"]["context"]["count"] == 1)

        await until(counted)


async def test_who_is_nobody_yet_takes_no_memory(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="mh_own") as hub:
        machine = await hub.deploy(COUNTER)
        async with sky(hub, machine) as one:
            frame = json.dumps({"json": {"type": "actor.send", "event": {"x": [[]] * 10_000}}})
            with contextlib.suppress(Exception):
                for _ in range(50):
                    await one.connection.send(frame)
            assert await one.closed() == 4008


@pytest.mark.core
def test_long_paths_are_refused_at_once() -> None:
    path = ".".join("a" * 1 for _ in range(20_000))
    values = {path: {str(n): ["Date"] for n in range(500)}}
    with pytest.raises(NotSuperjson):
        read(json.dumps({"json": {}, "meta": {"values": values}}).encode())


async def test_a_deleted_session_does_not_come_back(client: Client) -> None:
    """Sockets of its clients do, whatever they are told."""
    machine = await client.deploy(COUNTER, name="sky-deleted")
    async with sky(client, machine, pk=PK) as one:
        await one.init()
        await one.until("actor.start")
        await client.http.delete(f"/api/v1/machines/{machine}/sessions/s")
        assert await one.closed() == 4004
    async with sky(client, machine, pk=PK) as again:
        await again.init()
        assert await again.closed() == 4004
    listed = await client.http.get(f"/api/v1/machines/{machine}/sessions")
    assert listed.json()["data"] == []
    async with sky(client, machine) as another:
        await another.init()
        await another.until("actor.start")


async def test_a_place_that_is_being_written_is_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from machinehub.ids import MachineId, Seq, SessionId
    from machinehub.session.port import Address

    machine = await client.deploy(COUNTER, name="sky-being-written")
    await client.http.get(f"/{machine}/s", headers={"Accept": "application/json"})
    port = client.hub.port
    real, begun, may = port.keep_places, asyncio.Event(), asyncio.Event()

    async def slow(places: Any) -> None:
        begun.set()
        await may.wait()
        await real(places)

    monkeypatch.setattr(port, "keep_places", slow)
    places = Places(port)
    address = Address(MachineId(machine), SessionId("s"))
    places.note(Place(address, b"c", Seq(1)))
    await begun.wait()
    finding = asyncio.create_task(places.find(address, b"c"))
    await asyncio.sleep(0)
    may.set()
    assert await finding == 1


async def test_a_delay_that_enters_its_own_state_again(client: Client, tmp_path: Path) -> None:
    """A replica's own timers would fire beside the hub's."""
    url = f"{client.url}/{await client.deploy(TICKS, name='sky-ticks')}"
    config = await config_of(url, tmp_path)
    port = client.hub.settings.port
    async with replica(config, port, "s") as one, replica(config, port, "s") as two:
        await until(lambda: one.state is not None and one.state["context"]["n"] >= 8)
        await one.send("STOP")
        await two.until_state(value="off")
        answer = await client.http.get(f"{url}/s")
        count = answer.json()["snapshot"]["context"]["n"]
        # What was on its way when the first one stopped it is in the second one's order.
        await two.until_state(context={"n": count})


async def test_children_without_names(client: Client, tmp_path: Path) -> None:
    """XState's early version calls them otherwise, and would not know what they come to."""
    url = f"{client.url}/{await client.deploy(UNNAMED, name='sky-unnamed')}"
    config = await config_of(url, tmp_path)
    async with replica(config, client.hub.settings.port, "s") as one:
        await one.until_state(value="b", context={"v": 7})


async def test_delays_whose_names_have_dots(client: Client) -> None:
    machine = await client.deploy(DOTS, name="sky-dots")
    async with sky(client, machine) as one:
        await one.init()
        await one.until("actor.start")
        await one.event({"type": "GO"})  # the delay must not be over before it is listened to
        assert await delays(one, 2) == ["xstate.after.my.delay.t.a", "xstate.after(my.delay)#t.a"]
    async with sky(client, machine, "u", path=f"/parties/main/{machine}-u") as later:
        await later.init()
        await later.until("actor.start")
        await later.event({"type": "GO"})
        assert await delays(later, 1) == ["xstate.after.my.delay.t.a"]
        await later.event({"type": "X"})
        await until(lambda: client.connections(machine, "u") == 1)
        assert await nothing_more(later)


async def delays(one: Sky, count: int) -> list[str]:
    """The names of the next ones that are over."""
    heard: list[str] = []
    while len(heard) < count:
        type_ = (await one.until("actor.send"))["event"]["type"]
        if type_.startswith("xstate."):
            heard.append(type_)
    return heard


async def nothing_more(one: Sky) -> bool:
    """Whether nothing came before the answer to a ping."""
    answered = await one.connection.ping()
    await answered
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0):
            message = json.loads(await one.connection.recv())["json"]
            return bool(message["type"] != "actor.send")
    return True


async def test_who_is_redirected(tmp_path: Path) -> None:
    """The command, which shows nothing yet, and nobody else; it learns nothing of what is
    private.
    """
    agent = {"User-Agent": "node-fetch/1.0"}
    async with running_hub(tmp_path, token="mh_own") as hub:
        machine = await hub.deploy(COUNTER)
        other = await hub.deploy(COUNTER, name="other")
        await hub.http.patch(f"/api/v1/machines/{other}", json={"private": True})
        nobody = {"Authorization": "", **agent}
        found = await hub.http.get(f"/{machine}", headers=nobody)
        assert found.headers["location"] == f"/{machine}?actorId={machine}@1"
        found = await hub.http.get(f"/{other}", headers=nobody)
        assert found.headers["location"] == f"/{other}?actorId={other}"
        for shown in (
            await hub.http.get(f"/{other}", headers=agent),  # with the hub's own token
            await hub.http.get(f"/{other}?token=mh_own", headers=nobody),
        ):
            assert shown.json()["id"] == other
        assert (await hub.http.get("/nosuchmachine", headers=nobody)).status_code == 404
    async with (
        running_hub(tmp_path, token="mh_own", public_url="http://localhost/hub") as hub,
        httpx.AsyncClient() as http,
    ):
        url = f"http://127.0.0.1:{hub.hub.settings.port}/hub/{machine}"
        found = await http.get(url, headers=agent)
        assert found.headers["location"].startswith(f"/hub/{machine}?actorId=")
