"""Serving a hub: uvicorn, told how this hub listens and how it says goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from machinehub.edge.http_connection import HubHttp
from machinehub.edge.websocket_connection import HubSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from machinehub.app import Hub

KEEP_ALIVE_S: Final = 75
SHUTDOWN_S: Final = 5
PING_INTERVAL_S: Final = 15.0
"""A dead peer is noticed within this and `PING_TIMEOUT_S`, 30 s together."""
PING_TIMEOUT_S: Final = 15.0
UNACKNOWLEDGED_MS: Final = 15_000
"""How long the kernel waits for what it sent to be acknowledged: this is how a reader of SSE whose
network is gone is noticed.
"""
GC_OBJECTS: Final = 50_000
FRAME_SLACK_BYTES: Final = 4096
"""What a frame may have around its event: type, id, white space."""


class HubServer(uvicorn.Server):
    def __init__(self, hub: Hub) -> None:
        settings = hub.settings
        super().__init__(
            uvicorn.Config(
                hub.asgi,
                interface="asgi3",
                host=settings.host,
                port=settings.port,
                ws=HubSocket,
                ws_max_size=settings.limits.event_bytes + FRAME_SLACK_BYTES,
                ws_ping_interval=PING_INTERVAL_S,
                ws_ping_timeout=PING_TIMEOUT_S,
                ws_per_message_deflate=False,
                lifespan="off",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SHUTDOWN_S,
                http=HubHttp.serving(hub.admission),
                limit_concurrency=settings.limits.connections,
            )
        )
        self._hub = hub

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A hub that was asked to stop and did has succeeded; uvicorn would let the signal kill it
        in the end.
        """
        with super().capture_signals():
            yield
            self._captured_signals = [
                number for number in self._captured_signals if number != signal.SIGTERM
            ]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                _notice_dead_readers(listening)

    async def shutdown(self, sockets: Any = None) -> None:
        """Everybody is told, then uvicorn's own shutdown."""
        self._hub.say_goodbye()
        await super().shutdown(sockets)


def _notice_dead_readers(listening: socket.socket) -> None:
    """Accepted sockets inherit the option."""
    is_tcp = listening.family in (socket.AF_INET, socket.AF_INET6)
    if is_tcp and hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)


async def serve(hub: Hub, *, on_ready: Callable[[], Awaitable[None]] | None = None) -> None:
    """Runs a hub until it is told to stop (SIGTERM, SIGINT). `on_ready` runs once it listens."""
    await hub.start()
    # What is here now stays, and what comes is freed by its reference counts: cycles need not be
    # looked for after every 700 objects.
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 10, 50)
    server = HubServer(hub)
    serving = asyncio.create_task(server.serve())
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        if on_ready is not None and server.started:
            await on_ready()
        await serving
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        await hub.stop()
