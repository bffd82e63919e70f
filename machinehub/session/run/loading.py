"""From the database into memory: sessions are opened, created, loaded again.

Decides: what happens between asking for a session and being able to read it, and who waits for that
meanwhile. What is known of a session moves as `decide/lifecycle.py` says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from machinehub.errors import Conflict, HubError, Moving, NotFound, OwnedElsewhere, Unavailable
from machinehub.model import Fault
from machinehub.session.decide.discretion import discreet_error
from machinehub.session.decide.lifecycle import Phase
from machinehub.session.messages import Closed, Ending
from machinehub.session.run.beginning import beginning_record, check_given
from machinehub.session.run.publisher import answer
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from machinehub.clock import Clock, Entropy
    from machinehub.ids import MachineId, SessionId
    from machinehub.model import SessionRecord
    from machinehub.session.decide.session import Session
    from machinehub.session.decide.turn import Receipt
    from machinehub.session.messages import Listener
    from machinehub.session.port import Address
    from machinehub.session.run.deletion import Deletions
    from machinehub.session.run.intake import Intake
    from machinehub.session.run.journal import Journal
    from machinehub.session.run.placement import Placement
    from machinehub.session.run.presence import Crowds
    from machinehub.session.run.presence_events import PresenceEvents
    from machinehub.session.run.publisher import Publisher
    from machinehub.session.run.registry import Registry
    from machinehub.session.run.scheduler import TimerScheduler
    from machinehub.session.run.waits import Waits
    from machinehub.session.versions import Versions, VersionTarget
    from machinehub.store.sessions import SessionStore

NO_SESSION: Final = "the machine has no session of this name"


@dataclass(slots=True, eq=False)
class Opening:
    """Who waits for a session."""

    opened: asyncio.Future[bool]
    """Done when the session can be read for the first time; says whether it began then."""
    load: asyncio.Future[None] | None = None
    """The load that is under way."""
    receipts: list[Receipt] = field(default_factory=list)
    """Of events that had been committed after all, to be answered when that can be read."""
    knows_limits: bool = False
    """Whether the session was told what its version allows."""
    claim: int = 0
    """By which this node has it, where several hubs share a database; 0 before it has."""


class Loader:
    """Loads sessions into memory, creates new ones, and removes sessions from memory."""

    def __init__(
        self,
        registry: Registry,
        store: SessionStore,
        versions: Versions,
        clock: Clock,
        entropy: Entropy,
        *,
        journal: Journal,
        placement: Placement,
        scheduler: TimerScheduler,
        publisher: Publisher,
        crowds: Crowds,
        presence_events: PresenceEvents,
        intake: Intake,
        waits: Waits,
        deletions: Deletions,
    ) -> None:
        self._registry = registry
        self._store = store
        self._versions = versions
        self._clock = clock
        self._entropy = entropy
        self._journal = journal
        self._placement = placement
        self._scheduler = scheduler
        self._publisher = publisher
        self._crowds = crowds
        self._presence_events = presence_events
        self._intake = intake
        self._waits = waits
        self._deletions = deletions
        self._openings: dict[Session, Opening] = {}
        self.on_moved: Callable[[Session, list[Listener]], None] = lambda _session, _listeners: None
        """Hears of sessions that other nodes have now, and of who listened to them here."""
        self._tasks = Tasks()

    def stop(self) -> None:
        self._tasks.stop()
        for opening in self._openings.values():
            if opening.load is not None:
                opening.load.cancel()

    @property
    def openings(self) -> list[asyncio.Future[bool]]:
        """Of all sessions in memory."""
        return [opening.opened for opening in self._openings.values()]

    # --- opening ----------------------------------------------------------------------------------

    async def open(self, address: Address, given: bytes | None = None) -> Session:
        """The session at `address`; it begins, with `given` as XState's input, when it is new.

        A version that is named must exist, whether or not the session does. Raises `NotFound` and
        what the machine's start raises.
        """
        machine_id, session_id, version = address
        session = self._registry.find(machine_id, session_id)
        if session is None or not session.started or version is not None:
            target = await self._versions.target(machine_id, version)
            check_given(given, target)
            session = self._registry.find(machine_id, session_id)
            if session is None:
                session = self._begin(machine_id, session_id, target, given)
        return await self._when_readable(session)

    async def open_existing(self, machine_id: MachineId, session_id: SessionId) -> Session:
        """Raises `NotFound` when there is none."""
        session = self._registry.find(machine_id, session_id)
        if session is None:
            record = await self._store.record(machine_id, session_id)
            session = self._registry.find(machine_id, session_id) or self.take_up(record)
        return await self._when_readable(session)

    async def create(self, address: Address, given: bytes | None) -> Session:
        """A new session. Raises `Conflict` when there is one of this name."""
        machine_id, session_id, version = address
        exists = Conflict(
            "session_exists",
            "there is a session of this name; its input was given when it began",
        )
        target = await self._versions.target(machine_id, version)
        check_given(given, target)
        if self._registry.find(machine_id, session_id) is not None:
            raise exists
        session = self._begin(machine_id, session_id, target, given)
        if not await asyncio.shield(self._openings[session].opened):
            raise exists
        return session

    def _begin(
        self,
        machine_id: MachineId,
        session_id: SessionId,
        target: VersionTarget,
        given: bytes | None,
    ) -> Session:
        """A session that may be new, or in the database."""
        record = beginning_record(
            machine_id, session_id, target, entropy=self._entropy, now_ms=self._clock.now_ms()
        )
        session = self.take_up(record, may_begin=True, given=given)
        session.has_view = target.terms.has_view  # in case that it cannot start
        return session

    def take_up(
        self, record: SessionRecord, *, may_begin: bool = False, given: bytes | None = None
    ) -> Session:
        """A session comes into memory; what is to be known of it follows."""
        session = self._registry.add(record, self._clock.now_ms())
        self._openings[session] = Opening(asyncio.get_running_loop().create_future())
        self._tasks.spawn(self._bring_in(session, may_begin=may_begin, given=given))
        return session

    async def _when_readable(self, session: Session) -> Session:
        if session in self._registry.moving:
            raise Moving
        session.used(self._clock.now_ms())
        if session.phase is not Phase.LIVE:
            await self._until_readable(session)
        opening = self._openings.get(session)
        if opening is not None and not opening.knows_limits:
            version = session.record.version
            session.allow(await self._versions.terms_of(session.machine_id, version))
            opening.knows_limits = True
        return session

    async def _until_readable(self, session: Session) -> None:
        opening = self._openings.get(session)
        if opening is not None:
            await asyncio.shield(opening.opened)
        if session.phase in (Phase.IN_DOUBT, Phase.LOADING):
            await self.load(session)
        while session.phase is Phase.REPLAYING:
            await self._waits.next_turn(session)
        if not session.phase.readable and not session.gone:
            raise Unavailable("unavailable", "the session cannot be restored just now; try again")

    async def opened(self, session: Session) -> None:
        """Returns when the session could be read for the first time. Raises what stands against
        it.
        """
        opening = self._openings.get(session)
        if opening is not None and not opening.opened.done():
            await asyncio.shield(opening.opened)

    async def _bring_in(self, session: Session, *, may_begin: bool, given: bytes | None) -> None:
        """From the database, or else, if it may begin, into being."""
        opening = self._openings.get(session)
        if opening is None:  # forgotten before this began
            return
        try:
            await self._deletions.settled(session.machine_id, session.session_id)
            if (
                opening.load is None and not session.phase.loaded
            ):  # as most often: no task of its own
                opening.load = asyncio.current_task()
                await self._load(session, opening, may_begin=may_begin)
            else:
                await self.load(session)
        except HubError as error:
            self.forget(session, error, Ending.DELETED)
            return
        if session.phase is Phase.STARTING:
            self._intake.start(session, given)

    # --- loading ----------------------------------------------------------------------------------

    def is_loading(self, session: Session) -> bool:
        opening = self._openings.get(session)
        return opening is not None and opening.load is not None

    def is_opened(self, session: Session) -> bool:
        """Whether it could be read at least once."""
        opening = self._openings.get(session)
        return opening is None or opening.opened.done()

    async def load(self, session: Session) -> None:
        """Loads what the database knows, unless that is known already. Raises `NotFound`,
        `Unavailable`.
        """
        opening = self._openings.get(session)
        if session.gone or opening is None:
            raise NotFound("no_such_session", "the session was deleted")
        if opening.load is None:
            if session.phase.loaded:
                return  # somebody else was first
            self._load_after(session, opening, None)
        assert opening.load is not None
        await asyncio.shield(opening.load)

    def reload_after(self, session: Session, first: Awaitable[None]) -> None:
        """Unloads a session; whoever needs it waits until `first` is done and it is loaded again.

        For a session at rest whose stored state is being mended.
        """
        session.unload()
        opening = self._openings[session]
        assert opening.load is None
        self._load_after(session, opening, first)

    def _load_after(
        self, session: Session, opening: Opening, first: Awaitable[None] | None
    ) -> None:
        async def work() -> None:
            try:
                if first is not None:
                    await first
            except BaseException:
                opening.load = None
                raise
            await self._load(session, opening, may_begin=False)

        opening.load = asyncio.ensure_future(work())
        opening.load.add_done_callback(_ignore)  # nobody may be waiting

    async def _load(self, session: Session, opening: Opening, *, may_begin: bool) -> None:
        try:
            if session.gone:
                return
            session.loading()
            try:
                stored = await self._store.load(session.machine_id, session.session_id)
            except BaseException:
                if not session.gone:
                    session.not_loaded()
                raise
            if session.gone:
                return
            if stored is None:
                self._absent(session, may_begin=may_begin)
                return
            self._registry.rekey(session, stored.record.key)
            before = session.seq
            opening.claim = stored.claim
            opening.receipts += session.restore(stored)
        except OwnedElsewhere as error:
            self.forget(session, error, Ending.UNAVAILABLE)
            raise
        finally:
            opening.load = None
        taken_over = stored.is_taken_over
        self._presence_events.restored(stored.record.key, stored.members, taken_over=taken_over)
        waiting = [(timer, armed.due_at_ms) for timer, armed in stored.timers.items()]
        self._scheduler.set(stored.record.key, waiting)
        if session.phase is Phase.REPLAYING:
            self._placement.place(session)  # `restored` goes on from here
        else:
            self.restored(session, changed=session.seq != before)

    def _absent(self, session: Session, *, may_begin: bool) -> None:
        """The database has no such session."""
        if may_begin:
            session.start_anew()
            return
        if session.started:
            deleted = NotFound("no_such_session", "the session was deleted")
            self.forget(session, deleted, Ending.DELETED)
        else:
            session.not_loaded()
        raise NotFound("no_such_session", NO_SESSION)

    def restored(self, session: Session, *, changed: bool) -> None:
        """What the database knows can be read: whoever waits for it is told."""
        opening = self._openings.get(session)
        if opening is not None:
            if not opening.opened.done():
                opening.opened.set_result(False)
            self._answer(opening)
        if changed:
            self._publisher.tell_how_it_stands(session)
        else:
            self._publisher.notify(session)

    def not_restored(self, session: Session, error: HubError) -> None:
        """Whoever waits for the session to be read is told that it cannot be, now."""
        if session.phase is Phase.REPLAYING:
            session.unload()
        opening = self._openings.get(session)
        if opening is not None:
            self._answer(opening)
            if not opening.opened.done() and not self._journal.holds(session):
                self.forget(session, error, Ending.UNAVAILABLE)
        self._publisher.notify(session)

    def began(self, session: Session) -> None:
        """Its first input was committed."""
        opening = self._openings.get(session)
        if opening is None:
            return
        if self._store.node is not None:
            opening.claim = 1
        if not opening.opened.done():
            opening.opened.set_result(True)

    def could_not_begin(self, session: Session, error: HubError) -> None:
        """Its first input was refused: the name is free again."""
        opening = self._openings.get(session)
        if opening is not None:
            _fail(opening.opened, discreet_error(error) if session.has_view else error)
        never = NotFound("no_such_session", "the session could not start")
        self.forget(session, never, Ending.DELETED)

    def _answer(self, opening: Opening) -> None:
        receipts, opening.receipts = opening.receipts, []
        for receipt in receipts:
            answer(receipt)

    # --- forgetting -------------------------------------------------------------------------------

    def drop(self, session: Session) -> None:
        """The session leaves memory; where several hubs share the database, any may have it."""
        opening = self._openings.get(session)
        if opening is not None and opening.claim and not session.gone:
            self._journal.release(session.record.key, opening.claim)
        self._leave_memory(session)

    def _leave_memory(self, session: Session, why: HubError | None = None) -> None:
        """`why` is what those are told who wait to be let in."""
        self._registry.remove(session)
        self._openings.pop(session, None)
        self._placement.drop(session)
        self._crowds.drop(session)
        self._publisher.drop(session, why)

    def forget(self, session: Session, error: HubError, why: Ending) -> None:
        """The session is no more, or never was: whoever is connected is told, and hears nothing
        more.
        """
        if why is Ending.RESTARTED:
            self._intake.succeeded(session)
        if session.gone:
            return
        opening = self._openings.get(session)
        listeners = list(self._publisher.listeners(session))
        if isinstance(error, OwnedElsewhere):
            self._registry.moving.add(session)
        session.forget()
        self._placement.leave(session)
        if isinstance(error, NotFound):
            self._presence_events.forget(session.record.key)
        code = "session_deleted" if isinstance(error, NotFound) else error.code
        for turn in session.refuse_all(Fault(code, error.detail)):
            session.committed(turn)
            if turn.pending.receipt is not None:
                answer(turn.pending.receipt)
        if isinstance(error, OwnedElsewhere):
            self._presence_events.forget(session.record.key)
            self.on_moved(session, listeners)
        else:
            self._publisher.send(listeners, Closed(why, error.detail))
        if opening is not None:
            _fail(opening.opened, error)
        self._publisher.notify(session)
        self.drop(session)

    # --- handing over -----------------------------------------------------------------------------

    def release(self, session: Session) -> asyncio.Future[None] | None:
        """Any node may claim a session that is at rest, once the answer is done."""
        opening = self._openings.get(session)
        if opening is None or not opening.claim:
            return None
        return self._journal.release(session.record.key, opening.claim)

    def part_with(self, session: Session) -> None:
        """The session is another node's now: it leaves memory, and whoever listens is told to look
        for it there.
        """
        if session.gone:
            return
        self._registry.moving.add(session)
        listeners = list(self._publisher.listeners(session))
        opening = self._openings.get(session)
        session.forget()
        self._placement.leave(session)
        self._presence_events.forget(session.record.key)
        if opening is not None:
            _fail(opening.opened, Moving())
        self._publisher.notify(session)
        self._leave_memory(session, Moving())
        self.on_moved(session, listeners)


def _fail(opened: asyncio.Future[bool], error: HubError) -> None:
    if not opened.done():
        opened.set_exception(error)
        opened.exception()  # nobody may be waiting any more


def _ignore(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()
