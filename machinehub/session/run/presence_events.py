"""Presence events: machines that handle `presence.joined` and `presence.left` hear of every member
once.

Decides: what a machine is told, and that it is told durably. Whom it was told of is in the database
beside its journal, so that after a crash it hears of those who did not come back. Every notice has
an id: one that the database may or may not have is sent again under its id, and the journal refuses
the second copy.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from machinehub.errors import HubError, NotFound, OwnedElsewhere, Unavailable
from machinehub.ids import EventId
from machinehub.model import Kind, MemberChange
from machinehub.session.decide.answers import OUR_FAULTS
from machinehub.tasks import Tasks

log = logging.getLogger("machinehub.session")

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Iterable

    from machinehub.clock import Entropy
    from machinehub.ids import MemberId, SessionKey
    from machinehub.limits import Limits
    from machinehub.session.decide.identity import Identity
    from machinehub.session.decide.session import Session
    from machinehub.session.decide.turn import Receipt
    from machinehub.store.sessions import SessionStore

RETRY_S: Final = 1.0
LOOKS_MAX: Final = 30
"""How often commits are looked for that were under way when the hub before this one was killed. A
session that is loaded later brings what the database knows of its members along.
"""
_REFUSED: Final = b""
"""Stands in `Told.there` for the sender of a member whose `presence.joined` the machine rejected:
no `presence.left` is sent for such a member.
"""
_OVER: Final = ("session_finished", "session_deleted", "no_such_session")


class SendsEvents(Protocol):
    """The intake, as it is needed here."""

    def send(
        self,
        session: Session,
        event: bytes,
        sender: bytes,
        *,
        event_id: EventId | None,
        then: Callable[[Receipt], None] | None,
        kind: Kind = ...,
        member: MemberChange | None = None,
    ) -> None: ...


@dataclass(slots=True)
class Notice:
    """Something that a machine is told: somebody came, or left. It keeps its id until it is
    settled.
    """

    id: EventId
    event: bytes
    member: MemberId
    sender: bytes
    joined: bool
    sent: bool = False


@dataclass(slots=True)
class Told:
    """Whom a session's machine takes to be there, once all `notices` are settled."""

    there: dict[MemberId, bytes] = field(default_factory=dict)
    """Member and `sender`."""
    notices: list[Notice] = field(default_factory=list)
    stuck: bool = False
    """Whether a notice was refused through no fault of the machine's: nothing more is sent until
    that one can be.
    """
    awaited: bool = False
    """Whether those who were there before the hub started may still come back."""


