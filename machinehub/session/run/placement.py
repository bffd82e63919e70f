"""Where sessions live: which worker has one, what is sent to it, when it is thawed and put to
sleep.

Decides: how a session moves when its worker dies, and in which order workers get inputs. Does not
know: the database, or who listens. What it knows of a session is its `Place`, which moves as
`decide/lifecycle.py` says; what comes back from workers goes to `TurnOutcomes`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakValueDictionary

from machinehub.clock import measured_s
from machinehub.errors import HubError, fault_of
from machinehub.model import Fault, Kind
from machinehub.session.decide.answers import BrokenWorker
from machinehub.session.decide.flow import CostEstimate, HeavyLane, SendWindow
from machinehub.session.decide.lifecycle import MOVES, Move, Phase, Stage
from machinehub.tasks import Tasks
from sandbox.protocol.ids import Slot, Ticket
from sandbox.protocol.messages import (
    Checkpoint,
    Close,
    Done,
    Failed,
    Frozen,
    Open,
    Replay,
    Replayed,
    Said,
    Step,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from machinehub.clock import Clock
    from machinehub.ids import Digest
    from machinehub.limits import Limits
    from machinehub.model import Image, SavedCheckpoint
    from machinehub.session.decide.session import Session
    from machinehub.session.decide.turn import Turn
    from machinehub.session.run.worker_interfaces import Images, SandboxWorker, SandboxWorkers
    from sandbox.protocol.messages import ToHub

OPEN_TICKET: Final = Ticket(0)
"""The ticket of `Open` and of the `Replay` after it, which the worker answers before any input."""
FREEZE_TICKET: Final = Ticket(-1)
"""The ticket of `Checkpoint`. The tickets of inputs count from 1, so neither can collide."""

NEW_BYTES: Final = 4 * 1024 * 1024
"""What a session's memory is taken for before its first turn."""
FULL: Final = 0.8
"""The share of a worker's memory at which sessions that rest are frozen."""
WORKER_OWN_BYTES: Final = 128 * 1024 * 1024
"""What a worker needs beside the memories of sessions: its own code, and room to freeze one."""
ROOM_TRIES: Final = 30
ROOM_WAIT_S: Final = 0.1
"""How often a session is placed again for which its worker had no room, and how soon."""


