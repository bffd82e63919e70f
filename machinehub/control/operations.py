"""Health, readiness and metrics: what keeps an eye on a hub asks for these, without a token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from machinehub.edge.admission import principal_of
from machinehub.edge.problem import Json
from machinehub.metrics import set_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from machinehub.control.health import Health
    from machinehub.metrics import Metrics
    from machinehub.workers.pool import WorkerPool


class Operations:
    """`measure` sets the gauges of sessions."""

    def __init__(
        self,
        health: Health,
        pool: WorkerPool,
        metrics: Metrics,
        *,
        measure: Callable[[], Awaitable[None]],
    ) -> None:
        self._health = health
        self._pool = pool
        self._metrics = metrics
        self._measure = measure
        self.draining = False
        """Whether the hub was told to stop: it is not ready any more."""
        self.stopping = False
        """Whether it does: streams end."""
        self.accepting = True
        """Whether connections are accepted: there may be no descriptors for more."""

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
        trouble = await self._health.trouble()
        checks: dict[str, bool | str] = {
            "workers": self._pool.is_ready,
            "draining": self.draining,
            "accepting": self.accepting,
            "database": trouble is None,
        }
        if trouble is not None:
            checks["reason"] = trouble
        is_ready = checks["workers"] and self.accepting and not self.draining and trouble is None
        return Json(checks, 200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        """Everybody may read them, but for those that name sessions: a session's id may be all that
        keeps strangers from it.
        """
        metrics = self._metrics
        await self._measure()
        principal = principal_of(request.scope)
        if principal.project is not None or not principal.may("read"):
            metrics.busiest.clear()
        metrics.accepting.set(self.accepting)
        workers = self._pool.everybody()
        named = [((worker.kind, str(worker.number)), worker) for worker in workers]
        set_all(metrics.worker_memory, {name: each.memory_bytes() for name, each in named})
        set_all(metrics.worker_sessions, {name: each.session_count for name, each in named})
        metrics.say_build(self._pool.engine_and_base[0])
        return Response(metrics.expose(), media_type="text/plain; version=0.0.4")
