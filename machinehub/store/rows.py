"""Rows of the session tables, and what they mean. Values are in the order of the tables'
columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from machinehub.errors import Unavailable
from machinehub.ids import EventId, MemberId, SessionId
from machinehub.model import (
    Armed,
    Entry,
    Fault,
    Kind,
    SavedCheckpoint,
    SessionRecord,
)
from sandbox.protocol.ids import TimerId

if TYPE_CHECKING:
    from machinehub.ids import NodeId, SessionKey


def member_row(key: SessionKey, member: MemberId, sender: bytes) -> dict[str, Any]:
    return {"key": key, "member": member.encode(), "sender": sender}


def to_member(member: bytes) -> MemberId:
    return MemberId(member.decode())


def timer_row(key: SessionKey, timer: TimerId, armed: Armed) -> dict[str, Any]:
    return {"key": key, "timer": timer, "due_at_ms": armed.due_at_ms, "tries": armed.tries}


def session_row(record: SessionRecord, owner: NodeId | None = None) -> dict[str, Any]:
    """`owner` is the node that has the session in memory."""
    return msgspec.structs.asdict(record) | {
        "session_id": record.session_id.encode(),
        "parent": None if record.parent is None else record.parent.encode(),
        "owner": owner,
        "claims": 0 if owner is None else 1,
    }


def to_record(row: Any) -> SessionRecord:
    (
        key,
        machine_id,
        session_id,
        version,
        digest,
        hears_presence,
        created_at_ms,
        finished_at_ms,
        parent,
        forked_at,
        compacted_to,
        _owner,
        _claims,
    ) = row
    return SessionRecord(
        key=key,
        machine_id=machine_id,
        session_id=SessionId(session_id.decode()),
        version=version,
        digest=digest,
        hears_presence=bool(hears_presence),
        created_at_ms=created_at_ms,
        finished_at_ms=finished_at_ms,
        parent=None if parent is None else SessionId(parent.decode()),
        forked_at=forked_at,
        compacted_to=compacted_to,
    )


def entry_row(key: SessionKey, entry: Entry) -> dict[str, Any]:
    return {
        "key": key,
        "seq": entry.seq,
        "attempt": entry.attempt,
        "kind": entry.kind.value,
        "input": entry.input,
        "now_ms": entry.now_ms,
        "event_id": None if entry.event_id is None else entry.event_id.encode(),
        "changed": entry.changed,
        "error": None
        if (error := entry.error) is None
        else msgspec.json.encode((error.code, error.detail)),
        "format": entry.format,
        "taken": entry.taken,
        "cause": entry.cause.encode() or None,
    }


def to_entry(row: Any) -> Entry:
    _, seq, attempt, kind, data, now_ms, event_id, changed, error, format_, taken, cause = row
    return Entry(
        seq,
        attempt,
        Kind(kind),
        data,
        now_ms,
        None if event_id is None else EventId(event_id.decode()),
        bool(changed),
        None if error is None else msgspec.json.decode(error, type=Fault),
        format_,
        None if taken is None else bool(taken),
        "" if cause is None else cause.decode(),
    )


def checkpoint_row(key: SessionKey, checkpoint: SavedCheckpoint) -> dict[str, Any]:
    return {
        "key": key,
        "seq": checkpoint.seq,
        "data": checkpoint.data,
        "snapshot": checkpoint.snapshot,
        "finished": checkpoint.finished,
        "timers": msgspec.msgpack.encode(checkpoint.timers),
        "at_ms": checkpoint.at_ms,
    }


def to_checkpoint(row: Any) -> SavedCheckpoint:
    _, seq, data, snapshot, finished, timers, at_ms = row
    return SavedCheckpoint(
        seq=seq,
        data=data,
        snapshot=snapshot,
        finished=bool(finished),
        timers=msgspec.msgpack.decode(timers, type=dict[TimerId, int]),
        at_ms=at_ms,
    )


def check_is_whole(record: SessionRecord, tail: list[Entry], since: int, last: int) -> None:
    """Raises `Unavailable` where an input is missing: to go on without it would be a guess."""
    there = [entry.seq for entry in tail]
    for expected, found in zip(range(since + 1, last + 1), [*there, None], strict=False):
        if found != expected:
            raise Unavailable(
                "session_damaged",
                f"input {expected} of {record.machine_id}/{record.session_id} is missing from the "
                f"journal: what was before it can be forked (at {expected - 1})"
                if expected > 1
                else f"the first input of {record.machine_id}/{record.session_id} is missing",
            )
