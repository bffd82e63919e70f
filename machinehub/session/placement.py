"""Where sessions live: which worker has one, what is sent to it, when it is thawed and put to
sleep.

Decides: how a session moves when its worker dies, and which ones leave memory. Does not know: the
database, connections; the host (`Resident`) restores a session before it is thawed, and hears of
every result.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol
from weakref import WeakValueDictionary

from machinehub.errors import HubError
from machinehub.session.answers import BrokenWorker
from machinehub.session.core import Kind
from machinehub.session.window import HeavyLane, Usual
from machinehub.tasks import Tasks
from sandbox.protocol import (
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
    from collections.abc import Iterable

    from machinehub.clock import Clock
    from machinehub.limits import Limits
    from machinehub.model import Image, SavedCheckpoint
    from machinehub.session.core import Turn
    from machinehub.session.live import Images, LiveSession, SandboxWorker, SandboxWorkers
    from sandbox.protocol import ToHub

log = logging.getLogger("machinehub.session")

OPEN_TICKET: Final = 0
"""Of `Open` and `Replay`, which come before any input."""


class Resident(Protocol):
    """The host, as placement needs it."""

    async def restore(self, session: LiveSession) -> None:
        """Loads what the database knows. Raises `HubError`."""

    def decided(self, session: LiveSession, turn: Turn) -> None: ...
    def frozen(self, session: LiveSession, checkpoint: SavedCheckpoint) -> None: ...
    def replayed(self, session: LiveSession, snapshot: bytes) -> None: ...
    def lost(self, session: LiveSession, code: str, message: str) -> None:
        """It cannot be thawed."""

    def stranger(self, worker: SandboxWorker, message: Done | Failed | Replayed) -> None:
        """An answer about a number that is not a live session's."""


