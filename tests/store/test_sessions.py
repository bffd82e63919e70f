"""The contract of the session store: on SQLite, on Postgres, and of the twin that simulations run
on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio

from machinehub.errors import NotFound
from machinehub.ids import Digest, EventId, MachineId, MemberId, Seq, SessionId, SessionKey
from machinehub.model import (
    Armed,
    Changes,
    CheckpointWrite,
    Entry,
    Fault,
    Kind,
    MemberChange,
    Retention,
    SavedCheckpoint,
    SessionDelete,
    SessionRecord,
    StoredSession,
    Successor,
    TurnWrite,
)
from machinehub.settings import normalise_database_url
from machinehub.store.database import AlreadyWritten, Database
from machinehub.store.engine import open_engine
from machinehub.store.schema import migrate
from machinehub.store.sessions import SessionStore
from sandbox.protocol.ids import TimerId
from tests.databases import new_database
from tests.fakes import MemorySessionStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("store")


@pytest_asyncio.fixture(loop_scope="session", params=["sqlite", "postgres", "memory"])
async def make(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Makes a store with a retention; several of one test share the database."""
    if request.param == "memory":
        store = MemorySessionStore()

        def twin(**keep: int) -> Any:
            store.retention = Retention(**keep)
            return store

        yield twin
        return
    url = (
        f"sqlite:///{tmp_path / 'hub.db'}"
        if request.param == "sqlite"
        else await new_database(request.getfixturevalue("postgres"))
    )
    engine = open_engine(normalise_database_url(url))
    await migrate(engine)
    database = Database(engine)
    yield lambda **keep: SessionStore(database, Retention(**keep))
    await database.close()
    await engine.dispose()


@pytest.fixture
def store(make: Callable[..., Any]) -> Any:
    return make()


def record(
    key: int = 2**62,
    session_id: str = "s",
    machine_id: str = "m",
    parent: str | None = None,
    forked_at: int | None = None,
    *,
    hears_presence: bool = False,
) -> SessionRecord:
    return SessionRecord(
        key=SessionKey(key),
        machine_id=MachineId(machine_id),
        session_id=SessionId(session_id),
        version=1,
        digest=Digest("d"),
        hears_presence=hears_presence,
        created_at_ms=5,
        parent=None if parent is None else SessionId(parent),
        forked_at=None if forked_at is None else Seq(forked_at),
    )


def settled(
    key: int,
    seq: int,
    *,
    attempt: int = 0,
    event_id: str | None = None,
    error: tuple[str, str] | None = None,
    data: bytes = b"[1,2,{}]",
    timers_set: Sequence[tuple[int, int]] = (),
    timers_gone: Sequence[int] = (),
    tries: int = 0,
    member: tuple[str, bytes | None] | None = None,
    finished: bool = False,
    created: SessionRecord | None = None,
) -> TurnWrite:
    timers: dict[TimerId, Armed | None] = {TimerId(timer): None for timer in timers_gone}
    timers |= {TimerId(timer): Armed(due_at_ms, tries) for timer, due_at_ms in timers_set}
    return TurnWrite(
        key=SessionKey(key),
        entry=Entry(
            Seq(seq),
            attempt,
            Kind.EVENT,
            data,
            1_700_000_000_000 + seq,
            None if event_id is None else EventId(event_id),
            True,
            None if error is None else Fault(*error),
        ),
        changes=Changes(
            timers=timers,
            member=None if member is None else MemberChange(MemberId(member[0]), member[1]),
            finished=finished,
        ),
        created=created,
    )


def due(found: StoredSession) -> dict[int, int]:
    return {timer: armed.due_at_ms for timer, armed in found.timers.items()}


def begun(made: SessionRecord, **more: Any) -> TurnWrite:
    return settled(made.key, 1, created=made, **more)


def checkpoint(seq: int, **timers: int) -> SavedCheckpoint:
    return SavedCheckpoint(
        seq=Seq(seq),
        data=b"\0" * 16 + b"data",
        snapshot=b'{"n":1}',
        finished=False,
        timers={TimerId(int(k[1:])): v for k, v in timers.items()},
        at_ms=9,
    )


