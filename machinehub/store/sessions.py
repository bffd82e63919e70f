"""What is kept of sessions: journal, checkpoints, timers.

Decides: that a batch of settled inputs is one transaction, that nothing is written twice (the
journal's key, and one entry for an event id), which checkpoints and entries are pruned. Does not
know: when to commit, or what an input means.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import msgspec

from machinehub.errors import NotFound
from machinehub.model import Entry, SavedCheckpoint, SessionRecord, Settled, StoredSession
from machinehub.store import statements as say

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from machinehub.model import Retention
    from machinehub.store.database import Connection, Database

_LAST: Final = 2**62
"""Beyond every seq."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """A checkpoint of one session, to be kept."""

    key: int
    checkpoint: SavedCheckpoint


@dataclass(frozen=True, slots=True)
class Deletion:
    """All of one session."""

    key: int


Item = Settled | Freeze | Deletion


class SessionStore:
    def __init__(self, database: Database, retention: Retention) -> None:
        self._database = database
        self._retention = retention

    # --- writing ----------------------------------------------------------------------------------

    async def commit(self, items: Sequence[Item]) -> None:
        """One transaction for all of `items`, in order.

        Raises `Taken` (nothing was written) and `Unavailable` (it is not known).
        """

        def work(connection: Connection) -> None:
            for deleting, run in groupby(items, key=lambda item: isinstance(item, Deletion)):
                if not deleting:
                    self._write(connection, list(run))
                    continue
                keys = [{"of_key": item.key} for item in run if isinstance(item, Deletion)]
                for statement in say.delete_session:
                    connection.run(statement, keys)

        await self._database.write(work)

    def _write(self, connection: Connection, items: list[Any]) -> None:
        settled = [item for item in items if isinstance(item, Settled)]
        frozen = [item for item in items if isinstance(item, Freeze)]
        if created := [_session_row(item.created) for item in settled if item.created is not None]:
            connection.run(say.add_session, created)
        if settled:
            connection.run(say.add_entry, [_entry_row(item.key, item.entry) for item in settled])
        _write_timers(connection, settled)
        _write_members(connection, settled)
        if finished := [
            {"of_key": item.key, "of_now_ms": item.entry.now_ms}
            for item in settled
            if item.finished
        ]:
            connection.run(say.finish_session, finished)
            connection.run(say.delete_timers, finished)
            connection.run(say.delete_members, finished)
        if frozen:
            # The same checkpoint may come again, when the answer to its first commit was lost.
            connection.run(
                say.delete_checkpoint,
                [{"of_key": item.key, "of_seq": item.checkpoint.seq} for item in frozen],
            )
            connection.run(
                say.add_checkpoint, [_checkpoint_row(item.key, item.checkpoint) for item in frozen]
            )
            for key in {item.key for item in frozen}:
                self._prune(connection, key)

    def _prune(self, connection: Connection, key: int) -> None:
        keep = self._retention
        seqs = [seq for (seq,) in connection.fetch(say.checkpoint_seqs, of_key=key)]
        # What is left of the journal can still be replayed, from the checkpoint just before it.
        base = max(
            (seq for seq in seqs if keep.journal and seq <= seqs[-1] - keep.journal), default=0
        )
        every = (
            min(keep.checkpoint_every or keep.journal, max(1, keep.journal // 2))
            if keep.journal
            else keep.checkpoint_every
        )  # or none would ever be old enough
        gone = {
            seq for seq in superfluous(seqs, newest=keep.checkpoints, every=every) if seq != base
        } | {seq for seq in seqs if seq < base}
        if gone:
            connection.run(say.delete_checkpoint, [{"of_key": key, "of_seq": seq} for seq in gone])
        if base:
            connection.run(say.forget_entries, [{"of_key": key, "of_seq": base}])

    async def fork(
        self,
        record: SessionRecord,
        parent: int,
        checkpoint: SavedCheckpoint,
        members: dict[str, bytes],
    ) -> None:
        """A new session that has `parent`'s journal up to the checkpoint, and goes on from there.

        Raises `Taken`.

        Event ids stay with the parent: an event is a different one in another session.
        """

        def work(connection: Connection) -> None:
            connection.run(say.add_session, [_session_row(record)])
            connection.run(
                say.inherit_entries,
                [{"of_key": parent, "of_child": record.key, "of_seq": checkpoint.seq}],
            )
            connection.run(say.add_checkpoint, [_checkpoint_row(record.key, checkpoint)])
            if checkpoint.timers:
                connection.run(
                    say.add_timer,
                    [
                        {"key": record.key, "timer": timer, "due_at_ms": due, "tries": 0}
                        for timer, due in checkpoint.timers.items()
                    ],
                )
            if members and not checkpoint.finished:
                connection.run(
                    say.add_member,
                    [_member_row(record.key, member, sender) for member, sender in members.items()],
                )

        await self._database.write(work)

    # --- reading ----------------------------------------------------------------------------------

    async def ping(self) -> None:
        """Raises `Unavailable` when the database does not answer."""
        self._database.check_file()
        await self._database.read(lambda connection: connection.fetch(say.one))

    async def load(self, machine_id: str, session_id: str) -> StoredSession | None:
        """Everything that is needed to go on with a session; None when there is none."""
        return await self._database.read(
            lambda connection: _load(connection, machine_id, session_id)
        )

    async def record(self, machine_id: str, session_id: str) -> SessionRecord:
        """Raises `NotFound`."""
        found = await self._database.read(
            lambda connection: _record(connection, machine_id, session_id)
        )
        if found is None:
            raise NotFound("no_such_session", "the machine has no session of this name")
        return found

    async def record_of(self, key: int) -> SessionRecord | None:
        found = await self._database.read(
            lambda connection: connection.fetch(say.session_of_key, of_key=key)
        )
        return _to_record(found[0]) if found else None

    async def keys_of(self, machine_id: str) -> list[int]:
        """Some of a machine's sessions."""
        return [
            key
            for (key,) in await self._database.read(
                lambda connection: connection.fetch(say.some_keys, of_machine=machine_id)
            )
        ]

    async def finished(self, *, before_ms: int) -> list[SessionRecord]:
        """Some of the sessions that finished before then."""
        return [
            _to_record(row)
            for row in await self._database.read(
                lambda connection: connection.fetch(say.finished_sessions, of_before_ms=before_ms)
            )
        ]

    async def page(
        self, machine_id: str, *, after: str | None, limit: int
    ) -> list[tuple[SessionRecord, int]]:
        """Sessions with their seq, by id, from behind the id `after`."""
        behind = (after or "").encode()
        rows = await self._database.read(
            lambda connection: connection.fetch(
                say.session_page, of_machine=machine_id, of_after=behind, of_limit=limit
            )
        )
        return [(_to_record(row[:-2]), max(row[-2] or 0, row[-1] or 0)) for row in rows]

    async def timers_due(self, *, after_ms: int, until_ms: int) -> list[tuple[int, int, int]]:
        """(key, timer, due_at_ms) of what comes due in that time, `until_ms` included, in due
        order.
        """
        rows = await self._database.read(
            lambda connection: connection.fetch(
                say.timers_due, of_after_ms=after_ms, of_until_ms=until_ms
            )
        )
        return [tuple(row) for row in rows]

    async def timers_of(self, key: int) -> list[tuple[int, int]]:
        """(timer, due_at_ms) pairs of a session."""
        return [
            (timer, due)
            for timer, due, _ in await self._database.read(
                lambda connection: connection.fetch(say.timers_of, of_key=key)
            )
        ]

    async def members(self) -> list[tuple[int, str, bytes]]:
        """(key, member, sender) of everybody whom a machine believes to be there."""
        return [
            (key, member.decode(), sender)
            for key, member, sender in await self._database.read(
                lambda connection: connection.fetch(say.all_members)
            )
        ]

    async def presence_entries(self, key: int, *, until: int) -> list[Entry]:
        """What the machine was told of people's coming and leaving, up to the seq `until`."""
        return [
            _to_entry(row)
            for row in await self._database.read(
                lambda connection: connection.fetch(say.presence_entries, of_key=key, of_seq=until)
            )
        ]

    async def entries(
        self,
        key: int,
        *,
        after: tuple[int, int],
        until: int = _LAST,
        limit: int,
        applied_only: bool = False,
    ) -> list[Entry]:
        """The journal from behind (seq, attempt) `after`, up to the seq `until`."""
        seq, attempt = after
        attempts = 0 if applied_only else 2**31 - 1
        rows = await self._database.read(
            lambda connection: connection.fetch(
                say.entries,
                of_key=key,
                of_seq=seq,
                of_attempt=attempt,
                of_until=until,
                of_attempts=attempts,
                of_limit=limit,
            )
        )
        return [_to_entry(row) for row in rows]

    async def entry_of(self, key: int, event_id: str) -> Entry | None:
        """What became of an event."""
        return await self._database.read(lambda connection: _entry_of(connection, key, event_id))

    async def span(self, key: int) -> tuple[int, int]:
        """The first input that is still in the journal (one more than the last, when none is), and
        the last.
        """

        def work(connection: Connection) -> tuple[int, int]:
            ((first, last),) = connection.fetch(say.applied_span, of_key=key)
            frozen = connection.fetch(say.checkpoint_seqs, of_key=key)
            last = max(last or 0, *frozen[-1]) if frozen else last or 0
            return first or last + 1, last

        return await self._database.read(work)

    async def checkpoint_before(self, key: int, seq: int) -> SavedCheckpoint | None:
        """The newest checkpoint at or before `seq`."""
        return await self._database.read(lambda connection: _checkpoint(connection, key, seq))

    async def checkpoint_seqs(self, key: int) -> list[int]:
        return [
            seq
            for (seq,) in await self._database.read(
                lambda connection: connection.fetch(say.checkpoint_seqs, of_key=key)
            )
        ]

    async def whose(self, items: Iterable[Settled | Freeze]) -> tuple[dict[int, list[Entry]], bool]:
        """After `Taken`: the keys of the sessions of which something else stands where `items`
        should, with the entries that have their event ids already; and whether all of `items`
        were in fact committed (by an attempt whose answer was lost).
        """

        def work(connection: Connection) -> tuple[dict[int, list[Entry]], bool]:
            foreign: dict[int, list[Entry]] = {}
            ours = False
            for item in items:
                if isinstance(item, Freeze):
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


