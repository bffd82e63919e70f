"""The control plane as one ASGI callable: the deploy API, health, metrics, and the pages' files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException

from machinehub.edge.problem import on_http_exception, on_unexpected, problem
from machinehub.errors import HubError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

    from machinehub.metrics import Metrics

PATHS: Final = frozenset({"/", "/healthz", "/readyz", "/metrics"})
PREFIXES: Final = ("/api/", "/assets/")


def what_is_asked(path: str) -> str:
    """For metrics: of four things, whose a path is."""
    if path.startswith("/api/"):
        return "api"
    if path == "/" or path.startswith("/assets/"):
        return "page"
    return "operations" if path in PATHS else "machine"


class ControlApp:
    """Everything over HTTP that is no machine's: no machine's id is one of these paths."""

    def __init__(self, routes: Sequence[BaseRoute], metrics: Metrics) -> None:
        self._metrics = metrics
        self._app = Starlette(
            routes=routes,
            exception_handlers={
                HubError: self._refused,
                HTTPException: on_http_exception,
                Exception: on_unexpected,
            },
        )

    def takes(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return scope["type"] == "http" and (path in PATHS or path.startswith(PREFIXES))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Patterns of routes end at a line feed, which a session's id may hold; that is read from
        # the raw path.
        path = scope["path"].replace("\n", " ")
        await self._app({**scope, "path": path}, receive, send)

    async def refuse(self, error: HubError, scope: Scope, receive: Receive, send: Send) -> None:
        """Turns away somebody whom admission did not let in."""
        await problem(error)(scope, receive, send)

    async def _refused(self, _request: Request, error: Exception) -> Response:
        assert isinstance(error, HubError)
        self._metrics.refused.labels(code=error.code).inc()
        return problem(error)
