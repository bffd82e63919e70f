"""Timers: which is due, and in which order.

Decides: firing order is due time, then the order in which they were set, as XState's own clock
would. Does not know: clocks (time is an argument), or what a timer is for. Cancelled ones stay in
the heap until they come up; the session that they belong to knows better (`Session.timer_due`).
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.protocol.ids import TimerId

Owner = TypeVar("Owner")


class TimerQueue(Generic[Owner]):
    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, TimerId, Owner]] = []
        """(when to fire, how many were added before it, due_at_ms, timer, owner)"""
        self._there: set[tuple[Owner, TimerId, int]] = set()
        self._count = 0

    def add(self, owner: Owner, timer: TimerId, due_at_ms: int, *, not_before_ms: int = 0) -> None:
        """Adds a timer; a timer that is queued already with this due time is not added again.

        It fires at `due_at_ms` or `not_before_ms`, whichever is later (milliseconds since 1970).
        """
        if (owner, timer, due_at_ms) in self._there:
            return
        self._there.add((owner, timer, due_at_ms))
        self._count += 1
        heapq.heappush(
            self._heap, (max(due_at_ms, not_before_ms), self._count, due_at_ms, timer, owner)
        )

    def next_due_at_ms(self) -> int | None:
        """When the next one is to be fired."""
        return self._heap[0][0] if self._heap else None

    def pop_due(self, now_ms: int) -> list[tuple[Owner, TimerId, int]]:
        """(owner, timer, due_at_ms) of everything due at `now_ms`, in firing order."""
        due: list[tuple[Owner, TimerId, int]] = []
        while self._heap and self._heap[0][0] <= now_ms:
            _, _, due_at_ms, timer, owner = heapq.heappop(self._heap)
            self._there.discard((owner, timer, due_at_ms))
            due.append((owner, timer, due_at_ms))
        return due

    def prune(self, is_live: Callable[[Owner, TimerId, int], bool]) -> None:
        """Forgets what `is_live(owner, timer, due_at_ms)` denies: cancelled timers, and those of
        sessions that are gone.
        """
        self._heap = [entry for entry in self._heap if is_live(entry[4], entry[3], entry[2])]
        heapq.heapify(self._heap)
        self._there = {(owner, timer, due_at_ms) for _, _, due_at_ms, timer, owner in self._heap}

    def __len__(self) -> int:
        return len(self._heap)
