"""Who the nodes are, as the database says: this node's heartbeat, and what it sees of the others.

Decides: when another node is declared dead, and when this one does not know any more whether it is
itself (it serves nothing then, until its next heartbeat). That a dead one commits nothing is the
fence's doing (`store/nodes.py`).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.cluster.suspicion import Suspicion
from machinehub.errors import Unavailable
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.clock import Clock
    from machinehub.cluster.links import Links
    from machinehub.ids import NodeId
    from machinehub.store.nodes import Load, NodeRecord, NodeStore

log = logging.getLogger("machinehub.cluster")

BEAT_S: Final = 0.25
ANSWER_S: Final = 2.0
CONFIRMED_S: Final = 3.0
"""A node whose last heartbeat was so long ago may have been declared dead (others wait for longer,
`suspicion.py`): what it remembers of sessions may be old.
"""


class Membership:
    """`start`, then the rest. `measure` says how loaded this node is."""

    def __init__(
        self,
        store: NodeStore,
        record: NodeRecord,
        clock: Clock,
        links: Links,
        *,
        measure: Callable[[], Load],
    ) -> None:
        self.node = record.id
        self._store = store
        self._record = record
        self._clock = clock
        self._links = links
        self._measure = measure
        self._suspicion = Suspicion()
        self._declaring: set[NodeId] = set()
        self._nodes: dict[NodeId, NodeRecord] = {}
        self._confirmed_at_s = float("-inf")
        self._look_now = asyncio.Event()
        self.on_fenced: Callable[[], None] = lambda: None
        """Hears that this node was declared dead."""
        self.on_drain: Callable[[], None] = lambda: None
        """Hears that somebody wants this node to end."""
        self._tasks = Tasks()

    # --- what is known ----------------------------------------------------------------------------

    @property
    def nodes(self) -> list[NodeRecord]:
        """All living nodes."""
        return list(self._nodes.values())

    @property
    def others(self) -> list[NodeId]:
        return [node for node in self._nodes if node != self.node]

    @property
    def capacities(self) -> dict[NodeId, int]:
        """Of the nodes that take up sessions."""
        return {each.id: each.capacity for each in self._nodes.values() if not each.load.draining}

    def is_alive(self, node: NodeId) -> bool:
        return node in self._nodes

    @property
    def is_confirmed(self) -> bool:
        """Whether this node knows that it was not declared dead, a moment ago."""
        return asyncio.get_running_loop().time() - self._confirmed_at_s < CONFIRMED_S

    # --- life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Joins. Raises `Unavailable`."""
        await self._store.join(self._record)
        await self._look()
        self._tasks.spawn(self._beat_on())
        self._links.spread(b"look")

    async def stop(self) -> None:
        """Leaves: whatever this node still has is free."""
        self._tasks.stop()
        if not self._nodes:
            return  # it never joined
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._store.declare_dead(self.node, self._clock.now_ms())
        except (Unavailable, TimeoutError) as error:
            log.warning("the other nodes will notice that this one ended: %s", error)
        self._links.spread(b"look")

    async def beat(self) -> None:
        """A heartbeat out of turn: the others are to know at once what changed."""
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._look()
        except (Unavailable, TimeoutError) as error:
            log.warning("the other nodes will notice what changed: %s", error)
        self._links.spread(b"look")

    def look_soon(self) -> None:
        """Something changed with the nodes."""
        self._look_now.set()

    def tell_others(self, kind: bytes, text: str) -> None:
        """Of what they would find out later anyway."""
        self._links.spread(msgspec.msgpack.encode([kind, text]))

    async def _beat_on(self) -> None:
        while True:
            try:
                async with asyncio.timeout(BEAT_S):
                    await self._look_now.wait()
            except TimeoutError:
                pass
            self._look_now.clear()
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._look()
            except (Unavailable, TimeoutError) as error:
                log.debug("a heartbeat was lost: %s", error)
            except Exception:  # a mistake of ours in one must not be the last one
                log.exception("a heartbeat failed")

    async def _look(self) -> None:
        asked_at_s = asyncio.get_running_loop().time()
        found, connected = await self._store.beat(self.node, self._measure())
        nodes = {node.id: node for node in found}
        if self.node not in nodes:
            self.on_fenced()
            return
        self._confirmed_at_s = asked_at_s
        gone = [node for node in self._nodes if node not in nodes]
        for node in nodes.keys() - self._nodes.keys() - {self.node}:
            log.info("node %s (%s) is there", node, nodes[node].name)
        self._nodes = nodes
        for node in gone:
            log.info("node %s is gone", node)
            self._links.is_gone(node)
        if nodes[self.node].told_to_drain:
            self.on_drain()
        others = [nodes[node] for node in self.others]
        for node in self._suspicion.look(others, connected, asyncio.get_running_loop().time()):
            if node not in self._declaring:
                self._declaring.add(node)
                self._tasks.spawn(self._declare_dead(node))

    async def _declare_dead(self, node: NodeId) -> None:
        log.warning("node %s gives no sign of life: its sessions move", node)
        try:
            async with asyncio.timeout(2 * ANSWER_S):
                await self._store.declare_dead(node, self._clock.now_ms())
        except (Unavailable, TimeoutError) as error:
            log.warning("node %s could not be declared dead yet: %s", node, error)
        else:
            self.look_soon()
            self._links.spread(b"look")
        finally:
            self._declaring.discard(node)
