"""Rates: how much passes in a second."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machinehub.rates import Rate

pytestmark = pytest.mark.core


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60))
def test_no_second_has_more_than_twice_the_rate(times: list[float]) -> None:
    rate = Rate(5)
    passed = [now for now in sorted(times) if rate.take(1, now)]
    for start in passed:
        assert sum(start <= now < start + 1 for now in passed) <= 10
    assert all(later >= earlier for earlier, later in itertools.pairwise(passed))
