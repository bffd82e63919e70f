"""What nodes say to each other: the frames of a link (`links.py`).

Both sides are nodes of neighbouring versions: fields are added at the end, with a default
(docs/cluster.md). Everything is MessagePack, by msgspec.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from machinehub import errors
from machinehub.cluster.frame import Frame
from machinehub.cluster.messages import (
    MessageFrame,
    PresenceFrame,
    SettledFrame,
    SnapshotFrame,
    from_wire,
    settled_from,
    snapshot_from,
    to_wire,
)
from machinehub.effect import Conclusion
from machinehub.errors import HubError, OwnedElsewhere
from machinehub.ids import EventId, MachineId, NodeId, Seq, SessionId, SessionKey
from machinehub.model import Fault
from machinehub.session.decide.conditions import Condition
from machinehub.session.decide.identity import Identity
from machinehub.session.messages import Message, Snapshot
from machinehub.session.port import Address, Answered, Busy, Recomputed, Summary
from sandbox.protocol.ids import EffectId

# --- who, and what went wrong ---------------------------------------------------------------------


class Who(Frame):
    """Somebody whom another node's edge let in: `Identity`, and whether rates apply."""

    id: str
    user: str | None
    returns: bool
    roles: tuple[str, ...] | None
    claims: bytes | None
    is_counted: bool
    is_hub: bool = False
    depth: int = 0

    @property
    def identity(self) -> Identity:
        return Identity(
            self.id,
            self.user,
            self.returns,
            self.roles,
            self.claims,
            is_hub=self.is_hub,
            depth=self.depth,
        )


def who_of(identity: Identity, *, is_counted: bool) -> Who:
    return Who(
        identity.id,
        identity.user,
        identity.returns,
        identity.roles,
        identity.claims,
        is_counted,
        identity.is_hub,
        identity.depth,
    )


class Trouble(Frame):
    """A `HubError`."""

    kind: str
    code: str
    detail: str
    errors: list[dict[str, Any]] = []  # noqa: RUF012 - msgspec copies it
    more: dict[str, Any] = {}  # noqa: RUF012
    owner: NodeId | None = None


def _all_below(kind: type[HubError]) -> dict[str, type[HubError]]:
    found = {kind.__name__: kind}
    for below in kind.__subclasses__():
        found |= _all_below(below)
    return found


_KINDS: Final = _all_below(HubError)


def trouble_of(error: HubError) -> Trouble:
    owner = error.owner if isinstance(error, OwnedElsewhere) else None
    kind = type(error).__name__
    return Trouble(kind, error.code, error.detail, error.errors, error.more, owner)


def error_from(trouble: Trouble) -> HubError:
    if trouble.owner is not None:
        return OwnedElsewhere(trouble.owner)
    if trouble.kind == "Moving":
        return errors.Moving()
    # One that a newer node has, and this one does not know.
    kind = _KINDS.get(trouble.kind, errors.Unavailable)
    error = kind(trouble.code, trouble.detail, errors=trouble.errors)
    error.more = trouble.more
    return error


# --- what may be asked of the node that has a session, or of any ----------------------------------


class Read(Frame, tag=1):
    address: Address
    who: Who
    at: Seq | None


class Create(Frame, tag=2):
    address: Address
    who: Who
    given: bytes | None


class Send(Frame, tag=3):
    address: Address
    who: Who
    event: bytes
    event_id: EventId
    if_match: Seq | None


class Wait(Frame, tag=4):
    address: Address
    who: Who
    condition: Condition


class Members(Frame, tag=5):
    address: Address


class Describe(Frame, tag=6):
    address: Address
    who: Who
    metadata: bytes


class Inspect(Frame, tag=7):
    address: Address


class ReplayAgain(Frame, tag=8):
    address: Address
    seq: Seq | None


class Delete(Frame, tag=9):
    address: Address


class Restart(Frame, tag=10):
    address: Address


class About(Frame, tag=11):
    """Which of these sessions the node has in memory: `Known` of each of those."""

    machine_id: MachineId
    sessions: list[SessionId]


class CloseMachine(Frame, tag=12):
    """A machine is being deleted: its sessions leave memory, and none begins."""

    machine_id: MachineId


class ReopenMachine(Frame, tag=13):
    machine_id: MachineId


class VersionsInUse(Frame, tag=14):
    machine_id: MachineId


class Busiest(Frame, tag=15):
    count: int


