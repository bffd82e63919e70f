"""`machinehub serve --nodes`: several nodes on one computer, behind one port.

The sockets are opened here and handed to every node, which accept from the same queue: a node that
ends takes no connection with it that nobody accepted yet.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING, Final

from machinehub import capacity
from machinehub.edge.listening import listen, raise_descriptor_limit

if TYPE_CHECKING:
    from machinehub.settings import Settings

log = logging.getLogger("machinehub.supervisor")

PR_SET_PDEATHSIG: Final = 1
CORES_EACH: Final = 2
AGAIN_S: Final = 1.0
"""A node that ended by an accident is started again after so long."""


def count_of(nodes: str) -> int:
    """How many nodes `--nodes` means. Raises `ValueError`."""
    if nodes == "auto":
        return max(1, capacity.cores() // CORES_EACH)
    count = int(nodes)
    if not 1 <= count <= 64:
        raise ValueError("from 1 to 64")
    return count


class Supervisor:
    def __init__(self, settings: Settings, count: int, command: list[str]) -> None:
        self._settings = settings
        self._count = count
        self._command = command
        self._ending = asyncio.Event()
        self._nodes: set[asyncio.subprocess.Process] = set()

    async def run(self) -> None:
        """Until it is told to stop, or all nodes ended of their own accord. Raises `OSError` when
        nobody can listen there.
        """
        raise_descriptor_limit()
        sockets = listen(self._settings.host, self._settings.port)
        for each in sockets:
            each.listen(2048)
            each.set_inheritable(True)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        descriptors = [each.fileno() for each in sockets]
        await asyncio.gather(*(self._keep(number, descriptors) for number in range(self._count)))

    def _end(self) -> None:
        self._ending.set()
        for node in self._nodes:
            if node.returncode is None:
                node.send_signal(signal.SIGTERM)

    async def _keep(self, number: int, descriptors: list[int]) -> None:
        workers = self._settings.workers or max(1, capacity.cores() // self._count)
        environment = os.environ | {
            "MACHINEHUB_LISTEN_FDS": " ".join(str(each) for each in descriptors),
            "MACHINEHUB_WORKERS": str(workers),
        }
        while not self._ending.is_set():
            node = await asyncio.create_subprocess_exec(
                *self._command, env=environment, pass_fds=descriptors, start_new_session=True
            )
            self._nodes.add(node)
            if self._ending.is_set():
                node.send_signal(signal.SIGTERM)
            code = await node.wait()
            self._nodes.discard(node)
            if code == 0 or self._ending.is_set():
                return  # it was told to
            log.error("node %d (process %d) ended with %d", number + 1, node.pid, code)
            try:
                async with asyncio.timeout(AGAIN_S):
                    await self._ending.wait()
            except TimeoutError:
                continue


NODE: Final = (
    "from machinehub.cli.supervisor import end_with_supervisor; end_with_supervisor();"
    " from machinehub.cli.main import main; main()"
)


def end_with_supervisor() -> None:
    """In a node: it is told to stop when the supervisor is gone (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def node_command(settings: Settings) -> list[str]:
    """What starts one node."""
    return [
        sys.executable,
        "-c",
        NODE,
        "serve",
        "--host",
        settings.host,
        "--port",
        str(settings.port),
        "--data",
        str(settings.data),
    ]
