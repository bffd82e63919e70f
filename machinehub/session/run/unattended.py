"""Sessions that nobody listens to, and whose timers go on: how often those may fire.

A machine with a loop of short timers works on for as long as its session is not deleted, whoever
left it. While no socket, stream or waiting request is there, its timers have a burst and then a
sustained rate (`unattended_timer_burst`, `unattended_timers_per_min`). A timer that is over it
fires when there is room for it again: late, never lost, in the order in which they were due. Turns
of such a session's timers are not kept for ever either: see `SessionStore.commit`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from machinehub.rates import Rate
from sandbox.protocol.ids import TimerId

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.clock import Clock
    from machinehub.ids import SessionKey
    from machinehub.limits import Limits
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.session.run.publisher import Publisher
    from machinehub.session.run.registry import Registry

log = logging.getLogger("machinehub.session")

SAY_AGAIN_MS: Final = 3600_000
"""How often a session's log says that its timers are held back."""


PRUNE_AT: Final = 64
"""Timers that are kept of one session at which cancelled ones are first looked for; then at twice
what was left.
"""

Timer = tuple[TimerId, int]
"""A timer, and when it was due."""


@dataclass(slots=True)
class _Ticking:
    rate: Rate
    fired: int = 0
    """How many of its timers have fired while nobody listened."""
    held: dict[Timer, None] = field(default_factory=dict)
    """Timers whose time has come, in the order in which it had."""
    prune_at: int = PRUNE_AT
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

    def is_awake(self, key: SessionKey) -> bool:
        """Whether a timer that fires becomes an input at once; else its session is loaded first,
        which sets all of its timers once more.
        """
        session = self._registry.of_key(key)
        return session is not None and session.phase.loaded

    def say(self, key: SessionKey, text: str) -> None:
        """In the hub's log and in the machine's."""
        session = self._registry.of_key(key)
        if session is not None:
            log.warning("session %s: %s", session.name, text)
            now_ms = self._clock.now_ms()
            self._logs.add(session.machine_id, session.session_id, "warn", text, now_ms, None)


class Unattended:
    """`is_pending` says whether a timer of a session that is awake still stands."""

    def __init__(
        self,
        limits: Limits,
        metrics: Metrics,
        attendance: Attendance,
        is_pending: Callable[[SessionKey, TimerId, int], bool],
    ) -> None:
        self._attendance = attendance
        self._is_pending = is_pending
        self._per_min = limits.unattended_timers_per_min
        self._per_s = self._per_min / 60
        self._burst = limits.unattended_timer_burst
        self._metrics = metrics
        self._ticking: dict[SessionKey, _Ticking] = {}

    def take(self, key: SessionKey, timer: TimerId, due_at_ms: int, now_ms: int) -> int | None:
        """Whether a timer may fire now (0). Otherwise it is kept here, and this says in how many
        milliseconds `release` is to be asked; None when that was said before, or the timer was
        cancelled.
        """
        if not self._attendance.is_awake(key):
            return 0  # what wakes a session costs nothing yet: it is asked about again then
        if not self._is_pending(key, timer, due_at_ms):
            return None
        ticking = self._ticking.get(key)
        if self._attendance.is_attended(key):
            if ticking is None or not ticking.held:
                self._ticking.pop(key, None)
                return 0
            ticking.held[timer, due_at_ms] = None
            return 1  # behind those that were due before it
        if ticking is None:
            ticking = self._ticking[key] = _Ticking(Rate(self._per_s, burst=self._burst))
        ticking.at_ms = now_ms
        if not ticking.held and ticking.rate.take(1, now_ms / 1000):
            ticking.fired += 1
            return 0
        self._keep(key, ticking, (timer, due_at_ms), now_ms)
        return None if len(ticking.held) > 1 else self._pause_ms

    def _keep(self, key: SessionKey, ticking: _Ticking, timer: Timer, now_ms: int) -> None:
        ticking.held[timer] = None
        self._metrics.late_timers.add()
        if len(ticking.held) >= ticking.prune_at:
            ticking.held = {each: None for each in ticking.held if self._is_pending(key, *each)}
            ticking.prune_at = max(PRUNE_AT, 2 * len(ticking.held))
        if ticking.said_at_ms is None or now_ms - ticking.said_at_ms > SAY_AGAIN_MS:
            ticking.said_at_ms = now_ms
            self._attendance.say(
                key,
                "nobody listens, and more timers came due than may fire then: from now on they fire"
                f" {self._per_min} times a minute, until somebody connects",
            )

    def release(self, key: SessionKey, now_ms: int) -> tuple[list[Timer], int | None]:
        """The timers of a session that come due by now, once more, and in how many milliseconds to
        ask again, if more are kept.
        """
        ticking = self._ticking.get(key)
        if ticking is None or not ticking.held:
            return [], None
        if self._attendance.is_attended(key):
            del self._ticking[key]
            return list(ticking.held), None
        if not ticking.rate.has(1, now_ms / 1000):
            return [], self._pause_ms
        if not self._attendance.is_awake(key):
            # It is woken by one of them, and has all of them again.
            first = next(iter(ticking.held))
            ticking.held.clear()
            return [first], None
        while ticking.held:
            first = next(iter(ticking.held))
            del ticking.held[first]
            if self._is_pending(key, *first):
                ticking.rate.take(1, now_ms / 1000)
                ticking.fired += 1
                return [first], self._pause_ms if ticking.held else None
        return [], None

    def holds(self, key: SessionKey) -> bool:
        """Whether timers of a session wait here."""
        ticking = self._ticking.get(key)
        return ticking is not None and bool(ticking.held)

    def is_free(self, key: SessionKey) -> bool:
        """Whether what `release` gave is to be asked about once more: somebody listens now."""
        return key not in self._ticking

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
