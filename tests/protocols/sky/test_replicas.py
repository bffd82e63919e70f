"""Stately's SDK (`@statelyai/sky` 0.0.8 with XState 5.0.0-beta.37) against a hub, unmodified."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
from typing import TYPE_CHECKING

from tests.processes import deploy, hub_process, until_ready
from tests.protocols.sky.replicas import config_of, replica
from tests.support import EXAMPLES, Client, free_port, running_hub, until
from tests.wires import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.protocols.sky.replicas import Replica

COUNTER = (EXAMPLES / "counter.ts").read_text()
LAMP = """
import { assign, createMachine } from "xstate";
export default createMachine({
  id: "lamp", context: { times: 0, by: "" }, initial: "off",
  states: {
    off: { on: { PRESS: "on" } },
    on: {
      entry: assign({ times: ({ context }) => context.times + 1 }),
      after: { 300: "off" },
      on: { BREAK: "broken" },
    },
    broken: { type: "final" },
  },
});
"""
FAMILY = """
import { assign, createMachine, fromPromise, setup } from "xstate";
const child = createMachine({ id: "child", initial: "a", states: { a: { on: { GO: "b" } }, b: {} } });
export const machine = setup({
  actors: { child, asks: fromPromise(async () => 42) },
}).createMachine({
  id: "family",
  type: "parallel",
  context: { answer: 0 },
  states: {
    one: {
      initial: "x",
      states: {
        x: { invoke: { src: "asks", onDone: { target: "y", actions: assign({ answer: ({ event }) => event.output }) } } },
        y: { on: { NEXT: "z" } },
        z: {},
      },
    },
    two: { invoke: { src: "child", id: "kid" }, on: { NOTE: {} } },
  },
});
"""


async def url_of(client: Client, source: str, name: str) -> str:
    return f"{client.url}/{await client.deploy(source, name=name)}"


async def test_two_replicas_and_a_native_client_agree(client: Client, tmp_path: Path) -> None:
    url = await url_of(client, COUNTER, "sky-two")
    config = await config_of(url, tmp_path)
    port = client.hub.settings.port
    async with replica(config, port, "s") as one, replica(config, port, "s") as two:
        await one.until("joined", 2)
        await two.until("joined", 2)
        for number, each in enumerate([one, two, one, one], 1):
            await each.send("increment")
            for other in (one, two):
                await other.until_state(context={"count": number})
        async with client.socket(f"{url.rpartition('/')[2]}/s") as native:
            snapshot = await native.until("snapshot")
            assert snapshot["snapshot"]["context"] == {"count": 4}
            await one.until("joined", 3)
            await native.event({"type": "decrement"})
            await one.until_state(context={"count": 3})
            await two.until_state(context={"count": 3})
        await one.until("left", 2)
        assert not [said for said in one.said + two.said if "error" in said]


async def test_who_comes_late_sees_what_timers_did(client: Client, tmp_path: Path) -> None:
    config = await config_of(await url_of(client, LAMP, "sky-lamp"), tmp_path)
    port = client.hub.settings.port
    async with replica(config, port, "s") as one:
        await one.send("PRESS")
        await one.until_state(value="on")
        async with replica(config, port, "s") as two:  # it arms no timer of its own
            await two.until_state(value="off", context={"times": 1, "by": ""})
        await one.until_state(value="off")
        await one.send("PRESS")
        await one.send("BREAK")
        await one.until_state(value="broken", status="done")
        await one.send("PRESS")  # which changes nothing anywhere, and is no error
        async with replica(config, port, "s") as three:
            assert three.state == {
                "value": "broken",
                "context": {"times": 2, "by": ""},
                "status": "done",
            }
        assert not [said for said in one.said if "error" in said]


async def test_children_are_restored(client: Client, tmp_path: Path) -> None:
    config = await config_of(await url_of(client, FAMILY, "sky-family"), tmp_path)
    port = client.hub.settings.port
    async with replica(config, port, "s") as one:
        await one.until_state(value={"one": "y", "two": {}}, context={"answer": 42})
        await one.send("NEXT")
        async with replica(config, port, "s") as two:
            await two.until_state(value={"one": "z", "two": {}}, context={"answer": 42})


async def test_a_forged_event_is_refused(client: Client, tmp_path: Path) -> None:
    url = await url_of(client, LAMP, "sky-forged")
    config = await config_of(url, tmp_path)
    port = client.hub.settings.port
    async with replica(config, port, "s") as one, replica(config, port, "s") as two:
        await one.send("PRESS")
        await two.until_state(value="on")
        await two.until_state(value="off")
        await one.send("xstate.after.300.lamp.on")
        assert "(invalid_event)" in await one.until("error")
        assert two.state is not None
        assert two.state["value"] == "off"


async def test_a_wrong_key_is_refused(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="mh_own") as hub:
        machine = await hub.deploy(COUNTER, name="sky-key")
        made = await hub.http.post("/api/v1/projects/default/keys", json={"name": "app"})
        key = made.json()["token"]
        config = await config_of(f"{hub.url}/{machine}", tmp_path, key)
        port = hub.hub.settings.port
        async with (
            replica(config, port, "s", key=key) as right,
            replica(config, port, "s", key="sta_wrong", starts=False) as wrong,
        ):
            assert "(unauthorised)" in await wrong.until("error")
            await right.send("increment")
            await right.until_state(context={"count": 1})
            assert not [said for said in wrong.said if "started" in said]


async def test_keys_are_each_recipients_own(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="mh_own") as hub:
        machine = await hub.deploy(COUNTER, name="sky-keys")
        keys = [
            (await hub.http.post("/api/v1/projects/default/keys", json={"name": name})).json()[
                "token"
            ]
            for name in ("one", "two")
        ]
        config = await config_of(f"{hub.url}/{machine}", tmp_path, keys[0])
        port = hub.hub.settings.port
        async with (
            replica(config, port, "s", key=keys[0]) as one,
            replica(config, port, "s", key=keys[1]) as two,
        ):
            await one.send("increment")
            await two.until_state(context={"count": 1})


@contextlib.asynccontextmanager
async def wired(
    client: Client, folder: Path, session: str
) -> AsyncIterator[tuple[Wire, Replica, Replica]]:
    """A wire to the hub, a replica behind it, and one that the wire does not concern."""
    config = await config_of(await url_of(client, COUNTER, f"sky-{session}"), folder)
    port = client.hub.settings.port
    wire = Wire(lambda: asyncio.open_connection("127.0.0.1", port))
    await wire.start()
    try:
        async with (
            replica(config, wire.port, session) as behind,
            replica(config, port, session) as there,
        ):
            yield wire, behind, there
    finally:
        await wire.stop()


async def test_a_network_that_is_cut(client: Client, tmp_path: Path) -> None:
    """What is sent meanwhile is taken in once when it is back, what others did is made up for, and
    the replica is the same one.
    """
    async with wired(client, tmp_path, "cut") as (wire, cut, there):
        await cut.send("increment")
        await there.until_state(context={"count": 1})
        await until_kept(client.hub.settings.data, "cut", 2)
        wire.cut()
        await there.send("increment")
        await there.send("increment")
        await there.until_state(context={"count": 3})
        for _ in range(4):
            await cut.send("increment")
        await cut.until_state(context={"count": 5})
        wire.mend()
        await there.until_state(context={"count": 7})
        await cut.until_state(context={"count": 7})
        await there.send("decrement")
        await cut.until_state(context={"count": 6})
        assert len([said for said in cut.said if "started" in said]) == 1


async def test_what_did_not_arrive_before_a_cut_is_sent_again(
    client: Client, tmp_path: Path
) -> None:
    """The hub had written it, but nothing of it had reached the client."""
    async with wired(client, tmp_path, "held") as (wire, held, there):
        await there.send("increment")
        await held.until_state(context={"count": 1})
        await until_kept(client.hub.settings.data, "held", 2)
        wire.hold("down")
        for _ in range(3):
            await there.send("increment")
        await there.until_state(context={"count": 4})
        wire.cut()
        wire.mend()
        await held.until_state(context={"count": 4})
        await there.send("increment")
        await held.until_state(context={"count": 5})


async def test_a_hub_that_is_killed_between_two_events(tmp_path: Path) -> None:
    port = free_port()
    async with hub_process(tmp_path / "data", port=port) as hub:
        config = await config_of(await deploy(hub.url, COUNTER), tmp_path)
        async with replica(config, port, "s") as one, replica(config, port, "s") as two:
            for number, each in enumerate([one, two, one], 1):
                await each.send("increment")
                for other in (one, two):
                    await other.until_state(context={"count": number})
            await until_kept(tmp_path / "data", "s", 4)
            hub.process.send_signal(signal.SIGKILL)
            await hub.process.wait()
            await one.send("increment")
            async with hub_process(tmp_path / "data", port=port) as again:
                await until_ready(again.url)
                await two.send("increment")
                for other in (one, two):
                    await other.until_state(context={"count": 5})
                await two.send("decrement")
                await one.until_state(context={"count": 4})
                for other in (one, two):
                    assert len([said for said in other.said if "started" in said]) == 1


async def until_kept(data: Path, session: str, seq: int) -> None:
    """Until it is written that both clients of the session have heard up to there: what they are
    not known to have may be sent to them twice when they come back.
    """
    sql = "SELECT seq FROM places JOIN sessions USING (key) WHERE session_id = ?"

    def kept() -> bool:
        path = f"file:{data / 'hub.db'}?mode=ro"
        with contextlib.closing(sqlite3.connect(path, uri=True)) as database:
            rows = database.execute(sql, (session.encode(),)).fetchall()
        return len(rows) == 2 and all(at >= seq for (at,) in rows)

    await until(kept)
