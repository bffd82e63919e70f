"""One session, without I/O: inputs are offered, results come back in order, and each result says
what changed.

Decides: the order of inputs, `seq`, that an event id counts once, which timers are pending, when a
finished session refuses, when a timer is tried again, and that nothing of a result can be read
before it was committed. Does not know: sockets, workers, databases, clocks or tasks; the shells
around it carry its words.

A result is *decided* when it comes back (`done`, `failed`), and *committed* when the journal has it
(`committed`). What others may read (`seq`, `snapshot`, `finished`, receipts) is what was committed;
the next input is numbered by what was decided.

A session's life:

    unloaded --stored there--> loaded --started--> live --status done/error--> finished
       \\--not there: START--/    ^---- `rewind`: what was decided did not come about ---/
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from machinehub.model import Entry, SavedCheckpoint, Settled
from machinehub.session.answers import (
    OUR_FAULTS,
    REFUSALS,
    UNCHANGED,
    BrokenWorker,
    check_checkpoint,
    check_replayed,
    check_timers,
    read_outbox,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from machinehub.limits import Limits
    from machinehub.model import SessionRecord, StoredSession
    from sandbox.protocol import Cost, Outbox

TIMER_TRIES: Final = 6
TIMER_RETRY_MS: Final = 1000
"""A timer whose turn was undone is still pending in the machine: it is tried again after 1, 2, 4
... seconds, then given up.
"""
CRASHES_BEFORE_QUARANTINE: Final = 3
"""An input whose worker died this often while it was the next to be done is refused, so that it
cannot kill them all.
"""


class Kind(Enum):
    START = "start"
    EVENT = "event"
    PRESENCE = "presence"
    TIMER = "timer"
    CHECKPOINT = "checkpoint"


@dataclass(slots=True)
class Receipt:
    """What became of an event: answered to its sender, and again to whoever sends the same id."""

    seq: int = 0
    changed: bool = False
    error: tuple[str, str] | None = None
    cost: Cost | None = None
    """What the turn took, as long as that is remembered."""
    settled: bool = False
    waiting: list[Callable[[Receipt], None]] = field(default_factory=list)

    def keep(self, entry: Entry) -> None:
        """The journal has the answer."""
        self.seq, self.changed, self.error, self.settled = (
            entry.seq,
            entry.changed,
            entry.error,
            True,
        )


@dataclass(slots=True)
class Pending:
    """An input that was handed out and has not come back."""

    ticket: int
    kind: Kind
    input: bytes
    now_ms: int
    receipt: Receipt | None = None
    event_id: str | None = None
    timer: int = 0
    member: tuple[str, bytes | None] | None = None
    """Of a presence event: who, and their `sender` when they came, None when they left."""
    crashes: int = 0


@dataclass(slots=True)
class Turn:
    """One settled input: everything that may be told, once `settled` is in the journal (at once,
    when that is None).
    """

    seq: int
    pending: Pending
    snapshot: bytes | None = None
    """The new public snapshot, when it changed."""
    settled: Settled | None = None
    emitted: list[msgspec.Raw] = field(default_factory=list)
    logs: list[tuple[str, str]] = field(default_factory=list)
    timers_set: list[tuple[int, int]] = field(default_factory=list)
    error: tuple[str, str] | None = None
    finished: bool = False
    """Whether the session had ended by then."""
    cost: Cost | None = None


SESSION_FINISHED: Final = ("session_finished", "the session has ended and takes no more events")


class Session:
    """See the module.

    `number` is what workers call it; `record` names its image, which never changes.
    """

    def __init__(self, record: SessionRecord, *, number: int, limits: Limits) -> None:
        """`limits` are the hub's."""
        self.record = record
        self.machine_id, self.session_id = record.machine_id, record.session_id
        self.number = number
        self.loaded = False
        self.in_doubt = False
        """Whether the database may know more than is read here: the answer to a commit was lost."""
        self.gone = False
        # What was committed.
        self.started = False
        self.seq = 0
        self.snapshot = UNCHANGED
        self.finished = False
        # What was decided, and not committed yet.
        self._seq = 0
        self._attempts = 0
        self._snapshot = UNCHANGED
        self._finished = False
        self._decided: deque[Turn] = deque()
        self.timers: dict[int, int] = {}
        self._firing: dict[int, int] = {}
        """Timers that were taken off `timers` and wait for their turn: the machine still has them.
        """
        self._timer_tries: dict[int, int] = {}
        self.checkpoint: bytes | None = None
        self.tail: list[tuple[bytes, int]] = []
        self.snapshot_is_old = False
        # What waits to be decided.
        self.pending: deque[Pending] = deque()
        self.pending_bytes = 0
        self._tickets = 0
        self._receipts: OrderedDict[str, Receipt] = OrderedDict()
        self._recalled: list[Entry] = []
        self._limits = limits
        self._ids_max = limits.ids_remembered

    @property
    def ended(self) -> bool:
        """Whether it was decided that the session is over: the worker has no more to do for it."""
        return self._finished

    @property
    def waiting(self) -> int:
        """Inputs that are not committed."""
        asleep_soon = bool(self.pending) and self.pending[-1].kind is Kind.CHECKPOINT
        return len(self.pending) + len(self._decided) - asleep_soon

    # --- what goes in -----------------------------------------------------------------------------

    def receipt_of(self, event_id: str | None) -> tuple[Receipt, bool]:
        """The receipt for an event with this id, and whether the event is new as far as is known
        here.
        """
        if event_id is None:
            return Receipt(), True
        known = self._receipts.get(event_id)
        if known is not None:
            return known, False
        receipt = self._receipts[event_id] = Receipt()
        if len(self._receipts) > self._ids_max:
            self._receipts.popitem(last=False)
        return receipt, True

    def knows(self, event_id: str | None) -> bool:
        return event_id in self._receipts

    def forget_receipt(self, event_id: str | None) -> None:
        """The event was refused before it became an input: the same id may be tried again."""
        if event_id is not None:
            self._receipts.pop(event_id, None)

    def offer(
        self,
        kind: Kind,
        data: bytes,
        now_ms: int,
        receipt: Receipt | None = None,
        *,
        event_id: str | None = None,
        timer: int = 0,
        member: tuple[str, bytes | None] | None = None,
    ) -> Pending:
        self._tickets += 1
        pending = Pending(self._tickets, kind, data, now_ms, receipt, event_id, timer, member)
        self.pending_bytes += len(data)
        self.pending.append(pending)
        return pending

    # --- what comes back --------------------------------------------------------------------------

    def done(self, ticket: int, result: bytes, cost: Cost | None = None) -> Turn:
        """The result of the oldest pending input, decided.

        Raises `BrokenWorker`, which leaves the input where it was: it is tried again elsewhere.
        """
        pending = self._next(ticket)
        outbox = read_outbox(
            result,
            snapshot_bytes_max=self._limits.snapshot_bytes,
            begins=pending.kind is Kind.START,
        )
        check_timers(outbox, waiting=len(self.timers), timers_max=self._limits.timers)
        snapshot = bytes(outbox.snapshot)
        self._take()
        self._seq += 1
        self._attempts = 0
        self.tail.append((pending.input, pending.now_ms))
        if snapshot != UNCHANGED:
            self._snapshot = snapshot
        finished_now = bool(outbox.finished) and not self._finished
        self._finished = self._finished or finished_now
        self._keep_timers(outbox)
        gone = list(outbox.timers_cancelled)
        if pending.timer and pending.timer not in dict(
            outbox.timers_set
        ):  # an interval is set again as it fires
            gone.append(pending.timer)
        self._timer_tries.pop(pending.timer, None)
        turn = Turn(
            self._seq,
            pending,
            snapshot if snapshot != UNCHANGED else None,
            None,
            outbox.emitted,
            outbox.logs,
            [] if self._finished else outbox.timers_set,
            None,
            self._finished,
            cost,
        )
        return self._decide(turn, timers_gone=gone, finished_now=finished_now)

    def failed(
        self, ticket: int, code: str, message: str, at: str | None, cost: Cost | None = None
    ) -> Turn:
        """The oldest pending input was undone; the session is as it was before it."""
        pending = self._next(ticket)
        self._take()
        return self._refuse(
            pending,
            code if code in REFUSALS else "machine_error",
            f"{message} ({at})" if at else message,
            cost,
        )

    def refuse_late(self) -> list[Turn]:
        """The session has ended: what was on its way behind the end is refused, as a later event
        is.
        """
        late, self.pending, self.pending_bytes = self.pending, deque(), 0
        return [
            self._refuse(pending, *SESSION_FINISHED)
            for pending in late
            if pending.kind is Kind.EVENT
        ]

    def abandon(self, *, keep: int) -> None:
        """The hub stops: only the oldest `keep` inputs are still done.

        Clients send again what was not acknowledged, and timers are rows until they are.
        """
        self.pending = deque(pending for index, pending in enumerate(self.pending) if index < keep)
        self.pending_bytes = sum(len(pending.input) for pending in self.pending)

    def crashed(self) -> Turn | None:
        """The worker died.

        Says whether the input at the head of the queue is to blame once too often.
        """
        if not self.pending:
            return None
        head = self.pending[0]
        head.crashes += 1
        if head.crashes < CRASHES_BEFORE_QUARANTINE:
            return None
        self._take()
        return self._refuse(
            head, "worker_crashed", "the sandbox died of this event, again and again"
        )

    def frozen(self, checkpoint: bytes, at_ms: int) -> SavedCheckpoint | None:
        """The session as it was decided so far was frozen: what came before need not be replayed
        any more. Raises `BrokenWorker`.
        """
        check_checkpoint(checkpoint, memory_bytes_max=self._limits.memory_bytes)
        if not self.tail:
            return None
        self.checkpoint = checkpoint
        self.tail = []
        return SavedCheckpoint(
            seq=self._seq,
            data=checkpoint,
            snapshot=self._snapshot,
            finished=self._finished,
            timers=self.timers | self._firing,
            at_ms=at_ms,
        )

    def wake(self) -> None:
        """It is needed after all, or its worker is gone: the checkpoint that was asked for may be
        asked for again.
        """
        self.pending = deque(
            pending for pending in self.pending if pending.kind is not Kind.CHECKPOINT
        )

    def asleep(self, ticket: int) -> None:
        """The checkpoint that was asked for is there (`frozen` had it)."""
        if self._next(ticket).kind is not Kind.CHECKPOINT:
            raise BrokenWorker("a checkpoint that nobody asked for")
        self._take()

    def timer_due(self, timer: int, due_at_ms: int) -> bool:
        """Takes a timer off the list, if it still stands there with this time."""
        if self.timers.get(timer) != due_at_ms:
            return False
        del self.timers[timer]
        if not self._finished:
            self._firing[timer] = due_at_ms
        return not self._finished

    # --- what the journal says --------------------------------------------------------------------

    def committed(self, turn: Turn) -> None:
        """The turn is in the journal, or leaves nothing there: from now on everybody may read of
        it. In the order of deciding.
        """
        if turn.settled is not None:
            assert self._decided[0] is turn
            self._decided.popleft()
            self.started = True
            self.seq = turn.seq
            if turn.snapshot is not None:
                self.snapshot = turn.snapshot
            self.finished = turn.finished
        receipt = turn.pending.receipt
        if receipt is not None:
            receipt.seq, receipt.changed, receipt.error, receipt.settled = (
                turn.seq,
                turn.snapshot is not None,
                turn.error,
                True,
            )
            receipt.cost = turn.cost

    def rewind(self, known: list[Entry]) -> None:
        """What was decided will not be committed as it stands: all of it waits again, and the
        session has to be restored first.

        `known` are entries of old whose event ids came again.
        """
        self._recalled += known
        self.pending = deque(self._take_all())
        self.pending_bytes = sum(len(pending.input) for pending in self.pending)
        self.unload()

    def unload(self) -> None:
        """Forgets what `restore` brings back."""
        self.loaded = False
        if self.snapshot_is_old:
            self.snapshot_is_old, self.in_doubt = False, True
        self.checkpoint = None
        self.tail = []
        self.timers, self._firing, self._timer_tries = {}, {}, {}
        waiting = {pending.event_id for pending in self.pending}
        self._receipts = OrderedDict(
            (event_id, receipt)
            for event_id, receipt in self._receipts.items()
            if event_id in waiting
        )

    def restore(self, stored: StoredSession) -> list[Receipt]:
        """Takes up what the database knows.

        Returns receipts that it settles: of events that had been committed after all.

        Timers that waited for their turn are among the stored ones again: the alarm has to be set
        for `timers`.
        """
        checkpoint = stored.checkpoint
        self.record = stored.record
        self.loaded = self.started = True
        self.in_doubt = False
        self._seq = stored.seq
        self._attempts = stored.attempts
        self.checkpoint = checkpoint.data if checkpoint else None
        self.tail = [(entry.input, entry.now_ms) for entry in stored.tail]
        self._snapshot = checkpoint.snapshot if checkpoint else UNCHANGED
        self._finished = stored.record.finished_at_ms is not None
        # The tail's own snapshots are not stored: only when it was replayed is there a new one to
        # be read.
        self.snapshot_is_old = any(entry.changed for entry in stored.tail)
        if not self.snapshot_is_old:
            self._publish()
        self.timers, self._timer_tries = dict(stored.timers), dict(stored.tries)
        recalled, self._recalled = self._recalled, []
        return self._recognise(recalled + stored.receipts)

    def start_anew(self) -> None:
        """The database knows no such session: START is the first that happens to it."""
        self.loaded = True

    def replayed(self, snapshot: bytes) -> None:
        """The tail was replayed, after which the public snapshot is this one (null: as before)."""
        if not self.snapshot_is_old:
            return
        check_replayed(snapshot)
        self.snapshot_is_old = False
        if snapshot != UNCHANGED:
            self._snapshot = snapshot
        self._publish()

    def _publish(self) -> None:
        """What is restored can be read: seq and snapshot of one moment."""
        self.seq, self.snapshot, self.finished = self._seq, self._snapshot, self._finished

    def _recognise(self, entries: list[Entry]) -> list[Receipt]:
        """Pending events whose ids the journal has are settled by it; START, timers and checkpoints
        are decided anew.
        """
        receipts: OrderedDict[str, Receipt] = OrderedDict()
        settled: list[Receipt] = []
        waiting = {
            pending.event_id: pending.receipt for pending in self.pending
        }  # `_receipts` may have forgotten one that still waits
        for entry in entries:
            assert entry.event_id is not None
            receipt = self._receipts.pop(entry.event_id, None) or waiting.get(entry.event_id)
            if receipt is not None and not receipt.settled:
                settled.append(receipt)
            receipts[entry.event_id] = receipt = receipt or Receipt()
            receipt.keep(entry)
        self._receipts = OrderedDict([*receipts.items(), *self._receipts.items()])
        self.pending = deque(
            p
            for p in self.pending
            if p.kind in (Kind.EVENT, Kind.PRESENCE) and p.event_id not in receipts
        )
        self.pending_bytes = sum(len(pending.input) for pending in self.pending)
        return settled

    # --- refusing ---------------------------------------------------------------------------------

    def refuse_pending(self, code: str, message: str) -> list[Turn]:
        """What waits to be decided is refused, through no fault of its own; what was decided may
        still be committed.

        Timers are tried again a little later.
        """
        pending, self.pending, self.pending_bytes = self.pending, deque(), 0
        for refused in pending:
            self.forget_receipt(refused.event_id)
            self._firing.pop(refused.timer, None)
        return [
            Turn(
                self.seq,
                refused,
                error=(code, message),
                timers_set=self._try_timer_again(refused, counts=False)
                if refused.kind is Kind.TIMER
                else [],
            )
            for refused in pending
            if refused.kind is not Kind.CHECKPOINT
        ]

    def refuse_all(self, code: str, message: str) -> list[Turn]:
        """Everything that is not committed is refused, through no fault of its own: the same ids
        may be tried again.

        A session of which something had been decided has to be restored afterwards; one that had
        not started never was.
        """
        again = self._take_all()
        self.unload()
        return [
            Turn(self.seq, pending, error=(code, message))
            for pending in again
            if pending.kind is not Kind.CHECKPOINT
        ]

    def _take_all(self) -> list[Pending]:
        """All that is not committed, in order."""
        again = [turn.pending for turn in self._decided] + list(self.pending)
        self.in_doubt = self.in_doubt or bool(self._decided)
        self._decided.clear()
        self.pending.clear()
        self.pending_bytes = 0
        return again

    def _refuse(self, pending: Pending, code: str, message: str, cost: Cost | None = None) -> Turn:
        turn = Turn(self._seq, pending, error=(code, message), finished=self._finished, cost=cost)
        if pending.kind is Kind.TIMER:
            turn.timers_set = self._try_timer_again(pending, counts=code not in OUR_FAULTS)
        if pending.kind is Kind.START:
            return turn  # a session that cannot start never was
        self._attempts += 1
        return self._decide(
            turn,
            timers_gone=[] if turn.timers_set or not pending.timer else [pending.timer],
            finished_now=False,
        )

    def _decide(self, turn: Turn, *, timers_gone: list[int], finished_now: bool) -> Turn:
        pending = turn.pending
        entry = Entry(
            turn.seq,
            self._attempts,
            pending.kind.value,
            pending.input,
            pending.now_ms,
            pending.event_id,
            turn.snapshot is not None,
            turn.error,
        )
        turn.settled = Settled(
            key=self.record.key,
            entry=entry,
            created=self.record if pending.kind is Kind.START else None,
            timers_set=turn.timers_set,
            tries=self._timer_tries.get(pending.timer, 0),
            timers_gone=timers_gone,
            finished=finished_now,
            member=pending.member
            if pending.member and (turn.error is None or pending.member[1] is None)
            else None,
        )
        self._decided.append(turn)
        return turn

    def _next(self, ticket: int) -> Pending:
        if not self.pending or self.pending[0].ticket != ticket:
            raise BrokenWorker(f"an answer to ticket {ticket}, which is not the next one")
        return self.pending[0]

    def _take(self) -> None:
        taken = self.pending.popleft()
        self.pending_bytes -= len(taken.input)
        self._firing.pop(taken.timer, None)

    # --- timers -----------------------------------------------------------------------------------

    def _keep_timers(self, outbox: Outbox) -> None:
        for timer, due_at_ms in outbox.timers_set:
            self.timers[timer] = due_at_ms
        for timer in (
            outbox.timers_cancelled
        ):  # after the set ones: ids are never used twice, so the cancelling came later
            self.timers.pop(timer, None)
        if self._finished:
            self.timers.clear()

    def _try_timer_again(self, pending: Pending, *, counts: bool) -> list[tuple[int, int]]:
        """What we could not do is tried for ever; what the machine cannot do, a few times."""
        tries = self._timer_tries[pending.timer] = self._timer_tries.get(pending.timer, 0) + counts
        if tries >= TIMER_TRIES or self._finished:
            del self._timer_tries[pending.timer]
            return []
        due_at_ms = pending.now_ms + TIMER_RETRY_MS * 2 ** max(0, tries - 1)
        self.timers[pending.timer] = due_at_ms
        return [(pending.timer, due_at_ms)]
