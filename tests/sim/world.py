"""One simulated run: clients with counted events, a hub that is killed and started again, trouble
everywhere, invariants throughout.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from machinehub.clock import Entropy
from machinehub.errors import HubError
from machinehub.ids import Digest, EventId, MachineId, Seq, SessionId
from machinehub.limits import Limits
from machinehub.logs import MachineLogs
from machinehub.metrics import Metrics
from machinehub.principal import Principal, Standing
from machinehub.session.decide.turn import Receipt
from machinehub.session.messages import Closed, Message, Snapshot, Update
from machinehub.session.port import Address, Visitor
from machinehub.session.run.local import LocalSessions
from machinehub.session.run.publisher import snapshot_of
from machinehub.session.versions import Terms
from tests.sim.database import SimStore, journal_of
from tests.sim.loop import VirtualLoop
from tests.sim.outside import SimOutside, make_broker
from tests.sim.parts import SimClock, SimPool, State, fold

if TYPE_CHECKING:
    from machinehub.effects.asked import Asked
    from machinehub.effects.broker import Broker
    from machinehub.session.decide.session import Session
    from machinehub.session.run.worker_interfaces import SandboxWorkers
    from machinehub.store.sessions import SessionStore

MACHINE = MachineId("m")
DIGEST = Digest("d")
LIMITS = Limits(ids_remembered=6, live_sessions=2)
SETTLES_S = 120
"""In which everything that is tried again has been: the longest pause between tries is 38 s."""
TERMS = Terms(LIMITS, has_view=False)


@dataclass(frozen=True)
class Version:
    number: int = 1
    digest: Digest = DIGEST
    hears_presence: bool = True
    terms: Terms = TERMS


class Versions:
    """The one version of the one machine."""

    async def target(self, machine_id: str, number: int | None) -> Version:
        return Version()

    async def terms_of(self, machine_id: str, number: int) -> Terms:
        return TERMS


def address(session_id: str) -> Address:
    return Address(MACHINE, SessionId(session_id))


@dataclass(eq=False)
class Watcher:
    """A listener: what it is told must be in the database, and must be what the journal comes
    to.
    """

    world: World
    session_id: str
    host: LocalSessions
    member: str = ""
    seq: int = 0
    session: Session | None = None

    def receive(self, message: Message) -> None:
        if isinstance(message, Snapshot | Update):
            assert message.seq >= self.seq, "a client was taken back in time"
            self.seq = message.seq
            self.world.check_told(self.session_id, message.seq, json.loads(message.state))
        elif isinstance(message, Closed):
            self.leave()

    def leave(self) -> None:
        if self.session is not None and self.world.host is self.host:
            self.host.crowds.detach(self.session, self)
        self.session = None


@dataclass
class Client:
    """Sends its events one after the other, each until it is settled, and some of them again
    later.
    """

    world: World
    session_id: str
    name: str
    sent: int = 0
    acks: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    abandoned: set[str] = field(default_factory=set)

    async def run(self, events: int) -> None:
        chance = self.world.chance
        for _ in range(events):
            await asyncio.sleep(chance.choice([0.0, 0.01, 0.3, 2.0]) * chance.random())
            if chance.random() < 0.3:
                self.world.come_and_go(self.session_id)
            self.sent += 1
            event_id = f"{self.name}-{self.sent}"
            event: dict[str, Any] = {"type": "ADD", "token": event_id}
            lot = chance.random()
            if lot < 0.2:
                event["after"] = chance.choice([0, 50, 50, 3000, 20_000])
            elif lot < 0.28:
                event["cancel"] = True
            elif lot < 0.48:
                event["ask"] = True
            elif lot < 0.51:
                event["withdraw"] = True
            elif lot < 0.56:
                event["type"] = chance.choice(["FAIL", "LOOP"])
            elif lot < 0.57:
                event["type"] = "POISON"
            elif lot < 0.575:
                event["type"] = "END"
            await self._send(event_id, event, tries=1 if chance.random() < 0.1 else 200)
            if self.acks and chance.random() < 0.2:
                again = chance.choice(list(self.acks))
                await self._send(again, {"type": "ADD", "token": again}, tries=200)

    async def _send(self, event_id: str, event: dict[str, Any], *, tries: int) -> None:
        for _ in range(tries):
            try:
                async with asyncio.timeout(8):
                    receipt = await self._once(event_id, json.dumps(event).encode())
            except (HubError, TimeoutError, asyncio.CancelledError):
                await asyncio.sleep(0.05 + self.world.chance.random())
                continue
            code = receipt.error.code if receipt.error else None
            if code == "unavailable":
                await asyncio.sleep(0.05 + self.world.chance.random())
                continue
            if code == "session_finished":
                assert event_id not in self.acks, (
                    f"{event_id} was acknowledged before, and is refused now"
                )
                return
            self._acknowledged(event_id, receipt.seq, code)
            return
        self.abandoned.add(event_id)

    async def _once(self, event_id: str, event: bytes) -> Receipt:
        host = self.world.host
        if host is None:
            raise TimeoutError
        session = await host.loader.open(address(self.session_id))
        answered: asyncio.Future[Receipt] = asyncio.get_running_loop().create_future()

        def settle(receipt: Receipt) -> None:
            if not answered.done():
                answered.set_result(
                    Receipt(receipt.seq, receipt.changed, error=receipt.error, settled=True)
                )
                if receipt.error is None or receipt.error.code not in (
                    "unavailable",
                    "session_finished",
                ):
                    self.world.check_durable(self.session_id, event_id, receipt)

        host.intake.send(session, event, b'{"id":"c"}', event_id=EventId(event_id), then=settle)
        return await answered

    def _acknowledged(self, event_id: str, seq: int, code: str | None) -> None:
        self.world.acknowledged[self.session_id] = max(
            seq, self.world.acknowledged.get(self.session_id, 0)
        )
        first = self.acks.setdefault(event_id, (seq, code))
        assert first == (seq, code), f"{event_id} was answered {first}, then {(seq, code)}"


class _Exceptions(logging.Handler):
    """An exception that the hub logged and survived is a problem too."""

    def __init__(self, world: World) -> None:
        super().__init__(logging.ERROR)
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info and record.exc_info[1]:
            self._world.problem(record.exc_info[1])


class World:
    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.loop = VirtualLoop()
        self.clock = SimClock(self.loop)
        self.store = SimStore(self.loop, self.chance)
        self.host: LocalSessions | None = None
        self.pool: SimPool | None = None
        self.clients: list[Client] = []
        self.problems: list[BaseException] = []
        self.kills = 0
        self.acknowledged: dict[str, int] = {}
        self.names: list[str] = []
        self.forks = 0
        self.watchers: list[Watcher] = []
        self.outside = SimOutside(self.chance, self.is_committed)
        self.broker: Broker | None = None

    # --- invariants

    def is_committed(self, asked: Asked) -> bool:
        row = self.store.effects.rows.get((asked.key, asked.effect.id))
        return row is not None and row.effect == asked.effect

    def check_told(self, session_id: str, seq: int, snapshot: Any) -> None:
        entries = [entry for entry in journal_of(self.store, session_id) if entry.seq <= seq]
        assert entries, "somebody saw a session that is not in the database"
        assert entries[-1].seq == seq, f"somebody saw input {seq}, which is not in the database"
        assert snapshot == json.loads(fold(entries).snapshot()), (
            f"what was told at {seq} is not what the journal comes to"
        )

    def check_durable(self, session_id: str, event_id: str, receipt: Receipt) -> None:
        entry = next(
            (entry for entry in journal_of(self.store, session_id) if entry.event_id == event_id),
            None,
        )
        assert entry is not None, f"{event_id} was answered and is not in the database"
        assert (entry.seq, entry.error) == (receipt.seq, receipt.error), (
            f"{event_id}: {entry} is not what was answered, {receipt}"
        )

    def check_end(self) -> None:
        """When all is quiet: every event is there once or, if nobody insisted, not at all; no timer
        is late; memory is what the journal says.
        """
        assert self.host is not None
        for session_id in {client.session_id for client in self.clients}:
            entries = journal_of(self.store, session_id)
            if not entries:
                continue
            state = fold(entries)
            assert len(set(state.tokens)) == len(state.tokens), "something was applied twice"
            for client in self.clients:
                if client.session_id == session_id:
                    for event_id, (seq, code) in client.acks.items():
                        assert (event_id in state.tokens) == (code is None), (
                            f"{event_id} at {seq}: {code}"
                        )
            record = self.store._named("m", session_id)
            assert record is not None
            pending = {} if state.finished else state.timers
            kept = {
                timer: armed.due_at_ms
                for (key, timer), armed in self.store.timers.items()
                if key == record.key
            }
            assert kept == pending
            self.check_requests(record.key, state)
            late = [due for due in pending.values() if due < self.clock.now_ms() - 1000]
            assert not late, f"timers that never fired: {late}"
            assert (record.finished_at_ms is not None) == state.finished
            session = self.find(session_id)
            if not state.finished and session_id in self.names:
                present = {
                    watcher.member
                    for watcher in self.watchers
                    if watcher.session is not None and watcher.session_id == session_id
                }
                refused = any(
                    entry.kind == "presence" and entry.error for entry in entries
                )  # the worker died of it, thrice
                assert refused or set(state.here) == present, (
                    f"the machine believes {state.here} to be there, and there are {present}"
                )
            if session is not None and session.started and session.phase.readable:
                assert json.loads(session.snapshot) == json.loads(state.snapshot())
                assert not session.waiting, f"something still waits: {session.pending}"

    def check_requests(self, key: int, state: State) -> None:
        """Nobody waits for ever, and what was answered had been asked for."""
        rows = [row for (owner, _), row in self.store.effects.rows.items() if owner == key]
        waiting = [row.effect.id for row in rows if row.ended_at_ms is None]
        held = [row.effect.id for row in rows if row.is_held]
        assert sorted(waiting) == ([] if state.finished else sorted(state.asked))
        assert waiting == held, f"requests that nobody answers: {waiting}"
        for row in rows:
            name = f"mh-{key:x}-{row.effect.seq}-{row.effect.ordinal}"
            if row.conclusion is not None and row.conclusion.outcome == "answered":
                forked_at = self.store.records[key].forked_at or 0
                is_inherited = row.ended_seq is not None and row.ended_seq <= forked_at
                assert is_inherited or name in self.outside.keys

    # --- the run

    async def boot(self) -> None:
        self.pool = SimPool(self.loop, self.chance)
        self.pool.trouble = self.store.trouble
        while True:
            host = LocalSessions(
                cast("SandboxWorkers", self.pool),
                self.pool,
                Versions(),
                cast("SessionStore", self.store),
                self.clock,
                Entropy(self.chance.getrandbits(32)),
                LIMITS,
                logs=MachineLogs(kept=5),
                metrics=Metrics(),
            )
            self.pool.listener = host
            try:
                await host.start()
                break
            except HubError:
                await host.stop()
                await asyncio.sleep(0.2)
        entropy = Entropy(self.chance.getrandbits(32))
        self.broker = make_broker(self.store.effects, host, self.outside, self.clock, entropy)
        host.requests.to = self.broker
        self.broker.start()
        self.host = host

    async def kill(self) -> None:
        """kill -9: nothing is said to anybody."""
        host, self.host = self.host, None
        if host is None or self.pool is None:
            return
        self.kills += 1
        self.watchers.clear()
        self.pool.listener = None
        if self.broker is not None:
            self.broker.stop()
        await host.stop()

    async def trouble(self) -> None:
        while True:
            await asyncio.sleep(self.chance.random() * 8)
            lot = self.chance.random()
            if lot < 0.2:
                await self.kill()
                await asyncio.sleep(self.chance.random() * 2)
                await self.boot()
            elif lot < 0.35 and self.pool is not None and self.pool.workers:
                self.chance.choice(self.pool.workers).die()
            elif lot < 0.45:
                self.store.away_until_s = self.loop.now_s + self.chance.choice([0.3, 2, 9])
            elif lot < 0.57 and self.host is not None:
                self.host.housekeeper.hibernate()
            elif lot < 0.6:
                self.store.damage(self.chance.choice([*self.store.records, 0]))
            elif lot < 0.66 and self.host is not None:
                forking = asyncio.ensure_future(self.fork(self.host))
                forking.add_done_callback(self._notice)
            elif self.host is not None:
                self.come_and_go(self.chance.choice(self.clients).session_id)

    def come_and_go(self, session_id: str) -> None:
        session = self.find(session_id)
        if self.host is not None and session is not None and session.phase.readable:
            self.watch(self.host, session, session_id)
        for watcher in [watcher for watcher in self.watchers if self.chance.random() < 0.4]:
            self.watchers.remove(watcher)
            watcher.leave()

    def find(self, session_id: str) -> Session | None:
        if self.host is None:
            return None
        return self.host.registry.find(MACHINE, SessionId(session_id))

    def watch(self, host: LocalSessions, session: Session, session_id: str) -> None:
        key = None
        if self.chance.random() < 0.7:
            key = f"a key that is long enough {self.chance.randint(1, 3)}"
        visitor = Visitor(Principal(Standing.LOCAL), key)
        who = host.crowds.identify(session.machine_id, session.session_id, visitor)
        watcher = Watcher(self, session_id, host, who.member, session=session)
        self.watchers.append(watcher)
        host.crowds.attach(session, watcher, who, snapshot_of(session))

    async def fork(self, host: LocalSessions) -> None:
        """A fork, under a name that others may be about to use, has its parent's past to the
        letter.
        """
        parent, child = (
            self.chance.choice(self.clients).session_id,
            self.chance.choice(["f1", "f2", *self.names]),
        )
        try:
            async with asyncio.timeout(20):
                record = await self.store.record(MACHINE, SessionId(parent))
                last = max(self.store.journals[record.key])[0]
                at = Seq(self.chance.randint(1, last))
                sends = self.chance.random() < 0.5
                await host.fork(address(parent), at, SessionId(child), sends=sends)
                made = await self.store.record(MACHINE, SessionId(child))
        except (HubError, TimeoutError):
            return
        self.forks += 1
        assert made.forked_at is not None
        inherited = [
            entry for entry in journal_of(self.store, child) if entry.seq <= made.forked_at
        ]
        wanted = [entry for entry in journal_of(self.store, parent) if entry.seq <= made.forked_at]
        assert fold(inherited) == fold(wanted)
        saved = self.store.saved[made.key][made.forked_at]
        assert SimStore.is_damaged(saved) or State.thaw(saved.data).tokens == fold(wanted).tokens
        assert set(saved.timers) == (set() if saved.finished else set(fold(wanted).timers)), (
            "a fork has other timers than its parent had"
        )

    async def read(self) -> None:
        """Somebody who looks now and then: what was acknowledged is there to be seen."""
        while True:
            await asyncio.sleep(self.chance.random() * 3)
            session_id = self.chance.choice(self.clients).session_id
            known = self.acknowledged.get(session_id, 0)
            try:
                async with asyncio.timeout(8):
                    if self.host is None or not known:
                        continue
                    session = await self.host.loader.open_existing(MACHINE, SessionId(session_id))
            except (HubError, TimeoutError) as error:
                assert not isinstance(error, HubError) or error.code == "unavailable", (
                    f"{session_id} is not there: {error}"
                )
                continue
            assert session.seq >= known, (
                f"input {known} was acknowledged; what is there to be read is {session.seq}"
            )
            self.check_told(session_id, session.seq, json.loads(session.snapshot))

    async def run(self) -> None:
        self.stopped = asyncio.Event()
        await self.boot()
        self.names = [f"s{number}" for number in range(self.chance.randint(1, 3))]
        self.clients = [
            Client(self, self.chance.choice(self.names), f"c{number}")
            for number in range(self.chance.randint(1, 4))
        ]
        troubling = asyncio.ensure_future(self.trouble())
        reading = asyncio.ensure_future(self.read())
        reading.add_done_callback(self._notice)
        running = [
            asyncio.ensure_future(client.run(self.chance.randint(3, 14))) for client in self.clients
        ]
        async with asyncio.timeout(600):
            finished = asyncio.ensure_future(asyncio.wait(running))
            await asyncio.wait(
                [asyncio.ensure_future(self.stopped.wait()), finished],
                return_when=asyncio.FIRST_COMPLETED,
            )
        if self.problems:
            return
        troubling.cancel()
        reading.cancel()
        await asyncio.gather(troubling, reading, return_exceptions=True)
        for task in running:
            task.result()
        self.store.trouble = self.outside.trouble = False
        self.store.away_until_s = 0.0
        if self.chance.random() < 0.3:  # with nobody there who would ask again
            self.store.away_until_s = self.loop.now_s + 9
            await asyncio.sleep(10)
        if self.pool is not None:
            self.pool.trouble = False
        if self.host is None:
            await self.boot()
        await asyncio.sleep(SETTLES_S)
        self.check_end()
        await self.kill()
        await self.boot()  # and once more from what is stored
        await asyncio.sleep(SETTLES_S)
        assert self.host is not None
        for client in self.clients:
            try:
                await self.host.loader.open_existing(MACHINE, SessionId(client.session_id))
            except HubError as error:
                assert error.code == "no_such_session"
        self.check_end()
        await self.kill()

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