def superfluous(seqs: list[int], *, newest: int, every: int) -> list[int]:
    """Which of a session's checkpoints to drop: all but the newest ones and the first at or after
    every so many inputs.
    """
    kept = set(seqs[-newest:]) if newest else set(seqs)
    last = 0
    for seq in seqs:
        if every and seq // every > last // every:
            kept.add(seq)
            last = seq
    return [seq for seq in seqs if seq not in kept]


def _in_place_of(connection: Connection, item: Settled) -> Entry | str | None:
    """What stands in the database where `item` should: another entry, "another session", "ours",
    nothing.
    """
    if item.created is not None:
        named = _record(connection, item.created.machine_id, item.created.session_id)
        if named is not None and named.key != item.key:
            return "another session"
    entry = item.entry
    rows = connection.fetch(
        say.entry_at, of_key=item.key, of_seq=entry.seq, of_attempt=entry.attempt
    )
    there = (
        _to_entry(rows[0])
        if rows
        else _entry_of(connection, item.key, entry.event_id)
        if entry.event_id is not None
        else None
    )
    return "ours" if there == entry else there


def _load(connection: Connection, machine_id: str, session_id: str) -> StoredSession | None:
    record = _record(connection, machine_id, session_id)
    if record is None:
        return None
    key = record.key
    checkpoint = _checkpoint(connection, key, _LAST)
    since = checkpoint.seq if checkpoint else 0
    newest = connection.fetch(say.newest_entry, of_key=key)
    seq, attempts = newest[0] if newest else (since, 0)
    timers = connection.fetch(say.timers_of, of_key=key)
    return StoredSession(
        record=record,
        seq=seq,
        attempts=attempts,
        checkpoint=checkpoint,
        tail=[
            _to_entry(row) for row in connection.fetch(say.applied_since, of_key=key, of_seq=since)
        ]
        if seq > since
        else [],
        timers={timer: due for timer, due, _ in timers},
        tries={timer: tries for timer, _, tries in timers if tries},
        receipts=[_to_entry(row) for row in connection.fetch(say.newest_ids, of_key=key)][::-1],
        members={
            member.decode(): sender
            for member, sender in connection.fetch(say.members_of, of_key=key)
        }
        if record.hears_presence
        else {},
    )


