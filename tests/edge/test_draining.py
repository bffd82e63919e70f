"""A hub that is told to stop is not ready any more, goes on for a while, and then says goodbye."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.processes import deploy, hub_process
from tests.support import until

if TYPE_CHECKING:
    from pathlib import Path


async def test_sockets_go_on_while_it_drains(tmp_path: Path) -> None:
    async with (
        hub_process(tmp_path, MACHINEHUB_DRAIN_S="600") as hub,
        httpx.AsyncClient(timeout=20) as http,
    ):
        machine = await deploy(hub.url)
        async with connect(machine.replace("http", "ws", 1) + "/s") as socket:
            assert json.loads(await socket.recv())["type"] == "snapshot"
            hub.process.send_signal(signal.SIGTERM)

            async def is_draining() -> bool:
                answer = await http.get(f"{hub.url}/readyz")
                return answer.status_code == 503 and answer.json()["draining"] is True

            await until(is_draining)
            sent = await http.post(f"{machine}/s", json={"type": "increment"})
            assert sent.json()["seq"] == 2
            async with connect(machine.replace("http", "ws", 1) + "/new") as late:
                assert json.loads(await late.recv())["type"] == "snapshot"
            hub.process.send_signal(signal.SIGTERM)  # the second ends it
            try:
                while True:
                    await socket.recv()
            except ConnectionClosed as closed:
                assert closed.rcvd is not None
                assert closed.rcvd.code == 1001
        assert await hub.process.wait() == 0
