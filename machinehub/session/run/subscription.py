"""One listener's way into a session of this hub: `Subscription` of the session port."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.session.run.intake import settled_of

if TYPE_CHECKING:
    from machinehub.ids import EventId, Seq
    from machinehub.limits import Limits
    from machinehub.session.decide.identity import Identity
    from machinehub.session.decide.session import Session
    from machinehub.session.decide.turn import Receipt
    from machinehub.session.messages import Listener
    from machinehub.session.port import Visitor
    from machinehub.session.run.intake import Intake
    from machinehub.session.run.presence import Crowds
    from machinehub.session.run.publisher import Publisher


class LocalSubscription:
    """`Subscription` (session/port.py)."""

    __slots__ = (
        "_crowds",
        "_intake",
        "_listener",
        "_principal",
        "_publisher",
        "_sender",
        "_session",
        "_who",
    )

    def __init__(
        self,
        session: Session,
        listener: Listener,
        who: Identity,
        visitor: Visitor,
        *,
        intake: Intake,
        crowds: Crowds,
        publisher: Publisher,
    ) -> None:
        self._intake = intake
        self._publisher = publisher
        self._crowds = crowds
        self._session = session
        self._listener = listener
        self._who = who
        self._sender = who.sender
        self._principal = visitor.principal

    @property
    def seq(self) -> Seq:
        return self._session.seq

    @property
    def limits(self) -> Limits:
        return self._session.allowed

    def send(self, event: bytes, event_id: EventId | None) -> None:
        intake, session = self._intake, self._session
        intake.check(session, event, self._principal)
        if event_id is None:
            intake.send(session, event, self._sender, event_id=None, then=None)
            return
        listener, publisher = self._listener, self._publisher

        def tell(receipt: Receipt) -> None:
            settled = settled_of(session, event_id, receipt)
            if session.has_view and settled.changed:
                settled.changed = publisher.has_changed_for(session, listener)
            listener.receive(settled)

        intake.send(session, event, self._sender, event_id=self._who.own(event_id), then=tell)

    def describe(self, metadata: bytes) -> None:
        self._crowds.describe(self._session, self._who, metadata)

    def close(self) -> None:
        self._crowds.detach(self._session, self._listener)
