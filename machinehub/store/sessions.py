"""What is kept of sessions: journal, checkpoints, timers.

Decides: that a batch of settled inputs is one transaction, that nothing is written twice (the
journal's key, and one entry for an event id), which checkpoints and entries are pruned. Does not
know: when to commit, or what an input means.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import msgspec

from machinehub.errors import NotFound
from machinehub.ids import Seq
from machinehub.model import (
    NO_CHANGES,
    Armed,
    CheckpointWrite,
    Entry,
    Release,
    SessionDelete,
    StoredSession,
    TurnWrite,
)
from machinehub.store import effect_statements
from machinehub.store import statements as sql
from machinehub.store.changes import succeed, write_changes
from machinehub.store.effects import EffectStore
from machinehub.store.notes import Notes
from machinehub.store.places import PlaceStore
from machinehub.store.retention import prune
from machinehub.store.rows import (
    checkpoint_row,
    entry_row,
    member_row,
    session_row,
    timer_row,
    to_entry,
    to_member,
    to_record,
)
from machinehub.store.stored import (
    LAST,
    checkpoint_until,
    claim,
    entry_of,
    in_place_of,
    load_session,
    record_named,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from machinehub.ids import EventId, MachineId, MemberId, NodeId, SessionId, SessionKey
    from machinehub.model import Retention, SavedCheckpoint, SessionRecord, Write
    from machinehub.store.database import Connection, Database
    from sandbox.protocol.ids import TimerId

SMALL_WRITES: Final = 4
"""A commit of so many is small: it may be made in the event loop's thread (`Database.write`)."""


