"""The session port for this hub's own sessions: puts the parts together, and answers what is asked.

Decides nothing that a part could decide. Read `__init__` and the two that it calls to see who needs
whom.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.errors import Conflict, NotFound, Unavailable
from machinehub.model import SessionDelete
from machinehub.session.decide.events import check_event, check_input
from machinehub.session.port import Answered, Closed, Ending, Snapshot, Summary
from machinehub.session.run.deletion import Deletions
from machinehub.session.run.gauges import Gauges
from machinehub.session.run.history import History
from machinehub.session.run.housekeeping import Housekeeper
from machinehub.session.run.intake import Intake
from machinehub.session.run.journal import Journal
from machinehub.session.run.loading import Loader
from machinehub.session.run.outcomes import Outcomes
from machinehub.session.run.placement import Placement
from machinehub.session.run.presence import Crowds
from machinehub.session.run.presence_events import PresenceEvents
from machinehub.session.run.publisher import Publisher, snapshot_of
from machinehub.session.run.registry import Registry
from machinehub.session.run.restarts import Restarts
from machinehub.session.run.scheduler import TimerScheduler
from machinehub.session.run.subscription import LocalSubscription
from machinehub.session.run.unattended import Attendance, Unattended
from machinehub.session.run.waits import Waits
from machinehub.session.run.waking import Waking
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from machinehub.clock import Clock, Entropy
    from machinehub.ids import EventId, MachineId, Seq, SessionId
    from machinehub.limits import Limits
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.model import Entry, SessionRecord
    from machinehub.session.decide.conditions import Condition
    from machinehub.session.decide.session import Session
    from machinehub.session.port import (
        Address,
        Busy,
        Listener,
        Presence,
        Recomputed,
        Subscription,
        Versions,
        Visitor,
    )
    from machinehub.session.run.worker_interfaces import Images, SandboxWorker, SandboxWorkers
    from machinehub.store.sessions import SessionStore
    from sandbox.protocol.ids import TimerId
    from sandbox.protocol.messages import ToHub


class LocalSessions:
    """`Sessions` (session/port.py). `start` it, serve, `stop` it."""

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
        self.waits = Waits(self.publisher, per_session=limits.connections_per_session)
        self.journal = Journal(store, metrics)
        self.placement = Placement(pool, images, clock, limits)
        self.history = History(store, pool, images, self.placement, clock, entropy)
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
            load=lambda session: self.loader.load(session),
        )
        self.presence_events = PresenceEvents(
            self.intake,
            self._store,
            self._entropy,
            self._limits,
            awaken=lambda key: self.waking.awaken(key),
            inform=lambda session: self.crowds.inform(session),
        )
        self.crowds = Crowds(
            self.publisher, self.presence_events, self._clock, self._entropy, self._limits
        )

    def _make_lives(self, versions: Versions) -> None:
        """What brings sessions into memory, lets them go, and hears what becomes of their turns."""
        self.deletions = Deletions(
            self.registry,
            self._store,
            self.journal,
            self.presence_events,
            forget=lambda session, error, why: self.loader.forget(session, error, why),
        )
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
            waits=self.waits,
            metrics=self._metrics,
            unattended=self.unattended,
        )
        self.housekeeper = self._make_housekeeper()

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
        self.history.worker_lost(worker)
        self.placement.worker_lost(worker)

    # --- using a session --------------------------------------------------------------------------

    async def read(self, address: Address) -> Snapshot:
        return snapshot_of(await self.loader.open(address))

    async def create(self, address: Address, given: bytes | None) -> Snapshot:
        self._check_given(given)
        return snapshot_of(await self.loader.create(address, given))

    async def subscribe(
        self,
        address: Address,
        listener: Listener,
        visitor: Visitor,
        *,
        given: bytes | None = None,
        emitted_after: Seq | None = None,
    ) -> Subscription:
        self._check_given(given)
        who = self.crowds.identify(address.machine_id, address.session_id, visitor)
        session = await self.loader.open(address, given)
        self.crowds.attach(session, listener, who)
        if emitted_after is not None:
            for emitted in self.publisher.audience(session).recent.after(emitted_after):
                listener.receive(emitted)
        return LocalSubscription(
            session, listener, who, visitor, intake=self.intake, crowds=self.crowds
        )

    async def send(
        self,
        address: Address,
        event: bytes,
        visitor: Visitor,
        *,
        event_id: EventId | None = None,
        if_match: Seq | None = None,
    ) -> Answered:
        # By the hub's limits first: an event that cannot be one must not begin a session.
        limits = self._limits
        check_event(event, bytes_max=limits.event_bytes, depth_max=limits.event_depth)
        who = self.crowds.identify(address.machine_id, address.session_id, visitor)
        session = await self.loader.open(address)
        self.intake.check(session, event, visitor.principal)
        return await self.intake.send_and_wait(
            session, event, who.sender, event_id=event_id, if_match=if_match
        )

    async def wait(self, address: Address, condition: Condition) -> Snapshot:
        session = await self.loader.open(address)
        return await self.waits.until(session, condition.holds)

    async def members(self, address: Address) -> Presence:
        return self.crowds.listing(await self._in_memory(address))

    async def describe(self, address: Address, visitor: Visitor, metadata: bytes) -> Presence:
        session = await self._in_memory(address)
        if session is None:
            raise Conflict("not_present", "nobody is connected to the session")
        who = self.crowds.identify(address.machine_id, address.session_id, visitor)
        self.crowds.describe(session, who, metadata)
        return self.crowds.listing(session)

    def _check_given(self, given: bytes | None) -> None:
        limits = self._limits
        if given is not None:
            check_input(given, bytes_max=limits.input_bytes, depth_max=limits.event_depth)

    async def _in_memory(self, address: Address) -> Session | None:
        """The session, if it is in memory. Raises `NotFound` when there is none."""
        session = self.registry.find(address.machine_id, address.session_id)
        if session is None or not session.started:
            await self._record(address)
        return session

    async def _record(self, address: Address) -> SessionRecord:
        return await self._store.record(address.machine_id, address.session_id)

    # --- looking after sessions -------------------------------------------------------------------

    async def inspect(self, address: Address, at: Seq | None = None) -> tuple[Summary, Snapshot]:
        if at is None:
            session = await self.loader.open_existing(address.machine_id, address.session_id)
            snapshot = snapshot_of(session)
            # The database knows better than memory up to where the journal was pruned.
            return self._summary(await self._record(address), snapshot.seq), snapshot
        record = await self._record(address)
        snapshot = Snapshot(at, record.version, await self.history.snapshot_at(record, at))
        return self._summary(record, at), snapshot

    async def timers(self, address: Address) -> list[tuple[TimerId, int]]:
        record = await self._record(address)
        found = await self._store.timers_of(record.key)
        return sorted(found, key=lambda pair: pair[1])

    async def summaries(
        self, machine_id: MachineId, *, after: SessionId | None, limit: int
    ) -> list[Summary]:
        found = await self._store.page(machine_id, after=after, limit=limit)
        return [self._summary(record, seq) for record, seq in found]

    def _summary(self, record: SessionRecord, seq: Seq) -> Summary:
        session = self.registry.find(record.machine_id, record.session_id)
        return Summary(
            record.session_id,
            record.version,
            seq,
            finished=record.finished_at_ms is not None
            or (session is not None and session.finished),
            created_at_ms=record.created_at_ms,
            connections=self.crowds.connections(session) if session is not None else 0,
            live=session is not None and self.placement.is_on_worker(session),
            parent=record.parent,
            forked_at=record.forked_at,
            compacted_to=record.compacted_to,
        )

    async def journal_of(
        self, address: Address, *, after: tuple[Seq, int], limit: int
    ) -> list[Entry]:
        record = await self._record(address)
        return await self._store.entries(record.key, after=after, limit=limit)

    async def fork(self, address: Address, at: Seq | None, session_id: SessionId) -> Summary:
        record = await self._record(address)
        if self.registry.find(record.machine_id, session_id) is not None:
            raise Conflict("session_exists", "there is a session of this name")
        try:
            child = await self.history.fork(record, at, session_id)
            if self.registry.is_closed(child.machine_id):
                await self.journal.delete(SessionDelete(child.key))
                raise NotFound("no_such_machine", "the machine was deleted meanwhile")
            self.scheduler.set(child.key, await self._store.timers_of(child.key))
        except Unavailable:
            # It may be there all the same, with timers.
            self._tasks.spawn(self.scheduler.reload())
            raise
        assert child.forked_at is not None
        return self._summary(child, child.forked_at)

    async def replay(self, address: Address, seq: Seq | None) -> Recomputed:
        session = self.registry.find(address.machine_id, address.session_id)
        if session is not None:  # there is nothing better to compare with than the memory of now
            await self.housekeeper.freeze(session)
        found = await self.history.recompute(await self._record(address), seq)
        session = self.registry.find(address.machine_id, address.session_id)
        # A session that is in memory has said what it is; that must be what the journal says.
        if session is not None and session.seq == found.seq and session.snapshot != found.state:
            return found._replace(verified=False)
        return found

    async def delete(self, address: Address) -> None:
        await self.deletions.delete(address.machine_id, address.session_id)

    async def restart(self, address: Address) -> Snapshot:
        return await self.restarts.restart(address)

    def versions_in_use(self, machine_id: MachineId) -> set[int]:
        return {each.record.version for each in self.registry.all if each.machine_id == machine_id}

    def busiest(self, count: int) -> list[Busy]:
        return self.gauges.busiest(count)

    async def delete_machine(self, machine_id: MachineId) -> None:
        await self.deletions.delete_machine(machine_id)
