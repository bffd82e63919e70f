"""One session, without I/O: inputs are offered, results come back in order, and each result says what changed.

Decides: the order of inputs, `seq`, that an event id counts once, which timers are pending, when a
finished session refuses, when a timer is tried again. Does not know: sockets, workers, clocks or tasks; `host.py` carries its words around.

A session's life:

    opening --started--> live --status done/error--> finished
       \\--refused--> gone          \\--deleted--> gone
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.protocol import Outbox, decode_outbox

if TYPE_CHECKING:
    from collections.abc import Callable

TIMER_TRIES: Final = 6
TIMER_RETRY_MS: Final = 1000
"""A timer whose turn was undone is still pending in the machine: it is tried again after 1, 2, 4 ... seconds, then given up."""
CRASHES_BEFORE_QUARANTINE: Final = 3
"""An input whose worker died this often while it was the next to be done is refused, so that it cannot kill them all."""


class Kind(Enum):
    START = "start"
    EVENT = "event"
    TIMER = "timer"
    CHECKPOINT = "checkpoint"


@dataclass(slots=True)
class Receipt:
    """What became of an event: answered to its sender, and again to whoever sends the same id."""

    seq: int = 0
    changed: bool = False
    error: tuple[str, str] | None = None
    settled: bool = False
    waiting: list[Callable[[Receipt], None]] = field(default_factory=list)


@dataclass(slots=True)
class Pending:
    """An input that was handed out and has not come back."""

    ticket: int
    kind: Kind
    input: bytes
    now_ms: int
    receipt: Receipt | None = None
    timer: int = 0
    crashes: int = 0


@dataclass(slots=True)
class Turn:
    """One settled input: everything that may now be told."""

    seq: int
    changed: bool
    receipt: Receipt | None = None
    emitted: list[msgspec.Raw] = field(default_factory=list)
    timers_set: list[tuple[int, int]] = field(default_factory=list)
    logs: list[tuple[str, str]] = field(default_factory=list)
    error: tuple[str, str] | None = None
    started: bool = False
    finished_now: bool = False


OUR_FAULTS: Final = frozenset({"unavailable", "session_damaged", "image_damaged"})
SESSION_FINISHED: Final = ("session_finished", "the session has ended and takes no more events")


class BrokenWorker(Exception):
    """A worker answered what nobody asked, or not in the protocol's words."""


_UNCHANGED: Final = b"null"


