"""The order of a client's events where some are refused for a while."""

from __future__ import annotations

import pytest

from machinehub.errors import RateLimited, Unavailable
from machinehub.ids import EventId
from machinehub.protocols.native.resends import HOLD_EVENTS, HOLD_GAP_S, HOLD_S, ResendGuard

pytestmark = pytest.mark.core
BUSY = RateLimited("rate_limited", "too fast")


def taken(guard: ResendGuard, name: str, now_s: float) -> bool:
    try:
        guard.check(EventId(name), now_s)
    except RateLimited:
        return False
    return True


def test_what_is_behind_a_refused_event_waits_for_it() -> None:
    """However long it is on its way: a slow network, or a slow hub, changes no order."""
    guard = ResendGuard()
    assert taken(guard, "a", 0)
    guard.refused(EventId("b"), BUSY, 1.0)
    for number, name in enumerate("cdefg"):
        assert not taken(guard, name, 1.0 + number * HOLD_GAP_S * 0.9)
    assert taken(guard, "b", 3.5)
    assert taken(guard, "c", 3.5)


def test_the_first_that_was_refused_counts() -> None:
    guard = ResendGuard()
    guard.refused(EventId("b"), BUSY, 1.0)
    assert not taken(guard, "c", 1.0)
    guard.refused(EventId("c"), BUSY, 1.0)
    assert not taken(guard, "c", 1.1)
    assert taken(guard, "b", 1.2)


@pytest.mark.parametrize("how", ["pause", "time", "events"])
def test_who_does_not_send_it_again_is_not_locked_out(how: str) -> None:
    guard = ResendGuard()
    guard.refused(EventId("b"), BUSY, 1.0)
    if how == "pause":
        assert taken(guard, "c", 1.0 + HOLD_GAP_S * 1.1)
    elif how == "time":
        moments = [1.0 + number * HOLD_GAP_S * 0.5 for number in range(40)]
        ends = next(at for at in moments if taken(guard, f"c{at}", at))
        assert HOLD_S < ends - 1.0 <= HOLD_S + HOLD_GAP_S
    else:
        answers = [taken(guard, f"c{number}", 1.0) for number in range(HOLD_EVENTS + 1)]
        assert answers == [False] * HOLD_EVENTS + [True]


def test_what_the_event_itself_is_refused_for_holds_nothing() -> None:
    guard = ResendGuard()
    guard.refused(EventId("b"), Unavailable("session_damaged", "for ever"), 1.0)
    assert taken(guard, "c", 1.0)
