"""Requests to the world where hubs are several: one node sends each, another goes on when it dies,
and the answer finds its session wherever it is.
"""

from __future__ import annotations

import functools
import signal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.cluster.clusters import nats_server, running_cluster
from tests.cluster.test_failover import cluster
from tests.databases import new_database
from tests.durable import asleep
from tests.effects.test_broker import FETCHER, came, came_to, deployed, effects, send
from tests.effects.world import world
from tests.support import until

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("cluster")
NETWORKS = "127.0.0.0/8"


async def test_an_answer_finds_its_session_on_another_node(postgres: str, tmp_path: Path) -> None:
    async with (
        world() as there,
        running_cluster(tmp_path, postgres, 2, egress_networks=NETWORKS) as nodes,
    ):
        machine = await deployed(nodes[0])
        await send(nodes[0], machine, "s", {"type": "fetch", "url": there.url + "/wait"})
        await until(lambda: there.under_way)
        [owner] = [node for node in nodes if node.find(machine, "s") is not None]
        [other] = [node for node in nodes if node is not owner]
        await asleep(owner, machine, "s")
        await until(lambda: owner.find(machine, "s") is None)

        async def is_elsewhere() -> bool:
            """The release of the sleeping session may still be under way."""
            try:
                await other.hub.sessions.loader.open_existing(machine, "s")  # type: ignore[arg-type]
            except Exception:  # noqa: BLE001
                return False
            return True

        await until(is_elsewhere)
        there.let_go.set()
        [got] = (await came(nodes[0], machine, "s"))["got"]
        assert got["text"] == "waited"
        assert other.find(machine, "s") is not None
        assert len(there.seen) == 1
        [effect] = await effects(owner, machine, "s")
        assert effect["outcome"] == "answered"


async def test_a_request_of_a_session_of_another_node_is_settled_by_hand(
    postgres: str, tmp_path: Path
) -> None:
    async with (
        world() as there,
        running_cluster(tmp_path, postgres, 2, egress_networks=NETWORKS) as nodes,
    ):
        machine = await deployed(nodes[0])
        for number, name in enumerate(("a", "b", "c", "d"), 1):
            await send(nodes[0], machine, name, {"type": "fetch", "url": there.url + "/wait"})
            await until(functools.partial(came_to, there, number))
            at = f"/api/v1/machines/{machine}/sessions/{name}/effects/1/answer"
            answer = await nodes[number % 2].http.post(at, json={"text": name})
            assert answer.status_code == 204, answer.text
            [got] = (await came(nodes[0], machine, name))["got"]
            assert got["text"] == name
            await until(lambda: not any(node.hub.broker.known for node in nodes))


async def test_a_node_that_is_killed_leaves_its_requests_to_others(
    postgres: str, tmp_path: Path
) -> None:
    async with world() as there, nats_server() as nats:
        database = await new_database(postgres)
        environment = {"MACHINEHUB_EGRESS_NETWORKS": NETWORKS}
        async with cluster(tmp_path, database, nats, 2, **environment) as nodes:
            body: dict[str, Any] = {"name": "f", "entry": "f.ts", "files": {"f.ts": FETCHER}}
            body["egress"] = {"allow": ["127.0.0.1"]}
            async with httpx.AsyncClient(timeout=30) as http:
                answer = await http.post(f"{nodes[0].url}/api/v1/deployments", json=body)
                machine = answer.json()["machine"]["id"]
                names = [f"s{number}" for number in range(6)]
                event = {"type": "fetch", "url": there.url + "/wait"}
                for name in names:
                    answer = await http.post(f"{nodes[0].url}/{machine}/{name}", json=event)
                    assert answer.status_code == 200, answer.text
                await until(lambda: there.under_way == len(names))
                nodes[0].process.send_signal(signal.SIGKILL)
                await nodes[0].process.wait()
                there.let_go.set()

                async def all_have_answers() -> bool:
                    for name in names:
                        url = f"{nodes[1].url}/{machine}/{name}"
                        found = await http.get(url, headers={"Accept": "application/json"})
                        if not found.is_success or not found.json()["snapshot"]["context"]["got"]:
                            return False
                    return True

                await until(all_have_answers)
        keys = [each.header("idempotency-key") for each in there.seen]
        assert len(set(keys)) == len(names)  # and some of them came twice
