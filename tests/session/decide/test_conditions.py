"""Conditions that clients wait for: what can be asked, and of which snapshots it holds."""

from __future__ import annotations

import pytest

from machinehub.errors import BadRequest
from machinehub.session.decide.conditions import matches, read_condition

pytestmark = pytest.mark.core


@pytest.mark.parametrize(
    ("wanted", "actual", "holds"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("a", {"a": "x"}, True),
        ({"a": "x"}, {"a": "x"}, True),
        ({"a": "x"}, {"a": {"x": "y"}}, True),
        ({"a": "x"}, "a", False),
        ("a.x", {"a": "x"}, True),
        ({"a": "x", "b": "y"}, {"a": "x", "b": "y", "c": "z"}, True),
        ({"a": "x", "b": "n"}, {"a": "x", "b": "y"}, False),
    ],
)
def test_matches_as_xstate_does(wanted: object, actual: object, holds: bool) -> None:
    assert matches(wanted, actual) is holds


@pytest.mark.parametrize(
    "value", [None, 1, "", "idle", {}, {"tag": 1}, {"tag": "x", "more": 1}, {"matches": 1}, []]
)
def test_bad_conditions_are_refused(value: object) -> None:
    with pytest.raises(BadRequest):
        read_condition(value)


def test_conditions_hold_on_snapshots() -> None:
    snapshot = b'{"value":{"a":"x"},"status":"active","tags":["t"]}'
    assert read_condition({"tag": "t"}).holds(snapshot)
    assert read_condition({"matches": "a"}).holds(snapshot)
    assert not read_condition("done").holds(snapshot)
    assert read_condition("done").holds(b'{"status":"done"}')
