"""Starting a session anew under its name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from websockets.exceptions import ConnectionClosed

from tests.durable import hub_on
from tests.support import COUNTER

if TYPE_CHECKING:
    from pathlib import Path

    from httpx import Response

    from tests.support import Client

SOURCE = COUNTER.replace(
    "context: { count: 0 }", "context: ({ input }) => ({ count: input?.from ?? 0 })"
)


async def restart(client: Client, machine: str, session: str = "s", **body: Any) -> Response:
    path = f"/api/v1/machines/{machine}/sessions/{session}/restart"
    return await client.http.post(path, json=body)


async def test_a_session_starts_anew_on_the_active_version(
    database_url: str, tmp_path: Path
) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(SOURCE)
        await client.http.put(f"/{machine}/s", json={"input": {"from": 40}})
        await client.http.post(f"/{machine}/s", json={"type": "increment"})
        await client.deploy(SOURCE + "// two")
        async with client.socket(f"{machine}/s") as socket:
            await socket.until("snapshot")
            answer = await restart(client, machine)
            assert answer.status_code == 200, answer.text
            assert answer.json()["version"] == 2
            assert answer.json()["seq"] == 1
            assert answer.json()["snapshot"]["context"] == {"count": 40}, "with its input"
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    await socket.receive()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4010
        back = await restart(client, machine, version=1)
        assert back.json()["version"] == 1
    async with hub_on(database_url, tmp_path) as client:
        found = (await client.http.get(f"/{machine}/s")).json()
        assert (found["version"], found["seq"]) == (1, 1)
        entries = await client.http.get(f"/api/v1/machines/{machine}/sessions/s/journal")
        assert [entry["kind"] for entry in entries.json()["data"]] == ["start"]


async def test_who_comes_meanwhile_finds_the_new_one(client: Client) -> None:
    machine = await client.deploy(SOURCE, name="restart-race")
    await client.http.put(f"/{machine}/s", json={"input": {"from": 7}})
    for _ in range(5):
        answers = await asyncio.gather(
            restart(client, machine),
            *(client.http.get(f"/{machine}/s") for _ in range(10)),
            *(client.http.post(f"/{machine}/s", json={"type": "increment"}) for _ in range(10)),
        )
        assert answers[0].status_code == 200, answers[0].text
        for answer in answers[1:]:
            assert answer.status_code in (200, 404), answer.text  # the old one was deleted under it
        context = (await client.http.get(f"/{machine}/s")).json()["snapshot"]["context"]
        assert 7 <= context["count"] <= 17, "nobody began it without its input"


async def test_what_cannot_be_started_anew(client: Client) -> None:
    machine = await client.deploy(SOURCE, name="restart-refused")
    missing = await restart(client, machine, "none")
    assert (missing.status_code, missing.json()["code"]) == (404, "no_such_session")
    await client.http.get(f"/{machine}/s")
    version = await restart(client, machine, version=9)
    assert (version.status_code, version.json()["code"]) == (404, "no_such_version")
    assert (await client.http.get(f"/{machine}/s")).json()["seq"] == 1, "it is as it was"
    for body in ({"version": 0}, {"version": "2"}, {"versoin": 1}):
        refused = await restart(client, machine, **body)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_body")


async def test_a_finished_session_starts_anew(client: Client) -> None:
    source = """import { createMachine } from "xstate";
    export default createMachine({ initial: "a", states: { a: { on: { END: "b" } }, b: { type: "final" } } });"""
    machine = await client.deploy(source, name="restart-finished")
    await client.http.post(f"/{machine}/s", json={"type": "END"})
    assert (await restart(client, machine)).json()["snapshot"]["status"] == "active"
    assert (await client.http.post(f"/{machine}/s", json={"type": "END"})).status_code == 200