class Logs(Frame, tag=16):
    """The last lines of a machine on that node."""

    machine_id: MachineId
    count: int


class AnswerRequest(Frame, tag=17):
    """What became of a request of the session."""

    address: Address
    effect: EffectId
    answer: bytes
    how: Conclusion
    key: SessionKey | None
    is_last: bool


Ask = (
    Read
    | Create
    | Send
    | Wait
    | Members
    | Describe
    | Inspect
    | ReplayAgain
    | Delete
    | Restart
    | About
    | CloseMachine
    | ReopenMachine
    | VersionsInUse
    | Busiest
    | Logs
    | AnswerRequest
)


class Known(Frame):
    """What a node knows of a session that it has in memory."""

    session_id: SessionId
    connections: int
    live: bool
    finished: bool


class Line(Frame):
    """A machine's log line (`logs.LogLine`)."""

    at_ms: int
    session: str
    level: str
    text: str
    cost: dict[str, int] | None = None


ANSWERS: Final[dict[type[Any], Any]] = {
    Read: SnapshotFrame,
    Create: SnapshotFrame,
    Send: tuple[SettledFrame, SnapshotFrame],
    Wait: SnapshotFrame,
    Members: PresenceFrame,
    Describe: PresenceFrame,
    Inspect: tuple[Summary, SnapshotFrame],
    ReplayAgain: Recomputed,
    Delete: None,
    Restart: SnapshotFrame,
    About: list[Known],
    CloseMachine: None,
    ReopenMachine: None,
    VersionsInUse: set[int],
    Busiest: list[Busy],
    Logs: list[Line],
    AnswerRequest: Fault | None,
}
"""What the answer to each is decoded as."""


def answer_to_wire(answer: Any) -> Any:
    """What a session port answered, as it travels."""
    match answer:
        case Message():
            return to_wire(answer)
        case Answered(settled, snapshot):
            return to_wire(settled), to_wire(snapshot)
        case (Summary() as summary, Snapshot() as snapshot):
            return summary, to_wire(snapshot)
    return answer


def answer_from_wire(answer: Any) -> Any:
    match answer:
        case SnapshotFrame() | PresenceFrame():
            return from_wire(answer)
        case (SettledFrame() as settled, SnapshotFrame() as snapshot):
            return Answered(settled_from(settled), snapshot_from(snapshot))
        case (Summary() as summary, SnapshotFrame() as snapshot):
            return summary, snapshot_from(snapshot)
    return answer


# --- frames ---------------------------------------------------------------------------------------


class Open(Frame, tag=1):
    """A client of this node listens to a session there. `number` is the client's, on this node."""

    call: int
    number: int
    address: Address
    who: Who
    given: bytes | None
    emitted_after: Seq | None
    inputs: bool = False


class Event(Frame, tag=2):
    number: int
    event_id: EventId
    event: bytes


class Say(Frame, tag=3):
    """What a member says of itself."""

    number: int
    metadata: bytes


class Leave(Frame, tag=4):
    number: int


class Call(Frame, tag=5):
    call: int
    ask: Ask


class Cancel(Frame, tag=6):
    call: int


class Follow(Frame, tag=7):
    """The machine's log lines that come from now on are wanted, for a while."""

    machine_id: MachineId


ToOwner = Open | Event | Say | Leave | Call | Cancel | Follow


class Told(Frame, tag=1):
    """For these clients of the node."""

    numbers: list[int]
    message: MessageFrame


class Refused(Frame, tag=2):
    """An event, or what a member says of itself (without an id), was not taken in."""

    number: int
    event_id: EventId | None
    trouble: Trouble


class Moved(Frame, tag=3):
    """Another node has, or will have, the session of these clients."""

    numbers: list[int]


class Answer(Frame, tag=4):
    call: int
    answer: msgspec.Raw


class Failed(Frame, tag=5):
    call: int
    trouble: Trouble


class Logged(Frame, tag=6):
    machine_id: MachineId
    line: Line


ToEdge = Told | Refused | Moved | Answer | Failed | Logged

encode: Final = msgspec.msgpack.Encoder().encode
decode_to_owner: Final = msgspec.msgpack.Decoder(list[ToOwner]).decode
decode_to_edge: Final = msgspec.msgpack.Decoder(list[ToEdge]).decode


def decode_answer(raw: msgspec.Raw, ask: Ask) -> Any:
    wanted = ANSWERS[type(ask)]
    return answer_from_wire(msgspec.msgpack.decode(raw, type=wanted))