class SessionStore:
    """The tables of sessions: `sessions`, `journal`, `checkpoints`, `timers`, `members`, `effects`.

    Every method is one transaction, and raises `Unavailable` when the database does not answer.
    """

    def __init__(
        self, database: Database, retention: Retention, *, node: NodeId | None = None
    ) -> None:
        """`node` is this hub, where several share the database: sessions that are loaded are
        claimed for it first.
        """
        self._database = database
        self._retention = retention
        self.places = PlaceStore(database)
        self.effects = EffectStore(database, node=node)
        self.node = node

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
                    for statement in (*sql.delete_session, effect_statements.delete_all):
                        connection.run(statement, [{"of_key": key} for key in gone])
                    for each in come:
                        succeed(connection, each, self.node)
                else:
                    self._write(
                        connection, [each for each in run if not isinstance(each, SessionDelete)]
                    )

        await self._database.write(work, small=len(writes) <= SMALL_WRITES)

    def _write(
        self, connection: Connection, writes: Sequence[TurnWrite | CheckpointWrite | Release]
    ) -> None:
        turns = [write for write in writes if isinstance(write, TurnWrite)]
        frozen = [write for write in writes if isinstance(write, CheckpointWrite)]
        records = [turn.created for turn in turns if turn.created is not None]
        if records:
            connection.run(sql.add_session, [session_row(each, self.node) for each in records])
        if turns:
            connection.run(sql.add_entry, [entry_row(turn.key, turn.entry) for turn in turns])
            changed = [turn for turn in turns if turn.changes is not NO_CHANGES]
            write_changes(connection, changed, self.node)
        if frozen:
            # The same checkpoint may come again, when the answer to its first commit was lost.
            keys = [{"of_key": each.key, "of_seq": each.checkpoint.seq} for each in frozen]
            connection.run(sql.delete_checkpoint, keys)
            rows = [checkpoint_row(each.key, each.checkpoint) for each in frozen]
            connection.run(sql.add_checkpoint, rows)
            compacted = {each.key for each in frozen if each.compacts}
            for key in {each.key for each in frozen}:
                prune(connection, key, self._retention, compacts=key in compacted)
        released = [
            {"of_key": each.key, "of_node": self.node, "of_claim": each.claim}
            for each in writes
            if isinstance(each, Release)
        ]
        if released:
            connection.run(sql.release, released)

    async def fork(
        self,
        record: SessionRecord,
        parent: SessionKey,
        checkpoint: SavedCheckpoint,
        members: dict[MemberId, bytes],
        *,
        send_at_ms: int | None = None,
    ) -> SessionRecord:
        """A new session that has `parent`'s journal up to the checkpoint, and goes on from there.
        Returns `record` as it is stored. What `parent` waited for then is asked for once more, at
        `send_at_ms`; None for never.

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
            connection.run(
                effect_statements.inherit,
                [
                    {
                        "of_key": parent,
                        "of_child": record.key,
                        "of_until": checkpoint.seq,
                        "of_due_at_ms": send_at_ms,
                    }
                ],
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
        """Everything that is needed to go on with a session; None when there is none. Where several
        hubs share the database the session is this node's from then on: raises `OwnedElsewhere`
        when another living one has it.
        """
        if self.node is None:
            return await self._database.read(
                lambda connection: load_session(connection, machine_id, session_id)
            )
        node = self.node

        def work(connection: Connection) -> StoredSession | None:
            claimed = claim(connection, machine_id, session_id, node)
            stored = load_session(connection, machine_id, session_id)
            if claimed is None or stored is None:
                return None
            number, before = claimed
            taken = before != node
            return msgspec.structs.replace(stored, claim=number, is_taken_over=taken)

        return await self._database.write_as_of_one_moment(work)

    async def claim(self, machine_id: MachineId, session_id: SessionId) -> SessionRecord:
        """The session is this node's from then on, as when it is loaded. Raises `NotFound`,
        `OwnedElsewhere`.
        """
        if (node := self.node) is not None:
            await self._database.write_as_of_one_moment(
                lambda each: claim(each, machine_id, session_id, node)
            )
        return await self.record(machine_id, session_id)

    async def release_all(self) -> None:
        """Other nodes may claim whatever this one has."""
        await self._database.write(
            lambda connection: connection.run(sql.release_all, [{"of_node": self.node}])
        )

    async def owner(self, machine_id: MachineId, session_id: SessionId) -> NodeId | None:
        """Which living node has the session. Raises `NotFound`."""
        rows = await self._database.read(
            lambda each: each.fetch(
                sql.living_owner, of_machine=machine_id, of_session=session_id.encode()
            )
        )
        if not rows:
            raise NotFound("no_such_session", "the machine has no session of this name")
        owner: NodeId | None = rows[0][0]
        return owner

    async def free_keys(
        self, *, due_ms: int, limit: int
    ) -> tuple[list[SessionKey], set[SessionKey]]:
        """Sessions that no living node has: those with timers that are due, the longest due first,
        and those whose machines believe that somebody is there.
        """

        def work(connection: Connection) -> tuple[list[SessionKey], set[SessionKey]]:
            due = connection.fetch(sql.free_keys_due, of_until_ms=due_ms, of_limit=limit)
            crowded = connection.fetch(sql.free_keys_with_members, of_limit=limit)
            return [key for key, _ in due], {key for (key,) in crowded}

        return await self._database.read(work)

    async def my_keys(self, *, due_ms: int) -> set[SessionKey]:
        """Sessions that are this node's as far as the database knows, and that something is to
        happen to: timers are due, or somebody is believed to be there.
        """

        def work(connection: Connection) -> set[SessionKey]:
            due = connection.fetch(sql.my_keys_due, of_node=self.node, of_until_ms=due_ms)
            crowded = connection.fetch(sql.my_keys_with_members, of_node=self.node)
            return {key for (key,) in [*due, *crowded]}

        return await self._database.read(work)

    async def record(self, machine_id: MachineId, session_id: SessionId) -> SessionRecord:
        """Raises `NotFound`."""
        found = await self._database.read(
            lambda connection: record_named(connection, machine_id, session_id)
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
        """Some of the sessions that finished before then, and that no other node has."""
        query = sql.finished_sessions if self.node is None else sql.free_finished_sessions
        return [
            to_record(row)
            for row in await self._database.read(
                lambda connection: connection.fetch(query, of_before_ms=before_ms)
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
        order: of all sessions, or of those that this node has.
        """
        query = sql.timers_due
        of: dict[str, Any] = {"of_after_ms": after_ms, "of_until_ms": until_ms}
        if self.node is not None:
            query = sql.my_timers_due
            of["of_node"] = self.node
        rows = await self._database.read(lambda connection: connection.fetch(query, **of))
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
        until: Seq = LAST,
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
        return await self._database.read(lambda connection: entry_of(connection, key, event_id))

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
        return await self._database.read(lambda connection: checkpoint_until(connection, key, seq))

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
                match in_place_of(connection, item):
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
