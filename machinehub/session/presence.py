"""Presence: connections come and go; the others and the machine hear of it.

Decides: when it is told (not too often), how long somebody is waited for, and that a machine which
handles `presence.joined` and `presence.left` hears of every member once each, durably: what it
believes is in the database beside its journal, so that after a crash it is told of those who did
not come back. Who counts as one member is in `members.py`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from machinehub.errors import Conflict, HubError, NotFound, RateLimited, Unavailable
from machinehub.session.answers import OUR_FAULTS
from machinehub.session.core import Kind
from machinehub.session.members import Identity, id_of_key
from machinehub.session.publish import snapshot_frame
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from machinehub.clock import Entropy
    from machinehub.limits import Limits
    from machinehub.session.core import Receipt
    from machinehub.session.host import SessionHost
    from machinehub.session.live import Connection, LiveSession
    from machinehub.store.sessions import SessionStore

log = logging.getLogger("machinehub.session")

DELAY_S: Final = 0.05
DELAY_PER_CONNECTION_S: Final = 0.002
"""Joins and leaves that come together are told together, in a large crowd less often: n arrivals
would cost n^2 frames.
"""
RETRY_S: Final = 1.0
LOOKS_MAX: Final = 30
"""Looks for commits that came late, on a hub that is never quiet.