def room_of(limits: Limits) -> int:
    """Memory that a worker has for those of sessions."""
    return max(limits.worker_bytes - WORKER_OWN_BYTES, limits.worker_bytes // 2)


class TurnOutcomes(Protocol):
    """Who hears what workers answered."""

    async def load(self, session: Session) -> None:
        """Loads what the database knows of a session that is not loaded. Raises `HubError`."""

    def decided(self, session: Session, turn: Turn) -> None: ...
    def frozen(self, session: Session, checkpoint: SavedCheckpoint) -> None: ...
    def replayed(self, session: Session, snapshot: bytes) -> None:
        """Raises `BrokenWorker`."""

    def lost(self, session: Session, fault: Fault) -> None:
        """It cannot be thawed."""

    def not_a_session(self, worker: SandboxWorker, message: Done | Failed | Replayed) -> None:
        """An answer about a slot that no session has: of a replay, or of one that has left."""


@dataclass(slots=True, eq=False)
class Place:
    """Where one session is."""

    session: Session
    slot: Slot
    stage: Stage = Stage.OFF
    worker: SandboxWorker | None = None
    """None unless the stage is ON or FREEZING."""
    window: SendWindow = field(default_factory=SendWindow)
    memory_bytes: int = NEW_BYTES
    """The session's memory after its last turn."""
    tries: int = 0
    """How often it found no room on a worker, one time after the other."""

    def move(self, move: Move) -> None:
        following = MOVES[self.stage].get(move)
        assert following is not None, f"{move} of a session whose stage is {self.stage.value}"
        self.stage = following


class Placement:
    """Places sessions on workers: opens and freezes them there, sends their inputs as
    `decide/flow.py` allows, and reports what the workers answer to `TurnOutcomes`.
    """

    def __init__(self, pool: SandboxWorkers, images: Images, clock: Clock, limits: Limits) -> None:
        self._pool = pool
        self._images = images
        self._clock = clock
        self._limits = limits
        self._slots = 0
        self._placing = 0
        self._places: dict[Session, Place] = {}
        self._by_slot: dict[Slot, Place] = {}
        self._lanes: dict[SandboxWorker, HeavyLane[Slot]] = {}
        self._mapped: Counter[SandboxWorker] = Counter()
        """Memory of the sessions on each worker."""
        self._estimates: WeakValueDictionary[Digest, CostEstimate] = WeakValueDictionary()
        """By image, as long as sessions of it are on workers."""
        self._tasks = Tasks()
        self._outcomes: TurnOutcomes
        self._make_room: Callable[[SandboxWorker], None] = lambda _worker: None

    def report_to(self, outcomes: TurnOutcomes) -> None:
        """Once, before anything is placed."""
        self._outcomes = outcomes

    def stop(self) -> None:
        self._tasks.stop()

    def make_room_by(self, make_room: Callable[[SandboxWorker], None]) -> None:
        """What to call when a session found no room on a worker, before it is tried again."""
        self._make_room = make_room

    # --- who is where -----------------------------------------------------------------------------

    @property
    def live(self) -> list[Session]:
        """The sessions that are on a worker."""
        return [place.session for place in self._by_slot.values()]

    @property
    def places_on_workers(self) -> Collection[Place]:
        return self._by_slot.values()

    @property
    def live_count(self) -> int:
        """Sessions that are on a worker, or about to be."""
        return len(self._by_slot) + self._placing

    def stage(self, session: Session) -> Stage:
        place = self._places.get(session)
        return Stage.OFF if place is None else place.stage

    def is_on_worker(self, session: Session) -> bool:
        place = self._places.get(session)
        return place is not None and place.worker is not None

    def in_flight(self, session: Session) -> int:
        """How many of its inputs a worker has."""
        place = self._places.get(session)
        return 0 if place is None else place.window.in_flight

    def drop(self, session: Session) -> None:
        """The session leaves memory."""
        self.leave(session)
        self._places.pop(session, None)

    def new_slot(self) -> Slot:
        self._slots += 1
        return Slot(self._slots)

    def place_of(self, session: Session) -> Place:
        """Where the session is; it gets a slot the first time that this is asked."""
        place = self._places.get(session)
        if place is None:
            place = self._places[session] = Place(session, self.new_slot())
        return place

    # --- inputs -----------------------------------------------------------------------------------

    def offered(self, session: Session) -> None:
        """Something was added to the session's queue."""
        place = self._places.get(session)
        if session.phase.loaded and session.ended:
            self._refuse_late(session)
        elif place is not None and place.worker is not None:
            self._send_steps(place)
        else:
            self.place(session)

    def _refuse_late(self, session: Session) -> None:
        for late in session.refuse_late():
            self._outcomes.decided(session, late)

    def _send_steps(self, place: Place) -> None:
        """Hands over what fits into the session's window."""
        worker, session, window = place.worker, place.session, place.window
        pending = session.pending
        if worker is None or not window.may_send(len(pending)):
            return
        is_heavy = window.estimate.is_heavy(start=pending[0].kind is Kind.START)
        if is_heavy and not self._lanes.setdefault(worker, HeavyLane()).enter(place.slot):
            return
        while (index := window.next(len(pending))) is not None:
            each = pending[index]
            is_start = each.kind is Kind.START
            cpu_ms = self._limits.start_cpu_ms if is_start else self._limits.event_cpu_ms
            each.sent_s = measured_s()
            worker.ask(place.slot, Step(place.slot, each.ticket, each.input, each.now_ms, cpu_ms))

    def _settled(self, place: Place, turn: Turn, *, overran: bool) -> None:
        """The session's oldest input came back: another may follow."""
        place.tries = 0
        if turn.cost is not None:
            if turn.cost.memory_bytes > place.memory_bytes and place.worker is not None:
                self._fill(place.worker, turn.cost.memory_bytes - place.memory_bytes)
                place.memory_bytes = turn.cost.memory_bytes
            estimate = place.window.estimate
            took = estimate.start_took if turn.pending.kind is Kind.START else estimate.took
            took(turn.cost.cpu_us)
        pause_s = place.window.settled(overran=overran)
        self._make_way(place)
        if pause_s:
            asyncio.get_running_loop().call_later(pause_s, self._resume, place)
        else:
            self._send_steps(place)

    def _make_way(self, place: Place) -> None:
        """Releases the worker's `HeavyLane` for this session, and sends the heavy input of the next
        session in its queue that has one to send.
        """
        lane = self._lanes.get(place.worker) if place.worker is not None else None
        following = lane.leave(place.slot) if lane is not None else None
        while lane is not None and following is not None:
            other = self._by_slot.get(following)
            if other is not None and other.window.may_send(len(other.session.pending)):
                self._send_steps(other)
                return
            following = lane.leave(
                following
            )  # it comes back by itself when it has something to send

    def _resume(self, place: Place) -> None:
        place.window.resume()
        self._send_steps(place)

    # --- coming and going -------------------------------------------------------------------------

    def place(self, session: Session) -> None:
        """Sees to it that the session is on a worker, now or soon; what waits is sent there."""
        if session.gone:
            return
        place = self.place_of(session)
        if place.stage is not Stage.OFF:
            return
        image = self._images.at_hand(session.record.digest) if session.phase.loaded else None
        worker = None
        if image is not None:
            worker = self._pool.choose(modules=image.is_module, machine=session.machine_id)
        if image is not None and worker is not None:
            self._thaw(place, image, worker)
        else:
            place.move(Move.SEEK)
            self._placing += 1
            self._tasks.spawn(self._place_soon(place))

    async def _place_soon(self, place: Place) -> None:
        session = place.session
        try:
            while True:
                if not session.phase.loaded:
                    await self._outcomes.load(session)
                image = await self._images.image(session.record.digest)
                worker = await self._pool.wait_for_worker(
                    modules=image.is_module, machine=session.machine_id
                )
                if session.phase.loaded or session.gone or not session.pending:
                    break  # else it was rewound meanwhile
        except HubError as error:
            self._placing -= 1
            place.move(Move.GIVE_UP)
            self._outcomes.lost(session, fault_of(error))
            return
        self._placing -= 1
        if session.phase.loaded and (session.pending or session.phase is Phase.REPLAYING):
            self._thaw(place, image, worker)
        else:  # deleted or refused meanwhile, or all that waited was settled by the database
            place.move(Move.GIVE_UP)

    def _thaw(self, place: Place, image: Image, worker: SandboxWorker) -> None:
        session = place.session
        place.slot = self.new_slot()
        place.move(Move.THAW)
        self._by_slot[place.slot] = place
        worker.take(session.record.digest, image)
        place.worker = worker
        self._fill(worker, place.memory_bytes)
        opening = self.opening(
            place.slot, session.record.digest, session.checkpoint, session.decided_snapshot
        )
        worker.ask(place.slot, opening)
        if session.tail:
            worker.ask(place.slot, Replay(place.slot, OPEN_TICKET, session.tail, 0))
        place.window.restart()
        place.window.estimate = self._estimate_of(session.record.digest)
        self._send_steps(place)

    def _fill(self, worker: SandboxWorker, more: int) -> None:
        """So much more memory is mapped on a worker: others make way before it is full."""
        self._mapped[worker] += more
        if self._mapped[worker] > FULL * room_of(self._limits):
            self._make_room(worker)

    def _try_again(self, place: Place) -> None:
        """The worker has no room for the session: others make way, and it is placed once more."""
        assert place.worker is not None
        worker = place.worker
        place.tries += 1
        self._leave(place)
        self._make_room(worker)
        asyncio.get_running_loop().call_later(ROOM_WAIT_S, self._place_again, place.session)

    def _place_again(self, session: Session) -> None:
        if session.pending or session.phase is Phase.REPLAYING:
            self.place(session)

    def _estimate_of(self, digest: Digest) -> CostEstimate:
        estimate = self._estimates.get(digest)
        if estimate is None:
            estimate = self._estimates[digest] = CostEstimate()
        return estimate

    def opening(
        self, slot: Slot, digest: Digest, checkpoint: bytes | None, snapshot: bytes = b"null"
    ) -> Open:
        """The message that thaws a session; `snapshot` is that of the moment when it goes on, by
        which it is decided who may send what.
        """
        limits = self._limits
        return Open(
            slot,
            OPEN_TICKET,
            digest,
            limits.memory_bytes,
            limits.snapshot_bytes,
            limits.emitted_bytes,
            checkpoint,
            snapshot,
        )

    def worker_of(self, session: Session) -> SandboxWorker | None:
        """The worker that it is on."""
        place = self._places.get(session)
        return None if place is None else place.worker

    def leave(self, session: Session) -> None:
        """Takes the session off its worker, whatever it is doing there."""
        place = self._places.get(session)
        if place is not None and place.worker is not None:
            self._leave(place)

    def _leave(self, place: Place) -> None:
        self._make_way(place)
        worker, place.worker = place.worker, None
        if worker is not None:
            self._mapped[worker] -= place.memory_bytes
        self._by_slot.pop(place.slot, None)
        place.move(Move.LEAVE)
        if worker is not None and not worker.lost:
            worker.tell(Close(place.slot))
            worker.leave(place.session.record.digest)

    def worker_lost(self, worker: SandboxWorker) -> None:
        """Every session that lived there is thawed elsewhere, from its checkpoint and the inputs
        since.

        The one whose answer was due next is held to blame: a worker does its work in order.
        """
        self._lanes.pop(worker, None)
        self._mapped.pop(worker, None)
        for place in [place for place in self._by_slot.values() if place.worker is worker]:
            place.worker = None
            del self._by_slot[place.slot]
            place.move(Move.LEAVE)
            self._thaw_elsewhere(place, blamed=place.slot == worker.suspect)

    def _thaw_elsewhere(self, place: Place, *, blamed: bool) -> None:
        session = place.session
        turn = session.crashed() if blamed else None
        if turn is not None:
            self._outcomes.decided(session, turn)
        if session.pending or session.phase is Phase.REPLAYING:
            self.place(session)

    # --- sleep ------------------------------------------------------------------------------------

    def freeze(self, session: Session) -> None:
        """Puts a session that has nothing to do to sleep: it leaves its worker once it is
        frozen.
        """
        place = self._places[session]
        assert place.worker is not None
        if session.tail:
            place.move(Move.FREEZE)
            place.worker.ask(place.slot, Checkpoint(place.slot, FREEZE_TICKET))
        else:  # it is as its last checkpoint has it
            self._leave(place)

    # --- what workers answer ----------------------------------------------------------------------

    def worker_answered(self, worker: SandboxWorker, messages: list[ToHub]) -> None:
        """Handles a batch of messages from `worker`, in order. A message that a session worker must
        not send, or that `Session` does not accept, ends the worker.
        """
        for message in messages:
            if isinstance(message, Said):
                continue
            if not isinstance(message, Done | Failed | Frozen | Replayed):
                worker.kill("it said what a session worker never says")
                return
            place = self._by_slot.get(message.session)
            if place is None or place.worker is not worker:
                # Of a replay, or deleted or moved meanwhile: a worker may not speak for what it
                # does not hold.
                if not isinstance(message, Frozen):
                    self._outcomes.not_a_session(worker, message)
                continue
            try:
                self._hear(place, message)
            except BrokenWorker as error:
                worker.kill(str(error), suspect=place.slot)
                return

    def _hear(self, place: Place, message: Done | Failed | Frozen | Replayed) -> None:
        session = place.session
        match message:
            case Done(ticket=0):
                pass
            case Done(ticket=-1):
                self._keep(session, message.result)
                if session.pending:  # something came meanwhile: it stays
                    place.move(Move.KEEP)
                else:
                    self._leave(place)
            case Done():
                turn = session.done(message.ticket, message.result, message.cost)
                if turn.finished and session.pending:  # the worker must not go on with it
                    self._leave(place)
                self._settled(place, turn, overran=False)
                self._outcomes.decided(session, turn)
                if turn.finished:
                    self._refuse_late(session)
            case Failed():
                self._hear_failure(place, message)
            case Frozen():
                self._keep(session, message.checkpoint)
            case Replayed():
                self._outcomes.replayed(session, message.snapshot)

    def _hear_failure(self, place: Place, message: Failed) -> None:
        session = place.session
        if message.code == "unavailable" and place.tries < ROOM_TRIES:
            self._try_again(place)
        elif message.ticket == OPEN_TICKET:
            self._leave(place)
            self._outcomes.lost(session, Fault(message.code, message.message))
        elif message.code == "session_lost":
            self._leave(place)
            self._thaw_elsewhere(place, blamed=True)
        else:
            turn = session.failed(
                message.ticket, message.code, message.message, message.at, message.cost
            )
            self._settled(place, turn, overran=message.code == "cpu_exceeded")
            self._outcomes.decided(session, turn)

    def _keep(self, session: Session, data: bytes) -> None:
        checkpoint = session.frozen(data, self._clock.now_ms())
        if checkpoint is not None:
            self._outcomes.frozen(session, checkpoint)
