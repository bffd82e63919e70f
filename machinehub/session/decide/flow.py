"""Flow control: how many inputs of a session may be in flight to its worker.

A worker processes messages in arrival order, so the inputs that one session has in flight delay
every other session on that worker. `SendWindow` allows a session up to `SIZE_MAX` inputs in flight,
fewer if its turns are expensive. After a turn that exceeded its CPU budget it allows one, after a
pause that doubles with each such turn in a row. `HeavyLane` lets only one session of a worker have
a heavy turn in flight at a time, so a light turn waits for at most one heavy turn.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

from sandbox.protocol.limits import HEAVY_US

Waiter = TypeVar("Waiter")

SIZE_MAX: Final = 8
HEAVY_START_US: Final = 5_000
"""A session's first turn counts as heavy from this CPU time on, in microseconds, because even an
empty machine takes about 1 ms to start. `HEAVY_US` is the same threshold for all later turns.
"""
PAUSE_S: Final = 0.1
PAUSE_S_MAX: Final = 1.6
_AHEAD_US: Final = 2_000
"""The most estimated CPU time, in microseconds, that a session's inputs in flight may add up to;
one input is always allowed.
"""
_NEWER: Final = 0.05
"""The weight of the newest turn in the exponential moving average of CPU times.

A turn above the average replaces it at once, so that the estimate rises fast and falls slowly.
"""


class CostEstimate:
    """What turns of a machine take.

    All its sessions share it: what one of them does, the others are expected to do too.

    Before the first is known the worst is expected: a machine that nobody has met begins with one
    turn, not with a hundred.
    """

    def __init__(self) -> None:
        self.cpu_us = float(HEAVY_US)
        self.ahead = 1
        """How many inputs may be in flight, as far as this decides it."""
        self.start_us = float(HEAVY_START_US)
        self._knows_turns = self._knows_starts = False

    def took(self, cpu_us: int) -> None:
        if not self._knows_turns:
            self.cpu_us, self._knows_turns = 0.0, True
        estimate = self.cpu_us + _NEWER * (cpu_us - self.cpu_us)
        self.cpu_us = estimate = max(estimate, cpu_us)
        # An estimate of no time at all must not divide by zero.
        is_heavy = estimate >= HEAVY_US
        self.ahead = 1 if is_heavy else max(1, int(_AHEAD_US / (estimate + 1)))

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
        position = self._in_flight
        if not self.may_send(waiting):
            return None
        self._in_flight = position + 1
        return position

    @property
    def in_flight(self) -> int:
        """How many inputs the worker has."""
        return self._in_flight

    def may_send(self, waiting: int) -> bool:
        """Whether `next` would name one."""
        in_flight = self._in_flight
        return (
            in_flight < waiting
            and in_flight < self._size
            and in_flight < self.estimate.ahead
            and not self._paused
        )

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
    """A lock of one worker: its holder may have a heavy turn in flight, the others queue for it in
    first-in, first-out order. Nothing blocks: the caller retries when `leave` names it.
    """

    def __init__(self) -> None:
        self._inside: Waiter | None = None
        self._waiting: OrderedDict[Waiter, None] = OrderedDict()

    def enter(self, who: Waiter) -> bool:
        """Takes the lock for `who` if it is free, else queues `who`. Returns whether `who` holds
        the lock; if not, a later call of `leave` returns `who`.
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