class PresenceEvents:
    """`awaken` loads a session by its key; `inform` tells its machine of everybody who is there;
    `has_members` says whether somebody is.
    """

    def __init__(
        self,
        intake: SendsEvents,
        store: SessionStore,
        entropy: Entropy,
        limits: Limits,
        *,
        awaken: Callable[[SessionKey], Awaitable[Session | None]],
        inform: Callable[[Session], None],
        has_members: Callable[[SessionKey], bool],
    ) -> None:
        self._intake = intake
        self._store = store
        self._entropy = entropy
        self._limits = limits
        self._awaken = awaken
        self._inform_of_all = inform
        self._has_members = has_members
        self._told: dict[SessionKey, Told] = {}
        self._moved: set[SessionKey] = set()
        """Sessions of which a notice was settled since `_look_again` began to look."""
        self._tasks = Tasks()

    async def start(self) -> None:
        """Takes up whom machines took to be there when the hub before this one ended. Where several
        hubs share the database, that is done when a session is loaded. Raises `Unavailable`.
        """
        if self._store.node is not None:
            return
        for key, member, sender in await self._store.members():
            self._inherit(key, member, sender)
            self._told[key].awaited = True
        self._tasks.spawn(self._end_waiting(list(self._told)))

    async def take_up(self) -> None:
        """The same once more, later, if the database answers."""
        try:
            await self.start()
        except Unavailable as error:
            log.warning("whom machines take to be there is not known: %s", error.detail)

    def forget_all(self) -> None:
        self._told.clear()

    def stop(self) -> None:
        self._tasks.stop()

    def forget(self, key: SessionKey) -> None:
        """The session is no more."""
        self._told.pop(key, None)

    def restored(
        self, key: SessionKey, members: dict[MemberId, bytes], *, taken_over: bool
    ) -> None:
        """A session was loaded whose machine takes these to be there: a fork's, one whose deletion
        failed, or one that another node had before. What is in memory is newer.
        """
        if taken_over:
            self._told.pop(key, None)  # that was from before the other had it
        if members and key not in self._told:
            self._told[key] = Told(there=dict(members))
        if members and self._store.node is not None and not self._has_members(key):
            # Who was connected at the other node comes here, or has left.
            self._told[key].awaited = True
            self._tasks.spawn(self._end_waiting([key], looks=0))

    def _inherit(self, key: SessionKey, member: MemberId, sender: bytes) -> None:
        self._told.setdefault(key, Told()).there[member] = sender

    # --- telling ----------------------------------------------------------------------------------

    def inform(
        self, session: Session, members: Container[object], connected: Iterable[Identity]
    ) -> None:
        """Tells the machine that those it knows and who are not among `members` have left, and that
        those of `connected` it does not know have come.
        """
        if not session.record.hears_presence or session.gone:
            return
        key = session.record.key
        if session.finished:
            self._told.pop(key, None)
            return
        told = self._told.setdefault(key, Told())
        if not told.awaited:
            for member in [member for member in told.there if member not in members]:
                if sender := told.there.pop(member):
                    self._add(told, member, sender, joined=False)
        for who in connected:
            if who.member not in told.there:
                told.there[who.member] = who.sender
                self._add(told, who.member, who.sender, joined=True)
        if not told.stuck:
            self._send(session, told)
        if not told.there and not told.notices:
            self._told.pop(key, None)

    def _add(self, told: Told, member: MemberId, sender: bytes, *, joined: bool) -> None:
        what = b"joined" if joined else b"left"
        event = b'{"type":"presence.%b","count":%d}' % (what, len(told.there))
        event_id = EventId(f"presence-{self._entropy.connection_id()}")
        told.notices.append(Notice(event_id, event, member, sender, joined))

    def _send(self, session: Session, told: Told) -> None:
        for notice in [notice for notice in told.notices if not notice.sent]:
            notice.sent = True
            try:
                self._intake.send(
                    session,
                    notice.event,
                    notice.sender,
                    event_id=notice.id,
                    then=partial(self._settled, session, told, notice),
                    kind=Kind.PRESENCE,
                    member=MemberChange(notice.member, notice.sender if notice.joined else None),
                )
            except HubError as error:
                self._answered(session, told, notice, error.code)
            if told.stuck:
                return

    def _settled(self, session: Session, told: Told, notice: Notice, receipt: Receipt) -> None:
        self._answered(session, told, notice, receipt.error.code if receipt.error else None)

    def _answered(self, session: Session, told: Told, notice: Notice, code: str | None) -> None:
        key = session.record.key
        if code in _OVER:
            self._told.pop(key, None)
        elif code in OUR_FAULTS:
            notice.sent = False
            if not told.stuck:
                told.stuck = True
                self._try_again_soon(key)
        else:
            told.notices.remove(notice)
            self._moved.add(key)
            if code is not None and notice.joined and notice.member in told.there:
                told.there[notice.member] = _REFUSED
            if not told.there and not told.notices and self._told.get(key) is told:
                del self._told[key]

    # --- after a start, and after refusals --------------------------------------------------------

    def _try_again_soon(self, key: SessionKey) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(RETRY_S, lambda: self._tasks.spawn(self._catch_up(key)))

    async def _end_waiting(self, keys: list[SessionKey], *, looks: int = LOOKS_MAX) -> None:
        # Clients that found no hub come back in their own time.
        await asyncio.sleep(2 * self._limits.presence_grace_ms / 1000)
        for key in keys:
            if (told := self._told.get(key)) is not None:
                told.awaited = False
                await self._catch_up(key)
        for _ in range(looks):
            if await self._look_again():
                break
            await asyncio.sleep(RETRY_S)

    async def _look_again(self) -> bool:
        """Reads the stored members again, because a commit of the previous, killed hub may have
        reached the database after `start` read them, and informs the machines of what is new.

        Returns whether all rows were accounted for; False means that the caller should look again.
        """
        self._moved.clear()
        try:
            rows = await self._store.members()
        except Unavailable:
            return False
        still = True
        for key in {key for key, *_ in rows}:
            told = self._told.get(key)
            unknown = [
                (member, sender)
                for at, member, sender in rows
                if at == key and (told is None or member not in told.there)
            ]
            if unknown and key not in self._moved and (told is None or not told.notices):
                for member, sender in unknown:
                    self._inherit(key, member, sender)
                await self._catch_up(key)
            elif unknown:
                still = False
        return still

    async def _catch_up(self, key: SessionKey) -> None:
        """Informs a machine whose session may be asleep."""
        told = self._told.get(key)
        if told is None:
            return
        try:
            session = await self._awaken(key)
        except (NotFound, OwnedElsewhere):
            session = None
        except HubError:
            self._try_again_soon(key)
            return
        if session is None:
            self._told.pop(key, None)
            return
        told.stuck = any(notice.sent for notice in told.notices)
        if told.stuck:
            self._try_again_soon(key)
        self._inform_of_all(session)
