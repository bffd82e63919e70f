"""What is kept of sessions: journal, checkpoints, timers.

Decides: that a batch of settled inputs is one transaction, that nothing is written twice (the journal's key, and one entry
for an event id), which checkpoints and entries are pruned. Does not know: when to commit, or what an input means.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import msgspec
import sqlalchemy as sa

from machinehub.errors import NotFound
from machinehub.model import Entry, SavedCheckpoint, SessionRecord, Settled, StoredSession
from machinehub.store.tables import checkpoints, journal, sessions, timers

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from machinehub.model import Retention
    from machinehub.store.database import Database

RECEIPTS_LOADED: Final = 100
"""Event ids that a session is loaded with. Older ones are found by the journal's own key, which costs more."""
FINISHED_AT_ONCE: Final = 100
_of: sa.BindParameter[int] = sa.bindparam("of")
_timer: sa.BindParameter[int] = sa.bindparam("of_timer")
_seq: sa.BindParameter[int] = sa.bindparam("of_seq")


@dataclass(frozen=True, slots=True)
class Freeze:
    """A checkpoint of one session, to be kept."""

    key: int
    checkpoint: SavedCheckpoint


@dataclass(frozen=True, slots=True)
class Deletion:
    """All of one session."""

    key: int


@dataclass(frozen=True, slots=True)
class MachineDeletion:
    """All sessions of a machine."""

    machine_id: str


Item = Settled | Freeze | Deletion | MachineDeletion


