"""Who did what: a line of the hub's log, and a row that is kept, for each thing that was changed
over the API, and for looking at a session of somebody else's.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

from machinehub.clock import timestamp
from machinehub.edge.admission import principal_of
from machinehub.edge.problem import Json
from machinehub.edge.requests import page, page_of
from machinehub.errors import BadRequest, Unavailable
from machinehub.model import Machine
from machinehub.principal import Standing

if TYPE_CHECKING:
    import builtins

    from starlette.requests import Request
    from starlette.responses import Response

    from machinehub.clock import Clock
    from machinehub.control.reach import Reach
    from machinehub.control.routes import Guarded
    from machinehub.ids import ProjectId, SessionId
    from machinehub.limits import Limits
    from machinehub.model import AuditLine
    from machinehub.store.audit import AuditStore

audit = logging.getLogger("machinehub.audit")
log = logging.getLogger("machinehub")

PRUNE_EVERY_S: Final = 3600.0
DAY_MS: Final = 24 * 3600 * 1000
LOOKED_AGAIN_S: Final = 3600.0
"""For so long it is noted once that somebody looks at a session: pages look every second."""
LOOKS_REMEMBERED: Final = 10_000
_NUMBER: Final = re.compile("[0-9]{1,18}")


class Audit:
    """What happened is never undone because it could not be noted: then the hub's log says so."""

    def __init__(self, store: AuditStore, clock: Clock, *, days: int) -> None:
        self._store = store
        self._clock = clock
        self._days = days
        self._looked: OrderedDict[tuple[str, str, str], float] = OrderedDict()

    async def note(
        self, request: Request, what: str, *about: Any, project: ProjectId | None = None
    ) -> None:
        """`what` is %-formatted with `about`, of which machines are shown by name and id. `project`
        is the one that it concerns, where no machine says that.
        """
        for each in about:
            if isinstance(each, Machine):
                project = each.project
        shown = [
            f"{each.name} ({each.id})" if isinstance(each, Machine) else each for each in about
        ]
        who, said = principal_of(request.scope).who, what % tuple(shown)
        audit.info("%s %s", who, said)
        try:
            await self._store.add(project, who, said, now_ms=self._clock.now_ms())
        except Unavailable as error:
            log.warning("it could not be kept that %s %s: %s", who, said, error.detail)

    async def note_look(self, request: Request, machine: Machine, session: SessionId) -> None:
        """Somebody with a token looks at a session, which is others'."""
        principal = principal_of(request.scope)
        if principal.standing is not Standing.TOKEN:
            return
        key, now_s = (principal.who, machine.id, session), self._clock.monotonic_s()
        if now_s - self._looked.get(key, -LOOKED_AGAIN_S) < LOOKED_AGAIN_S:
            return
        self._looked[key] = now_s
        self._looked.move_to_end(key)
        if len(self._looked) > LOOKS_REMEMBERED:
            self._looked.popitem(last=False)
        await self.note(request, "read session %s of %s", session, machine)

    async def prune_on(self) -> None:
        """Forgets what is older than the setting says, for as long as the hub runs."""
        while self._days:
            try:
                await self._store.prune(before_ms=self._clock.now_ms() - self._days * DAY_MS)
            except Unavailable as error:
                log.debug("old audit lines go later: %s", error.detail)
            await asyncio.sleep(PRUNE_EVERY_S)


class AuditApi:
    def __init__(self, store: AuditStore, reach: Reach, limits: Limits) -> None:
        self._store = store
        self._reach = reach
        self._limits = limits

    def calls(self) -> builtins.list[Guarded]:
        return [("admin", "GET", "/audit", self.list)]

    async def list(self, request: Request) -> Response:
        """The newest first: of the token's project, or of `?project=`; else of all."""
        limit, before = page_of(request, limit_max=self._limits.page_items)
        if before is not None and not _NUMBER.fullmatch(before):
            raise BadRequest("invalid_cursor", "the cursor is not one that a list gave")
        project = principal_of(request.scope).project
        if "project" in request.query_params:
            project = await self._reach.project(request)
        found = await self._store.page(
            project, before=int(before) if before else None, limit=limit + 1
        )
        return Json(page([_show(each) for each in found], limit=limit, key="id"))


def _show(line: AuditLine) -> dict[str, Any]:
    return {
        "id": line.id,
        "at": timestamp(line.at_ms),
        "who": line.who,
        "what": line.what,
        "project": line.project,
    }
