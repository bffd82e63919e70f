"""How much of a session's queue its worker may hold: the fairness between sessions.

A worker does its work in the order in which it arrives, so what one session has sent ahead is what
all others on that worker wait for. A session may have a few inputs on their way; one that uses up
its CPU may have one, and waits in between, twice as long after each such turn in a row. And of all
the sessions of a worker whose turns are heavy, one at a time has one input there (`HeavyLane`): a
light turn waits for one heavy one at most, however many machines spin beside it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

from sandbox.protocol.limits import HEAVY_US

Waiter = TypeVar("Waiter")

SIZE_MAX: Final = 8
HEAVY_START_US: Final = 5_000
"""As `HEAVY_US`, of a session's first turn, which takes a millisecond where nothing is computed."""
PAUSE_S: Final = 0.1
PAUSE_S_MAX: Final = 1.6
_AHEAD_US: Final = 2_000
"""What a session may have on its way, by what its turns usually take."""
_NEWER: Final = 0.05
"""How much the last turn counts, against those before it.

One that took more than usual counts at once, and is forgotten slowly.
"""


class CostEstimate:
    """What turns of a machine take.

    All its sessions share it: what one of them does, the others are expected to do too.

    Before the first is known the worst is expected: a machine that nobody has met begins with one
    turn, not with a hundred.
    """

    def __init__(self) -> None:
        self.cpu_us = float(HEAVY_US)
        self.start_us = float(HEAVY_START_US)
        self._knows_turns = self._knows_starts = False

    def took(self, cpu_us: int) -> None:
        if not self._knows_turns:
            self.cpu_us, self._knows_turns = 0.0, True
        self.cpu_us = max(cpu_us, self.cpu_us + _NEWER * (cpu_us - self.cpu_us))

    def start_took(self, cpu_us: int) -> None:
        if not self._knows_starts:
            self.start_us, self._knows_starts = 0.0, True
        self.start_us = max(cpu_us, self.start_us + _NEWER * (cpu_us - self.start_us))

    def is_heavy(self, *, start: bool) -> bool:
        return self.start_us >= HEAVY_START_US if start else self.cpu_us >= HEAVY_US


class SendWindow:
    def __init__(self) -> None:
        self.estimate = CostEstimate()
        self._in_flight = 0
        self._size = 1
        self._overruns = 0
        self._paused = False

    def next(self, waiting: int) -> int | None:
        """The position in the queue, of `waiting` inputs, of one that may be sent now; it counts as
        sent.
        """
        if not self.may_send(waiting):
            return None
        self._in_flight += 1
        return self._in_flight - 1

    @property
    def in_flight(self) -> int:
        """How many inputs the worker has."""
        return self._in_flight

    def may_send(self, waiting: int) -> bool:
        """Whether `next` would name one."""
        ahead = (
            1
            if self.estimate.cpu_us >= HEAVY_US
            else min(self._size, max(1, int(_AHEAD_US / (self.estimate.cpu_us + 1))))
        )
        return not self._paused and self._in_flight < min(ahead, waiting)

    def settled(self, *, overran: bool) -> float:
        """The oldest input that was sent came back, having used up its CPU or not.

        How many seconds to pause before `resume`.
        """
        self._in_flight -= 1
        if not overran:
            self._size = min(self._size + 1, SIZE_MAX)
            self._overruns = 0
            return 0.0
        self._size = 1
        self._overruns += 1
        self._paused = True
        return min(PAUSE_S * 2.0 ** (self._overruns - 1), PAUSE_S_MAX)

    def resume(self) -> None:
        self._paused = False

    def restart(self) -> None:
        """The session is on another worker: nothing is on its way any more."""
        self._in_flight = 0


class HeavyLane(Generic[Waiter]):
    """Of one worker: whose heavy turn it may do now, and who waits for that, in the order of their
    asking.
    """

    def __init__(self) -> None:
        self._inside: Waiter | None = None
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()

    def enter(self, who: Waiter) -> bool:
        """Whether `who` may send a heavy turn now; if not, `leave` of somebody else will name
        them.
        """
        if self._inside is None:
            self._waiting.pop(who, None)
            self._inside = who
        elif self._inside != who:
            self._waiting[who] = None
        return self._inside == who

    def leave(self, who: Waiter) -> Waiter | None:
        """`who` has no heavy turn there any more, or does not wait for one.

        Returns who is next, who may `enter` or `leave` too.
        """
        self._waiting.pop(who, None)
        if self._inside == who:
            self._inside = None
        return next(iter(self._waiting), None) if self._inside is None else None
