"""One session, without I/O: order, timers, receipts, what a database does to it, fairness.

No event loop, no process.
"""

from __future__ import annotations

import pytest

from machinehub.ids import Seq
from machinehub.model import Armed, Fault, Kind, SavedCheckpoint
from machinehub.session.decide.lifecycle import Phase
from machinehub.session.decide.session import CRASHES_BEFORE_QUARANTINE
from tests.session.decide.sessions import (
    ONE,
    SEVEN,
    THREE,
    TWO,
    absent_session,
    do,
    fire,
    is_new,
    new_session,
    offer,
    restore,
    send,
    stored,
    waiting,
)

pytestmark = pytest.mark.core


# --- sessions


def test_inputs_are_numbered_in_order() -> None:
    session = new_session()
    for number in range(2, 6):
        turn = do(session, b'[1,0,{"n":%d}]' % number)
        assert turn.seq == session.seq == number
        assert turn.snapshot == b'{"n":%d}' % number
    assert session.snapshot == b'{"n":5}'


def test_an_event_that_changes_nothing_keeps_the_snapshot() -> None:
    session = new_session()
    turn = do(session, b"[1,0,null]")
    assert (turn.seq, turn.snapshot, session.snapshot) == (2, None, b'{"value":"a"}')


def test_nothing_can_be_read_before_it_is_committed() -> None:
    session = new_session()
    receipt, pending = send(session, "e")
    turn = session.done(pending.ticket, b'[1,1,{"n":1},[],[[4,9]]]')
    assert (session.seq, session.snapshot, session.finished, receipt.settled, session.waiting) == (
        1,
        b'{"value":"a"}',
        False,
        False,
        1,
    )
    session.committed(turn)
    assert (session.seq, session.snapshot, session.finished, receipt.settled, session.waiting) == (
        2,
        b'{"n":1}',
        True,
        True,
        0,
    )


def test_a_refused_input_leaves_no_trace_but_its_entry() -> None:
    session = new_session()
    tail = list(session.tail)
    for attempt in (1, 2):
        turn = session.failed(
            offer(session, Kind.EVENT, b"x", 0).ticket, "cpu_exceeded", "too long", None
        )
        session.committed(turn)
        assert turn.error == Fault("cpu_exceeded", "too long")
        assert turn.write is not None
        assert (turn.write.entry.seq, turn.write.entry.attempt, turn.write.entry.error) == (
            1,
            attempt,
            turn.error,
        )
    assert (session.seq, session.snapshot, session.tail) == (1, b'{"value":"a"}', tail)
    turn = do(session, b"[1,0,null]")
    assert turn.write is not None
    assert (turn.write.entry.seq, turn.write.entry.attempt) == (2, 0)


def test_a_session_that_cannot_start_leaves_nothing_at_all() -> None:
    session = absent_session()
    turn = session.failed(
        offer(session, Kind.START, b"[0,1]", 0).ticket, "machine_error", "boom", "m.ts:1:2"
    )
    assert turn.write is None
    assert turn.error == Fault("machine_error", "boom (m.ts:1:2)")


def test_timers_are_kept_until_they_fire_or_are_cancelled() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[1,50],[2,60],[3,70]],[2]]")
    assert waiting(session) == {1: 50, 3: 70}
    assert session.timer_due(ONE, 50)
    assert not session.timer_due(ONE, 50)
    assert not session.timer_due(TWO, 60)
    assert not session.timer_due(THREE, 71)
    turn = do(session, b"[1,0,null]", kind=Kind.TIMER, timer=ONE)
    assert turn.changes.timers == {1: None}


def test_an_interval_is_set_again_as_it_fires() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[1,50]]]")
    assert session.timer_due(ONE, 50)
    turn = do(session, b"[1,0,null,[],[[1,100]]]", kind=Kind.TIMER, timer=ONE)
    assert turn.write is not None
    assert turn.changes.timers == {ONE: Armed(100)}
    assert waiting(session) == {ONE: 100}


def test_a_finished_session_forgets_its_timers() -> None:
    session = new_session()
    turn = do(session, b'[1,1,{"status":"done"},[],[[1,50]]]')
    assert turn.write is not None
    assert turn.changes.finished
    assert (session.finished, session.timers, turn.changes.armed) == (True, {}, [])


def test_checkpoints_cut_the_tail() -> None:
    session = new_session()
    do(session, b'[1,0,{"n":1},[],[[1,50]]]')
    assert len(session.tail) == 2
    saved = session.frozen(b"by itself", 9)
    assert saved == SavedCheckpoint(
        seq=Seq(2),
        data=b"by itself",
        snapshot=b'{"n":1}',
        finished=False,
        timers={ONE: 50},
        at_ms=9,
    )
    assert (session.checkpoint, session.tail) == (b"by itself", [])
    assert session.frozen(b"again", 9) is None  # nothing happened since


def test_a_timer_whose_turn_was_undone_is_tried_again_but_not_for_ever() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[7,50]]]")
    waits = []
    now_ms = 50
    while session.timers:
        fired = fire(session, SEVEN, now_ms)
        turn = session.failed(fired.ticket, "machine_error", "boom", None)
        waits += [due_at_ms - now_ms for _, due_at_ms in turn.changes.armed]
        assert turn.write is not None
        assert turn.write.changes == turn.changes
        assert turn.changes.timers == {SEVEN: session.timers.get(SEVEN)}
        now_ms = waiting(session).get(7, now_ms)
    assert waits == [1000, 2000, 4000, 8000, 16000]


