"""The session port: the interface through which the rest of the hub uses sessions.

`machinehub/protocols` (client protocols) and `machinehub/control` (the deploy API) open, read and
change sessions only through `Sessions` and `Subscription`; `LocalSessions` (`run/local.py`)
implements them.

A `Listener` receives `Message` objects (`messages.py`), which are independent of any wire format:
each protocol encodes a message once, and sends the same bytes to all its listeners
(`Message.encoded`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from machinehub.ids import MachineId, Seq, SessionId  # noqa: TC001 - nodes read them

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from machinehub.effect import Conclusion, Effect, EffectRecord
    from machinehub.ids import EventId, SessionKey
    from machinehub.limits import Limits
    from machinehub.model import Entry, Fault
    from machinehub.principal import Principal
    from machinehub.session.decide.conditions import Condition
    from machinehub.session.decide.identity import Identity
    from machinehub.session.messages import Listener, Presence, Settled, Snapshot
    from sandbox.protocol.ids import EffectId, TimerId


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
    identity: Identity | None = None
    """Who they are in the session, where that was found out already."""


class Answered(NamedTuple):
    """The outcome of an event, and the snapshot right after it. For an event id that was settled
    earlier, the snapshot is the current one.
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
    compacted_to: Seq | None = None
    """Inputs up to this one may be missing from its journal, and cannot be replayed."""


class Recomputed(NamedTuple):
    """The result of a replay up to input `seq`: `state` is the public snapshot as JSON, `inputs`
    the number of inputs replayed, `ms` the wall-clock time in milliseconds. Digests are the
    checkpoint digests (32 hexadecimal digits of SHA-256) of the session's memory.
    """

    seq: Seq
    state: bytes
    digest: str
    inputs: int
    ms: float
    checkpoints: list[tuple[Seq, str, str]]
    """(seq, stored digest, recomputed digest)"""
    verified: bool
    """Whether all digests agree and, if the session is in memory at `seq`, the state does too."""


class Persisted(NamedTuple):
    """A session after input `seq`, as XState persists it (`getPersistedSnapshot`), as JSON: with
    its children's state, and from where `createActor(machine, { snapshot })` goes on.
    """

    seq: Seq
    state: bytes


class Place(NamedTuple):
    """Up to which input a client has heard of its session."""

    address: Address
    client: bytes
    """What the protocol calls the client: up to 64 bytes."""
    seq: Seq


class Requests(Protocol):
    """Who carries out what machines ask of the world. Called in the event loop: must neither block
    nor raise. What it is not told of (a hub that was killed) it finds in the database.
    """

    def asked(self, address: Address, key: SessionKey, effects: Sequence[Effect]) -> None:
        """These are committed. `address` names the version that the session is on."""

    def ended(self, key: SessionKey, effects: Collection[EffectId] | None) -> None:
        """Nobody waits for the answers to these any more (None: to none of the session's)."""


class Subscription(Protocol):
    """A listener's registration with a session, through which its client sends events."""

    @property
    def seq(self) -> Seq:
        """The seq of the last input that was committed."""
        ...

    @property
    def limits(self) -> Limits:
        """What the session's version allows."""
        ...

    def send(self, event: bytes, event_id: EventId | None) -> None:
        """Appends `event`, a JSON object, to the session's queue of inputs, and does not wait.

        With an `event_id` the listener receives a `Settled` once the event is committed or
        refused; for a repeated id it receives the outcome of the first copy. Without one it
        receives none. Raises `CallerError` for an event that is not valid, `RateLimited`,
        `Conflict` when the session has ended, `NotFound` when it was deleted, and `Unavailable`
        when too many inputs wait.
        """

    def describe(self, metadata: bytes) -> None:
        """Sets what the member says of itself. Raises `CallerError`."""

    def close(self) -> None:
        """The listener hears nothing more. Closing twice changes nothing."""


class Busy(NamedTuple):
    """A session, and how many turns it had in the last minute, about."""

    machine_id: MachineId
    session_id: SessionId
    turns: int


