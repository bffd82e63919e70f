"""`machinehub serve --nodes`: several nodes behind one port; `machinehub nodes`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest

from machinehub.cli.supervisor import count_of
from tests.cluster.clusters import nats_server
from tests.databases import new_database
from tests.processes import alive, children_of, deploy, hub_process
from tests.support import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.processes import Process

pytestmark = pytest.mark.xdist_group("failover")


def command(*arguments: str, server: str = "") -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("MACHINEHUB_")}
    if server:
        env["MACHINEHUB_SERVER"] = server
    program = [sys.executable, "-c", "from machinehub.cli.main import main; main()"]
    return subprocess.run(
        [*program, *arguments], env=env, capture_output=True, text=True, check=False, timeout=60
    )


@contextlib.asynccontextmanager
async def two_nodes(postgres: str, folder: Path) -> AsyncIterator[Process]:
    """The supervisor of two nodes."""
    database = await new_database(postgres)
    async with (
        nats_server() as nats,
        hub_process(
            folder,
            "--nodes",
            "2",
            MACHINEHUB_DATABASE_URL=database,
            MACHINEHUB_NATS_URL=nats.url,
            MACHINEHUB_WORKERS="1",
        ) as supervisor,
    ):
        yield supervisor


async def test_two_nodes_behind_one_port(postgres: str, tmp_path: Path) -> None:
    async with two_nodes(postgres, tmp_path) as supervisor:
        machine = await deploy(supervisor.url)

        async def nodes() -> list[dict[str, object]]:
            done = await asyncio.to_thread(command, "nodes", "--json", server=supervisor.url)
            found: list[dict[str, object]] = json.loads(done.stdout)
            return found

        async def are_two() -> bool:
            return len(await nodes()) == 2

        await until(are_two)
        async with httpx.AsyncClient() as http:
            for number in range(1, 11):
                answer = await http.post(f"{machine}/s", json={"type": "increment"})
                assert answer.json()["snapshot"]["context"]["count"] == number
        # One that is killed is started again.
        before = {str(each["id"]) for each in await nodes()}
        os.kill(children_of(supervisor.process.pid)[0], signal.SIGKILL)

        async def is_another() -> bool:
            try:
                now = {str(each["id"]) for each in await nodes()}
            except ValueError:  # the connection was the dead one's
                return False
            return len(now) == 2 and now != before

        await until(is_another)
        # One that is told to ends, and stays away.
        listed = await nodes()
        done = await asyncio.to_thread(
            command, "nodes", "--drain", str(listed[0]["id"]), server=supervisor.url
        )
        assert done.returncode == 0, done.stderr

        async def is_one() -> bool:
            try:
                return [each["id"] for each in await nodes()] == [listed[1]["id"]]
            except ValueError:
                return False

        await until(is_one)
        table = await asyncio.to_thread(command, "nodes", server=supervisor.url)
        assert str(listed[1]["id"]) in table.stdout
        async with httpx.AsyncClient() as http:
            answer = await http.get(f"{machine}/s")
            assert answer.json()["snapshot"]["context"]["count"] == 10
        supervisor.process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(supervisor.process.wait(), 30) == 0


def test_several_nodes_need_postgres_and_nats(tmp_path: Path) -> None:
    done = command("serve", "--nodes", "2", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "MACHINEHUB_NATS_URL" in done.stderr


def test_how_many_nodes() -> None:
    assert count_of("3") == 3
    assert count_of("auto") >= 1
    for wrong in ("0", "65", "-1", "many", ""):
        with pytest.raises(ValueError, match=r"from 1 to 64|invalid literal"):
            count_of(wrong)


async def test_a_hub_of_its_own_has_no_nodes(tmp_path: Path) -> None:
    async with hub_process(tmp_path, MACHINEHUB_WORKERS="1") as hub:
        done = await asyncio.to_thread(command, "nodes", server=hub.url)
        assert "with nobody" in done.stdout
        missing = await asyncio.to_thread(command, "nodes", "--drain", "x", server=hub.url)
        assert missing.returncode != 0
        assert "no_such_node" in missing.stderr + missing.stdout


async def test_nodes_end_with_their_supervisor(postgres: str, tmp_path: Path) -> None:
    """However it ends: they are told to stop, as by it."""
    async with two_nodes(postgres, tmp_path) as supervisor:
        nodes = children_of(supervisor.process.pid)
        assert len(nodes) == 2
        supervisor.process.kill()
        await supervisor.process.wait()
        await until(lambda: not any(alive(node) for node in nodes))
