"""How many requests of machines may be under way together, and whose turn it is to begin one."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from machinehub.ids import ProjectId

T = TypeVar("T")
SHARE: Final = 3
"""A project may have so many times as many requests under way as there is room for more: one alone
has three quarters of what is not kept, and the more there are, the less each has.
Source: dynamic thresholds, by which packets share the memory of a switch (A. K. Choudhury and
E. L. Hahne, IEEE/ACM Transactions on Networking 6, 1998).
"""
KEPT_SHARE: Final = 10
"""One in so many is kept for projects that have none under way."""


@dataclass(slots=True, eq=False)
class Lane(Generic[T]):
    """The requests of one version."""

    jobs: deque[T] = field(default_factory=deque)
    project: ProjectId | None = None
    under_way: int = 0
    wake: asyncio.Event = field(default_factory=asyncio.Event)


class Room(Generic[T]):
    """`at_once` requests may be sent together. A lane asks `is_full` before it begins one, and
    waits for its `wake` where that is so.
    """

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._free = at_once
        self._kept = -(-at_once // KEPT_SHARE)
        self._of_a_lane = max(1, at_once // 2)
        self._under_way: Counter[ProjectId | None] = Counter()
        self._crowded: dict[ProjectId | None, dict[Lane[T], None]] = {}
        """Those that wait until their project may have more under way. The one that has least comes
        first: a version that asks without end must not keep others of its project from asking.
        """

    @property
    def in_flight(self) -> int:
        """Requests that were sent, and not answered yet."""
        return self._at_once - self._free

    def is_full(self, lane: Lane[T], in_flight: int) -> bool:
        """Whether as much is under way as may, of which the lane's own rules say `in_flight`."""
        if lane.under_way >= min(in_flight, self._of_a_lane):
            self.step_back(lane)
            return True
        self._crowded.setdefault(lane.project, {})[lane] = None
        return self._first(lane.project) is not lane

    def step_back(self, lane: Lane[T]) -> None:
        """It does not wait for its project's share any more: the next one does."""
        waiting = self._crowded.get(lane.project)
        if waiting is not None:
            waiting.pop(lane, None)
            if not waiting:
                del self._crowded[lane.project]
        self._call()

    def begin(self, lane: Lane[T]) -> None:
        """A request is sent: `sent` and `end` follow. Other projects come first from now on."""
        self._free -= 1
        lane.under_way += 1
        self._under_way[lane.project] += 1
        if (waiting := self._crowded.pop(lane.project, None)) is not None:
            self._crowded[lane.project] = waiting

    def sent(self) -> None:
        """One of them has its answer, and another one may be sent; it counts as its project's until
        `end`.
        """
        self._free += 1
        self._call()

    def end(self, lane: Lane[T]) -> None:
        lane.under_way -= 1
        self._under_way[lane.project] -= 1
        if not self._under_way[lane.project]:
            del self._under_way[lane.project]
        lane.wake.set()
        self._call()

    def _call(self) -> None:
        """Wakes who may begin: one, who calls the next when it has begun, or steps back."""
        if self._free <= 0:
            return
        for project in self._crowded:
            if (first := self._first(project)) is not None:
                first.wake.set()
                return

    def _first(self, project: ProjectId | None) -> Lane[T] | None:
        """Who may begin a request now; of those that have equally many under way, who waits
        longest.
        """
        waiting = self._crowded.get(project)
        if not waiting or not self._may_begin(project):
            return None
        return min(waiting, key=lambda lane: lane.under_way)

    def _may_begin(self, project: ProjectId | None) -> bool:
        has = self._under_way[project]
        return has < SHARE * (self._free - self._kept) or (has == 0 and self._free > 0)
