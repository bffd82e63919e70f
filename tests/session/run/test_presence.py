"""Who is there: members, not connections; without ghosts, across reloads, crashes and restarts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import httpx
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from machinehub.errors import Unavailable
from machinehub.limits import Limits
from tests.processes import deploy, hub_process
from tests.support import COUNTER, Client, Socket, running_hub, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import pytest

    from tests.processes import Process

ROOM = """
import { assign, createMachine } from "xstate";
const note = (sign) => assign({ log: ({ context, event }) => [...context.log, sign + event.sender.id.slice(0, 4) + ":" + event.count] });
export default createMachine({
  context: { log: [], said: [] },
  on: {
    "presence.joined": { actions: note("+") },
    "presence.left": { actions: note("-") },
    SAY: { actions: assign({ said: ({ context, event }) => [...context.said, event.sender.id] }) },
  },
});
"""
SHORT = Limits(presence_grace_ms=300)
ANN, BOB = "anns-key-made-up-once", "bobs-key-made-up-once"


async def told_to(http: httpx.AsyncClient, path: str, wanted: int) -> list[str]:
    """What the machine was told, once it is so much."""

    async def enough() -> list[str] | None:
        log: list[str] = (await http.get(f"/{path}")).json()["snapshot"]["context"]["log"]
        return log if len(log) >= wanted else None

    log: list[str] = await until(enough)
    return log


async def log_of(client: Client, path: str, wanted: int) -> list[str]:
    return await told_to(client.http, path, wanted)


async def presence(socket: Socket, count: int) -> dict[str, Any]:
    while (frame := await socket.until("presence"))["count"] != count:
        pass
    return frame


async def my_id(socket: Socket) -> str:
    connection: dict[str, Any] = (await socket.until("snapshot"))["connection"]
    return str(connection["id"])


async def test_members_are_told_whole_and_then_in_differences(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="crowd")
    async with client.socket(f"{machine}/s?client={ANN}") as ann:
        me = await my_id(ann)
        first = await presence(ann, 1)
        assert [member["id"] for member in first["members"]] == [me]
        assert "joined" not in first
        async with client.socket(f"{machine}/s") as guest:
            guest_id = await my_id(guest)
            assert [member["id"] for member in (await presence(guest, 2))["members"]] == [
                me,
                guest_id,
            ]
            news = await presence(ann, 2)
            assert ([member["id"] for member in news["joined"]], news["left"]) == ([guest_id], [])
            await guest.send_raw(
                {"type": "presence", "metadata": {"name": "Bob", "more": "x" * 3000}}
            )
            changed = await presence(ann, 2)
            assert (
                changed["changed"][0]["id"],
                changed["changed"][0]["metadata"]["name"],
                changed["joined"],
            ) == (guest_id, "Bob", [])
            assert "members" not in changed, "a long list goes to newcomers only"
            listed = (await client.http.get(f"/{machine}/s/presence")).json()
            assert (listed["count"], [member["id"] for member in listed["members"]]) == (
                2,
                [me, guest_id],
            )
            async with client.socket(f"{machine}/s?client={ANN}") as again:
                assert await my_id(again) == me
                assert (await presence(again, 2))["members"][1]["metadata"]["name"] == "Bob"
        assert (await presence(ann, 1))["left"] == [guest_id]


async def test_a_reload_is_not_a_leave(tmp_path: Path) -> None:
    async with running_hub(tmp_path, limits=SHORT) as client:
        machine = await client.deploy(ROOM)
        async with client.socket(f"{machine}/s?client={ANN}") as ann:
            me = await my_id(ann)
            await ann.event("SAY")
        async with client.socket(f"{machine}/s?client={ANN}") as ann:
            assert await my_id(ann) == me
            await ann.event("SAY")
            await client.http.post(f"/{machine}/s?client={ANN}", json={"type": "SAY"})
            async with client.socket(f"{machine}/s?client={BOB}") as bob:
                bobs = (await my_id(bob))[:4]
            # Bob left after Ann was away, and is told to have left: of Ann it would have been told before.
            told = [f"+{me[:4]}:1", f"+{bobs}:2", f"-{bobs}:1"]
            assert await log_of(client, f"{machine}/s", 3) == told
            assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"][
                "said"
            ] == [me, me, me]
        assert (await client.http.get(f"/{machine}/s/presence")).json()["count"] == 1, (
            "somebody who may come back is still there"
        )
        assert await log_of(client, f"{machine}/s", 4) == [*told, f"-{me[:4]}:0"]
        assert (await client.http.get(f"/{machine}/s/presence")).json() == {
            "count": 0,
            "members": [],
        }


@contextlib.asynccontextmanager
async def on_hub(hub: Process, path: str) -> AsyncIterator[Socket]:
    """A socket of a hub that is a process of its own."""
    url = f"{hub.url.replace('http', 'ws', 1)}/{path}"
    async with connect(url, subprotocols=[Subprotocol("machinehub.v1")]) as connection:
        yield Socket(connection)


async def test_nobody_is_a_ghost_after_a_crash(database_url: str, tmp_path: Path) -> None:
    def start() -> AbstractAsyncContextManager[Process]:
        return hub_process(
            tmp_path,
            MACHINEHUB_DATABASE_URL=database_url,
            MACHINEHUB_LIMIT_PRESENCE_GRACE_MS="300",
        )

    async def told(hub: Process, session: str, wanted: int) -> list[str]:
        async with httpx.AsyncClient(base_url=hub.url) as http:
            return await told_to(http, f"{machine}/{session}", wanted)

    async with start() as hub:
        machine = (await deploy(hub.url, ROOM)).rsplit("/", 1)[1]
        async with on_hub(hub, f"{machine}/s?client={ANN}") as one:
            ann = (await my_id(one))[:4]
            async with on_hub(hub, f"{machine}/s?client={BOB}") as two:
                bob = (await my_id(two))[:4]
                assert await told(hub, "s", 2) == [f"+{ann}:1", f"+{bob}:2"]
                hub.process.kill()
                await hub.process.wait()
    everything = [f"+{ann}:1", f"+{bob}:2", f"-{ann}:1", f"-{bob}:0"]
    async with start() as hub:
        async with on_hub(hub, f"{machine}/s?client={BOB}") as two:
            assert (await my_id(two))[:4] == bob
            assert await told(hub, "s", 3) == everything[:3], "one came back, one did not"
        assert await told(hub, "s", 4) == everything
        async with on_hub(hub, f"{machine}/other?client={ANN}"):
            await told(hub, "other", 1)
            hub.process.kill()
            await hub.process.wait()
    async with start() as hub:
        await told(hub, "other", 2)  # whoever is still believed to be there is told of in one go
        assert await told(hub, "s", 4) == everything


async def test_a_forks_people_are_not_there(database_url: str, tmp_path: Path) -> None:
    async with running_hub(tmp_path, database_url=database_url, limits=SHORT) as client:
        machine = await client.deploy(ROOM)
        async with client.socket(f"{machine}/s?client={ANN}") as ann:
            me = await my_id(ann)
            async with client.socket(f"{machine}/s?client={BOB}"):
                assert len(await log_of(client, f"{machine}/s", 2)) == 2
                assert (
                    await client.http.post(
                        f"/api/v1/machines/{machine}/sessions/s/fork",
                        json={"at": 2, "session": "f"},
                    )
                ).status_code == 201
                async with client.socket(f"{machine}/f?client={ANN}") as forked:
                    other = await my_id(forked)
                    assert other != me, "nobody is recognised in another session"
                    assert await log_of(client, f"{machine}/f", 3) == [
                        f"+{me[:4]}:1",
                        f"-{me[:4]}:0",
                        f"+{other[:4]}:1",
                    ]


async def test_a_deletion_that_failed_leaves_no_ghosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machinehub.session.run.journal.GIVE_UP_S", 0.3)
    async with running_hub(
        tmp_path, limits=Limits(presence_grace_ms=2000)
    ) as client:  # on a busy computer, coming back takes a while
        machine = await client.deploy(ROOM)
        async with client.socket(f"{machine}/s?client={ANN}") as ann:
            ids = [(await my_id(ann))[:4]]
            async with client.socket(f"{machine}/s?client={BOB}") as bob:
                ids.append((await my_id(bob))[:4])
                assert len(await log_of(client, f"{machine}/s", 2)) == 2

                async def away(_items: object) -> None:
                    raise Unavailable("unavailable", "away")

                with monkeypatch.context() as patch:
                    patch.setattr(client.hub.session_store, "commit", away)
                    assert (
                        await client.http.delete(f"/api/v1/machines/{machine}/sessions/s")
                    ).status_code == 503
        async with client.socket(f"{machine}/s?client={ANN}"):
            assert await log_of(client, f"{machine}/s", 3) == [
                f"+{ids[0]}:1",
                f"+{ids[1]}:2",
                f"-{ids[1]}:1",
            ]
        assert (await log_of(client, f"{machine}/s", 4))[3] == f"-{ids[0]}:0"
        assert not client.hub.sessions.presence_events._told, "what nobody needs is forgotten"


async def test_a_fork_that_was_made_after_all_has_no_ghosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_hub(tmp_path, limits=SHORT) as client:
        machine = await client.deploy(ROOM)
        async with client.socket(f"{machine}/s?client={ANN}") as ann:
            me = (await my_id(ann))[:4]
            await log_of(client, f"{machine}/s", 1)
            real = client.hub.sessions.fork

            async def lost(*arguments: Any, **more: Any) -> None:
                await real(*arguments, **more)
                raise Unavailable("unavailable", "the answer was lost")

            monkeypatch.setattr(client.hub.sessions, "fork", lost)
            assert (
                await client.http.post(
                    f"/api/v1/machines/{machine}/sessions/s/fork", json={"session": "f"}
                )
            ).status_code == 503
        async with client.socket(f"{machine}/f?client={BOB}") as bob:
            other = (await my_id(bob))[:4]
            assert await log_of(client, f"{machine}/f", 3) == [
                f"+{me}:1",
                f"-{me}:0",
                f"+{other}:1",
            ]


async def test_metadata_cannot_break_a_stream(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="lines")
    async with (
        client.socket(f"{machine}/s") as socket,
        client.http.stream(
            "GET", f"/{machine}/s", headers={"Accept": "text/event-stream"}
        ) as response,
    ):
        await socket.until("snapshot")
        await socket.send_raw('{"type":"presence","metadata":{"a":\n\r 1, "b": "x\\ny"}}')
        async for line in response.aiter_lines():
            if line.startswith("data: ") and '"metadata"' in line:
                break
        frame = json.loads(line[6:])
        assert [member["metadata"] for member in frame["members"] if "metadata" in member] == [
            {"a": 1, "b": "x\ny"}
        ]


async def test_what_is_wrong_is_said(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="wrong")
    for wrong in ("client=short", f"client={ANN}&client={BOB}", "client=%ff" + "x" * 20):
        async with client.socket(f"{machine}/s?{wrong}") as socket:
            assert (await socket.until("error"))["code"] == "invalid_client_key"
        assert (await client.http.post(f"/{machine}/s?{wrong}", json={"type": "increment"})).json()[
            "code"
        ] == "invalid_client_key"
    async with client.socket(f"{machine}/s?client={ANN}") as socket:
        await socket.until("snapshot")
        for frame, code in (
            ({"type": "presence"}, "invalid_metadata"),
            ({"type": "presence", "metadata": "x" * 4096}, "metadata_too_large"),
            ('{"type":"presence","metadata":' + "[" * 70 + "]" * 70 + "}", "invalid_metadata"),
            ('{"type":"presence","metadata":"\\ud800"}', "invalid_metadata"),
        ):
            await socket.send_raw(frame)
            assert (await socket.until("error"))["code"] in (code, "bad_frame"), frame
        described = await client.http.put(
            f"/{machine}/s/presence?client={ANN}", json={"metadata": {"name": "Ann"}}
        )
        assert described.json()["members"][0]["metadata"] == {"name": "Ann"}
        await client.http.put(f"/{machine}/s/presence?client={ANN}", json={"metadata": None})
        assert (
            "metadata" not in (await client.http.get(f"/{machine}/s/presence")).json()["members"][0]
        )
        for path, body, status, code in (
            (f"/{machine}/s/presence", {"metadata": 1}, 409, "not_present"),
            (f"/{machine}/nobody/presence?client={ANN}", {"metadata": 1}, 404, "no_such_session"),
            (f"/{machine}/s/presence?client={ANN}", {}, 400, "invalid_body"),
            (
                f"/{machine}/s/presence?client={ANN}",
                {"metadata": "x" * 9000},
                413,
                "metadata_too_large",
            ),
        ):
            answer = await client.http.put(path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (status, code), path
    assert (await client.http.get(f"/{machine}/nobody/presence")).status_code == 404, (
        "looking creates nothing"
    )


async def test_readers_of_sse_are_members_too(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="readers")
    async with client.http.stream(
        "GET", f"/{machine}/s?client={ANN}", headers={"Accept": "text/event-stream"}
    ) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: ") and (frame := json.loads(line[6:]))["type"] == "presence":
                break
        assert frame["count"] == 1
        async with client.socket(f"{machine}/s?client={ANN}") as socket:
            assert await my_id(socket) == frame["members"][0]["id"]
            assert (await presence(socket, 1))["count"] == 1


async def test_readers_of_sse_are_told_that_there_is_nothing_to_come_back_to(
    client: Client,
) -> None:
    machine = await client.deploy(COUNTER, name="gone")
    lines: list[str] = []
    async with client.http.stream(
        "GET", f"/{machine}/s", headers={"Accept": "text/event-stream"}
    ) as response:
        async for line in response.aiter_lines():
            lines.append(line)
            if "snapshot" in line:
                await client.http.delete(f"/api/v1/machines/{machine}/sessions/s")
    assert [json.loads(line[6:])["code"] for line in lines if '"error"' in line] == [
        "no_such_session"
    ]


async def test_a_connection_that_answers_no_ping_is_no_ghost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The intervals are 15 s each; here they are short.

    A raw socket shakes hands, and then is silent as a network that is gone.
    """
    monkeypatch.setattr("machinehub.server.PING_INTERVAL_S", 0.2)
    monkeypatch.setattr("machinehub.server.PING_TIMEOUT_S", 0.2)
    async with running_hub(tmp_path, limits=SHORT) as client:
        machine = await client.deploy(COUNTER)
        reader, writer = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
        writer.write(
            (
                f"GET /{machine}/s?client={ANN} HTTP/1.1\r\nHost: localhost\r\nUpgrade: "
                "websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: "
                "13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            ).encode()
        )
        assert b"101" in await reader.readline()
        async with client.socket(f"{machine}/s") as watching:
            assert (await presence(watching, 2))["count"] == 2
            assert (await presence(watching, 1))["left"]
        writer.close()


async def test_a_large_crowd_arrives_and_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than may wait for their turn at once, so that some of it is told later; in the end the
    machine knows what is true.
    """
    monkeypatch.setattr("machinehub.session.run.presence_events.RETRY_S", 0.02)
    async with running_hub(
        tmp_path, limits=Limits(presence_grace_ms=300, pending_per_session=5)
    ) as client:
        machine = await client.deploy(
            'import { assign, createMachine } from "xstate"; export default createMachine({ '
            'context: { log: [] }, on: { "presence.*": { actions: assign({ log: ({ event }) => '
            "[event.count] }) } } });"
        )
        sockets = [client.socket(f"{machine}/s") for _ in range(30)]
        opened = await asyncio.gather(*(socket.__aenter__() for socket in sockets))
        first = await presence(opened[0], 30)
        assert len(first.get("members", [])) <= 100

        async def believes(count: int) -> bool:
            frame = (await client.http.get(f"/{machine}/s")).json()
            return bool(frame["snapshot"]["context"]["log"] == [count])

        await until(lambda: believes(30))
        await asyncio.gather(*(socket.__aexit__(None, None, None) for socket in sockets))
        await until(lambda: believes(0))