def _record(connection: Connection, machine_id: str, session_id: str) -> SessionRecord | None:
    rows = connection.fetch(
        say.session_named, of_machine=machine_id, of_session=session_id.encode()
    )
    return _to_record(rows[0]) if rows else None


def _entry_of(connection: Connection, key: int, event_id: str) -> Entry | None:
    rows = connection.fetch(say.entry_of_id, of_key=key, of_event_id=event_id.encode())
    return _to_entry(rows[0]) if rows else None


def _checkpoint(connection: Connection, key: int, until: int) -> SavedCheckpoint | None:
    rows = connection.fetch(say.checkpoint_until, of_key=key, of_seq=until)
    if not rows:
        return None
    _, seq, data, snapshot, finished, timers, at_ms = rows[0]
    pending = msgspec.msgpack.decode(timers, type=dict[int, int])
    return SavedCheckpoint(
        seq=seq, data=data, snapshot=snapshot, finished=bool(finished), timers=pending, at_ms=at_ms
    )


def _write_timers(connection: Connection, settled: list[Settled]) -> None:
    pending: dict[tuple[int, int], tuple[int, int] | None] = {}
    for item in settled:
        for timer, due_at_ms in item.timers_set:
            pending[item.key, timer] = due_at_ms, item.tries
        for timer in item.timers_gone:
            pending[item.key, timer] = None
    if pending:
        connection.run(
            say.delete_timer, [{"of_key": key, "of_timer": timer} for key, timer in pending]
        )
        if rows := [
            {"key": key, "timer": timer, "due_at_ms": there[0], "tries": there[1]}
            for (key, timer), there in pending.items()
            if there is not None
        ]:
            connection.run(say.add_timer, rows)


