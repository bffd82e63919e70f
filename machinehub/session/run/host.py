"""The parts that have this hub's sessions: put together here, started, stopped, and told of what
happens to workers, the database and the clock.

Decides nothing that a part could decide. Read `__init__` and what it calls to see who needs
whom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.session.messages import Closed, Ending
from machinehub.session.run.deletion import Deletions
from machinehub.session.run.gauges import Gauges
from machinehub.session.run.handover import Handover
from machinehub.session.run.history import History
from machinehub.session.run.housekeeping import Housekeeper
from machinehub.session.run.intake import Intake
from machinehub.session.run.journal import Journal
from machinehub.session.run.loading import Loader
from machinehub.session.run.outcomes import Outcomes
from machinehub.session.run.placement import Placement
from machinehub.session.run.presence import Crowds
from machinehub.session.run.presence_events import PresenceEvents
from machinehub.session.run.publisher import Publisher
from machinehub.session.run.questions import Questions
from machinehub.session.run.registry import Registry
from machinehub.session.run.requests import RequestsOf
from machinehub.session.run.restarts import Restarts
from machinehub.session.run.scheduler import TimerScheduler
from machinehub.session.run.unattended import Attendance, Unattended
from machinehub.session.run.view_questions import ViewQuestions
from machinehub.session.run.views import Views
from machinehub.session.run.waits import Waits
from machinehub.session.run.waking import Waking
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from machinehub.clock import Clock, Entropy
    from machinehub.errors import Unavailable
    from machinehub.ids import SessionKey
    from machinehub.limits import Limits
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.session.run.worker_interfaces import Images, SandboxWorker, SandboxWorkers
    from machinehub.session.versions import Versions
    from machinehub.store.sessions import SessionStore
    from sandbox.protocol.messages import ToHub


class SessionHost:
    """`start` it, serve, `stop` it."""

    def __init__(
        self,
        pool: SandboxWorkers,
        images: Images,
        versions: Versions,
        store: SessionStore,
        clock: Clock,
        entropy: Entropy,
        limits: Limits,
        *,
        logs: MachineLogs,
        metrics: Metrics,
        expire_after_ms: int = 0,
        resident_bytes: int = 0,
    ) -> None:
        self._resident_bytes = resident_bytes
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._metrics = metrics
        self._tasks = Tasks()
        self._expire_after_ms = expire_after_ms
        self.registry = Registry(limits)
        self.publisher = Publisher(
            clock, logs, metrics, emitted_kept_bytes=limits.emitted_kept_bytes
        )
        self._attendance = Attendance(self.registry, self.publisher, clock, logs)
        self.waits = Waits(
            self.publisher,
            per_session=limits.connections_per_session,
            moving=self.registry.moving,
        )
        self.journal = Journal(store, metrics)
        self.placement = Placement(pool, images, clock, limits)
        self.questions = Questions()
        self.requests = RequestsOf()
        self.history = History(store, pool, images, self.placement, self.questions, clock, entropy)
        self._make_views(pool, images, logs)
        # Some parts need each other. Those that are made first get functions that look for the
        # others later.
        self._make_inputs()
        self._make_lives(versions)
        self.gauges = Gauges(
            self.registry,
            store,
            metrics,
            placement=self.placement,
            journal=self.journal,
            publisher=self.publisher,
        )
        self.journal.report_to(self.outcomes)
        self.placement.report_to(self.outcomes)

    def _make_views(self, pool: SandboxWorkers, images: Images, logs: MachineLogs) -> None:
        """What finds out what members may see, where machines say that."""
        questions = ViewQuestions(
            pool,
            images,
            self._clock,
            self._limits,
            placement=self.placement,
            questions=self.questions,
            logs=logs,
            metrics=self._metrics,
        )
        self.views = Views(questions, self.publisher)
        self.publisher.show_by(self.views)

    def _make_inputs(self) -> None:
        """What gives sessions their inputs: timers, senders, and members who come and go."""
        self.unattended = Unattended(
            self._limits,
            self._metrics,
            self._attendance,
            lambda *timer: self.waking.timer_pending(*timer),
        )
        self.scheduler = TimerScheduler(
            self._clock,
            self._store,
            lambda *timer: self.waking.timer_due(*timer),
            lambda *timer: self.waking.timer_pending(*timer),
            per_s=self._limits.timer_turns_per_s,
            unattended=self.unattended,
        )
        self.intake = Intake(
            self._store,
            self._clock,
            self._entropy,
            self._limits,
            placement=self.placement,
            journal=self.journal,
            waits=self.waits,
            publisher=self.publisher,
            load=lambda session: self.loader.load(session),
            moving=self.registry.moving,
        )
        self.presence_events = PresenceEvents(
            self.intake,
            self._store,
            self._entropy,
            self._limits,
            awaken=lambda key: self.waking.awaken(key),
            inform=lambda session: self.crowds.inform(session),
            has_members=self._has_members,
        )
        self.crowds = Crowds(
            self.publisher, self.presence_events, self._clock, self._entropy, self._limits
        )

    def _has_members(self, key: SessionKey) -> bool:
        session = self.registry.of_key(key)
        return session is not None and self.crowds.has_members(session)

    def _make_deletions(self) -> Deletions:
        return Deletions(
            self.registry,
            self._store,
            self.journal,
            self.presence_events,
            forget=lambda session, error, why: self.loader.forget(session, error, why),
            ended=lambda key: self.requests.to.ended(key, None),
        )

    def _make_lives(self, versions: Versions) -> None:
        """What brings sessions into memory, lets them go, and hears what becomes of their turns."""
        self.deletions = self._make_deletions()
        self.loader = Loader(
            self.registry,
            self._store,
            versions,
            self._clock,
            self._entropy,
            journal=self.journal,
            placement=self.placement,
            scheduler=self.scheduler,
            publisher=self.publisher,
            crowds=self.crowds,
            presence_events=self.presence_events,
            intake=self.intake,
            waits=self.waits,
            deletions=self.deletions,
        )
        self.restarts = Restarts(
            self._store,
            versions,
            self._clock,
            self._entropy,
            history=self.history,
            deletions=self.deletions,
            scheduler=self.scheduler,
            ask=lambda *asked: self.requests.to.asked(*asked),
        )
        self.waking = Waking(
            self.registry,
            self._store,
            self._limits,
            loader=self.loader,
            placement=self.placement,
            scheduler=self.scheduler,
            intake=self.intake,
        )
        self.outcomes = Outcomes(
            self.registry,
            journal=self.journal,
            placement=self.placement,
            scheduler=self.scheduler,
            publisher=self.publisher,
            loader=self.loader,
            history=self.history,
            questions=self.questions,
            waits=self.waits,
            metrics=self._metrics,
            unattended=self.unattended,
            requests=self.requests,
        )
        self.housekeeper = self._make_housekeeper()
        self.handover = self._make_handover()

    def _make_handover(self) -> Handover:
        return Handover(
            self.registry,
            self.placement,
            self.loader,
            self.housekeeper,
            has_untold=self.publisher.has_untold,
        )

    def _make_housekeeper(self) -> Housekeeper:
        return Housekeeper(
            self.registry,
            self._store,
            self._clock,
            self._limits,
            expire_after_ms=self._expire_after_ms,
            placement=self.placement,
            journal=self.journal,
            loader=self.loader,
            crowds=self.crowds,
            publisher=self.publisher,
            waking=self.waking,
            waits=self.waits,
            deletions=self.deletions,
            unattended=self.unattended,
            resident_bytes=self._resident_bytes,
        )

    # --- the hub's life ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Takes up the timers and the members that the database has. Raises `Unavailable`."""
        self.journal.start()
        await self.scheduler.start()
        await self.presence_events.start()
        self.housekeeper.start()

    async def stop(self) -> None:
        """Leaves the database as it is."""
        for part in (
            self._tasks,
            self.housekeeper,
            self.loader,
            self.waking,
            self.outcomes,
            self.crowds,
            self.presence_events,
            self.intake,
            self.views,
            self.placement,
            self.journal,
            self.scheduler,
        ):
            part.stop()

    async def freeze_all(self) -> None:
        """Before `stop`: what is on a worker is frozen, so that the next start finds it at once."""
        self.housekeeper.stop()
        await self.housekeeper.freeze_all()

    def say_goodbye(self, reason: str) -> None:
        """Closes every connection, and ends every request that waits for something."""
        self.waits.end(reason, self.loader.openings)
        for session in self.registry.all:
            listeners = self.publisher.listeners(session)
            self.publisher.send(listeners, Closed(Ending.GOING_AWAY, reason))

    def suspend(self, error: Unavailable) -> None:
        """Forgets every session: the database may be another's now. Clients are told to come
        back.
        """
        self.waits.end(error.detail, self.loader.openings)
        for session in list(self.registry.all):
            self.outcomes.refused(session, error)
            self.loader.forget(session, error, Ending.UNAVAILABLE)
        self.presence_events.forget_all()

    def resume(self) -> None:
        """The database is this hub's again."""
        self.outcomes.recovered()
        self._tasks.spawn(self.presence_events.take_up())

    def time_moved(self) -> None:
        """The computer's clock was set: what is due now?"""
        self.scheduler.fire()

    def worker_answered(self, worker: SandboxWorker, messages: list[ToHub]) -> None:
        self.placement.worker_answered(worker, messages)

    def worker_lost(self, worker: SandboxWorker) -> None:
        self.questions.worker_lost(worker)
        self.placement.worker_lost(worker)
