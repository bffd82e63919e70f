"""What may become an input of a session, and what becomes of it for whoever sent it.

Decides: when an event is refused, that a second copy of one gets the first one's answer, what
`If-Match` means. Does not know: where sessions live, or what is committed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from machinehub.errors import Conflict, HubError, NotFound, PreconditionFailed, Unavailable
from machinehub.session.core import SESSION_FINISHED, Kind, Receipt
from machinehub.session.event import event_input
from machinehub.session.publish import answer
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from machinehub.clock import Clock, Entropy
    from machinehub.limits import Limits
    from machinehub.session.host import SessionHost
    from machinehub.session.live import LiveSession
    from machinehub.store.sessions import SessionStore

COPIES_WAITING_MAX: Final = 64
"""Copies of one event that may wait for its answer."""
LOOKUPS_MAX: Final = 100
"""Events to finished sessions whose ids are looked for in the journal at once; more are told
`session_finished` straight away.
"""


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of an event, and the session's snapshot at `seq`."""

    receipt: Receipt
    snapshot: bytes
    seq: int


class Intake:
    def __init__(
        self, host: SessionHost, store: SessionStore, clock: Clock, entropy: Entropy, limits: Limits
    ) -> None:
        self._host = host
        self._store = store
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._lookups = Tasks()

    def stop(self) -> None:
        self._lookups.cancel()

    def send(
        self,
        session: LiveSession,
        event: bytes,
        sender: bytes,
        *,
        event_id: str | None,
        then: Callable[[Receipt], None] | None,
        kind: Kind = Kind.EVENT,
        member: tuple[str, bytes | None] | None = None,
    ) -> None:
        """Hands a checked event to the session; `then` hears what became of it, at once when the id
        is known.

        Raises `Conflict` when the session is finished and `Unavailable` when too much waits.
        """
        receipt, is_new = session.receipt_of(event_id)
        if not is_new:
            if then is not None:
                if receipt.settled:
                    then(receipt)
                elif len(receipt.waiting) < COPIES_WAITING_MAX:
                    receipt.waiting.append(then)
                else:
                    raise Unavailable(
                        "unavailable", "too many copies of this event wait for its answer"
                    )
            return
        error = self._refusal(session)
        if (
            isinstance(error, Conflict)
            and event_id is not None
            and then is not None
            and len(self._lookups) < LOOKUPS_MAX
        ):
            receipt.waiting.append(then)  # it may be a second copy of an event from before the end
            self._lookups.spawn(self._answer_after_the_end(session, event_id, receipt))
            return
        if error is not None:
            session.forget_receipt(event_id)
            raise error
        if then is not None:
            receipt.waiting.append(then)
        self.offer(
            session,
            kind,
            event_input(self._entropy.turn_seed(), event, sender),
            receipt,
            event_id=event_id,
            member=member,
        )

    async def _answer_after_the_end(
        self, session: LiveSession, event_id: str, receipt: Receipt
    ) -> None:
        try:
            entry = await self._store.entry_of(session.record.key, event_id)
        except Unavailable as error:
            entry, receipt.error = None, (error.code, error.detail)
        else:
            receipt.error = SESSION_FINISHED
        if entry is None:
            receipt.seq = session.seq
            session.forget_receipt(event_id)
        else:
            receipt.keep(entry)
        answer(receipt)

    async def send_and_wait(
        self,
        session: LiveSession,
        event: bytes,
        sender: bytes,
        *,
        event_id: str | None = None,
        if_match: int | None = None,
    ) -> Answered:
        """`send`, awaited: what became of the event, and the snapshot right after it (as it is by
        now, for a second copy).

        With `if_match` the event is sent only while the session's seq is that number. Raises
        `PreconditionFailed`.
        """
        if (event_id is not None or if_match is not None) and not session.loaded:
            await self._host.restore(session)  # what a second copy of the event is answered
        if if_match is not None and not session.knows(event_id):
            while session.waiting or session.snapshot_is_old:  # what is under way may move the seq
                await self._host.waits.next_turn(session)
            if session.seq != if_match and not session.knows(event_id):
                entry = (
                    None
                    if event_id is None
                    else await self._store.entry_of(session.record.key, event_id)
                )
                if entry is None:
                    raise PreconditionFailed(
                        "seq_moved", f"the session is at {session.seq}, not at {if_match}"
                    )
                receipt = Receipt()
                receipt.keep(
                    entry
                )  # a second copy of an event from so long ago that memory has forgotten it
                return Answered(receipt, session.snapshot, session.seq)
        answered: asyncio.Future[Answered] = self._host.waits.new()

        def settle(receipt: Receipt) -> None:
            if not answered.done():
                answered.set_result(Answered(receipt, session.snapshot, session.seq))

        self.send(session, event, sender, event_id=event_id, then=settle)
        return await answered

    def _refusal(self, session: LiveSession) -> HubError | None:
        if session.gone:
            return NotFound("no_such_session", "the session was deleted")
        if session.finished:
            return Conflict(*SESSION_FINISHED)
        if (
            session.waiting >= self._limits.pending_per_session
            or session.pending_bytes >= self._limits.pending_bytes
        ):
            return Unavailable("unavailable", "too many events of this session wait for their turn")
        return self._host.journal.refusal()

    def offer(
        self,
        session: LiveSession,
        kind: Kind,
        data: bytes,
        receipt: Receipt | None = None,
        *,
        event_id: str | None = None,
        timer: int = 0,
        member: tuple[str, bytes | None] | None = None,
    ) -> None:
        now_ms = session.last_input_ms = self._clock.now_ms()
        session.offer(kind, data, now_ms, receipt, event_id=event_id, timer=timer, member=member)
        self._host.placement.offered(session)
