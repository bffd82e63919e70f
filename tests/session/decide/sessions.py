"""Sessions for the tests of what decides, and how they are driven without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.ids import Digest, EventId, MachineId, Seq, SessionId, SessionKey
from machinehub.limits import Limits
from machinehub.model import Armed, Kind, SavedCheckpoint, SessionRecord, StoredSession
from machinehub.session.decide.session import Session
from machinehub.session.decide.turn import Pending
from sandbox.protocol.ids import TimerId

if TYPE_CHECKING:
    from machinehub.session.decide.turn import Receipt, Turn

RECORD = SessionRecord(
    key=SessionKey(7),
    machine_id=MachineId("m"),
    session_id=SessionId("s"),
    version=1,
    digest=Digest("d"),
    hears_presence=False,
    created_at_ms=0,
)
ONE, TWO, THREE, SEVEN, EIGHT = (TimerId(number) for number in (1, 2, 3, 7, 8))


def unloaded_session() -> Session:
    return Session(RECORD, limits=Limits(ids_remembered=8))


def absent_session() -> Session:
    """One that the database does not have."""
    session = unloaded_session()
    session.loading()
    session.start_anew()
    return session


def new_session() -> Session:
    session = absent_session()
    start = offer(session, Kind.START, b"[0,1]")
    session.committed(session.done(start.ticket, b'[1,0,{"value":"a"}]'))
    return session


def offer(
    session: Session,
    kind: Kind = Kind.EVENT,
    data: bytes = b"x",
    now_ms: int = 0,
    receipt: Receipt | None = None,
    *,
    event_id: EventId | None = None,
    timer: TimerId | None = None,
) -> Pending:
    session.offer(Pending(kind, data, now_ms, receipt, event_id=event_id, timer=timer))
    return session.pending[-1]


def do(
    session: Session, outbox: bytes, kind: Kind = Kind.EVENT, timer: TimerId | None = None
) -> Turn:
    """An event, decided and committed."""
    turn = session.done(offer(session, kind, timer=timer).ticket, outbox)
    session.committed(turn)
    return turn


def send(session: Session, name: str) -> tuple[Receipt, Pending]:
    event_id = EventId(name)
    receipt, is_new = session.receipts.of(event_id)
    assert is_new
    return receipt, offer(session, Kind.EVENT, b"x", 0, receipt, event_id=event_id)


def is_new(session: Session, name: str) -> bool:
    return session.receipts.of(EventId(name))[1]


def waiting(session: Session) -> dict[int, int]:
    """Its timers, and when they are due."""
    return {timer: armed.due_at_ms for timer, armed in session.timers.items()}


def fire(session: Session, timer: TimerId, now_ms: int = 50) -> Pending:
    """The timer comes due."""
    assert session.timer_due(timer, session.timers[timer].due_at_ms)
    return offer(session, Kind.TIMER, b"t", now_ms, timer=timer)


def stored(
    session: Session,
    *turns: Turn,
    seq: int | None = None,
    timers: dict[TimerId, Armed] | None = None,
) -> StoredSession:
    """What the database has after these turns."""
    entries = [turn.write.entry for turn in turns if turn.write is not None]
    applied = [entry for entry in entries if entry.attempt == 0]
    return StoredSession(
        record=session.record,
        seq=Seq(seq or 1 + len(applied)),
        attempts=0,
        checkpoint=SavedCheckpoint(
            seq=Seq(1), data=b"cp", snapshot=b'{"value":"a"}', finished=False, timers={}, at_ms=0
        ),
        tail=applied,
        timers=timers or {},
        receipts=[entry for entry in entries if entry.event_id is not None],
    )


def restore(session: Session, found: StoredSession) -> list[Receipt]:
    session.loading()
    return session.restore(found)
