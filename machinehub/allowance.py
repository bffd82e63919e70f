"""What one project uses in this hub's memory, and what its quotas leave it of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.errors import QuotaExceeded
from machinehub.model import Quotas
from machinehub.rates import Rate

if TYPE_CHECKING:
    from collections.abc import Callable


class Allowance:
    """A project's. Its quotas may change at any time."""

    __slots__ = ("_deployments", "_events", "connections", "database_bytes", "quotas")

    def __init__(self) -> None:
        self.quotas = Quotas()
        self.connections = 0
        self.database_bytes = 0
        """As it was measured last."""
        self._events: Rate | None = None
        self._deployments: Rate | None = None

    def allow(self, quotas: Quotas) -> None:
        """These count from now on."""
        before, self.quotas = self.quotas, quotas
        if quotas.events_per_s != before.events_per_s:
            self._events = Rate(quotas.events_per_s) if quotas.events_per_s else None
        if quotas.deployments_per_s != before.deployments_per_s:
            per_s = quotas.deployments_per_s
            self._deployments = Rate(per_s, burst=max(1.0, per_s)) if per_s else None

    def take_event(self, now_s: float) -> None:
        """Raises `QuotaExceeded`."""
        if self._events is not None and not self._events.take(1, now_s):
            raise exceeded("events", f"{self.quotas.events_per_s} events a second")
        self.check_space()

    def take_deployment(self, now_s: float) -> None:
        """Raises `QuotaExceeded`."""
        if self._deployments is not None and not self._deployments.take(1, now_s):
            raise exceeded("deployments", f"{self.quotas.deployments_per_s:g} deployments a second")
        self.check_space()

    def connect(self) -> Callable[[], None]:
        """One connection more; returns what ends it, to be called once. Raises `QuotaExceeded`."""
        most = self.quotas.connections
        if most is not None and self.connections >= most:
            raise exceeded("connections", f"{most} connections at once")
        self.connections += 1

        def leave() -> None:
            self.connections -= 1

        return leave

    def check_space(self) -> None:
        """Raises `QuotaExceeded`."""
        most = self.quotas.database_bytes
        if most is not None and self.database_bytes > most:
            raise exceeded("database", f"{most} bytes in the database")


def exceeded(what: str, most: str) -> QuotaExceeded:
    return QuotaExceeded(f"quota_{what}", f"the project has at most {most}")
