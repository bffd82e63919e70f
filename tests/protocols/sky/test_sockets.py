"""Stately's sockets, frame by frame: rooms, first frames, and whatever else may come."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from machinehub.ids import MachineId, Seq, SessionId
from machinehub.session.port import Address, Place
from tests.support import COUNTER, ROOT, Client, running_hub, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from websockets.asyncio.client import ClientConnection

PK = "3f0c7a1e-6a52-4d8e-9a37-2f1b9b1f0001"
HISTORY = """
import { createMachine } from "xstate";
export default createMachine({
  id: "h", initial: "a",
  states: { a: { on: { GO: "#h.b.back" } }, b: { initial: "c", states: { c: {}, back: { type: "history" } } } },
});
"""
LAMP = """
import { createMachine } from "xstate";
export default createMachine({
  id: "lamp", initial: "off", states: { off: { on: { PRESS: "on" } }, on: { after: { 50: "off" } } },
});
"""
NAMELESS = """
import { assign, createMachine } from "xstate";
const child = createMachine({ id: "c" });
export default createMachine({
  context: ({ spawn }) => ({ kid: spawn(child) }),
});
"""


EVENT = '{"json":{"apiKey":"sta_1","type":"actor.send","event":{"type":"increment"}}'


class Sky:
    """A socket that speaks Stately's protocol."""

    def __init__(self, connection: ClientConnection, machine: str, session: str, key: str) -> None:
        self.connection = connection
        self._actor, self._session, self._key = machine, session, key
        self.seen: list[dict[str, Any]] = []

    async def init(self, **other: Any) -> None:
        said = {
            "apiKey": self._key,
            "type": "actor.init",
            "apiBaseURL": "http://169.254.169.254/latest/meta-data",
            "actorId": self._actor,
            "sessionId": self._session,
        }
        await self.say(said | other)

    async def say(self, message: Any) -> None:
        await self.connection.send(json.dumps({"json": message}))

    async def event(self, event: Any) -> None:
        await self.say({"apiKey": self._key, "type": "actor.send", "event": event})

    async def until(self, kind: str) -> dict[str, Any]:
        while True:
            text = await asyncio.wait_for(self.connection.recv(), 60)
            message: dict[str, Any] = json.loads(text)["json"]
            assert message.get("apiKey") == self._key
            self.seen.append(message)
            if message["type"] == kind:
                return message

    async def closed(self) -> int:
        with contextlib.suppress(ConnectionClosed):
            while True:
                message = json.loads(await asyncio.wait_for(self.connection.recv(), 60))
                self.seen.append(message["json"])
        assert self.connection.close_code is not None
        return self.connection.close_code


@contextlib.asynccontextmanager
async def sky(
    client: Client,
    machine: str,
    session: str = "s",
    *,
    key: str = "sta_1",
    path: str | None = None,
    pk: str | None = None,
) -> AsyncIterator[Sky]:
    """`pk` is what PartySocket calls a client, made up anew if None."""
    where = path or f"/party/{machine}-{quote(session)}"
    async with connect(
        f"{client.url.replace('http', 'ws', 1)}{where}?_pk={pk or uuid.uuid4()}", max_queue=None
    ) as connection:
        yield Sky(connection, machine, session, key)


async def test_the_order_of_a_beginning(client: Client) -> None:
    """Nothing comes before the first frame; then a snapshot in both dialects, then how many are
    there.
    """
    machine = await client.deploy(COUNTER, name="sky-order")
    async with sky(client, machine) as one:
        await one.init()
        start = await one.until("actor.start")
        assert start["snapshot"] == start["persistedState"]
        assert start["snapshot"]["context"] == {"count": 0}
        assert (await one.until("player.joined"))["numberOfPlayers"] == 1
        assert [each["type"] for each in one.seen] == ["actor.start", "player.joined"]
        async with sky(client, machine) as two:
            await two.init()
            await two.until("actor.start")
            await one.event({"type": "increment", "by": 1})
            sent = await two.until("actor.send")
            assert sent["event"]["type"] == "increment"
            assert sent["event"]["by"] == 1
            assert set(sent["event"]["sender"]) == {"id"}
        await one.event({"type": "increment"})
        await one.event({"type": "nonsense", "sendToSky": True})

        async def both_counted() -> bool:
            answer = await client.http.get(f"/{machine}/s")
            return bool(answer.json()["snapshot"]["context"] == {"count": 2})

        await until(both_counted)
        # Nothing of one's own comes back.
        assert not [each for each in one.seen if each["type"] == "actor.send"]