async def test_a_session_comes_back_as_it_was(store: Any) -> None:
    made = record(session_id="a/b\0é😀", parent="\0", forked_at=3)
    entries = [
        begun(made, timers_set=[(1, 50), (2, 60)]),
        settled(made.key, 2, event_id="e\0'\"é", timers_gone=[1]),
        settled(made.key, 2, attempt=1, event_id="bad", error=("machine_error", "b\0oom")),
    ]
    await store.commit(
        [
            *entries,
            CheckpointWrite(made.key, checkpoint(1, t1=50)),
            settled(made.key, 3, timers_set=[(3, 2**53)]),
        ]
    )
    found = await store.load("m", "a/b\0é😀")
    assert found is not None
    assert (found.record, found.seq, found.attempts, found.checkpoint) == (
        made,
        3,
        0,
        checkpoint(1, t1=50),
    )
    assert [(entry.seq, entry.attempt) for entry in found.tail] == [(2, 0), (3, 0)]
    assert due(found) == {2: 60, 3: 2**53}
    assert found.receipts == [entries[1].entry, entries[2].entry]
    assert await store.entry_of(made.key, "e\0'\"é") == entries[1].entry
    assert await store.entry_of(made.key, "e") is None
    assert await store.load("m", "a") is None
    assert await store.load("other", "a/b\0é😀") is None
    assert await store.record_of(made.key) == made
    assert await store.record_of(1) is None


async def test_who_is_believed_to_be_there(store: Any) -> None:
    made, other = record(), record(key=3, session_id="other")
    await store.commit(
        [
            begun(made, member=("b\0é", b"{}")),
            begun(other),
            settled(made.key, 2, member=("a", b"1")),
            settled(made.key, 3, member=("b\0é", None)),
            settled(3, 2, member=("a", b"2")),
        ]
    )
    assert await store.members() == [(3, "a", b"2"), (made.key, "a", b"1")]
    await store.commit([settled(made.key, 4, member=("a", b"again")), settled(3, 3, finished=True)])
    assert await store.members() == [(made.key, "a", b"again")]
    await store.fork(
        record(key=50, session_id="child", parent="s", forked_at=2),
        made.key,
        checkpoint(2),
        {"x": b"y"},
    )
    assert (await store.members())[0] == (50, "x", b"y")
    await store.commit([SessionDelete(SessionKey(50)), SessionDelete(made.key)])
    assert await store.members() == []
    presence = [
        TurnWrite(key=SessionKey(3), entry=Entry(Seq(seq), attempt, Kind.PRESENCE, b"[]", 5))
        for seq, attempt in ((4, 0), (4, 1), (5, 0), (6, 0))
    ]
    await store.commit([*presence, settled(3, 7)])
    assert [entry.seq for entry in await store.presence_entries(3, until=5)] == [4, 5]


async def test_what_was_undone_counts_attempts(store: Any) -> None:
    made = record()
    await store.commit(
        [
            begun(made),
            settled(made.key, 1, attempt=1, error=("x", "y")),
            settled(made.key, 1, attempt=2, error=("x", "y")),
        ]
    )
    found = await store.load("m", "s")
    assert (found.seq, found.attempts, len(found.tail)) == (1, 2, 1)


@pytest.mark.parametrize("second", ["same seq", "same id", "same name", "same key"])
async def test_nothing_is_written_twice_and_a_refused_batch_leaves_nothing(
    store: Any, second: str
) -> None:
    made, innocent = record(), record(key=3, session_id="innocent")
    await store.commit([begun(made, event_id="e1")])
    again = {
        "same seq": settled(made.key, 1),
        "same id": settled(made.key, 2, event_id="e1"),
        "same name": begun(record(key=9)),
        "same key": begun(record(session_id="t")),
    }[second]
    with pytest.raises(AlreadyWritten):
        await store.commit(
            [
                begun(innocent, timers_set=[(1, 1)]),
                CheckpointWrite(innocent.key, checkpoint(1)),
                again,
            ]
        )
    assert await store.load("m", "innocent") is None
    assert await store.timers_due(after_ms=0, until_ms=10) == []
    foreign, ours = await store.explain_conflict([begun(innocent), again])
    expected = [begun(made, event_id="e1").entry] if again.key == made.key else []
    assert (foreign, ours) == ({again.key: expected}, False)


async def test_the_same_batch_again_is_recognised(store: Any) -> None:
    made = record()
    batch = [
        begun(made, event_id="e1"),
        settled(made.key, 1, attempt=1, event_id="e2", error=("a", "b")),
        CheckpointWrite(made.key, checkpoint(1)),
    ]
    await store.commit(batch)
    with pytest.raises(AlreadyWritten):
        await store.commit(batch)
    assert await store.explain_conflict(batch) == ({}, True)
    await store.commit([CheckpointWrite(made.key, checkpoint(1))])  # by itself it may come again


