"""The two tables of a session's life: every step in every phase, and every move in every stage."""

from __future__ import annotations

from itertools import product
from typing import Final

import pytest

from machinehub.model import Entry, Kind
from machinehub.session.decide.lifecycle import MOVES, TRANSITIONS, Move, Phase, Stage, Step
from machinehub.session.decide.session import Session
from machinehub.session.run.placement import Place
from sandbox.protocol.ids import Slot
from tests.session.decide.sessions import offer, stored, unloaded_session

pytestmark = pytest.mark.core


def found(session: Session, *, behind: bool) -> None:
    tail = [Entry(session.seq, 0, Kind.EVENT, b"x", 0, changed=behind)]
    loaded = stored(session)
    loaded.tail.extend(tail)
    session.restore(loaded)


def started(session: Session) -> None:
    session.committed(session.done(offer(session, Kind.START).ticket, b'[1,0,{"value":"a"}]'))


STEPS: Final = {
    Step.LOAD: Session.loading,
    Step.FAIL: Session.not_loaded,
    Step.ABSENT: Session.start_anew,
    Step.FOUND: lambda session: found(session, behind=False),
    Step.FOUND_BEHIND: lambda session: found(session, behind=True),
    Step.STARTED: started,
    Step.REPLAYED: lambda session: session.replayed(b'{"value":"b"}'),
    Step.UNLOAD: Session.unload,
    Step.DOUBT: lambda session: session.rewind([]),
    Step.FORGET: Session.forget,
}
"""What the hub does with a session, for each step."""


def way_to(phase: Phase) -> list[Step]:
    """The shortest, from a new session."""
    ways: dict[Phase, list[Step]] = {Phase.NEW: []}
    while phase not in ways:
        known = len(ways)
        for there, way in list(ways.items()):
            for step, following in TRANSITIONS[there].items():
                ways.setdefault(following, [*way, step])
        assert len(ways) > known, f"nothing leads to {phase}"
    return ways[phase]


def session_that_is(phase: Phase) -> Session:
    session = unloaded_session()
    for step in way_to(phase):
        STEPS[step](session)
    assert session.phase is phase
    return session


@pytest.mark.parametrize(("phase", "step"), list(product(Phase, Step)), ids=str)
def test_every_step_in_every_phase_does_what_the_table_says(phase: Phase, step: Step) -> None:
    session = session_that_is(phase)
    following = TRANSITIONS[phase].get(step)
    if following is None:
        with pytest.raises(AssertionError):
            session._move(step)
        assert session.phase is phase
    else:
        STEPS[step](session)
        assert session.phase is following


def test_what_is_gone_stays_so_and_everything_else_can_go() -> None:
    assert TRANSITIONS[Phase.GONE] == {}
    assert all(Step.FORGET in TRANSITIONS[phase] for phase in Phase if phase is not Phase.GONE)


def test_a_phase_says_whether_memory_has_what_the_database_has() -> None:
    for phase in Phase:
        session = session_that_is(phase)
        if not phase.loaded:
            assert session.checkpoint is None
            assert (session.tail, session.timers) == ([], {})
        if phase.readable:
            assert session.snapshot.startswith(b"{")


@pytest.mark.parametrize(("stage", "move"), list(product(Stage, Move)), ids=str)
def test_every_move_in_every_stage_does_what_the_table_says(stage: Stage, move: Move) -> None:
    place = Place(unloaded_session(), Slot(1), stage)
    following = MOVES[stage].get(move)
    if following is None:
        with pytest.raises(AssertionError):
            place.move(move)
        assert place.stage is stage
    else:
        place.move(move)
        assert place.stage is following
