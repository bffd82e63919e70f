"""The contract of the store about requests to the world: on SQLite, on Postgres, and of the twin
that simulations run on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from machinehub.effect import WITHDRAWN, Conclusion, Effect
from machinehub.ids import NodeId, Seq
from machinehub.model import Changes, CheckpointWrite, SessionDelete, Successor
from machinehub.store.effects import EffectStore
from machinehub.store.nodes import NodeRecord, NodeStore
from sandbox.protocol.ids import EffectId
from tests.fakes import MemorySessionStore
from tests.store.test_sessions import begun, checkpoint, make, record, settled, store

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.model import TurnWrite

__all__ = ["make", "store"]  # fixtures
pytestmark = pytest.mark.xdist_group("store")


def effect(number: int, seq: int, at_ms: int = 50, **more: Any) -> Effect:
    given = {"ordinal": 0, "request": b'{"url":"x"}', **more}
    return Effect(EffectId(number), Seq(seq), at_ms=at_ms, **given)


def turn(
    key: int, seq: int, *, finished: bool = False, **effects: Effect | Conclusion
) -> TurnWrite:
    changes = {EffectId(int(name[1:])): change for name, change in effects.items()}
    return msgspec.structs.replace(
        settled(key, seq), changes=Changes(effects=changes, finished=finished)
    )


async def rows(store: Any, key: int) -> list[Any]:
    found: list[Any] = await store.effects.of_session(key, limit=100)
    return found


async def test_a_request_waits_and_ends(store: Any) -> None:
    made = record()
    first, second = effect(1, 2, depth=3), effect(2, 2, ordinal=1)
    await store.commit([begun(made), turn(made.key, 2, e1=first, e2=second)])
    assert (await store.load("m", "s")).effects == {1: 3, 2: 0}
    assert await store.effects.due(49, limit=9) == []
    named = await store.effects.due(50, limit=9)
    assert named == [(50, made.key, 1, "m", 1), (50, made.key, 2, "m", 1)]
    assert await store.effects.due(50, limit=1) == named[:1]
    assert await store.effects.due(50, after=named[0], limit=9) == named[1:]
    assert await store.effects.due(50, after=named[1], limit=9) == []
    one, two = sorted(await store.effects.take(named), key=lambda each: each.record.effect.id)
    assert (one.record.effect, one.machine_id, one.session_id, one.version) == (first, "m", "s", 1)
    assert two.record.effect == second
    how = Conclusion("answered", 201, 2, 34)
    await store.commit([turn(made.key, 3, e1=how), turn(made.key, 4, e2=WITHDRAWN)])
    assert (await store.load("m", "s")).effects == {}
    assert await store.effects.due(99, limit=9) == []
    assert await store.effects.take(named) == []
    two, one = await rows(store, made.key)
    assert (one.conclusion, one.ended_seq, one.due_at_ms) == (how, 3, None)
    assert (two.conclusion, two.ended_seq) == (WITHDRAWN, 4)
    assert await store.effects.of_session(made.key, before=EffectId(2), limit=9) == [one]
    assert [each.effect.id for each in await store.effects.of_session(made.key, limit=1)] == [2]


async def test_asked_and_answered_in_one_batch(store: Any) -> None:
    made = record()
    how = Conclusion("answered", 200, 1, 1)
    await store.commit([begun(made), turn(made.key, 2, e1=effect(1, 2)), turn(made.key, 3, e1=how)])
    [row] = await rows(store, made.key)
    assert row.conclusion == how
    assert await store.effects.count_waiting() == 0


async def test_a_try_is_noted_until_it_ended(store: Any) -> None:
    made = record()
    await store.commit([begun(made), turn(made.key, 2, e1=effect(1, 2))])
    noted = {"tries": 1, "tried_at_ms": 60, "trouble": "nobody answers: é", "due_at_ms": 90}
    await store.effects.note_try(made.key, EffectId(1), **noted)
    [row] = await rows(store, made.key)
    assert (row.tries, row.tried_at_ms, row.trouble, row.due_at_ms) == tuple(noted.values())
    assert await store.effects.due(89, limit=9) == []
    assert await store.effects.count_waiting() == 1
    await store.commit([turn(made.key, 3, e1=Conclusion("egress_failed", None, 2, 5))])
    await store.effects.note_try(made.key, EffectId(1), **noted | {"due_at_ms": 99})
    [row] = await rows(store, made.key)
    assert row.due_at_ms is None


async def test_a_session_that_ends_waits_for_nothing(store: Any) -> None:
    made = record()
    how = Conclusion("answered", 200, 1, 1)
    await store.commit([begun(made), turn(made.key, 2, e1=effect(1, 2), e2=effect(2, 2))])
    await store.commit([turn(made.key, 3, finished=True, e1=how)])
    assert (await store.load("m", "s")).effects == {}
    two, one = await rows(store, made.key)
    assert (one.conclusion, two.conclusion.outcome) == (how, "session_finished")


async def test_a_number_that_comes_again_is_the_first_ones(store: Any) -> None:
    """No guest of ours counts so; one that was taken over must not hold up others' commits."""
    made, other = record(), record(key=8, session_id="o")
    await store.commit([begun(made), turn(made.key, 2, e1=effect(1, 2))])
    await store.commit([turn(made.key, 3, e1=effect(1, 3, request=b"{}")), begun(other)])
    [row] = await rows(store, made.key)
    assert row.effect == effect(1, 2)


