"""One session, without I/O: order, timers, receipts, what a database does to it, fairness.

No event loop, no process.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machinehub.limits import Limits
from machinehub.model import SavedCheckpoint, SessionRecord, StoredSession
from machinehub.session.answers import BrokenWorker
from machinehub.session.core import CRASHES_BEFORE_QUARANTINE, Kind, Pending, Receipt, Session, Turn
from machinehub.session.timers import TimerQueue
from machinehub.session.window import SendWindow
from machinehub.store.sessions import superfluous
from sandbox.protocol import Open, encode, to_worker_reader

pytestmark = pytest.mark.core


RECORD = SessionRecord(
    key=7,
    machine_id="m",
    session_id="s",
    version=1,
    digest="d",
    hears_presence=False,
    created_at_ms=0,
)


def unloaded_session() -> Session:
    return Session(RECORD, number=1, limits=Limits(ids_remembered=8))


def new_session() -> Session:
    session = unloaded_session()
    session.start_anew()
    start = session.offer(Kind.START, b"[0,1]", 0)
    session.committed(session.done(start.ticket, b'[1,0,{"value":"a"}]'))
    return session


def do(session: Session, outbox: bytes, **offered: Any) -> Turn:
    """An event, decided and committed."""
    turn = session.done(
        session.offer(offered.pop("kind", Kind.EVENT), b"x", 0, **offered).ticket, outbox
    )
    session.committed(turn)
    return turn


def send(session: Session, event_id: str) -> tuple[Receipt, Pending]:
    receipt, is_new = session.receipt_of(event_id)
    assert is_new
    return receipt, session.offer(Kind.EVENT, b"x", 0, receipt, event_id=event_id)


def stored(session: Session, *turns: Turn, **more: Any) -> StoredSession:
    """What the database has after these turns."""
    entries = [turn.settled.entry for turn in turns if turn.settled is not None]
    applied = [entry for entry in entries if entry.attempt == 0]
    values = {
        "record": session.record,
        "seq": 1 + len(applied),
        "attempts": 0,
        "checkpoint": SavedCheckpoint(
            seq=1, data=b"cp", snapshot=b'{"value":"a"}', finished=False, timers={}, at_ms=0
        ),
        "tail": applied,
        "timers": {},
        "tries": {},
        "receipts": [entry for entry in entries if entry.event_id is not None],
    }
    return StoredSession(**values | more)


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
            session.offer(Kind.EVENT, b"x", 0).ticket, "cpu_exceeded", "too long", None
        )
        session.committed(turn)
        assert turn.error == ("cpu_exceeded", "too long")
        assert turn.settled is not None
        assert (turn.settled.entry.seq, turn.settled.entry.attempt, turn.settled.entry.error) == (
            1,
            attempt,
            turn.error,
        )
    assert (session.seq, session.snapshot, session.tail) == (1, b'{"value":"a"}', tail)
    turn = do(session, b"[1,0,null]")
    assert turn.settled is not None
    assert (turn.settled.entry.seq, turn.settled.entry.attempt) == (2, 0)


def test_a_session_that_cannot_start_leaves_nothing_at_all() -> None:
    session = unloaded_session()
    session.start_anew()
    turn = session.failed(
        session.offer(Kind.START, b"[0,1]", 0).ticket, "machine_error", "boom", "m.ts:1:2"
    )
    assert turn.settled is None
    assert turn.error == ("machine_error", "boom (m.ts:1:2)")


def test_a_second_copy_of_an_event_finds_the_first_ones_receipt() -> None:
    session = new_session()
    receipt, pending = send(session, "e1")
    again, again_new = session.receipt_of("e1")
    assert receipt is again
    assert not again_new
    session.committed(session.done(pending.ticket, b'[1,0,{"n":1}]'))
    assert (again.settled, again.seq, again.changed) == (True, 2, True)


def test_only_so_many_ids_are_remembered() -> None:
    session = new_session()
    for number in range(20):
        session.receipt_of(f"e{number}")
    assert session.receipt_of("e19")[1] is False
    assert session.receipt_of("e0")[1] is True


@pytest.mark.parametrize(
    "outbox",
    [
        b"",
        b"{}",
        b"[1]",
        b'["x",0,null]',
        b'[1,0,{"a":]',
        b"[1,0,null,[],[[1]]]",
        b"[" * 5000,
        b"[1,0,null,[],[[1,1e300]]]",
        b"[1,0,null,[],[[9007199254740993,1]]]",
        b"[1,0,null,[],[[-1,1]]]",
        b'[1,0,{"a":"\xff"}]',
        b'[1,0,{"a":"' + b"x" * 262_144 + b'"}]',
        b"[1,0,null,[" + b",".join([b"1"] * 1_100_000) + b"]]",
        b"[1,0,7]",
    ],
)
def test_a_worker_that_lies_about_the_form_is_found_out(outbox: bytes) -> None:
    session = new_session()
    pending = session.offer(Kind.EVENT, b"x", 0)
    with pytest.raises(BrokenWorker):
        session.done(pending.ticket, outbox)
    assert list(session.pending) == [pending]  # it is tried elsewhere


def test_a_worker_that_begins_with_nothing_or_freezes_too_much_is_found_out() -> None:
    session = unloaded_session()
    session.start_anew()
    with pytest.raises(BrokenWorker):
        session.done(session.offer(Kind.START, b"[0,1]", 0).ticket, b"[1,0,null]")
    session = new_session()
    with pytest.raises(BrokenWorker):
        session.frozen(bytes(17 * 2**20), 0)
    assert session.frozen(b"checkpoint", 0) is not None


def test_a_worker_that_answers_out_of_turn_is_found_out() -> None:
    session = new_session()
    first, second = session.offer(Kind.EVENT, b"x", 0), session.offer(Kind.EVENT, b"y", 0)
    with pytest.raises(BrokenWorker):
        session.done(second.ticket, b"[1,0,null]")
    with pytest.raises(BrokenWorker):
        session.asleep(first.ticket)
    session.done(first.ticket, b"[1,0,null]")


def test_timers_are_kept_until_they_fire_or_are_cancelled() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[1,50],[2,60],[3,70]],[2]]")
    assert session.timers == {1: 50, 3: 70}
    assert session.timer_due(1, 50)
    assert not session.timer_due(1, 50)
    assert not session.timer_due(2, 60)
    assert not session.timer_due(3, 71)
    turn = do(session, b"[1,0,null]", kind=Kind.TIMER, timer=1)
    assert turn.settled is not None
    assert turn.settled.timers_gone == [1]


def test_an_interval_is_set_again_as_it_fires() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[1,50]]]")
    assert session.timer_due(1, 50)
    turn = do(session, b"[1,0,null,[],[[1,100]]]", kind=Kind.TIMER, timer=1)
    assert turn.settled is not None
    assert (turn.settled.timers_set, turn.settled.timers_gone, session.timers) == (
        [(1, 100)],
        [],
        {1: 100},
    )


def test_a_finished_session_forgets_its_timers() -> None:
    session = new_session()
    turn = do(session, b'[1,1,{"status":"done"},[],[[1,50]]]')
    assert turn.settled is not None
    assert turn.settled.finished
    assert (session.finished, session.timers, turn.timers_set) == (True, {}, [])


def test_checkpoints_cut_the_tail() -> None:
    session = new_session()
    do(session, b'[1,0,{"n":1},[],[[1,50]]]')
    assert len(session.tail) == 2
    saved = session.frozen(b"by itself", 9)
    assert saved == SavedCheckpoint(
        seq=2, data=b"by itself", snapshot=b'{"n":1}', finished=False, timers={1: 50}, at_ms=9
    )
    assert (session.checkpoint, session.tail) == (b"by itself", [])
    assert session.frozen(b"again", 9) is None  # nothing happened since
    do(session, b"[1,0,null]")
    asked = session.offer(Kind.CHECKPOINT, b"", 0)
    assert session.waiting == 0
    session.asleep(asked.ticket)
    assert not session.pending


def test_a_timer_whose_turn_was_undone_is_tried_again_but_not_for_ever() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[7,50]]]")
    waits = []
    now_ms = 50
    while session.timers:
        assert session.timer_due(7, session.timers[7])
        turn = session.failed(
            session.offer(Kind.TIMER, b"t", now_ms, timer=7).ticket, "machine_error", "boom", None
        )
        waits += [due_at_ms - now_ms for _, due_at_ms in turn.timers_set]
        assert turn.settled is not None
        assert (turn.settled.timers_set, turn.settled.timers_gone) == (
            turn.timers_set,
            [] if session.timers else [7],
        )
        now_ms = session.timers.get(7, now_ms)
    assert waits == [1000, 2000, 4000, 8000, 16000]


def test_how_often_a_timer_was_tried_survives_a_reload() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[7,50]]]")
    for tries in range(1, 6):
        assert session.timer_due(7, session.timers[7])
        turn = session.failed(
            session.offer(Kind.TIMER, b"t", 50, timer=7).ticket, "machine_error", "boom", None
        )
        session.committed(turn)
        assert turn.settled is not None
        assert turn.settled.tries == tries
        session.unload()
        session.restore(stored(session, seq=2, timers=dict(turn.timers_set), tries={7: tries}))
    assert session.timer_due(7, session.timers[7])
    assert (
        session.failed(
            session.offer(Kind.TIMER, b"t", 50, timer=7).ticket, "machine_error", "boom", None
        ).timers_set
        == []
    )


def test_events_behind_the_one_that_ends_the_session_are_told_so() -> None:
    session = new_session()
    first, second = session.offer(Kind.EVENT, b"x", 0), session.offer(Kind.EVENT, b"y", 0)
    session.done(first.ticket, b'[1,1,{"status":"done"}]')
    session.offer(Kind.TIMER, b"t", 0, timer=3)
    (late,) = session.refuse_late()
    assert (late.pending, late.error) == (
        second,
        ("session_finished", "the session has ended and takes no more events"),
    )
    assert late.settled is not None
    assert (late.settled.entry.seq, late.settled.entry.attempt, len(session.pending)) == (2, 1, 0)


def test_an_input_that_kills_workers_is_refused_at_last() -> None:
    session = new_session()
    _, poison = send(session, "poison")
    innocent = session.offer(Kind.EVENT, b"y", 0)
    for _ in range(CRASHES_BEFORE_QUARANTINE - 1):
        assert session.crashed() is None
    turn = session.crashed()
    assert turn is not None
    assert turn.error is not None
    assert (turn.error[0], turn.pending) == ("worker_crashed", poison)
    assert list(session.pending) == [innocent]


# --- when the database says otherwise


def test_what_was_not_committed_waits_again_after_a_rewind() -> None:
    session = new_session()
    first, second, third = send(session, "1"), send(session, "2"), send(session, "3")
    decided = session.done(first[1].ticket, b'[1,0,{"n":1},[],[[1,50]]]')
    session.done(second[1].ticket, b'[1,1,{"n":2}]')
    session.rewind([])
    assert [pending.event_id for pending in session.pending] == ["1", "2", "3"]
    assert session.in_doubt
    assert session.restore(stored(session, decided, timers={1: 50})) == [
        first[0]
    ]  # the first had been committed after all
    # What can be read is of one moment: the new seq comes with its snapshot, which the replay
    # brings.
    assert (
        session.seq,
        session.snapshot,
        session.finished,
        session.timers,
        session.snapshot_is_old,
    ) == (1, b'{"value":"a"}', False, {1: 50}, True)
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
    assert session.timer_due(1, 50)
    session.offer(Kind.TIMER, b"t", 50, timer=1)
    session.rewind([])
    session.restore(stored(session, timers={1: 50}))
    assert (list(session.pending), session.timers) == ([], {1: 50})
    new = unloaded_session()
    new.start_anew()
    new.offer(Kind.START, b"[0,1]", 0)
    new.rewind([])
    new.restore(stored(new))
    assert not new.pending


def test_what_is_refused_can_be_tried_again_under_its_id() -> None:
    session = new_session()
    receipt, pending = send(session, "1")
    session.done(pending.ticket, b"[1,0,null]")
    send(session, "2")
    turns = session.refuse_all("unavailable", "the database is away")
    assert [turn.error for turn in turns] == [("unavailable", "the database is away")] * 2
    assert [session.receipt_of(event_id)[1] for event_id in "12"] == [True, True]
    for turn in turns:
        session.committed(turn)
    assert receipt.error == ("unavailable", "the database is away")
    assert not session.loaded
    assert session.in_doubt


def test_a_reload_answers_events_that_came_meanwhile() -> None:
    session = new_session()
    first = send(session, "1")
    turn = session.done(first[1].ticket, b"[1,0,null]")
    session.committed(turn)
    session.unload()
    again = send(session, "1")
    fresh = send(session, "2")
    assert session.restore(stored(session, turn)) == [again[0]]
    assert (again[0].seq, again[0].settled) == (2, True)
    assert list(session.pending) == [fresh[1]]


def test_a_worker_cannot_make_up_a_snapshot_that_is_not_json() -> None:
    session = new_session()
    turn = session.done(session.offer(Kind.EVENT, b"x", 0).ticket, b'[1,0,{"n":1}]')
    session.rewind([])
    session.restore(stored(session, turn))
    for snapshot in (b'{"n":', b'{"n":"' + b"x" * 2_200_000 + b'"}', b'{"n":"\xff"}', b"7"):
        with pytest.raises(BrokenWorker):
            session.replayed(snapshot)


def test_what_cannot_be_thawed_now_is_refused_and_its_timers_come_again() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[7,50]]]")
    decided = session.done(session.offer(Kind.EVENT, b"d", 0).ticket, b'[1,0,{"n":2}]')
    send(session, "e")
    assert session.timer_due(7, 50)
    session.offer(Kind.TIMER, b"t", 60, timer=7)
    event, timer = session.refuse_pending("unavailable", "no worker")
    assert (event.error, event.settled) == (("unavailable", "no worker"), None)
    assert timer.timers_set == [(7, 1060)]
    assert session.timers == {7: 1060}
    assert session.receipt_of("e")[1]
    session.committed(decided)  # it was on its way into the journal, and is not undone
    assert (session.seq, session.loaded) == (3, True)


def test_a_checkpoint_has_the_timers_that_are_about_to_fire() -> None:
    session = new_session()
    do(session, b"[1,0,null,[],[[7,50],[8,60]]]")
    assert session.timer_due(7, 50)
    fired = session.offer(Kind.TIMER, b"t", 60, timer=7)
    saved = session.frozen(b"in between", 9)
    assert saved is not None
    assert saved.timers == {7: 50, 8: 60}
    session.committed(session.done(fired.ticket, b"[1,0,null]"))
    saved = session.frozen(b"after", 9)
    assert saved is not None
    assert saved.timers == {8: 60}


@pytest.mark.parametrize("outbox", [b"[1,0,5]", b'[1,0,"x"]', b"[1,0,[1]]"])
def test_a_snapshot_is_an_object(outbox: bytes) -> None:
    session = new_session()
    with pytest.raises(BrokenWorker):
        session.done(session.offer(Kind.EVENT, b"x", 0).ticket, outbox)


def test_large_batches_go_out_in_several_frames() -> None:
    messages = [Open(number, 0, "d", 1, 1, 1, bytes(6 * 1024 * 1024)) for number in range(12)]
    wire = encode(messages)
    reader = to_worker_reader()
    assert [message for batch in reader.feed(wire) for message in batch] == messages


@given(
    st.lists(st.integers(1, 4000), max_size=40, unique=True),
    st.integers(1, 5),
    st.integers(0, 1500),
)
def test_which_checkpoints_are_kept(seqs: list[int], newest: int, every: int) -> None:
    seqs = sorted(seqs)
    kept = [seq for seq in seqs if seq not in superfluous(seqs, newest=newest, every=every)]
    assert kept[-newest:] == seqs[-newest:]
    if every:
        assert len({seq // every for seq in seqs} - {0}) <= len({seq // every for seq in kept})
    assert superfluous(kept, newest=newest, every=every) == []


# --- timers


@given(st.lists(st.integers(0, 50), max_size=40), st.integers(0, 60))
def test_timers_fire_by_due_time_then_by_age(due_times: list[int], now_ms: int) -> None:
    queue: TimerQueue[str] = TimerQueue()
    for number, due_at_ms in enumerate(due_times):
        queue.add("s", number, due_at_ms)
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
        queue.add("s", 1, 10)
    assert len(queue) == 1
    assert queue.pop_due(10) == [("s", 1, 10)]
    queue.add("s", 1, 10)
    assert queue.pop_due(10) == [("s", 1, 10)]


def test_cancelled_timers_can_be_forgotten() -> None:
    queue: TimerQueue[str] = TimerQueue()
    for number in range(10):
        queue.add("s", number, 100 - number)
    queue.prune(lambda _owner, timer, due_at_ms: timer % 2 == 0 and due_at_ms == 100 - timer)
    assert [timer for _, timer, _ in queue.pop_due(200)] == [8, 6, 4, 2, 0]


# --- fairness


def test_a_session_sends_a_few_inputs_ahead_and_a_heavy_one_waits() -> None:
    window = SendWindow()
    assert [window.next(5), window.next(5)] == [0, None], "before anything is known, one at a time"
    window.usual.took(60)
    assert window.settled(overran=False) == 0
    assert [window.next(5), window.next(5), window.next(5)] == [0, 1, None]
    assert [window.settled(overran=True), window.next(5)] == [0.1, None]
    window.resume()
    assert window.next(5) is None  # the second is still on its way
    assert window.settled(overran=True) == 0.2
    assert [window.settled(overran=True) for _ in range(6)] == [0.4, 0.8, 1.6, 1.6, 1.6, 1.6]
    window.resume()
    window.restart()
    for _ in range(20):
        assert window.next(5) == 0
        assert window.settled(overran=False) == 0
    assert [window.next(20) for _ in range(10)] == [0, 1, 2, 3, 4, 5, 6, 7, None, None]
    assert window.next(3) is None
