"""A session's history: how it was after each of its inputs, computed again from checkpoints and the
journal.

Decides: from which checkpoint to start, how much of a worker's time a replay may take at once, what
a fork inherits, and how a damaged checkpoint is made again. The session itself, if it is awake,
notices nothing: a replica of it is thawed beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.clock import Stopwatch
from machinehub.effect import Effect
from machinehub.errors import Conflict, HubError, NotFound, Unavailable, error_of, fault_of
from machinehub.ids import Seq
from machinehub.model import Armed, CheckpointWrite, SavedCheckpoint, SessionRecord, Successor
from machinehub.session.decide.answers import (
    OUTBOX_BYTES_MAX,
    read_outbox,
)
from machinehub.session.decide.changes import changes_of
from machinehub.session.decide.effects import asked_in
from machinehub.session.decide.identity import read_sender
from machinehub.session.port import Persisted, Recomputed
from machinehub.session.run.replicas import Replica, replica_at
from machinehub.store.database import AlreadyWritten
from sandbox.protocol.formats import UnknownFormat, checkpoint_digest
from sandbox.protocol.ids import Ticket
from sandbox.protocol.inputs import read_input
from sandbox.protocol.messages import Close, Done, Step

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from machinehub.clock import Clock, Entropy
    from machinehub.ids import MachineId, MemberId, SessionId
    from machinehub.model import Entry
    from machinehub.session.run.placement import Placement
    from machinehub.session.run.questions import Questions
    from machinehub.session.run.worker_interfaces import Images, SandboxWorker, SandboxWorkers
    from machinehub.store.sessions import SessionStore
    from sandbox.protocol.ids import Slot

log = logging.getLogger("machinehub.session")

ENTRIES_AT_ONCE: Final = 500
REPLAYS_AT_ONCE: Final = 4
REPLAYS_WAITING_MAX: Final = 64
REPLAYS_PER_MACHINE_MAX: Final = 8
"""How many replays of one machine may run or wait; `REPLAYS_WAITING_MAX` is the same for all
machines together. Any further replay is refused with `unavailable`.
"""
PRESENCE_JOINED: Final = b'{"type":"presence.joined"'


class History:
    """Computes past states of sessions on replicas: snapshots, forks, replays, and rebuilt
    checkpoints.
    """

    def __init__(
        self,
        store: SessionStore,
        pool: SandboxWorkers,
        images: Images,
        placement: Placement,
        questions: Questions,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._questions = questions
        self._store = store
        self._pool = pool
        self._images = images
        self._placement = placement
        self._clock = clock
        self._entropy = entropy
        self._running = asyncio.Semaphore(REPLAYS_AT_ONCE)
        self._wanted: Counter[MachineId] = Counter()

    # --- what can be asked ------------------------------------------------------------------------

    async def snapshot_at(self, record: SessionRecord, seq: Seq) -> bytes:
        """The public snapshot after `seq` inputs. Raises `NotFound` for a step that is not, or not
        any more, to be had.
        """
        checkpoint = await self._start_for(record, seq)
        if checkpoint is not None and checkpoint.seq == seq:
            return checkpoint.snapshot
        async with self._replica(record, checkpoint) as replica:
            await self._walk(record, replica, seq)
            return replica.snapshot

    async def persisted(self, record: SessionRecord) -> Persisted:
        """What XState would persist after the last input. Raises `Conflict` where it cannot."""
        if (await self._images.image(record.digest)).is_module:
            raise Conflict("not_persistable", "a module has no snapshot that XState could restore")
        seq = (await self._store.span(record.key))[1]
        async with self._replica(record, await self._start_for(record, seq)) as replica:
            await self._walk(record, replica, seq)
            return Persisted(seq, await replica.persisted(self._clock.now_ms()))

    async def fork(
        self, record: SessionRecord, seq: Seq | None, session_id: SessionId, *, sends: bool = False
    ) -> SessionRecord:
        """A new session that goes on from `seq`. What is left of each timer's time then is left of
        it now. What was waited for then is asked for once more, if it `sends`.

        Without `seq` that is the last one; of a damaged session the last one that it can be
        computed up to. Raises `NotFound` as `snapshot_at`, and `Conflict` when there is a session
        of that name.
        """
        if seq is not None:
            return await self._fork(record, seq, session_id, sends=sends)
        last: HubError = NotFound("no_such_seq", "the session has no inputs")
        async for head in self._heads(record):
            try:
                return await self._fork(record, head, session_id, sends=sends)
            except Unavailable as error:
                if error.code != "session_damaged":
                    raise
                last = error
        raise last

    async def _fork(
        self, record: SessionRecord, seq: Seq, session_id: SessionId, *, sends: bool
    ) -> SessionRecord:
        base = await self._start_for(record, seq)
        async with self._replica(record, base) as replica:
            await self._walk(record, replica, seq)
            data = await replica.freeze()
        now_ms = self._clock.now_ms()
        then_ms = replica.last.now_ms if replica.last else base.at_ms if base else now_ms
        for timer, armed in replica.timers.items():
            replica.timers[timer] = Armed(armed.due_at_ms + now_ms - then_ms)
        child = SessionRecord(
            key=self._entropy.session_key(now_ms),
            machine_id=record.machine_id,
            session_id=session_id,
            version=record.version,
            digest=record.digest,
            hears_presence=record.hears_presence,
            created_at_ms=now_ms,
            finished_at_ms=now_ms if replica.finished else None,
            parent=record.session_id,
            forked_at=seq,
        )
        members = await self._members_at(record, seq)
        try:
            return await self._store.fork(
                child,
                record.key,
                replica.saved(data, now_ms),
                members,
                send_at_ms=now_ms if sends else None,
            )
        except AlreadyWritten:
            raise Conflict("session_exists", "there is a session of this name") from None

    async def begin(self, record: SessionRecord, entry: Entry, *, cpu_ms: int) -> Successor:
        """A session that has had its first input, `entry`, and is nowhere yet. Raises what the
        machine's start raises, and `Unavailable`.
        """
        async with self._replica(record, None) as replica:
            question = Step(replica.slot, Ticket(1), entry.input, entry.now_ms, cpu_ms)
            try:
                answer = await self._questions.ask(replica.worker, replica.slot, question)
            except Unavailable as error:
                raise error_of(fault_of(error)) from None
            assert isinstance(answer, Done)
            outbox = read_outbox(answer.result, snapshot_bytes_max=OUTBOX_BYTES_MAX, begins=True)
            timers = changes_of(outbox.timers_set, outbox.timers_cancelled, fired=None)
            timers.apply_to(replica.timers)
            if outbox.finished:
                replica.timers.clear()
            replica.snapshot, replica.finished = bytes(outbox.snapshot), outbox.finished
            replica.seq, replica.last = entry.seq, entry
            asked = asked_in(outbox, entry.seq, entry.now_ms).values()
            effects = [each for each in asked if isinstance(each, Effect) and not outbox.finished]
            saved = replica.saved(await replica.freeze(), entry.now_ms)
            if outbox.finished:
                record = msgspec.structs.replace(record, finished_at_ms=entry.now_ms)
            return Successor(record, entry, saved, effects)

    async def _members_at(self, record: SessionRecord, seq: Seq) -> dict[MemberId, bytes]:
        """Whom the machine was told of after `seq` inputs: member and `sender`, as far as the
        journal reaches back.
        """
        members: dict[MemberId, bytes] = {}
        if record.hears_presence:
            for entry in await self._store.presence_entries(record.key, until=seq):
                said = read_input(entry.input)
                who = read_sender(bytes(said.sender))
                members.pop(who.member, None)
                if bytes(said.subject).startswith(PRESENCE_JOINED):
                    members[who.member] = who.sender
        return members

    async def recompute(self, record: SessionRecord, seq: Seq | None) -> Recomputed:
        """Replays the journal up to `seq`, or up to the last input if it is None, and compares the
        memory with every stored checkpoint on the way.

        The replay starts from the image, or, if the journal is pruned, from the newest checkpoint
        at or before its first entry. Raises `NotFound` and `Unavailable`.
        """
        seq = (await self._store.span(record.key))[1] if seq is None else seq
        first = await self._start_for(record, seq, earliest=True)
        compared: list[tuple[Seq, str, str]] = []
        async with self._replica(record, first) as replica:
            began, watch = replica.seq, Stopwatch()
            stops = [stop for stop in await self._store.checkpoint_seqs(record.key) if stop < seq]
            for stop in [*(stop for stop in stops if stop > began), seq]:
                await self._walk(record, replica, stop)
                data = await replica.freeze()
                digest = checkpoint_digest(data)
                stored = await self._store.checkpoint_before(record.key, stop)
                if stored is not None and stored.seq == stop:
                    # What says the same digest may hold something else all the same.
                    is_sound = stored.data == data or await self._thaws(replica, record, stored)
                    compared.append((stop, _digest(stored) if is_sound else "damaged", digest))
            return Recomputed(
                seq=seq,
                state=replica.snapshot,
                digest=digest,
                inputs=seq - began,
                ms=watch.us / 1000,
                checkpoints=compared,
                verified=all(stored == found for _, stored, found in compared),
            )

    async def _thaws(
        self, replica: Replica, record: SessionRecord, checkpoint: SavedCheckpoint
    ) -> bool:
        """Whether a session can be thawed from a checkpoint as it is stored."""
        slot, worker = self._placement.new_slot(), replica.worker
        worker.take(record.digest, await self._images.image(record.digest))
        opening = self._placement.opening(slot, record.digest, checkpoint.data)
        try:
            await self._questions.ask(worker, slot, opening)
        except Unavailable as error:
            if error.code != "session_damaged":
                raise
            return False
        finally:
            self._close(worker, slot, record)
        return True

    # --- damage -----------------------------------------------------------------------------------

    async def mend_newest(self, record: SessionRecord) -> None:
        """The newest checkpoint of a session cannot be read: it is made again from the one before
        it, or from the session's beginning, and the journal. Raises `Unavailable` when those are
        not there.
        """
        seqs = await self._store.checkpoint_seqs(record.key)
        if seqs:
            await self._mend(record, seqs[-1])

    async def _mend(self, record: SessionRecord, seq: Seq) -> None:
        damaged = await self._store.checkpoint_before(record.key, seq)
        first, _ = await self._store.span(record.key)
        base = await self._store.checkpoint_before(record.key, Seq(seq - 1))
        if damaged is None or (base is None and first != 1):
            raise Unavailable(
                "session_damaged",
                "its only checkpoint is damaged, and its journal does not begin at 1",
            )
        try:
            async with self._replica(record, base, mends=True) as replica:
                await self._walk(record, replica, seq)
                data = await replica.freeze()
        except NotFound as error:
            raise Unavailable("session_damaged", error.detail) from error
        was, now = _digest(damaged), checkpoint_digest(data)
        write = CheckpointWrite(record.key, replica.saved(data, damaged.at_ms))
        await self._store.commit([write])
        log.warning(
            "checkpoint %d of %s/%s was made again from the journal (digest %s, %s)",
            seq,
            record.machine_id,
            record.session_id,
            now,
            "as it was" if was == now else f"not {was}",
        )

    # --- replicas ---------------------------------------------------------------------------------

    async def _start_for(
        self, record: SessionRecord, seq: Seq, *, earliest: bool = False
    ) -> SavedCheckpoint | None:
        """From where to go to `seq`: a checkpoint, or None for the image."""
        first, last = await self._store.span(record.key)
        if not 1 <= seq <= last:
            raise NotFound("no_such_seq", f"the session has inputs 1 to {last}")
        if earliest and first == 1:
            return None
        checkpoint = await self._store.checkpoint_before(record.key, first if earliest else seq)
        if first != 1 and (checkpoint is None or checkpoint.seq > seq):
            raise NotFound("history_pruned", f"the journal of this session begins at {first}")
        return checkpoint

    @contextlib.asynccontextmanager
    async def _replica(
        self, record: SessionRecord, checkpoint: SavedCheckpoint | None, *, mends: bool = False
    ) -> AsyncIterator[Replica]:
        """Thaws a replica of the session at `checkpoint` (None: at its image) on a worker, and
        closes it when the block ends.

        `mends` skips the limits on concurrent replays, for rebuilding a damaged checkpoint.
        """
        async with contextlib.AsyncExitStack() as open_:
            if not mends:
                await open_.enter_async_context(self._turn_of(record.machine_id))
            image = await self._images.image(record.digest)
            worker = await self._pool.wait_for_worker(
                modules=image.is_module, machine=record.machine_id
            )
            slot = self._placement.new_slot()
            worker.take(record.digest, image)
            open_.callback(self._close, worker, slot, record)
            data = checkpoint.data if checkpoint else None
            try:
                await self._questions.ask(
                    worker, slot, self._placement.opening(slot, record.digest, data)
                )
            except Unavailable as error:
                if error.code != "session_damaged" or checkpoint is None:
                    raise
                await self._mend(record, checkpoint.seq)
                checkpoint = await self._store.checkpoint_before(record.key, checkpoint.seq)
                assert checkpoint is not None
                data = checkpoint.data
                await self._questions.ask(
                    worker, slot, self._placement.opening(slot, record.digest, data)
                )
            yield replica_at(self._questions, worker, slot, checkpoint)

    def _close(self, worker: SandboxWorker, slot: Slot, record: SessionRecord) -> None:
        if not worker.lost:
            worker.tell(Close(slot))
            worker.leave(record.digest)

    @contextlib.asynccontextmanager
    async def _turn_of(self, machine_id: MachineId) -> AsyncIterator[None]:
        """Waits for a place among the replays that run. Raises `Unavailable` when too many wait."""
        if (
            self._wanted.total() >= REPLAYS_WAITING_MAX
            or self._wanted[machine_id] >= REPLAYS_PER_MACHINE_MAX
        ):
            raise Unavailable(
                "unavailable", "too many look into the past just now; try again later"
            )
        self._wanted[machine_id] += 1
        try:
            async with self._running:
                yield
        finally:
            self._wanted[machine_id] -= 1
            if not self._wanted[machine_id]:
                del self._wanted[machine_id]

    async def _walk(self, record: SessionRecord, replica: Replica, until: Seq) -> None:
        """Replays what was applied from where the replica is up to `until`."""
        after = replica.seq
        reading = self._read_ahead(record, after, until)
        try:
            while after < until:
                entries = await reading
                expected = range(after + 1, until + 1)
                for wanted, entry in zip(expected, [*entries, None], strict=False):
                    if entry is None and entries:
                        break
                    if entry is None or entry.seq != wanted:
                        raise await self._missing(record, Seq(wanted))
                after = entries[-1].seq
                reading = self._read_ahead(record, after, until)  # while these are replayed
                await replica.replay(entries)
        finally:
            reading.cancel()

    async def _missing(self, record: SessionRecord, seq: Seq) -> HubError:
        """Why an input is not in the journal."""
        first, _ = await self._store.span(record.key)
        if seq < first:
            return NotFound("history_pruned", f"input {seq} is not in the journal any more")
        if await self._store.record_of(record.key) is None:
            return NotFound("no_such_session", "the session was deleted")
        return Unavailable("session_damaged", f"input {seq} is missing from the journal")

    async def _heads(self, record: SessionRecord) -> AsyncIterator[Seq]:
        """The last inputs that a session can be computed up to, from each of its checkpoints and
        from its beginning: the newest one first. There is one, unless the session is damaged.
        """
        first, _ = await self._store.span(record.key)
        bases = [*reversed(await self._store.checkpoint_seqs(record.key))]
        for base in [*bases, Seq(0)] if first == 1 else bases:
            head = base
            while entries := await self._store.entries(
                record.key, after=(head, 0), limit=ENTRIES_AT_ONCE, applied_only=True
            ):
                whole = [each for at, each in enumerate(entries, head + 1) if each.seq == at]
                head = whole[-1].seq if whole else head
                if len(whole) < len(entries):
                    break
            if head:
                yield head

    def _read_ahead(
        self, record: SessionRecord, after: Seq, until: Seq
    ) -> asyncio.Task[list[Entry]]:
        reading = asyncio.ensure_future(self._read(record, after, until))
        # It may not be waited for any more.
        reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return reading

    async def _read(self, record: SessionRecord, after: Seq, until: Seq) -> list[Entry]:
        if after >= until:
            return []
        return await self._store.entries(
            record.key, after=(after, 0), until=until, limit=ENTRIES_AT_ONCE, applied_only=True
        )


def _digest(checkpoint: SavedCheckpoint) -> str:
    """Of a checkpoint as it is stored, which may be damaged."""
    try:
        return checkpoint_digest(checkpoint.data)
    except UnknownFormat as error:
        return str(error)