A session that is loaded later brings its own people along.
"""
_UNHEARD: Final = b""
"""In place of a sender: the machine refused to hear that they came, and so does not hear that they
left.
"""
_OVER: Final = ("session_finished", "session_deleted", "no_such_session")


@dataclass(slots=True)
class Fact:
    """Something that a machine is told: somebody came, or left.

    It keeps its id until it is settled, so that it is told once.
    """

    id: str
    event: bytes
    member: str
    sender: bytes
    joined: bool
    sent: bool = False


@dataclass(slots=True)
class Belief:
    """Whom a session's machine believes to be there, once all `facts` are settled: member and
    `sender`.
    """

    there: dict[str, bytes] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    refused: bool = False
    """Whether a fact was refused through no fault of the machine's: nothing more is sent until that
    one can be.
    """
    awaited: bool = False
    """Whether those who were there before a start of the hub may still come back."""


class People:
    def __init__(
        self, host: SessionHost, store: SessionStore, entropy: Entropy, limits: Limits
    ) -> None:
        self._host = host
        self._store = store
        self._entropy = entropy
        self._limits = limits
        self._beliefs: dict[int, Belief] = {}
        self._moved: set[int] = set()
        """Sessions of which a fact was settled since `_look_again` began to look."""
        self._tasks = Tasks()

    async def start(self) -> None:
        """Takes up whom machines believed to be there when the hub ended. Raises `Unavailable`."""
        for key, member, sender in await self._store.members():
            self._inherit(key, member, sender)
            self._beliefs[key].awaited = True
        self._tasks.spawn(self._end_waiting(list(self._beliefs)))

    def stop(self, sessions: list[LiveSession]) -> None:
        self._tasks.cancel()
        for session in sessions:
            _cancel(session)

    # --- who is there -----------------------------------------------------------------------------

    def identify(self, machine_id: str, session_id: str, key: str | None) -> Identity:
        """Who a connection or a request is: whoever has the client key, or nobody that was ever
        seen. Raises `BadRequest`.
        """
        return (
            Identity(self._entropy.connection_id())
            if key is None
            else Identity(id_of_key(key, machine_id, session_id), returns=True)
        )

    def attach(self, session: LiveSession, connection: Connection) -> None:
        """Adds a watcher: it gets the snapshot first, then everything that follows.

        Raises `Unavailable` when full.
        """
        if session.gone:
            raise NotFound("no_such_session", "the session was deleted")
        room = session.allowed.connections_per_session
        if len(session.connections) >= room:
            raise Unavailable("connections_exceeded", f"a session has at most {room} connections")
        if connection.who.member not in session.members and not session.joins.take(
            1, time.monotonic()
        ):
            raise RateLimited(
                "rate_limited",
                f"at most {session.allowed.joins_per_s} new members join a session in a second",
            )
        session.connections[id(connection)] = connection
        session.members.arrive(connection.who, connection.joined_at)
        if handle := session.leaving.pop(connection.who.member, None):
            handle.cancel()
        session.newcomers.append(connection)
        connection.send(snapshot_frame(session, connection.who.id))
        self._inform(session, connection.who)
        _tell_soon(session)

    def detach(self, session: LiveSession, connection: Connection) -> None:
        if session.connections.pop(id(connection), None) is None:
            return
        who = connection.who
        if session.members.depart(who) and not session.gone:
            session.leaving[who.member] = asyncio.get_running_loop().call_later(
                self._limits.presence_grace_ms / 1000, self._give_up, session, who.member
            )
            if (
                len(session.leaving) > self._limits.connections_per_session
            ):  # somebody makes up one key after the other
                eldest = next(iter(session.leaving))
                session.leaving[eldest].cancel()
                self._give_up(session, eldest)
        self._changed(session)

    def describe(self, session: LiveSession, who: Identity, metadata: bytes) -> None:
        """Sets a member's metadata: JSON that was checked.

        Raises `Conflict` when the member has no connection.
        """
        if not session.members.is_connected(who.member):
            raise Conflict(
                "not_present",
                "only who is connected, with this client key, can say something of themselves",
            )
        session.members.describe(who.member, metadata)
        _tell_soon(session)

    def _give_up(self, session: LiveSession, member: str) -> None:
        session.leaving.pop(member, None)
        if session.members.give_up(member):
            self._changed(session)

    def _changed(self, session: LiveSession) -> None:
        if not session.gone:
            self._inform(session)
            _tell_soon(session)

    # --- what the machine believes ----------------------------------------------------------------

    def leave(self, session: LiveSession) -> None:
        """The session leaves memory with people in it."""
        _cancel(session)

    def forget(self, key: int) -> None:
        """The session is no more."""
        self._beliefs.pop(key, None)

    def restored(self, key: int, members: dict[str, bytes]) -> None:
        """A session was loaded, whose machine believes these to be there: a fork's, or one whose
        deletion failed. What is in memory is newer.
        """
        if members and key not in self._beliefs:
            self._beliefs[key] = Belief(there=dict(members))

    def _inherit(self, key: int, member: str, sender: bytes) -> None:
        self._beliefs.setdefault(key, Belief()).there[member] = sender

    def _inform(self, session: LiveSession, arrived: Identity | None = None) -> None:
        """Tells the machine what it does not know yet."""
        if not session.record.hears_presence or session.gone:
            return
        if session.finished:
            self._beliefs.pop(session.record.key, None)
            return
        belief = self._beliefs.setdefault(session.record.key, Belief())
        if not belief.awaited:
            for member in [member for member in belief.there if member not in session.members]:
                if sender := belief.there.pop(member):
                    self._add(belief, member, sender, joined=False)
        for who in (
            [arrived]
            if arrived is not None
            else [connection.who for connection in session.connections.values()]
        ):
            if who.member not in belief.there:
                belief.there[who.member] = who.sender
                self._add(belief, who.member, who.sender, joined=True)
        if not belief.refused:
            self._send(session, belief)
        if not belief.there and not belief.facts:
            self._beliefs.pop(session.record.key, None)

    def _add(self, belief: Belief, member: str, sender: bytes, *, joined: bool) -> None:
        event = b'{"type":"presence.%b","count":%d}' % (
            b"joined" if joined else b"left",
            len(belief.there),
        )
        belief.facts.append(
            Fact(f"presence-{self._entropy.connection_id()}", event, member, sender, joined)
        )

    def _send(self, session: LiveSession, belief: Belief) -> None:
        for fact in [fact for fact in belief.facts if not fact.sent]:
            fact.sent = True
            try:
                self._host.intake.send(
                    session,
                    fact.event,
                    fact.sender,
                    event_id=fact.id,
                    then=partial(self._settled, session, belief, fact),
                    kind=Kind.PRESENCE,
                    member=(fact.member, fact.sender if fact.joined else None),
                )
            except HubError as error:
                self._answered(session, belief, fact, error.code)
            if belief.refused:
                return

    def _settled(self, session: LiveSession, belief: Belief, fact: Fact, receipt: Receipt) -> None:
        self._answered(session, belief, fact, receipt.error[0] if receipt.error else None)

    def _answered(self, session: LiveSession, belief: Belief, fact: Fact, code: str | None) -> None:
        key = session.record.key
        if code in _OVER:
            self._beliefs.pop(key, None)
        elif code in OUR_FAULTS:
            fact.sent = False
            if not belief.refused:
                belief.refused = True
                self._try_again_soon(key)
        else:
            belief.facts.remove(fact)
            self._moved.add(key)
            if code is not None and fact.joined and fact.member in belief.there:
                belief.there[fact.member] = _UNHEARD
            if not belief.there and not belief.facts and self._beliefs.get(key) is belief:
                del self._beliefs[key]

    def _try_again_soon(self, key: int) -> None:
        asyncio.get_running_loop().call_later(
            RETRY_S, lambda: self._tasks.spawn(self._catch_up(key))
        )

    async def _end_waiting(self, keys: list[int]) -> None:
        await asyncio.sleep(
            2 * self._limits.presence_grace_ms / 1000
        )  # clients that found no hub come back in their own time
        for key in keys:
            if (belief := self._beliefs.get(key)) is not None:
                belief.awaited = False
                await self._catch_up(key)
        for _ in range(LOOKS_MAX):
            if await self._look_again():
                break
            await asyncio.sleep(RETRY_S)

    async def _look_again(self) -> bool:
        """A commit that was under way when the hub was killed may have been done after `start`
        looked; whether nothing moved meanwhile.
        """
        self._moved.clear()
        try:
            rows = await self._store.members()
        except Unavailable:
            return False
        still = True
        for key in {key for key, *_ in rows}:
            belief = self._beliefs.get(key)
            unknown = [
                (member, sender)
                for at, member, sender in rows
                if at == key and (belief is None or member not in belief.there)
            ]
            if unknown and key not in self._moved and (belief is None or not belief.facts):
                for member, sender in unknown:
                    self._inherit(key, member, sender)
                await self._catch_up(key)
            elif unknown:
                still = False
        return still

    async def _catch_up(self, key: int) -> None:
        """Informs a machine whose session may be asleep."""
        belief = self._beliefs.get(key)
        if belief is None:
            return
        try:
            session = await self._host.awaken(key)
        except NotFound:
            session = None
        except HubError:
            self._try_again_soon(key)
            return
        if session is None:
            self._beliefs.pop(key, None)
        else:
            belief.refused = any(fact.sent for fact in belief.facts)
            if belief.refused:
                self._try_again_soon(key)
            self._inform(session)


def _tell_soon(session: LiveSession) -> None:
    if session.presence_due is None:
        delay_s = DELAY_S + DELAY_PER_CONNECTION_S * len(session.connections)
        session.presence_due = asyncio.get_running_loop().call_later(delay_s, _tell, session)


def _tell(session: LiveSession) -> None:
    session.presence_due = None
    news = session.members.news()
    newcomers, session.newcomers = {id(connection) for connection in session.newcomers}, []
    whole = session.members.whole() if newcomers else None
    for number, connection in list(session.connections.items()):
        frame = whole if number in newcomers else news
        if frame is not None:
            connection.send(frame)


def _cancel(session: LiveSession) -> None:
    for handle in session.leaving.values():
        handle.cancel()
    session.leaving.clear()
    if session.presence_due is not None:
        session.presence_due.cancel()
        session.presence_due = None