class Sessions(Protocol):
    """All that may be asked of sessions. Every call may raise `Unavailable`, and `NotFound` for
    machines and versions that are not there. Those that take a visitor answer what the machine's
    `view`, if it has one, shows them, and may raise `ViewFailed`; the others answer everything, and
    are for who may read everything.
    """

    async def read(self, address: Address, visitor: Visitor, at: Seq | None = None) -> Snapshot:
        """The session as the visitor may see it, now or after input `at`. Without `at` it begins if
        it is new; with it this raises as `inspect` does.
        """
        ...

    async def create(self, address: Address, visitor: Visitor, given: bytes | None) -> Snapshot:
        """Creates a session; `given` is XState's `input` as JSON, None for none. Raises `Conflict`
        when the session exists, and `CallerError` when `given` is not JSON, too large or too deep.
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
        inputs: bool = False,
    ) -> Subscription:
        """Registers `listener` for the session's messages. A session that does not exist is created
        with `given`, XState's `input` as JSON. With `inputs` it hears `Applied`, too; raises
        `Forbidden` where the machine says itself what each member sees.

        Before this returns, `listener` has received a `Snapshot`, followed by the `Emitted`
        messages with a seq greater than `emitted_after` that are still in memory. Raises
        `CallerError`, `RateLimited`, and `Unavailable` when the session has too many connections.
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

    async def wait(self, address: Address, visitor: Visitor, condition: Condition) -> Snapshot:
        """Waits for the first snapshot, the current one included, for which `condition` holds, as
        the visitor may see it. A session that does not exist is created.

        Raises `PreconditionFailed` when the session ends before `condition` holds.
        """
        ...

    async def members(self, address: Address) -> Presence:
        """Who is there. Raises `NotFound`: a session that does not exist does not begin."""
        ...

    async def describe(self, address: Address, visitor: Visitor, metadata: bytes) -> Presence:
        """Sets the metadata, any JSON value, of the member with the visitor's client key. Raises
        `Conflict` when that member has no connection, and `CallerError` for metadata that is not
        JSON, too large or too deep.
        """
        ...

    async def inspect(self, address: Address, at: Seq | None = None) -> tuple[Summary, Snapshot]:
        """The session's summary, and its snapshot now or after input `at`. Raises `NotFound` for a
        session that does not exist (none is created), for an `at` beyond its last input, and for
        one whose journal entries were pruned.
        """
        ...

    async def timers(self, address: Address) -> list[tuple[TimerId, int]]:
        """What waits for its time: timers, and when they are due in milliseconds since 1970, the
        next one first. Raises `NotFound`.
        """
        ...

    async def effects(
        self, address: Address, *, before: EffectId | None, limit: int
    ) -> list[EffectRecord]:
        """What the session asked of the world, the newest first, from before `before`. Raises
        `NotFound`.
        """
        ...

    async def answer(
        self,
        address: Address,
        effect: EffectId,
        answer: bytes,
        how: Conclusion,
        *,
        key: SessionKey | None = None,
        is_last: bool = False,
    ) -> Fault | None:
        """Gives a session what became of a request: JSON (`sandbox.protocol.effects.Answer`).
        Returns when that is committed, or why the turn was undone; with `is_last` the request ends
        all the same. Raises `NotFound` when the session waits for no such request, or is not the
        one of `key`: that was deleted, and another began under its name. Raises `Conflict` when it
        has ended.
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

    async def persisted(self, address: Address) -> Persisted:
        """The session after its last input. Raises `NotFound` for one that does not exist, and
        `Conflict` where XState has nothing to persist: the machine is a module, has children
        without a name for what they run, or was built for an earlier hub.
        """
        ...

    async def place_of(self, address: Address, client: bytes) -> Seq | None:
        """Where a client is, if that was kept."""
        ...

    async def keep_places(self, places: Collection[Place]) -> None:
        """Keeps where clients are, with their sessions, for those of a session that were heard of
        last. A place only advances. Those in sessions that do not exist are ignored.
        """
        ...

    async def fork(
        self, address: Address, at: Seq | None, session_id: SessionId, *, sends: bool = False
    ) -> Summary:
        """Creates the session `session_id` as a copy of the one at `address` after input `at`, or
        after its last input. What that waited for then is asked for once more, if it `sends`; else
        the copy waits until somebody answers by hand. Raises `NotFound` as `inspect` does, and
        `Conflict` when a session with the id `session_id` exists.
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

    async def restart(self, address: Address) -> Snapshot:
        """Deletes a session and starts one of the same name and with the same input, on the version
        of `address`. Its listeners are told to connect again. Raises `NotFound` when there is none,
        or when its first input is not kept any more, and what the machine's start raises.
        """
        ...

    async def delete_machine(self, machine_id: MachineId) -> None:
        """Deletes all sessions of a machine, and lets no new one begin."""
        ...

    async def versions_in_use(self, machine_id: MachineId) -> set[int]:
        """Versions that sessions in memory are on, some of which may not be in the database yet."""
        ...

    def reconnect(self, machine_id: MachineId, reason: str) -> None:
        """Everybody who listens to a session of the machine has to come again."""
        ...

    def is_in_memory(self, address: Address) -> bool: ...

    def count_in_memory(self, machines: Collection[MachineId]) -> int:
        """Sessions of these machines that are in memory."""
        ...

    async def busiest(self, count: int) -> list[Busy]:
        """The sessions with the most turns in the last minute, the busiest first."""
        ...
