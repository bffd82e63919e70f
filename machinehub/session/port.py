"""The session port: what anything outside may ask of sessions, and the messages that it hears.

Whoever speaks with clients (`machinehub/protocols`) and whoever looks after machines
(`machinehub/control`) knows sessions by this file alone. `LocalSessions` (`run/local.py`) is the
implementation for the sessions of this hub; another may ask a hub elsewhere.

Messages say what happened, not how it is spelled: each protocol encodes them, once for all its
listeners (`Message.encoded`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.ids import Digest, EventId, MachineId, Seq, SessionId
    from machinehub.limits import Limits
    from machinehub.model import Entry, Fault
    from machinehub.principal import Principal
    from machinehub.session.decide.conditions import Condition
    from sandbox.protocol.messages import Cost

T = TypeVar("T")


# --- messages -------------------------------------------------------------------------------------


@dataclass(slots=True, eq=False)
class Message:
    """What a listener hears. Immutable, but for what it was encoded to."""

    _encoded: dict[Any, Any] | None = field(default=None, init=False, repr=False)

    def encoded(self, encode: Callable[[Self], T]) -> T:
        """`encode(self)`, computed once for each `encode`, however many listen."""
        known = self._encoded
        if known is None:
            known = self._encoded = {}
        found: T | None = known.get(encode)
        if found is None:
            found = known[encode] = encode(self)
        return found


@dataclass(slots=True, eq=False)
class Snapshot(Message):
    """The session as it is, or was at an input: the first message that a listener hears."""

    seq: Seq
    version: int
    state: bytes
    """The public snapshot: a JSON object."""
    connection_id: str | None = None
    """What the listener's own connection is called in presence."""
    count: int = 0
    """How many members are there, the listener included."""


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


@dataclass(slots=True, eq=False)
class Emitted(Message):
    """The machine emitted an event."""

    seq: Seq
    event: bytes
    """JSON"""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who is there, as others see them."""

    id: str
    user: str | None
    joined_at: str
    """RFC 3339"""
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
    """Who is there."""

    count: int
    members: list[Member]
    """The first of them, in the order of their coming; `count` is always the true number."""
    news: PresenceNews | None = None
    """None for a listener that has just come, and where the list is shorter than what changed."""


class Ending(Enum):
    """Why a session has nothing more to say to a listener."""

    DELETED = "deleted"
    UNAVAILABLE = "unavailable"
    """It could not be loaded; it may be had later."""
    GOING_AWAY = "going away"
    """This hub stops."""


@dataclass(slots=True, eq=False)
class Closed(Message):
    """The last message that a listener hears."""

    why: Ending
    detail: str


class Listener(Protocol):
    """Somebody who watches a session. Called in the event loop: it must neither block nor raise."""

    def receive(self, message: Message) -> None: ...


# --- what is asked --------------------------------------------------------------------------------


class Address(NamedTuple):
    """A session, and the version that it begins on if it is new (None for the active one)."""

    machine_id: MachineId
    session_id: SessionId
    version: int | None = None


class Visitor(NamedTuple):
    """Who opens a connection or sends an event."""

    principal: Principal
    key: str | None = None
    """A secret that the client made up, by which it is known again; None for a client that has
    none.
    """


class Answered(NamedTuple):
    """What became of an event, and the session right after it (as it is by now, for a second
    copy).
    """

    settled: Settled
    snapshot: Snapshot


class Summary(NamedTuple):
    """What a list shows of a session."""

    session_id: SessionId
    version: int
    seq: Seq
    finished: bool
    created_at_ms: int
    connections: int
    live: bool
    """Whether it is on a worker."""
    parent: SessionId | None
    forked_at: Seq | None


class Recomputed(NamedTuple):
    """What a replay came to. Digests are of memories, in hexadecimal."""

    seq: Seq
    state: bytes
    digest: str
    inputs: int
    ms: float
    checkpoints: list[tuple[Seq, str, str]]
    """(seq, stored digest, recomputed digest)"""
    verified: bool
    """Whether all digests agree, and the state is the one that clients were told."""


class VersionTarget(Protocol):
    """A version that sessions may begin on."""

    @property
    def number(self) -> int: ...
    @property
    def digest(self) -> Digest: ...
    @property
    def hears_presence(self) -> bool: ...
    @property
    def limits(self) -> Limits: ...


class Versions(Protocol):
    """Where sessions find out what a machine is."""

    async def target(self, machine_id: MachineId, number: int | None) -> VersionTarget:
        """The version of that number, or the active one. Raises `NotFound`."""
        ...

    async def limits_of(self, machine_id: MachineId, number: int) -> Limits:
        """What a version allows. Raises `NotFound`."""
        ...


class Subscription(Protocol):
    """A listener's hold on a session."""

    @property
    def seq(self) -> Seq:
        """Of the last input that was committed."""
        ...

    @property
    def limits(self) -> Limits:
        """What the session's version allows."""
        ...

    def send(self, event: bytes, event_id: EventId | None) -> None:
        """Hands an event over. With an id, the listener hears a `Settled`, at once if the id is
        known.

        Raises `CallerError` for an event that cannot be one, `RateLimited`, `Conflict` when the
        session has ended, `NotFound` when it was deleted, `Unavailable` when too much waits.
        """

    def describe(self, metadata: bytes) -> None:
        """Sets what the member says of itself. Raises `CallerError`."""

    def close(self) -> None:
        """The listener hears nothing more. Closing twice changes nothing."""


