"""How fast something may come: a token bucket. Time is an argument."""

from __future__ import annotations


class Rate:
    """At most `per_s` units a second, and `burst` (as many, unless it is given) at once."""

    __slots__ = ("_at", "_burst", "_level", "_per_s")

    def __init__(self, per_s: float, *, burst: float | None = None) -> None:
        self._per_s = per_s
        self._burst = self._level = per_s if burst is None else burst
        self._at: float | None = None

    def slow_down(self, per_s: float, *, burst: float | None = None) -> None:
        """From now on no more than this."""
        self._per_s = min(self._per_s, per_s)
        self._burst = min(self._burst, per_s if burst is None else burst)
        self._level = min(self._level, self._burst)

    def take(self, units: float, now_s: float) -> bool:
        """Whether `units` may pass now; when not, nothing is taken."""
        if self._at is not None:
            self._level = min(self._burst, self._level + (now_s - self._at) * self._per_s)
        self._at = now_s
        if units > self._level:
            return False
        self._level -= units
        return True
