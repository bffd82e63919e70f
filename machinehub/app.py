"""The composition root: the only place that knows concrete classes.

Read this to see how the parts hang together.

client -> uvicorn -> router (http, websocket) -> session host -> sandbox workers
                  -> deploy API -> catalog -> store, forge worker
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from machinehub.api.auth import Tokens
from machinehub.api.problem import on_http_exception, on_hub_error, on_unexpected, problem
from machinehub.api.routes import DeployApi
from machinehub.catalog import Catalog
from machinehub.clock import Entropy, SystemClock
from machinehub.errors import Forbidden, HubError
from machinehub.logs import MachineLogs
from machinehub.metrics import Metrics
from machinehub.router.connection import HubHttp
from machinehub.router.door import Door
from machinehub.router.http import MachineRouter
from machinehub.router.socket import HubSocket
from machinehub.router.websocket import WebSocketRouter
from machinehub.session.host import SessionHost
from machinehub.session.housekeeping import Housekeeper
from machinehub.settings import Settings, check_can_listen
from machinehub.store.database import Database
from machinehub.store.migrate import migrate, open_engine
from machinehub.store.sessions import SessionStore
from machinehub.store.store import Store
from machinehub.web.page import asset, welcome
from machinehub.workers import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Receive, Scope, Send

    from machinehub.clock import Clock

log = logging.getLogger("machinehub")

KEEP_ALIVE_S = 75
SHUTDOWN_S = 5
PING_INTERVAL_S = 15.0
"""A dead peer is noticed within this and `PING_TIMEOUT_S`, 30 s together."""
PING_TIMEOUT_S = 15.0
UNACKNOWLEDGED_MS = 15_000
"""How long the kernel waits for what it sent to be acknowledged: this is how a reader of SSE whose
network is gone is noticed.
"""
GC_OBJECTS = 50_000
FIXED_PATHS = frozenset({"/", "/healthz", "/readyz", "/metrics"})
FRAME_SLACK_BYTES = 4096
"""What a frame may have around its event: type, id, white space."""


class Hub:
    """Everything that lives as long as the hub. `start`, then serve `asgi`, then `stop`."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self.settings = settings
        clock = clock or SystemClock()
        entropy = entropy or Entropy()
        limits = settings.limits
        self._engine = open_engine(settings.sqlalchemy_url)
        self.metrics = Metrics()
        self.logs = MachineLogs(kept=limits.log_lines_kept)
        self.store = Store(self._engine)
        self.pool = WorkerPool(
            count=settings.worker_count,
            cache=settings.cache,
            worker_bytes_max=limits.worker_bytes,
            forge_bytes_max=limits.forge_bytes,
            fuel=settings.fuel,
            isolated_max=limits.isolated_machines if settings.isolate_machines else 0,
            on_progress=on_progress,
        )
        self.catalog = Catalog(self.store, self.pool, clock, entropy, limits)
        self._database = Database(self._engine)
        self.sessions = SessionStore(self._database, settings.retention)
        self.host = SessionHost(
            self.pool,
            self.catalog,
            self.sessions,
            clock,
            entropy,
            limits,
            logs=self.logs,
            metrics=self.metrics,
        )
        self.housekeeper = Housekeeper(
            self.host,
            self.sessions,
            clock,
            limits,
            expire_after_ms=settings.expire_finished_s * 1000,
        )
        self._tokens = Tokens(settings, self.store)
        self.api = DeployApi(
            self.catalog,
            self.store,
            self.sessions,
            self.host,
            self.pool,
            self._tokens,
            self.logs,
            self.metrics,
            entropy=entropy,
            limits=limits,
            base_url=settings.base_url,
        )
        self.door = Door(settings, limits, is_open=lambda: self._tokens.is_open)
        self._machines = MachineRouter(
            self.catalog,
            self.sessions,
            self.host,
            clock,
            limits,
            self.metrics,
            self.door,
            base_url=settings.base_url,
        )
        self._websockets = WebSocketRouter(
            self.catalog, self.host, clock, limits, self.metrics, self.door
        )
        self._http = Starlette(
            routes=[
                *self.api.routes(),
                Route("/", welcome, methods=["GET"]),
                Route("/assets/{name}", asset, methods=["GET"]),
            ],
            exception_handlers={
                HubError: self._refused,
                HTTPException: on_http_exception,
                Exception: on_unexpected,
            },
        )

    async def start(self) -> None:
        """Migrates the database, starts the workers.

        Raises `BadSettings` when the hub must not listen like this.
        """
        self._database.claim()
        await migrate(self._engine)
        self._database.check_file()
        check_can_listen(self.settings, has_tokens=bool(await self.store.valid_token_hashes()))
        await self._tokens.start()
        await self.pool.start(self.host)
        await self.catalog.keep_engine()
        await self.host.start()
        self.housekeeper.start()

    async def stop(self) -> None:
        self.housekeeper.stop()
        await self.housekeeper.freeze_all()
        await self.host.stop()
        await self.pool.stop()
        await self._database.close()
        await self.store.close()

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self.door.check_names(scope["headers"])
            address = self.door.enter(scope)
        except HubError as error:
            await self._turn_away(error, scope, receive, send)
            return
        try:
            await self._route(scope, receive, send)
        finally:
            self.door.leave(address)

    async def _turn_away(self, error: HubError, scope: Scope, receive: Receive, send: Send) -> None:
        self.metrics.refused.labels(code=error.code).inc()
        if scope["type"] != "websocket":
            await problem(error)(scope, receive, send)
        elif isinstance(error, Forbidden):  # of another site: it is told no more than that
            await send({"type": "websocket.close", "code": 4003})
        else:
            await self._websockets.refuse(error, scope, receive, send)

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HubError)
        self.metrics.refused.labels(code=error.code).inc()
        return await on_hub_error(request, error)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._websockets(scope, receive, send)
        elif scope["path"] in FIXED_PATHS or scope["path"].startswith(("/api/", "/assets/")):
            # Patterns of routes end at a line feed, which a session's id may hold; it is read from
            # the raw path.
            await self._http({**scope, "path": scope["path"].replace("\n", " ")}, receive, send)
        else:  # everything else is a machine's; its path is read from the raw bytes, not by a pattern
            await self._machines(scope, receive, send)


class HubServer(uvicorn.Server):
    """uvicorn, told how this hub says goodbye."""

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
                http=HubHttp.serving(hub.door),
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
                if listening.family in (socket.AF_INET, socket.AF_INET6) and hasattr(
                    socket, "TCP_USER_TIMEOUT"
                ):  # accepted sockets inherit it
                    listening.setsockopt(
                        socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS
                    )

    async def shutdown(self, sockets: Any = None) -> None:
        """Not ready any more, 1001 to everybody, then uvicorn's own shutdown."""
        self._hub.api.draining = True
        self._hub.host.say_goodbye(1001, "the hub is going away")
        await super().shutdown(sockets)


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