async def test_timers_are_set_again_and_go(store: Any) -> None:
    made = record()
    await store.commit([begun(made, timers_set=[(1, 50), (2, 40), (3, 40)])])
    await store.commit(
        [
            settled(made.key, 2, timers_set=[(1, 70)]),
            settled(made.key, 3, timers_gone=[2], timers_set=[(4, 5)]),
            settled(made.key, 4, timers_gone=[4]),
        ]
    )
    assert await store.timers_of(made.key) == [(1, 70), (3, 40)]
    assert await store.timers_due(after_ms=0, until_ms=70) == [(made.key, 3, 40), (made.key, 1, 70)]
    assert await store.timers_due(after_ms=40, until_ms=69) == []
    await store.commit(
        [settled(made.key, 4, attempt=1, error=("x", "y"), timers_set=[(3, 90)], tries=2)]
    )
    found = await store.load("m", "s")
    assert found.timers == {1: Armed(70), 3: Armed(90, 2)}
    await store.commit([settled(made.key, 5, finished=True)])
    assert await store.timers_of(made.key) == []
    assert (await store.record("m", "s")).finished_at_ms == 1_700_000_000_005
    assert [r.key for r in await store.finished(before_ms=1_700_000_000_006)] == [made.key]
    assert await store.finished(before_ms=1_700_000_000_005) == []


async def test_deleting_takes_everything_and_the_name_is_free(store: Any) -> None:
    made, other, foreign = (
        record(),
        record(key=8, session_id="other"),
        record(key=9, machine_id="n"),
    )
    await store.commit(
        [
            begun(made, event_id="e", timers_set=[(1, 1)]),
            CheckpointWrite(made.key, checkpoint(1)),
            begun(other),
            begun(foreign),
        ]
    )
    await store.commit([settled(made.key, 2), SessionDelete(made.key), begun(record(key=10))])
    found = await store.load("m", "s")
    assert (found.record.key, found.seq, found.timers, found.checkpoint) == (10, 1, {}, None)
    assert await store.entries(made.key, after=(0, 0), limit=9) == []
    assert await store.checkpoint_seqs(made.key) == []
    keys = await store.keys_of("m")
    assert sorted(keys) == [8, 10]
    await store.commit([SessionDelete(key) for key in keys])
    assert await store.page("m", after=None, limit=9) == []
    assert [r.session_id for r, _ in await store.page("n", after=None, limit=9)] == ["s"]
    with pytest.raises(NotFound):
        await store.record("m", "s")


async def test_a_session_is_succeeded_at_once(store: Any) -> None:
    made, new = record(), record(key=10)
    await store.commit([begun(made, timers_set=[(1, 1)])])
    entry = begun(new).entry
    write = SessionDelete(made.key, Successor(new, entry, checkpoint(1, t5=77)))
    for _ in range(2):  # the answer to the first was lost
        await store.commit([settled(made.key, 2), write] if _ == 0 else [write])
        found = await store.load("m", "s")
        assert (found.record.key, found.seq, found.timers) == (10, 1, {5: Armed(77)})
        assert [each.seq for each in await store.entries(new.key, after=(0, 0), limit=9)] == [1]
        assert await store.entries(made.key, after=(0, 0), limit=9) == []
    await store.commit([settled(new.key, 2)])
    assert (await store.load("m", "s")).seq == 2


async def test_sessions_are_listed_by_id(store: Any) -> None:
    await store.commit(
        [
            begun(record(key=number + 1, session_id=name))
            for number, name in enumerate(["b", "a", "é", "c"])
        ]
    )
    await store.commit([settled(1, 2), settled(1, 2, attempt=1, error=("a", "b"))])
    assert [(r.session_id, seq) for r, seq in await store.page("m", after=None, limit=3)] == [
        ("a", 1),
        ("b", 2),
        ("c", 1),
    ]
    assert [r.session_id for r, _ in await store.page("m", after="c", limit=3)] == ["é"]


async def test_the_journal_is_read_in_pages(store: Any) -> None:
    made = record()
    await store.commit(
        [
            begun(made),
            *(settled(made.key, seq) for seq in range(2, 8)),
            settled(made.key, 7, attempt=1, error=("a", "b")),
            settled(made.key, 8),
        ]
    )
    at = [(e.seq, e.attempt) for e in await store.entries(made.key, after=(5, 0), limit=3)]
    assert at == [(6, 0), (7, 0), (7, 1)]
    assert [e.seq for e in await store.entries(made.key, after=(7, 0), limit=9)] == [7, 8]
    assert [e.seq for e in await store.entries(made.key, after=(2, 0), until=4, limit=9)] == [3, 4]
    assert [
        e.seq for e in await store.entries(made.key, after=(6, 0), limit=9, applied_only=True)
    ] == [7, 8]
    assert await store.span(made.key) == (1, 8)
    assert await store.span(77) == (1, 0)


