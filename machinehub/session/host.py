"""The session host: who is there, what they send, and what they hear.

The shell around `core.py`. Decides: when a session is loaded, created, put to sleep, forgotten, and
who may be told what and when. Does not know: HTTP, WebSockets, SQL; `placement.py` knows workers,
`journal.py` what is committed, `publish.py` how it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from machinehub.errors import Conflict, HubError, NotFound, Unavailable, error_of
from machinehub.model import SessionRecord
from machinehub.session.alarm import Alarm
from machinehub.session.core import Kind, Turn
from machinehub.session.event import start_input, timer_input
from machinehub.session.intake import Intake
from machinehub.session.journal import Journal
from machinehub.session.live import LiveSession
from machinehub.session.past import Past
from machinehub.session.placement import Placement
from machinehub.session.presence import People
from machinehub.session.publish import Publisher, answer, notify, update_all
from machinehub.session.waits import Waits
from machinehub.store.sessions import Deletion
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from machinehub.clock import Clock, Entropy
    from machinehub.limits import Limits
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.model import Entry, SavedCheckpoint
    from machinehub.session.live import Images, SandboxWorker, SandboxWorkers, VersionRef
    from machinehub.store.sessions import SessionStore
    from sandbox.protocol import Done, Failed, Replayed, ToHub

log = logging.getLogger("machinehub.session")

FREEZING_S: Final = 2.0
WAKE_WAIT_S: Final = 0.1
WAKE_WAITS: Final = 50
"""Above so many times the wait, a session is woken although there is no room: its timer must not
wait for ever.
"""
NO_SESSION: Final = "the machine has no session of this name"


class SessionHost:
    def __init__(
        self,
        pool: SandboxWorkers,
        images: Images,
        store: SessionStore,
        clock: Clock,
        entropy: Entropy,
        limits: Limits,
        *,
        logs: MachineLogs,
        metrics: Metrics,
    ) -> None:
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._metrics = metrics
        self._sessions: dict[tuple[str, str], LiveSession] = {}
        self._by_key: dict[int, LiveSession] = {}
        self._deleting: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._deleted: set[str] = set()
        self._waking: set[int] = set()
        self._entering = 0
        """Sessions that are woken and not on a worker yet."""
        self._tasks = Tasks()
        self._publisher = Publisher(clock, logs, metrics)
        self.intake = Intake(self, store, clock, entropy, limits)
        self.people = People(self, store, entropy, limits)
        self.waits = Waits(per_session=limits.connections_per_session)
        self.alarm = Alarm(
            clock, store, self._timer_due, self._timer_pending, per_s=limits.timer_turns_per_s
        )
        self.journal = Journal(store, self, metrics)
        self.placement = Placement(pool, images, clock, limits, self)
        self.past = Past(store, pool, images, self.placement, clock, entropy)

    async def start(self) -> None:
        """Takes up the timers and the people that the database has. Raises `Unavailable`."""
        self.journal.start()
        await self.alarm.start()
        await self.people.start()

    async def stop(self) -> None:
        self._tasks.cancel()
        self.people.stop(self.sessions)
        self.intake.stop()
        self.placement.stop()
        self.journal.stop()
        self.alarm.stop()

    # --- finding and opening ----------------------------------------------------------------------

    def find(self, machine_id: str, session_id: str) -> LiveSession | None:
        """A session that is in memory."""
        return self._sessions.get((machine_id, session_id))

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def sessions(self) -> list[LiveSession]:
        return list(self._sessions.values())

    async def open(
        self,
        machine_id: str,
        session_id: str,
        version: VersionRef | None,
        *,
        input_json: bytes | None = None,
    ) -> LiveSession:
        """The session; created on `version` when it is new.

        Raises `NotFound` (with no version), and what its machine's start raises.
        """
        session = self.find(machine_id, session_id)
        if session is None and version is None:
            record = await self._store.record(machine_id, session_id)
            session = self.find(machine_id, session_id) or self._take_up(record)
        elif session is None:
            session = self._admit(machine_id, session_id, version, input_json)
        session.last_input_ms = max(session.last_input_ms, self._clock.now_ms())
        if not session.opened.done() or session.opened.exception():
            await asyncio.shield(session.opened)
        if session.in_doubt:
            await self.restore(session)
        while session.snapshot_is_old and not session.gone:
            await self.waits.next_turn(session)
        if session.in_doubt:
            raise Unavailable("unavailable", "the session cannot be restored just now; try again")
        return session

    async def create(
        self, machine_id: str, session_id: str, version: VersionRef, *, input_json: bytes | None
    ) -> LiveSession:
        """A new session. Raises `Conflict` when there is one of this name."""
        exists = Conflict(
            "session_exists", "there is a session of this name; its input was given when it began"
        )
        if self.find(machine_id, session_id) is not None:
            raise exists
        session = self._admit(machine_id, session_id, version, input_json)
        if not await asyncio.shield(session.opened):
            raise exists
        return session

    def _admit(
        self, machine_id: str, session_id: str, version: VersionRef | None, input_json: bytes | None
    ) -> LiveSession:
        """A session that may be new, or in the database."""
        assert version is not None
        now_ms = self._clock.now_ms()
        record = SessionRecord(
            key=self._entropy.session_key(now_ms),
            machine_id=machine_id,
            session_id=session_id,
            version=version.number,
            digest=version.digest,
            hears_presence=version.hears_presence,
            created_at_ms=now_ms,
        )
        return self._take_up(record, start_input(self._entropy.turn_seed(), input_json))

    def _take_up(self, record: SessionRecord, start: bytes | None = None) -> LiveSession:
        """Into memory; what is to be known of it follows."""
        session = self._keep_in_memory(record)
        self._tasks.spawn(self._bring_in(session, start))
        return session

    def _keep_in_memory(self, record: SessionRecord) -> LiveSession:
        if record.machine_id in self._deleted:  # it was found just before; ids are never used twice
            raise NotFound("no_such_machine", f"there is no machine {record.machine_id!r}")
        session = LiveSession(
            record,
            number=self.placement.new_number(),
            now_ms=self._clock.now_ms(),
            limits=self._limits,
        )
        self._sessions[record.machine_id, record.session_id] = session
        self._by_key[record.key] = session
        return session

    async def _bring_in(self, session: LiveSession, start: bytes | None) -> None:
        """From the database, or else, with `start`, into being."""
        try:
            if deleting := self._deleting.get((session.machine_id, session.session_id)):
                await asyncio.wait([deleting])
            if (
                session.restoring is None and not session.loaded
            ):  # as most often: without a task of its own
                session.restoring = asyncio.current_task()
                await self._restore(session, absent_is_new=start is not None)
            else:
                await self.restore(session)
        except HubError as error:
            self._forget(session, error)
            return
        if session.gone:
            return
        if not session.started:
            assert start is not None
            self.intake.offer(session, Kind.START, start)

    # --- what is loaded, and what is forgotten ----------------------------------------------------

    async def restore(self, session: LiveSession, *, absent_is_new: bool = False) -> None:
        """Loads what the database knows.

        Raises `NotFound`, unless one that is absent is new, and `Unavailable`.
        """
        if session.restoring is None and session.loaded:
            return  # somebody else was first
        if session.restoring is None:
            session.restoring = asyncio.ensure_future(
                self._restore(session, absent_is_new=absent_is_new)
            )
            session.restoring.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # nobody may be waiting
        await asyncio.shield(session.restoring)

    async def _restore(self, session: LiveSession, *, absent_is_new: bool) -> None:
        try:
            stored = await self._store.load(session.machine_id, session.session_id)
            if session.gone:
                return
            if stored is None:
                if not absent_is_new and session.started:
                    self._forget(session, NotFound("no_such_session", "the session was deleted"))
                if not absent_is_new:
                    raise NotFound("no_such_session", NO_SESSION)
                session.start_anew()
                return
            self._by_key.pop(session.record.key, None)
            self._by_key[stored.record.key] = session
            before = session.seq
            receipts = session.restore(stored)
        finally:
            session.restoring = None
        session.recognised += receipts
        self.people.restored(stored.record.key, stored.members)
        self.alarm.set(stored.record.key, list(stored.timers.items()))
        if session.snapshot_is_old:
            self.placement.place(session)  # `replayed` goes on from here
        else:
            self._restored(session, changed=session.seq != before)

    def _restored(self, session: LiveSession, *, changed: bool) -> None:
        """What the database knows can be read: whoever waits for it is told."""
        if not session.opened.done():
            session.opened.set_result(False)
        receipts, session.recognised = session.recognised, []
        for receipt in receipts:
            answer(receipt)
        if changed:
            update_all(session)
        else:
            notify(session)

    def let_go(self, session: LiveSession) -> None:
        """Lets go of a session at rest: the database has it. Its sockets may stay."""
        if not session.at_rest or session.gone:
            return
        if session.worker is not None:
            self.placement.freeze(session)
        elif session.members or session.watchers:
            if not session.in_doubt:
                session.unload()
        else:
            self._drop(session)

    async def freeze(self, machine_id: str, session_id: str) -> None:
        """Puts a session that has nothing to do to sleep, so that the database has a checkpoint of
        what it is now.
        """
        session = self.find(machine_id, session_id)
        if session is None or not session.at_rest or session.worker is None:
            return
        self.placement.freeze(session)
        with contextlib.suppress(TimeoutError, HubError):
            async with asyncio.timeout(FREEZING_S):
                while not session.at_rest and not session.gone:
                    await self.waits.next_turn(session)

    def _drop(self, session: LiveSession) -> None:
        name = session.machine_id, session.session_id
        if self._sessions.get(name) is session:  # another may have its name by now
            del self._sessions[name]
        if self._by_key.get(session.record.key) is session:
            del self._by_key[session.record.key]
        self.placement.leave(session)

    def _forget(self, session: LiveSession, error: HubError, *, code: int = 4004) -> None:
        """The session is no more, or never was: whoever is connected is told and closed."""
        session.gone = True
        self._drop(session)
        self.people.leave(session)
        if isinstance(error, NotFound):
            self.people.forget(session.record.key)
        for turn in session.refuse_all(
            "session_deleted" if isinstance(error, NotFound) else error.code, error.detail
        ):
            session.committed(turn)
            if turn.pending.receipt is not None:
                answer(turn.pending.receipt)
        for connection in list(session.connections.values()):
            connection.close(code, error.detail)
        if not session.opened.done():
            session.opened.set_exception(error)
            session.opened.exception()  # nobody may be waiting any more
        notify(session)

    async def delete(self, machine_id: str, session_id: str) -> None:
        """Deletes a session and everything that is kept of it. Raises `NotFound`, `Unavailable`."""
        name = machine_id, session_id
        session = self.find(machine_id, session_id)
        key = (
            session.record.key
            if session and session.started
            else (await self._store.record(machine_id, session_id)).key
        )
        self.people.forget(key)
        deleting = self._deleting[name] = asyncio.ensure_future(self.journal.delete(Deletion(key)))
        session = self.find(machine_id, session_id)
        if session is not None:
            self._forget(session, NotFound("no_such_session", "the session was deleted"))
        try:
            await asyncio.shield(deleting)
        finally:
            if self._deleting.get(name) is deleting:
                del self._deleting[name]

    async def delete_machine(self, machine_id: str) -> None:
        """Deletes all its sessions, and lets no new one begin."""
        self._deleted.add(machine_id)
        for session in [session for session in self.sessions if session.machine_id == machine_id]:
            self._forget(session, NotFound("no_such_session", "the machine was deleted"))
        try:
            while keys := await self._store.keys_of(
                machine_id
            ):  # some at a time: others' events are committed in between
                await asyncio.gather(*(self.journal.delete(Deletion(key)) for key in keys))
        except Unavailable:
            self._deleted.discard(machine_id)
            raise

    async def fork(self, record: SessionRecord, seq: int | None, session_id: str) -> SessionRecord:
        """A new session that goes on from input `seq` of another.

        Raises `NotFound`, `Conflict`, `Unavailable`.
        """
        if self.find(record.machine_id, session_id) is not None:
            raise Conflict("session_exists", "there is a session of this name")
        try:
            child = await self.past.fork(record, seq, session_id)
            if child.machine_id in self._deleted:
                await self.journal.delete(Deletion(child.key))
                raise NotFound("no_such_machine", "the machine was deleted meanwhile")
            self.alarm.set(child.key, await self._store.timers_of(child.key))
        except Unavailable:
            self._tasks.spawn(self.alarm.reload())  # it may be there all the same, with timers
            raise
        return child

    # --- timers -----------------------------------------------------------------------------------

    def _timer_due(self, key: int, timer: int, due_at_ms: int) -> None:
        session = self._by_key.get(key)
        if session is None or not session.loaded:
            if key not in self._waking:
                self._waking.add(key)
                self._tasks.spawn(self._wake(key))
        elif session.timer_due(timer, due_at_ms):
            self.intake.offer(
                session, Kind.TIMER, timer_input(self._entropy.turn_seed(), timer), timer=timer
            )

    @property
    def waiting_for_room(self) -> int:
        """Sessions whose timers are due, and that wait until others sleep."""
        return len(self._waking) - self._entering

    async def _room_to_wake(self) -> None:
        """After hours of being down, thousands of timers are due: they wake as many sessions as may
        be live, and the rest as those sleep again.
        """
        for _ in range(WAKE_WAITS):
            if self.placement.live_count + self._entering < self._limits.live_sessions:
                break
            await asyncio.sleep(WAKE_WAIT_S)
        self._entering += 1

    async def awaken(self, key: int) -> LiveSession | None:
        """A session into memory, once there is room for one more; None when it is no more.

        Raises what loading it raises.
        """
        await self._room_to_wake()
        try:
            return await self._load(key)
        finally:
            self._entering -= 1

    async def _load(self, key: int) -> LiveSession | None:
        session = self._by_key.get(key)
        if session is None:
            record = await self._store.record_of(key)
            if record is None or record.machine_id in self._deleted:
                return None
            session = self.find(record.machine_id, record.session_id) or self._take_up(record)
        if not session.opened.done():
            await asyncio.shield(session.opened)
        await self.restore(session)
        return session

    def _timer_pending(self, key: int, timer: int, due_at_ms: int) -> bool:
        session = self._by_key.get(key)
        return session is None or not session.loaded or session.timers.get(timer) == due_at_ms

    async def _wake(self, key: int) -> None:
        """A session's timer came due while it was not loaded: the alarm goes again once it is."""
        try:
            if await self.awaken(key) is not None:
                self.alarm.fire()  # what is due is on its way to a worker before the next one is woken
        except HubError:
            self.alarm.again_soon(key)
        finally:
            self._waking.discard(key)

    # --- what placement and the journal say -------------------------------------------------------

    def worker_answered(self, worker: SandboxWorker, messages: list[ToHub]) -> None:
        self.placement.worker_answered(worker, messages)

    def worker_lost(self, worker: SandboxWorker) -> None:
        self._metrics.worker_crashes.inc()
        self.past.worker_lost(worker)
        self.placement.worker_lost(worker)

    def stranger(self, worker: SandboxWorker, message: Done | Failed | Replayed) -> None:
        self.past.answered(worker, message)

    def decided(self, session: LiveSession, turn: Turn) -> None:
        if turn.timers_set:  # at once: others of the session must not fire before them because a commit takes its time
            self.alarm.set(session.record.key, turn.timers_set)
        if turn.settled is not None:
            self.journal.add_turn(session, turn)
        else:
            self.committed(session, turn, waited=False)

    def frozen(self, session: LiveSession, checkpoint: SavedCheckpoint) -> None:
        self.journal.add_checkpoint(session, checkpoint)

    def replayed(self, session: LiveSession, snapshot: bytes) -> None:
        was_old = session.snapshot_is_old
        session.replayed(snapshot)
        if was_old:
            self._restored(session, changed=True)

    def lost(self, session: LiveSession, code: str, message: str) -> None:
        """The session cannot be thawed: say so, rather than go on from a guess."""
        log.error(
            "session %s/%s cannot be thawed: %s", session.machine_id, session.session_id, message
        )
        if session.gone:
            return
        for turn in session.refuse_pending(code, message):
            if session.loaded and turn.timers_set:
                self.alarm.set(session.record.key, turn.timers_set)
            elif turn.timers_set:
                self.alarm.again_soon(session.record.key)
            self.committed(session, turn)
        self._not_restored(session, Unavailable(code, message))

    def _not_restored(self, session: LiveSession, error: Unavailable) -> None:
        """Whoever waits for the session to be read is told that it cannot be, now."""
        if session.snapshot_is_old:
            session.unload()
        receipts, session.recognised = session.recognised, []
        for receipt in receipts:
            answer(receipt)
        if not session.opened.done() and not session.in_journal:
            self._forget(session, error, code=1013)
        notify(session)

    def committed(self, session: LiveSession, turn: Turn | None, *, waited: bool = True) -> None:
        if turn is None or (session.gone and waited):
            notify(session)  # a checkpoint: somebody may wait for it
            return
        session.committed(turn)
        self._publisher.speak(session, turn)
        if turn.pending.kind is Kind.START:
            self._opened(session, turn)

    def _opened(self, session: LiveSession, turn: Turn) -> None:
        if turn.error is not None:  # a session that cannot start never was: the name is free again
            if not session.opened.done():
                session.opened.set_exception(error_of(*turn.error))
                session.opened.exception()
            self._forget(session, NotFound("no_such_session", "the session could not start"))
            return
        self._metrics.sessions_opened.inc()
        if not session.opened.done():
            session.opened.set_result(True)

    def superseded(self, session: LiveSession, known: list[Entry]) -> None:
        if session.gone:
            return
        self.placement.leave(session)
        session.rewind(known)
        self.placement.place(session)

    def refused(self, session: LiveSession, error: Unavailable) -> None:
        if session.gone:
            return
        self.placement.leave(session)
        turns = session.refuse_all(error.code, error.detail)
        if any(turn.pending.kind is Kind.TIMER for turn in turns):
            self.alarm.again_soon(session.record.key)
        for turn in turns:
            self.committed(session, turn)
        self._not_restored(session, error)

    def recovered(self) -> None:
        """The database answers again: what came due meanwhile, and what somebody watches, is looked
        for there.
        """
        self._tasks.spawn(self.alarm.reload())
        for session in self.sessions:
            if (
                session.in_doubt
                and session.connections
                and not session.loaded
                and session.restoring is None
            ):
                self._tasks.spawn(self._restore_watched(session))

    async def _restore_watched(self, session: LiveSession) -> None:
        with contextlib.suppress(HubError):
            await self.restore(session)

    def say_goodbye(self, code: int, reason: str) -> None:
        """Closes every connection, and ends every request that waits for something."""
        self.waits.end(reason, [session.opened for session in self.sessions])
        for session in self.sessions:
            for connection in list(session.connections.values()):
                connection.close(code, reason)