def _write_members(connection: Connection, settled: list[Settled]) -> None:
    told = {
        (item.key, item.member[0]): item.member[1] for item in settled if item.member is not None
    }
    if told:
        connection.run(
            say.delete_member,
            [{"of_key": key, "of_member": member.encode()} for key, member in told],
        )
        if rows := [
            _member_row(key, member, sender)
            for (key, member), sender in told.items()
            if sender is not None
        ]:
            connection.run(say.add_member, rows)


# --- rows, in the order of the tables' columns


def _member_row(key: int, member: str, sender: bytes) -> dict[str, Any]:
    return {"key": key, "member": member.encode(), "sender": sender}


def _session_row(record: SessionRecord) -> dict[str, Any]:
    return msgspec.structs.asdict(record) | {
        "session_id": record.session_id.encode(),
        "parent": None if record.parent is None else record.parent.encode(),
    }


def _to_record(row: Any) -> SessionRecord:
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
    ) = row
    return SessionRecord(
        key=key,
        machine_id=machine_id,
        session_id=session_id.decode(),
        version=version,
        digest=digest,
        hears_presence=bool(hears_presence),
        created_at_ms=created_at_ms,
        finished_at_ms=finished_at_ms,
        parent=None if parent is None else parent.decode(),
        forked_at=forked_at,
    )


def _entry_row(key: int, entry: Entry) -> dict[str, Any]:
    return {
        "key": key,
        "seq": entry.seq,
        "attempt": entry.attempt,
        "kind": entry.kind,
        "input": entry.input,
        "now_ms": entry.now_ms,
        "event_id": None if entry.event_id is None else entry.event_id.encode(),
        "changed": entry.changed,
        "error": None if entry.error is None else msgspec.json.encode(entry.error),
    }


def _to_entry(row: Any) -> Entry:
    _, seq, attempt, kind, data, now_ms, event_id, changed, error = row
    return Entry(
        seq,
        attempt,
        kind,
        data,
        now_ms,
        None if event_id is None else event_id.decode(),
        bool(changed),
        None if error is None else msgspec.json.decode(error, type=tuple[str, str]),
    )


def _checkpoint_row(key: int, checkpoint: SavedCheckpoint) -> dict[str, Any]:
    return {
        "key": key,
        "seq": checkpoint.seq,
        "data": checkpoint.data,
        "snapshot": checkpoint.snapshot,
        "finished": checkpoint.finished,
        "timers": msgspec.msgpack.encode(checkpoint.timers),
        "at_ms": checkpoint.at_ms,
    }