async def test_checkpoints_and_journal_are_pruned(make: Callable[..., Any]) -> None:
    store = make(checkpoints=2, checkpoint_every=10, journal=6)
    made = record()
    await store.commit([begun(made)])
    for seq in range(2, 26):
        await store.commit(
            [
                settled(made.key, seq, event_id=f"e{seq}"),
                *([CheckpointWrite(made.key, checkpoint(seq))] if seq % 4 == 0 else []),
            ]
        )
    # Of 4, 8, 12, 16, 20, 24: the newest two, and the one that the kept journal begins at.
    assert await store.checkpoint_seqs(made.key) == [16, 20, 24]
    assert await store.span(made.key) == (17, 25)
    assert (await store.checkpoint_before(made.key, 19)).seq == 16
    assert await store.checkpoint_before(made.key, 15) is None
    found = await store.load("m", "s")
    assert (found.checkpoint.seq, [e.seq for e in found.tail]) == (24, [25])


async def test_a_journal_is_pruned_however_few_checkpoints_are_kept(
    make: Callable[..., Any],
) -> None:
    """Each checkpoint was dropped before it was old enough to begin at."""
    store = make(checkpoints=1, checkpoint_every=0, journal=20)
    made = record()
    await store.commit([begun(made)])
    for seq in range(2, 202):
        await store.commit(
            [
                settled(made.key, seq),
                *([CheckpointWrite(made.key, checkpoint(seq))] if seq % 4 == 0 else []),
            ]
        )
    first, last = await store.span(made.key)
    assert last == 201
    assert 20 <= last - first <= 40
    assert len(await store.checkpoint_seqs(made.key)) <= 4


async def test_the_inputs_of_timers_are_compacted(make: Callable[..., Any]) -> None:
    """Behind the checkpoint before the newest one; what people sent stays."""
    store = make(checkpoints=1, checkpoint_every=0)
    made = record()
    await store.commit([begun(made)])
    for seq in range(2, 31):
        is_tick = seq not in (5, 25)
        turn = settled(made.key, seq, event_id=None if is_tick else f"e{seq}")
        if is_tick:
            entry = msgspec.structs.replace(turn.entry, kind=Kind.TIMER)
            turn = msgspec.structs.replace(turn, entry=entry)
        frozen = [CheckpointWrite(made.key, checkpoint(seq), seq > 10)] if seq % 10 == 0 else []
        await store.commit([turn, *frozen])
    assert await store.checkpoint_seqs(made.key) == [20, 30]
    left = await store.entries(made.key, after=(0, 0), limit=99)
    assert [each.seq for each in left] == [1, 5, *range(21, 31)]
    assert await store.span(made.key) == (21, 30)
    assert (await store.record("m", "s")).compacted_to == 20
    found = await store.load("m", "s")
    assert (found.seq, found.checkpoint.seq, found.tail) == (30, 30, [])
    assert (await store.entry_of(made.key, EventId("e5"))).seq == 5
    child = msgspec.structs.replace(made, key=SessionKey(99), session_id=SessionId("child"))
    forked = await store.fork(child, made.key, checkpoint(30), {})
    assert forked.compacted_to == (await store.record("m", "child")).compacted_to == 30
    assert await store.span(forked.key) == (31, 30)


async def test_a_session_all_of_whose_journal_is_in_its_checkpoint_still_counts_on(
    make: Callable[..., Any],
) -> None:
    store = make(checkpoints=1, checkpoint_every=0, journal=1)
    made = record()
    await store.commit(
        [
            begun(made),
            settled(made.key, 2),
            CheckpointWrite(made.key, checkpoint(1)),
            CheckpointWrite(made.key, checkpoint(2)),
        ]
    )
    found = await store.load("m", "s")
    assert (found.seq, found.checkpoint.seq) == (2, 2)
    assert (await store.span(made.key))[1] == 2


async def test_forks_have_the_parents_past_and_none_of_its_ids(store: Any) -> None:
    made = record()
    await store.commit(
        [
            begun(made),
            settled(made.key, 2, event_id="e"),
            settled(made.key, 2, attempt=1, event_id="x", error=("a", "b")),
            settled(made.key, 3),
        ]
    )
    child = record(key=50, session_id="child", parent="s", forked_at=2)
    await store.fork(child, made.key, checkpoint(2, t7=99), {})
    assert [(r.session_id, seq) for r, seq in await store.page("m", after=None, limit=9)] == [
        ("child", 2),
        ("s", 3),
    ]
    found = await store.load("m", "child")
    assert (found.record, found.seq, found.attempts, due(found), found.tail, found.receipts) == (
        child,
        2,
        0,
        {7: 99},
        [],
        [],
    )
    assert [(e.seq, e.event_id) for e in await store.entries(50, after=(0, 0), limit=9)] == [
        (1, None),
        (2, None),
    ]
    await store.commit([settled(50, 3, event_id="e")])
    assert (await store.load("m", "s")).seq == 3
    with pytest.raises(AlreadyWritten):
        await store.fork(record(key=51, session_id="child"), made.key, checkpoint(2), {})
    await store.commit([SessionDelete(made.key)])
    assert (await store.load("m", "child")).seq == 3