def test_how_often_a_timer_was_tried_survives_a_reload() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[7,50]]]")
    for tries in range(1, 6):
        turn = session.failed(fire(session, SEVEN).ticket, "machine_error", "boom", None)
        session.committed(turn)
        armed = turn.changes.timers[SEVEN]
        assert armed is not None
        assert armed.tries == tries
        session.unload()
        restore(session, stored(session, seq=2, timers={SEVEN: armed}))
    turn = session.failed(fire(session, SEVEN).ticket, "machine_error", "boom", None)
    assert turn.changes.timers == {SEVEN: None}


def test_events_behind_the_one_that_ends_the_session_are_told_so() -> None:
    session = new_session()
    first, second = offer(session, Kind.EVENT, b"x", 0), offer(session, Kind.EVENT, b"y", 0)
    session.done(first.ticket, b'[1,1,{"status":"done"}]')
    offer(session, Kind.TIMER, b"t", 0, timer=THREE)
    (late,) = session.refuse_late()
    assert (late.pending, late.error) == (
        second,
        Fault("session_finished", "the session has ended and takes no more events"),
    )
    assert late.write is not None
    assert (late.write.entry.seq, late.write.entry.attempt, len(session.pending)) == (2, 1, 0)


def test_an_input_that_kills_workers_is_refused_at_last() -> None:
    session = new_session()
    _, poison = send(session, "poison")
    innocent = offer(session, Kind.EVENT, b"y", 0)
    for _ in range(CRASHES_BEFORE_QUARANTINE - 1):
        assert session.crashed() is None
    turn = session.crashed()
    assert turn is not None
    assert turn.error is not None
    assert (turn.error.code, turn.pending) == ("worker_crashed", poison)
    assert list(session.pending) == [innocent]


# --- when the database says otherwise


def test_what_was_not_committed_waits_again_after_a_rewind() -> None:
    session = new_session()
    first, second, third = send(session, "1"), send(session, "2"), send(session, "3")
    decided = session.done(first[1].ticket, b'[1,0,{"n":1},[],[[1,50]]]')
    session.done(second[1].ticket, b'[1,1,{"n":2}]')
    session.rewind([])
    assert [pending.event_id for pending in session.pending] == ["1", "2", "3"]
    assert session.phase is Phase.IN_DOUBT
    assert restore(session, stored(session, decided, timers={ONE: Armed(50)})) == [
        first[0]
    ]  # the first had been committed after all
    # What can be read is of one moment: the new seq comes with its snapshot, which the replay
    # brings.
    assert (
        session.seq,
        session.snapshot,
        session.finished,
        waiting(session),
        session.phase,
    ) == (1, b'{"value":"a"}', False, {1: 50}, Phase.REPLAYING)
    assert [pending.event_id for pending in session.pending] == ["2", "3"]
    assert (first[0].settled, first[0].seq, second[0].settled) == (True, 2, False)
    session.replayed(b'{"n":1}')
    assert (session.seq, session.snapshot) == (2, b'{"n":1}')
    turn = session.done(second[1].ticket, b'[1,0,{"n":2}]')
    assert turn.seq == 3
    assert session.pending[0] is third[1]


def test_timers_and_starts_that_waited_are_the_databases_after_a_rewind() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[1,50]]]")
    assert session.timer_due(ONE, 50)
    offer(session, Kind.TIMER, b"t", 50, timer=ONE)
    session.rewind([])
    restore(session, stored(session, timers={ONE: Armed(50)}))
    assert (list(session.pending), waiting(session)) == ([], {1: 50})
    new = absent_session()
    offer(new, Kind.START, b"[0,1]", 0)
    new.rewind([])
    restore(new, stored(new))
    assert not new.pending


def test_what_cannot_be_thawed_now_is_refused_and_its_timers_come_again() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[7,50]]]")
    decided = session.done(offer(session, Kind.EVENT, b"d", 0).ticket, b'[1,0,{"n":2}]')
    send(session, "e")
    assert session.timer_due(SEVEN, 50)
    offer(session, Kind.TIMER, b"t", 60, timer=SEVEN)
    event, timer = session.refuse_pending(Fault("unavailable", "no worker"))
    assert (event.error, event.write) == (Fault("unavailable", "no worker"), None)
    assert timer.changes.armed == [(7, 1060)]
    assert waiting(session) == {7: 1060}
    assert is_new(session, "e")
    session.committed(decided)  # it was on its way into the journal, and is not undone
    assert (session.seq, session.phase) == (3, Phase.LIVE)


def test_a_checkpoint_has_the_timers_that_are_about_to_fire() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[7,50],[8,60]]]")
    assert session.timer_due(SEVEN, 50)
    fired = offer(session, Kind.TIMER, b"t", 60, timer=SEVEN)
    saved = session.frozen(b"in between", 9)
    assert saved is not None
    assert saved.timers == {7: 50, 8: 60}
    session.committed(session.done(fired.ticket, b"[1,0,null]"))
    saved = session.frozen(b"after", 9)
    assert saved is not None
    assert saved.timers == {8: 60}
