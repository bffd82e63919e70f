"""One node among several: its parts, put together, started, drained, stopped."""

from __future__ import annotations

import logging
import os
import socket
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.cluster.here import Here
from machinehub.cluster.links import Links
from machinehub.cluster.loglines import ClusterLogs, Followed
from machinehub.cluster.machines import Machines
from machinehub.cluster.membership import Membership
from machinehub.cluster.placing import place
from machinehub.cluster.remote import Remote
from machinehub.cluster.serving import Relay, Serving
from machinehub.cluster.sessions import ClusterSessions
from machinehub.cluster.sweeper import Sweeper
from machinehub.errors import Unavailable
from machinehub.ids import MachineId
from machinehub.store.nodes import Load, NodeRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.clock import Clock, Entropy
    from machinehub.cluster.bus import Bus
    from machinehub.cluster.machines import MachineTable
    from machinehub.ids import NodeId, SessionId
    from machinehub.limits import Limits
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.session.decide.session import Session
    from machinehub.session.messages import Listener
    from machinehub.session.run.local import LocalSessions
    from machinehub.store.nodes import NodeStore
    from machinehub.store.sessions import SessionStore

log = logging.getLogger("machinehub.cluster")

NAME_CHARS_MAX: Final = 200


class ClusterNode:
    """`start` it once the session host has started, `stop` it before. `sessions` is the port."""

    def __init__(
        self,
        node: NodeId,
        bus: Bus,
        local: LocalSessions,
        store: SessionStore,
        nodes: NodeStore,
        logs: MachineLogs,
        clock: Clock,
        entropy: Entropy,
        limits: Limits,
        *,
        capacity: int,
        turns: Callable[[], int],
        machines: MachineTable,
        machine_changed: Callable[[MachineId], None],
    ) -> None:
        """`turns` counts those of this node, `machine_changed` hears of what other nodes did to a
        machine.
        """
        self.node = node
        self._bus = bus
        self._local = local
        self._store = store
        self._turns = turns
        self._machine_changed = machine_changed
        self.links = Links(
            bus,
            node,
            new_name=entropy.connection_id,
            is_alive=lambda each: self.membership.is_alive(each),  # noqa: PLW0108 - made below
        )
        self.record = NodeRecord(
            id=node,
            name=f"{socket.gethostname()}, process {os.getpid()}"[:NAME_CHARS_MAX],
            lock=entropy.lock_number(),
            capacity=capacity,
            software=version("machinehub"),
            started_at_ms=clock.now_ms(),
        )
        self.membership = Membership(nodes, self.record, clock, self.links, measure=self._load)
        self._here = Here(local, store, logs, node)
        self._remote = Remote(self.links, new_id=entropy.connection_id)
        self._serving = Serving(self._here, Followed(logs))
        self.logs = ClusterLogs(logs, self._remote, self.membership)
        self._sweeper = Sweeper(self._here, store, self.membership, clock, limits)
        self.sessions = ClusterSessions(
            self._here, self._remote, self.membership, clock, entropy, limits
        )
        self._machines = Machines(
            machines,
            lambda: self.sessions.clients,
            machine_changed,
            local.registry.reopen_machine,
        )
        self._here.on_machine_closed = self._machines.closed
        self.links.report_to(self._remote, self._serving)
        self.links.on_news = self._hear
        local.loader.on_moved = self._moved

    def measure(self, metrics: Metrics) -> None:
        """Sets the gauges of nodes."""
        metrics.node.labels(self.node).set(1)
        metrics.nodes.set(len(self.membership.nodes))
        metrics.clients_elsewhere.set(len(self._remote.clients))

    def _load(self) -> Load:
        return Load(
            draining=self._here.is_leaving,
            sessions=len(self._local.registry),
            connections=self._local.publisher.listener_count + len(self._remote.clients),
            turns=self._turns(),
        )

    async def start(self) -> None:
        """Raises `Unavailable`."""
        await self._bus.start(self.node, self.links.receive)
        self.links.start()
        await self.membership.start()
        self._sweeper.start()
        self._machines.start()

    async def drain(self) -> None:
        """Hands over all sessions, if there is another node. Clients of this node go on, with other
        nodes' sessions.
        """
        if self._here.is_leaving or not self.membership.others:
            return
        self._here.is_leaving = True
        self._local.waking.takes_up = False
        self._sweeper.stop()
        await self.membership.beat()
        await self._local.handover.hand_over_all()
        try:  # those that it does not know to be its own
            await self._store.release_all()
        except Unavailable as error:
            log.warning("some sessions are free only when this node has ended: %s", error.detail)

    def looks_after(self, machine: MachineId, name: SessionId) -> bool:
        """Whether something that one node does for all is this node's to do."""
        capacities = self.membership.capacities
        return not self._here.is_leaving and place(capacities, machine, name) == self.node

    def say_goodbye(self, reason: str) -> None:
        self.sessions.say_goodbye(reason)

    async def stop(self) -> None:
        self._sweeper.stop()
        self._machines.stop()
        self.logs.stop()
        self._serving.stop()
        await self.membership.stop()
        self.links.stop()
        await self._bus.stop()

    def _moved(self, _session: Session, listeners: list[Listener]) -> None:
        for listener in listeners:
            if isinstance(listener, Relay):
                self._serving.parted(listener)
        self.sessions.moved([each for each in listeners if not isinstance(each, Relay)])

    def machine_changed_here(self, machine_id: MachineId) -> None:
        """The others are to ask the database."""
        self.membership.tell_others(b"machine", machine_id)

    def _hear(self, node: NodeId, text: bytes) -> None:
        """News of another node. All of it would be found out later anyway (`machines.py`)."""
        if text == b"look":
            self.membership.look_soon()
            return
        try:
            kind, name = msgspec.msgpack.decode(text, type=tuple[bytes, str])
        except msgspec.MsgspecError:
            log.debug("news of node %s that this one does not know", node)
            return
        if kind == b"machine":
            self._machine_changed(MachineId(name))
        elif kind == b"reconnect":
            self._machine_changed(MachineId(name))
            self._machines.send_away(MachineId(name))
