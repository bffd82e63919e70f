"""The session port for this hub's own sessions: answers what is asked.

Decides nothing that a part could decide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.errors import Conflict, Forbidden, NotFound, Unavailable, ViewFailed
from machinehub.model import SessionDelete
from machinehub.session.decide.events import check_event, check_input
from machinehub.session.decide.turn import Answering
from machinehub.session.messages import Closed, Ending, Snapshot
from machinehub.session.port import Answered, Summary
from machinehub.session.run.host import SessionHost
from machinehub.session.run.publisher import snapshot_of
from machinehub.session.run.subscription import LocalSubscription

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from machinehub.effect import Conclusion, EffectRecord
    from machinehub.ids import EventId, MachineId, Seq, SessionId, SessionKey
    from machinehub.model import Entry, Fault, SessionRecord
    from machinehub.session.decide.conditions import Condition
    from machinehub.session.decide.session import Session
    from machinehub.session.messages import Listener, Presence
    from machinehub.session.port import (
        Address,
        Busy,
        Persisted,
        Place,
        Recomputed,
        Subscription,
        Visitor,
    )
    from sandbox.protocol.ids import EffectId, TimerId


class LocalSessions(SessionHost):
    """`Sessions` (session/port.py), and the life of what has them."""

    # --- using a session --------------------------------------------------------------------------

    async def read(self, address: Address, visitor: Visitor, at: Seq | None = None) -> Snapshot:
        if at is not None:
            session = await self.loader.open_existing(address.machine_id, address.session_id)
            record = session.record
            then = await self.history.snapshot_at(record, at)
            snapshot = Snapshot(at, record.version, then)
        else:
            session = await self.loader.open(address)
            snapshot = snapshot_of(session)
        return await self._shown(session, visitor, snapshot)

    async def create(self, address: Address, visitor: Visitor, given: bytes | None) -> Snapshot:
        self._check_given(given)
        session = await self.loader.create(address, given)
        return await self._shown(session, visitor, snapshot_of(session))

    async def subscribe(
        self,
        address: Address,
        listener: Listener,
        visitor: Visitor,
        *,
        given: bytes | None = None,
        emitted_after: Seq | None = None,
        inputs: bool = False,
        replaces: Listener | None = None,
    ) -> Subscription:
        """`replaces` is a listener whose place this one takes."""
        self._check_given(given)
        who = self.crowds.identify(address.machine_id, address.session_id, visitor)
        session = await self.loader.open(address, given)
        if session.has_view:
            if inputs:
                raise Forbidden("forbidden", "the machine says itself what its members see")

            def enter(shown: Snapshot) -> None:
                self.crowds.attach(session, listener, who, shown, replaces=replaces)

            await self.views.admit(session, listener, who.sender, enter, emitted_after)
        else:
            now = snapshot_of(session)
            self.crowds.attach(session, listener, who, now, replaces=replaces, follows=inputs)
            if emitted_after is not None:
                for emitted in self.publisher.audience(session).recent.after(emitted_after):
                    listener.receive(emitted)
        return LocalSubscription(
            session,
            listener,
            who,
            visitor,
            intake=self.intake,
            crowds=self.crowds,
            publisher=self.publisher,
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
        self.intake.check(session, event, visitor.principal, is_hub=who.is_hub)
        answered = await self.intake.send_and_wait(
            session,
            event,
            who.sender,
            event_id=who.own(event_id),
            if_match=if_match,
            depth=who.depth,
        )
        answered.settled.event_id = event_id
        if not session.has_view or answered.settled.error is not None:
            return answered
        try:
            shown = await self.views.shown(session, who.sender, answered.snapshot)
        except (ViewFailed, Unavailable):  # the event was taken all the same
            seq, version = answered.snapshot.seq, answered.snapshot.version
            shown = Snapshot(seq, version, b"null", is_personal=True)
        return Answered(answered.settled, shown)

    async def wait(self, address: Address, visitor: Visitor, condition: Condition) -> Snapshot:
        session = await self.loader.open(address)
        if not session.has_view:
            return await self.waits.until(session, condition.holds)
        while True:
            before = snapshot_of(session)
            shown = await self._shown(session, visitor, before)
            if condition.holds(shown.state):
                return shown
            # On what the member sees, not on the snapshot: it must not find out by asking.
            await self.waits.until(session, _moved_from(session, before.seq))

    async def _shown(self, session: Session, visitor: Visitor, snapshot: Snapshot) -> Snapshot:
        if not session.has_view:
            return snapshot
        who = self.crowds.identify(session.machine_id, session.session_id, visitor)
        return await self.views.shown(session, who.sender, snapshot)

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

    async def persisted(self, address: Address) -> Persisted:
        return await self.history.persisted(await self._record(address))

    async def place_of(self, address: Address, client: bytes) -> Seq | None:
        return await self._store.places.find(address.machine_id, address.session_id, client)

    async def keep_places(self, places: Collection[Place]) -> None:
        rows = [(*address[:2], client, seq) for address, client, seq in places]
        await self._store.places.keep(rows, now_ms=self._clock.now_ms())

    async def effects(
        self, address: Address, *, before: EffectId | None, limit: int
    ) -> list[EffectRecord]:
        record = await self._record(address)
        return await self._store.effects.of_session(record.key, before=before, limit=limit)

    async def answer(
        self,
        address: Address,
        effect: EffectId,
        answer: bytes,
        how: Conclusion,
        *,
        key: SessionKey | None = None,
        is_last: bool = False,
    ) -> Fault | None:
        session = await self.loader.open_existing(address.machine_id, address.session_id)
        return await self.intake.answer(session, answer, Answering(effect, how, is_last), key)

    async def fork(
        self, address: Address, at: Seq | None, session_id: SessionId, *, sends: bool = False
    ) -> Summary:
        record = await self._record(address)
        if self.registry.find(record.machine_id, session_id) is not None:
            raise Conflict("session_exists", "there is a session of this name")
        try:
            child = await self.history.fork(record, at, session_id, sends=sends)
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

    async def versions_in_use(self, machine_id: MachineId) -> set[int]:
        return {each.record.version for each in self.registry.all if each.machine_id == machine_id}

    def reconnect(self, machine_id: MachineId, reason: str) -> None:
        for session in self.registry.all:
            if session.machine_id == machine_id:
                listeners = self.publisher.listeners(session)
                self.publisher.send(listeners, Closed(Ending.RESTARTED, reason))

    def is_in_memory(self, address: Address) -> bool:
        return self.registry.find(address.machine_id, address.session_id) is not None

    def count_in_memory(self, machines: Collection[MachineId]) -> int:
        known = set(machines)
        return sum(session.machine_id in known for session in self.registry.all)

    async def busiest(self, count: int) -> list[Busy]:
        return self.gauges.busiest(count)

    async def delete_machine(self, machine_id: MachineId) -> None:
        await self.deletions.delete_machine(machine_id)


def _moved_from(session: Session, seq: Seq) -> Callable[[bytes], bool]:
    return lambda _snapshot: session.seq != seq
