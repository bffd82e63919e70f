"""The world that simulated machines ask: it answers late, not at all, twice, and in any order. The
broker that asks it is the real one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

from machinehub.effects.asked import Again, Leave
from machinehub.effects.broker import Broker
from machinehub.egress.rules import EgressRules
from machinehub.ids import ProjectId
from machinehub.logs import MachineLogs
from machinehub.metrics import Metrics
from sandbox.protocol.effects import Answer, refusal

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from machinehub.clock import Entropy
    from machinehub.effects.asked import Asked
    from tests.sim.parts import SimClock

RULES = EgressRules(allow=["*"], per_second=1000, in_flight=3, tries=1000, within_s=3600)


class SimLeaves:
    async def of(self, machine_id: str, version: int) -> Leave:
        return Leave(ProjectId("p"), "m", RULES, [])


class SimOutside:
    """A `Carrier`. `is_committed` says whether the database has the request."""

    def __init__(self, chance: random.Random, is_committed: Callable[[Asked], bool]) -> None:
        self.chance = chance
        self.trouble = True
        self.keys: Counter[str] = Counter()
        self._is_committed = is_committed

    async def __call__(self, asked: Asked) -> Answer:
        assert self._is_committed(asked), "a request left before its turn was committed"
        chance = self.chance
        await asyncio.sleep(chance.choice([0.0, 0.01, 0.5, 5.0]) * chance.random())
        lot = chance.random() if self.trouble else 1.0
        if lot < 0.2:
            raise Again(refusal("egress_failed", "lost on the way"), "lost on the way")
        self.keys[asked.idempotency_key] += 1
        if lot < 0.4:
            raise Again(refusal("egress_failed", "its answer was lost"), "its answer was lost")
        if lot < 0.45:
            await asyncio.sleep(30)
        return Answer(200, text=asked.request.url)


def make_broker(
    store: Any, host: Any, outside: SimOutside, clock: SimClock, entropy: Entropy
) -> Broker:
    """The real one, between the simulated database and the simulated world."""
    return Broker(
        store,
        host,
        SimLeaves(),
        outside,
        clock,
        entropy,
        logs=MachineLogs(kept=5),
        metrics=Metrics(),
        at_once=4,
    )
