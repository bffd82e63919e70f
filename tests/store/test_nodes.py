"""Fences and claims, on a real Postgres: what a dead node commits is refused, and a session is one
node's.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from machinehub.errors import NotFound, OwnedElsewhere, Unavailable
from machinehub.ids import Digest, MachineId, NodeId, Seq, SessionId, SessionKey
from machinehub.model import (
    Entry,
    Kind,
    Release,
    Retention,
    SessionDelete,
    SessionRecord,
    TurnWrite,
)
from machinehub.settings import normalise_database_url
from machinehub.store.database import Database
from machinehub.store.engine import open_engine
from machinehub.store.nodes import Load, NodeRecord, NodeStore, fence_of, is_fenced
from machinehub.store.schema import migrate
from machinehub.store.sessions import SessionStore
from tests.databases import new_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.xdist_group("store")

MACHINE, SESSION = MachineId("m"), SessionId("s")


class Node:
    """A node's view of the database."""

    def __init__(self, url: str, name: str, lock: int) -> None:
        self.id = NodeId(name * 12)
        self.engine = open_engine(url)
        self.database = Database(self.engine)
        self.nodes = NodeStore(self.database)
        self.sessions = SessionStore(self.database, Retention(), node=self.id)
        self.lock = lock
        self.fenced = 0

    async def join(self) -> None:
        await self.database.share(self.lock)
        record = NodeRecord(
            id=self.id, name="n", lock=self.lock, capacity=1, software="1", started_at_ms=0
        )
        await self.nodes.join(record)
        self.database.fence_by(fence_of(self.id, self._on_fenced))

    def _on_fenced(self) -> None:
        self.fenced += 1

    async def begin(self, key: int = 1, session: str = "s") -> None:
        record = SessionRecord(
            key=SessionKey(key),
            machine_id=MACHINE,
            session_id=SessionId(session),
            version=1,
            digest=Digest("d"),
            hears_presence=False,
            created_at_ms=0,
        )
        entry = Entry(Seq(1), 0, Kind.START, b"{}", 0, changed=True)
        write = TurnWrite(key=SessionKey(key), entry=entry, created=record)
        await self.sessions.commit([write])

    async def turn(self, seq: int, key: int = 1) -> None:
        entry = Entry(Seq(seq), 0, Kind.EVENT, b"{}", 0, changed=True)
        await self.sessions.commit([TurnWrite(key=SessionKey(key), entry=entry)])


@pytest_asyncio.fixture(loop_scope="session")
async def nodes(postgres: str) -> AsyncIterator[list[Node]]:
    url = normalise_database_url(await new_database(postgres))
    found = [Node(url, name, number) for number, name in enumerate("abc", 1)]
    await migrate(found[0].engine)
    async with contextlib.AsyncExitStack() as stack:
        for node in found:
            await node.join()
            stack.push_async_callback(node.engine.dispose)
            stack.push_async_callback(node.database.close)
        yield found


async def test_a_session_is_the_node_s_that_began_it(nodes: list[Node]) -> None:
    one, two, _ = nodes
    await one.begin()
    with pytest.raises(OwnedElsewhere) as refused:
        await two.sessions.load(MACHINE, SESSION)
    assert refused.value.owner == one.id
    mine = await one.sessions.load(MACHINE, SESSION)
    assert mine is not None
    assert (mine.claim, mine.is_taken_over) == (2, False)
    assert await two.sessions.owner(MACHINE, SESSION) == one.id
    with pytest.raises(NotFound):
        await two.sessions.claim(MACHINE, SessionId("none"))


