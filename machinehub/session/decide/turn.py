"""Types of a turn: a waiting input (`Pending`), its result (`Turn`), and what its sender is told
(`Receipt`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from machinehub.clock import measured_s
from machinehub.model import NO_CHANGES, Fault
from sandbox.protocol.ids import Ticket
from sandbox.protocol.inputs import read_input

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from machinehub.effect import Conclusion
    from machinehub.ids import EventId, Seq
    from machinehub.model import Armed, Changes, Entry, Kind, MemberChange, TurnWrite
    from sandbox.protocol.ids import EffectId, TimerId
    from sandbox.protocol.messages import Cost

SESSION_FINISHED: Final = Fault(
    "session_finished", "the session has ended and takes no more events"
)


@dataclass(slots=True)
class Receipt:
    """What became of an event: told to its sender, and again to whoever sends the same id."""

    seq: Seq
    changed: bool = False
    taken: bool | None = None
    fingerprint: int | None = None
    """Of the event as it was sent first (`fingerprint_of`), as far as that is remembered."""
    error: Fault | None = None
    cost: Cost | None = None
    """What the turn took, as long as that is remembered."""
    settled: bool = False
    waiting: list[Callable[[Receipt], None]] = field(default_factory=list)
    """Who is to be told once it is settled."""

    def settle(self, turn: Turn) -> None:
        """Takes over what the turn came to."""
        self.seq, self.changed, self.taken = turn.seq, turn.snapshot is not None, turn.taken
        self.error, self.cost, self.settled = turn.error, turn.cost, True

    def keep(self, entry: Entry) -> None:
        """Takes over what the journal says of the event."""
        self.seq, self.changed, self.taken = entry.seq, entry.changed, entry.taken
        self.error, self.settled = entry.error, True
        self.fingerprint = None  # which is that of whoever sent it now


def fingerprint_of(event: bytes) -> int:
    """By which two events are told apart within this process."""
    return hash(event)


def is_same_event(given: bytes, event: bytes) -> bool:
    """Whether an event means the same as that of a journal's line, whose input is `given`."""
    known = bytes(read_input(given).subject)
    return known.strip() == event.strip() or _read(known) == _read(event)


def _read(text: bytes) -> object:
    """JSON, with numbers as they are written: some are more than a float can be."""
    return json.loads(text, parse_int=_Number, parse_float=_Number)


class _Number(str):
    """A number, which is no text."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Number) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))


@dataclass(frozen=True, slots=True)
class Answering:
    """Which request an input is the answer to, and how that ends."""

    effect: EffectId
    conclusion: Conclusion
    is_last: bool = False
    """Whether the request ends even if the machine cannot take the answer."""


@dataclass(slots=True)
class Pending:
    """An input that waits for its turn, or for the worker's answer."""

    kind: Kind
    input: bytes
    now_ms: int
    """When it came: not before the session's last input, once it waits."""
    receipt: Receipt | None = None
    event_id: EventId | None = None
    timer: TimerId | None = None
    """Which timer has come due."""
    armed: Armed | None = None
    """How that timer stood before it came due."""
    member: MemberChange | None = None
    """Of whose coming or leaving a presence event tells."""
    answering: Answering | None = None
    depth: int = 0
    """How many machines called each other, one because of the other, to bring it about."""
    arrived_s: float = field(default_factory=measured_s)
    sent_s: float = 0.0
    """When it came, and when it was handed to a worker, for metrics."""
    crashes: int = 0
    """How often a worker died while this was the next input to be answered."""
    ticket: Ticket = field(default=Ticket(0))
    """Its number in the session."""


@dataclass(slots=True)
class Turn:
    """The outcome of one input (a turn). It may be published once `write` is committed; a turn
    without a `write` changes nothing in the database and is published at once.
    """

    seq: Seq
    pending: Pending
    snapshot: bytes | None = None
    """The new public snapshot, when it changed."""
    taken: bool | None = None
    cause: str = ""
    """`taken` and `cause` are those of the journal's line (`Entry`)."""
    write: TurnWrite | None = None
    emitted: list[msgspec.Raw] = field(default_factory=list)
    logs: list[tuple[str, str]] = field(default_factory=list)
    changes: Changes = NO_CHANGES
    error: Fault | None = None
    finished: bool = False
    """Whether the session had ended by then."""
    cost: Cost | None = None
