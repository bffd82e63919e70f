"""The composition root: the only place that knows concrete classes. Read this to see how the parts
hang together.

client -> uvicorn (edge/) -> admission -> protocols -> session port -> placement -> sandbox workers
                                       -> control   -> catalog, store, forge
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from starlette.routing import Route

from machinehub.clock import Entropy, SystemClock
from machinehub.control.api import DeployApi
from machinehub.control.app import ControlApp
from machinehub.control.catalog import Catalog
from machinehub.control.operations import Operations
from machinehub.control.sessions import SessionApi
from machinehub.edge.admission import Admission
from machinehub.edge.tokens import Tokens
from machinehub.errors import HubError
from machinehub.logs import MachineLogs
from machinehub.metrics import Metrics
from machinehub.protocols.native.http import HttpProtocol
from machinehub.protocols.native.websocket import WebSocketProtocol
from machinehub.session.run.local import LocalSessions
from machinehub.settings import Settings, check_can_listen
from machinehub.store.database import Database
from machinehub.store.engine import open_engine
from machinehub.store.schema import migrate
from machinehub.store.sessions import SessionStore
from machinehub.store.store import Store
from machinehub.web.page import asset, welcome
from machinehub.workers.pool import WorkerPool

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from machinehub.clock import Clock


class Face(Protocol):
    """One of the faces that a hub shows: a protocol, or the control plane."""

    def takes(self, scope: Scope) -> bool:
        """Whether a request or a socket is this one's."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    async def refuse(self, error: HubError, scope: Scope, receive: Receive, send: Send) -> None:
        """Turns away somebody whom admission did not let in."""
        ...


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
        self.engine = open_engine(settings.sqlalchemy_url)
        self.metrics = Metrics()
        self.logs = MachineLogs(kept=limits.log_lines_kept)
        self.store = Store(self.engine)
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
        self._database = Database(self.engine)
        self.session_store = SessionStore(self._database, settings.retention)
        self.sessions = LocalSessions(
            self.pool,
            self.catalog,
            self.catalog,
            self.session_store,
            clock,
            entropy,
            limits,
            logs=self.logs,
            metrics=self.metrics,
            expire_after_ms=settings.expire_finished_s * 1000,
        )
        self._tokens = Tokens(settings, self.store, clock)
        self.admission = Admission(settings, limits, self._tokens, clock)
        self.operations = Operations(
            self.session_store, self.pool, self.metrics, counts=self.sessions.counts
        )
        self._faces = self._make_faces(clock, entropy)

    def _make_faces(self, clock: Clock, entropy: Entropy) -> tuple[Face, ...]:
        """What the hub is to those outside, by scope: the first that takes one has it."""
        limits, base_url = self.settings.limits, self.settings.base_url
        api = DeployApi(
            self.catalog,
            self.store,
            self.sessions,
            SessionApi(self.store, self.sessions, entropy, limits),
            self.operations,
            self.logs,
            self.metrics,
            limits=limits,
            base_url=base_url,
        )
        pages = [
            Route("/", welcome, methods=["GET"]),
            Route("/assets/{name}", asset, methods=["GET"]),
        ]
        return (
            WebSocketProtocol(self.sessions, clock, limits, self.metrics),
            ControlApp([*api.routes(), *pages], self.metrics),
            HttpProtocol(self.sessions, self.catalog, limits, self.metrics, base_url=base_url),
        )

    async def start(self) -> None:
        """Claims and migrates the database, starts the workers. A start that fails leaves nothing
        open.

        Raises `BadSettings` when the hub must not listen like this, and `Unavailable`.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        await self._database.claim()
        await migrate(self.engine)
        self._database.check_file()
        check_can_listen(self.settings, has_tokens=bool(await self.store.valid_token_hashes()))
        await self._tokens.start()
        await self.pool.start(self.sessions)
        await self.catalog.keep_engine()
        await self.sessions.start()

    async def stop(self) -> None:
        await self.sessions.freeze_all()
        await self.sessions.stop()
        await self.pool.stop()
        await self._database.close()
        await self.store.close()

    def say_goodbye(self) -> None:
        """The hub is about to stop: it is not ready any more, and everybody is told to come
        back.
        """
        self.operations.draining = True
        self.sessions.say_goodbye("the hub is going away")

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What uvicorn calls for every request and every socket."""
        face = next(face for face in self._faces if face.takes(scope))
        try:
            leave = await self.admission.enter(scope)
        except HubError as error:
            self.metrics.refused.labels(code=error.code).inc()
            await face.refuse(error, scope, receive, send)
            return
        try:
            await face(scope, receive, send)
        finally:
            leave()
