"""What is kept of sessions: journal, checkpoints, timers.

Decides: that a batch of settled inputs is one transaction, that nothing is written twice (the
journal's key, and one entry for an event id), which checkpoints and entries are pruned. Does not
know: when to commit, or what an input means.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.errors import NotFound
from machinehub.ids import Seq
from machinehub.model import (
    NO_CHANGES,
    Armed,
    CheckpointWrite,
    Entry,
    SessionDelete,
    StoredSession,
    TurnWrite,
)
from machinehub.store import statements as sql
from machinehub.store.notes import Notes
from machinehub.store.retention import prune
from machinehub.store.rows import (
    check_is_whole,
    checkpoint_row,
    entry_row,
    member_row,
    session_row,
    timer_row,
    to_checkpoint,
    to_entry,
    to_member,
    to_record,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from machinehub.ids import EventId, MachineId, MemberId, SessionId, SessionKey
    from machinehub.model import Retention, SavedCheckpoint, SessionRecord, Successor, Write
    from machinehub.store.database import Connection, Database
    from sandbox.protocol.ids import TimerId

SMALL_WRITES: Final = 4
"""A commit of so many is small: it may be made in the event loop's thread (`Database.write`)."""
_LAST: Final = Seq(2**62)
"""Beyond every seq."""


