"""The session port's messages, as they travel between nodes."""

from __future__ import annotations

import msgspec

from machinehub.cluster.frame import Frame
from machinehub.ids import EventId, Seq
from machinehub.model import Entry, Fault
from machinehub.session.messages import (
    Applied,
    Closed,
    Emitted,
    Ending,
    Member,
    Message,
    Presence,
    PresenceNews,
    Settled,
    Snapshot,
    Update,
)
from sandbox.protocol.messages import Cost


class SnapshotFrame(Frame, tag=1):
    seq: Seq
    version: int
    state: bytes
    connection_id: str | None
    count: int
    is_personal: bool


class UpdateFrame(Frame, tag=2):
    seq: Seq
    state: bytes


class SettledFrame(Frame, tag=3):
    event_id: EventId | None
    seq: Seq
    changed: bool
    error: Fault | None
    cost: Cost | None
    taken: bool | None


class EmittedFrame(Frame, tag=4):
    seq: Seq
    event: bytes


class MemberFrame(Frame):
    """A `Member`, whose metadata is JSON."""

    id: str
    user: str | None
    joined_at: str
    roles: tuple[str, ...] | None
    metadata: bytes | None


class PresenceFrame(Frame, tag=5):
    count: int
    members: list[MemberFrame]
    news: tuple[list[MemberFrame], list[str], list[MemberFrame]] | None


class ClosedFrame(Frame, tag=6):
    why: str
    detail: str


class AppliedFrame(Frame, tag=7):
    entry: Entry


MessageFrame = (
    SnapshotFrame
    | UpdateFrame
    | SettledFrame
    | EmittedFrame
    | PresenceFrame
    | ClosedFrame
    | AppliedFrame
)


def to_wire(message: Message) -> MessageFrame:
    match message:
        case Update():
            return UpdateFrame(message.seq, message.state)
        case Settled():
            return SettledFrame(
                message.event_id,
                message.seq,
                message.changed,
                message.error,
                message.cost,
                message.taken,
            )
        case Emitted():
            return EmittedFrame(message.seq, message.event)
        case Snapshot():
            return SnapshotFrame(
                message.seq,
                message.version,
                message.state,
                message.connection_id,
                message.count,
                message.is_personal,
            )
        case Presence():
            news = message.news
            said = None
            if news is not None:
                said = _wired(news.joined), news.left, _wired(news.changed)
            return PresenceFrame(message.count, _wired(message.members), said)
        case Closed():
            return ClosedFrame(message.why.value, message.detail)
        case Applied():
            return AppliedFrame(message.entry)
    raise AssertionError(message)


def from_wire(frame: MessageFrame) -> Message:
    match frame:
        case UpdateFrame(seq, state):
            return Update(seq, state)
        case SettledFrame():
            return settled_from(frame)
        case EmittedFrame(seq, event):
            return Emitted(seq, event)
        case SnapshotFrame():
            return snapshot_from(frame)
        case PresenceFrame(count, members, news):
            said = news and PresenceNews(_unwired(news[0]), news[1], _unwired(news[2]))
            return Presence(count, _unwired(members), said)
        case ClosedFrame(why, detail):
            return Closed(Ending(why), detail)
        case AppliedFrame(entry):
            return Applied(entry)


def _wired(members: list[Member]) -> list[MemberFrame]:
    unset = msgspec.UNSET
    return [
        MemberFrame(
            each.id,
            each.user,
            each.joined_at,
            None if each.roles is unset else each.roles,
            None if each.metadata is unset else bytes(each.metadata),
        )
        for each in members
    ]


def _unwired(frames: list[MemberFrame]) -> list[Member]:
    return [
        Member(
            id=each.id,
            user=each.user,
            joined_at=each.joined_at,
            roles=msgspec.UNSET if each.roles is None else each.roles,
            metadata=msgspec.UNSET if each.metadata is None else msgspec.Raw(each.metadata),
        )
        for each in frames
    ]


def settled_from(frame: SettledFrame) -> Settled:
    return Settled(frame.event_id, frame.seq, frame.changed, frame.error, frame.cost, frame.taken)


def snapshot_from(frame: SnapshotFrame) -> Snapshot:
    return Snapshot(
        frame.seq,
        frame.version,
        frame.state,
        frame.connection_id,
        frame.count,
        is_personal=frame.is_personal,
    )
