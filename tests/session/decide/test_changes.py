"""What a turn changes durably, and how that is folded."""

from __future__ import annotations

import pytest

from machinehub.ids import MemberId
from machinehub.model import NO_CHANGES, Armed, Changes, MemberChange
from machinehub.session.decide.changes import changes_of
from sandbox.protocol.ids import TimerId

pytestmark = pytest.mark.core

ONE, TWO = TimerId(1), TimerId(2)


def test_a_turn_that_touches_nothing_changes_nothing() -> None:
    assert changes_of([], [], fired=None) is NO_CHANGES


def test_a_timer_that_fired_is_gone_unless_it_is_set_again() -> None:
    timers = {ONE: Armed(10), TWO: Armed(20)}
    changes_of([], [], fired=ONE).apply_to(timers)
    assert timers == {TWO: Armed(20)}
    changes_of([(TWO, 40)], [], fired=TWO).apply_to(timers)
    assert timers == {TWO: Armed(40)}


def test_what_is_set_and_cancelled_in_one_turn_never_was() -> None:
    timers: dict[TimerId, Armed] = {}
    changes = changes_of([(ONE, 10)], [ONE], fired=None)
    changes.apply_to(timers)
    assert (timers, changes.armed) == ({}, [])


def test_the_end_takes_all_timers_and_sets_none() -> None:
    timers = {ONE: Armed(10)}
    changes = changes_of([(TWO, 20)], [], fired=None, finished=True, over=True)
    assert changes == Changes(finished=True)
    changes.apply_to(timers)
    assert timers == {}


def test_an_input_after_the_end_sets_no_timer() -> None:
    assert changes_of([(ONE, 10)], [], fired=None, over=True) is NO_CHANGES


def test_a_member_is_a_change_of_its_own() -> None:
    member = MemberChange(MemberId("ann"), b"{}")
    assert changes_of([], [], fired=None, member=member) == Changes(member=member)