class Sessions(Protocol):
    """All that may be asked of sessions. Every call may raise `Unavailable`, and `NotFound` for
    machines and versions that are not there.
    """

    async def read(self, address: Address) -> Snapshot:
        """The session as it is; it begins if it is new."""
        ...

    async def create(self, address: Address, given: bytes | None) -> Snapshot:
        """Begins a session with XState's `input` as JSON. Raises `Conflict` when it exists,
        `CallerError`.
        """
        ...

    async def subscribe(
        self,
        address: Address,
        listener: Listener,
        visitor: Visitor,
        *,
        given: bytes | None = None,
        emitted_after: Seq | None = None,
    ) -> Subscription:
        """From now on `listener` hears of the session, which begins with `given` if it is new.

        Before this returns it has heard a `Snapshot`, then what was emitted behind `emitted_after`,
        as far as that is remembered. Raises `CallerError`, `RateLimited`, and `Unavailable` when it
        is full.
        """
        ...

    async def send(
        self,
        address: Address,
        event: bytes,
        visitor: Visitor,
        *,
        event_id: EventId | None = None,
        if_match: Seq | None = None,
    ) -> Answered:
        """Sends an event and waits for what becomes of it. Raises as `Subscription.send`, and
        `PreconditionFailed` when the session is not at `if_match`.
        """
        ...

    async def wait(self, address: Address, condition: Condition) -> Snapshot:
        """The first snapshot from now on for which `condition` holds. It begins if it is new.

        Raises `PreconditionFailed` when the session ends without it.
        """
        ...

    async def members(self, address: Address) -> Presence:
        """Who is there. Raises `NotFound`: a session that does not exist does not begin."""
        ...

    async def describe(self, address: Address, visitor: Visitor, metadata: bytes) -> Presence:
        """Sets what a member says of itself. Raises `Conflict` when it is not there,
        `CallerError`.
        """
        ...

    async def inspect(self, address: Address, at: Seq | None = None) -> tuple[Summary, Snapshot]:
        """The session as it is, or as it was after `at` inputs. Raises `NotFound`: a session that
        does not exist does not begin; and for a step that is not, or not any more, to be had.
        """
        ...

    async def summaries(
        self, machine_id: MachineId, *, after: SessionId | None, limit: int
    ) -> list[Summary]:
        """A machine's sessions by id, from behind the id `after`."""
        ...

    async def journal_of(
        self, address: Address, *, after: tuple[Seq, int], limit: int
    ) -> list[Entry]:
        """Entries from behind (seq, attempt) `after`. Raises `NotFound`."""
        ...

    async def fork(self, address: Address, at: Seq | None, session_id: SessionId) -> Summary:
        """A new session that goes on from input `at` of another, or from its last. Raises
        `NotFound`, `Conflict` when there is one of that name.
        """
        ...

    async def replay(self, address: Address, seq: Seq | None) -> Recomputed:
        """Computes a session again from its journal, up to `seq` or its last input. Raises
        `NotFound`.
        """
        ...

    async def delete(self, address: Address) -> None:
        """Deletes a session and everything that is kept of it. Raises `NotFound`."""
        ...

    async def delete_machine(self, machine_id: MachineId) -> None:
        """Deletes all sessions of a machine, and lets no new one begin."""
        ...
