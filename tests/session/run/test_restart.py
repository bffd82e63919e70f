"""Starting a session anew under its name."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from tests.durable import hub_on
from tests.processes import deploy, hub_process
from tests.support import COUNTER, free_port

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
            assert answer.status_code in (200, 503), answer.text  # it may be told to come again
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


async def test_a_version_that_does_not_start_changes_nothing(client: Client) -> None:
    machine = await client.deploy(SOURCE, name="restart-throws")
    await client.http.put(f"/{machine}/s", json={"input": {"from": 7}})
    await client.http.post(f"/{machine}/s", json={"type": "increment"})
    throws = SOURCE.replace("input?.from ?? 0", "(() => { throw new Error('no start') })()")
    await client.deploy(throws, name="restart-throws")
    async with client.socket(f"{machine}/s") as socket:
        await socket.until("snapshot")
        refused = await restart(client, machine)
        assert (refused.status_code, refused.json()["code"]) == (422, "machine_error")
        assert "no start" in refused.json()["detail"]
        ack = await socket.event("increment")
        assert ack["outcome"] == "accepted", "nobody was disconnected"
    found = (await client.http.get(f"/{machine}/s")).json()
    assert (found["version"], found["snapshot"]["context"]) == (1, {"count": 9})


async def test_restarts_happen_one_after_the_other(client: Client) -> None:
    machine = await client.deploy(SOURCE, name="restart-many")
    await client.http.put(f"/{machine}/s", json={"input": {"from": 7}})
    answers = await asyncio.gather(*(restart(client, machine) for _ in range(8)))
    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.json()["snapshot"]["context"] == {"count": 7}


async def test_timers_of_the_old_one_are_gone_and_those_of_the_new_one_fire(
    client: Client,
) -> None:
    source = """import { createMachine } from "xstate";
    export default createMachine({ initial: "a", states: { a: { after: { 50: "b" }, on: { GO: "c" } }, b: {}, c: { after: { 100: "d" } }, d: {} } });"""
    machine = await client.deploy(source, name="restart-timers")
    await client.http.post(f"/{machine}/s", json={"type": "GO"})
    assert (await restart(client, machine)).status_code == 200
    wait = {"condition": {"matches": "b"}}
    assert (await client.http.post(f"/{machine}/s/wait", json=wait)).status_code == 200
    entries = await client.http.get(f"/api/v1/machines/{machine}/sessions/s/journal")
    assert [entry["kind"] for entry in entries.json()["data"]] == ["start", "timer"]


async def test_a_kill_leaves_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    port = free_port()
    async with hub_process(tmp_path, port=port) as hub:
        url = await deploy(f"http://127.0.0.1:{port}", SOURCE)
        machine = url.rpartition("/")[2]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            for number in range(12):
                await http.put(f"/{machine}/s{number}", json={"input": {"from": 7}})
            path = f"/api/v1/machines/{machine}/sessions"
            calls = [
                asyncio.ensure_future(http.post(f"{path}/s{number}/restart", json={}))
                for number in range(12)
            ]
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            hub.process.kill()
            await asyncio.gather(*calls, return_exceptions=True)
    async with (
        hub_process(tmp_path, port=port),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http,
    ):
        for number in range(12):
            found = (await http.get(f"/{machine}/s{number}")).json()
            assert found["snapshot"]["context"] == {"count": 7}, "with its input"


async def test_a_finished_session_starts_anew(client: Client) -> None:
    source = """import { createMachine } from "xstate";
    export default createMachine({ initial: "a", states: { a: { on: { END: "b" } }, b: { type: "final" } } });"""
    machine = await client.deploy(source, name="restart-finished")
    await client.http.post(f"/{machine}/s", json={"type": "END"})
    assert (await restart(client, machine)).json()["snapshot"]["status"] == "active"
    assert (await client.http.post(f"/{machine}/s", json={"type": "END"})).status_code == 200
