"""What listeners of a session hear: domain messages, which each protocol encodes in its own way."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.ids import EventId, Seq
    from machinehub.model import Entry, Fault
    from sandbox.protocol.messages import Cost

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Message:
    """Base of all messages to a listener. Immutable, except for its cache of encoded forms."""

    _encoded: dict[Any, Any] | None = field(default=None, init=False, repr=False)

    def encoded(self, encode: Callable[[Self], T]) -> T:
        """`encode(self)`, computed once for each `encode`, however many listen."""
        known = self._encoded
        if known is not None and encode in known:
            found: T = known[encode]
            return found
        made = encode(self)  # which may use another encoding of the message
        if self._encoded is None:
            self._encoded = {}
        self._encoded[encode] = made
        return made


@dataclass(slots=True, eq=False)
class Snapshot(Message):
    """The public snapshot after input `seq`: the first message that a new listener receives, and
    the result of `Sessions.read`, `create` and `wait`.
    """

    seq: Seq
    version: int
    state: bytes
    """The public snapshot: a JSON object."""
    connection_id: str | None = None
    """What the listener's own connection is called in presence."""
    count: int = 0
    """How many members are there, the listener included."""
    is_personal: bool = False
    """Whether it is what the machine's `view` shows to one member."""


@dataclass(slots=True, eq=False)
class Update(Message):
    """The public snapshot changed. A slow listener may skip all but the newest."""

    seq: Seq
    state: bytes


@dataclass(slots=True, eq=False)
class Settled(Message):
    """What became of an event: heard by the listener that sent it."""

    event_id: EventId | None
    seq: Seq
    changed: bool
    error: Fault | None = None
    cost: Cost | None = None
    taken: bool | None = None
    """Whether a transition of the machine took the event; None where the guest did not say."""

    @property
    def what_changed(self) -> bytes:
        """`"changed":...,"taken":...` of an event that was accepted, as JSON."""
        return _CHANGED[self.changed, self.taken]


_CHANGED: Final = {
    (changed, taken): b'"changed":%b,"taken":%b'
    % (msgspec.json.encode(changed), msgspec.json.encode(taken))
    for changed in (False, True)
    for taken in (False, True, None)
}


@dataclass(slots=True, eq=False)
class Emitted(Message):
    """The machine emitted an event."""

    seq: Seq
    event: bytes
    """JSON"""
    state: bytes = b""
    """The snapshot of that moment, where the machine says by it who hears the event."""


@dataclass(slots=True, eq=False)
class Applied(Message):
    """An input was applied, whether or not the public snapshot changed: for listeners that asked
    for inputs, before the `Update` of the same turn. Their seqs follow each other, but for what a
    listener missed while its session moved to another node: that is in the journal.
    """

    entry: Entry


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One participant of a session, as all its listeners see it: one connection, or all connections
    with one client key.
    """

    id: str
    user: str | None
    joined_at: str
    """RFC 3339"""
    roles: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """Of whoever came with a connect token."""
    metadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """What they say of themselves, as JSON."""


@dataclass(slots=True, eq=False)
class PresenceNews:
    """What changed since the last message about presence."""

    joined: list[Member]
    left: list[str]
    changed: list[Member]


@dataclass(slots=True, eq=False)
class Presence(Message):
    """The members that are present: the whole list for a new listener, later what changed."""

    count: int
    members: list[Member]
    """The first 100 members (`LISTED_MAX`), in the order in which they joined; `count` counts all
    of them.
    """
    news: PresenceNews | None = None
    """What changed since the previous presence message. None if `members` replaces what the
    listener knew: for a new listener, when more than `LISTED_MAX` members changed, and when one
    left while more than `LISTED_MAX` were present.
    """


class Ending(Enum):
    """Why a session has nothing more to say to a listener."""

    DELETED = "deleted"
    RESTARTED = "restarted"
    """Another session has begun under its name: connect again."""
    UNAVAILABLE = "unavailable"
    """It could not be loaded; it may be had later."""
    GOING_AWAY = "going away"
    """This hub stops."""
    REVOKED = "revoked"
    """The listener's token is not valid any more."""
    UNSEEN = "unseen"
    """What the listener may see cannot be found out, so it sees nothing."""


@dataclass(slots=True, eq=False)
class Closed(Message):
    """The last message that a listener hears."""

    why: Ending
    detail: str


class Listener(Protocol):
    """Somebody who watches a session. Called in the event loop: it must neither block nor raise."""

    def receive(self, message: Message) -> None: ...