class SessionStore:
    """The tables of sessions: `sessions`, `journal`, `checkpoints`, `timers` and `members`.

    Every method is one transaction, and raises `Unavailable` when the database does not answer.
    """

    def __init__(self, database: Database, retention: Retention) -> None:
        self._database = database
        self._retention = retention

    # --- writing ----------------------------------------------------------------------------------

    async def commit(self, writes: Sequence[Write]) -> None:
        """One transaction for all of `writes`, in order.

        Raises `AlreadyWritten` (nothing was written) and `Unavailable` (it is not known).
        """

        def work(connection: Connection) -> None:
            for deleting, run in groupby(writes, key=lambda each: isinstance(each, SessionDelete)):
                if deleting:
                    deletes = [each for each in run if isinstance(each, SessionDelete)]
                    come = [each.successor for each in deletes if each.successor is not None]
                    # Those that come are deleted as well: the answer to a first try may be lost.
                    gone = [each.key for each in deletes] + [each.record.key for each in come]
                    for statement in sql.delete_session:
                        connection.run(statement, [{"of_key": key} for key in gone])
                    for each in come:
                        _succeed(connection, each)
                else:
                    self._write(
                        connection, [each for each in run if not isinstance(each, SessionDelete)]
                    )

        await self._database.write(work, small=len(writes) <= SMALL_WRITES)

    def _write(self, connection: Connection, writes: Sequence[TurnWrite | CheckpointWrite]) -> None:
        turns = [write for write in writes if isinstance(write, TurnWrite)]
        frozen = [write for write in writes if isinstance(write, CheckpointWrite)]
        if created := [session_row(turn.created) for turn in turns if turn.created is not None]:
            connection.run(sql.add_session, created)
        if turns:
            connection.run(sql.add_entry, [entry_row(turn.key, turn.entry) for turn in turns])
            _write_changes(connection, [turn for turn in turns if turn.changes is not NO_CHANGES])
        if frozen:
            # The same checkpoint may come again, when the answer to its first commit was lost.
            keys = [{"of_key": each.key, "of_seq": each.checkpoint.seq} for each in frozen]
            connection.run(sql.delete_checkpoint, keys)
            rows = [checkpoint_row(each.key, each.checkpoint) for each in frozen]
            connection.run(sql.add_checkpoint, rows)
            compacted = {each.key for each in frozen if each.compacts}
            for key in {each.key for each in frozen}:
                prune(connection, key, self._retention, compacts=key in compacted)

    async def fork(
        self,
        record: SessionRecord,
        parent: SessionKey,
        checkpoint: SavedCheckpoint,
        members: dict[MemberId, bytes],
    ) -> SessionRecord:
        """A new session that has `parent`'s journal up to the checkpoint, and goes on from there.
        Returns `record` as it is stored.

        Raises `AlreadyWritten`.

        Event ids stay with the parent: an event is a different one in another session.
        """

        def work(connection: Connection) -> SessionRecord:
            # The child has gaps where its parent has them, and no checkpoint in between.
            base = connection.fetch(sql.session_of_key, of_key=parent)
            has_gaps = bool(base) and to_record(base[0]).compacted_to is not None
            forked = msgspec.structs.replace(
                record, compacted_to=checkpoint.seq if has_gaps else None
            )
            connection.run(sql.add_session, [session_row(forked)])
            connection.run(
                sql.inherit_entries,
                [{"of_key": parent, "of_child": record.key, "of_seq": checkpoint.seq}],
            )
            connection.run(sql.add_checkpoint, [checkpoint_row(record.key, checkpoint)])
            if checkpoint.timers:
                connection.run(
                    sql.add_timer,
                    [
                        timer_row(record.key, timer, Armed(due_at_ms))
                        for timer, due_at_ms in checkpoint.timers.items()
                    ],
                )
            if members and not checkpoint.finished:
                connection.run(
                    sql.add_member,
                    [member_row(record.key, member, sender) for member, sender in members.items()],
                )
            return forked

        return await self._database.write(work)

    async def count(self) -> int:
        """How many sessions there are."""
        return int((await self._database.read(lambda each: each.fetch(sql.count_sessions)))[0][0])

    # --- reading ----------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Writes a note. Raises `Unavailable` when the database does not answer, or cannot be
        written.
        """
        await Notes(self._database).ping()

    async def load(self, machine_id: MachineId, session_id: SessionId) -> StoredSession | None:
        """Everything that is needed to go on with a session; None when there is none."""
        return await self._database.read(
            lambda connection: _load(connection, machine_id, session_id)
        )

    async def record(self, machine_id: MachineId, session_id: SessionId) -> SessionRecord:
        """Raises `NotFound`."""
        found = await self._database.read(
            lambda connection: _record(connection, machine_id, session_id)
        )
        if found is None:
            raise NotFound("no_such_session", "the machine has no session of this name")
        return found

    async def record_of(self, key: SessionKey) -> SessionRecord | None:
        found = await self._database.read(
            lambda connection: connection.fetch(sql.session_of_key, of_key=key)
        )
        return to_record(found[0]) if found else None

    async def keys_of(self, machine_id: MachineId) -> list[SessionKey]:
        """Some of a machine's sessions."""
        return [
            key
            for (key,) in await self._database.read(
                lambda connection: connection.fetch(sql.some_keys, of_machine=machine_id)
            )
        ]

    async def finished(self, *, before_ms: int) -> list[SessionRecord]:
        """Some of the sessions that finished before then."""
        return [
            to_record(row)
            for row in await self._database.read(
                lambda connection: connection.fetch(sql.finished_sessions, of_before_ms=before_ms)
            )
        ]

    async def page(
        self, machine_id: MachineId, *, after: SessionId | None, limit: int
    ) -> list[tuple[SessionRecord, Seq]]:
        """Sessions with their seq, by id, from behind the id `after`."""
        behind = (after or "").encode()
        rows = await self._database.read(
            lambda connection: connection.fetch(
                sql.session_page, of_machine=machine_id, of_after=behind, of_limit=limit
            )
        )
        return [(to_record(row[:-2]), Seq(max(row[-2] or 0, row[-1] or 0))) for row in rows]

    async def timers_due(
        self, *, after_ms: int, until_ms: int
    ) -> list[tuple[SessionKey, TimerId, int]]:
        """(key, timer, due_at_ms) of what comes due in that time, `until_ms` included, in due
        order.
        """
        rows = await self._database.read(
            lambda connection: connection.fetch(
                sql.timers_due, of_after_ms=after_ms, of_until_ms=until_ms
            )
        )
        return [tuple(row) for row in rows]

    async def timers_of(self, key: SessionKey) -> list[tuple[TimerId, int]]:
        """(timer, due_at_ms) pairs of a session."""
        return [
            (timer, due)
            for timer, due, _ in await self._database.read(
                lambda connection: connection.fetch(sql.timers_of, of_key=key)
            )
        ]

    async def members(self) -> list[tuple[SessionKey, MemberId, bytes]]:
        """(key, member, sender) of everybody whom a machine believes to be there."""
        return [
            (key, to_member(member), sender)
            for key, member, sender in await self._database.read(
                lambda connection: connection.fetch(sql.all_members)
            )
        ]

    async def presence_entries(self, key: SessionKey, *, until: Seq) -> list[Entry]:
        """What the machine was told of people's coming and leaving, up to the seq `until`."""
        return [
            to_entry(row)
            for row in await self._database.read(
                lambda connection: connection.fetch(sql.presence_entries, of_key=key, of_seq=until)
            )
        ]

    async def entries(
        self,
        key: SessionKey,
        *,
        after: tuple[Seq, int],
        until: Seq = _LAST,
        limit: int,
        applied_only: bool = False,
    ) -> list[Entry]:
        """The journal from behind (seq, attempt) `after`, up to the seq `until`."""
        seq, attempt = after
        attempts = 0 if applied_only else 2**31 - 1
        rows = await self._database.read(
            lambda connection: connection.fetch(
                sql.entries,
                of_key=key,
                of_seq=seq,
                of_attempt=attempt,
                of_until=until,
                of_attempts=attempts,
                of_limit=limit,
            )
        )
        return [to_entry(row) for row in rows]

    async def entry_of(self, key: SessionKey, event_id: EventId) -> Entry | None:
        """What became of an event."""
        return await self._database.read(lambda connection: _entry_of(connection, key, event_id))

    async def span(self, key: SessionKey) -> tuple[Seq, Seq]:
        """The first input that is still in the journal (one more than the last, when none is), and
        the last.
        """

        def work(connection: Connection) -> tuple[Seq, Seq]:
            ((first, last),) = connection.fetch(sql.applied_span, of_key=key)
            frozen = connection.fetch(sql.checkpoint_seqs, of_key=key)
            last = max(last or 0, *frozen[-1]) if frozen else last or 0
            return Seq(first or last + 1), Seq(last)

        return await self._database.read(work)

    async def checkpoint_before(self, key: SessionKey, seq: Seq) -> SavedCheckpoint | None:
        """The newest checkpoint at or before `seq`."""
        return await self._database.read(lambda connection: _checkpoint(connection, key, seq))

    async def checkpoint_seqs(self, key: SessionKey) -> list[Seq]:
        return [
            seq
            for (seq,) in await self._database.read(
                lambda connection: connection.fetch(sql.checkpoint_seqs, of_key=key)
            )
        ]

    async def explain_conflict(
        self, items: Iterable[TurnWrite | CheckpointWrite]
    ) -> tuple[dict[SessionKey, list[Entry]], bool]:
        """Finds out why a commit of `items` raised `AlreadyWritten`.

        Returns, by session key, the stored entries with an event id that differ from the items in
        whose place they stand (none if another session has taken the name); and whether `items`
        are stored as they are, because an earlier attempt succeeded and its answer was lost.
        """

        def work(connection: Connection) -> tuple[dict[SessionKey, list[Entry]], bool]:
            foreign: dict[SessionKey, list[Entry]] = {}
            ours = False
            for item in items:
                if isinstance(item, CheckpointWrite):
                    continue  # its session's entries say enough
                match _in_place_of(connection, item):
                    case Entry() as other:
                        foreign.setdefault(item.key, []).extend(
                            [other] if other.event_id is not None else []
                        )
                    case "ours":
                        ours = True
                    case "another session":
                        foreign.setdefault(item.key, [])
            return foreign, ours and not foreign

        return await self._database.read(work)


