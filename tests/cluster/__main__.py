"""`make cluster`: Postgres, NATS and three nodes on this computer, with the counter deployed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
from pathlib import Path

from tests.cluster.clusters import nats_server
from tests.databases import postgres_server
from tests.processes import deploy, start_hub, until_ready
from tests.support import free_port

FIRST_PORT = 8787


async def main(folder: Path, database: str) -> None:
    ended = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, ended.set)
    async with nats_server() as nats:
        nodes = []
        for number in range(3):
            log = (folder / f"node{number + 1}.log").open("wb")
            nodes.append(
                await start_hub(
                    folder / str(number),
                    port=port_near(FIRST_PORT + number),
                    log=log,
                    MACHINEHUB_DATABASE_URL=database,
                    MACHINEHUB_NATS_URL=nats.url,
                    MACHINEHUB_WORKERS="1",
                )
            )
        try:
            for node in nodes:
                await until_ready(node.url)
            machine = (await deploy(nodes[0].url)).rsplit("/", 1)[1]
            print(f"\nThree nodes share one Postgres and one NATS; their logs are in {folder}.\n")
            for node in nodes:
                print(f"  {node.url}/{machine}/hello   (process {node.process.pid})")
            print(
                "\nOpen two of them, click, and `kill -9` a process: the count goes on in the other"
                "\nwindow. `.venv/bin/machinehub nodes` lists the nodes. Ctrl-C ends all."
            )
            await ended.wait()
        finally:
            for node in nodes:
                with contextlib.suppress(ProcessLookupError):
                    node.process.terminate()
            await asyncio.gather(*(node.process.wait() for node in nodes))


def port_near(port: int) -> int:
    """The port, unless somebody has it."""
    import socket

    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return free_port()
    return port


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="machinehub-cluster-") as name:
        Path(name).chmod(0o755)
        with postgres_server(Path(name)) as url:
            asyncio.run(main(Path(name), url))
