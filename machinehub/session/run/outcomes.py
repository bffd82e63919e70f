"""Connects placement, journal and publisher.

A decided turn is written, a committed turn is published, and a session whose commit or restoring
failed is restored, mended or refused.

placement --decided--> journal --committed--> publisher
                          |--superseded, refused--> the session is restored from the database
placement --lost--> its checkpoint is mended, or whoever waits is refused
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING
from weakref import WeakSet

from machinehub.effect import Conclusion, Effect
from machinehub.errors import HubError, Unavailable, error_of, fault_of
from machinehub.model import Fault, Kind
from machinehub.session.decide.lifecycle import Phase
from machinehub.session.port import Address
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from machinehub.metrics import Metrics
    from machinehub.model import Entry, SavedCheckpoint
    from machinehub.session.decide.session import Session
    from machinehub.session.decide.turn import Turn
    from machinehub.session.run.history import History
    from machinehub.session.run.journal import Journal
    from machinehub.session.run.loading import Loader
    from machinehub.session.run.placement import Placement
    from machinehub.session.run.publisher import Publisher
    from machinehub.session.run.questions import Questions
    from machinehub.session.run.registry import Registry
    from machinehub.session.run.requests import RequestsOf
    from machinehub.session.run.scheduler import TimerScheduler
    from machinehub.session.run.unattended import Unattended
    from machinehub.session.run.waits import Waits
    from machinehub.session.run.worker_interfaces import SandboxWorker
    from sandbox.protocol.messages import Done, Failed, Replayed

log = logging.getLogger("machinehub.session")


class Outcomes:
    """What placement (`TurnOutcomes`) and the journal (`CommitOutcomes`) report to."""

    def __init__(
        self,
        registry: Registry,
        *,
        journal: Journal,
        placement: Placement,
        scheduler: TimerScheduler,
        publisher: Publisher,
        loader: Loader,
        history: History,
        questions: Questions,
        waits: Waits,
        metrics: Metrics,
        unattended: Unattended,
        requests: RequestsOf,
    ) -> None:
        self._unattended = unattended
        self._requests = requests
        self._registry = registry
        self._journal = journal
        self._placement = placement
        self._scheduler = scheduler
        self._publisher = publisher
        self._loader = loader
        self._history = history
        self._questions = questions
        self._waits = waits
        self._metrics = metrics
        self._mending: set[Session] = set()
        self._mended: WeakSet[Session] = WeakSet()
        """Sessions whose checkpoint was rebuilt once already: a second failure is not retried."""
        self._tasks = Tasks()

    def stop(self) -> None:
        self._tasks.stop()

    # --- what placement reports -------------------------------------------------------------------

    async def load(self, session: Session) -> None:
        await self._loader.load(session)

    def decided(self, session: Session, turn: Turn) -> None:
        """Schedules the turn's timers and queues its write; without a write, publishes the turn."""
        # At once: others of the session must not fire before them because a commit takes its time.
        if turn.changes.timers:
            self._scheduler.set(session.record.key, turn.changes.armed)
        if turn.write is not None:
            self._journal.add_turn(session, turn)
        else:
            self._tell(session, turn)

    def frozen(self, session: Session, checkpoint: SavedCheckpoint) -> None:
        compacts = self._unattended.ticks_on(session.record.key)
        self._journal.add_checkpoint(session, checkpoint, compacts=compacts)

    def replayed(self, session: Session, snapshot: bytes) -> None:
        was_replaying = session.phase is Phase.REPLAYING
        session.replayed(snapshot)
        if was_replaying:
            self._loader.restored(session, changed=True)

    def not_a_session(self, worker: SandboxWorker, message: Done | Failed | Replayed) -> None:
        self._questions.answered(worker, message)

    def lost(self, session: Session, fault: Fault) -> None:
        """The session cannot be thawed: mend it, or say so, rather than go on from a guess."""
        if session.gone or session in self._mending:
            return
        can_mend = fault.code == "session_damaged" and session.checkpoint is not None
        if can_mend and session not in self._mended:
            self._mending.add(session)
            self._mended.add(session)
            self._tasks.spawn(self._mend(session, fault))
        else:
            self._give_up(session, fault)

    def _give_up(self, session: Session, fault: Fault) -> None:
        log.error("session %s cannot be thawed: %s", session.name, fault.detail)
        for turn in session.refuse_pending(fault):
            if session.phase.loaded:
                self._scheduler.set(session.record.key, turn.changes.armed)
            elif turn.pending.kind is Kind.TIMER:
                self._scheduler.again_soon(session.record.key)
            self._tell(session, turn)
        self._loader.not_restored(session, Unavailable(fault.code, fault.detail))

    async def _mend(self, session: Session, fault: Fault) -> None:
        """Its newest checkpoint is damaged: an older one and the journal make another."""
        log.error("the newest checkpoint of %s is damaged: %s", session.name, fault.detail)
        try:
            while self._journal.holds(
                session
            ):  # what was decided is committed, or taken back, first
                await self._waits.next_turn(session)
            if session.gone:
                return
            if session.phase.loaded:
                mending = self._history.mend_newest(session.record)
                self._loader.reload_after(session, mending)
            await self._loader.load(session)
        except HubError as error:
            self._give_up(session, fault_of(error))
            return
        finally:
            self._mending.discard(session)
        if session.pending or session.phase is Phase.REPLAYING:
            self._placement.place(session)

    # --- what the journal reports -----------------------------------------------------------------

    def committed(self, session: Session, turn: Turn | None) -> None:
        if turn is None or session.gone:
            self._publisher.notify(session)  # a checkpoint: somebody may wait for it
        else:
            self._tell(session, turn)

    def _tell(self, session: Session, turn: Turn) -> None:
        session.committed(turn)
        self._publisher.tell(session, turn)
        if turn.changes.effects or turn.changes.finished:
            self._tell_of_effects(session, turn)
        if turn.pending.kind is not Kind.START:
            return
        if turn.error is None:
            self._metrics.sessions_opened.inc()
            self._loader.began(session)
        elif not session.gone:
            self._loader.could_not_begin(session, error_of(turn.error))

    def _tell_of_effects(self, session: Session, turn: Turn) -> None:
        """What is committed is asked of the world; what nobody waits for any more is not."""
        changes, key = turn.changes, session.record.key
        asked = [each for each in changes.effects.values() if isinstance(each, Effect)]
        if asked:
            address = Address(session.machine_id, session.session_id, session.record.version)
            self._requests.to.asked(address, key, asked)
        ended = [each for each, how in changes.effects.items() if isinstance(how, Conclusion)]
        if ended or changes.finished:
            self._requests.to.ended(key, None if changes.finished else ended)

    def superseded(self, session: Session, known: list[Entry]) -> None:
        """Takes the session off its worker, puts its uncommitted inputs back into its queue, and
        places it again, which loads it from the database.
        """
        if session.gone:
            return
        self._placement.leave(session)
        session.rewind(known)
        self._placement.place(session)

    def refused(self, session: Session, error: Unavailable) -> None:
        """Takes the session off its worker, and refuses all its uncommitted inputs with `error`."""
        if session.gone:
            return
        self._placement.leave(session)
        turns = session.refuse_all(fault_of(error))
        if any(turn.pending.kind is Kind.TIMER for turn in turns):
            self._scheduler.again_soon(session.record.key)
        for turn in turns:
            self._tell(session, turn)
        self._loader.not_restored(session, error)

    def recovered(self) -> None:
        """The database answers again: what came due meanwhile, and what somebody watches, is looked
        for there.
        """
        self._tasks.spawn(self._scheduler.reload())
        for session in self._registry.all:
            if session.phase is Phase.IN_DOUBT and self._publisher.listeners(session):
                self._tasks.spawn(self._load_watched(session))

    async def _load_watched(self, session: Session) -> None:
        with contextlib.suppress(HubError):
            await self._loader.load(session)
