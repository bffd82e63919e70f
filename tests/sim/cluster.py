"""One simulated run of several nodes: real session hosts and real links, over one database and one
bus that fail in every way, in virtual time.

Packets are lost, repeated, held up and reordered; nodes are killed, drained, cut off, and one of
them becomes a zombie: it goes on, and does not know that the others took it for dead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec

from machinehub.clock import Entropy
from machinehub.cluster.links import LinkLost
from machinehub.cluster.node import ClusterNode
from machinehub.errors import HubError, NotFound, OwnedElsewhere, Unavailable
from machinehub.ids import EventId, MachineId, NodeId, SessionId
from machinehub.limits import Limits
from machinehub.logs import MachineLogs
from machinehub.metrics import Metrics
from machinehub.model import Release, SessionDelete, TurnWrite
from machinehub.principal import Principal, Standing
from machinehub.session.messages import Closed, Message, Settled, Snapshot, Update
from machinehub.session.port import Address, Visitor
from machinehub.session.run.local import LocalSessions
from machinehub.store.database import AlreadyWritten
from machinehub.store.trouble import FENCED, unavailable
from tests.sim.database import SimStore, journal_of
from tests.sim.loop import VirtualLoop
from tests.sim.parts import SimClock, SimPool, fold
from tests.sim.world import MACHINE, Versions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from machinehub.cluster.machines import MachineTable
    from machinehub.session.port import Subscription
    from machinehub.session.run.worker_interfaces import SandboxWorkers
    from machinehub.store.nodes import Load, NodeRecord, NodeStore
    from machinehub.store.sessions import SessionStore

LIMITS = Limits(ids_remembered=6, live_sessions=3, presence_grace_ms=500)
NODES = 3


class SharedDatabase(SimStore):
    """What all nodes share: sessions, whose they are, and who the nodes are."""

    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        super().__init__(loop, chance)
        self.owners: dict[int, NodeId] = {}
        self.claims: dict[int, int] = {}
        self.nodes: dict[NodeId, NodeRecord] = {}
        self.unconnected: set[NodeId] = set()
        """Whose processes ended."""

    def is_free(self, key: int) -> bool:
        return self.owners.get(key) not in self.nodes

    def apply_of(self, node: NodeId, items: Sequence[Any]) -> None:
        """The commit of a node. Nothing of it is done when the node was declared dead."""
        if node not in self.nodes:
            raise unavailable(FENCED)
        kept = [item for item in items if not isinstance(item, Release)]
        self.apply(kept)
        for item in items:
            match item:
                case TurnWrite(key=key) if item.created is not None:
                    self.owners[key], self.claims[key] = node, 1
                case SessionDelete(key=key):
                    self.owners.pop(key, None)
                case Release(key, claim):
                    if self.owners.get(key) == node and self.claims[key] == claim:
                        del self.owners[key]


class OneMachine:
    """The simulated machine, which is public and is never deleted."""

    async def machine(self, name: str, *, everywhere: bool = False) -> object:
        return name, everywhere

    async def private_among(self, _machines: object) -> set[MachineId]:
        return set()


class NodeView(SimStore):
    """The database as one node reaches it."""

    def __init__(self, shared: SharedDatabase, node: NodeId, fenced: Callable[[], None]) -> None:
        self.shared = shared
        self.node = node  # type: ignore[assignment]
        self._fenced = fenced

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["shared"], name)

    def apply(self, items: Sequence[Any]) -> None:
        try:
            self.shared.apply_of(self.node, items)  # type: ignore[arg-type]
            self.shared.commits += 1
        except Unavailable:
            self._fenced()
            raise

    def _later(self, items: Sequence[Any]) -> None:
        items = list(items)

        def land() -> None:
            with contextlib.suppress(AlreadyWritten, Unavailable):
                self.shared.apply_of(self.node, items)  # type: ignore[arg-type]

        self.loop.call_later(self.chance.random() * 0.5, land)

    def _claim(self, key: int) -> tuple[int, bool]:
        if self.node not in self.shared.nodes:
            self._fenced()
            raise unavailable(FENCED)
        owner = self.shared.owners.get(key)
        if owner != self.node and not self.shared.is_free(key):
            assert owner is not None
            raise OwnedElsewhere(owner)
        self.shared.claims[key] = self.shared.claims.get(key, 0) + 1
        self.shared.owners[key] = self.node  # type: ignore[assignment]
        return self.shared.claims[key], owner != self.node

    async def load(self, machine_id: str, session_id: str) -> Any:
        await self._reach()
        record = self.shared._named(machine_id, session_id)
        if record is None:
            return None
        number, taken = self._claim(record.key)
        stored = await super(SimStore, self.shared).load(machine_id, session_id)
        if self.trouble and self.chance.random() < 0.02:
            raise Unavailable("unavailable", "the answer was lost")
        assert stored is not None
        return msgspec.structs.replace(stored, claim=number, is_taken_over=taken)

    async def claim(self, machine_id: str, session_id: str) -> Any:
        record = await self.record(machine_id, session_id)
        self._claim(record.key)
        return record

    async def release_all(self) -> None:
        await self._reach()
        for key in [key for key, owner in self.shared.owners.items() if owner == self.node]:
            del self.shared.owners[key]

    async def owner(self, machine_id: str, session_id: str) -> NodeId | None:
        await self._reach()
        record = self.shared._named(machine_id, session_id)
        if record is None:
            raise NotFound("no_such_session", "none")
        return None if self.shared.is_free(record.key) else self.shared.owners[record.key]

    async def free_keys(self, *, due_ms: int, limit: int) -> tuple[list[int], set[int]]:
        await self._reach()
        due = {
            key
            for (key, _), armed in self.shared.timers.items()
            if armed.due_at_ms <= due_ms and self.shared.is_free(key)
        }
        crowded = {key for key, _ in self.shared.present if self.shared.is_free(key)}
        return sorted(due)[:limit], crowded

    async def my_keys(self, *, due_ms: int) -> set[int]:
        await self._reach()
        due = {key for (key, _), each in self.shared.timers.items() if each.due_at_ms <= due_ms}
        there = {key for key, _ in self.shared.present}
        return {key for key in due | there if self.shared.owners.get(key) == self.node}

    async def timers_due(self, *, after_ms: int, until_ms: int) -> Any:
        found = await super().timers_due(after_ms=after_ms, until_ms=until_ms)
        return [each for each in found if self.shared.owners.get(each[0]) == self.node]


class SimNodeStore:
    def __init__(self, shared: SharedDatabase) -> None:
        self._shared = shared

    async def _reach(self) -> None:
        shared = self._shared
        await asyncio.sleep(shared.chance.random() * 0.01)
        if shared.loop.now_s < shared.away_until_s:
            raise Unavailable("unavailable", "away")

    async def join(self, node: NodeRecord) -> None:
        await self._reach()
        self._shared.nodes[node.id] = node

    async def beat(self, node: NodeId, load: Load) -> tuple[list[NodeRecord], set[int]]:
        await self._reach()
        nodes = self._shared.nodes
        if node in nodes:
            before = nodes[node]
            nodes[node] = msgspec.structs.replace(before, beats=before.beats + 1, load=load)
        connected = {
            each.lock for each in nodes.values() if each.id not in self._shared.unconnected
        }
        return list(nodes.values()), connected

    async def declare_dead(self, node: NodeId, now_ms: int) -> None:
        await self._reach()
        self._shared.nodes.pop(node, None)


class SimBus:
    packet_bytes_max = 2000

    def __init__(self, world: ClusterWorld) -> None:
        self._world = world
        self._receive: Callable[[bytes], None] | None = None
        self.away_until_s = 0.0

    async def start(self, node: NodeId, receive: Callable[[bytes], None]) -> None:
        self._world.buses[node] = self
        self._receive = receive

    async def stop(self) -> None:
        self._receive = None

    @property
    def is_connected(self) -> bool:
        return self._world.loop.now_s >= self.away_until_s

    def send(self, node: NodeId, packet: bytes) -> None:
        other = self._world.buses.get(node)
        if other is None or not self.is_connected:
            return
        chance = self._world.chance
        trouble = self._world.trouble
        if trouble and chance.random() < 0.01:
            return
        for _ in range(2 if trouble and chance.random() < 0.01 else 1):
            late = chance.random() < 0.005 if trouble else False
            delay_s = chance.random() * (1.0 if late else 0.0001) + 0.001
            self._world.loop.call_later(delay_s, other.come, packet)

    def spread(self, packet: bytes) -> None:
        for node in list(self._world.buses):
            self.send(node, packet)

    def come(self, packet: bytes) -> None:
        if self._receive is not None and self.is_connected:
            self._receive(packet)


class SimNode:
    """One node: its host, workers and links."""

    def __init__(self, world: ClusterWorld, number: int) -> None:
        self.world = world
        self.id = NodeId(f"node{number:08}")
        self.is_up = True
        self.is_fenced = False
        self.pool = SimPool(world.loop, world.chance)
        self.pool.trouble = world.trouble
        store = cast("SessionStore", NodeView(world.store, self.id, self._fence))
        entropy = Entropy(world.chance.getrandbits(32))
        logs = MachineLogs(kept=5)
        self.host = LocalSessions(
            cast("SandboxWorkers", self.pool),
            self.pool,
            Versions(),
            store,
            world.clock,
            entropy,
            LIMITS,
            logs=logs,
            metrics=Metrics(),
        )
        self.pool.listener = self.host
        self.bus = SimBus(world)
        self.cluster = ClusterNode(
            self.id,
            self.bus,
            self.host,
            store,
            cast("NodeStore", SimNodeStore(world.store)),
            logs,
            world.clock,
            entropy,
            LIMITS,
            capacity=1,
            turns=lambda: 0,
            machines=cast("MachineTable", OneMachine()),
            machine_changed=lambda _machine: None,
        )
        self.cluster.membership.on_fenced = self._fence

    @property
    def serves(self) -> bool:
        return self.is_up and not self.is_fenced and self.cluster.membership.is_confirmed

    async def start(self) -> None:
        """A node that cannot start ends; another is started then."""
        try:
            await self.cluster.start()
            await self.host.start()
        except HubError:
            await self.kill()
            await asyncio.sleep(0.2)

    def _fence(self) -> None:
        if not self.is_fenced:
            self.is_fenced = True
            self.world.loop.call_soon(lambda: asyncio.ensure_future(self.kill()))

    async def kill(self) -> None:
        """kill -9: nothing is said to anybody."""
        if not self.is_up:
            return
        self.is_up = False
        self.world.store.unconnected.add(self.id)
        self.world.buses.pop(self.id, None)
        self.pool.listener = None
        cluster = self.cluster
        membership, links = cluster.membership._tasks, cluster.links._tasks
        for part in (membership, links, cluster._sweeper._tasks, cluster._machines._tasks):
            part.stop()
        cluster._serving.stop()
        for client in cluster.sessions.clients:
            client.is_closed = True
            if client._looking is not None:
                client._looking.cancel()
        await self.host.stop()

    async def drain(self) -> None:
        """SIGTERM."""
        if not self.is_up or self.is_fenced:
            return
        await self.cluster.drain()
        self.cluster.say_goodbye("the hub is going away")
        self.host.say_goodbye("the hub is going away")
        await self.host.freeze_all()
        if self.is_up:
            with contextlib.suppress(Unavailable):  # the others notice it
                await self.world.node_store.declare_dead(self.id, 0)
        await self.kill()


@dataclass(eq=False)
class Client:
    """Sends its events one after the other, through requests and sockets of whichever node, and
    watches what it is told.
    """

    world: ClusterWorld
    session_id: str
    name: str
    sent: int = 0
    acks: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    seq: int = 0
    subscription: Subscription | None = None
    at: SimNode | None = None
    settled: dict[str, asyncio.Future[Settled]] = field(default_factory=dict)

    @property
    def address(self) -> Address:
        return Address(MACHINE, SessionId(self.session_id))

    def visitor(self) -> Visitor:
        return Visitor(Principal(Standing.LOCAL), f"a key that is long enough {self.name}")

    def receive(self, message: Message) -> None:
        if isinstance(message, Snapshot | Update):
            assert message.seq >= self.seq, "a client was taken back in time"
            self.seq = message.seq
            self.world.check_told(self.session_id, message.seq, json.loads(message.state))
        elif isinstance(message, Settled):
            assert message.event_id is not None
            waiting = self.settled.pop(message.event_id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        elif isinstance(message, Closed):
            self.leave()

    def leave(self) -> None:
        if self.subscription is not None and self.at is not None and self.at.is_up:
            self.subscription.close()
        self.subscription = self.at = None
        for waiting in self.settled.values():
            waiting.cancel()
        self.settled.clear()

    async def run(self, events: int) -> None:
        chance = self.world.chance
        for _ in range(events):
            await asyncio.sleep(chance.choice([0.0, 0.01, 0.3, 2.0]) * chance.random())
            self.sent += 1
            event_id = f"{self.name}-{self.sent}"
            event: dict[str, Any] = {"type": "ADD", "token": event_id}
            lot = chance.random()
            if lot < 0.2:
                event["after"] = chance.choice([0, 50, 3000, 20_000])
            elif lot < 0.25:
                event["cancel"] = True
            elif lot < 0.3:
                event["type"] = "FAIL"
            await self._send(event_id, json.dumps(event).encode())
            if self.acks and chance.random() < 0.1:
                again = chance.choice(list(self.acks))
                await self._send(again, json.dumps({"type": "ADD", "token": again}).encode())
            if chance.random() < 0.15:
                self.leave()

    async def _send(self, event_id: str, event: bytes) -> None:
        chance = self.world.chance
        for _ in range(500):
            node = self.world.some_node()
            try:
                async with asyncio.timeout(12):
                    settled = await self._once(node, event_id, event)
            except (HubError, TimeoutError, asyncio.CancelledError, LinkLost) as error:
                if isinstance(error, LinkLost):
                    raise
                await asyncio.sleep(0.05 + chance.random() / 3)
                continue
            code = settled.error.code if settled.error else None
            if code == "unavailable":
                await asyncio.sleep(0.05 + chance.random() / 3)
                continue
            first = self.acks.setdefault(event_id, (settled.seq, code))
            assert first == (settled.seq, code), (
                f"{event_id} was answered {first}, then {(settled.seq, code)}"
            )
            self.world.check_durable(self.session_id, event_id, settled)
            return
        raise AssertionError(f"{event_id} was never taken in")

    async def _once(self, node: SimNode | None, event_id: str, event: bytes) -> Settled:
        if self.subscription is not None and (self.at is None or not self.at.serves):
            self.leave()
        if self.subscription is None:
            if node is None:
                raise TimeoutError
            sessions = node.cluster.sessions
            if self.world.chance.random() < 0.4:
                answered = await sessions.send(
                    self.address, event, self.visitor(), event_id=EventId(event_id)
                )
                return answered.settled
            self.seq = 0
            subscription = await sessions.subscribe(self.address, self, self.visitor())
            if not node.is_up:
                raise TimeoutError
            self.subscription, self.at = subscription, node
        waiting: asyncio.Future[Settled] = asyncio.get_running_loop().create_future()
        self.settled[event_id] = waiting
        self.subscription.send(event, EventId(event_id))
        return await waiting


class _Exceptions(logging.Handler):
    def __init__(self, world: ClusterWorld) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self._world.problem(record.exc_info[1])


class ClusterWorld:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.loop = VirtualLoop()
        self.clock = SimClock(self.loop)
        self.store = SharedDatabase(self.loop, self.chance)
        self.node_store = SimNodeStore(self.store)
        self.buses: dict[NodeId, SimBus] = {}
        self.nodes: list[SimNode] = []
        self.clients: list[Client] = []
        self.problems: list[BaseException] = []
        self.trouble = True
        self.started = self.kills = self.zombies = 0

    # --- invariants

    def check_told(self, session_id: str, seq: int, snapshot: Any) -> None:
        entries = [entry for entry in journal_of(self.store, session_id) if entry.seq <= seq]
        assert entries, "somebody saw a session that is not in the database"
        assert entries[-1].seq == seq, f"somebody saw input {seq}, which is not in the database"
        assert snapshot == json.loads(fold(entries).snapshot()), (
            f"what was told at {seq} is not what the journal comes to"
        )

    def check_durable(self, session_id: str, event_id: str, settled: Settled) -> None:
        entries = journal_of(self.store, session_id)
        found = [(entry.seq, entry.error) for entry in entries if entry.event_id == event_id]
        assert found == [(settled.seq, settled.error)], f"{event_id}: {found}, not {settled}"

    def check_end(self) -> None:
        for session_id in {client.session_id for client in self.clients}:
            entries = journal_of(self.store, session_id)
            if not entries:
                continue
            state = fold(entries)
            assert len(set(state.tokens)) == len(state.tokens), "something was applied twice"
            for client in self.clients:
                if client.session_id == session_id:
                    order = [seq for seq, _ in client.acks.values()]
                    assert order == sorted(order), "a client's events changed places"
                    for event_id, (seq, code) in client.acks.items():
                        assert (event_id in state.tokens) == (code is None), (
                            f"{event_id} at {seq}: {code}"
                        )
            record = self.store._named(MACHINE, session_id)
            assert record is not None
            pending = {} if state.finished else state.timers
            late = [due for due in pending.values() if due < self.clock.now_ms() - 1000]
            assert not late, f"timers that never fired: {late}"
            refused = any(entry.kind == "presence" and entry.error for entry in entries)
            assert refused or not state.here, f"the machine believes {state.here} to be there"
            having = [node for node in self.nodes if node.is_up and self._has(node, session_id)]
            assert len(having) <= 1, "two nodes have it"
            owner = self.store.owners.get(record.key)
            assert not having or owner == having[0].id

    def _has(self, node: SimNode, session_id: str) -> bool:
        return node.host.registry.find(MachineId(MACHINE), SessionId(session_id)) is not None

    # --- the run

    def some_node(self) -> SimNode | None:
        serving = [node for node in self.nodes if node.serves]
        return self.chance.choice(serving) if serving else None

    async def add_node(self) -> None:
        self.started += 1
        node = SimNode(self, self.started)
        self.nodes = [each for each in self.nodes if each.is_up]
        self.nodes.append(node)
        await node.start()

    async def troubles(self) -> None:
        chance = self.chance
        zombie_in = chance.randint(1, 4)
        while True:
            await asyncio.sleep(chance.random() * 2)
            living = [node for node in self.nodes if node.is_up]
            node = chance.choice(living) if living else None
            zombie_in -= 1
            lot = chance.random()
            if node is None:
                pass
            elif zombie_in == 0:
                self.zombies += 1
                node.cluster.membership._tasks.stop()
            elif lot < 0.2:
                self.kills += 1
                await node.kill()
            elif lot < 0.3:
                draining = asyncio.ensure_future(node.drain())
                draining.add_done_callback(self._notice)
            elif lot < 0.45:
                node.bus.away_until_s = self.loop.now_s + chance.choice([0.3, 2, 5])
            elif lot < 0.55:
                self.store.away_until_s = self.loop.now_s + chance.choice([0.3, 2, 6])
            elif lot < 0.65 and node.pool.workers:
                chance.choice(node.pool.workers).die()
            elif lot < 0.8:
                node.host.housekeeper.hibernate()
            else:
                node.host.housekeeper.sweep()
            while len([each for each in self.nodes if each.is_up]) < NODES:
                await self.add_node()

    async def run(self) -> None:
        self.stopped = asyncio.Event()
        while len(self.nodes) < NODES:
            await self.add_node()
            self.nodes = [node for node in self.nodes if node.is_up]
        names = [f"s{number}" for number in range(self.chance.randint(1, 3))]
        self.clients = [
            Client(self, self.chance.choice(names), f"c{number}")
            for number in range(self.chance.randint(2, 5))
        ]
        troubling = asyncio.ensure_future(self.troubles())
        troubling.add_done_callback(self._notice)
        running = [
            asyncio.ensure_future(client.run(self.chance.randint(8, 30))) for client in self.clients
        ]
        async with asyncio.timeout(900):
            finished = asyncio.ensure_future(asyncio.wait(running))
            stopped = asyncio.ensure_future(self.stopped.wait())
            await asyncio.wait([stopped, finished], return_when=asyncio.FIRST_COMPLETED)
        if self.problems:
            return
        troubling.cancel()
        for task in running:
            task.result()
        self.trouble = self.store.trouble = False
        self.store.away_until_s = 0.0
        for node in self.nodes:
            node.pool.trouble = False
            node.bus.away_until_s = 0.0
        for client in self.clients:
            client.leave()
        await asyncio.sleep(40)
        while not any(node.serves for node in self.nodes):
            await self.add_node()
        await asyncio.sleep(60)
        self.check_end()
        for node in self.nodes:
            await node.kill()

    def _notice(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (problem := task.exception()):
            self.problem(problem)

    def problem(self, problem: BaseException) -> None:
        problem.add_note(f"at {self.loop.now_s:.3f}")
        self.problems.append(problem)
        self.stopped.set()

    def play(self) -> None:
        """Raises `AssertionError` for whatever must not be."""
        handler = _Exceptions(self)
        logging.getLogger("machinehub").addHandler(handler)
        try:
            self._play()
        finally:
            logging.getLogger("machinehub").removeHandler(handler)

    def _play(self) -> None:
        def on_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            self.problem(context.get("exception") or AssertionError(context["message"]))

        self.loop.set_exception_handler(on_exception)
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self.run())
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.run_until_complete(asyncio.sleep(0))
            self.loop.close()
            asyncio.set_event_loop(None)
        if self.problems:
            raise self.problems[0]
