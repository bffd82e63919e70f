"""How things stand with this hub's sessions, for metrics and for operators."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from machinehub.clock import measured_s
from machinehub.errors import Unavailable
from machinehub.metrics import set_all

if TYPE_CHECKING:
    from machinehub.metrics import Metrics
    from machinehub.session.port import Busy
    from machinehub.session.run.journal import Journal
    from machinehub.session.run.placement import Placement
    from machinehub.session.run.publisher import Publisher
    from machinehub.session.run.registry import Registry
    from machinehub.store.sessions import SessionStore

BUSIEST_SHOWN: Final = 10
"""Sessions that the metric names."""
COUNT_S: Final = 60.0
"""How often the database's sessions are counted, at most."""


class Gauges:
    def __init__(
        self,
        registry: Registry,
        store: SessionStore,
        metrics: Metrics,
        *,
        placement: Placement,
        journal: Journal,
        publisher: Publisher,
    ) -> None:
        self._registry = registry
        self._store = store
        self._metrics = metrics
        self._placement = placement
        self._journal = journal
        self._publisher = publisher
        self._counted_at_s = float("-inf")

    async def measure(self) -> None:
        """Sets the gauges of sessions."""
        metrics = self._metrics
        metrics.sessions.set(len(self._registry))
        metrics.live_sessions.set(self._placement.live_count)
        metrics.inputs_waiting.set(sum(each.waiting for each in self._registry.all))
        metrics.lines_waiting.set(self._journal.waiting)
        busiest = self.busiest(BUSIEST_SHOWN)
        set_all(
            metrics.busiest, {(each.machine_id, each.session_id): each.turns for each in busiest}
        )
        if measured_s() - self._counted_at_s > COUNT_S:
            self._counted_at_s = measured_s()
            with contextlib.suppress(Unavailable):
                metrics.stored_sessions.set(await self._store.count())

    def busiest(self, count: int) -> list[Busy]:
        """The sessions with the most turns in the last minute."""
        return self._publisher.activity.busiest(count, measured_s())
