"""The hubs that share a database: who is one of them, whether they live, and their fences.

Decides: that a node which was declared dead commits nothing any more. Every write of a node begins
by locking its row of `nodes` for sharing (`fence_of`); `declare_dead` changes that row, so it waits
for the commits that are under way, and all later ones find that the node is dead. Nothing here
compares the clocks of two computers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from machinehub.ids import NodeId
from machinehub.store import statements as sql
from machinehub.store.claim import NODE_LOCKS
from machinehub.store.trouble import FENCED, unavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.errors import Unavailable
    from machinehub.store.database import Connection, Database

KEPT_MS: Final = 24 * 3600 * 1000
"""How long the rows of nodes that ended are kept, for people to look at."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of itself with each heartbeat."""

    draining: bool = False
    sessions: int = 0
    """In memory."""
    connections: int = 0
    turns: int = 0
    """Since it started."""


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    id: NodeId
    name: str
    """Host and process, for people."""
    lock: int
    """The number of the advisory lock that its connection holds."""
    capacity: int
    """How many sessions it should have, against the others."""
    software: str
    started_at_ms: int
    beats: int = 0
    told_to_drain: bool = False
    load: Load = Load()


class NodeStore:
    """The tables `nodes` and `beats`. Every method raises `Unavailable` when the database does not
    answer.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def join(self, node: NodeRecord) -> None:
        row = {
            "id": node.id,
            "name": node.name,
            "lock": node.lock,
            "capacity": node.capacity,
            "software": node.software,
            "started_at_ms": node.started_at_ms,
            "ended_at_ms": None,
        }
        beat = {"node": node.id, "count": 0, "told_to_drain": False} | msgspec.structs.asdict(
            node.load
        )

        def work(connection: Connection) -> None:
            connection.run(sql.forget_nodes, [{"of_before_ms": node.started_at_ms - KEPT_MS}])
            connection.run(sql.add_node, [row])
            connection.run(sql.add_beat, [beat])

        await self._database.write(work)

    async def beat(self, node: NodeId, load: Load) -> tuple[list[NodeRecord], set[int]]:
        """A sign of life. Returns the living nodes, this one among them unless it was declared
        dead, and the numbers of those whose connections live.
        """
        values = {f"of_{name}": value for name, value in msgspec.structs.asdict(load).items()}

        def work(connection: Connection) -> tuple[list[NodeRecord], set[int]]:
            connection.run(sql.beat, [{"of_node": node} | values])
            rows = connection.fetch(sql.living_nodes)
            locks = connection.fetch(sql.held_locks, of_class=NODE_LOCKS)
            return [_to_node(row) for row in rows], {number for (number,) in locks}

        return await self._database.write_unfenced(work)

    async def living(self) -> list[NodeRecord]:
        rows = await self._database.read(lambda connection: connection.fetch(sql.living_nodes))
        return [_to_node(row) for row in rows]

    async def tell_to_drain(self, node: NodeId) -> None:
        await self._database.write(
            lambda connection: connection.run(sql.tell_to_drain, [{"of_node": node}])
        )

    async def declare_dead(self, node: NodeId, now_ms: int) -> None:
        """Waits for what the node has under way. When this returns it commits nothing any more, and
        its sessions are free. Declaring twice changes nothing.
        """

        def work(connection: Connection) -> None:
            connection.run(sql.end_node, [{"of_node": node, "of_now_ms": now_ms}])
            connection.run(sql.delete_beat, [{"of_node": node}])

        await self._database.write_unfenced(work)


def fence_of(node: NodeId, on_fenced: Callable[[], None]) -> Callable[[Connection], None]:
    """What every write of a node begins with: raises `Unavailable` when it was declared dead, which
    `on_fenced` hears.
    """

    def check(connection: Connection) -> None:
        if not connection.fetch(sql.fence, of_node=node):
            on_fenced()
            raise unavailable(FENCED)

    return check


def is_fenced(error: Unavailable) -> bool:
    return error.more.get("reason") == FENCED


def _to_node(row: Any) -> NodeRecord:
    ident, name, lock, capacity, software, started_at_ms, _ended, *beat = row
    _node, count, draining, told_to_drain, sessions, connections, turns = beat
    return NodeRecord(
        id=NodeId(ident),
        name=name,
        lock=lock,
        capacity=capacity,
        software=software,
        started_at_ms=started_at_ms,
        beats=count,
        told_to_drain=told_to_drain,
        load=Load(draining=draining, sessions=sessions, connections=connections, turns=turns),
    )
