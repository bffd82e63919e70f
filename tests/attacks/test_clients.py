"""Row 19: frames and requests that are none, and clients that are slow. Too much of everything is in
`test_rates.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING

import hypothesis
import pytest
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from machinehub.edge import http_connection as transport
from machinehub.limits import Limits
from tests.protocols.test_websocket import raw_socket
from tests.support import COUNTER, Client, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path


async def ask(client: Client, request: bytes) -> bytes:
    """Bytes as they are, to the hub's port; all that it says until it hangs up.

    Client libraries mend what is to be tried here.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.transport.abort()


# --- row 19: WebSocket ----------------------------------------------------------------------------


def _control(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    size = (
        bytes((0x80 | len(payload),))
        if len(payload) < 126
        else bytes((0xFE,)) + len(payload).to_bytes(2, "big")
    )
    return bytes(((0x80 if fin else 0) | opcode,)) + size + bytes(4) + payload


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (Frame(Opcode.TEXT, b'{"type":"ping"}').serialize(mask=False), 1002),
        (Frame(Opcode.TEXT, b'{"type":"\xff\xfe"}').serialize(mask=True), 1007),
        (b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"1234", 1009),
        (
            Frame(Opcode.TEXT, b"", fin=False).serialize(mask=True)
            + Frame(Opcode.CONT, b"", fin=False).serialize(mask=True) * 3000,
            1008,
        ),
        (_control(9, b"x" * 126), 1002),
        (_control(9, b"x", fin=False), 1002),
        (_control(8, b"\x00"), 1002),
        (_control(8, (999).to_bytes(2, "big")), 1002),
        (_control(8, (1005).to_bytes(2, "big")), 1002),
        (_control(8, (1000).to_bytes(2, "big") + b"\xff"), 1007),
        (_control(0, b"x"), 1002),
        (_control(3, b""), 1002),
        (_control(11, b""), 1002),
        (bytes((0xC1, 0x80)) + bytes(4), 1002),
    ],
    ids=[
        "unmasked",
        "no UTF-8",
        "a terabyte announced",
        "fragments",
        "long ping",
        "ping in parts",
        "half a close code",
        "a code that is none",
        "a code nobody sends",
        "a reason that is no text",
        "a part of nothing",
        "opcode 3",
        "opcode 11",
        "compressed",
    ],
)
async def test_frames_that_are_none_end_the_connection(
    client: Client, data: bytes, code: int
) -> None:
    machine = await client.deploy(COUNTER, name="raw-frames")
    reader, writer = await raw_socket(client, f"{machine}/s")
    writer.write(data)
    received = await asyncio.wait_for(reader.readuntil(code.to_bytes(2, "big")), 60)
    assert received[-4] == 0x88
    writer.transport.abort()
    async with client.socket(f"{machine}/s") as peer:
        assert (await peer.event("increment"))["outcome"] == "accepted"


def made_up_frames() -> list[str]:
    """What hypothesis makes of frames: right ones, wrong ones, and texts that are none."""
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=8,
    )
    events = st.dictionaries(st.text(max_size=8), values, max_size=3).flatmap(
        lambda rest: st.fixed_dictionaries(
            {
                "type": st.sampled_from(["increment", "OK", "xstate.stop", "presence.left", ""])
                | st.text(max_size=10)
            }
        ).map(lambda head: rest | head)
    )
    frames = st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["event", "ping", "presence", "snapshot", "ack"]) | values,
            "id": st.text(max_size=300) | values,
            "event": events | values,
            "metadata": values,
            "seq": values,
        },
    )
    texts = st.text(max_size=60) | (values | frames).map(json.dumps)
    found: list[str] = []

    @hypothesis.settings(max_examples=400, database=None, derandomize=True, deadline=None)
    @hypothesis.given(texts | frames.map(json.dumps))
    def make(text: str) -> None:
        with contextlib.suppress(UnicodeEncodeError):
            found.append(text.encode().decode())

    make()
    return found


async def test_every_frame_has_its_answer(client: Client) -> None:
    """An error, an ack, a pong, or the effect of an event without an id: no frame is lost, and none
    ends the connection or the session.
    """
    machine = await client.deploy(COUNTER, name="made-up-frames")
    sent = [*made_up_frames(), '{"type":"event","id":"the-last","event":{"type":"increment"}}']
    async with client.socket(f"{machine}/s") as peer:
        await peer.until("snapshot")
        for frame in sent:
            await peer.send_raw(frame)
        while (ack := await peer.until("ack"))["id"] != "the-last":
            pass
        assert ack["outcome"] == "accepted"
        assert {frame["type"] for frame in peer.seen} <= {
            "snapshot",
            "update",
            "ack",
            "error",
            "pong",
            "presence",
        }
        answers = sum(frame["type"] in ("ack", "error", "pong") for frame in peer.seen)
        assert answers > len(sent) // 2
        codes = {frame["code"] for frame in peer.seen if frame["type"] == "error"} | {
            frame["error"]["code"] for frame in peer.seen if "error" in frame
        }
        assert codes <= {
            "bad_frame",
            "invalid_event",
            "invalid_metadata",
            "event_too_deep",
            "invalid_utf8",
        }
    journal = (
        await client.http.get(f"/api/v1/machines/{machine}/sessions/s/journal?limit=500")
    ).json()["data"]
    assert all(
        not entry["event"]["type"].startswith(("xstate.", "presence."))
        for entry in journal
        if entry["kind"] == "event"
    )