def _in_place_of(connection: Connection, item: TurnWrite) -> Entry | str | None:
    """What stands in the database where `item` should: another entry, "another session", "ours",
    nothing.
    """
    if item.created is not None:
        named = _record(connection, item.created.machine_id, item.created.session_id)
        if named is not None and named.key != item.key:
            return "another session"
    entry = item.entry
    rows = connection.fetch(
        sql.entry_at, of_key=item.key, of_seq=entry.seq, of_attempt=entry.attempt
    )
    there = (
        to_entry(rows[0])
        if rows
        else _entry_of(connection, item.key, entry.event_id)
        if entry.event_id is not None
        else None
    )
    return "ours" if there == entry else there


def _load(
    connection: Connection, machine_id: MachineId, session_id: SessionId
) -> StoredSession | None:
    record = _record(connection, machine_id, session_id)
    if record is None:
        return None
    key = record.key
    checkpoint = _checkpoint(connection, key, _LAST)
    since = checkpoint.seq if checkpoint else 0
    newest = connection.fetch(sql.newest_entry, of_key=key)
    seq, attempts = newest[0] if newest and newest[0][0] >= since else (since, 0)
    applied = connection.fetch(sql.applied_since, of_key=key, of_seq=since) if seq > since else []
    tail = [to_entry(row) for row in applied]
    check_is_whole(record, tail, since, seq)
    timers = connection.fetch(sql.timers_of, of_key=key)
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
    )


