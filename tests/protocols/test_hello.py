"""Who a client is: told by a subprotocol, a header or a first frame, and in no URL."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support import COUNTER, problem, running_hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from tests.support import Client

KEY = "k" * 30
V1 = "machinehub.v1"


def of_key(key: str) -> str:
    return "machinehub.key." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def socket(client: Client, path: str, *protocols: str) -> connect:
    url = f"{client.url}/{path}".replace("http", "ws", 1)
    return connect(url, subprotocols=[V1, *protocols])  # type: ignore[list-item]


async def until(connection: ClientConnection, kind: str) -> dict[str, Any]:
    while True:
        frame: dict[str, Any] = json.loads(await connection.recv())
        if frame["type"] == kind:
            return frame


async def hello(connection: ClientConnection, **said: Any) -> None:
    await connection.send(json.dumps({"type": "hello", **said}))


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[tuple[Client, str]]:
    async with running_hub(tmp_path) as client:
        machine = await client.deploy(COUNTER)
        yield client, f"{machine}/s"


async def member_of(client: Client, path: str, key: str) -> str:
    """By the old way, which goes on working."""
    async with socket(client, f"{path}?client={key}") as connection:
        found: str = (await until(connection, "snapshot"))["connection"]["id"]
        return found


async def test_a_key_comes_as_a_subprotocol(at: tuple[Client, str]) -> None:
    client, path = at
    known = await member_of(client, path, KEY)
    async with socket(client, path, of_key(KEY)) as connection:
        assert connection.subprotocol == V1
        assert (await until(connection, "snapshot"))["connection"]["id"] == known


async def test_a_key_comes_as_a_header(at: tuple[Client, str]) -> None:
    client, path = at
    odd = "ключ é 0123456789 0123456789"
    async with socket(client, path, of_key(odd)) as connection:
        known = (await until(connection, "snapshot"))["connection"]["id"]
        from urllib.parse import quote

        described = await client.http.put(
            f"/{path}/presence", json={"metadata": 1}, headers={"Machinehub-Client": quote(odd)}
        )
        members = described.json()["members"]
        assert [(each["id"], each["metadata"]) for each in members] == [(known, 1)]
    await client.http.post(
        f"/{path}", json={"type": "increment"}, headers={"Machinehub-Client": quote(odd)}
    )


async def test_a_client_may_say_who_it_is_in_its_first_frame(at: tuple[Client, str]) -> None:
    client, path = at
    known = await member_of(client, path, KEY)
    async with socket(client, path, "machinehub.hello") as connection:
        await hello(connection, key=KEY)
        await connection.send('{"type":"event","id":"1","event":{"type":"increment"}}')
        first = json.loads(await connection.recv())
        assert (first["type"], first["connection"]["id"]) == ("snapshot", known)
        assert (await until(connection, "ack"))["outcome"] == "accepted"


async def test_a_hello_that_was_not_announced_is_a_new_connection(at: tuple[Client, str]) -> None:
    client, path = at
    known = await member_of(client, path, KEY)
    async with socket(client, path) as connection:
        anonymous = (await until(connection, "snapshot"))["connection"]["id"]
        await hello(connection, key=KEY)
        for number in range(3):
            event = {"type": "event", "id": str(number), "event": {"type": "increment"}}
            await connection.send(json.dumps(event))
        again = await until(connection, "snapshot")
        assert again["connection"]["id"] == known != anonymous
        for number in range(3):
            assert (await until(connection, "ack"))["id"] == str(number)
        present = (await client.http.get(f"/{path}/presence")).json()
        assert [each["id"] for each in present["members"]] == [known]
        await hello(connection, key="another one's 0123456789")
        assert (await until(connection, "error"))["code"] == "bad_frame"


@pytest.mark.parametrize(
    ("protocols", "first", "code"),
    [
        (["machinehub.hello"], {"type": "event", "event": {"type": "x"}}, "bad_frame"),
        (["machinehub.hello"], {"type": "hello", "key": 5}, "bad_frame"),
        (["machinehub.hello"], {"type": "hello", "key": "short"}, "invalid_client_key"),
        ([], {"type": "hello", "key": "short"}, "invalid_client_key"),
        ([], {"type": "hello", "key": ["k"]}, "bad_frame"),
        ([of_key("short")], None, "invalid_client_key"),
        (["machinehub.key.***"], None, "invalid_client_key"),
        ([of_key(KEY), of_key(KEY + "2")], None, "invalid_client_key"),
    ],
)
async def test_what_is_no_key_is_refused(
    at: tuple[Client, str], protocols: Sequence[str], first: Any, code: str
) -> None:
    client, path = at
    async with socket(client, path, *protocols) as connection:
        if first is not None:
            await connection.send(json.dumps(first))
        assert (await until(connection, "error"))["code"] == code
        with pytest.raises(ConnectionClosed):
            await until(connection, "never")


async def test_a_client_that_announces_a_hello_and_says_nothing_is_closed(
    at: tuple[Client, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, path = at
    monkeypatch.setattr("machinehub.protocols.native.websocket.HELLO_S", 0.1)
    async with socket(client, path, "machinehub.hello") as connection:
        assert (await until(connection, "error"))["code"] == "bad_frame"
    two = await client.http.get(f"/{path}?client={KEY}", headers={"Machinehub-Client": KEY + "2"})
    assert two.status_code in (200, 400)
    sent = await client.http.post(
        f"/{path}?client={KEY}",
        json={"type": "increment"},
        headers={"Machinehub-Client": "other" * 9},
    )
    problem(sent, 400, "invalid_client_key")


async def test_nothing_behind_an_early_hello_is_lost(at: tuple[Client, str]) -> None:
    """All of it in one segment, before the hub has looked for the session."""
    client, path = at
    async with socket(client, path) as connection:
        frames: list[Any] = [{"type": "hello", "key": KEY}]
        frames += [
            {"type": "event", "id": str(n), "event": {"type": "increment"}} for n in range(5)
        ]
        await asyncio.gather(*(connection.send(json.dumps(frame)) for frame in frames))
        for number in range(5):
            assert (await until(connection, "ack"))["id"] == str(number)


async def test_a_first_frame_that_is_no_text_is_no_accident(
    at: tuple[Client, str], caplog: pytest.LogCaptureFixture
) -> None:
    client, path = at
    for early in (b'{"type":"hello","x":"\xff"}', b"\xff"):
        async with socket(client, path) as connection:
            await connection.send(early, text=True)
            with pytest.raises(ConnectionClosed) as closed:
                await until(connection, "never")
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1007
    assert not caplog.records