async def test_nothing_is_compressed(client: Client) -> None:
    """A client that offers to is told no: there is no bomb to unfold."""
    machine = await client.deploy(COUNTER, name="deflate")
    async with client.socket(f"{machine}/s", compression="deflate") as peer:
        assert peer.connection.protocol.extensions == []


async def test_a_slow_handshake_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "HEAD_S", 0.3)
    answer = await ask(client, b"GET /x/y HTTP/1.1\r\nHost: localhost\r\nUpgrade: webs")
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"request_timeout" in answer


async def test_a_body_that_never_ends_is_not_waited_for(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machinehub.edge.requests.BODY_S", 0.3)
    machine = await client.deploy(COUNTER, name="slow-body")
    answer = await ask(
        client,
        f"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 100\r\n\r\n{{".encode(),
    )
    assert answer.startswith(b"HTTP/1.1 408")


UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "
    b"AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
)


@pytest.mark.parametrize(
    ("request_bytes", "answers"),
    [
        (
            b"GET /{m} HTTP/1.1\r\nHost: localhost\r\n\r\nGET /{m}/s HTTP/1.1\r\nHost: "
            b"localhost\r\n" + UPGRADE + b"\r\n",
            1,
        ),
        (
            b"POST /{m}/s HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n"
            + UPGRADE
            + b"\r\n{}",
            1,
        ),
        (
            b"GET /{m}/s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
            + UPGRADE
            + b"\r\n0\r\n\r\n",
            1,
        ),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 14_000, 10),
    ],
    ids=[
        "behind another request",
        "with a body",
        "with a body in chunks",
        "fourteen thousand at once",
    ],
)
async def test_what_a_connection_may_not_begin_meanwhile(
    client: Client, request_bytes: bytes, answers: int
) -> None:
    """An upgrade took a connection away from an answer that nobody then ended; one with a body
    waited for ever; requests queued without bound.
    """
    machine = await client.deploy(COUNTER, name="meanwhile")
    answer = b""
    with contextlib.suppress(ConnectionResetError):  # who sends on is hung up on
        answer = await ask(client, request_bytes.replace(b"{m}", machine.encode()))
    assert answer.count(b"HTTP/1.1") <= answers
    assert b"101" not in answer.split(b"\r\n", 1)[0]
    assert client.connections(machine, "s") == 0


async def test_nothing_stands_within_an_answer(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start of a next request, or an empty line, brought a 408 into the stream under way."""
    monkeypatch.setattr(transport, "HEAD_S", 0.2)
    machine = await client.deploy(COUNTER, name="within")
    reader, writer = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
    writer.write(
        (
            f"GET /{machine}/s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        ).encode()
        + b"\r\nG"
    )
    await reader.readuntil(b"snapshot")
    # Longer than a head may take: another connection, begun now, has been given up by then.
    later, also = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
    also.write(b"G")
    await later.read()
    also.close()
    await client.http.post(f"/{machine}/s", json={"type": "increment"})
    assert b"408" not in await reader.readuntil(b'"count":1')
    writer.transport.abort()
    body = b'{"condition":{"tag":"never"},"timeout_ms":600}'
    answer = await ask(
        client,
        (
            f"POST /{machine}/s/wait HTTP/1.1\r\nHost: localhost\r\nConnection: "
            f"close\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        + body
        + b"\r\n",
    )
    assert b"wait_timeout" in answer


async def test_who_stops_waiting_gives_up_the_place(tmp_path: Path) -> None:
    async with running_hub(tmp_path, limits=Limits(connections_per_session=3)) as client:
        machine = await client.deploy(COUNTER)
        body = b'{"condition":{"tag":"never"},"timeout_ms":60000}'
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
            writer.write(
                (
                    f"POST /{machine}/s/wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
                    f"{len(body)}\r\n\r\n"
                ).encode()
                + body
            )
            await until(lambda: client.watchers(machine, "s") == 1)
            writer.transport.abort()
            await until(lambda: client.watchers(machine, "s") == 0)
        answer = await client.http.post(
            f"/{machine}/s/wait", json={"condition": {"matches": "active"}, "timeout_ms": 1000}
        )
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_answer_reaches_those_who_still_send(
    client: Client, monkeypatch: pytest.MonkeyPatch, *, chunked: bool
) -> None:
    """They were hung up on in the middle of their body, so that the 413 was lost.

    What comes too late is thrown away, for a while.
    """
    monkeypatch.setattr(transport, "LINGER_S", 1.0)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
    length = "Transfer-Encoding: chunked" if chunked else "Content-Length: 1000000000"
    writer.write(
        f"POST /api/v1/deployments HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n".encode()
    )
    block = b"x" * 65536
    block = b"10000\r\n" + block + b"\r\n" if chunked else block

    async def send_on() -> None:
        while True:
            writer.write(block)
            await writer.drain()

    sending = asyncio.create_task(send_on())
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).startswith(b"HTTP/1.1 413")
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(sending, 60)
    writer.transport.abort()
