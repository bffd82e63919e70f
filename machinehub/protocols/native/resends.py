"""The order of events that a client sends again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from machinehub.errors import HubError
    from machinehub.ids import EventId

HOLD_GAP_S: Final = 0.5
HOLD_S: Final = 5.0
HOLD_EVENTS: Final = 256
"""What ends the holding back of a client that does not send a refused event again."""
_HOLDS: Final = ("rate_limited", "unavailable")


class ResendGuard:
    """Keeps the order of a client that sends again what could not be taken: what was on its way
    behind a refused event is refused too, until that event comes again.

    One that does not send it again must not be locked out: a pause, so many events, or so much time
    end this as well.
    """

    def __init__(self) -> None:
        self._refused_id: EventId | None = None
        self._since_s = self._last_s = 0.0
        self._count = 0
        self._error: HubError | None = None

    def refused(self, event_id: EventId | None, error: HubError, now_s: float) -> None:
        """An event was refused, through no fault of its own."""
        if error.code in _HOLDS and self._error is None and event_id is not None:
            self._refused_id, self._error, self._count = event_id, error, 0
            self._since_s = self._last_s = now_s

    def check(self, event_id: EventId, now_s: float) -> None:
        """Raises the error of the event before, while that holds."""
        if self._error is None:
            return
        self._count += 1
        if (
            event_id == self._refused_id
            or now_s - self._last_s > HOLD_GAP_S
            or now_s - self._since_s > HOLD_S
            or self._count > HOLD_EVENTS
        ):
            self._error = None
        else:
            self._last_s = now_s
            raise self._error