class SessionStore:
    def __init__(self, database: Database, retention: Retention) -> None:
        self._database = database
        self._retention = retention

    # --- writing -----------------------------------------------------------------------------------------------

    async def commit(self, items: Sequence[Item]) -> None:
        """One transaction for all of `items`, in order. Raises `Taken` (nothing was written) and `Unavailable` (it is not known)."""

        def work(connection: sa.Connection) -> None:
            for deleting, run in groupby(items, key=lambda item: isinstance(item, Deletion | MachineDeletion)):
                if not deleting:
                    self._write(connection, list(run))
                    continue
                for item in run:
                    if isinstance(item, Deletion):
                        _delete(connection, sessions.c.key == item.key)
                    elif isinstance(item, MachineDeletion):
                        _delete(connection, sessions.c.machine_id == item.machine_id)

        await self._database.write(work)

    def _write(self, connection: sa.Connection, items: list[Any]) -> None:
        settled = [item for item in items if isinstance(item, Settled)]
        frozen = [item for item in items if isinstance(item, Freeze)]
        if created := [item.created for item in settled if item.created is not None]:
            connection.execute(sessions.insert(), [_session_row(record) for record in created])
        if settled:
            connection.execute(journal.insert(), [_entry_row(item.key, item.entry) for item in settled])
        _write_timers(connection, settled)
        if finished := [{"of": item.key, "finished_at_ms": item.entry.now_ms} for item in settled if item.finished]:
            connection.execute(sessions.update().where(sessions.c.key == _of), finished)
            connection.execute(timers.delete().where(timers.c.key == _of), [{"of": row["of"]} for row in finished])
        if frozen:
            # The same checkpoint may come again, when the answer to its first commit was lost.
            connection.execute(checkpoints.delete().where(checkpoints.c.key == _of, checkpoints.c.seq == _seq), [{"of": item.key, "of_seq": item.checkpoint.seq} for item in frozen])
            connection.execute(checkpoints.insert(), [_checkpoint_row(item.key, item.checkpoint) for item in frozen])
            for key in {item.key for item in frozen}:
                self._prune(connection, key)

    def _prune(self, connection: sa.Connection, key: int) -> None:
        keep = self._retention
        seqs = list(connection.execute(sa.select(checkpoints.c.seq).where(checkpoints.c.key == key).order_by(checkpoints.c.seq)).scalars())
        # What is left of the journal can still be replayed, from the checkpoint just before it.
        base = max((seq for seq in seqs if keep.journal and seq <= seqs[-1] - keep.journal), default=0)
        gone = [seq for seq in superfluous(seqs, newest=keep.checkpoints, every=keep.checkpoint_every) if seq != base] + [seq for seq in seqs if seq < base]
        if gone:
            connection.execute(checkpoints.delete().where(checkpoints.c.key == key, checkpoints.c.seq.in_(gone)))
        if base:
            connection.execute(journal.delete().where(journal.c.key == key, journal.c.seq <= base))

    async def fork(self, record: SessionRecord, parent: int, checkpoint: SavedCheckpoint) -> None:
        """A new session that has `parent`'s journal up to the checkpoint, and goes on from there. Raises `Taken`.

        Event ids stay with the parent: an event is a different one in another session.
        """

        def work(connection: sa.Connection) -> None:
            connection.execute(sessions.insert(), [_session_row(record)])
            applied = sa.select(
                sa.literal(record.key, sa.BigInteger), journal.c.seq, journal.c.attempt, journal.c.kind, journal.c.input, journal.c.now_ms, journal.c.changed, journal.c.error
            ).where(journal.c.key == parent, journal.c.seq <= checkpoint.seq, journal.c.attempt == 0)
            columns = ("key", "seq", "attempt", "kind", "input", "now_ms", "changed", "error")
            connection.execute(journal.insert().from_select(columns, applied))
            connection.execute(checkpoints.insert(), [_checkpoint_row(record.key, checkpoint)])
            if checkpoint.timers:
                connection.execute(timers.insert(), [{"key": record.key, "timer": timer, "due_at_ms": due} for timer, due in checkpoint.timers.items()])

        await self._database.write(work)

    # --- reading -----------------------------------------------------------------------------------------------

    async def load(self, machine_id: str, session_id: str) -> StoredSession | None:
        """Everything that is needed to go on with a session; None when there is none."""
        return await self._database.read(lambda connection: _load(connection, *_named(machine_id, session_id)))

    async def record(self, machine_id: str, session_id: str) -> SessionRecord:
        """Raises `NotFound`."""

        found = await self._records(sa.select(sessions).where(*_named(machine_id, session_id)))
        if not found:
            raise NotFound("no_such_session", "the machine has no session of this name")
        return found[0]

    async def record_of(self, key: int) -> SessionRecord | None:
        found = await self._records(sa.select(sessions).where(sessions.c.key == key))
        return found[0] if found else None

    async def finished(self, *, before_ms: int) -> list[SessionRecord]:
        """Some of the sessions that finished before then."""
        return await self._records(sa.select(sessions).where(sessions.c.finished_at_ms < before_ms).order_by(sessions.c.finished_at_ms).limit(FINISHED_AT_ONCE))

    async def _records(self, query: sa.Select[Any]) -> list[SessionRecord]:
        return await self._database.read(lambda connection: [_to_record(row) for row in connection.execute(query).mappings()])

    async def ping(self) -> None:
        """Raises `Unavailable` when the database does not answer."""
        await self._database.read(lambda connection: connection.execute(sa.select(1)))

    async def page(self, machine_id: str, *, after: str | None, limit: int) -> list[tuple[SessionRecord, int]]:
        """Sessions with their seq, by id, from behind the id `after`."""
        seq = sa.select(sa.func.max(journal.c.seq)).where(journal.c.key == sessions.c.key).scalar_subquery()
        query = sa.select(sessions, seq.label("seq")).where(sessions.c.machine_id == machine_id).order_by(sessions.c.session_id).limit(limit)
        if after is not None:
            query = query.where(sessions.c.session_id > after.encode())
        return await self._database.read(lambda connection: [(_to_record(row), row["seq"] or 0) for row in connection.execute(query).mappings()])

    async def timers_due(self, *, after_ms: int, until_ms: int) -> list[tuple[int, int, int]]:
        """(key, timer, due_at_ms) of what comes due in that time, `until_ms` included, in due order."""
        columns = (timers.c.key, timers.c.timer, timers.c.due_at_ms)
        query = sa.select(*columns).where(timers.c.due_at_ms > after_ms, timers.c.due_at_ms <= until_ms).order_by(timers.c.due_at_ms, timers.c.timer)
        return await self._database.read(lambda connection: [tuple(row) for row in connection.execute(query)])

    async def timers_of(self, key: int) -> list[tuple[int, int]]:
        """(timer, due_at_ms) pairs of a session."""
        return await self._database.read(lambda connection: _timers(connection, key))

    async def entries(self, key: int, *, after: tuple[int, int], until: int | None = None, limit: int, applied_only: bool = False) -> list[Entry]:
        """The journal from behind (seq, attempt) `after`, up to the seq `until`."""
        query = sa.select(journal).where(journal.c.key == key, sa.tuple_(journal.c.seq, journal.c.attempt) > after)
        if until is not None:
            query = query.where(journal.c.seq <= until)
        if applied_only:
            query = query.where(journal.c.attempt == 0)
        query = query.order_by(journal.c.seq, journal.c.attempt).limit(limit)
        return await self._database.read(lambda connection: [_to_entry(row) for row in connection.execute(query).mappings()])

    async def entry_of(self, key: int, event_id: str) -> Entry | None:
        """What became of an event."""
        return await self._database.read(lambda connection: _entry_of(connection, key, event_id))

    async def span(self, key: int) -> tuple[int, int]:
        """The first input that is still in the journal (one more than the last, when none is), and the last."""
        applied = sa.select(sa.func.min(journal.c.seq), sa.func.max(journal.c.seq)).where(journal.c.key == key, journal.c.attempt == 0)
        frozen = sa.select(sa.func.max(checkpoints.c.seq)).where(checkpoints.c.key == key)

        def work(connection: sa.Connection) -> tuple[int, int]:
            first, last = connection.execute(applied).one()
            last = max(last or 0, connection.execute(frozen).scalar() or 0)
            return first or last + 1, last

        return await self._database.read(work)

    async def checkpoint_before(self, key: int, seq: int) -> SavedCheckpoint | None:
        """The newest checkpoint at or before `seq`."""
        return await self._database.read(lambda connection: _checkpoint(connection, key, seq))

    async def checkpoint_seqs(self, key: int) -> list[int]:
        query = sa.select(checkpoints.c.seq).where(checkpoints.c.key == key).order_by(checkpoints.c.seq)
        return await self._database.read(lambda connection: list(connection.execute(query).scalars()))

    async def whose(self, items: Iterable[Settled | Freeze]) -> tuple[dict[int, list[Entry]], bool]:
        """After `Taken`: the keys of the sessions of which something else stands where `items` should, with the entries that have
        their event ids already; and whether all of `items` were in fact committed (by an attempt whose answer was lost).
        """

        def work(connection: sa.Connection) -> tuple[dict[int, list[Entry]], bool]:
            foreign: dict[int, list[Entry]] = {}
            ours = False
            for item in items:
                if isinstance(item, Freeze):
                    continue  # its session's entries say enough
                match _in_place_of(connection, item):
                    case Entry() as other:
                        foreign.setdefault(item.key, []).extend([other] if other.event_id is not None else [])
                    case "ours":
                        ours = True
                    case "another session":
                        foreign.setdefault(item.key, [])
            return foreign, ours and not foreign

        return await self._database.read(work)