def _record(
    connection: Connection, machine_id: MachineId, session_id: SessionId
) -> SessionRecord | None:
    rows = connection.fetch(
        sql.session_named, of_machine=machine_id, of_session=session_id.encode()
    )
    return to_record(rows[0]) if rows else None


def _entry_of(connection: Connection, key: SessionKey, event_id: EventId) -> Entry | None:
    rows = connection.fetch(sql.entry_of_id, of_key=key, of_event_id=event_id.encode())
    return to_entry(rows[0]) if rows else None


def _checkpoint(connection: Connection, key: SessionKey, until: Seq) -> SavedCheckpoint | None:
    rows = connection.fetch(sql.checkpoint_until, of_key=key, of_seq=until)
    return to_checkpoint(rows[0]) if rows else None


def _succeed(connection: Connection, new: Successor) -> None:
    key, checkpoint = new.record.key, new.checkpoint
    connection.run(sql.add_session, [session_row(new.record)])
    connection.run(sql.add_entry, [entry_row(key, new.entry)])
    connection.run(sql.add_checkpoint, [checkpoint_row(key, checkpoint)])
    if checkpoint.timers:
        rows = [timer_row(key, timer, Armed(due)) for timer, due in checkpoint.timers.items()]
        connection.run(sql.add_timer, rows)


def _write_changes(connection: Connection, turns: list[TurnWrite]) -> None:
    """Folds what the turns changed, of each session in order, and writes what it comes to."""
    timers: dict[tuple[SessionKey, TimerId], Armed | None] = {}
    members: dict[tuple[SessionKey, MemberId], bytes | None] = {}
    finished: list[dict[str, int]] = []
    for turn in turns:
        changes = turn.changes
        for timer, armed in changes.timers.items():
            timers[turn.key, timer] = armed
        if changes.member is not None:
            members[turn.key, changes.member.member] = changes.member.sender
        if changes.finished:
            finished.append({"of_key": turn.key, "of_now_ms": turn.entry.now_ms})
    if timers:
        connection.run(
            sql.delete_timer, [{"of_key": key, "of_timer": timer} for key, timer in timers]
        )
        if armed_rows := [
            timer_row(key, timer, armed)
            for (key, timer), armed in timers.items()
            if armed is not None
        ]:
            connection.run(sql.add_timer, armed_rows)
    if members:
        told = [{"of_key": key, "of_member": member.encode()} for key, member in members]
        connection.run(sql.delete_member, told)
        if member_rows := [
            member_row(key, member, sender)
            for (key, member), sender in members.items()
            if sender is not None
        ]:
            connection.run(sql.add_member, member_rows)
    if finished:
        connection.run(sql.finish_session, finished)
        connection.run(sql.delete_timers, finished)
        connection.run(sql.delete_members, finished)
