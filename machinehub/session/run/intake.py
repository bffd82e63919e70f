"""Turns events, starts and due timers into inputs, and reports their results to the senders.

It refuses events, answers a repeated event id with the first result, applies a machine's rate
limit, and implements `If-Match`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Final
from weakref import WeakSet

from machinehub.errors import (
    Conflict,
    Forbidden,
    HubError,
    IdempotencyMismatch,
    Moving,
    NotFound,
    PreconditionFailed,
    RateLimited,
    Unavailable,
    fault_of,
)
from machinehub.ids import Seq
from machinehub.model import Kind
from machinehub.rates import Rates
from machinehub.session.decide.discretion import discreet
from machinehub.session.decide.events import check_event
from machinehub.session.decide.lifecycle import Phase
from machinehub.session.decide.turn import (
    SESSION_FINISHED,
    Pending,
    Receipt,
    fingerprint_of,
    is_same_event,
)
from machinehub.session.messages import Settled
from machinehub.session.port import Answered
from machinehub.session.run.publisher import answer, snapshot_of
from machinehub.tasks import Tasks
from sandbox.protocol.inputs import answer_input, event_input, start_input, timer_input

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    from machinehub.clock import Clock, Entropy
    from machinehub.ids import EventId, SessionKey
    from machinehub.limits import Limits
    from machinehub.model import Fault, MemberChange
    from machinehub.principal import Principal
    from machinehub.session.decide.session import Session
    from machinehub.session.decide.turn import Answering
    from machinehub.session.run.journal import Journal
    from machinehub.session.run.placement import Placement
    from machinehub.session.run.publisher import Publisher
    from machinehub.session.run.waits import Waits
    from machinehub.store.sessions import SessionStore
    from sandbox.protocol.ids import TimerId

COPIES_WAITING_MAX: Final = 64
"""Copies of one event that may wait for its answer."""
LOOKUPS_MAX: Final = 100
"""Events to finished sessions whose ids are looked for in the journal at once; more are told
`session_finished` straight away.
"""


class Intake:
    """`load` loads a session that is not loaded."""

    def __init__(
        self,
        store: SessionStore,
        clock: Clock,
        entropy: Entropy,
        limits: Limits,
        *,
        placement: Placement,
        journal: Journal,
        waits: Waits,
        publisher: Publisher,
        load: Callable[[Session], Awaitable[None]],
        moving: WeakSet[Session],
    ) -> None:
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._placement = placement
        self._journal = journal
        self._waits = waits
        self._publisher = publisher
        self._load = load
        self._moving = moving
        self._lookups = Tasks()
        self._rates: Rates[str] = Rates()
        """Of events, by machine."""
        self._succeeded: WeakSet[Session] = WeakSet()
        """Sessions in whose place others have begun, for as long as somebody holds on to them."""

    def succeeded(self, session: Session) -> None:
        """Another session took its place: whoever sends to it still may send again."""
        self._succeeded.add(session)

    def stop(self) -> None:
        self._lookups.stop()

    # --- events of clients ------------------------------------------------------------------------

    def check(
        self, session: Session, event: bytes, principal: Principal, *, is_hub: bool = False
    ) -> None:
        """Whether a client (or the hub, by one of its own names) may send this event now. Raises
        `CallerError`, `RateLimited`, and `Forbidden` where their token does not allow it, or it is
        a webhook's.

        A rate that a version chose for itself is its sessions' alone.
        """
        allowed = session.allowed
        if principal.is_counted:
            per_s = allowed.machine_events_per_s
            own = per_s < self._limits.machine_events_per_s
            name = f"{session.machine_id}@{session.record.version}" if own else session.machine_id
            if not self._rates.take(name, per_s, self._clock.monotonic_s()):
                raise RateLimited(
                    "rate_limited", f"a machine takes at most {per_s} events a second"
                )
        if principal.allowance is not None:
            principal.allowance.take_event(self._clock.monotonic_s())
        type_ = check_event(event, bytes_max=allowed.event_bytes, depth_max=allowed.event_depth)
        principal.must_send(type_)
        if type_ in session.of_webhooks and not is_hub:
            raise Forbidden("forbidden", "events of this type come by a webhook alone")

    def send(
        self,
        session: Session,
        event: bytes,
        sender: bytes,
        *,
        event_id: EventId | None,
        then: Callable[[Receipt], None] | None,
        kind: Kind = Kind.EVENT,
        member: MemberChange | None = None,
        depth: int = 0,
    ) -> None:
        """Queues an event that `check` has accepted; `then` is called with its receipt once it is
        settled. `sender` is JSON, which the machine sees as the event's sender.

        A repeated `event_id` queues nothing: `then` gets the receipt of the first copy. Raises
        `Conflict` when the session is finished and the journal is not searched for `event_id`,
        `NotFound` when it was deleted, and `Unavailable` when too many inputs, or copies of this
        event, wait.
        """
        receipt, is_new = session.receipts.of(event_id)
        if not is_new:
            if then is not None and receipt.settled:
                # Behind the update that it is about, like the first answer.
                self._publisher.when_told(session, functools.partial(then, receipt))
            elif then is not None:
                _answer_again(receipt, then)
            return
        error = self._refusal(session)
        if error is not None:
            if isinstance(error, Conflict) and self._look_up(session, event_id, receipt, then):
                return
            session.receipts.forget(event_id)
            raise error
        if event_id is not None:
            receipt.fingerprint = fingerprint_of(event)
        if then is not None:
            receipt.waiting.append(then)
        data = event_input(self._entropy.turn_seed(), event, sender)
        self._offer(
            session,
            kind,
            data,
            receipt=receipt,
            event_id=event_id,
            member=member,
            depth=depth,
        )

    def _look_up(
        self,
        session: Session,
        event_id: EventId | None,
        receipt: Receipt,
        then: Callable[[Receipt], None] | None,
    ) -> bool:
        """The session has ended, but this may be a second copy of an event from before; whether
        that is looked for in the journal.
        """
        if event_id is None or then is None or len(self._lookups) >= LOOKUPS_MAX:
            return False
        receipt.waiting.append(then)
        self._lookups.spawn(self._answer_after_the_end(session, event_id, receipt))
        return True

    async def _answer_after_the_end(
        self, session: Session, event_id: EventId, receipt: Receipt
    ) -> None:
        try:
            entry = await self._store.entry_of(session.record.key, event_id)
        except Unavailable as error:
            entry, receipt.error = None, fault_of(error)
        else:
            receipt.error = SESSION_FINISHED
        if entry is None:
            receipt.seq = session.seq
            session.receipts.forget(event_id)
        else:
            receipt.keep(entry)
        answer(receipt)

    async def send_and_wait(
        self,
        session: Session,
        event: bytes,
        sender: bytes,
        *,
        event_id: EventId | None = None,
        if_match: Seq | None = None,
        depth: int = 0,
    ) -> Answered:
        """`send`, awaited. Raises `PreconditionFailed` unless the session's seq is `if_match`, and
        `IdempotencyMismatch` when `event_id` is that of another event.
        """
        if (event_id is not None or if_match is not None) and not session.phase.loaded:
            await self._load(session)  # what a second copy of the event is answered
        if if_match is not None and event_id not in session.receipts:
            earlier = await self._match(session, event_id, if_match)
            if earlier is not None:
                await self._check_same(session, event, event_id, earlier)
                return _answered(session, event_id, earlier)
        answered: asyncio.Future[tuple[Receipt, Answered]] = self._waits.new()

        def settle(receipt: Receipt) -> None:
            if not answered.done():
                answered.set_result((receipt, _answered(session, event_id, receipt)))

        self.send(session, event, sender, event_id=event_id, then=settle, depth=depth)
        receipt, result = await answered
        await self._check_same(session, event, event_id, receipt)
        return result

    async def _check_same(
        self, session: Session, event: bytes, event_id: EventId | None, receipt: Receipt
    ) -> None:
        """Raises `IdempotencyMismatch` when the receipt is of another event under the same id. The
        same event may be spelled differently: what the journal has is compared by its meaning.
        """
        if event_id is None or receipt.fingerprint == fingerprint_of(event):
            return
        entry = await self._store.entry_of(session.record.key, event_id)
        if entry is not None and not is_same_event(entry.input, event):
            raise IdempotencyMismatch(
                "idempotency_mismatch",
                "another event was sent under this id before; nothing was done",
            )

    async def _match(
        self, session: Session, event_id: EventId | None, if_match: Seq
    ) -> Receipt | None:
        """Waits until the seq cannot move by itself and compares it. Returns the receipt of a
        second copy of an event from so long ago that memory has forgotten it.
        """
        while session.waiting or session.phase is Phase.REPLAYING:
            await self._waits.next_turn(session)
        if session.seq == if_match or event_id in session.receipts:
            return None
        entry = None
        if event_id is not None:
            entry = await self._store.entry_of(session.record.key, event_id)
        if entry is None:
            raise PreconditionFailed(
                "seq_moved", f"the session is at {session.seq}, not at {if_match}"
            )
        receipt = Receipt(entry.seq)
        receipt.keep(entry)
        return receipt

    def _refusal(self, session: Session) -> HubError | None:
        if session in self._moving:
            return Moving()
        if session in self._succeeded:
            return Unavailable("unavailable", "the session was started anew; send it again")
        if session.gone:
            return NotFound("no_such_session", "the session was deleted")
        if session.finished:
            return Conflict(SESSION_FINISHED.code, SESSION_FINISHED.detail)
        if (
            session.waiting >= self._limits.pending_per_session
            or session.pending_bytes >= self._limits.pending_bytes
        ):
            return Unavailable("unavailable", "too many events of this session wait for their turn")
        return self._journal.refusal()

    # --- inputs of the hub's own ------------------------------------------------------------------

    def start(self, session: Session, given: bytes | None) -> None:
        """The session's first input."""
        self._offer(session, Kind.START, start_input(self._entropy.turn_seed(), given))

    def fire(self, session: Session, timer: TimerId) -> None:
        """A timer has come due."""
        data = timer_input(self._entropy.turn_seed(), timer)
        self._offer(session, Kind.TIMER, data, timer=timer)

    async def answer(
        self, session: Session, answer: bytes, to: Answering, key: SessionKey | None
    ) -> Fault | None:
        """The machine gets what became of a request, as JSON: None when that is committed, else why
        its turn was undone. Raises `NotFound` when nobody waits for it (any more), or the session
        is not the one of `key`.
        """
        if not session.phase.loaded:
            await self._load(session)
        if (refused := self._refusal(session)) is not None:
            raise refused
        is_another = key is not None and session.record.key != key
        depth = None if is_another else session.answer_due(to.effect)
        if depth is None:
            raise NotFound("no_such_request", "the session does not wait for such a request")
        settled: asyncio.Future[Fault | None] = self._waits.new()

        def settle(receipt: Receipt) -> None:
            if not settled.done():
                settled.set_result(receipt.error)

        data = answer_input(self._entropy.turn_seed(), to.effect, answer)
        receipt = Receipt(Seq(0), waiting=[settle])
        self._offer(session, Kind.ANSWER, data, receipt=receipt, answering=to, depth=depth)
        return await settled

    def _offer(
        self,
        session: Session,
        kind: Kind,
        data: bytes,
        *,
        receipt: Receipt | None = None,
        event_id: EventId | None = None,
        timer: TimerId | None = None,
        member: MemberChange | None = None,
        answering: Answering | None = None,
        depth: int = 0,
    ) -> None:
        session.offer(
            Pending(
                kind,
                data,
                self._clock.now_ms(),
                receipt,
                event_id=event_id,
                timer=timer,
                member=member,
                answering=answering,
                depth=depth,
            )
        )
        self._placement.offered(session)


def _answer_again(receipt: Receipt, then: Callable[[Receipt], None]) -> None:
    """A second copy of an event will hear what the first one does."""
    if len(receipt.waiting) < COPIES_WAITING_MAX:
        receipt.waiting.append(then)
    else:
        raise Unavailable("unavailable", "too many copies of this event wait for its answer")


def settled_of(session: Session, event_id: EventId | None, receipt: Receipt) -> Settled:
    """The message about a receipt."""
    error = receipt.error
    if error is not None and session.has_view:
        error = discreet(error)
    return Settled(event_id, receipt.seq, receipt.changed, error, receipt.cost, receipt.taken)


def _answered(session: Session, event_id: EventId | None, receipt: Receipt) -> Answered:
    return Answered(settled_of(session, event_id, receipt), snapshot_of(session))
