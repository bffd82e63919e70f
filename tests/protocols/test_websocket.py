"""WebSockets: order, acks, exactly once, broadcasts, and clients that behave badly."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket as socketlib
from typing import TYPE_CHECKING

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from tests.support import COUNTER, Client, Socket, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path


async def closed_with(socket: Socket) -> int:
    """Reads until the hub closes; the close code."""
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await socket.receive()
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code


async def test_two_clients_share_a_counter(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="shared")
    async with client.socket(f"{machine}/s") as one, client.socket(f"{machine}/s") as two:
        for socket in (one, two):
            snapshot = await socket.until("snapshot")
            assert socket.connection.subprotocol == "machinehub.v1"
            assert (snapshot["seq"], snapshot["version"], snapshot["snapshot"]["context"]) == (
                1,
                1,
                {"count": 0},
            )
            assert set(snapshot["connection"]) == {"id", "count"}
        ack = await one.event("increment", event_id="e1")
        said = {"outcome": "accepted", "changed": True, "taken": True}
        assert ack == {"type": "ack", "id": "e1", "seq": 2} | said
        assert one.snapshot["context"] == {"count": 1}
        update = await two.until("update")
        assert (update["seq"], update["snapshot"]["context"]) == (2, {"count": 1})
        await two.event("decrement")
        await one.until("update")
        assert one.snapshot["context"] == two.snapshot["context"] == {"count": 0}


async def test_everybody_sees_one_order_without_gaps(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="order")
    async with client.socket(f"{machine}/s") as watcher:
        await watcher.until("snapshot")

        async def act(name: int) -> list[int]:
            async with client.socket(f"{machine}/s") as socket:
                await socket.until("snapshot")
                return [
                    (await socket.event("increment", event_id=f"{name}-{n}"))["seq"]
                    for n in range(30)
                ]

        acks = await asyncio.gather(*(act(name) for name in range(6)))
        await watcher.settle()
    assert all(mine == sorted(mine) for mine in acks)
    assert sorted(seq for mine in acks for seq in mine) == list(range(2, 182))
    updates = [
        (frame["seq"], frame["snapshot"]["context"]["count"])
        for frame in watcher.seen
        if frame["type"] == "update"
    ]
    assert updates == [(seq, seq - 1) for seq in range(2, 182)]


async def test_the_same_id_on_any_connection_counts_once(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="once")
    async with client.socket(f"{machine}/s") as one, client.socket(f"{machine}/s") as two:
        first = await one.event("increment", event_id="same")
        assert await one.event("increment", event_id="same") == first
        assert await two.event("decrement", event_id="same") == first
        frame = {"type": "event", "id": "flight", "event": {"type": "increment"}}
        for _ in range(5):
            await one.send_raw(frame)
            await two.send_raw(frame)
        acks = [await socket.until("ack") for socket in (one, two) for _ in range(5)]
        assert {ack["seq"] for ack in acks} == {3}
        http = await client.http.post(
            f"/{machine}/s", json={"type": "increment"}, headers={"Idempotency-Key": "same"}
        )
        assert http.json()["seq"] == first["seq"]
        assert (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"] == {
            "count": 2
        }


async def test_rejections_name_the_place_and_leave_the_state(client: Client) -> None:
    source = COUNTER.replace(
        "decrement: { actions:",
        (
            "loop: { actions: () => { for (;;); } },\n        boom: { actions: () => { throw new "
            "Error('boom') } },\n        decrement: { actions:"
        ),
    )
    machine = await client.deploy(source, name="rejects", entry="counter.ts")
    async with client.socket(f"{machine}/s") as socket:
        await socket.event("increment")
        for event, code in (("loop", "cpu_exceeded"), ("boom", "machine_error")):
            ack = await socket.event(event)
            assert (ack["outcome"], ack["seq"], ack["error"]["code"]) == ("rejected", 2, code)
        assert "boom (counter.ts:18:" in ack["error"]["detail"]
        assert (await socket.event("increment"))["seq"] == 3
        assert socket.snapshot["context"] == {"count": 2}


async def test_emitted_events_and_presence(client: Client) -> None:
    source = (
        'import { assign, createMachine, emit } from "xstate"; export default createMachine({ '
        'context: { here: [] }, on: { PING: { actions: emit(({ event }) => ({ type: "pong", n: '
        'event.n })) }, "presence.joined": { actions: assign({ here: ({ context, event }) => '
        '[...context.here, event.count] }) }, "presence.left": { actions: assign({ here: ({ '
        "context, event }) => [...context.here, -event.count] }) } } });"
    )
    machine = await client.deploy(source, name="emits")
    async with client.socket(f"{machine}/s") as one:
        await one.until("snapshot")  # from here on it hears what is emitted
        async with client.socket(f"{machine}/s") as two:
            await two.event({"type": "PING", "n": 7})
            emitted = await one.until("emitted")
            assert emitted["event"] == {"type": "pong", "n": 7}
            told = [
                frame for frame in one.seen if frame["type"] == "presence"
            ]  # it may have come before what was emitted
            while not told or len(told[-1]["members"]) < 2:
                told.append(await one.until("presence"))
            presence = told[-1]
            assert presence["count"] == 2
            assert set(presence["members"][0]) == {"id", "user", "joined_at"}
        while (await one.until("update"))["snapshot"]["context"]["here"] != [1, 2, -1]:
            pass


async def test_a_new_session_takes_its_input_from_the_query(client: Client) -> None:
    machine = await client.deploy(
        (
            'import { createMachine } from "xstate"; export default createMachine({ context: ({ '
            "input }) => ({ got: input }) });"
        ),
        name="query",
    )
    async with client.socket(f"{machine}/s?input=%7B%22a%22%3A1%7D") as socket:
        assert (await socket.until("snapshot"))["snapshot"]["context"] == {"got": {"a": 1}}
    async with client.socket(f"{machine}/t?input=%7B") as socket:
        assert (await socket.until("error"))["code"] == "invalid_input"
        assert await closed_with(socket) == 1008


async def test_timers_fire_by_themselves(client: Client) -> None:
    machine = await client.deploy(
        (
            'import { createMachine } from "xstate"; export default createMachine({ initial: "a", '
            'states: { a: { after: { 50: "b" } }, b: { after: { 50: "a" } } } });'
        ),
        name="ticks",
    )
    async with client.socket(f"{machine}/s") as socket:
        first = (await socket.until("snapshot"))["snapshot"]["value"]  # it may have fired by then
        seen = [(await socket.until("update"))["snapshot"]["value"] for _ in range(3)]
        assert [first, *seen] in (["a", "b", "a", "b"], ["b", "a", "b", "a"])
    await client.http.delete("/api/v1/machines/ticks")  # or it ticks through all other tests


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("", "bad_frame"),
        ("nonsense", "bad_frame"),
        ("[]", "bad_frame"),
        ("{}", "bad_frame"),
        ('{"type":"x"}', "bad_frame"),
        ('{"type":1}', "bad_frame"),
        ('{"type":"event","id":5,"event":{"type":"a"}}', "bad_frame"),
        ('{"type":"event","id":"","event":{"type":"a"}}', "bad_frame"),
        ('{"type":"event","id":"' + "x" * 257 + '","event":{"type":"a"}}', "bad_frame"),
        ('{"type":"event","id":"\\u0000\\u0000\\u0000hub-1","event":{"type":"a"}}', "bad_frame"),
        ('{"type":"event"}', "invalid_event"),
        ('{"type":"event","event":5}', "invalid_event"),
        ('{"type":"event","event":{"type":"xstate.stop"}}', "invalid_event"),
        ('{"type":"event","event":{"type":"a","v":NaN}}', "bad_frame"),
        ('{"type":"event","event":' + "[" * 30_000 + "}", "bad_frame"),
        ('{"type":"event","event":{"type":"a","v":"\\ud800"}}', "bad_frame"),
        ('{"type":"event","event":{"type":"a","v":"' + "x" * 65_530 + '"}}', "event_too_large"),
    ],
)
async def test_bad_frames_are_answered_and_the_connection_lives(
    client: Client, frame: str, code: str
) -> None:
    machine = await client.deploy(COUNTER, name="bad-frames")
    async with client.socket(f"{machine}/s") as socket:
        await socket.send_raw(frame)
        assert (await socket.until("error"))["code"] == code
        assert (await socket.event("increment"))["outcome"] == "accepted"


async def test_frames_that_end_the_connection(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="ending-frames")
    for frame, code in ((b"binary", 1003), ("x" * 70_000, 1009)):
        async with client.socket(f"{machine}/s") as socket:
            await socket.send_raw(frame)
            assert await closed_with(socket) == code
    async with client.socket("Nope00/s") as socket:
        assert await closed_with(socket) == 4004
    async with client.socket(f"{machine}@9/s") as socket:
        assert await closed_with(socket) == 4004


async def raw_socket(
    client: Client, path: str, *, receive_buffer: int = 0
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A WebSocket by hand, for what no client library sends."""
    plain = socketlib.socket()
    if receive_buffer:
        plain.setsockopt(socketlib.SOL_SOCKET, socketlib.SO_RCVBUF, receive_buffer)
    plain.setblocking(False)
    await asyncio.get_running_loop().sock_connect(plain, ("127.0.0.1", client.hub.settings.port))
    reader, writer = await asyncio.open_connection(sock=plain)
    key = base64.b64encode(os.urandom(16)).decode()
    writer.write(
        (
            f"GET /{path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: "
            f"Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        ).encode()
    )
    await reader.readuntil(b"\r\n\r\n")
    return reader, writer


async def test_half_a_frame_holds_up_nobody(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="half")
    _, writer = await raw_socket(client, f"{machine}/s")
    writer.write(
        Frame(
            Opcode.TEXT, json.dumps({"type": "event", "event": {"type": "increment"}}).encode()
        ).serialize(mask=True)[:20]
    )
    async with client.socket(f"{machine}/s") as socket:
        assert (await socket.event("increment"))["seq"] == 2
    writer.close()


async def test_a_client_that_never_reads_gets_the_newest_then_4008(client: Client) -> None:
    source = (
        'import { assign, createMachine, emit } from "xstate"; export default createMachine({ '
        'context: { n: 0, fat: "" }, on: { FAT: { actions: assign({ n: ({ context }) => '
        'context.n + 1, fat: ({ context }) => "x".repeat(100000) + context.n }) }, EMIT: { '
        'actions: emit(() => ({ type: "e", fat: "x".repeat(100000) })) } } });'
    )
    machine = await client.deploy(source, name="slow")
    reader, writer = await raw_socket(client, f"{machine}/s", receive_buffer=8192)
    await reader.readuntil(b"}")
    async with client.socket(f"{machine}/s") as socket:
        for _ in range(80):
            await socket.event("FAT")
        assert (
            client.connections(machine, "s") == 2
        )  # updates may be skipped: the slow one costs no more than its bound
        for _ in range(300):
            await socket.event("EMIT")
            if client.connections(machine, "s") == 1:
                break
        await until(lambda: client.connections(machine, "s") == 1)
        assert (await socket.event("FAT"))["outcome"] == "accepted"
    writer.close()


async def test_a_session_has_room_for_so_many(tmp_path: Path) -> None:
    from machinehub.limits import Limits

    async with running_hub(
        tmp_path, workers=1, limits=Limits(connections_per_session=1000)
    ) as client:
        machine = await client.deploy(COUNTER)

        async def try_one() -> int:
            async with asyncio.timeout(60):
                reader, writer = await raw_socket(client, f"{machine}/s")
                first = await reader.readuntil(b"}")
                if b"error" not in first:
                    sockets.append(writer)
                    return 0
                await reader.readuntil((4008).to_bytes(2, "big"))
                writer.transport.abort()
                return 4008

        sockets: list[asyncio.StreamWriter] = []
        results: list[int] = []
        for _ in range(20):
            results += await asyncio.gather(*(try_one() for _ in range(100)))
        assert (results.count(0), results.count(4008)) == (1000, 1000)
        assert (
            await client.http.post(f"/{machine}/s", json={"type": "increment"})
        ).status_code == 200
        for writer in sockets:
            writer.transport.abort()


async def test_deploying_and_deleting_under_traffic(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="traffic")
    async with client.socket(f"{machine}/s") as socket:
        counting = asyncio.create_task(count_until_closed(socket))
        for number in range(3):
            await client.deploy(COUNTER + "\n" * (number + 1), name="traffic")
        assert (await client.http.get(f"/{machine}/s")).json()["version"] == 1
        assert (await client.http.get(f"/{machine}/fresh")).json()["version"] == 4
        assert (await client.http.delete("/api/v1/machines/traffic")).status_code == 204
        code, acknowledged = await asyncio.wait_for(counting, 60)
        assert code == 4004
        assert acknowledged


async def count_until_closed(socket: Socket) -> tuple[int, int]:
    acknowledged = 0
    try:
        while True:
            ack = await socket.event("increment")
            acknowledged += ack["outcome"] == "accepted"
    except ConnectionClosed as closed:
        assert closed.rcvd is not None
        return closed.rcvd.code, acknowledged


async def test_rates_of_strangers(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="t", workers=1) as client:
        machine = await client.deploy(COUNTER)
        async with client.socket(f"{machine}/s") as socket:
            await socket.until("snapshot")
            for number in range(150):
                await socket.send_raw(
                    {"type": "event", "id": str(number), "event": {"type": "increment"}}
                )
            acks = [await socket.until("ack") for _ in range(150)]
        codes = [ack["error"]["code"] for ack in acks if ack["outcome"] == "rejected"]
        assert set(codes) == {"rate_limited"}
        assert 30 <= len(codes) <= 50
