"""How fast one client may send."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.errors import RateLimited
from machinehub.rates import Rate

if TYPE_CHECKING:
    from machinehub.limits import Limits


class ClientRates:
    """How fast one client may send. Nothing is counted where the hub is open."""

    def __init__(self, limits: Limits, allowed: Limits) -> None:
        """`limits` are the hub's, `allowed` those of the session's version."""
        self._allowed = allowed
        self._events = Rate(allowed.events_per_s)
        self._bytes = Rate(allowed.event_burst_bytes)
        self._others = Rate(limits.events_per_s)

    def take_event(self, size: int, now_s: float) -> None:
        """Raises `RateLimited`."""
        if not self._events.take(1, now_s):
            per_s = self._allowed.events_per_s
            raise RateLimited("rate_limited", f"a connection sends at most {per_s} events a second")
        burst = self._allowed.event_burst_bytes
        if not self._bytes.take(min(size, burst), now_s):
            raise RateLimited(
                "rate_limited", f"a connection sends at most {burst} bytes of events a second"
            )

    def may_send_other(self, now_s: float) -> bool:
        """Whether one more frame that is no event may come."""
        return self._others.take(1, now_s)
