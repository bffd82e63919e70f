"""Quotas of projects: what one may have and do at most, of what the hub's own limits leave.

Counts are taken when something is about to be added, and are as exact as that: two that come at the
same moment may both find room. What the database has is measured once a minute.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from machinehub.allowance import Allowance, exceeded
from machinehub.errors import NotFound, Unavailable
from machinehub.tasks import look_on

if TYPE_CHECKING:
    from collections.abc import Collection

    from machinehub.clock import Clock
    from machinehub.ids import MachineId, ProjectId
    from machinehub.session.port import Address
    from machinehub.store.keys import KeyStore
    from machinehub.store.usage import UsageStore

log = logging.getLogger("machinehub.edge")

REMEMBERED_S: Final = 2.0
"""How long a project's quotas are remembered."""
MEASURE_S: Final = 60.0


class InMemory(Protocol):
    """What sessions tell of themselves; `Sessions` (session/port.py) has it."""

    def is_in_memory(self, address: Address) -> bool: ...
    def count_in_memory(self, machines: Collection[MachineId]) -> int: ...


class ProjectQuotas:
    def __init__(self, keys: KeyStore, usage: UsageStore, sessions: InMemory, clock: Clock) -> None:
        self._keys = keys
        self._usage = usage
        self._sessions = sessions
        self._clock = clock
        self._allowances: dict[ProjectId, Allowance] = {}
        self._read_at_s: dict[ProjectId, float] = {}

    async def of(self, project: ProjectId) -> Allowance:
        """What a project may do. Raises `Unavailable`."""
        allowance = self._allowances.get(project)
        now_s = self._clock.monotonic_s()
        if allowance is None:
            allowance = self._allowances[project] = Allowance()
        if now_s - self._read_at_s.get(project, -REMEMBERED_S) >= REMEMBERED_S:
            self._read_at_s[project] = now_s
            allowance.allow((await self._keys.project(project)).quotas)
        return allowance

    def forget(self, project: ProjectId) -> None:
        """Its quotas changed."""
        self._read_at_s.pop(project, None)

    async def check_opening(
        self, project: ProjectId, allowance: Allowance, address: Address
    ) -> None:
        """Whether a session may be opened. Raises `QuotaExceeded`."""
        quotas = allowance.quotas
        if quotas.live_sessions is quotas.sessions is None or self._sessions.is_in_memory(address):
            return
        machines = (await self._usage.machine_ids(project)).values()
        live = quotas.live_sessions
        if live is not None and self._sessions.count_in_memory(machines) >= live:
            raise exceeded("live_sessions", f"{live} sessions in memory at once")
        most = quotas.sessions
        if most is None or await self._usage.has_session(address.machine_id, address.session_id):
            return
        allowance.check_space()
        if (await self._usage.stored(project)).sessions >= most:
            raise exceeded("sessions", f"{most} sessions")

    async def check_deployment(self, project: ProjectId, name: str) -> None:
        """Whether a machine may be deployed. Raises `QuotaExceeded`."""
        allowance = await self.of(project)
        allowance.take_deployment(self._clock.monotonic_s())
        quotas = allowance.quotas
        if quotas.machines is quotas.versions is None:
            return
        stored = await self._usage.stored(project)
        if quotas.versions is not None and stored.versions >= quotas.versions:
            raise exceeded("versions", f"{quotas.versions} versions, of all its machines together")
        most = quotas.machines
        if most is None or stored.machines < most:
            return
        if name not in await self._usage.machine_ids(project):
            raise exceeded("machines", f"{most} machines")

    async def usage(self, project: ProjectId) -> dict[str, Any]:
        """What a project uses, and its quotas, by the same names. Raises `Unavailable`."""
        allowance = await self.of(project)
        stored = await self._usage.stored(project)
        machines = (await self._usage.machine_ids(project)).values()
        allowance.database_bytes = await self._usage.bytes_of(project)
        used = msgspec.to_builtins(stored) | {
            "live_sessions": self._sessions.count_in_memory(machines),
            "connections": allowance.connections,
            "database_bytes": allowance.database_bytes,
        }
        return {"used": used, "quotas": msgspec.to_builtins(allowance.quotas)}

    async def measure_on(self) -> None:
        """Measures what projects with a quota of it have in the database, while the hub runs."""
        await look_on("quotas", MEASURE_S, self.measure, log, logging.DEBUG)

    async def measure(self) -> None:
        for project in list(self._allowances):
            try:
                allowance = await self.of(project)
                if allowance.quotas.database_bytes is None:
                    continue
                allowance.database_bytes = await self._usage.bytes_of(project)
            except NotFound:
                del self._allowances[project]
            except Unavailable as error:
                log.debug("what %s has is measured later: %s", project, error.detail)
