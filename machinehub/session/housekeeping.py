"""Housekeeping: idle sessions go to sleep, those nobody needs leave memory, finished ones expire.

Decides: when. What it means is in `host.py` and `placement.py`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from machinehub.errors import HubError
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from machinehub.clock import Clock
    from machinehub.limits import Limits
    from machinehub.session.host import SessionHost
    from machinehub.session.live import LiveSession
    from machinehub.store.sessions import SessionStore

log = logging.getLogger("machinehub.session")

WATCHED_IDLE_MS: Final = 60_000
"""A session without input for this long is frozen, and leaves its worker; its sockets stay open."""
ALONE_IDLE_MS: Final = 10_000
"""The same for one that nobody is connected to."""
FRESH_MS: Final = 1_000
"""However many there are, one that was asked for just now stays."""
SWEEP_S: Final = 1.0
EXPIRE_S: Final = 30.0
FREEZING_S: Final = 10.0
"""How long a hub that stops waits for its sessions to be frozen.

What is not is replayed after the start.
"""


class Housekeeper:
    """`expire_after_ms`: when finished sessions are deleted; 0 for never."""

    def __init__(
        self,
        host: SessionHost,
        store: SessionStore,
        clock: Clock,
        limits: Limits,
        *,
        expire_after_ms: int,
    ) -> None:
        self._host = host
        self._store = store
        self._clock = clock
        self._limits = limits
        self._expire_after_ms = expire_after_ms
        self._tasks = Tasks()

    def start(self) -> None:
        self._tasks.spawn(self._sweep_on())
        if self._expire_after_ms:
            self._tasks.spawn(self._expire_on())

    def stop(self) -> None:
        self._tasks.cancel()

    async def _sweep_on(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            self.sweep()

    def sweep(self) -> None:
        """Puts to sleep what is idle, and the longest idle of what is too many, or in the way of
        those that must wake.
        """
        now_ms = self._clock.now_ms()
        for session in self._host.sessions:
            idle_ms = WATCHED_IDLE_MS if session.members or session.watchers else ALONE_IDLE_MS
            if now_ms - session.last_input_ms >= idle_ms:
                self._host.let_go(session)
        live = sorted(self._host.placement.live, key=lambda session: session.last_input_ms)
        for session in live[
            : max(0, len(live) + self._host.waiting_for_room - self._limits.live_sessions)
        ]:
            if now_ms - session.last_input_ms >= FRESH_MS:
                self._host.let_go(session)

    def hibernate(self) -> int:
        """Puts every session that is at rest to sleep; how many there were on workers."""
        asleep: list[LiveSession] = [
            session for session in self._host.placement.live if session.at_rest
        ]
        for session in asleep:
            self._host.let_go(session)
        return len(asleep)

    async def freeze_all(self) -> None:
        """Before the hub stops: what is thawed is frozen, so that the next start finds it at once.

        What no worker has begun is not waited for.
        """
        for session in self._host.placement.live:
            session.abandon(keep=session.window.in_flight)
        try:
            async with asyncio.timeout(FREEZING_S):
                self.hibernate()
                while any(session.pending for session in self._host.placement.live):
                    await asyncio.sleep(0.01)
                await self._host.journal.drained()
        except TimeoutError:
            log.warning("not every session could be frozen in time")

    async def _expire_on(self) -> None:
        while True:
            try:
                await self.expire()
            except HubError as error:
                log.warning("finished sessions expire later: %s", error.detail)
            await asyncio.sleep(EXPIRE_S)

    async def expire(self) -> int:
        """Deletes the sessions that finished long enough ago; how many there were."""
        count = 0
        while records := await self._store.finished(
            before_ms=self._clock.now_ms() - self._expire_after_ms
        ):
            for record in records:
                await self._host.delete(record.machine_id, record.session_id)
            count += len(records)
        return count
