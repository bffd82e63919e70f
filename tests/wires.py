"""The network between two processes, to be held up and cut."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from tests.support import free_port

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Wire:
    """A TCP proxy to a server, which can be held up in either direction, or cut."""

    def __init__(self, connect: Callable[[], Awaitable[Any]]) -> None:
        self._connect = connect
        self.port = free_port()
        self._open = {"up": asyncio.Event(), "down": asyncio.Event()}
        self._writers: set[asyncio.StreamWriter] = set()
        self._is_cut = False
        self._tasks: set[asyncio.Task[None]] = set()
        for each in self._open.values():
            each.set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def stop(self) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hold(self, way: str) -> None:
        self._open[way].clear()

    def cut(self) -> None:
        self._is_cut = True
        for writer in self._writers:
            writer.close()

    def mend(self) -> None:
        self._is_cut = False
        for each in self._open.values():
            each.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            writer.close()
            return
        try:
            other_reader, other_writer = await self._connect()
        except OSError:
            writer.close()
            return
        self._writers |= {writer, other_writer}
        ways = (
            asyncio.ensure_future(self._pump("up", reader, other_writer)),
            asyncio.ensure_future(self._pump("down", other_reader, writer)),
        )
        self._tasks |= set(ways)
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, other_writer):
            self._writers.discard(each)
            each.close()
        for way in ways:
            way.cancel()
        self._tasks -= set(ways)

    async def _pump(
        self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open[way].wait()
                writer.write(data)
                await writer.drain()
