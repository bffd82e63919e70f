"""A session as a stream of server-sent events."""

from __future__ import annotations

import json
from typing import Any

from tests.support import COUNTER, Client, until


async def test_server_sent_events(client: Client) -> None:
    machine = await client.deploy(COUNTER, name="sse")
    frames: list[tuple[str | None, dict[str, Any]]] = []
    async with client.http.stream(
        "GET", f"/{machine}/s", headers={"Accept": "text/event-stream"}
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        last_id = None
        async for line in response.aiter_lines():
            if line.startswith("id: "):
                last_id = line[4:]
            elif line.startswith("data: "):
                frames.append((last_id, json.loads(line[6:])))
                last_id = None
                if len(frames) == 1:
                    await client.http.post(f"/{machine}/s", json={"type": "increment"})
                if frames[-1][1]["type"] == "update":
                    break
    assert frames[0][0] == "1"
    assert frames[0][1]["type"] == "snapshot"
    assert (frames[-1][0], frames[-1][1]["seq"]) == ("2", 2)
    await until(lambda: client.connections(machine, "s") == 0)


async def test_a_stream_goes_on_where_it_was(client: Client) -> None:
    machine = await client.deploy(
        (
            'import { createMachine, emit } from "xstate"; export default createMachine({ on: { '
            "SAY: "
            '{ actions: emit(({ event }) => ({ type: "said", n: event.n })) } } });'
        ),
        name="resume",
    )
    for number in range(4):
        await client.http.post(f"/{machine}/s", json={"type": "SAY", "n": number})
    frames: list[dict[str, Any]] = []
    async with client.http.stream(
        "GET", f"/{machine}/s", headers={"Accept": "text/event-stream", "Last-Event-ID": "3"}
    ) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                frames.append(json.loads(line[6:]))
                if len(frames) == 3:
                    break
    assert [frame["type"] for frame in frames] == ["snapshot", "emitted", "emitted"]
    assert [(frame["seq"], frame["event"]["n"]) for frame in frames[1:]] == [(4, 2), (5, 3)]
