"""A session's past: how it was after each of its inputs, computed again from checkpoints and the
journal.

Decides: from which checkpoint to start, how much of a worker's time a replay may take at once, what
a fork inherits. The session itself, if it is awake, notices nothing: its past is thawed beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.errors import Conflict, NotFound, Unavailable
from machinehub.model import SavedCheckpoint, SessionRecord
from machinehub.session.answers import BrokenWorker, check_replayed
from machinehub.session.core import Kind
from machinehub.session.event import sender_json
from machinehub.store.database import Taken
from sandbox.protocol import Checkpoint, Close, Done, Failed, Replay, Replayed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from machinehub.clock import Clock, Entropy
    from machinehub.model import Entry
    from machinehub.session.live import Images, SandboxWorker, SandboxWorkers
    from machinehub.session.placement import Placement
    from machinehub.store.sessions import SessionStore
    from sandbox.protocol import Question, ToHub

SLICE_US: Final = 10_000
"""CPU of a worker that a replay takes before others have their turn."""
SLICE_INPUTS_MAX: Final = 200
ENTRIES_AT_ONCE: Final = 500
REPLAYS_AT_ONCE: Final = 4
REPLAYS_WAITING_MAX: Final = 64
REPLAYS_PER_MACHINE_MAX: Final = 8
"""Those that run or wait. Whoever comes when there are more is told `unavailable`."""
ANSWER_S: Final = 30.0
DIGEST_BYTES: Final = 16
"""A checkpoint begins with its digest (sandbox/image.py)."""


@dataclass(slots=True)
class Recomputed:
    """What a replay found. Digests are of memories, in hexadecimal."""

    seq: int
    snapshot: bytes
    digest: str
    inputs: int
    ms: float
    checkpoints: list[tuple[int, str, str]]
    """(seq, stored digest, recomputed digest)"""

    @property
    def agrees(self) -> bool:
        return all(stored == recomputed for _, stored, recomputed in self.checkpoints)


@dataclass(slots=True)
class Thawed:
    """A session at some step of its past, on a worker."""

    past: Past
    worker: SandboxWorker
    number: int
    snapshot: bytes = b"null"
    finished: bool = False
    timers: dict[int, int] = field(default_factory=dict)

    async def replay(self, entries: list[Entry]) -> None:
        """Goes on through `entries`, a slice of CPU at a time, so that the worker's other sessions
        have their turns in between.
        """
        at = 0
        while at < len(entries):
            slice_ = entries[at : at + SLICE_INPUTS_MAX]
            answer = await self.past.ask(
                self,
                Replay(
                    self.number, at + 1, [(entry.input, entry.now_ms) for entry in slice_], SLICE_US
                ),
            )
            if not isinstance(answer, Replayed) or not 1 <= answer.count <= len(slice_):
                raise Unavailable(
                    "unavailable", "the worker does not answer what it was asked; try again"
                )
            try:
                check_replayed(answer.snapshot)
            except BrokenWorker as error:
                self.worker.kill(str(error), suspect=self.number)
                raise Unavailable(
                    "unavailable", "the worker does not answer what it was asked; try again"
                ) from error
            at += answer.count
            self._take(slice_[: answer.count], answer)

    def _take(self, entries: list[Entry], answer: Replayed) -> None:
        if answer.snapshot != b"null":
            self.snapshot = answer.snapshot
        self.finished = answer.finished
        timers = {position: (was_set, cancelled) for position, was_set, cancelled in answer.timers}
        for position, entry in enumerate(entries):
            if entry.kind == Kind.TIMER.value:
                self.timers.pop(int(entry.input[:-1].rsplit(b",", 1)[1]), None)
            was_set, cancelled = timers.get(position, ([], []))
            self.timers.update(was_set)
            for timer in cancelled:
                self.timers.pop(timer, None)

    async def freeze(self) -> bytes:
        answer = await self.past.ask(self, Checkpoint(self.number, 1))
        assert isinstance(answer, Done)
        return answer.result


class Past:
    def __init__(
        self,
        store: SessionStore,
        pool: SandboxWorkers,
        images: Images,
        placement: Placement,
        clock: Clock,
        entropy: Entropy,
    ) -> None:
        self._store = store
        self._pool = pool
        self._images = images
        self._placement = placement
        self._clock = clock
        self._entropy = entropy
        self._asked: dict[int, tuple[SandboxWorker, asyncio.Future[ToHub]]] = {}
        self._turns = asyncio.Semaphore(REPLAYS_AT_ONCE)
        self._wanted: Counter[str] = Counter()

    # --- what can be asked ------------------------------------------------------------------------

    async def snapshot_at(self, record: SessionRecord, seq: int) -> bytes:
        """The public snapshot after `seq` inputs.

        Raises `NotFound` for a step that is not, or not any more, to be had.
        """
        checkpoint = await self._start_for(record, seq)
        if checkpoint is not None and checkpoint.seq == seq:
            return checkpoint.snapshot
        async with self._thaw(record, checkpoint) as thawed:
            await self._walk(record, thawed, checkpoint.seq if checkpoint else 0, seq)
            return thawed.snapshot

    async def fork(self, record: SessionRecord, seq: int | None, session_id: str) -> SessionRecord:
        """A new session that goes on from `seq`.

        What is left of each timer's time then is left of it now.

        Raises `NotFound` as `snapshot_at`, and `Conflict` when there is a session of that name.
        """
        seq = (await self._store.span(record.key))[1] if seq is None else seq
        base = await self._start_for(record, seq)
        async with self._thaw(record, base) as thawed:
            last = await self._walk(record, thawed, base.seq if base else 0, seq)
            data = await thawed.freeze()
        now_ms = self._clock.now_ms()
        then_ms = last.now_ms if last else base.at_ms if base else now_ms
        timers = (
            {}
            if thawed.finished
            else {timer: due_at_ms + now_ms - then_ms for timer, due_at_ms in thawed.timers.items()}
        )
        checkpoint = SavedCheckpoint(
            seq=seq,
            data=data,
            snapshot=thawed.snapshot,
            finished=thawed.finished,
            timers=timers,
            at_ms=now_ms,
        )
        child = SessionRecord(
            key=self._entropy.session_key(now_ms),
            machine_id=record.machine_id,
            session_id=session_id,
            version=record.version,
            digest=record.digest,
            hears_presence=record.hears_presence,
            created_at_ms=now_ms,
            finished_at_ms=now_ms if thawed.finished else None,
            parent=record.session_id,
            forked_at=seq,
        )
        try:
            await self._store.fork(child, record.key, checkpoint, await self._believed(record, seq))
        except Taken:
            raise Conflict("session_exists", "there is a session of this name") from None
        return child

    async def _believed(self, record: SessionRecord, seq: int) -> dict[str, bytes]:
        """Whom the machine believed to be there after `seq` inputs: member and `sender`, as far as
        the journal reaches back.
        """
        if not record.hears_presence:
            return {}
        people: dict[str, bytes] = {}
        for entry in await self._store.presence_entries(record.key, until=seq):
            _, _, event, sender = msgspec.json.decode(entry.input)
            member = sender.get("user") or sender["id"]
            people.pop(member, None)
            if event["type"] == "presence.joined":
                people[member] = sender_json(sender["id"], sender.get("user"))
        return people

    async def recompute(self, record: SessionRecord, seq: int | None) -> Recomputed:
        """Replays the journal from its beginning to `seq`, comparing with every checkpoint on the
        way.
        """
        seq = (await self._store.span(record.key))[1] if seq is None else seq
        first = await self._start_for(record, seq, earliest=True)
        inputs = 0
        compared: list[tuple[int, str, str]] = []
        async with self._thaw(record, first) as thawed:
            at, began_s = first.seq if first else 0, time.perf_counter()
            for stop in [
                stop for stop in await self._store.checkpoint_seqs(record.key) if at < stop < seq
            ] + [seq]:
                await self._walk(record, thawed, at, stop)
                inputs, at = inputs + stop - at, stop
                digest = (await thawed.freeze())[:DIGEST_BYTES].hex()
                stored = await self._store.checkpoint_before(record.key, stop)
                if stored is not None and stored.seq == stop:
                    compared.append((stop, stored.data[:DIGEST_BYTES].hex(), digest))
            return Recomputed(
                seq,
                thawed.snapshot,
                digest,
                inputs,
                (time.perf_counter() - began_s) * 1000,
                compared,
            )

    # --- thawing ----------------------------------------------------------------------------------

    async def _start_for(
        self, record: SessionRecord, seq: int, *, earliest: bool = False
    ) -> SavedCheckpoint | None:
        """From where to go to `seq`: a checkpoint, or None for the image."""
        first, last = await self._store.span(record.key)
        if not 1 <= seq <= last:
            raise NotFound("no_such_seq", f"the session has inputs 1 to {last}")
        if earliest and first == 1:
            return None
        checkpoint = await self._store.checkpoint_before(record.key, seq if not earliest else first)
        if first != 1 and checkpoint is None:
            raise NotFound("history_pruned", f"the journal of this session begins at {first}")
        return checkpoint

    @contextlib.asynccontextmanager
    async def _thaw(
        self, record: SessionRecord, checkpoint: SavedCheckpoint | None
    ) -> AsyncIterator[Thawed]:
        async with self._turn_of(record.machine_id):
            image = await self._images.image(record.digest)
            worker = await self._pool.wait_for_worker(
                modules=image.is_module, machine=record.machine_id
            )
            thawed = Thawed(self, worker, self._placement.new_number())
            if checkpoint is not None:
                thawed.snapshot, thawed.finished, thawed.timers = (
                    checkpoint.snapshot,
                    checkpoint.finished,
                    dict(checkpoint.timers),
                )
            worker.take(record.digest, image)
            try:
                await self.ask(
                    thawed,
                    self._placement.opening(
                        thawed.number, record.digest, checkpoint.data if checkpoint else None
                    ),
                )
                yield thawed
            finally:
                if not worker.lost:
                    worker.tell(Close(thawed.number))
                    worker.leave(record.digest)

    @contextlib.asynccontextmanager
    async def _turn_of(self, machine_id: str) -> AsyncIterator[None]:
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
            async with self._turns:
                yield
        finally:
            self._wanted[machine_id] -= 1
            if not self._wanted[machine_id]:
                del self._wanted[machine_id]

    async def _walk(
        self, record: SessionRecord, thawed: Thawed, after: int, until: int
    ) -> Entry | None:
        """Replays what was applied from behind `after` up to `until`; the last of it."""
        last: Entry | None = None
        reading = self._read_ahead(record, after, until)
        try:
            while after < until:
                entries = await reading
                if not entries or entries[0].seq != after + 1:
                    raise NotFound(
                        "history_pruned", f"input {after + 1} is not in the journal any more"
                    )
                last = entries[-1]
                after = last.seq
                reading = self._read_ahead(record, after, until)  # while these are replayed
                await thawed.replay(entries)
            return last
        finally:
            reading.cancel()

    def _read_ahead(
        self, record: SessionRecord, after: int, until: int
    ) -> asyncio.Task[list[Entry]]:
        reading = asyncio.ensure_future(self._read(record, after, until))
        reading.add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )  # it may not be waited for any more
        return reading

    async def _read(self, record: SessionRecord, after: int, until: int) -> list[Entry]:
        if after >= until:
            return []
        return await self._store.entries(
            record.key, after=(after, 0), until=until, limit=ENTRIES_AT_ONCE, applied_only=True
        )

    # --- workers ----------------------------------------------------------------------------------

    async def ask(self, thawed: Thawed, message: Question) -> ToHub:
        """Raises `Unavailable` when it cannot be done, now or at all."""
        if thawed.worker.lost:
            raise Unavailable("unavailable", "the worker that replayed this has ended; try again")
        answer: asyncio.Future[ToHub] = asyncio.get_running_loop().create_future()
        self._asked[thawed.number] = thawed.worker, answer
        thawed.worker.ask(thawed.number, message)
        try:
            said = await asyncio.wait_for(answer, ANSWER_S)
        except TimeoutError:
            raise Unavailable("unavailable", "the replay takes too long; try again later") from None
        finally:
            self._asked.pop(thawed.number, None)
        if isinstance(said, Failed):
            raise Unavailable(said.code, said.message)
        return said

    def answered(self, worker: SandboxWorker, message: Done | Failed | Replayed) -> None:
        asked = self._asked.get(message.session)
        if asked is not None and asked[0] is worker and not asked[1].done():
            asked[1].set_result(message)

    def worker_lost(self, worker: SandboxWorker) -> None:
        for asked_of, answer in self._asked.values():
            if asked_of is worker and not answer.done():
                answer.set_exception(
                    Unavailable("unavailable", "the worker that replayed this has ended; try again")
                )
