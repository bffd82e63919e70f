"""The deploy API's part for machines and versions. One function a call."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from starlette.responses import Response, StreamingResponse

from machinehub.clock import measured_s, timestamp
from machinehub.control.routes import MACHINE
from machinehub.control.uploads import Upload, check_name, upload_bytes_max
from machinehub.edge.admission import principal_of
from machinehub.edge.problem import Json
from machinehub.edge.requests import decode, page, page_of, read_body
from machinehub.errors import BadRequest, HubError, NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.requests import Request

    from machinehub.clock import Clock
    from machinehub.control.audit import Audit
    from machinehub.control.catalog import Catalog
    from machinehub.control.reach import Reach
    from machinehub.control.routes import Guarded
    from machinehub.edge.quotas import ProjectQuotas
    from machinehub.limits import Limits
    from machinehub.logs import LogLine, Logs
    from machinehub.metrics import Metrics
    from machinehub.model import Machine, Version
    from machinehub.principal import Principal
    from machinehub.session.port import Sessions
    from machinehub.store.store import Store

PATCH_BYTES_MAX: Final = 65536
PRUNE_BYTES_MAX: Final = 4096
_VERSION: Final = MACHINE + "/versions/{number}"
_NUMBER: Final = re.compile("[0-9]{1,9}")


class PruneBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST .../versions/prune`: how many of the newest stay in any case."""

    keep: Annotated[int, msgspec.Meta(ge=1, le=10**6)] = 10


class MachinePatch(msgspec.Struct):
    """The body of `PATCH /api/v1/machines/{m}`: what it names is changed."""

    name: str | None = None
    private: bool | None = None


