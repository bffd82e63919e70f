"""How fast something may come: a token bucket. Time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

Name = TypeVar("Name")
REMEMBERED: Final = 10_000
"""Names whose rates are remembered. Who is forgotten starts afresh."""


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

    def has(self, units: float, now_s: float) -> bool:
        """Whether `units` may pass now."""
        if self._at is not None:
            self._level = min(self._burst, self._level + (now_s - self._at) * self._per_s)
        self._at = now_s
        return units <= self._level

    def take(self, units: float, now_s: float) -> bool:
        """Whether `units` may pass now; when not, nothing is taken."""
        if not self.has(units, now_s):
            return False
        self._level -= units
        return True


class Rates(Generic[Name]):
    """A rate for each name."""

    def __init__(self) -> None:
        self._rates: OrderedDict[Name, Rate] = OrderedDict()

    def take(self, name: Name, per_s: float, now_s: float, *, burst: float | None = None) -> bool:
        """Whether one more unit of `name` may pass now. `per_s` and `burst` count when it is met
        for the first time.
        """
        rate = self._rates.get(name)
        if rate is None:
            rate = self._rates[name] = Rate(per_s, burst=burst)
            if len(self._rates) > REMEMBERED:
                self._rates.popitem(last=False)
        else:
            self._rates.move_to_end(name)
        return rate.take(1, now_s)
