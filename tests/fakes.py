"""A session store in memory, for the simulation.

It passes the same contract tests as the two databases (test_sessions.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from machinehub.effect import Conclusion, EffectRecord
from machinehub.errors import NotFound
from machinehub.ids import Seq, SessionKey
from machinehub.model import (
    Armed,
    CheckpointWrite,
    Entry,
    Kind,
    Retention,
    SavedCheckpoint,
    SessionDelete,
    SessionRecord,
    StoredSession,
    TurnWrite,
)
from machinehub.store.database import AlreadyWritten
from machinehub.store.effects import Due, DueEffect
from machinehub.store.retention import cut_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from machinehub.effect import Effect
    from machinehub.ids import MemberId
    from sandbox.protocol.ids import EffectId, TimerId


def asked(key: int, effect: Effect) -> EffectRecord:
    return EffectRecord(key=SessionKey(key), effect=effect, due_at_ms=effect.at_ms)


class MemoryEffects:
    """`EffectStore` in memory: what is kept of requests, by (key, effect)."""

    def __init__(self, records: dict[int, SessionRecord]) -> None:
        self.rows: dict[tuple[int, EffectId], EffectRecord] = {}
        self._records = records

    async def due(self, now_ms: int, *, after: Due | None = None, limit: int) -> list[Due]:
        waiting = [
            Due(each.due_at_ms, each.key, each.effect.id, record.machine_id, record.version)
            for each in self.rows.values()
            if each.due_at_ms is not None and each.due_at_ms <= now_ms
            if (record := self._records.get(each.key)) is not None
        ]
        return [each for each in sorted(waiting) if after is None or each > after][:limit]

    async def take(self, named: Sequence[Due]) -> list[DueEffect]:
        names = [(each.key, each.effect) for each in named]
        found = [self.rows[name] for name in names if name in self.rows]
        return [
            DueEffect(each, record.machine_id, record.session_id, record.version)
            for each in found
            if each.due_at_ms is not None and (record := self._records.get(each.key)) is not None
        ]

    async def let_go(self) -> None:
        pass

    async def note_try(self, key: int, effect: EffectId, **noted: Any) -> None:
        row = self.rows.get((key, effect))
        if row is not None and row.ended_at_ms is None:
            self.rows[key, effect] = msgspec.structs.replace(row, **noted)

    async def of_session(
        self, key: int, *, before: EffectId | None = None, limit: int
    ) -> list[EffectRecord]:
        mine = [
            each
            for (owner, number), each in sorted(self.rows.items(), reverse=True)
            if owner == key and (before is None or number < before)
        ]
        return mine[:limit]

    async def count_waiting(self) -> int:
        return sum(each.due_at_ms is not None for each in self.rows.values())


class MemorySessionStore:
    node = None

    def __init__(self, retention: Retention | None = None, *, receipts_loaded: int = 100) -> None:
        self.retention = retention or Retention()
        self.receipts_loaded = receipts_loaded
        self.records: dict[int, SessionRecord] = {}
        self.journals: dict[int, dict[tuple[Seq, int], Entry]] = {}
        self.ids: dict[tuple[int, str], Entry] = {}
        self.saved: dict[int, dict[Seq, SavedCheckpoint]] = {}
        self.timers: dict[tuple[int, TimerId], Armed] = {}
        self.present: dict[tuple[int, MemberId], bytes] = {}
        self.effects = MemoryEffects(self.records)
        self._undo: list[Callable[[], Any]] = []

    # --- writing

    async def commit(self, items: Sequence[Any]) -> None:
        self.apply(items)

    def apply(self, items: Sequence[Any]) -> None:
        self._undo = []
        try:
            for item in items:
                match item:
                    case TurnWrite():
                        self._settle(item)
                    case CheckpointWrite():
                        self._set(
                            self.saved.setdefault(item.key, {}),
                            item.checkpoint.seq,
                            item.checkpoint,
                        )
                        self._prune(item.key, compacts=item.compacts)
                    case SessionDelete():
                        self._delete(item.key)
                        if (new := item.successor) is not None:
                            key, saved = new.record.key, new.checkpoint
                            self._delete(key)
                            self._insert_record(new.record)
                            self.journals[key] = {(new.entry.seq, 0): new.entry}
                            self.saved[key] = {saved.seq: saved}
                            for timer, due in saved.timers.items():
                                self.timers[key, timer] = Armed(due)
                            for effect in new.effects:
                                self.effects.rows[key, effect.id] = asked(key, effect)
        except AlreadyWritten:
            for undo in reversed(self._undo):
                undo()
            raise

    def _set(self, where: dict[Any, Any], key: Any, value: Any) -> None:
        if key in where:
            before = where[key]
            self._undo.append(lambda: where.__setitem__(key, before))
        else:
            self._undo.append(lambda: where.pop(key, None))
        where[key] = value

    def _remove(self, where: dict[Any, Any], key: Any) -> None:
        if key in where:
            before = where.pop(key)
            self._undo.append(lambda: where.__setitem__(key, before))

    def _settle(self, item: TurnWrite) -> None:
        if item.created is not None:
            self._insert_record(item.created)
        entry, journal = item.entry, self.journals.setdefault(item.key, {})
        if (entry.seq, entry.attempt) in journal or (
            entry.event_id is not None and (item.key, entry.event_id) in self.ids
        ):
            raise AlreadyWritten("the journal")
        self._set(journal, (entry.seq, entry.attempt), entry)
        if entry.event_id is not None:
            self._set(self.ids, (item.key, entry.event_id), entry)
        for timer, armed in item.changes.timers.items():
            if armed is not None:
                self._set(self.timers, (item.key, timer), armed)
            else:
                self._remove(self.timers, (item.key, timer))
        told = item.changes.member
        if told is not None and told.sender is not None:
            self._set(self.present, (item.key, told.member), told.sender)
        elif told is not None:
            self._remove(self.present, (item.key, told.member))
        self._settle_effects(item)
        if item.changes.finished:
            record = self.records[item.key]
            for there in [there for there in self.present if there[0] == item.key]:
                self._remove(self.present, there)
            self._set(
                self.records,
                item.key,
                msgspec.structs.replace(record, finished_at_ms=entry.now_ms),
            )
            for waiting in [waiting for waiting in self.timers if waiting[0] == item.key]:
                self._remove(self.timers, waiting)

    def _settle_effects(self, item: TurnWrite) -> None:
        rows, entry = self.effects.rows, item.entry
        ended: dict[EffectId, Conclusion] = {}
        for number, change in item.changes.effects.items():
            if isinstance(change, Conclusion):
                ended[number] = change
            elif (item.key, number) not in rows:
                self._set(rows, (item.key, number), asked(item.key, change))
        if item.changes.finished:
            mine = [number for key, number in rows if key == item.key]
            over = Conclusion("session_finished")
            ended |= {number: ended.get(number, over) for number in mine}
        for number, how in ended.items():
            row = rows.get((item.key, number))
            if row is not None and row.ended_at_ms is None:
                gone = msgspec.structs.replace(
                    row,
                    due_at_ms=None,
                    ended_at_ms=entry.now_ms,
                    ended_seq=entry.seq,
                    tries=how.tries if how.outcome != "session_finished" else row.tries,
                    conclusion=how,
                )
                self._set(rows, (item.key, number), gone)

    def _insert_record(self, record: SessionRecord) -> None:
        if record.key in self.records or any(
            (other.machine_id, other.session_id) == (record.machine_id, record.session_id)
            for other in self.records.values()
        ):
            raise AlreadyWritten("the sessions")
        self._set(self.records, record.key, record)

    def _prune(self, key: int, *, compacts: bool) -> None:
        saved = self.saved[key]
        cut = cut_of(sorted(saved), self.retention, compacts=compacts)
        for seq in cut.checkpoints:
            self._remove(saved, seq)
        for at, entry in list(self.journals[key].items()):
            is_tick = entry.kind is Kind.TIMER and entry.seq <= cut.ticks_to
            if is_tick or entry.seq <= cut.inputs_to:
                self._remove(self.journals[key], at)
                self._remove(self.ids, (key, entry.event_id))
        for name, row in list(self.effects.rows.items()):
            if name[0] == key and row.ended_seq is not None and row.ended_seq <= cut.inputs_to:
                self._remove(self.effects.rows, name)
        if cut.compacted_to:
            noted = msgspec.structs.replace(self.records[key], compacted_to=cut.compacted_to)
            self._set(self.records, key, noted)

    def _delete(self, key: int) -> None:
        self._remove(self.records, key)
        self._remove(self.journals, key)
        self._remove(self.saved, key)
        for where in (self.timers, self.ids, self.present, self.effects.rows):
            for name in [name for name in where if name[0] == key]:
                self._remove(where, name)

    async def fork(
        self,
        record: SessionRecord,
        parent: int,
        checkpoint: SavedCheckpoint,
        members: dict[MemberId, bytes],
        *,
        send_at_ms: int | None = None,
    ) -> SessionRecord:
        has_gaps = self.records[parent].compacted_to is not None
        gaps_to = checkpoint.seq if has_gaps else None
        record = msgspec.structs.replace(record, compacted_to=gaps_to)
        self._insert_record(record)
        self.journals[record.key] = {
            at: Entry(e.seq, e.attempt, e.kind, e.input, e.now_ms, None, e.changed, e.error)
            for at, e in sorted(self.journals[parent].items())
            if e.attempt == 0 and e.seq <= checkpoint.seq
        }
        self.saved[record.key] = {checkpoint.seq: checkpoint}
        self.timers |= {(record.key, timer): Armed(due) for timer, due in checkpoint.timers.items()}
        for (key, number), row in list(self.effects.rows.items()):
            if key == parent and row.effect.seq <= checkpoint.seq:
                held = EffectRecord(key=record.key, effect=row.effect, due_at_ms=send_at_ms)
                is_over = row.ended_seq is not None and row.ended_seq <= checkpoint.seq
                self.effects.rows[record.key, number] = (
                    msgspec.structs.replace(row, key=record.key) if is_over else held
                )
        if not checkpoint.finished:
            self.present |= {(record.key, member): sender for member, sender in members.items()}
        return record

    # --- reading

    async def ping(self) -> None:
        pass

    def _named(self, machine_id: str, session_id: str) -> SessionRecord | None:
        return next(
            (
                record
                for record in self.records.values()
                if (record.machine_id, record.session_id) == (machine_id, session_id)
            ),
            None,
        )

    async def load(self, machine_id: str, session_id: str) -> StoredSession | None:
        record = self._named(machine_id, session_id)
        if record is None:
            return None
        entries = [entry for _, entry in sorted(self.journals.get(record.key, {}).items())]
        saved = self.saved.get(record.key, {})
        checkpoint = saved[max(saved)] if saved else None
        since = checkpoint.seq if checkpoint else 0
        return StoredSession(
            record=record,
            seq=Seq(entries[-1].seq if entries else since),
            attempts=entries[-1].attempt if entries else 0,
            checkpoint=checkpoint,
            tail=[entry for entry in entries if entry.seq > since and entry.attempt == 0],
            timers={
                timer: self.timers[key, timer] for key, timer in self.timers if key == record.key
            },
            receipts=[entry for entry in entries if entry.event_id is not None][
                -self.receipts_loaded :
            ],
            members={
                member: sender
                for (key, member), sender in sorted(self.present.items())
                if key == record.key
            }
            if record.hears_presence
            else {},
            effects={
                number: row.effect.depth
                for (key, number), row in self.effects.rows.items()
                if key == record.key and row.ended_at_ms is None
            },
        )

    async def record(self, machine_id: str, session_id: str) -> SessionRecord:
        record = self._named(machine_id, session_id)
        if record is None:
            raise NotFound("no_such_session", "the machine has no session of this name")
        return record

    async def record_of(self, key: int) -> SessionRecord | None:
        return self.records.get(key)

    async def keys_of(self, machine_id: str) -> list[int]:
        return [key for key, record in self.records.items() if record.machine_id == machine_id][
            :100
        ]

    async def finished(self, *, before_ms: int) -> list[SessionRecord]:
        return [
            record
            for record in self.records.values()
            if record.finished_at_ms is not None and record.finished_at_ms < before_ms
        ]

    async def page(
        self, machine_id: str, *, after: str | None, limit: int
    ) -> list[tuple[SessionRecord, int]]:
        mine = sorted(
            (
                r
                for r in self.records.values()
                if r.machine_id == machine_id
                and (after is None or r.session_id.encode() > after.encode())
            ),
            key=lambda r: r.session_id.encode(),
        )
        return [
            (
                record,
                max(
                    [
                        *(seq for seq, _ in self.journals.get(record.key, {})),
                        *self.saved.get(record.key, {}),
                        0,
                    ]
                ),
            )
            for record in mine[:limit]
        ]

    async def timers_due(self, *, after_ms: int, until_ms: int) -> list[tuple[int, int, int]]:
        due = sorted(
            (armed.due_at_ms, timer, key)
            for (key, timer), armed in self.timers.items()
            if after_ms < armed.due_at_ms <= until_ms
        )
        return [(key, timer, due) for due, timer, key in due]

    async def timers_of(self, key: int) -> list[tuple[int, int]]:
        return sorted(
            (timer, armed.due_at_ms)
            for (owner, timer), armed in self.timers.items()
            if owner == key
        )

    async def members(self) -> list[tuple[int, str, bytes]]:
        return [(key, member, sender) for (key, member), sender in sorted(self.present.items())]

    async def presence_entries(self, key: int, *, until: int) -> list[Entry]:
        return [
            e
            for _, e in sorted(self.journals.get(key, {}).items())
            if e.kind == "presence" and e.attempt == 0 and e.seq <= until
        ]

    async def entries(
        self,
        key: int,
        *,
        after: tuple[int, int],
        until: int | None = None,
        limit: int,
        applied_only: bool = False,
    ) -> list[Entry]:
        wanted = [
            e
            for at, e in sorted(self.journals.get(key, {}).items())
            if at > after and (until is None or e.seq <= until) and not (applied_only and e.attempt)
        ]
        return wanted[:limit]

    async def entry_of(self, key: int, event_id: str) -> Entry | None:
        return self.ids.get((key, event_id))

    async def span(self, key: int) -> tuple[int, int]:
        from_ = self.records[key].compacted_to or 0 if key in self.records else 0
        journal = self.journals.get(key, {})
        applied = [seq for seq, attempt in journal if attempt == 0 and seq > from_]
        last = max([*applied, *self.saved.get(key, {}), 0])
        return min(applied, default=last + 1), last

    async def checkpoint_before(self, key: int, seq: int) -> SavedCheckpoint | None:
        saved = self.saved.get(key, {})
        at = max((number for number in saved if number <= seq), default=None)
        return None if at is None else saved[at]

    async def checkpoint_seqs(self, key: int) -> list[int]:
        return sorted(self.saved.get(key, {}))

    async def explain_conflict(
        self, items: Sequence[TurnWrite | CheckpointWrite]
    ) -> tuple[dict[int, list[Entry]], bool]:
        foreign: dict[int, list[Entry]] = {}
        ours = False
        for item in items:
            if isinstance(item, CheckpointWrite):
                continue
            created, entry = item.created, item.entry
            named = self._named(created.machine_id, created.session_id) if created else None
            there = self.journals.get(item.key, {}).get((entry.seq, entry.attempt)) or self.ids.get(
                (item.key, entry.event_id or "")
            )
            if named is not None and named.key != item.key:
                foreign.setdefault(item.key, [])
            elif there == entry:
                ours = True
            elif there is not None:
                foreign.setdefault(item.key, []).extend(
                    [there] if there.event_id is not None else []
                )
        return foreign, ours and not foreign