class Session:
    """See the module. `number` is what workers call it; `digest` names its image, which never changes."""

    def __init__(self, machine_id: str, session_id: str, *, number: int, version: int, digest: str, created_at_ms: int, timers_max: int, ids_max: int) -> None:
        self.machine_id = machine_id
        self.session_id = session_id
        self.number = number
        self.version = version
        self.digest = digest
        self.created_at_ms = created_at_ms
        self.seq = 0
        self.snapshot = b"null"
        self.started = False
        self.finished = False
        self.gone = False
        self.pending: deque[Pending] = deque()
        self.pending_bytes = 0
        self.timers: dict[int, int] = {}
        self._timer_tries: dict[int, int] = {}
        self.checkpoint: bytes | None = None
        self.tail: list[tuple[bytes, int]] = []
        self._tickets = 0
        self._receipts: OrderedDict[str, Receipt] = OrderedDict()
        self._timers_max = timers_max
        self._ids_max = ids_max

    # --- what goes in ------------------------------------------------------------------------------------------

    def receipt_of(self, event_id: str | None) -> tuple[Receipt, bool]:
        """The receipt for an event with this id, and whether the event is new."""
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

    def forget_unsettled(self) -> None:
        """What waits will be refused through no fault of its own: the same ids may be tried again."""
        for event_id in [event_id for event_id, receipt in self._receipts.items() if not receipt.settled]:
            del self._receipts[event_id]

    def offer(self, kind: Kind, data: bytes, now_ms: int, receipt: Receipt | None = None, *, timer: int = 0) -> Pending:
        self._tickets += 1
        pending = Pending(self._tickets, kind, data, now_ms, receipt, timer)
        self.pending_bytes += len(data)
        self.pending.append(pending)
        return pending

    # --- what comes back ---------------------------------------------------------------------------------------

    def done(self, ticket: int, result: bytes) -> Turn | None:
        """The result of the oldest pending input; None for a checkpoint.

        Raises `BrokenWorker`, which leaves the input where it was: it is tried again elsewhere.
        """
        pending = self._next(ticket)
        if pending.kind is Kind.CHECKPOINT:
            self._take()
            self.frozen(result)
            return None
        try:
            outbox = decode_outbox(result)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BrokenWorker(str(error)) from error
        self._check_timers(outbox)
        self._take()
        self.seq += 1
        self.tail.append((pending.input, pending.now_ms))
        snapshot = bytes(outbox.snapshot)
        changed = snapshot != _UNCHANGED
        late = self.finished and pending.kind is Kind.EVENT
        if changed:
            self.snapshot = snapshot
        turn = Turn(self.seq, changed, pending.receipt, outbox.emitted, outbox.timers_set, outbox.logs)
        if late:  # it was on its way when the session ended: the answer is the one that a later event gets
            turn.error = SESSION_FINISHED
        turn.started = pending.kind is Kind.START
        if pending.timer:
            self._timer_tries.pop(pending.timer, None)
        self._keep_timers(outbox)
        self.started = True
        if outbox.finished and not self.finished:
            self.finished = turn.finished_now = True
            self.timers.clear()
        self._settle(pending, turn)
        return turn

    def frozen(self, checkpoint: bytes) -> None:
        """The session as it is now was frozen: what came before need not be replayed any more."""
        self.checkpoint = checkpoint
        self.tail = []

    def failed(self, ticket: int, code: str, message: str, at: str | None) -> Turn:
        """The oldest pending input was undone; the session is as it was before it."""
        pending = self._next(ticket)
        self._take()
        return self._refuse(pending, code, f"{message} ({at})" if at else message)

    def crashed(self) -> Turn | None:
        """The worker died. Says whether the input at the head of the queue is to blame once too often."""
        if not self.pending:
            return None
        head = self.pending[0]
        head.crashes += 1
        if head.crashes < CRASHES_BEFORE_QUARANTINE:
            return None
        self._take()
        return self._refuse(head, "worker_crashed", "the sandbox died of this event, again and again")

    def refuse_pending(self, code: str, message: str) -> list[Turn]:
        """Everything that waits is refused: the session was deleted, or cannot be restored."""
        turns = [self._refuse(pending, code, message) for pending in self.pending]
        self.pending.clear()
        self.pending_bytes = 0
        return turns

    def timer_due(self, timer: int, due_at_ms: int) -> bool:
        """Takes a timer off the list, if it still stands there with this time."""
        if self.timers.get(timer) != due_at_ms:
            return False
        del self.timers[timer]
        return not self.finished

    def _next(self, ticket: int) -> Pending:
        if not self.pending or self.pending[0].ticket != ticket:
            raise BrokenWorker(f"an answer to ticket {ticket}, which is not the next one")
        return self.pending[0]

    def _take(self) -> None:
        self.pending_bytes -= len(self.pending.popleft().input)

    def _check_timers(self, outbox: Outbox) -> None:
        if len(self.timers) + len(outbox.timers_set) - len(outbox.timers_cancelled) > self._timers_max * 2:
            raise BrokenWorker("more timers than a guest can set")

    def _keep_timers(self, outbox: Outbox) -> None:
        for timer, due_at_ms in outbox.timers_set:
            self.timers[timer] = due_at_ms
        for timer in outbox.timers_cancelled:  # after the set ones: ids are never used twice, so the cancelling came later
            self.timers.pop(timer, None)

    def _refuse(self, pending: Pending, code: str, message: str) -> Turn:
        turn = Turn(self.seq, False, pending.receipt, error=(code, message), started=pending.kind is Kind.START)
        if pending.kind is Kind.TIMER:
            turn.timers_set = self._try_timer_again(pending, counts=code not in OUR_FAULTS)
        self._settle(pending, turn)
        return turn

    def _try_timer_again(self, pending: Pending, *, counts: bool) -> list[tuple[int, int]]:
        """What we could not do is tried for ever; what the machine cannot do, a few times."""
        tries = self._timer_tries[pending.timer] = self._timer_tries.get(pending.timer, 0) + counts
        if tries >= TIMER_TRIES or self.finished:
            del self._timer_tries[pending.timer]
            return []
        due_at_ms = pending.now_ms + TIMER_RETRY_MS * 2 ** max(0, tries - 1)
        self.timers[pending.timer] = due_at_ms
        return [(pending.timer, due_at_ms)]

    @staticmethod
    def _settle(pending: Pending, turn: Turn) -> None:
        receipt = pending.receipt
        if receipt is not None:
            receipt.seq, receipt.changed, receipt.error, receipt.settled = turn.seq, turn.changed, turn.error, True
