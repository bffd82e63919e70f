"""What workers answer is believed only as far as it can be: form, order, size."""

from __future__ import annotations

import pytest

from machinehub.model import Kind
from machinehub.session.decide.answers import BrokenWorker
from tests.session.decide.sessions import (
    absent_session,
    new_session,
    offer,
    restore,
    stored,
)

pytestmark = pytest.mark.core


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
    pending = offer(session, Kind.EVENT, b"x", 0)
    with pytest.raises(BrokenWorker):
        session.done(pending.ticket, outbox)
    assert list(session.pending) == [pending]  # it is tried elsewhere


def test_a_worker_that_begins_with_nothing_or_freezes_too_much_is_found_out() -> None:
    session = absent_session()
    with pytest.raises(BrokenWorker):
        session.done(offer(session, Kind.START, b"[0,1]", 0).ticket, b"[1,0,null]")
    session = new_session()
    with pytest.raises(BrokenWorker):
        session.frozen(bytes(17 * 2**20), 0)
    assert session.frozen(b"checkpoint", 0) is not None


def test_a_worker_that_answers_out_of_turn_is_found_out() -> None:
    session = new_session()
    first, second = offer(session, Kind.EVENT, b"x", 0), offer(session, Kind.EVENT, b"y", 0)
    with pytest.raises(BrokenWorker):
        session.done(second.ticket, b"[1,0,null]")
    with pytest.raises(BrokenWorker):
        session.failed(second.ticket, "machine_error", "", None)
    session.done(first.ticket, b"[1,0,null]")


def test_a_worker_cannot_make_up_a_snapshot_that_is_not_json() -> None:
    session = new_session()
    turn = session.done(offer(session, Kind.EVENT, b"x", 0).ticket, b'[1,0,{"n":1}]')
    session.rewind([])
    restore(session, stored(session, turn))
    for snapshot in (b'{"n":', b'{"n":"' + b"x" * 2_200_000 + b'"}', b'{"n":"\xff"}', b"7"):
        with pytest.raises(BrokenWorker):
            session.replayed(snapshot)


@pytest.mark.parametrize("outbox", [b"[1,0,5]", b'[1,0,"x"]', b"[1,0,[1]]"])
def test_a_snapshot_is_an_object(outbox: bytes) -> None:
    session = new_session()
    with pytest.raises(BrokenWorker):
        session.done(offer(session, Kind.EVENT, b"x", 0).ticket, outbox)


def test_a_version_may_have_more_timers_than_the_hub_allows_today() -> None:
    """It was deployed when the hub allowed more, and its guest keeps to that."""
    session = new_session()
    timers = b",".join(b"[%d,1700000000000]" % number for number in range(5_000))
    turn = session.done(
        offer(session, Kind.EVENT, b"x", 0).ticket, b'[1,0,{"a":1},[],[%b]]' % timers
    )
    assert len(turn.changes.armed) == 5_000
    many = b",".join(b"[%d,1700000000000]" % number for number in range(5_000, 105_000))
    with pytest.raises(BrokenWorker):
        session.done(offer(session, Kind.EVENT, b"y", 0).ticket, b"[1,0,null,[],[%b]]" % many)
