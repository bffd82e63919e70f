"""What happens when there are more connections than descriptors."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from typing import IO, TYPE_CHECKING

import httpx
import pytest

from machinehub.edge.listening import listen, raise_descriptor_limit
from tests.processes import hub_process
from tests.support import free_port, until

if TYPE_CHECKING:
    from pathlib import Path

DESCRIPTORS = 300


@pytest.mark.core
def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        raised = raise_descriptor_limit()
        assert raised >= min(before[0], before[1])
        assert raised > 512
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.core
def test_a_port_that_is_taken_is_said() -> None:
    port = free_port()
    taken = listen("127.0.0.1", port)
    taken[0].listen()
    with pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", port)
    taken[0].close()


async def test_for_lack_of_descriptors_connections_wait(tmp_path: Path) -> None:
    """Nothing is reset: who comes then is served when others have gone."""
    port = free_port()
    under = ("prlimit", f"--nofile={DESCRIPTORS}:{DESCRIPTORS}")
    with (tmp_path / "log").open("wb") as log:
        await crowd_a_hub(tmp_path, port, log, under)
    lines = [
        json.loads(line) for line in (tmp_path / "log").read_text().splitlines() if "{" in line
    ]
    assert any("no more are accepted" in line["message"] for line in lines)
    assert not any("exception" in line for line in lines)


async def crowd_a_hub(data: Path, port: int, log: IO[bytes], under: tuple[str, ...]) -> None:
    async with (
        hub_process(data, port=port, log=log, under=under) as hub,
        httpx.AsyncClient(base_url=hub.url, timeout=60) as http,
    ):
        assert (await http.get("/readyz")).json()["accepting"] is True
        crowd = []

        async def is_full() -> bool:
            crowd.append(socket.create_connection(("127.0.0.1", port)))
            return not (await http.get("/readyz")).json()["accepting"]

        await until(is_full)
        assert len(crowd) < DESCRIPTORS
        full = await http.get("/readyz")
        assert full.status_code == 503
        paused = "machinehub_accepting 0.0"
        assert paused in (await http.get("/metrics")).text
        # These stand in the kernel's queue.
        late = [asyncio.create_task(asyncio.to_thread(httpx.get, hub.url + "/healthz"))] * 3
        for each in crowd:
            each.close()
        for answer in await asyncio.gather(*late):
            assert answer.status_code == 200
        assert (await http.get("/readyz")).json()["accepting"] is True
