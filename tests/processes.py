"""Hubs and databases as processes of their own, to be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tests.databases import embedded_server
from tests.support import CACHE, COUNTER, free_port, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Process:
    def __init__(self, process: asyncio.subprocess.Process, url: str) -> None:
        self.process = process
        self.url = url

    def children(self) -> list[int]:
        return children_of(self.process.pid)

    async def output(self) -> str:
        _, err = await asyncio.wait_for(self.process.communicate(), 60)
        return err.decode()


def children_of(pid: int) -> list[int]:
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


async def start_hub(
    data: Path,
    *arguments: str,
    port: int,
    log: int | Any = asyncio.subprocess.PIPE,
    under: tuple[str, ...] = (),
    **environment: str,
) -> Process:
    """`under` is a command that runs the hub's, as prlimit(1) does."""
    env = (
        {key: value for key, value in os.environ.items() if not key.startswith("MACHINEHUB_")}
        | {"MACHINEHUB_CACHE": str(CACHE)}
        | environment
    )
    process = await asyncio.create_subprocess_exec(
        *under,
        sys.executable,
        "-c",
        "from machinehub.cli.main import main; main()",
        "serve",
        "--port",
        str(port),
        "--data",
        str(data),
        *arguments,
        stdout=log,
        stderr=log,
        env=env,
    )
    return Process(process, f"http://127.0.0.1:{port}")


async def until_ready(url: str, *, within_s: float = 60) -> None:
    async with httpx.AsyncClient() as http:

        async def is_ready() -> bool:
            try:
                return (await http.get(url + "/readyz", timeout=10)).status_code == 200
            except httpx.HTTPError:
                return False

        await until(is_ready, within_s=within_s)


@contextlib.asynccontextmanager
async def hub_process(
    data: Path,
    *arguments: str,
    wait: bool = True,
    port: int | None = None,
    log: int | Any = asyncio.subprocess.PIPE,
    under: tuple[str, ...] = (),
    **environment: str,
) -> AsyncIterator[Process]:
    running = await start_hub(
        data, *arguments, port=port or free_port(), log=log, under=under, **environment
    )
    try:
        if wait:
            await until_ready(running.url)
        yield running
    finally:
        if running.process.returncode is None:
            running.process.kill()
            await running.process.communicate()


async def deploy(url: str, source: str = COUNTER) -> str:
    """The machine's URL."""
    async with httpx.AsyncClient(timeout=20) as http:
        body: dict[str, Any] = (
            await http.post(
                url + "/api/v1/deployments",
                json={"name": "c", "entry": "c.ts", "files": {"c.ts": source}},
            )
        ).json()
    machine_url: str = body["machine"]["url"]
    return machine_url


class Postgres:
    """A Postgres of one test's own, which may be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._server = embedded_server(folder)
        self._data = folder / "postgres"
        self.url = self._server.get_uri()

    def kill(self) -> None:
        """kill -9 of the server and all its processes."""
        pid = self._server.get_pid()
        assert pid is not None
        victims = [pid, *children_of(pid)]
        for victim in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        while any(alive(victim) for victim in victims):
            time.sleep(0.01)
        # Nobody may have collected them yet, and the lock files name a process that seems to be
        # there then.
        for lock in [*self._data.glob("postmaster.pid"), *self._data.glob(".s.PGSQL.*.lock")]:
            lock.unlink()

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def stop(self) -> None:
        self._server.cleanup()