async def test_deleting_takes_requests_and_a_successor_brings_its_own(store: Any) -> None:
    made, new = record(), record(key=10)
    await store.commit([begun(made), turn(made.key, 2, e1=effect(1, 2))])
    successor = Successor(new, begun(new).entry, checkpoint(1), [effect(1, 1, at_ms=70)])
    await store.commit([SessionDelete(made.key, successor)])
    assert await rows(store, made.key) == []
    [row] = await rows(store, new.key)
    assert (row.effect.seq, row.due_at_ms) == (1, 70)
    await store.commit([SessionDelete(new.key)])
    assert await rows(store, new.key) == []


@pytest.mark.parametrize("send_at_ms", [None, 500])
async def test_a_fork_has_what_its_parent_waited_for(store: Any, send_at_ms: int | None) -> None:
    made, child = record(), record(key=11, session_id="f", parent="s", forked_at=3)
    how = Conclusion("answered", 200, 1, 1)
    await store.commit(
        [
            begun(made),
            turn(made.key, 2, e1=effect(1, 2), e2=effect(2, 2)),
            turn(made.key, 3, e1=how),
            turn(made.key, 4, e2=how, e3=effect(3, 4)),
            CheckpointWrite(made.key, checkpoint(4)),
        ]
    )
    await store.fork(child, made.key, checkpoint(3), {}, send_at_ms=send_at_ms)
    two, one = await rows(store, child.key)
    assert (one.effect.id, one.conclusion) == (1, how)
    assert (two.effect.id, two.conclusion, two.due_at_ms) == (2, None, send_at_ms)
    assert two.is_held is (send_at_ms is None)
    assert (await store.load("m", "f")).effects == {2: 0}


async def test_requests_go_with_the_journal(make: Callable[..., Any]) -> None:
    store = make(checkpoints=1, checkpoint_every=0, journal=2)
    made = record()
    how = Conclusion("answered", 200, 1, 1)
    await store.commit([begun(made), turn(made.key, 2, e1=effect(1, 2), e2=effect(2, 2))])
    await store.commit([turn(made.key, 3, e1=how)])
    for seq in range(4, 12):
        await store.commit([settled(made.key, seq), CheckpointWrite(made.key, checkpoint(seq))])
    assert [each.effect.id for each in await rows(store, made.key)] == [2]


async def test_what_a_node_sends_no_other_does(make: Callable[..., Any]) -> None:
    store = make()
    if isinstance(store, MemorySessionStore):
        return  # the twin is one hub's
    database, made = store._database, record()
    nodes = NodeStore(database)
    for number, name in enumerate(("one", "two")):
        node = NodeRecord(
            id=NodeId(name), name=name, lock=number, capacity=1, software="v", started_at_ms=1
        )
        await nodes.join(node)
    await store.commit([begun(made), turn(made.key, 2, e1=effect(1, 2))])
    one, two = (EffectStore(database, node=NodeId(name)) for name in ("one", "two"))
    named = await two.due(99, limit=9)
    assert len(await one.take(named)) == 1
    assert await two.due(99, limit=9) == []
    assert await two.take(named) == []
    await nodes.declare_dead(NodeId("one"), 2)
    assert len(await two.take(await two.due(99, limit=9))) == 1
    await two.let_go()
    assert len(await store.effects.take(await store.effects.due(99, limit=9))) == 1
