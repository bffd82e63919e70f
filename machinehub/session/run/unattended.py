"""Sessions that nobody listens to, and whose timers go on: how often those may fire.

A machine with a loop of short timers works on for as long as its session is not deleted, whoever
left it. While no socket, stream or waiting request is there, its timers have a burst and then a
sustained rate (`unattended_timer_burst`, `unattended_timers_per_min`). A timer that is over it
fires when there is room for it again: late, never lost, in the order in which they were due. Turns
of such a session's timers are not kept for ever either: see `SessionStore.commit`.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from machinehub.rates import Rate

if TYPE_CHECKING:
    from machinehub.clock import Clock
    from machinehub.ids import SessionKey
    from machinehub.limits import Limits
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.session.run.publisher import Publisher
    from machinehub.session.run.registry import Registry
    from sandbox.protocol.ids import TimerId

log = logging.getLogger("machinehub.session")

SAY_AGAIN_MS: Final = 3600_000
"""How often a session's log says that its timers are held back."""


@dataclass(slots=True)
class _Ticking:
    rate: Rate
    fired: int = 0
    """How many of its timers have fired while nobody listened."""
    held: deque[tuple[TimerId, int]] = field(default_factory=deque)
    """Timers whose time has come, and when it had."""
    at_ms: int = 0
    """When one of its timers was last due."""
    said_at_ms: int | None = None


class Attendance:
    """Who listens to which session, and where it is said that its timers are late."""

    def __init__(
        self, registry: Registry, publisher: Publisher, clock: Clock, logs: MachineLogs
    ) -> None:
        self._registry = registry
        self._publisher = publisher
        self._clock = clock
        self._logs = logs

    def is_attended(self, key: SessionKey) -> bool:
        session = self._registry.of_key(key)
        return session is not None and self._publisher.is_watched(session)

    def say(self, key: SessionKey, text: str) -> None:
        """In the hub's log and in the machine's."""
        session = self._registry.of_key(key)
        if session is not None:
            log.warning("session %s: %s", session.name, text)
            now_ms = self._clock.now_ms()
            self._logs.add(session.machine_id, session.session_id, "warn", text, now_ms, None)


class Unattended:
    def __init__(self, limits: Limits, metrics: Metrics, attendance: Attendance) -> None:
        self._attendance = attendance
        self._per_min = limits.unattended_timers_per_min
        self._per_s = self._per_min / 60
        self._burst = limits.unattended_timer_burst
        self._metrics = metrics
        self._ticking: dict[SessionKey, _Ticking] = {}

    def take(self, key: SessionKey, timer: TimerId, due_at_ms: int, now_ms: int) -> int | None:
        """Whether a timer may fire now (0). Otherwise it is kept here, and this says in how many
        milliseconds `release` is to be asked; None when that was said before.
        """
        if self._attendance.is_attended(key):
            if self._ticking and (known := self._ticking.get(key)) and not known.held:
                del self._ticking[key]
            return 0
        ticking = self._ticking.get(key)
        if ticking is None:
            ticking = self._ticking[key] = _Ticking(Rate(self._per_s, burst=self._burst))
        ticking.at_ms = now_ms
        if not ticking.held and ticking.rate.take(1, now_ms / 1000):
            ticking.fired += 1
            return 0
        ticking.held.append((timer, due_at_ms))
        self._metrics.late_timers.add()
        if ticking.said_at_ms is None or now_ms - ticking.said_at_ms > SAY_AGAIN_MS:
            ticking.said_at_ms = now_ms
            self._attendance.say(
                key,
                "nobody listens, and more timers came due than may fire then: from now on they fire"
                f" {self._per_min} times a minute, until somebody connects",
            )
        return None if len(ticking.held) > 1 else self._pause_ms

    def release(self, key: SessionKey, now_ms: int) -> tuple[list[tuple[TimerId, int]], int | None]:
        """The timers of a session that may fire by now, and in how many milliseconds to ask again,
        if more are kept.
        """
        ticking = self._ticking.get(key)
        if ticking is None:
            return [], None
        free: list[tuple[TimerId, int]] = []
        if self._attendance.is_attended(key):
            free = [*ticking.held]
            del self._ticking[key]
            return free, None
        while ticking.held and ticking.rate.take(1, now_ms / 1000):
            ticking.fired += 1
            free.append(ticking.held.popleft())
        return free, self._pause_ms if ticking.held else None

    @property
    def _pause_ms(self) -> int:
        return max(1, round(1000 / self._per_s))

    def ticks_on(self, key: SessionKey) -> bool:
        """Whether more timers of a session have fired for nobody than a burst."""
        ticking = self._ticking.get(key)
        return ticking is not None and ticking.fired > self._burst

    def tidy(self, now_ms: int) -> None:
        """Forgets those that have been quiet for so long that their burst is whole again."""
        quiet_ms = self._burst / self._per_s * 1000
        for key in [
            key
            for key, each in self._ticking.items()
            if not each.held and now_ms - each.at_ms > quiet_ms
        ]:
            del self._ticking[key]

    def forget_all(self) -> None:
        """The database's timers are taken up once more: those that are kept here are among them."""
        self._ticking.clear()