def superfluous(seqs: list[int], *, newest: int, every: int) -> list[int]:
    """Which of a session's checkpoints to drop: all but the newest ones and the first at or after every so many inputs."""
    kept = set(seqs[-newest:]) if newest else set(seqs)
    last = 0
    for seq in seqs:
        if every and seq // every > last // every:
            kept.add(seq)
            last = seq
    return [seq for seq in seqs if seq not in kept]


def _named(machine_id: str, session_id: str) -> tuple[sa.ColumnElement[bool], sa.ColumnElement[bool]]:
    return sessions.c.machine_id == machine_id, sessions.c.session_id == session_id.encode()


def _in_place_of(connection: sa.Connection, item: Settled) -> Entry | str | None:
    """What stands in the database where `item` should: another entry, "another session", "ours", nothing."""
    if item.created is not None:
        key = connection.execute(sa.select(sessions.c.key).where(*_named(item.created.machine_id, item.created.session_id))).scalar()
        if key is not None and key != item.key:
            return "another session"
    entry = item.entry
    at = journal.c.key == item.key, journal.c.seq == entry.seq, journal.c.attempt == entry.attempt
    row = connection.execute(sa.select(journal).where(*at)).mappings().first()
    there = _to_entry(row) if row else _entry_of(connection, item.key, entry.event_id) if entry.event_id is not None else None
    return "ours" if there == entry else there


def _entry_of(connection: sa.Connection, key: int, event_id: str) -> Entry | None:
    row = connection.execute(sa.select(journal).where(journal.c.key == key, journal.c.event_id == event_id.encode())).mappings().first()
    return _to_entry(row) if row else None


