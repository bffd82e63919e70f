"""Quotas of projects: each is held, says so by its code, and leaves other projects alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.clock import ManualClock
from tests.cli.test_cli import run
from tests.durable import send
from tests.edge.test_connect_tokens import closed
from tests.support import COUNTER, Client, problem, running_hub

if TYPE_CHECKING:
    from pathlib import Path


async def allow(hub: Client, **quotas: Any) -> None:
    answer = await hub.http.patch("/api/v1/projects/default", json={"quotas": quotas})
    assert answer.status_code == 200, answer.text


async def deploy(hub: Client, name: str, source: str = COUNTER, project: str = "default") -> Any:
    upload = {"name": name, "entry": "c.ts", "files": {"c.ts": source}}
    return await hub.http.post(f"/api/v1/deployments?project={project}", json=upload)


async def test_machines_versions_and_deployments(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_hub(tmp_path, clock=clock) as hub:
        await hub.http.post("/api/v1/projects", json={"name": "other"})
        await allow(hub, machines=1)
        assert (await deploy(hub, "a")).status_code == 201
        problem(await deploy(hub, "b"), 429, "quota_machines")
        assert (await deploy(hub, "b", project="other")).status_code == 201
        assert (await deploy(hub, "a", COUNTER + "\n")).status_code == 201
        await allow(hub, versions=2)
        problem(await deploy(hub, "a", COUNTER + "\n\n"), 429, "quota_versions")
        await allow(hub, versions=None, machines=None, deployments_per_s=0.5)
        assert (await deploy(hub, "c")).status_code == 201
        problem(await deploy(hub, "d"), 429, "quota_deployments")
        clock.move_to(clock.now_ms() + 2000)
        assert (await deploy(hub, "d")).status_code == 201


async def test_sessions_and_connections(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub:
        machine = await hub.deploy(COUNTER)
        await send(hub, f"{machine}/a")
        await allow(hub, sessions=2)
        await send(hub, f"{machine}/b")
        problem(await hub.http.get(f"/{machine}/c"), 429, "quota_sessions")
        assert (await hub.http.get(f"/{machine}/a")).status_code == 200
        await allow(hub, sessions=None, live_sessions=2)
        problem(await hub.http.get(f"/{machine}/c"), 429, "quota_live_sessions")
        async with hub.socket(f"{machine}/c") as socket:
            assert await closed(socket.connection) == 4008
        await allow(hub, live_sessions=None, connections=1)
        async with hub.socket(f"{machine}/a") as first:
            await first.until("snapshot")
            async with hub.socket(f"{machine}/b") as second:
                assert await closed(second.connection) == 4008
            stream = await hub.http.get(f"/{machine}/a", headers={"Accept": "text/event-stream"})
            problem(stream, 429, "quota_connections")
            used = (await hub.http.get("/api/v1/projects/default/usage")).json()["used"]
            assert used["connections"] == 1
        async with hub.socket(f"{machine}/b") as third:
            await third.until("snapshot")


async def test_events_and_bytes(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_hub(tmp_path, clock=clock) as hub:
        machine = await hub.deploy(COUNTER)
        await allow(hub, events_per_s=2)
        assert [
            (await hub.http.post(f"/{machine}/a", json={"type": "increment"})).status_code
            for _ in range(3)
        ] == [200, 200, 429]
        clock.move_to(clock.now_ms() + 1000)
        await allow(hub, events_per_s=None, database_bytes=1)
        await hub.hub.quotas.measure()
        refused = await hub.http.post(f"/{machine}/a", json={"type": "increment"})
        problem(refused, 429, "quota_database")
        problem(await deploy(hub, "another"), 429, "quota_database")
        used = (await hub.http.get("/api/v1/projects/default/usage")).json()
        assert used["used"]["database_bytes"] > 1000
        assert used["quotas"] == {"database_bytes": 1}
        assert (used["used"]["machines"], used["used"]["sessions"]) == (1, 1)
        await allow(hub, database_bytes=None)
        assert (await hub.http.get(f"/{machine}/a")).json()["seq"] == 3


@pytest.mark.parametrize(
    "quotas",
    [{"machine": 1}, {"machines": -1}, {"machines": 1.5}, {"events_per_s": 0}, {"a": "b"}],
)
async def test_what_is_no_quota(client: Client, quotas: Any) -> None:
    answer = await client.http.patch("/api/v1/projects/default", json={"quotas": quotas})
    assert answer.status_code == 400
    assert answer.json()["code"] in ("invalid_quotas", "invalid_body")


async def test_a_project_does_not_set_its_own(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="mh_own") as hub:
        own: dict[str, Any] = {"client": hub, "MACHINEHUB_TOKEN": "mh_own"}
        limited = await run("projects", "limit", "default", "machines=3", "events_per_s=9.5", **own)
        assert limited.returncode == 1, limited.stderr
        limited = await run("projects", "limit", "default", "machines=3", "events_per_s=9", **own)
        assert limited.stdout == "machines=3, events_per_s=9\n", limited.stderr
        token = await run(
            *("projects", "add-token", "default", "--name", "t", "--scope", "admin"),
            *("--scope", "read"),
            **own,
        )
        theirs: dict[str, Any] = {"client": hub, "MACHINEHUB_TOKEN": token.stdout.strip()}
        refused = await run("projects", "limit", "default", "machines=none", **theirs)
        assert refused.returncode == 3
        shown = await run("projects", "usage", "default", "--json", **theirs)
        assert json.loads(shown.stdout)["quotas"] == {"machines": 3, "events_per_s": 9}
        assert "live_sessions" in (await run("projects", "usage", "default", **theirs)).stdout
        assert (await run("projects", "limit", "default", "machines", **own)).returncode == 2
