"""The timer scheduler: fires timers when they come due, whether their sessions are in memory or
not.

Timers are rows of the database; here are those that come due soon, in the order that
`decide/timers.py` says. One entry of the event loop stands for the earliest. A clock that does not
tick by itself is fired by whoever moves it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

from machinehub.errors import Unavailable
from machinehub.session.decide.timers import TimerQueue
from machinehub.tasks import look_on
from sandbox.protocol.ids import TimerId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from machinehub.clock import Clock
    from machinehub.ids import SessionKey
    from machinehub.session.run.unattended import Unattended
    from machinehub.store.sessions import SessionStore

log = logging.getLogger("machinehub.session")

PRUNE_AT: Final = 4096
"""Entries at which cancelled timers are first looked for; then at twice what was left."""
HORIZON_MS: Final = 10 * 60_000
"""How far ahead timers are kept in memory."""
EXTEND_MS: Final = 60_000
"""How much nearer the horizon may come before it is read further."""
LOOK_S: Final = 0.5
"""How soon a step forward of the computer's clock is noticed."""
RETRY_MS: Final = 1000
_HELD: Final = TimerId(-1)
"""Another: timers of the session were held back, and are to be looked at."""
_ALWAYS: Final = -(2**62)
_NEVER: Final = 2**62
_ANY_TIMER: Final = TimerId(0)
"""A placeholder id, which no real timer has. When it comes due, the session is loaded, and loading
a session schedules its real timers.
"""


class TimerScheduler:
    """`due(key, timer, due_at_ms)` hears of every timer whose time has come, `pending` says whether
    one still stands, as far as is known.
    """

    def __init__(
        self,
        clock: Clock,
        store: SessionStore,
        due: Callable[[SessionKey, TimerId, int], None],
        pending: Callable[[SessionKey, TimerId, int], bool],
        *,
        per_s: int,
        unattended: Unattended,
    ) -> None:
        self._unattended = unattended
        self._clock = clock
        self._store = store
        self._due = due
        self._pending = pending
        self._per_s = per_s
        self._second = 0
        self._fired: Counter[SessionKey] = Counter()
        """How many timers of a session have fired in this second."""
        self._queue: TimerQueue[SessionKey] = TimerQueue()
        self._prune_at = PRUNE_AT
        self._horizon_ms = _ALWAYS
        self._handle: asyncio.TimerHandle | None = None
        self._handle_at_ms: int | None = None
        self._extending: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Takes up what comes due soon, or came due while no hub ran. Raises `Unavailable`."""
        await self._extend()
        if self._clock.ticks:
            self._extending = asyncio.ensure_future(
                look_on("timers", LOOK_S, self._look, log, logging.WARNING)
            )

    def stop(self) -> None:
        for pending in (self._handle, self._extending):
            if pending is not None:
                pending.cancel()

    def set(self, key: SessionKey, timers: Iterable[tuple[TimerId, int]]) -> None:
        """Takes up (timer, due_at_ms) pairs of a session.

        Cancelling is the session's own business (`Session.timers`).
        """
        for timer, due_at_ms in timers:
            if due_at_ms <= self._horizon_ms:
                self._queue.add(key, timer, due_at_ms)
        if len(self._queue) > self._prune_at:
            self._queue.prune(self._is_pending)
            self._prune_at = max(PRUNE_AT, 2 * len(self._queue))
        self._arm()

    def again_soon(self, key: SessionKey) -> None:
        """The session could not be woken: another try, by whatever timer of it is due then."""
        self.set(key, [(_ANY_TIMER, self._clock.now_ms() + RETRY_MS)])

    async def reload(self) -> None:
        """Takes up once more what the database has: some timers may have fired in vain."""
        self._unattended.forget_all()
        try:
            self._take(await self._store.timers_due(after_ms=_ALWAYS, until_ms=self._horizon_ms))
        except Unavailable as error:
            log.warning("timers will be looked for later: %s", error.detail)
            asyncio.get_running_loop().call_later(
                RETRY_MS / 1000, lambda: asyncio.ensure_future(self.reload())
            )

    def next_due_at_ms(self) -> int | None:
        """When the next timer may be due (it may turn out to be cancelled)."""
        return self._queue.next_due_at_ms()

    def fire(self) -> None:
        """Fires what is due, in order."""
        self._handle_at_ms = None
        now_ms = self._clock.now_ms()
        if now_ms // 1000 != self._second:
            self._second = now_ms // 1000
            self._fired.clear()
        for key, timer, due_at_ms in self._queue.pop_due(now_ms):
            if timer == _HELD:
                self._release(key, now_ms)
            else:
                self._come_due(key, timer, due_at_ms, now_ms)
        self._arm()

    def _come_due(self, key: SessionKey, timer: TimerId, due_at_ms: int, now_ms: int) -> None:
        if self._fired[key] >= self._per_s:
            # A machine that sets its next timer at once would have the hub to itself.
            self._queue.add(key, timer, due_at_ms, not_before_ms=(self._second + 1) * 1000)
            return
        wait_ms = self._unattended.take(key, timer, due_at_ms, now_ms)
        if wait_ms == 0:
            self._fired[key] += 1
            self._due(key, timer, due_at_ms)
        elif wait_ms is not None:
            self._queue.add(key, _HELD, now_ms + wait_ms)

    def _release(self, key: SessionKey, now_ms: int) -> None:
        free, wait_ms = self._unattended.release(key, now_ms)
        for timer, due_at_ms in free:
            if self._unattended.is_free(key):  # as many in a second as of any session
                self._come_due(key, timer, due_at_ms, now_ms)
            else:
                self._due(key, timer, due_at_ms)
        if wait_ms is not None:
            self._queue.add(key, _HELD, now_ms + wait_ms)

    def _is_pending(self, key: SessionKey, timer: TimerId, due_at_ms: int) -> bool:
        return timer == _HELD or self._pending(key, timer, due_at_ms)

    async def _look(self) -> None:
        if self._clock.now_ms() + HORIZON_MS - self._horizon_ms >= EXTEND_MS:
            await self._extend()

    async def _extend(self) -> None:
        before_ms = self._horizon_ms
        until_ms = self._clock.now_ms() + HORIZON_MS if self._clock.ticks else _NEVER
        self._horizon_ms = (
            until_ms  # first, so that what is set while the database is read is not missed
        )
        try:
            self._take(await self._store.timers_due(after_ms=before_ms, until_ms=until_ms))
        except Exception:
            self._horizon_ms = before_ms
            raise

    def _take(self, timers: list[tuple[SessionKey, TimerId, int]]) -> None:
        for key, timer, due_at_ms in timers:
            self._queue.add(key, timer, due_at_ms)
        self._arm()

    def _arm(self) -> None:
        due_at_ms = self._queue.next_due_at_ms()
        if (
            not self._clock.ticks
            or due_at_ms is None
            or (self._handle_at_ms is not None and self._handle_at_ms <= due_at_ms)
        ):
            return
        if self._handle is not None:
            self._handle.cancel()
        self._handle_at_ms = due_at_ms
        wait_s = max(0, due_at_ms - self._clock.now_ms()) / 1000
        # Not for long at once: the computer's clock may be put forward meanwhile.
        self._handle = asyncio.get_running_loop().call_later(min(wait_s, LOOK_S), self.fire)
