"""Receipts: a second copy of an event gets the first one's answer."""

from __future__ import annotations

import pytest

from machinehub.ids import EventId
from machinehub.model import Fault
from machinehub.session.decide.lifecycle import Phase
from tests.session.decide.sessions import (
    is_new,
    new_session,
    restore,
    send,
    stored,
)

pytestmark = pytest.mark.core


def test_a_second_copy_of_an_event_finds_the_first_ones_receipt() -> None:
    session = new_session()
    receipt, pending = send(session, "e1")
    again, again_new = session.receipts.of(EventId("e1"))
    assert receipt is again
    assert not again_new
    session.committed(session.done(pending.ticket, b'[1,0,{"n":1}]'))
    assert (again.settled, again.seq, again.changed) == (True, 2, True)


def test_only_so_many_ids_are_remembered() -> None:
    session = new_session()
    for number in range(20):
        receipt, _ = session.receipts.of(EventId(f"e{number}"))
        receipt.settled = True
    assert is_new(session, "e19") is False
    assert is_new(session, "e0") is True


def test_ids_of_events_that_wait_are_not_forgotten() -> None:
    """Or a second copy would be taken in beside the first, in one and the same commit."""
    session = new_session()
    receipt, _ = session.receipts.of(EventId("waits"))
    for number in range(20):
        session.receipts.of(EventId(f"e{number}"))
    assert is_new(session, "waits") is False
    receipt.settled = True
    session.receipts.of(EventId("next"))
    assert is_new(session, "waits") is True


def test_what_is_refused_can_be_tried_again_under_its_id() -> None:
    session = new_session()
    receipt, pending = send(session, "1")
    session.done(pending.ticket, b"[1,0,null]")
    send(session, "2")
    turns = session.refuse_all(Fault("unavailable", "the database is away"))
    assert [turn.error for turn in turns] == [Fault("unavailable", "the database is away")] * 2
    assert [is_new(session, event_id) for event_id in "12"] == [True, True]
    for turn in turns:
        session.committed(turn)
    assert receipt.error == Fault("unavailable", "the database is away")
    assert session.phase is Phase.IN_DOUBT


def test_a_reload_answers_events_that_came_meanwhile() -> None:
    session = new_session()
    first = send(session, "1")
    turn = session.done(first[1].ticket, b"[1,0,null]")
    session.committed(turn)
    session.unload()
    again = send(session, "1")
    fresh = send(session, "2")
    assert restore(session, stored(session, turn)) == [again[0]]
    assert (again[0].seq, again[0].settled) == (2, True)
    assert list(session.pending) == [fresh[1]]
