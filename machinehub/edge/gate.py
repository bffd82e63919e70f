"""Who may use which session: the one place where a principal meets a machine, for all protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from machinehub.errors import NotFound
from machinehub.principal import wrong_token

if TYPE_CHECKING:
    from machinehub.edge.quotas import ProjectQuotas
    from machinehub.ids import MachineId, SessionId
    from machinehub.model import Machine
    from machinehub.principal import Member, Principal, Scope
    from machinehub.session.port import Address


class Machines(Protocol):
    """Where machines are looked up; the catalog implements it."""

    async def machine(self, machine_id: MachineId) -> Machine:
        """Raises `NotFound`."""
        ...


class Counts(Protocol):
    def __call__(
        self, member: Member, machine: MachineId | None, session: SessionId | None, /
    ) -> bool:
        """Whether what a connect token says counts now, for that session."""
        ...


class Gate:
    def __init__(self, machines: Machines, counts: Counts, quotas: ProjectQuotas) -> None:
        self._quotas = quotas
        self._machines = machines
        self._counts = counts

    async def enter(self, principal: Principal, address: Address, scope: Scope) -> Principal:
        """Who somebody is for a session, if they may use it. `scope` is what a secret token needs
        for what is to be done, where the machine is private. Raises `NotFound`, for what is outside
        of their project as for what is not there; `Unauthorised`, `Forbidden`, `QuotaExceeded`.
        """
        machine = await self._reached(principal, address.machine_id)
        principal.must_use(machine, address.session_id, scope)
        allowance = await self._quotas.of(machine.project)
        await self._quotas.check_opening(machine.project, allowance, address)
        here = principal.at(machine, allowance)
        self.recheck(here, address)
        return here

    def recheck(self, principal: Principal, address: Address) -> None:
        """Whether what somebody showed when they entered still counts: reading a request may take
        its time. Raises `Unauthorised`.
        """
        member = principal.member
        if member is not None and not self._counts(member, address.machine_id, address.session_id):
            raise wrong_token()

    async def look(self, principal: Principal, machine_id: MachineId) -> Machine:
        """The same for a machine without a session: its definition."""
        machine = await self._reached(principal, machine_id)
        principal.must_use(machine, None, "read")
        return machine

    async def _reached(self, principal: Principal, machine_id: MachineId) -> Machine:
        machine = await self._machines.machine(machine_id)
        if not principal.reaches(machine.project):
            raise no_such_machine(machine_id)
        return machine


def no_such_machine(machine_id: str) -> NotFound:
    """The one answer for a machine that is not there, or not there for whoever asks."""
    return NotFound("no_such_machine", f"there is no machine {machine_id[:100]!r}")
