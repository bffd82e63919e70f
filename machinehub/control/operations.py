"""Health, readiness and metrics: what keeps an eye on a hub asks for these, without a token."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from machinehub.edge.problem import Json
from machinehub.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

    from machinehub.metrics import Metrics
    from machinehub.workers.pool import WorkerPool


class Pings(Protocol):
    """The session store, as it is needed here."""

    async def ping(self) -> None: ...


class Operations:
    """`counts` are the sessions in memory, and those of them that are on workers."""

    def __init__(
        self,
        store: Pings,
        pool: WorkerPool,
        metrics: Metrics,
        *,
        counts: Callable[[], tuple[int, int]],
    ) -> None:
        self._store = store
        self._pool = pool
        self._metrics = metrics
        self._counts = counts
        self.draining = False
        """Whether the hub has begun to stop: it is not ready any more, and streams end."""

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/healthz", self.health, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
        ]

    async def health(self, _request: Request) -> Response:
        return Json({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """200 when sessions can be opened and machines deployed."""
        checks = {"workers": self._pool.is_ready, "draining": self.draining, "database": True}
        with contextlib.suppress(HubError):
            await self._store.ping()
            return Json(checks, 200 if checks["workers"] and not self.draining else 503)
        return Json(checks | {"database": False}, 503)

    async def metrics(self, _request: Request) -> Response:
        in_memory, live = self._counts()
        self._metrics.sessions.set(in_memory)
        self._metrics.live_sessions.set(live)
        self._metrics.walls_hit.set(self._pool.breaches)
        return Response(self._metrics.expose(), media_type="text/plain; version=0.0.4")
