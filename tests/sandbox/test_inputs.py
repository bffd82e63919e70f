"""The codec of the guest's inputs: what is written is read back, by the slow reading and by the
fast.
"""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.protocol.ids import TimerId
from sandbox.protocol.inputs import (
    Shape,
    event_input,
    is_start,
    read_input,
    shape_of,
    start_input,
    timer_input,
    timer_of,
)

pytestmark = pytest.mark.core

SEEDS = st.integers(1, 2**53 - 1)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=40)
@given(SEEDS, st.none() | JSON)
def test_starts(seed: int, given_: bytes | None) -> None:
    data = start_input(seed, given_)
    read = read_input(data)
    assert (read.shape, read.seed, is_start(data), shape_of(data)) == (
        Shape.START,
        seed,
        True,
        Shape.START,
    )
    assert bytes(read.subject) == (b"null" if given_ is None else given_)


@settings(max_examples=40)
@given(SEEDS, JSON, JSON)
def test_events(seed: int, event: bytes, sender: bytes) -> None:
    data = event_input(seed, event, sender)
    read = read_input(data)
    assert (read.shape, read.seed, is_start(data), shape_of(data)) == (
        Shape.EVENT,
        seed,
        False,
        Shape.EVENT,
    )
    assert (bytes(read.subject), bytes(read.sender)) == (event, sender)


@settings(max_examples=40)
@given(SEEDS, st.integers(0, 2**31))
def test_timers(seed: int, timer: int) -> None:
    data = timer_input(seed, TimerId(timer))
    read = read_input(data)
    assert (read.shape, read.seed, read.timer, timer_of(data)) == (Shape.TIMER, seed, timer, timer)
    assert (is_start(data), shape_of(data)) == (False, Shape.TIMER)


@pytest.mark.parametrize("data", [b"", b"[]", b"[0]", b"[5,1]", b"{}", b"[0,1.5]", b'["0",1]'])
def test_what_is_no_input_is_refused(data: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        read_input(data)