def _load(connection: sa.Connection, *where: sa.ColumnElement[bool]) -> StoredSession | None:
    row = connection.execute(sa.select(sessions).where(*where)).mappings().first()
    if row is None:
        return None
    record = _to_record(row)
    checkpoint = _checkpoint(connection, record.key, None)
    since = checkpoint.seq if checkpoint else 0
    mine = journal.c.key == record.key
    newest = connection.execute(sa.select(journal.c.seq, journal.c.attempt).where(mine).order_by(journal.c.seq.desc(), journal.c.attempt.desc()).limit(1)).first()
    seq, attempts = tuple(newest) if newest else (since, 0)
    tail = sa.select(journal).where(mine, journal.c.seq > since, journal.c.attempt == 0).order_by(journal.c.seq)
    receipts = sa.select(journal).where(mine, journal.c.event_id.is_not(None)).order_by(journal.c.seq.desc(), journal.c.attempt.desc()).limit(RECEIPTS_LOADED)
    return StoredSession(
        record=record, seq=seq, attempts=attempts, checkpoint=checkpoint,
        tail=[_to_entry(row) for row in connection.execute(tail).mappings()] if seq > since else [],
        timers=dict(_timers(connection, record.key)),
        receipts=[_to_entry(row) for row in connection.execute(receipts).mappings()][::-1],
    )  # fmt: skip


def _checkpoint(connection: sa.Connection, key: int, until: int | None) -> SavedCheckpoint | None:
    query = sa.select(checkpoints).where(checkpoints.c.key == key).order_by(checkpoints.c.seq.desc()).limit(1)
    if until is not None:
        query = query.where(checkpoints.c.seq <= until)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    return SavedCheckpoint(
        seq=row["seq"], data=row["data"], snapshot=row["snapshot"], finished=row["finished"],
        timers=msgspec.msgpack.decode(row["timers"], type=dict[int, int]), at_ms=row["at_ms"],
    )  # fmt: skip


def _timers(connection: sa.Connection, key: int) -> list[tuple[int, int]]:
    query = sa.select(timers.c.timer, timers.c.due_at_ms).where(timers.c.key == key).order_by(timers.c.timer)
    return [(row.timer, row.due_at_ms) for row in connection.execute(query)]


def _write_timers(connection: sa.Connection, settled: list[Settled]) -> None:
    pending: dict[tuple[int, int], int | None] = {}
    for item in settled:
        for timer, due_at_ms in item.timers_set:
            pending[item.key, timer] = due_at_ms
        for timer in item.timers_gone:
            pending[item.key, timer] = None
    if pending:
        connection.execute(timers.delete().where(timers.c.key == _of, timers.c.timer == _timer), [{"of": key, "of_timer": timer} for key, timer in pending])
        if rows := [{"key": key, "timer": timer, "due_at_ms": due} for (key, timer), due in pending.items() if due is not None]:
            connection.execute(timers.insert(), rows)


def _delete(connection: sa.Connection, where: sa.ColumnElement[bool]) -> None:
    keys = sa.select(sessions.c.key).where(where)
    for table in (journal, checkpoints, timers):
        connection.execute(table.delete().where(table.c.key.in_(keys)))
    connection.execute(sessions.delete().where(where))


def _session_row(record: SessionRecord) -> dict[str, Any]:
    return msgspec.structs.asdict(record) | {"session_id": record.session_id.encode(), "parent": None if record.parent is None else record.parent.encode()}


def _to_record(row: Any) -> SessionRecord:
    values = {name: row[name] for name in SessionRecord.__struct_fields__}
    return SessionRecord(**values | {"session_id": values["session_id"].decode(), "parent": None if values["parent"] is None else values["parent"].decode()})


def _entry_row(key: int, entry: Entry) -> dict[str, Any]:
    return {
        "key": key, "seq": entry.seq, "attempt": entry.attempt, "kind": entry.kind, "input": entry.input, "now_ms": entry.now_ms,
        "event_id": None if entry.event_id is None else entry.event_id.encode(), "changed": entry.changed,
        "error": None if entry.error is None else msgspec.json.encode(entry.error),
    }  # fmt: skip


def _to_entry(row: Any) -> Entry:
    return Entry(
        row["seq"], row["attempt"], row["kind"], row["input"], row["now_ms"], None if row["event_id"] is None else row["event_id"].decode(),
        row["changed"], None if row["error"] is None else msgspec.json.decode(row["error"], type=tuple[str, str]),
    )  # fmt: skip


def _checkpoint_row(key: int, checkpoint: SavedCheckpoint) -> dict[str, Any]:
    return {
        "key": key, "seq": checkpoint.seq, "data": checkpoint.data, "snapshot": checkpoint.snapshot, "finished": checkpoint.finished,
        "timers": msgspec.msgpack.encode(checkpoint.timers), "at_ms": checkpoint.at_ms,
    }  # fmt: skip


