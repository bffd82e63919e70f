"""How much of a session's queue its worker may hold: the fairness between sessions.

A worker does its work in the order in which it arrives, so what one session has sent ahead is what all others on that worker
wait for. A session may have a few inputs on their way; one that uses up its CPU may have one, and waits in between, twice as
long after each such turn in a row.
"""

from __future__ import annotations

from typing import Final

SIZE_MAX: Final = 8
PAUSE_S: Final = 0.1
PAUSE_S_MAX: Final = 1.6


class SendWindow:
    def __init__(self) -> None:
        self._in_flight = 0
        self._size = 1
        self._overruns = 0
        self._paused = False

    def next(self, waiting: int) -> int | None:
        """The position in the queue, of `waiting` inputs, of one that may be sent now; it counts as sent."""
        if self._paused or self._in_flight >= min(self._size, waiting):
            return None
        self._in_flight += 1
        return self._in_flight - 1

    def settled(self, *, overran: bool) -> float:
        """The oldest input that was sent came back, having used up its CPU or not. How many seconds to pause before `resume`."""
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