async def test_a_delay_is_told_by_both_of_its_names(client: Client) -> None:
    """XState 5 and its version 5.0.0-beta.37 call it differently, and ignore the other's."""
    machine = await client.deploy(LAMP, name="sky-delay")
    async with sky(client, machine) as one:
        await one.init()
        await one.until("actor.start")
        await one.event({"type": "PRESS"})
        told = [(await one.until("actor.send"))["event"] for _ in range(2)]
        assert told == [{"type": "xstate.after.50.lamp.on"}, {"type": "xstate.after(50)#lamp.on"}]


@pytest.mark.parametrize(
    "session", ["a/b", "p%20q", "my session", "é☃", "q?x=1", "-", "a-b-c", "x" * 128]
)
async def test_rooms_of_any_name(client: Client, session: str) -> None:
    """PartySocket does not encode a room's name: what is in the URL may be another one."""
    machine = await client.deploy(COUNTER, name="sky-rooms")
    if session == "-":
        async with sky(client, machine, session) as one:
            await one.init()
            assert "(invalid_session_id)" in (await one.until("actor.error"))["error"]
        return
    for form in ("/party/", "/parties/main/"):
        path = f"{form}{machine}-{quote(session, safe='/%?=')}"
        if "?" in session:
            path = path.replace("?", "%3F")
        async with sky(client, machine, session, path=path) as one:
            await one.init()
            await one.until("actor.start")
            await one.event({"type": "increment"})
            await until(lambda: client.find(machine, session) is not None)
    url = f"/{machine}/{quote(session, safe='')}"

    async def counted() -> bool:
        return bool((await client.http.get(url)).json()["snapshot"]["context"]["count"] == 2)

    await until(counted)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/party/nosuchmachine-s", 404),
        ("/parties/other/{machine}-s", 404),
        ("/party/{machine}", 404),
        ("/party/", 404),
        ("/parties/main/%FF%FE-s", 404),
    ],
)
async def test_what_is_no_room_is_refused_at_the_door(
    client: Client, path: str, status: int
) -> None:
    machine = await client.deploy(COUNTER, name="sky-door")
    with pytest.raises(InvalidStatus) as refused:
        async with sky(client, machine, path=path.format(machine=machine)):
            pass
    assert refused.value.response.status_code == status


@pytest.mark.parametrize(
    "frame",
    [
        "ping",
        "{}",
        "[]",
        '{"json":{}}',
        '{"json":[1]}',
        '{"json":{"apiKey":"sta_1","type":"actor.send","event":7}}',
        '{"json":{"apiKey":"sta_1","type":"actor.send","event":{}}}',
        '{"json":{"apiKey":"sta_1","type":"actor.send","event":{"type":7}}}',
        '{"json":{"apiKey":"sta_2","type":"actor.send","event":{"type":"increment"}}}',
        '{"json":{"type":"actor.send","event":{"type":"increment"}}}',
        '{"json":{"apiKey":"sta_1","type":"simulation.stop"}}',
        EVENT + ',"meta":{"values":{"event.type":[["class","Evil"]]}}}',
        EVENT + ',"meta":{"values":{"__proto__.polluted":["undefined"]}}}',
        '{"json":{"apiKey":"sta_1","type":"actor.send","event":{"type":"presence.joined"}}}',
        '{"json":{"apiKey":"sta_1","type":"actor.send","event":{"type":"xstate.stop"}}}',
        '{"json":{"apiKey":"sta_1","type":"actor.send","event":{"type":"increment","x":"%s"}}}'
        % ("y" * 66_000),
        '{"json":{"apiKey":"sta_1","type":"actor.init","actorId":"%s","sessionId":"other"}}',
        '{"json":{"apiKey":"sta_1","type":"actor.init"}}',
        '{"json":{"apiKey":7,"type":"actor.init","actorId":"%s","sessionId":"s"}}',
    ],
)
async def test_frames_that_cannot_be(client: Client, frame: str) -> None:
    """Each is answered with an error, and changes nothing."""
    machine = await client.deploy(COUNTER, name="sky-frames")
    async with sky(client, machine) as one:
        await one.init()
        await one.until("actor.start")
        before = (await client.http.get(f"/{machine}/s")).json()["seq"]
        await one.connection.send(frame % machine if "%s" in frame else frame)
        await one.until("actor.error")
        assert (await client.http.get(f"/{machine}/s")).json()["seq"] == before


