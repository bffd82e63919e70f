"""A session at some step of its history, computed again on a worker beside the session itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from machinehub.errors import Conflict, Unavailable
from machinehub.ids import Seq
from machinehub.model import Armed, Kind, SavedCheckpoint
from machinehub.session.decide.answers import (
    OUTBOX_BYTES_MAX,
    UNCHANGED,
    BrokenWorker,
    check_replayed,
    read_outbox,
)
from machinehub.session.decide.changes import changes_of
from sandbox.protocol.ids import Ticket
from sandbox.protocol.inputs import PERSIST_INPUT, timer_of
from sandbox.protocol.messages import Checkpoint, Done, Replay, Replayed, Step

if TYPE_CHECKING:
    from machinehub.model import Entry
    from machinehub.session.run.questions import Questions
    from machinehub.session.run.worker_interfaces import SandboxWorker
    from sandbox.protocol.ids import Slot, TimerId

SLICE_US: Final = 10_000
"""CPU of a worker that a replay takes before others have their turn."""
SLICE_INPUTS_MAX: Final = 200
PERSIST_CPU_MS: Final = 250
"""As a session's first turn may take: the whole state is spelled."""


@dataclass(slots=True)
class Replica:
    """A session at some step of its history, on a worker."""

    questions: Questions
    worker: SandboxWorker
    slot: Slot
    seq: Seq
    snapshot: bytes
    finished: bool
    timers: dict[TimerId, Armed] = field(default_factory=dict)
    last: Entry | None = None
    """What was replayed last."""

    async def replay(self, entries: list[Entry]) -> None:
        """Goes on through `entries`, a slice of CPU at a time, so that the worker's other sessions
        have their turns in between.
        """
        at = 0
        while at < len(entries):
            part = entries[at : at + SLICE_INPUTS_MAX]
            inputs = [(entry.input, entry.now_ms) for entry in part]
            question = Replay(self.slot, Ticket(at + 1), inputs, SLICE_US)
            answer = await self.questions.ask(self.worker, self.slot, question)
            if not isinstance(answer, Replayed) or not 1 <= answer.count <= len(part):
                raise self._broken()
            try:
                check_replayed(answer.snapshot)
            except BrokenWorker as error:
                self.worker.kill(str(error), suspect=self.slot)
                raise self._broken() from error
            at += answer.count
            self._take(part[: answer.count], answer)

    def _broken(self) -> Unavailable:
        return Unavailable("unavailable", "the worker does not answer what it was asked; try again")

    def _take(self, entries: list[Entry], answer: Replayed) -> None:
        if answer.snapshot != UNCHANGED:
            self.snapshot = answer.snapshot
        told = {position: (was_set, gone) for position, was_set, gone in answer.timers}
        for position, entry in enumerate(entries):
            was_set, cancelled = told.get(position, ([], []))
            fired = timer_of(entry.input) if entry.kind is Kind.TIMER else None
            changes_of(was_set, cancelled, fired=fired).apply_to(self.timers)
        if answer.finished:
            self.timers.clear()
        self.finished = answer.finished
        self.last = entries[-1]
        self.seq = self.last.seq

    async def persisted(self, now_ms: int) -> bytes:
        """What XState would persist, as JSON. The replica is of no use any more then. Raises
        `Conflict` where there is no such thing.
        """
        question = Step(self.slot, Ticket(1), PERSIST_INPUT, now_ms, PERSIST_CPU_MS)
        try:
            answer = await self.questions.ask(self.worker, self.slot, question)
        except Unavailable as error:
            if error.code == "unknown_input":
                raise Conflict(
                    "not_persistable",
                    "the session's version was built for an earlier hub: deploy the machine again,"
                    " and start the session anew",
                ) from None
            raise Conflict("not_persistable", error.detail) from None
        assert isinstance(answer, Done)
        try:
            outbox = read_outbox(answer.result, snapshot_bytes_max=OUTBOX_BYTES_MAX, begins=True)
        except BrokenWorker as error:
            self.worker.kill(str(error), suspect=self.slot)
            raise self._broken() from error
        return bytes(outbox.snapshot)

    async def freeze(self) -> bytes:
        """The checkpoint of what it is now."""
        question = Checkpoint(self.slot, Ticket(1))
        answer = await self.questions.ask(self.worker, self.slot, question)
        assert isinstance(answer, Done)
        return answer.result

    def saved(self, data: bytes, at_ms: int) -> SavedCheckpoint:
        """What it is now, as it is kept."""
        return SavedCheckpoint(
            seq=self.seq,
            data=data,
            snapshot=self.snapshot,
            finished=self.finished,
            timers={timer: armed.due_at_ms for timer, armed in self.timers.items()},
            at_ms=at_ms,
        )


def replica_at(
    questions: Questions, worker: SandboxWorker, slot: Slot, checkpoint: SavedCheckpoint | None
) -> Replica:
    if checkpoint is None:
        return Replica(questions, worker, slot, Seq(0), UNCHANGED, finished=False)
    return Replica(
        questions,
        worker,
        slot,
        checkpoint.seq,
        checkpoint.snapshot,
        checkpoint.finished,
        {timer: Armed(due) for timer, due in checkpoint.timers.items()},
    )
