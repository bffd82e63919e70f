"""What is read of one session, within a transaction; and whose it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from machinehub.errors import OwnedElsewhere
from machinehub.ids import Seq
from machinehub.model import Armed, Entry, StoredSession
from machinehub.store import statements as sql
from machinehub.store.effects import waiting_of
from machinehub.store.rows import (
    check_is_whole,
    to_checkpoint,
    to_entry,
    to_member,
    to_record,
)

if TYPE_CHECKING:
    from machinehub.ids import EventId, MachineId, NodeId, SessionId, SessionKey
    from machinehub.model import SavedCheckpoint, SessionRecord, TurnWrite
    from machinehub.store.database import Connection

LAST: Final = Seq(2**62)
"""Beyond every seq."""


def in_place_of(connection: Connection, item: TurnWrite) -> Entry | str | None:
    """What stands in the database where `item` should: another entry, "another session", "ours",
    nothing.
    """
    if item.created is not None:
        named = record_named(connection, item.created.machine_id, item.created.session_id)
        if named is not None and named.key != item.key:
            return "another session"
    entry = item.entry
    rows = connection.fetch(
        sql.entry_at, of_key=item.key, of_seq=entry.seq, of_attempt=entry.attempt
    )
    there = (
        to_entry(rows[0])
        if rows
        else entry_of(connection, item.key, entry.event_id)
        if entry.event_id is not None
        else None
    )
    return "ours" if there == entry else there


def load_session(
    connection: Connection, machine_id: MachineId, session_id: SessionId
) -> StoredSession | None:
    record = record_named(connection, machine_id, session_id)
    if record is None:
        return None
    key = record.key
    checkpoint = checkpoint_until(connection, key, LAST)
    since = checkpoint.seq if checkpoint else 0
    newest = connection.fetch(sql.newest_entry, of_key=key)
    seq, attempts = newest[0] if newest and newest[0][0] >= since else (since, 0)
    applied = connection.fetch(sql.applied_since, of_key=key, of_seq=since) if seq > since else []
    tail = [to_entry(row) for row in applied]
    check_is_whole(record, tail, since, seq)
    timers = connection.fetch(sql.timers_of, of_key=key)
    effects = waiting_of(connection, key) if record.finished_at_ms is None else {}
    return StoredSession(
        record=record,
        seq=Seq(seq),
        attempts=attempts,
        checkpoint=checkpoint,
        tail=tail,
        timers={timer: Armed(due_at_ms, tries) for timer, due_at_ms, tries in timers},
        receipts=[to_entry(row) for row in connection.fetch(sql.newest_ids, of_key=key)][::-1],
        members={
            to_member(member): sender
            for member, sender in connection.fetch(sql.members_of, of_key=key)
        }
        if record.hears_presence
        else {},
        effects=effects,
    )


def claim(
    connection: Connection, machine_id: MachineId, session_id: SessionId, node: NodeId
) -> tuple[int, NodeId | None] | None:
    """Makes a session a node's: how often it was claimed, and whose it was before; None when there
    is none. One statement decides. Raises `OwnedElsewhere`.
    """
    named = {"of_machine": machine_id, "of_session": session_id.encode()}
    before = connection.fetch(sql.owner_of_named, **named)
    if not before:
        return None
    claimed = connection.fetch(sql.claim_named, of_node=node, **named)
    if not claimed:
        raise OwnedElsewhere(before[0][0])
    return claimed[0][0], before[0][0]


def record_named(
    connection: Connection, machine_id: MachineId, session_id: SessionId
) -> SessionRecord | None:
    rows = connection.fetch(
        sql.session_named, of_machine=machine_id, of_session=session_id.encode()
    )
    return to_record(rows[0]) if rows else None


def entry_of(connection: Connection, key: SessionKey, event_id: EventId) -> Entry | None:
    rows = connection.fetch(sql.entry_of_id, of_key=key, of_event_id=event_id.encode())
    return to_entry(rows[0]) if rows else None


def checkpoint_until(connection: Connection, key: SessionKey, until: Seq) -> SavedCheckpoint | None:
    rows = connection.fetch(sql.checkpoint_until, of_key=key, of_seq=until)
    return to_checkpoint(rows[0]) if rows else None
