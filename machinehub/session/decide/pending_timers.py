"""The timers of one session: which wait, and which came due and wait for their turn.

Decides: what becomes of a timer whose turn was undone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from machinehub.model import NO_CHANGES, Armed, Changes

if TYPE_CHECKING:
    from machinehub.session.decide.turn import Pending
    from sandbox.protocol.ids import TimerId

TIMER_TRIES: Final = 6
TIMER_RETRY_MS: Final = 1000
"""A timer whose turn was undone is still pending in the machine: it is tried again after 1, 2, 4
... seconds, then given up.
"""


class PendingTimers:
    def __init__(self) -> None:
        self.waiting: dict[TimerId, Armed] = {}
        self.firing: dict[TimerId, Armed] = {}
        """Taken off `waiting`, and waiting for their turn: the machine still has them."""

    def due(self, timer: TimerId, due_at_ms: int, *, over: bool) -> bool:
        """Takes a timer off the list, if it still stands there with this time, and the machine has
        not ended (`over`).
        """
        armed = self.waiting.get(timer)
        if armed is None or armed.due_at_ms != due_at_ms:
            return False
        del self.waiting[timer]
        if not over:
            self.firing[timer] = armed
        return not over

    def not_waiting(self, pending: Pending) -> None:
        """The input is on its way no longer."""
        if pending.timer is not None:
            self.firing.pop(pending.timer, None)

    def try_again(self, pending: Pending, *, counts: bool, over: bool) -> Changes:
        """The input, if it is a timer's, was undone. What we could not do is tried for ever; what
        the machine cannot do, a few times.
        """
        if pending.timer is None:
            return NO_CHANGES
        tries = (pending.armed.tries if pending.armed else 0) + counts
        again: Armed | None = None
        if tries < TIMER_TRIES and not over:
            delay_ms = TIMER_RETRY_MS * 2 ** max(0, tries - 1)
            again = Armed(pending.now_ms + delay_ms, tries)
        changes = Changes(timers={pending.timer: again})
        changes.apply_to(self.waiting)
        return changes

    def restore(self, stored: dict[TimerId, Armed]) -> None:
        """Takes up what the database knows."""
        self.waiting = dict(stored)

    def forget(self) -> None:
        """Until `restore`."""
        self.waiting, self.firing = {}, {}
