"""Serving a hub: uvicorn, told how this hub listens and how it says goodbye."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from machinehub.edge.http_connection import HubHttp
from machinehub.edge.listening import (
    connections_allowed,
    inherited,
    listen,
    raise_descriptor_limit,
)
from machinehub.edge.websocket_connection import HubSocket
from machinehub.store.trouble import FENCED, unavailable
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import FrameType

    from machinehub.app import Hub

log = logging.getLogger("machinehub.server")

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
RESUME_SHARE: Final = 0.98
"""Accepting goes on when the connections are fewer than this share of what there may be."""
LOOK_S: Final = 0.05
FRAME_SLACK_BYTES: Final = 4096
"""What a frame may have around its event: type, id, white space."""


class HubServer(uvicorn.Server):
    _hurries = False
    """Whether it was told to stop twice."""

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
                headers=[("X-Content-Type-Options", "nosniff")],
                forwarded_allow_ips=settings.proxies,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=SHUTDOWN_S,
                http=HubHttp.serving(hub.admission, hub.metrics, self),
                limit_concurrency=settings.limits.connections,
            )
        )
        # Below, the URLs and heads of sockets would be written into the log, and tokens with them.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        self._hub = hub
        hub.on_end = self._end
        self._listening: list[socket.socket] = []
        self._connections_max = 0
        self._tasks = Tasks()

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

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002
        """Listens. Ends the process where that cannot be, as uvicorn does."""
        try:
            handed = self._hub.settings.listen_fds
            host, port = self.config.host, self.config.port
            self._listening = inherited(handed) if handed else listen(host, port)
        except OSError as error:
            log.error("cannot listen on %s:%s: %s", self.config.host, self.config.port, error)
            sys.exit(1)
        for listening in self._listening:
            _notice_dead_readers(listening)
        self._connections_max = connections_allowed()
        await self._accept()

    async def _accept(self) -> None:
        # Copies are listened on: closing one ends no queue of the kernel's.
        await super().startup([each.dup() for each in self._listening])

    def connected(self) -> None:
        """A connection was accepted. The last one for which there is a descriptor is the last one
        for now.
        """
        if len(self.server_state.connections) < self._connections_max or not self._hub.accepting:
            return
        self._hub.accepting = False
        for server in self.servers:
            server.close()
        log.warning(
            "%d connections: no more are accepted until some end, for lack of descriptors "
            "(`ulimit -n`)",
            self._connections_max,
        )
        self._tasks.spawn(self._accept_again())

    async def _accept_again(self) -> None:
        while len(self.server_state.connections) >= self._connections_max * RESUME_SHARE:
            await asyncio.sleep(LOOK_S)
        log.info("connections are accepted again")
        await self._accept()
        self._hub.accepting = True

    async def shutdown(self, sockets: Any = None) -> None:  # noqa: ARG002 - uvicorn's
        """The hub is not ready any more, and serves on for a while; then everybody is told; then
        uvicorn's own shutdown.
        """
        await self._hub.hand_over()
        await self._drain()
        self._tasks.stop()
        self._hub.say_goodbye()
        await super().shutdown(self._listening)

    def _end(self) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._hurries = self.should_exit
        super().handle_exit(sig, frame)

    async def _drain(self) -> None:
        """A second signal ends it."""
        self._hub.operations.draining = True
        wait_s = 0 if self._hub.is_fenced else self._hub.settings.drain_s
        if wait_s:
            log.info("not ready any more; the hub stops in %d s", wait_s)
        for tick in range(wait_s * 10):
            if self._hurries:
                return
            await asyncio.sleep(0.1)
            await self.on_tick(tick)


def _notice_dead_readers(listening: socket.socket) -> None:
    """Accepted sockets inherit the option."""
    is_tcp = listening.family in (socket.AF_INET, socket.AF_INET6)
    if is_tcp and hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)


async def serve(hub: Hub, *, on_ready: Callable[[], Awaitable[None]] | None = None) -> None:
    """Runs a hub until it is told to stop (SIGTERM, SIGINT). `on_ready` runs once it listens.

    Raises `Unavailable` when other nodes took this one for dead.
    """
    raise_descriptor_limit()
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
    if hub.is_fenced:
        raise unavailable(FENCED)