async def test_a_first_frame_that_cannot_be(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="sky-first")
    for frame in ("ping", "{}", '{"json":{"apiKey":"k","type":"actor.init"}}'):
        async with sky(client, machine) as one:
            await one.connection.send(frame)
            assert await one.closed() == 1008
    async with sky(client, machine) as one:
        await one.connection.send(b"{}")
        assert await one.closed() == 1003
    async with sky(client, machine) as one:
        await one.init(actorId="00000000-0000-4000-8000-000000000000")
        assert await one.closed() == 1008
        assert "generate the file again" in one.seen[-1]["error"]


async def test_what_has_no_right_replica_is_refused(client: Client) -> None:
    shows = COUNTER + "\nexport const view = ({ snapshot }) => snapshot.context.count;\n"
    for name, source, code in (
        ("view", shows, "forbidden"),
        ("history", HISTORY, "not_persistable"),
        ("nameless", NAMELESS, "not_persistable"),
    ):
        machine = await client.deploy(source, name=f"sky-no-{name}")
        async with sky(client, machine) as one:
            await one.init()
            assert await one.closed() == 1008
            assert f"({code})" in one.seen[-1]["error"]
        if name == "history":  # later clients have an XState that knows them
            path = f"/parties/main/{machine}-s"
            async with sky(client, machine, path=path) as later:
                await later.init()
                await later.until("actor.start")


async def test_an_app_of_another_version_is_told(client: Client) -> None:
    """Its code would go other ways than its session's."""
    machine = await client.deploy(COUNTER, name="sky-version")
    async with sky(client, f"{machine}@1") as one:
        await one.init()
        await one.until("actor.start")
        await client.http.post(
            "/api/v1/deployments",
            json={
                "name": "sky-version",
                "entry": "machine.ts",
                "files": {"machine.ts": COUNTER.replace("+ 1", "+ 2")},
            },
        )
        async with sky(client, f"{machine}@2") as two:
            await two.init()
            assert await two.closed() == 1008
            assert "xstate sky --refetch" in two.seen[-1]["error"]
        async with sky(client, f"{machine}@2", "another") as three:
            await three.init()
            await three.until("actor.start")


async def test_a_client_that_comes_back_is_no_second_one(client: Client) -> None:
    """It takes the place of its old socket, is told what it missed, and starts no second time."""
    machine = await client.deploy(COUNTER, name="sky-back")
    async with sky(client, machine, pk=PK) as old, sky(client, machine) as other:
        for each in (old, other):
            await each.init()
            await each.until("actor.start")
        async with sky(client, machine, pk=PK) as new:
            await other.event({"type": "increment"})
            await old.until("actor.send")
            await new.event({"type": "decrement"})  # before its first frame, as clients do
            await new.init()
            assert await old.closed() == 1001
            await other.until("actor.send")
            await other.event({"type": "increment"})
            assert (await new.until("actor.send"))["event"]["type"] == "increment"
            assert "actor.start" not in [each["type"] for each in new.seen]


async def test_a_question_mark_in_a_room_moves_what_follows(client: Client) -> None:
    """PartySocket does not encode it: `_pk` is found all the same."""
    machine = await client.deploy(COUNTER, name="sky-question")
    for times in (1, 2):
        async with sky(client, machine, "q?x=1", path=f"/party/{machine}-q?x=1", pk=PK) as one:
            await one.init()
            await one.until("player.joined")
            started = [each["type"] for each in one.seen].count("actor.start")
            assert started == (1 if times == 1 else 0)


