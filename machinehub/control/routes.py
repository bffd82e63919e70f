"""The deploy API's calls, by path: each says which scope it needs, and is refused to whoever lacks
that before anything else is looked at.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from machinehub.control.openapi import openapi_document
from machinehub.edge.admission import principal_of
from machinehub.edge.problem import Json
from machinehub.principal import Scope

if TYPE_CHECKING:
    from collections.abc import Iterable

    from machinehub.limits import Limits

Call = Callable[[Request], Awaitable[Response]]
Guarded = tuple[Scope, str, str, Call]
"""Scope, method, path below the prefix, and what answers."""

PREFIX: Final = "/api/v1"
MACHINE: Final = "/machines/{machine}"
PROJECT: Final = "/projects/{project}"
SESSION: Final = MACHINE + "/sessions/{session:path}"


def api_routes(calls: Iterable[Guarded], *, whoami: Call, base_url: str, limits: Limits) -> Mount:
    """Everything below the prefix. `whoami` and the API's description are for all."""

    async def openapi(_request: Request) -> Response:
        return Json(openapi_document(base_url, limits))

    by_path: dict[str, dict[str, tuple[Scope, Call]]] = {}
    for scope, method, path, call in calls:
        by_path.setdefault(path, {})[method] = scope, call
    return Mount(
        PREFIX,
        routes=[
            Route("/openapi.json", openapi, methods=["GET"]),
            Route("/whoami", whoami, methods=["GET"]),
            *(Route(path, _guarded(known), methods=list(known)) for path, known in by_path.items()),
        ],
    )


def _guarded(calls: dict[str, tuple[Scope, Call]]) -> Call:
    """The calls of one path, by method, for those whose scopes allow them."""

    async def guarded(request: Request) -> Response:
        scope, call = calls["GET" if request.method == "HEAD" else request.method]
        principal_of(request.scope).must(scope)
        return await call(request)

    return guarded