class Placement:
    def __init__(
        self, pool: SandboxWorkers, images: Images, clock: Clock, limits: Limits, resident: Resident
    ) -> None:
        self._pool = pool
        self._images = images
        self._clock = clock
        self._limits = limits
        self._resident = resident
        self._numbers = 0
        self._placing = 0
        self._by_number: dict[int, LiveSession] = {}
        self._lanes: dict[SandboxWorker, HeavyLane[int]] = {}
        self._usual: WeakValueDictionary[str, Usual] = WeakValueDictionary()
        """By image, as long as sessions of it are in memory."""
        self._tasks = Tasks()

    def stop(self) -> None:
        self._tasks.cancel()

    @property
    def live(self) -> Iterable[LiveSession]:
        """The sessions that are on a worker."""
        return (session for session in self._by_number.values() if session.worker is not None)

    @property
    def live_count(self) -> int:
        """Sessions that are on a worker, or about to be."""
        return len(self._by_number) + self._placing

    # --- inputs -----------------------------------------------------------------------------------

    def offered(self, session: LiveSession) -> None:
        """Something was added to the session's queue."""
        if session.loaded and session.ended:
            self._refuse_late(session)
        elif session.worker is not None:
            self._send_steps(session)
        else:
            self.place(session)

    def _refuse_late(self, session: LiveSession) -> None:
        for late in session.refuse_late():
            self._resident.decided(session, late)

    def _send_steps(self, session: LiveSession) -> None:
        """Hands over what fits into the session's window."""
        worker = session.worker
        if worker is None:
            return
        window = session.window
        if not window.may_send(len(session.pending)):
            return
        is_heavy = window.usual.is_heavy(start=session.pending[0].kind is Kind.START)
        if is_heavy and not self._lanes.setdefault(worker, HeavyLane()).enter(session.number):
            return
        while (index := window.next(len(session.pending))) is not None:
            pending = session.pending[index]
            if pending.kind is Kind.CHECKPOINT:
                worker.ask(session.number, Checkpoint(session.number, pending.ticket))
            else:
                cpu_ms = (
                    self._limits.start_cpu_ms
                    if pending.kind is Kind.START
                    else self._limits.event_cpu_ms
                )
                worker.ask(
                    session.number,
                    Step(session.number, pending.ticket, pending.input, pending.now_ms, cpu_ms),
                )

    def _settled(self, session: LiveSession, *, overran: bool, turn: Turn | None = None) -> None:
        if turn is not None and turn.cost is not None:
            usual = session.window.usual
            (usual.start_took if turn.pending.kind is Kind.START else usual.took)(turn.cost.cpu_us)
        pause_s = session.window.settled(overran=overran)
        self._make_way(session)
        if pause_s:
            asyncio.get_running_loop().call_later(pause_s, self._resume, session)
        else:
            self._send_steps(session)

    def _make_way(self, session: LiveSession) -> None:
        """Whatever the session had on the worker's lane for heavy turns is done: the next one's
        turn.
        """
        lane = self._lanes.get(session.worker) if session.worker is not None else None
        following = lane.leave(session.number) if lane is not None else None
        while lane is not None and following is not None:
            other = self._by_number.get(following)
            if other is not None and other.window.may_send(len(other.pending)):
                self._send_steps(other)
                return
            following = lane.leave(
                following
            )  # it comes back by itself when it has something to send

    def _resume(self, session: LiveSession) -> None:
        session.window.resume()
        self._send_steps(session)

    # --- coming and going -------------------------------------------------------------------------

    def place(self, session: LiveSession) -> None:
        if session.placing or session.worker is not None or session.gone:
            return
        image = self._images.at_hand(session.record.digest) if session.loaded else None
        worker = (
            self._pool.choose(modules=image.is_module, machine=session.machine_id)
            if image is not None
            else None
        )
        if image is not None and worker is not None:
            self._thaw(session, image, worker)
        else:
            session.placing = True
            self._placing += 1
            self._tasks.spawn(self._place_soon(session))

    async def _place_soon(self, session: LiveSession) -> None:
        try:
            while True:
                if not session.loaded:
                    await self._resident.restore(session)
                image = await self._images.image(session.record.digest)
                worker = await self._pool.wait_for_worker(
                    modules=image.is_module, machine=session.machine_id
                )
                if session.loaded or session.gone or not session.pending:
                    break  # else it was rewound meanwhile
        except HubError as error:
            self._placed(session)
            self._resident.lost(session, error.code, error.detail)
            return
        self._placed(session)
        if session.gone or not session.loaded or not (session.pending or session.snapshot_is_old):
            return  # deleted or refused meanwhile, or all that waited was settled by what the database knew
        self._thaw(session, image, worker)

    def _placed(self, session: LiveSession) -> None:
        session.placing = False
        self._placing -= 1

    def _thaw(self, session: LiveSession, image: Image, worker: SandboxWorker) -> None:
        self._by_number.pop(session.number, None)
        session.number = self.new_number()
        self._by_number[session.number] = session
        worker.take(session.record.digest, image)
        session.worker = worker
        worker.ask(
            session.number, self.opening(session.number, session.record.digest, session.checkpoint)
        )
        if session.tail:
            worker.ask(session.number, Replay(session.number, OPEN_TICKET, session.tail, 0))
        session.window.restart()
        session.window.usual = self._usual_of(session.record.digest)
        self._send_steps(session)

    def _usual_of(self, digest: str) -> Usual:
        usual = self._usual.get(digest)
        if usual is None:
            usual = self._usual[digest] = Usual()
        return usual

    def new_number(self) -> int:
        """A new one each time: what an earlier worker, or an earlier stay on this one, still has to
        say is nobody's.
        """
        self._numbers += 1
        return self._numbers

    def opening(self, number: int, digest: str, checkpoint: bytes | None) -> Open:
        limits = self._limits
        return Open(
            number,
            OPEN_TICKET,
            digest,
            limits.memory_bytes,
            limits.snapshot_bytes,
            limits.emitted_bytes,
            checkpoint,
        )

    def leave(self, session: LiveSession) -> None:
        """Takes the session off its worker, whatever it is doing there."""
        self._make_way(session)
        worker, session.worker = session.worker, None
        self._by_number.pop(session.number, None)
        if worker is not None and not worker.lost:
            worker.tell(Close(session.number))
            worker.leave(session.record.digest)

    def worker_lost(self, worker: SandboxWorker) -> None:
        """Every session that lived there is thawed elsewhere, from its checkpoint and the inputs
        since.

        The one whose answer was due next is held to blame: a worker does its work in order.
        """
        self._lanes.pop(worker, None)
        for session in [
            session for session in self._by_number.values() if session.worker is worker
        ]:
            session.worker = None
            del self._by_number[session.number]
            self._move(session, blamed=session.number == worker.suspect)

    def _move(self, session: LiveSession, *, blamed: bool) -> None:
        session.wake()
        turn = session.crashed() if blamed else None
        if turn is not None:
            self._resident.decided(session, turn)
        if (session.pending or session.snapshot_is_old) and not session.gone:
            self.place(session)

    # --- sleep ------------------------------------------------------------------------------------

    def freeze(self, session: LiveSession) -> None:
        """Puts a session that has nothing to do to sleep: it leaves its worker once it is frozen."""
        if session.tail:
            session.offer(Kind.CHECKPOINT, b"", self._clock.now_ms())
            self._send_steps(session)
        else:  # it is as its last checkpoint has it
            self.leave(session)

    # --- what workers answer ----------------------------------------------------------------------

    def worker_answered(self, worker: SandboxWorker, messages: list[ToHub]) -> None:
        for message in messages:
            if isinstance(message, Said):
                continue
            if not isinstance(message, Done | Failed | Frozen | Replayed):
                worker.kill("it said what a session worker never says")
                return
            session = self._by_number.get(message.session)
            if session is None or session.worker is not worker:
                # Of the past, or deleted or moved meanwhile: a worker may not speak for what it
                # does not hold.
                if not isinstance(message, Frozen):
                    self._resident.stranger(worker, message)
                continue
            try:
                self._hear(session, message)
            except BrokenWorker as error:
                worker.kill(str(error), suspect=session.number)
                return

    def _hear(self, session: LiveSession, message: Done | Failed | Frozen | Replayed) -> None:
        match message:
            case Frozen():
                self._keep(session, message.checkpoint)
            case Replayed():
                self._resident.replayed(session, message.snapshot)
            case Failed(ticket=0):
                self.leave(session)
                self._resident.lost(session, message.code, message.message)
            case Done(ticket=0):
                pass
            case Failed(code="session_lost"):
                self.leave(session)
                self._move(session, blamed=True)
            case Failed():
                turn = session.failed(
                    message.ticket, message.code, message.message, message.at, message.cost
                )
                self._settled(session, overran=message.code == "cpu_exceeded", turn=turn)
                self._resident.decided(session, turn)
            case Done() if session.pending and session.pending[0].kind is Kind.CHECKPOINT:
                session.asleep(message.ticket)
                self._keep(session, message.result)
                self._settled(session, overran=False)
                if not session.pending:  # unless something came meanwhile, it leaves
                    self.leave(session)
            case Done():
                turn = session.done(message.ticket, message.result, message.cost)
                if turn.finished and session.pending:  # the worker must not go on with it
                    self.leave(session)
                self._settled(session, overran=False, turn=turn)
                self._resident.decided(session, turn)
                if turn.finished:
                    self._refuse_late(session)

    def _keep(self, session: LiveSession, data: bytes) -> None:
        checkpoint = session.frozen(data, self._clock.now_ms())
        if checkpoint is not None:
            self._resident.frozen(session, checkpoint)
