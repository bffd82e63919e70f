"""Which sessions do the most: turns of the last minute, by session."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from machinehub.session.port import Busy

if TYPE_CHECKING:
    from machinehub.ids import MachineId, SessionId, SessionKey
    from machinehub.session.decide.session import Session

WINDOW_S: Final = 60.0


class Activity:
    """Counts in windows of a minute: the last minute is the part of the last window that it still
    reaches into, and this one. Bounded by the sessions that had a turn in two minutes.
    """

    def __init__(self) -> None:
        self._now: dict[SessionKey, int] = {}
        self._before: dict[SessionKey, int] = {}
        self._names: dict[SessionKey, tuple[MachineId, SessionId]] = {}
        self._began_s = 0.0

    def count(self, session: Session, now_s: float) -> None:
        """A turn of a session was committed. This stands in the path of every event."""
        if now_s - self._began_s >= WINDOW_S:
            self._turn_over(now_s)
        key = session.record.key
        known = self._now.get(key)
        if known is None:
            self._now[key] = 1
            self._names[key] = session.machine_id, session.session_id
        else:
            self._now[key] = known + 1

    def _turn_over(self, now_s: float) -> None:
        self._before = self._now if now_s - self._began_s < 2 * WINDOW_S else {}
        self._now = {}
        self._names = {key: self._names[key] for key in self._before}
        self._began_s = now_s

    def busiest(self, count: int, now_s: float) -> list[Busy]:
        """The `count` sessions with the most turns, the busiest first."""
        if now_s - self._began_s >= WINDOW_S:
            self._turn_over(now_s)
        left = 1 - (now_s - self._began_s) / WINDOW_S
        turns = {
            key: self._now.get(key, 0) + round(self._before.get(key, 0) * left)
            for key in self._names
        }
        top = heapq.nlargest(count, turns, key=lambda key: turns[key])
        return [Busy(*self._names[key], turns[key]) for key in top if turns[key]]
