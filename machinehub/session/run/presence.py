"""Presence: connections come and go, and the others hear of it.

Decides: when that is told (not too often), and how long somebody is waited for who may come back.
Who counts as one member is decided in `decide/members.py`; what machines are told of it in
`presence_events.py`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from machinehub.clock import timestamp
from machinehub.errors import Conflict, NotFound, RateLimited, TooLarge, Unavailable
from machinehub.rates import Rate
from machinehub.session.decide.events import check_metadata
from machinehub.session.decide.identity import Identity, id_of_key, identity_of
from machinehub.session.decide.members import Members
from machinehub.session.messages import Snapshot

if TYPE_CHECKING:
    from machinehub.clock import Clock, Entropy
    from machinehub.ids import MachineId, MemberId, SessionId
    from machinehub.limits import Limits
    from machinehub.session.decide.session import Session
    from machinehub.session.messages import Listener, Presence
    from machinehub.session.port import Visitor
    from machinehub.session.run.presence_events import PresenceEvents
    from machinehub.session.run.publisher import Publisher

DELAY_S: Final = 0.05
DELAY_PER_CONNECTION_S: Final = 0.002
"""Joins and leaves that come together are told together, in a large crowd less often: n arrivals
would cost n^2 frames.
"""


@dataclass(slots=True, eq=False)
class Crowd:
    """The connections of one session, and the members behind them."""

    joins: Rate
    members: Members = field(default_factory=Members)
    connections: dict[Listener, Identity] = field(default_factory=dict)
    newcomers: list[Listener] = field(default_factory=list)
    """Listeners that have not been told who is there."""
    leaving: dict[MemberId, asyncio.TimerHandle] = field(default_factory=dict)
    """Members without a connection, and when they are given up."""
    due: asyncio.TimerHandle | None = None
    """When the others are told what is new."""

    def stop(self) -> None:
        for handle in self.leaving.values():
            handle.cancel()
        self.leaving.clear()
        if self.due is not None:
            self.due.cancel()
            self.due = None


class Crowds:
    """The crowds of all sessions that somebody watches."""

    def __init__(
        self,
        publisher: Publisher,
        events: PresenceEvents,
        clock: Clock,
        entropy: Entropy,
        limits: Limits,
    ) -> None:
        self._publisher = publisher
        self._events = events
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._crowds: dict[Session, Crowd] = {}

    def stop(self) -> None:
        for crowd in self._crowds.values():
            crowd.stop()

    def drop(self, session: Session) -> None:
        """The session leaves memory, perhaps with people in it."""
        crowd = self._crowds.pop(session, None)
        if crowd is not None:
            crowd.stop()

    def has_members(self, session: Session) -> bool:
        crowd = self._crowds.get(session)
        return crowd is not None and len(crowd.members) > 0

    def connections(self, session: Session) -> int:
        crowd = self._crowds.get(session)
        return 0 if crowd is None else len(crowd.connections)

    def listing(self, session: Session | None) -> Presence:
        crowd = self._crowds.get(session) if session is not None else None
        return (crowd.members if crowd is not None else Members()).listing()

    def identify(self, machine_id: MachineId, session_id: SessionId, visitor: Visitor) -> Identity:
        """Who a connection or a request is: the user that a connect token names, whoever has the
        client key, or somebody never seen before.

        Raises `BadRequest`.
        """
        if visitor.identity is not None:
            return visitor.identity
        if visitor.principal.member is not None:
            return identity_of(visitor.principal.member, machine_id, session_id)
        if visitor.key is None:
            return Identity(self._entropy.connection_id())
        return Identity(id_of_key(visitor.key, machine_id, session_id), returns=True)

    # --- coming and going -------------------------------------------------------------------------

    def attach(
        self,
        session: Session,
        listener: Listener,
        who: Identity,
        snapshot: Snapshot,
        *,
        replaces: Listener | None = None,
        follows: bool = False,
    ) -> None:
        """Adds a listener: it hears the snapshot first, then everything that follows, the inputs
        included if it `follows`. It may take the place of another, for which there was room.

        Raises `NotFound` when the session was deleted, `Unavailable` when it is full,
        `RateLimited`.
        """
        if session.gone:
            raise NotFound("no_such_session", "the session was deleted")
        allowed = session.allowed
        crowd = self._crowds.get(session)
        if crowd is None:
            rate = Rate(allowed.joins_per_s, burst=allowed.connections_per_session)
            crowd = self._crowds[session] = Crowd(rate)
        room = allowed.connections_per_session
        if len(crowd.connections) >= room + (replaces in crowd.connections):
            raise Unavailable("connections_exceeded", f"a session has at most {room} connections")
        is_new = who.member not in crowd.members
        if is_new and not crowd.joins.take(1, self._clock.monotonic_s()):
            raise RateLimited(
                "rate_limited",
                f"at most {allowed.joins_per_s} new members join a session in a second",
            )
        crowd.connections[listener] = who
        crowd.members.arrive(who, timestamp(self._clock.now_ms()))
        if handle := crowd.leaving.pop(who.member, None):
            handle.cancel()
        crowd.newcomers.append(listener)
        audience = self._publisher.audience(session)
        audience.listeners[listener] = None
        if follows:
            audience.followers[listener] = None
        count = len(crowd.members)
        seen = Snapshot(snapshot.seq, snapshot.version, snapshot.state, who.id, count)
        seen.is_personal = session.has_view
        listener.receive(seen)
        self._events.inform(session, crowd.members, [who])
        self._tell_soon(crowd)
        if replaces is not None:
            self.detach(session, replaces)

    def detach(self, session: Session, listener: Listener) -> None:
        """Removes a listener. A member that may return stays present for `presence_grace_ms`."""
        self._publisher.leave(session, listener)
        crowd = self._crowds.get(session)
        who = crowd.connections.pop(listener, None) if crowd is not None else None
        if crowd is None or who is None:
            return
        if crowd.members.depart(who) and not session.gone:
            self._wait_for(session, crowd, who.member)
        self._changed(session, crowd)

    def describe(self, session: Session, who: Identity, metadata: bytes) -> None:
        """Sets a member's metadata, a JSON value. Raises `Conflict` when the member has no
        connection, `CallerError` for what is no such value.
        """
        bytes_max = session.allowed.presence_metadata_bytes
        if len(metadata) > bytes_max:
            raise TooLarge(
                "metadata_too_large", f"a member's metadata has at most {bytes_max} bytes here"
            )
        said = check_metadata(metadata, bytes_max=bytes_max, depth_max=self._limits.event_depth)
        crowd = self._crowds.get(session)
        if crowd is None or not crowd.members.is_connected(who.member):
            raise Conflict(
                "not_present",
                "only who is connected, with this client key, can say something of themselves",
            )
        crowd.members.describe(who.member, said)
        self._tell_soon(crowd)

    def _wait_for(self, session: Session, crowd: Crowd, member: MemberId) -> None:
        """The member may come back: a page that is loaded again does."""
        delay_s = self._limits.presence_grace_ms / 1000
        loop = asyncio.get_running_loop()
        crowd.leaving[member] = loop.call_later(delay_s, self._give_up, session, crowd, member)
        if len(crowd.leaving) > self._limits.connections_per_session:
            eldest = next(iter(crowd.leaving))  # somebody makes up one key after the other
            crowd.leaving[eldest].cancel()
            self._give_up(session, crowd, eldest)

    def _give_up(self, session: Session, crowd: Crowd, member: MemberId) -> None:
        crowd.leaving.pop(member, None)
        if crowd.members.give_up(member):
            self._changed(session, crowd)

    def _changed(self, session: Session, crowd: Crowd) -> None:
        if not session.gone:
            self._events.inform(session, crowd.members, crowd.connections.values())
            self._tell_soon(crowd)

    def inform(self, session: Session) -> None:
        """Tells the session's machine of everybody whom it was not told of."""
        crowd = self._crowds.get(session)
        members = crowd.members if crowd is not None else Members()
        there = crowd.connections.values() if crowd is not None else ()
        self._events.inform(session, members, there)

    # --- telling the others -----------------------------------------------------------------------

    def _tell_soon(self, crowd: Crowd) -> None:
        if crowd.due is None:
            delay_s = DELAY_S + DELAY_PER_CONNECTION_S * len(crowd.connections)
            crowd.due = asyncio.get_running_loop().call_later(delay_s, self._tell, crowd)

    def _tell(self, crowd: Crowd) -> None:
        crowd.due = None
        news = crowd.members.news()
        newcomers, crowd.newcomers = set(crowd.newcomers), []
        whole = crowd.members.listing() if newcomers else None
        for listener in list(crowd.connections):
            message = whole if listener in newcomers else news
            if message is not None:
                self._publisher.send([listener], message)
