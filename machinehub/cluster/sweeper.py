"""Sessions that no node has, and that something is to happen to: their timers are due, or their
machines believe that somebody is there who is not.

Every node looks, and takes up those that `placing.py` gives it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from machinehub.cluster.placing import place
from machinehub.errors import HubError
from machinehub.ids import MachineId, SessionId
from machinehub.tasks import Tasks, look_on

if TYPE_CHECKING:
    from machinehub.clock import Clock
    from machinehub.cluster.here import Here
    from machinehub.cluster.membership import Membership
    from machinehub.ids import SessionKey
    from machinehub.limits import Limits
    from machinehub.session.run.local import LocalSessions
    from machinehub.store.sessions import SessionStore

log = logging.getLogger("machinehub.cluster")

LOOK_S: Final = 0.25
LATE_MS: Final = 100
"""A timer that is late by so much is nobody's: the last node that had its session wakes it in time,
unless it is gone.
"""
AT_ONCE: Final = 200
REST_S: Final = 0.5
REST_S_MAX: Final = 30.0
"""How long a session that could not be taken up is left alone: at first, and in the end."""
MINE_S: Final = 5.0
"""How often it is looked for sessions that this node has and does not know of: the answer to a
claim may have been lost.
"""


class Sweeper:
    def __init__(
        self,
        here: Here,
        store: SessionStore,
        membership: Membership,
        clock: Clock,
        limits: Limits,
    ) -> None:
        self._here = here
        self._local: LocalSessions = here.local
        self._store = store
        self._membership = membership
        self._clock = clock
        self._forsaken_ms = 2 * limits.presence_grace_ms
        self._crowded_since_s: dict[SessionKey, float] = {}
        self._waking: set[SessionKey] = set()
        self._later: dict[SessionKey, tuple[float, float]] = {}
        """Sessions that could not be taken up: until when they rest, and for how long."""
        self._looked_at_s = float("-inf")
        self._tasks = Tasks()

    def start(self) -> None:
        self._tasks.spawn(look_on("sessions", LOOK_S, self.sweep, log, logging.DEBUG))

    def stop(self) -> None:
        self._tasks.stop()

    async def sweep(self) -> None:
        """Looks once. Raises `Unavailable`."""
        if self._here.is_leaving:
            return
        due_ms = self._clock.now_ms() - LATE_MS
        now_s = self._clock.monotonic_s()
        known = self._later
        self._later = {key: rest for key, rest in known.items() if rest[0] + REST_S_MAX > now_s}
        # Those that rest stand in front, and must not take the others' room.
        limit = AT_ONCE + len(self._later)
        due, crowded = await self._store.free_keys(due_ms=due_ms, limit=limit)
        for key in [*due, *self._forsaken(crowded)]:
            if self._is_mine(key):
                self._wake_soon(key)
        if self._clock.monotonic_s() - self._looked_at_s > MINE_S:
            self._looked_at_s = self._clock.monotonic_s()
            for key in await self._store.my_keys(due_ms=due_ms):
                if self._local.registry.of_key(key) is None:
                    self._wake_soon(key)

    def _wake_soon(self, key: SessionKey) -> None:
        rests_until_s, _ = self._later.get(key, (0.0, 0.0))
        if self._clock.monotonic_s() < rests_until_s:
            return
        if key not in self._waking and not self._local.unattended.holds(key):
            self._waking.add(key)
            self._tasks.spawn(self._wake(key))

    def _is_mine(self, key: SessionKey) -> bool:
        capacities = self._membership.capacities
        return place(capacities, MachineId(""), SessionId(str(key))) == self._membership.node

    def _forsaken(self, crowded: set[SessionKey]) -> list[SessionKey]:
        """Those whose people had time to come back."""
        now_s, before = self._clock.monotonic_s(), self._crowded_since_s
        self._crowded_since_s = {key: before.get(key, now_s) for key in crowded}
        wait_s = self._forsaken_ms / 1000
        return [key for key, since_s in self._crowded_since_s.items() if now_s - since_s > wait_s]

    async def _wake(self, key: SessionKey) -> None:
        try:
            await self._local.waking.awaken(key)
            self._local.scheduler.fire()
        except HubError as error:
            log.debug("session %s was not taken up: %s", key, error.detail)
            _, before_s = self._later.get(key, (0.0, REST_S / 2))
            rest_s = min(2 * before_s, REST_S_MAX)
            self._later[key] = self._clock.monotonic_s() + rest_s, rest_s
        else:
            self._later.pop(key, None)
        finally:
            self._waking.discard(key)