class DeployApi:
    def __init__(
        self,
        catalog: Catalog,
        store: Store,
        sessions: Sessions,
        audit: Audit,
        reach: Reach,
        logs: Logs,
        metrics: Metrics,
        *,
        quotas: ProjectQuotas,
        clock: Clock,
        limits: Limits,
        base_url: str,
        watch: Callable[[Principal, Callable[[], None]], Callable[[], None]],
        is_open: Callable[[], bool],
        is_stopping: Callable[[], bool],
    ) -> None:
        """`watch` tells when the token of a principal is not valid any more; `is_open` whether
        everybody on this computer may do everything; `is_stopping` whether streams should end.
        """
        self._is_stopping = is_stopping
        self._quotas = quotas
        self._clock = clock
        self._is_open = is_open
        self._watch = watch
        self._catalog = catalog
        self._store = store
        self._sessions = sessions
        self._audit = audit
        self._reach = reach
        self._logs = logs
        self._metrics = metrics
        self._limits = limits
        self._base_url = base_url

    def calls(self) -> list[Guarded]:
        return [
            ("deploy", "POST", "/deployments", self.deploy),
            ("read", "GET", "/machines", self.machine_list),
            ("read", "GET", MACHINE, self.machine_read),
            ("operate", "PATCH", MACHINE, self.machine_change),
            ("operate", "DELETE", MACHINE, self.machine_delete),
            ("read", "GET", MACHINE + "/versions", self.version_list),
            ("operate", "POST", MACHINE + "/versions/prune", self.version_prune),
            ("read", "GET", _VERSION, self.version_read),
            ("read", "GET", _VERSION + "/files", self.version_files),
            ("deploy", "POST", _VERSION + "/activate", self.version_activate),
            ("read", "GET", MACHINE + "/logs", self.logs),
        ]

    # --- machines and versions --------------------------------------------------------------------

    async def deploy(self, request: Request) -> Response:
        body = await read_body(
            request, bytes_max=upload_bytes_max(self._limits), code="source_too_large"
        )
        began_s = measured_s()
        try:
            project = await self._reach.project(request)
            upload = decode(body, Upload)
            await self._quotas.check_deployment(project, upload.name)
            deployed = await self._catalog.deploy(
                upload, project, private_when_new=not self._is_open()
            )
        except HubError as error:
            self._metrics.deployments.labels(outcome=error.code).inc()
            raise
        outcome = "created" if deployed.created else "unchanged"
        self._metrics.deployments.labels(outcome=outcome).inc()
        self._metrics.deploy.observe(measured_s() - began_s)
        machine, version = deployed.machine, deployed.version
        if deployed.created:
            await self._audit.note(request, "deployed version %d of %s", version.number, machine)
        answer = {
            "machine": {
                "id": machine.id,
                "name": machine.name,
                "url": self._url(machine),
                "private": machine.private,
            },
            "version": {
                "number": version.number,
                "digest": version.digest,
                "engine": version.engine,
            },
            "created": deployed.created,
            "timings_ms": {
                "bundle": deployed.bundle_us / 1000,
                "freeze": deployed.freeze_us / 1000,
                "total": deployed.total_us / 1000,
            },
            "warnings": version.warnings,
        }
        return Json(answer, 201 if deployed.created else 200)

    async def machine_list(self, request: Request) -> Response:
        limit, after = page_of(request, limit_max=self._limits.page_items)
        project = await self._reach.project(request)
        found = await self._store.machine_list(project, after=after, limit=limit + 1)
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
        patch = decode(await read_body(request, bytes_max=PATCH_BYTES_MAX), MachinePatch)
        if patch.name is not None:
            check_name(patch.name)
        machine = await self._find(request)
        changed = machine
        if patch.name is not None and patch.name != machine.name:
            changed = await self._store.rename(machine.id, patch.name)
            await self._audit.note(request, "renamed %s to %s", machine, changed.name)
        if patch.private is not None and patch.private != machine.private:
            changed = await self._store.set_private(machine.id, patch.private)
            await self._audit.note(
                request, "made %s %s", machine, "private" if patch.private else "public"
            )
        self._catalog.forget(machine.id)
        if changed.private and not machine.private:
            self._sessions.reconnect(machine.id, "the machine is private now")
        return Json(self._machine(changed))

    async def machine_delete(self, request: Request) -> Response:
        machine = await self._find(request)
        await self._sessions.delete_machine(machine.id)
        await self._store.delete_machine(machine.id)
        self._catalog.forget(machine.id)
        self._logs.forget(machine.id)
        await self._audit.note(request, "deleted %s and all its sessions", machine)
        return Response(status_code=204)

    async def version_list(self, request: Request) -> Response:
        machine = await self._find(request)
        limit, before = page_of(request, limit_max=self._limits.page_items)
        if before is not None and not _NUMBER.fullmatch(before):
            raise BadRequest("invalid_cursor", "the cursor is not one that a list gave")
        found = await self._store.version_list(
            machine.id, before=int(before) if before else None, limit=limit + 1
        )
        shown = [_version(each) | _activity(each, machine) for each in found]
        return Json(page(shown, limit=limit, key="number"))

    async def version_read(self, request: Request) -> Response:
        machine = await self._find(request)
        version = await self._store.version(machine.id, _number(request))
        definition = {"definition": version.shown}
        return Json(_version(version) | _activity(version, machine) | definition)

    async def version_files(self, request: Request) -> Response:
        machine = await self._find(request)
        version = await self._store.version(machine.id, _number(request))
        files = await self._store.files(machine.id, version.number)
        return Json({"entry": version.entry, "files": files})

    async def version_activate(self, request: Request) -> Response:
        machine = await self._find(request)
        activated = await self._store.activate(
            machine.id, _number(request), now_ms=self._clock.now_ms()
        )
        self._catalog.forget(machine.id)
        await self._audit.note(
            request, "activated version %d of %s", activated.active_version, machine
        )
        return Json(self._machine(activated))

    async def version_prune(self, request: Request) -> Response:
        machine = await self._find(request)
        wanted = decode(await read_body(request, bytes_max=PRUNE_BYTES_MAX), PruneBody)
        used = await self._sessions.versions_in_use(machine.id)
        gone = await self._catalog.prune(machine.id, keep=wanted.keep, used=used)
        await self._audit.note(request, "deleted %d versions of %s", len(gone), machine)
        return Json({"deleted": gone})

    # --- logs -------------------------------------------------------------------------------------

    async def logs(self, request: Request) -> Response:
        machine = await self._find(request)
        limit, _ = page_of(request, limit_max=self._limits.log_lines_kept)
        last = await self._logs.read(machine.id, limit)
        if "text/event-stream" not in request.headers.get("accept", ""):
            return Json({"data": last, "next": None})
        return StreamingResponse(
            self._follow(machine.id, last, principal_of(request.scope)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store"},
        )

    async def _follow(
        self, machine_id: str, last: list[LogLine], principal: Principal
    ) -> AsyncIterator[bytes]:
        """The lines there are, then those that come.

        A reader that falls behind loses lines, never holds up the hub.
        """
        lines: asyncio.Queue[LogLine] = asyncio.Queue(maxsize=self._limits.log_lines_kept)

        def push(line: LogLine) -> None:
            if not lines.full():
                lines.put_nowait(line)

        revoked = asyncio.Event()
        leave = self._watch(principal, revoked.set)
        stop = self._logs.follow(machine_id, push)
        try:
            for line in last:
                yield b"data: " + msgspec.json.encode(line) + b"\n\n"
            while not (self._is_stopping() or revoked.is_set()):
                try:
                    line = await asyncio.wait_for(lines.get(), 1)
                    yield b"data: " + msgspec.json.encode(line) + b"\n\n"
                except TimeoutError:
                    pass
        finally:
            leave()
            stop()

    # --- how things are shown ---------------------------------------------------------------------

    async def _find(self, request: Request) -> Machine:
        return await self._reach.machine(request)

    def _machine(self, machine: Machine) -> dict[str, Any]:
        return {
            "id": machine.id,
            "name": machine.name,
            "url": self._url(machine),
            "created_at": timestamp(machine.created_at_ms),
            "active_version": machine.active_version or None,
            "private": machine.private,
            "project": machine.project,
        }

    def _url(self, machine: Machine) -> str:
        return f"{self._base_url}/{machine.id}"


def _number(request: Request) -> int:
    text: str = request.path_params["number"]
    if not _NUMBER.fullmatch(text):
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
        "warnings": version.warnings,
    }


def _activity(version: Version, machine: Machine) -> dict[str, bool]:
    return {"active": version.number == machine.active_version}
