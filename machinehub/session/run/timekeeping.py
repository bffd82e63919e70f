"""Sessions' time across restarts and steps of the computer's clock: what is noted of it, what is
said of it.

A hub whose computer's clock was put back goes on with sessions' time ahead of it. A start must go
on from there as well: a timer that was armed meanwhile would come late by as much as the clock was
put back.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from machinehub.clock import SystemClock
from machinehub.errors import Unavailable
from machinehub.tasks import Tasks, look_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.clock import Clock
    from machinehub.metrics import Metrics
    from machinehub.store.notes import Notes

log = logging.getLogger("machinehub.session")

AHEAD_MS: Final = 500
"""Sessions' time that is so far ahead is noted every `NOTE_S`."""
NOTE_S: Final = 1.0
ALWAYS_S: Final = 10.0
"""Otherwise it is noted so often: the hub may be killed, and the clock be behind at its next start.
"""
FAR_AHEAD_MS: Final = 24 * 3600 * 1000
"""Said at the start: it takes weeks to catch up."""


class Timekeeper:
    """`start` before anything asks for the time of sessions, `stop` last."""

    def __init__(
        self, clock: Clock, notes: Notes | None, metrics: Metrics, *, stepped: Callable[[], None]
    ) -> None:
        """`stepped` hears that sessions' time may have moved. Without `notes` nothing is noted, and
        a start begins with the computer's clock: where several hubs share the database, one whose
        clock is wrong must not spread that.
        """
        self._clock = clock if isinstance(clock, SystemClock) else None
        self._notes = notes
        self._metrics = metrics
        self._stepped = stepped
        self._tasks = Tasks()
        self._was_ahead = self._started = False
        self._noted_at_s = float("-inf")

    async def start(self) -> None:
        """Raises `Unavailable`."""
        if self._clock is None:
            return
        noted = await self._notes.clock() if self._notes is not None else None
        if noted is not None:
            self._clock.resume(*noted)
            self._was_ahead = True
            if self._clock.ahead_ms > FAR_AHEAD_MS:
                log.warning(
                    "sessions' time is %d hours ahead of the computer's clock, as it was when the "
                    "hub ended; it goes a little slower until that has caught up (`machinehub db "
                    "reset-clock` puts it right at once)",
                    self._clock.ahead_ms // 3_600_000,
                )
        await self._note()
        self._clock.on_step = self._was_set
        self._started = True
        self._tasks.spawn(look_on("clocks", NOTE_S, self._keep, log, logging.WARNING))

    async def stop(self) -> None:
        """Notes how time stands. A database that cannot be written is left as it is."""
        self._tasks.stop()
        if self._started:
            await self._note()

    def _was_set(self, by_ms: int) -> None:
        which = "forward" if by_ms > 0 else "back"
        self._metrics.clock_steps.labels(direction=which).inc()
        slept = " (or the computer slept)" if by_ms > 0 else ""
        log.warning("the computer's clock was put %s by %.1f s%s", which, abs(by_ms) / 1000, slept)
        self._tasks.spawn(self._note())
        asyncio.get_running_loop().call_soon(self._stepped)

    async def _keep(self) -> None:
        assert self._clock is not None
        is_ahead = self._clock.ahead_ms > AHEAD_MS
        self._metrics.clock_ahead.set(max(0, self._clock.ahead_ms) / 1000)
        loop_s = asyncio.get_running_loop().time()
        if is_ahead or self._was_ahead or loop_s - self._noted_at_s >= ALWAYS_S:
            self._noted_at_s = loop_s
            await self._note()
        self._was_ahead = is_ahead

    async def _note(self) -> None:
        assert self._clock is not None
        if self._notes is None:
            return
        try:
            await self._notes.keep_clock(self._clock.now_ms(), self._clock.wall_ms)
        except Unavailable as error:
            log.warning("how time stands could not be noted: %s", error.detail)
