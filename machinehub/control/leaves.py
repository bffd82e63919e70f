"""What versions may ask of the world: by their own rules, their project's and the hub's."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.control.catalog import remember
from machinehub.effects.asked import Leave
from machinehub.egress.rules import EgressRules

if TYPE_CHECKING:
    from machinehub.control.catalog import Catalog
    from machinehub.edge.quotas import ProjectQuotas
    from machinehub.ids import MachineId

REMEMBERED: Final = 1_000


class VersionLeaves:
    """`Leaves` (effects/asked.py)."""

    def __init__(self, catalog: Catalog, quotas: ProjectQuotas, hub_allows: list[str]) -> None:
        self._catalog = catalog
        self._quotas = quotas
        self._hub_allows = hub_allows
        self._rules: OrderedDict[tuple[MachineId, int], EgressRules] = OrderedDict()

    async def of(self, machine_id: MachineId, version: int) -> Leave:
        rules = self._rules.get((machine_id, version))
        if rules is None:
            target = await self._catalog.target(machine_id, version)
            rules = msgspec.convert(target.version.definition.get("egress", {}), EgressRules)
            remember(self._rules, (machine_id, version), rules, REMEMBERED)
        machine = await self._catalog.machine(machine_id)
        project = (await self._quotas.of(machine.project)).quotas.egress
        bounds = [self._hub_allows, *([project] if project is not None else [])]
        return Leave(machine.project, machine.name, rules, bounds)
