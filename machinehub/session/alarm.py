"""The alarm: wakes sessions when their timers come due. The shell around `timers.py`.

One entry of the event loop stands for the earliest timer of all sessions. A clock that does not tick by itself is fired by
whoever moves it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from machinehub.session.timers import TimerQueue

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.clock import Clock
    from machinehub.session.live import LiveSession

PRUNE_AT: Final = 4096
"""Entries at which cancelled timers are first looked for; then at twice what was left."""
SLEEP_S_MAX: Final = 3600.0
"""The event loop's own clock may drift from the hub's: it is asked at least this often."""


class Alarm:
    def __init__(self, clock: Clock, due: Callable[[LiveSession, int], None]) -> None:
        self._clock = clock
        self._due = due
        self._queue: TimerQueue[LiveSession] = TimerQueue()
        self._prune_at = PRUNE_AT
        self._handle: asyncio.TimerHandle | None = None
        self._handle_at_ms: int | None = None

    def set(self, session: LiveSession, timers: list[tuple[int, int]]) -> None:
        """Takes up (timer, due_at_ms) pairs of a session. Cancelling is the session's own business (`Session.timers`)."""
        for timer, due_at_ms in timers:
            self._queue.add(session, timer, due_at_ms)
        if len(self._queue) > self._prune_at:
            self._queue.prune(lambda owner, timer, due_at_ms: not owner.gone and owner.timers.get(timer) == due_at_ms)
            self._prune_at = max(PRUNE_AT, 2 * len(self._queue))
        self._arm()

    def next_due_at_ms(self) -> int | None:
        """When the next timer may be due (it may turn out to be cancelled)."""
        return self._queue.next_due_at_ms()

    def fire(self) -> None:
        """Fires what is due, in order."""
        self._handle_at_ms = None
        for session, timer, due_at_ms in self._queue.pop_due(self._clock.now_ms()):
            if not session.gone and session.timer_due(timer, due_at_ms):
                self._due(session, timer)
        self._arm()

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()

    def _arm(self) -> None:
        due_at_ms = self._queue.next_due_at_ms()
        if not self._clock.ticks or due_at_ms is None or (self._handle_at_ms is not None and self._handle_at_ms <= due_at_ms):
            return
        self.stop()
        self._handle_at_ms = due_at_ms
        wait_s = max(0, due_at_ms - self._clock.now_ms()) / 1000
        self._handle = asyncio.get_running_loop().call_later(min(wait_s, SLEEP_S_MAX), self.fire)
