"""The deploy API: `/api/v1`, health, metrics.

One function a call; what they decide is in `catalog.py` and `session/host.py`. Shapes are
CONTRACT's.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route

from machinehub.api.openapi import openapi_document
from machinehub.api.problem import Json
from machinehub.api.requests import decode, page, page_of, read_body
from machinehub.api.sessions import SessionApi
from machinehub.catalog import NAME, Upload
from machinehub.clock import timestamp
from machinehub.errors import BadRequest, HubError, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.requests import Request

    from machinehub.api.auth import Tokens
    from machinehub.catalog import Catalog
    from machinehub.clock import Entropy
    from machinehub.limits import Limits
    from machinehub.logs import LogLine, MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.model import Machine, Version
    from machinehub.session.host import SessionHost
    from machinehub.store.sessions import SessionStore
    from machinehub.store.store import Store
    from machinehub.workers import WorkerPool

    Call = Callable[[Request], Awaitable[Response]]

PREFIX = "/api/v1"


class MachinePatch(msgspec.Struct):
    """The body of `PATCH /api/v1/machines/{m}`."""

    name: str


class DeployApi:
    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        sessions: SessionStore,
        host: SessionHost,
        pool: WorkerPool,
        tokens: Tokens,
        logs: MachineLogs,
        metrics: Metrics,
        *,
        entropy: Entropy,
        limits: Limits,
        base_url: str,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._host = host
        self._session_store = sessions
        self._sessions = SessionApi(store, sessions, host, entropy, limits)
        self._pool = pool
        self._tokens = tokens
        self._logs = logs
        self._metrics = metrics
        self._limits = limits
        self._base_url = base_url
        self.draining = False

    def routes(self) -> list[BaseRoute]:
        machine, version, session = (
            "/machines/{machine}",
            "/machines/{machine}/versions/{number}",
            "/machines/{machine}/sessions/{session:path}",
        )
        guarded = (
            ("POST", "/deployments", self.deploy),
            ("GET", "/machines", self.machine_list),
            ("GET", machine, self.machine_read),
            ("PATCH", machine, self.machine_change),
            ("DELETE", machine, self.machine_delete),
            ("GET", machine + "/versions", self.version_list),
            ("GET", version, self.version_read),
            ("GET", version + "/files", self.version_files),
            ("POST", version + "/activate", self.version_activate),
            ("GET", machine + "/sessions", self._sessions.list),
            # One call for all of these: what is the session's id, which may hold slashes, is seen
            # in the raw path only.
            ("GET", session + "/journal", self._sessions.any),
            ("POST", session + "/fork", self._sessions.any),
            ("POST", session + "/replay", self._sessions.any),
            ("GET", session, self._sessions.any),
            ("DELETE", session, self._sessions.any),
            ("GET", machine + "/logs", self.logs),
        )
        by_path: dict[str, dict[str, Call]] = {}
        for method, path, call in guarded:
            by_path.setdefault(path, {})[method] = call
        return [
            Route("/healthz", self.health, methods=["GET"]),
            Route("/readyz", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Mount(
                PREFIX,
                routes=[
                    Route("/openapi.json", self.openapi, methods=["GET"]),
                    *(
                        Route(path, self._guard(calls), methods=list(calls))
                        for path, calls in by_path.items()
                    ),
                ],
            ),
        ]

    def _guard(self, calls: dict[str, Call]) -> Call:
        """The calls of one path, by method, for those with a token."""

        async def guarded(request: Request) -> Response:
            await self._tokens.check(request)
            return await calls["GET" if request.method == "HEAD" else request.method](request)

        return guarded

    # --- operations -------------------------------------------------------------------------------

    async def health(self, _request: Request) -> Response:
        return Json({"status": "ok"})

    async def ready(self, _request: Request) -> Response:
        """200 when sessions can be opened and machines deployed."""
        checks = {"workers": self._pool.is_ready, "draining": self.draining, "database": True}
        with contextlib.suppress(HubError):
            await self._session_store.ping()
            return Json(checks, 200 if checks["workers"] and not self.draining else 503)
        return Json(checks | {"database": False}, 503)

    async def metrics(self, _request: Request) -> Response:
        self._metrics.sessions.set(len(self._host))
        self._metrics.walls_hit.set(self._pool.breaches)
        self._metrics.live_sessions.set(sum(1 for _ in self._host.placement.live))
        return Response(self._metrics.expose(), media_type="text/plain; version=0.0.4")

    async def openapi(self, _request: Request) -> Response:
        return Json(openapi_document(self._base_url, self._limits))

    # --- machines and versions --------------------------------------------------------------------

    async def deploy(self, request: Request) -> Response:
        body = await read_body(
            request, bytes_max=self._limits.source_bytes * 2 + 65536, code="source_too_large"
        )
        try:
            deployed = await self._catalog.deploy(decode(body, Upload))
        except HubError as error:
            self._metrics.deployments.labels(outcome=error.code).inc()
            raise
        self._metrics.deployments.labels(
            outcome="created" if deployed.created else "unchanged"
        ).inc()
        answer = {
            "machine": {
                "id": deployed.machine.id,
                "name": deployed.machine.name,
                "url": self._url(deployed.machine),
            },
            "version": {
                "number": deployed.version.number,
                "digest": deployed.version.digest,
                "engine": deployed.version.engine,
            },
            "created": deployed.created,
            "timings_ms": {
                "bundle": deployed.bundle_us / 1000,
                "freeze": deployed.freeze_us / 1000,
                "total": deployed.total_us / 1000,
            },
            "warnings": deployed.warnings,
        }
        return Json(answer, 201 if deployed.created else 200)

    async def machine_list(self, request: Request) -> Response:
        limit, after = page_of(request, limit_max=self._limits.page_items)
        found = await self._store.machine_list(after=after, limit=limit + 1)
        return Json(page([self._machine(machine) for machine in found], limit=limit, key="name"))

    async def machine_read(self, request: Request) -> Response:
        machine = await self._find(request)
        answer = self._machine(machine)
        if machine.active_version:
            answer["version"] = _version(
                await self._store.version(machine.id, machine.active_version)
            )
        return Json(answer)

    async def machine_change(self, request: Request) -> Response:
        patch = decode(await read_body(request, bytes_max=65536), MachinePatch)
        if not NAME.fullmatch(patch.name):
            raise BadRequest(
                "invalid_name",
                "a machine's name is 1 to 64 letters, digits, dots, dashes or underscores",
            )
        machine = await self._find(request)
        renamed = await self._store.rename(machine.id, patch.name)
        self._catalog.forget(machine.id)
        return Json(self._machine(renamed))

    async def machine_delete(self, request: Request) -> Response:
        machine = await self._find(request)
        await self._host.delete_machine(machine.id)
        await self._store.delete_machine(machine.id)
        self._catalog.forget(machine.id)
        self._logs.forget(machine.id)
        return Response(status_code=204)

    async def version_list(self, request: Request) -> Response:
        machine = await self._find(request)
        limit, before = page_of(request, limit_max=self._limits.page_items)
        if before is not None and not re.fullmatch("[0-9]{1,9}", before):
            raise BadRequest("invalid_cursor", "the cursor is not one that a list gave")
        found = await self._store.version_list(
            machine.id, before=int(before) if before else None, limit=limit + 1
        )
        return Json(
            page(
                [
                    _version(version) | {"active": version.number == machine.active_version}
                    for version in found
                ],
                limit=limit,
                key="number",
            )
        )

    async def version_read(self, request: Request) -> Response:
        machine = await self._find(request)
        version = await self._store.version(machine.id, _number(request))
        return Json(
            _version(version)
            | {"active": version.number == machine.active_version, "definition": version.definition}
        )

    async def version_files(self, request: Request) -> Response:
        machine = await self._find(request)
        version = await self._store.version(machine.id, _number(request))
        return Json(
            {"entry": version.entry, "files": await self._store.files(machine.id, version.number)}
        )

    async def version_activate(self, request: Request) -> Response:
        machine = await self._find(request)
        activated = await self._store.activate(machine.id, _number(request))
        self._catalog.forget(machine.id)
        return Json(self._machine(activated))

    # --- logs -------------------------------------------------------------------------------------

    async def logs(self, request: Request) -> Response:
        machine = await self._find(request)
        limit, _ = page_of(request, limit_max=self._limits.log_lines_kept)
        last = self._logs.last(machine.id, limit)
        if "text/event-stream" not in request.headers.get("accept", ""):
            return Json({"data": last, "next": None})
        return StreamingResponse(
            self._follow(machine.id, last),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    async def _follow(self, machine_id: str, last: list[LogLine]) -> AsyncIterator[bytes]:
        """The lines there are, then those that come.

        A reader that falls behind loses lines, never holds up the hub.
        """
        lines: asyncio.Queue[LogLine] = asyncio.Queue(maxsize=self._limits.log_lines_kept)

        def push(line: LogLine) -> None:
            if not lines.full():
                lines.put_nowait(line)

        stop = self._logs.follow(machine_id, push)
        try:
            for line in last:
                yield b"data: " + msgspec.json.encode(line) + b"\n\n"
            while not self.draining:
                try:
                    line = await asyncio.wait_for(lines.get(), 1)
                    yield b"data: " + msgspec.json.encode(line) + b"\n\n"
                except TimeoutError:
                    pass
        finally:
            stop()

    # --- words ------------------------------------------------------------------------------------

    async def _find(self, request: Request) -> Machine:
        return await self._store.machine(request.path_params["machine"])

    def _machine(self, machine: Machine) -> dict[str, Any]:
        return {
            "id": machine.id,
            "name": machine.name,
            "url": self._url(machine),
            "created_at": timestamp(machine.created_at_ms),
            "active_version": machine.active_version or None,
        }

    def _url(self, machine: Machine) -> str:
        return f"{self._base_url}/{machine.id}"


def _number(request: Request) -> int:
    text: str = request.path_params["number"]
    if not re.fullmatch("[0-9]{1,9}", text):
        raise NotFound("no_such_version", "the machine has no such version")
    return int(text)


def _version(version: Version) -> dict[str, Any]:
    return {
        "number": version.number,
        "digest": version.digest,
        "engine": version.engine,
        "entry": version.entry,
        "message": version.message,
        "created_at": timestamp(version.created_at_ms),
    }
