"""Freezes idle sessions, removes unneeded ones from memory, and deletes finished ones.

A session that somebody watches stays readable after it has left its worker.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from machinehub.errors import HubError, NotFound
from machinehub.session.decide.lifecycle import Phase, Stage
from machinehub.session.run.pressure import Pressure
from machinehub.tasks import Tasks, look_on

if TYPE_CHECKING:
    from machinehub.clock import Clock
    from machinehub.limits import Limits
    from machinehub.session.decide.session import Session
    from machinehub.session.run.deletion import Deletions
    from machinehub.session.run.journal import Journal
    from machinehub.session.run.loading import Loader
    from machinehub.session.run.placement import Placement
    from machinehub.session.run.presence import Crowds
    from machinehub.session.run.publisher import Publisher
    from machinehub.session.run.registry import Registry
    from machinehub.session.run.unattended import Unattended
    from machinehub.session.run.waits import Waits
    from machinehub.session.run.waking import Waking
    from machinehub.store.sessions import SessionStore

log = logging.getLogger("machinehub.session")

WATCHED_IDLE_MS: Final = 60_000
"""A session without input for this long is frozen, and leaves its worker; its sockets stay open."""
ALONE_IDLE_MS: Final = 10_000
"""The same for one that nobody is connected to."""
FRESH_MS: Final = 1_000
"""However many there are, one that was asked for just now stays."""
TAIL_MAX: Final = 1_000
"""A session that has had so many inputs since its last checkpoint gets another one, though it is
not idle: else one that never rests would take ever longer to restore.
"""
SWEEP_S: Final = 1.0
EXPIRE_S: Final = 30.0
FREEZE_ALL_S: Final = 10.0
"""How long a hub that stops waits for its sessions to be frozen. What is not is replayed after the
start.
"""
FREEZE_ONE_S: Final = 2.0


class Housekeeper:
    """`expire_after_ms`: when finished sessions are deleted; 0 for never."""

    def __init__(
        self,
        registry: Registry,
        store: SessionStore,
        clock: Clock,
        limits: Limits,
        *,
        expire_after_ms: int,
        placement: Placement,
        journal: Journal,
        loader: Loader,
        crowds: Crowds,
        publisher: Publisher,
        waking: Waking,
        waits: Waits,
        deletions: Deletions,
        unattended: Unattended,
        resident_bytes: int,
    ) -> None:
        self._pressure = Pressure(
            placement,
            clock,
            limits,
            resident_bytes=resident_bytes,
            at_rest=self.at_rest,
            let_go=self.let_go,
        )
        placement.make_room_by(self._pressure.make_room)
        self._unattended = unattended
        self._registry = registry
        self._store = store
        self._clock = clock
        self._limits = limits
        self._expire_after_ms = expire_after_ms
        self._placement = placement
        self._journal = journal
        self._loader = loader
        self._crowds = crowds
        self._publisher = publisher
        self._waking = waking
        self._waits = waits
        self._deletions = deletions
        self._tasks = Tasks()

    def start(self) -> None:
        self._tasks.spawn(look_on("idle sessions", SWEEP_S, self.sweep, log, logging.WARNING))
        if self._expire_after_ms:
            self._tasks.spawn(
                look_on("finished sessions", EXPIRE_S, self.expire, log, logging.WARNING)
            )

    def stop(self) -> None:
        self._tasks.stop()

    # --- sleep ------------------------------------------------------------------------------------

    def at_rest(self, session: Session) -> bool:
        """Whether nothing about it is under way."""
        return (
            self._loader.is_opened(session)
            and not self._loader.is_loading(session)
            and session.phase is not Phase.REPLAYING
            and not session.waiting
            and not self._journal.holds(session)
            and self._placement.stage(session) in (Stage.OFF, Stage.ON)
        )

    def let_go(self, session: Session) -> None:
        """Lets go of a session at rest: the database has it. Its sockets may stay."""
        if not self.at_rest(session) or session.gone:
            return
        if self._placement.stage(session) is Stage.ON:
            self._placement.freeze(session)
        elif self._is_needed(session):
            session.unload()
        else:
            self._loader.drop(session)

    def _is_needed(self, session: Session) -> bool:
        """Whether somebody waits for something of it, or may come back to it."""
        return self._publisher.is_watched(session) or self._crowds.has_members(session)

    async def freeze(self, session: Session) -> None:
        """Puts a session that has nothing to do to sleep, so that the database has a checkpoint of
        what it is now. Returns after a while all the same.
        """
        if not self.at_rest(session) or self._placement.stage(session) is not Stage.ON:
            return
        self._placement.freeze(session)
        with contextlib.suppress(TimeoutError, HubError):
            async with asyncio.timeout(FREEZE_ONE_S):
                while not self.at_rest(session) and not session.gone:
                    await self._waits.next_turn(session)

    def sweep(self) -> None:
        """Freezes or unloads idle sessions. While more sessions are on workers, or wait to be woken
        by a timer, than `live_sessions` allows, the least recently used ones count as idle too.
        """
        now_ms = self._clock.now_ms()
        for session in self._registry.all:
            idle_ms = WATCHED_IDLE_MS if self._is_needed(session) else ALONE_IDLE_MS
            if now_ms - session.used_at_ms >= idle_ms or len(session.tail) >= TAIL_MAX:
                self.let_go(session)
        self._unattended.tidy(now_ms)
        self._pressure.relieve()
        live = sorted(self._placement.live, key=lambda session: session.used_at_ms)
        too_many = len(live) + self._waking.waiting_for_room - self._limits.live_sessions
        for session in live[: max(0, too_many)]:
            if now_ms - session.used_at_ms >= FRESH_MS:
                self.let_go(session)

    def hibernate(self) -> None:
        """Puts every session that is at rest to sleep."""
        for session in [session for session in self._placement.live if self.at_rest(session)]:
            self.let_go(session)

    async def freeze_all(self) -> None:
        """Before the hub stops: what is on a worker is frozen, so that the next start finds it at
        once.

        What no worker has begun is not waited for.
        """
        for session in self._placement.live:
            session.abandon(keep=self._placement.in_flight(session))
        try:
            async with asyncio.timeout(FREEZE_ALL_S):
                self.hibernate()
                while any(self._is_busy(session) for session in self._placement.live):
                    await asyncio.sleep(0.01)
                await self._journal.drained()
        except TimeoutError:
            log.warning("not every session could be frozen in time")

    def _is_busy(self, session: Session) -> bool:
        return bool(session.pending) or self._placement.stage(session) is Stage.FREEZING

    # --- expiry -----------------------------------------------------------------------------------

    async def expire(self) -> int:
        """Deletes the sessions that finished long enough ago; how many there were."""
        count = 0
        before_ms = self._clock.now_ms() - self._expire_after_ms
        while records := await self._store.finished(before_ms=before_ms):
            for record in records:
                with contextlib.suppress(NotFound):  # another node was faster
                    await self._deletions.delete(record.machine_id, record.session_id)
            count += len(records)
        return count