async def test_a_client_from_the_future_is_told(client: Client) -> None:
    """Its session was put back to an earlier moment, with the database."""
    machine = await client.deploy(COUNTER, name="sky-future")
    async with sky(client, machine, pk=PK) as one:
        await one.init()
        await one.until("actor.start")
    address = Address(MachineId(machine), SessionId("s"))
    name = hashlib.sha256(PK.encode()).digest()[:16]
    await client.hub.port.keep_places([Place(address, name, Seq(1000))])
    async with sky(client, machine, pk=PK) as again:
        await again.init()
        assert await again.closed() == 1008
        assert "reload the page" in again.seen[-1]["error"]


async def test_a_client_that_missed_more_than_is_kept_is_told(tmp_path: Path) -> None:
    async with running_hub(tmp_path, keep_journal=5, keep_checkpoints=1) as hub:
        machine = await hub.deploy(COUNTER, name="m")
        async with sky(hub, machine, pk=PK) as one:
            await one.init()
            await one.until("actor.start")
        for _ in range(300):
            await hub.http.post(f"/{machine}/s", json={"type": "increment"})
        await hub.put_to_sleep(machine, "s")
        async with sky(hub, machine, pk=PK) as again:
            await again.init()
            assert await again.closed() == 1008
            assert "(history_pruned)" in again.seen[-1]["error"]


async def test_a_session_that_ends(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="sky-ends")
    async with sky(client, machine) as one, sky(client, machine, "t") as two:
        for each in (one, two):
            await each.init()
            await each.until("actor.start")
        await client.http.delete(f"/api/v1/machines/{machine}/sessions/s")
        await one.until("actor.stop")
        assert await one.closed() == 4004
        await client.http.post(f"/api/v1/machines/{machine}/sessions/t/restart")
        assert await two.closed() == 4010
        assert "reload the page" in two.seen[-1]["error"]


async def test_a_key_that_is_revoked(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="mh_own") as hub:
        machine = await hub.deploy(COUNTER, name="m")
        made = (await hub.http.post("/api/v1/projects/default/keys", json={"name": "app"})).json()
        async with sky(hub, machine, key=made["token"]) as one:
            await one.init()
            await one.until("actor.start")
            await hub.http.delete(f"/api/v1/projects/default/keys/{made['id']}")
            assert await one.closed() == 4401
            assert one.seen[-1]["type"] == "actor.error"
        async with sky(hub, machine, key=made["token"]) as again:
            await again.init()
            assert await again.closed() == 4401


async def test_who_sends_too_fast_is_told(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="mh_own") as hub:
        machine = await hub.deploy(COUNTER, name="m")
        made = (await hub.http.post("/api/v1/projects/default/keys", json={"name": "app"})).json()
        async with sky(hub, machine, key=made["token"]) as one:
            await one.init()
            await one.until("actor.start")
            for _ in range(400):
                await one.event({"type": "increment"})
            assert "(rate_limited)" in (await one.until("actor.error"))["error"]


NEWEST = """
import PartySocket from "partysocket";
import WebSocket from "ws";
import superjson from "superjson";
const [host, actorId, sessionId] = process.argv.slice(1);
const socket = new PartySocket({ host, room: `${actorId}-${sessionId}`, WebSocket });
socket.addEventListener("open", () =>
  socket.send(superjson.stringify({ apiKey: "k", type: "actor.init", actorId, sessionId })));
socket.addEventListener("message", ({ data }) => {
  const message = superjson.parse(data);
  console.log(message.type);
  if (message.type === "player.joined") process.exit(0);
});
setTimeout(() => process.exit(1), 20000);
"""


async def test_the_newest_partysocket(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="sky-newest")
    done = await asyncio.to_thread(
        subprocess.run,
        [
            "node",
            "--input-type=module",
            "-e",
            NEWEST,
            client.url.removeprefix("http://"),
            machine,
            "a b",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "actor.start\nplayer.joined\n"), done.stderr
