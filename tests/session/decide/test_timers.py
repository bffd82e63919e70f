"""The order in which timers fire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machinehub.session.decide.timers import TimerQueue
from sandbox.protocol.ids import TimerId

pytestmark = pytest.mark.core


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(0, 60))
def test_timers_fire_by_due_time_then_by_age(due_times: list[int], now_ms: int) -> None:
    queue: TimerQueue[str] = TimerQueue()
    for number, due_at_ms in enumerate(due_times):
        queue.add("s", TimerId(number), due_at_ms)
    expected = [
        number
        for due, number in sorted((due, number) for number, due in enumerate(due_times))
        if due <= now_ms
    ]
    assert [timer for _, timer, _ in queue.pop_due(now_ms)] == expected
    assert queue.next_due_at_ms() == min((due for due in due_times if due > now_ms), default=None)


def test_a_timer_that_is_added_twice_fires_once() -> None:
    queue: TimerQueue[str] = TimerQueue()
    for _ in range(3):
        queue.add("s", TimerId(1), 10)
    assert len(queue) == 1
    assert queue.pop_due(10) == [("s", 1, 10)]
    queue.add("s", TimerId(1), 10)
    assert queue.pop_due(10) == [("s", 1, 10)]


def test_cancelled_timers_can_be_forgotten() -> None:
    queue: TimerQueue[str] = TimerQueue()
    for number in range(10):
        queue.add("s", TimerId(number), 100 - number)
    queue.prune(lambda _owner, timer, due_at_ms: timer % 2 == 0 and due_at_ms == 100 - timer)
    assert [timer for _, timer, _ in queue.pop_due(200)] == [8, 6, 4, 2, 0]
