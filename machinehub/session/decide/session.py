"""One session as a state machine without I/O.

Inputs are offered to it, results of workers are reported to it, and each result yields a `Turn`
that says what changed. It keeps the order of inputs, `seq`, event ids, pending timers and retries,
and hides a result until it is committed.

A result is *decided* when it comes back (`done`, `failed`), and *committed* when the database has
it (`committed`). What others may read (`seq`, `snapshot`, `finished`, receipts) is what was
committed; the next input is numbered by what was decided. What is known of a session at all is its
`phase`, which moves as `lifecycle.py` says.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from machinehub.ids import Seq
from machinehub.model import (
    Changes,
    Entry,
    Fault,
    Kind,
    SavedCheckpoint,
    TurnWrite,
)
from machinehub.session.decide.answers import (
    OUR_FAULTS,
    REFUSALS,
    UNCHANGED,
    BrokenWorker,
    check_checkpoint,
    check_replayed,
    check_timers,
    fate_of,
    read_outbox,
)
from machinehub.session.decide.changes import changes_of
from machinehub.session.decide.effects import Effects
from machinehub.session.decide.lifecycle import TRANSITIONS, Phase, Step
from machinehub.session.decide.pending_timers import PendingTimers
from machinehub.session.decide.receipts import Receipts
from machinehub.session.decide.turn import SESSION_FINISHED, Pending, Turn
from sandbox.protocol.ids import Ticket

if TYPE_CHECKING:
    from collections.abc import Iterable

    from machinehub.effect import Conclusion, Effect
    from machinehub.limits import Limits
    from machinehub.model import Armed, SessionRecord, StoredSession
    from machinehub.session.decide.turn import Receipt
    from machinehub.session.versions import Terms
    from sandbox.protocol.ids import EffectId, TimerId
    from sandbox.protocol.messages import Cost

CRASHES_BEFORE_QUARANTINE: Final = 3
"""An input whose worker died this often while it was the next to be answered is refused, so that it
cannot kill them all.
"""


class Session:
    """The inputs of one session: those that wait, were decided, and were committed."""

    def __init__(self, record: SessionRecord, *, limits: Limits) -> None:
        """`limits` are the hub's."""
        self.record = record
        self.machine_id, self.session_id = record.machine_id, record.session_id
        self.phase = Phase.NEW
        # What was committed.
        self.seq = Seq(0)
        self.snapshot = UNCHANGED
        self.finished = False
        # What was decided, and not committed yet.
        self._seq = Seq(0)
        self._attempts = 0
        self.decided_snapshot = UNCHANGED  # as its worker has it
        self._finished = False
        self._decided: deque[Turn] = deque()
        self._timers = PendingTimers()
        self.effects = Effects()
        self.checkpoint: bytes | None = None
        self.tail: list[tuple[bytes, int]] = []
        """(input, now_ms) of what was applied since `checkpoint`."""
        self._last_ms = 0
        """When its last input came: its time does not run backwards, whatever clocks do."""
        # What waits to be decided.
        self.pending: deque[Pending] = deque()
        self.pending_bytes = 0
        self._tickets = 0
        self.receipts = Receipts(limits.ids_remembered)
        self._recalled: list[Entry] = []
        self._limits = limits
        self.allowed = limits
        """What its version allows: the lower of the hub's limits and the version's own."""
        self.of_webhooks: frozenset[str] = frozenset()
        self.has_view = False  # whether each member sees what the machine's `view` says
        self.used_at_ms = 0
        """When it was last opened or sent something."""

    @property
    def name(self) -> str:
        """For logs."""
        return f"{self.machine_id}/{self.session_id}"

    @property
    def started(self) -> bool:
        """Whether the database has it, as far as is known here."""
        return self.seq > 0 or self.phase is Phase.REPLAYING

    @property
    def timers(self) -> dict[TimerId, Armed]:
        """Those that wait."""
        return self._timers.waiting

    @property
    def gone(self) -> bool:
        return self.phase is Phase.GONE

    @property
    def ended(self) -> bool:
        """Whether it was decided that the session is over: its worker has no more to do for it."""
        return self._finished

    @property
    def waiting(self) -> int:
        """Inputs that are not committed."""
        return len(self.pending) + len(self._decided)

    def used(self, now_ms: int) -> None:
        """Somebody opened it."""
        self.used_at_ms = max(self.used_at_ms, now_ms)

    def allow(self, terms: Terms) -> None:
        """What its version allows has become known."""
        self.allowed, self.has_view = terms.limits, terms.has_view
        self.of_webhooks = terms.of_webhooks

    def _move(self, step: Step) -> None:
        following = TRANSITIONS[self.phase].get(step)
        assert following is not None, f"{step} of a session that is {self.phase.label}"
        self.phase = following

    # --- what goes in -----------------------------------------------------------------------------

    def offer(self, pending: Pending) -> None:
        """Puts an input behind those that wait."""
        self._tickets += 1
        pending.ticket = Ticket(self._tickets)
        self.used_at_ms = pending.now_ms
        self._last_ms = pending.now_ms = max(pending.now_ms, self._last_ms)
        if pending.timer is not None:
            pending.armed = self._timers.firing.get(pending.timer)
        self.pending_bytes += len(pending.input)
        self.pending.append(pending)

    def timer_due(self, timer: TimerId, due_at_ms: int) -> bool:
        """Takes a timer off the list, if it still stands there with this time."""
        return self._timers.due(timer, due_at_ms, over=self._finished)

    def answer_due(self, effect: EffectId) -> int | None:
        """An answer to a request has come. The request's depth; None if nobody waits for it."""
        return None if self._finished else self.effects.due(effect)

    # --- what comes back --------------------------------------------------------------------------

    def done(self, ticket: Ticket, result: bytes, cost: Cost | None = None) -> Turn:
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
        effects: dict[EffectId, Effect | Conclusion] = {}
        if outbox.requests or outbox.withdrawn or pending.answering is not None:  # few have any
            effects = self.effects.of_turn(
                outbox,
                pending,
                Seq(self._seq + 1),
                effects_max=self._limits.effects,
                over=self._finished or outbox.finished,
            )
        snapshot = bytes(outbox.snapshot)
        self._take()
        self._seq, self._attempts = Seq(self._seq + 1), 0
        self.tail.append((pending.input, pending.now_ms))
        if snapshot != UNCHANGED:
            self.decided_snapshot = snapshot
        finished_now = outbox.finished and not self._finished
        self._finished = self._finished or finished_now
        changes = changes_of(
            outbox.timers_set,
            outbox.timers_cancelled,
            fired=pending.timer,
            member=pending.member,
            effects=effects,
            finished=finished_now,
            over=self._finished,
        )
        changes.apply_to(self.timers)
        if effects or finished_now:
            self.effects.apply(changes)
        turn = Turn(
            self._seq,
            pending,
            snapshot if snapshot != UNCHANGED else None,
            *fate_of(outbox, pending.kind),
            emitted=outbox.emitted,
            logs=outbox.logs,
            changes=changes,
            finished=self._finished,
            cost=cost,
        )
        return self._decide(turn)

    def failed(
        self, ticket: Ticket, code: str, message: str, at: str | None, cost: Cost | None = None
    ) -> Turn:
        """The oldest pending input was undone; the session is as it was before it."""
        pending = self._next(ticket)
        self._take()
        known = code if code in REFUSALS else "machine_error"
        return self._refuse(pending, Fault(known, f"{message} ({at})" if at else message), cost)

    def refuse_late(self) -> list[Turn]:
        """Empties the queue of a session that has ended: refuses the client events and answers in
        it with `session_finished`, drops timers and presence events, and returns the refused turns.
        """
        late, self.pending, self.pending_bytes = self.pending, deque(), 0
        return [
            self._refuse(pending, SESSION_FINISHED)
            for pending in late
            if pending.kind in (Kind.EVENT, Kind.ANSWER)
        ]

    def abandon(self, *, keep: int) -> None:
        """The hub stops: only the oldest `keep` inputs are still done.

        Clients send again what was not acknowledged, and timers are rows until they are.
        """
        self._keep_pending(list(self.pending)[:keep])

    def crashed(self) -> Turn | None:
        """Counts a worker crash against the oldest pending input. After
        `CRASHES_BEFORE_QUARANTINE` crashes the input is refused; returns that turn, else None.
        """
        if not self.pending:
            return None
        head = self.pending[0]
        head.crashes += 1
        if head.crashes < CRASHES_BEFORE_QUARANTINE:
            return None
        self._take()
        return self._refuse(
            head, Fault("worker_crashed", "the sandbox died of this event, again and again")
        )

    def frozen(self, checkpoint: bytes, at_ms: int) -> SavedCheckpoint | None:
        """Takes over a checkpoint of what was decided so far, and empties the tail. Returns what
        has to be stored; None if it has no new input. Raises `BrokenWorker` if it is malformed.
        """
        check_checkpoint(checkpoint, memory_bytes_max=self._limits.memory_bytes)
        if not self.tail:
            return None
        self.checkpoint = checkpoint
        self.tail = []
        timers = self.timers | self._timers.firing
        return SavedCheckpoint(
            seq=self._seq,
            data=checkpoint,
            snapshot=self.decided_snapshot,
            finished=self._finished,
            timers={timer: armed.due_at_ms for timer, armed in timers.items()},
            at_ms=at_ms,
        )

    # --- what the database says -------------------------------------------------------------------

    def committed(self, turn: Turn) -> None:
        """The turn is in the database, or leaves nothing there: from now on everybody may read of
        it.

        Called in the order of deciding.
        """
        if turn.write is not None:
            assert self._decided[0] is turn
            self._decided.popleft()
            if self.phase is Phase.STARTING:
                self._move(Step.STARTED)
            self.seq = turn.seq
            if turn.snapshot is not None:
                self.snapshot = turn.snapshot
            self.finished = turn.finished
        if turn.pending.receipt is not None:
            turn.pending.receipt.settle(turn)

    def loading(self) -> None:
        """The database is being asked for it. `restore`, `start_anew` or `not_loaded` follows."""
        self._move(Step.LOAD)

    def not_loaded(self) -> None:
        """The database did not answer."""
        self._move(Step.FAIL)

    def start_anew(self) -> None:
        """The database knows no such session: its START is the first that happens to it."""
        self._move(Step.ABSENT)

    def restore(self, stored: StoredSession) -> list[Receipt]:
        """Takes up what the database knows.

        Returns receipts that it settles: of events that had been committed after all. Timers that
        waited for their turn are among the stored ones again.
        """
        checkpoint = stored.checkpoint
        self.record = stored.record
        self._seq, self._attempts = stored.seq, stored.attempts
        self.checkpoint = checkpoint.data if checkpoint else None
        self.tail = [(entry.input, entry.now_ms) for entry in stored.tail]
        self._last_ms = stored.last_ms
        self.decided_snapshot = checkpoint.snapshot if checkpoint else UNCHANGED
        self._finished = stored.record.finished_at_ms is not None
        self._timers.restore(stored.timers)
        # The tail's own snapshots are not stored: the last one is known when it was replayed.
        behind = any(entry.changed for entry in stored.tail)
        self._move(Step.FOUND_BEHIND if behind else Step.FOUND)
        if not behind:
            self._publish()
        recalled, self._recalled = self._recalled + stored.receipts, []
        settled = self.receipts.recall(recalled, self.pending)
        settled += self.effects.restore(stored.effects, self.pending)
        # START and timers are decided anew, by what the database has.
        ids = {entry.event_id for entry in recalled}
        self._keep_pending(
            each
            for each in self.pending
            if (each.kind in (Kind.EVENT, Kind.PRESENCE) and each.event_id not in ids)
            or self.effects.is_waited_for(each)
        )
        return settled

    def replayed(self, snapshot: bytes) -> None:
        """The tail was replayed, after which the public snapshot is this one (null: as before).

        Raises `BrokenWorker`.
        """
        if self.phase is not Phase.REPLAYING:
            return  # it was thawed on another worker: what it came to is known
        check_replayed(snapshot)
        if snapshot != UNCHANGED:
            self.decided_snapshot = snapshot
        self._move(Step.REPLAYED)
        self._publish()

    def unload(self) -> None:
        """Forgets what `restore` brings back."""
        if self.phase.loaded:
            self._move(Step.UNLOAD)
        self._forget_loaded()

    def rewind(self, known: list[Entry]) -> None:
        """Puts the inputs that were decided but not committed back into the queue, until `restore`.

        `known` are stored entries with event ids; `restore` settles queued events by them.
        """
        self._recalled += known
        again = self._take_all()
        if self.phase.loaded:
            self._move(Step.DOUBT)
        self._keep_pending(again)
        self._forget_loaded()

    def forget(self) -> None:
        """Marks the session as deleted, or as one that could not start; this is final."""
        self._move(Step.FORGET)

    def _publish(self) -> None:
        """What is restored can be read: seq and snapshot of one moment."""
        self.seq, self.snapshot, self.finished = self._seq, self.decided_snapshot, self._finished

    def _forget_loaded(self) -> None:
        self.checkpoint = None
        self.tail = []
        self._timers.forget()
        self.effects.forget()
        self.receipts.keep_only(self.pending)

    # --- refusing ---------------------------------------------------------------------------------

    def refuse_pending(self, fault: Fault) -> list[Turn]:
        """What waits to be decided is refused, through no fault of its own; what was decided may
        still be committed. Timers are tried again a little later.
        """
        pending, self.pending, self.pending_bytes = self.pending, deque(), 0
        turns: list[Turn] = []
        for refused in pending:
            self.receipts.forget(refused.event_id)
            self._not_waiting(refused)
            changes = self._timers.try_again(refused, counts=False, over=self._finished)
            turns.append(Turn(self.seq, refused, error=fault, changes=changes))
        return turns

    def refuse_all(self, fault: Fault) -> list[Turn]:
        """Everything that is not committed is refused, through no fault of its own: the same ids
        may be tried again.

        A session of which something had been decided has to be restored afterwards.
        """
        again = self._take_all()
        self.unload()
        return [Turn(self.seq, pending, error=fault) for pending in again]

    def _take_all(self) -> list[Pending]:
        """All that is not committed, in order; the session is in doubt if any of it was decided."""
        again = [turn.pending for turn in self._decided] + list(self.pending)
        if self._decided and self.phase.loaded:
            self._move(Step.DOUBT)
        self._decided.clear()
        self._keep_pending(())
        return again

    def _refuse(self, pending: Pending, fault: Fault, cost: Cost | None = None) -> Turn:
        """Decides that an input changes nothing."""
        turn = Turn(self._seq, pending, error=fault, finished=self._finished, cost=cost)
        if pending.kind is Kind.START:
            return turn  # a session that cannot start never was
        counts = fault.code not in OUR_FAULTS
        turn.changes = self._timers.try_again(pending, counts=counts, over=self._finished)
        if pending.member is not None and pending.member.sender is None:
            # The machine refused to hear that somebody left: they are gone all the same.
            turn.changes = Changes(timers=turn.changes.timers, member=pending.member)
        if (answering := pending.answering) is not None and answering.is_last:
            turn.changes = Changes(effects={answering.effect: answering.conclusion})
            self.effects.apply(turn.changes)
        self._attempts += 1
        return self._decide(turn)

    def _decide(self, turn: Turn) -> Turn:
        pending = turn.pending
        entry = Entry(
            turn.seq,
            self._attempts,
            pending.kind,
            pending.input,
            pending.now_ms,
            pending.event_id,
            turn.snapshot is not None,
            turn.error,
            taken=turn.taken,
            cause=turn.cause,
        )
        turn.write = TurnWrite(
            key=self.record.key,
            entry=entry,
            changes=turn.changes,
            created=self.record if pending.kind is Kind.START else None,
        )
        self._decided.append(turn)
        return turn

    # --- the queue and its timers -----------------------------------------------------------------

    def _next(self, ticket: Ticket) -> Pending:
        if not self.pending or self.pending[0].ticket != ticket:
            raise BrokenWorker(f"an answer to ticket {ticket}, which is not the next one")
        return self.pending[0]

    def _take(self) -> None:
        taken = self.pending.popleft()
        self.pending_bytes -= len(taken.input)
        self._not_waiting(taken)

    def _not_waiting(self, pending: Pending) -> None:
        """What comes due is on its way no longer."""
        self._timers.not_waiting(pending)
        self.effects.not_waiting(pending)

    def _keep_pending(self, kept: Iterable[Pending]) -> None:
        self.pending = deque(kept)
        self.pending_bytes = sum(len(pending.input) for pending in self.pending)
