"""Loads sleeping sessions when their timers are due.

At most `live_sessions` are awake: after a long downtime the rest wait until others are frozen.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from machinehub.errors import HubError, OwnedElsewhere
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from machinehub.ids import SessionKey
    from machinehub.limits import Limits
    from machinehub.session.decide.session import Session
    from machinehub.session.run.intake import Intake
    from machinehub.session.run.loading import Loader
    from machinehub.session.run.placement import Placement
    from machinehub.session.run.registry import Registry
    from machinehub.session.run.scheduler import TimerScheduler
    from machinehub.store.sessions import SessionStore
    from sandbox.protocol.ids import TimerId

ROOM_WAIT_S: Final = 0.1
ROOM_WAITS: Final = 50
"""After so many waits a session is woken although there is no room: its timer must not wait for
ever.
"""


class Waking:
    """Turns due timers into inputs, and loads the sessions that are not in memory for them."""

    def __init__(
        self,
        registry: Registry,
        store: SessionStore,
        limits: Limits,
        *,
        loader: Loader,
        placement: Placement,
        scheduler: TimerScheduler,
        intake: Intake,
    ) -> None:
        self._registry = registry
        self._store = store
        self._limits = limits
        self._loader = loader
        self._placement = placement
        self._scheduler = scheduler
        self._intake = intake
        self._waking: set[SessionKey] = set()
        self.takes_up = True
        """Whether sessions that are not in memory are woken: not by a node that is leaving."""
        self._entering = 0
        """Sessions that are being loaded and are not on a worker yet."""
        self._tasks = Tasks()

    def stop(self) -> None:
        self._tasks.stop()

    @property
    def waiting_for_room(self) -> int:
        """Sessions whose timers are due, and that wait until others sleep."""
        return len(self._waking) - self._entering

    def timer_due(self, key: SessionKey, timer: TimerId, due_at_ms: int) -> None:
        """A timer's time has come: it becomes an input, or its session is woken."""
        session = self._registry.of_key(key)
        if session is not None and session in self._registry.moving:
            return  # it is a row, which the next owner finds
        if session is None or not session.phase.loaded:
            if key not in self._waking and (session is not None or self.takes_up):
                self._waking.add(key)
                self._tasks.spawn(self._wake(key))
        elif session.timer_due(timer, due_at_ms):
            self._intake.fire(session, timer)

    def timer_pending(self, key: SessionKey, timer: TimerId, due_at_ms: int) -> bool:
        """Whether a timer still waits, as far as is known."""
        session = self._registry.of_key(key)
        if session is None or not session.phase.loaded:
            return True
        armed = session.timers.get(timer)
        return armed is not None and armed.due_at_ms == due_at_ms

    async def awaken(self, key: SessionKey) -> Session | None:
        """A session into memory, once there is room for one more; None when it is no more.

        Raises what loading it raises.
        """
        for _ in range(ROOM_WAITS):
            if self._placement.live_count + self._entering < self._limits.live_sessions:
                break
            await asyncio.sleep(ROOM_WAIT_S)
        self._entering += 1
        try:
            return await self._load(key)
        finally:
            self._entering -= 1

    async def _load(self, key: SessionKey) -> Session | None:
        session = self._registry.of_key(key)
        if session is None and not self.takes_up:
            return None
        if session is None:
            record = await self._store.record_of(key)
            if record is None or self._registry.is_closed(record.machine_id):
                return None
            known = self._registry.find(record.machine_id, record.session_id)
            session = known or self._loader.take_up(record)
        await self._loader.opened(session)
        await self._loader.load(session)
        return session

    async def _wake(self, key: SessionKey) -> None:
        """A timer came due while its session was not loaded: the scheduler fires again once it
        is.
        """
        try:
            if await self.awaken(key) is not None:
                # What is due is on its way to a worker before the next one is woken.
                self._scheduler.fire()
        except OwnedElsewhere:
            pass  # whoever has it, has its timers
        except HubError:
            self._scheduler.again_soon(key)
        finally:
            self._waking.discard(key)