async def test_one_of_many_claims_succeeds(nodes: list[Node]) -> None:
    one, *others = nodes
    for number in range(20):
        session = f"s{number}"
        await one.begin(number + 10, session)
        await one.sessions.commit([Release(SessionKey(number + 10), 1)])
        answers = await asyncio.gather(
            *(node.sessions.load(MACHINE, SessionId(session)) for node in nodes for _ in range(2)),
            return_exceptions=True,
        )
        owner = await one.sessions.owner(MACHINE, SessionId(session))
        winners = {
            nodes[index // 2].id
            for index, each in enumerate(answers)
            if not isinstance(each, Exception)
        }
        assert winners == {owner}
        assert all(
            isinstance(each, OwnedElsewhere) for each in answers if isinstance(each, Exception)
        )
    assert others


async def test_a_release_that_lands_late_frees_nobody_else_s(nodes: list[Node]) -> None:
    one, two, _ = nodes
    await one.begin()
    first = await one.sessions.load(MACHINE, SESSION)
    again = await one.sessions.load(MACHINE, SESSION)
    assert first is not None
    assert again is not None
    await one.sessions.commit([Release(SessionKey(1), first.claim)])
    assert await two.sessions.owner(MACHINE, SESSION) == one.id
    await one.sessions.commit([Release(SessionKey(1), again.claim)])
    assert await two.sessions.owner(MACHINE, SESSION) is None
    taken = await two.sessions.load(MACHINE, SESSION)
    assert taken is not None
    assert taken.is_taken_over


async def test_a_dead_node_commits_nothing(nodes: list[Node]) -> None:
    one, two, _ = nodes
    await one.begin()
    await two.nodes.declare_dead(one.id, 5)
    with pytest.raises(Unavailable) as refused:
        await one.turn(2)
    assert is_fenced(refused.value)
    assert one.fenced == 1
    for write in (SessionDelete(SessionKey(1)), Release(SessionKey(1), 1)):
        with pytest.raises(Unavailable):
            await one.sessions.commit([write])
    with pytest.raises(Unavailable):
        await one.sessions.load(MACHINE, SESSION)
    taken = await two.sessions.load(MACHINE, SESSION)
    assert taken is not None
    assert (taken.seq, taken.is_taken_over) == (1, True)
    found, _ = await two.nodes.beat(two.id, Load())
    assert one.id not in {each.id for each in found}


async def test_declaring_dead_waits_for_a_commit_that_is_under_way(nodes: list[Node]) -> None:
    one, two, _ = nodes
    await one.begin()
    behind_the_fence, may_end = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def slow() -> None:
        from sqlalchemy import text

        async with one.engine.begin() as connection:
            fence = "SELECT id FROM nodes WHERE id = :id AND ended_at_ms IS NULL FOR SHARE"
            assert (await connection.execute(text(fence), {"id": one.id})).first()
            loop.call_soon(behind_the_fence.set)
            await may_end.wait()
            await connection.execute(
                text(
                    "INSERT INTO journal (key, seq, attempt, kind, input, now_ms, changed)"
                    " VALUES (1, 2, 0, 'event', '', 0, true)"
                )
            )

    writing = asyncio.ensure_future(slow())
    await behind_the_fence.wait()
    declaring = asyncio.ensure_future(two.nodes.declare_dead(one.id, 5))
    with pytest.raises(OwnedElsewhere):  # nobody has it before that is done
        await two.sessions.load(MACHINE, SESSION)
    assert not declaring.done()
    may_end.set()
    await writing
    await declaring
    taken: Any = await two.sessions.load(MACHINE, SESSION)
    assert taken.seq == 2  # what it committed is there


async def test_free_sessions_with_something_to_do_are_found(nodes: list[Node]) -> None:
    from machinehub.model import Armed, Changes
    from sandbox.protocol.ids import TimerId

    one, two, _ = nodes
    await one.begin()
    entry = Entry(Seq(2), 0, Kind.EVENT, b"{}", 0, changed=True)
    changes = Changes(timers={TimerId(1): Armed(1000)})
    await one.sessions.commit([TurnWrite(key=SessionKey(1), entry=entry, changes=changes)])
    assert await two.sessions.free_keys(due_ms=2000, limit=10) == ([], set())
    assert [key for key, *_ in await one.sessions.timers_due(after_ms=0, until_ms=2000)] == [1]
    assert await two.sessions.timers_due(after_ms=0, until_ms=2000) == []
    await two.nodes.declare_dead(one.id, 5)
    assert await two.sessions.free_keys(due_ms=999, limit=10) == ([], set())
    assert await two.sessions.free_keys(due_ms=2000, limit=10) == ([1], set())


async def test_a_connection_that_ends_is_seen_by_its_lock(nodes: list[Node]) -> None:
    one, two, _ = nodes
    _, connected = await two.nodes.beat(two.id, Load())
    assert connected >= {1, 2, 3}
    await one.database.close()

    async def is_seen() -> bool:
        return 1 not in (await two.nodes.beat(two.id, Load()))[1]

    async with asyncio.timeout(30):
        while not await is_seen():
            await asyncio.sleep(0.01)


async def test_what_a_node_says_of_itself_is_seen(nodes: list[Node]) -> None:
    one, two, _ = nodes
    load = Load(draining=True, sessions=3, connections=4, turns=5)
    await one.nodes.beat(one.id, load)
    await two.nodes.tell_to_drain(one.id)
    found = {each.id: each for each in await two.nodes.living()}
    assert found[one.id].load == load
    assert found[one.id].told_to_drain
    assert found[one.id].beats == 1
