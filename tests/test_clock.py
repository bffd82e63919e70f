"""The clock that sessions see, over computers' clocks that are put forward and back."""

from __future__ import annotations

import pytest

from machinehub.clock import CATCHING_UP, SystemClock

pytestmark = pytest.mark.core

S_NS = 1_000_000_000
HOUR_S = 3600


class Computer:
    """A computer's two clocks: the one that people set, and the one that only counts."""

    def __init__(self) -> None:
        self.wall_ns = 1_700_000_000 * S_NS
        self.monotonic_ns = 5 * S_NS
        self.clock = SystemClock(lambda: self.wall_ns, lambda: self.monotonic_ns)

    def wait(self, seconds: float) -> None:
        self.wall_ns += int(seconds * S_NS)
        self.monotonic_ns += int(seconds * S_NS)

    def put(self, seconds: float) -> None:
        """The clock is set forward, or back."""
        self.wall_ns += int(seconds * S_NS)


def test_time_is_the_computers() -> None:
    computer = Computer()
    for _ in range(100):
        computer.wait(0.0371)
        assert computer.clock.now_ms() == computer.wall_ns // 1_000_000


def test_a_step_forward_is_followed_at_once() -> None:
    computer = Computer()
    computer.put(HOUR_S)
    assert computer.clock.now_ms() == computer.wall_ns // 1_000_000


def test_a_timer_of_a_minute_fires_after_a_minute_when_the_clock_is_put_back_an_hour() -> None:
    computer = Computer()
    before_ms = computer.clock.now_ms()
    due_ms = before_ms + 60_000
    computer.put(-HOUR_S)
    waited_s = 0.0
    while computer.clock.now_ms() < due_ms:
        computer.wait(0.01)
        waited_s += 0.01
    assert 60 <= waited_s <= 60 * CATCHING_UP / (CATCHING_UP - 1) + 1


@pytest.mark.parametrize("step_s", [0.0000003, 0.001, 0.25, 17])
def test_time_goes_on_and_catches_up_however_often_it_is_asked_for(step_s: float) -> None:
    computer = Computer()
    last_ms = computer.clock.now_ms()
    computer.put(-step_s * 300)
    began_ns = computer.monotonic_ns
    while last_ms > computer.wall_ns // 1_000_000:
        computer.wait(step_s)
        now_ms = computer.clock.now_ms()
        assert now_ms >= last_ms
        last_ms = now_ms
    took_s = (computer.monotonic_ns - began_ns) / S_NS
    assert took_s <= step_s * 300 * (CATCHING_UP + 1) + 0.001


def test_steps_back_add_up_and_a_step_forward_ends_them() -> None:
    computer = Computer()
    last_ms = computer.clock.now_ms()
    for step_s in (-5, -60, 2, -HOUR_S, -1, HOUR_S, 64):
        computer.put(step_s)
        for _ in range(10):
            computer.wait(0.1)
            now_ms = computer.clock.now_ms()
            assert now_ms > last_ms
            last_ms = now_ms
    assert computer.clock.now_ms() == computer.wall_ns // 1_000_000


def test_the_computers_clock_never_stands_still_for_sessions_while_it_is_behind() -> None:
    computer = Computer()
    computer.put(-HOUR_S)
    first_ms = computer.clock.now_ms()
    computer.wait(20)
    assert computer.clock.now_ms() - first_ms == 20_000 * (CATCHING_UP - 1) // CATCHING_UP
