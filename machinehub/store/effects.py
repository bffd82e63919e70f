"""What machines asked of the world: which of it is due, who sends it, and how it ended.

Requests are written, and end, in the transactions of their sessions' turns (`changes.py`); what
happens to them in between is noted here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from machinehub.effect import Conclusion, Effect, EffectRecord
from machinehub.ids import MachineId, SessionId
from machinehub.store import effect_statements as sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from machinehub.ids import NodeId, SessionKey
    from machinehub.model import TurnWrite
    from machinehub.store.database import Connection, Database
    from sandbox.protocol.ids import EffectId

LAST: Final = 2**62


class Due(NamedTuple):
    """A request whose time has come, and which version asks."""

    due_at_ms: int
    key: SessionKey
    effect: EffectId
    machine_id: MachineId
    version: int


class DueEffect(NamedTuple):
    """A request that is to be sent, and whose it is."""

    record: EffectRecord
    machine_id: MachineId
    session_id: SessionId
    version: int


class EffectStore:
    """Every method is one transaction, and raises `Unavailable` when the database does not
    answer.
    """

    def __init__(self, database: Database, *, node: NodeId | None) -> None:
        self._database = database
        self._node = node

    async def due(self, now_ms: int, *, after: Due | None = None, limit: int) -> list[Due]:
        """Requests whose time has come, the longest due first, from behind `after`, and that no
        other living node sends.
        """
        of = {
            "of_now_ms": now_ms,
            "of_node": self._node or "",
            "of_after_ms": after.due_at_ms if after else -1,
            "of_after_key": after.key if after else -1,
            "of_after_effect": after.effect if after else -1,
            "of_limit": limit,
        }
        rows = await self._database.read(lambda each: each.fetch(sql.due, **of))
        return [Due(*row) for row in rows]

    async def take(self, named: Sequence[Due]) -> list[DueEffect]:
        """This node sends these from now on; those that it does. Two nodes that see one die may
        both believe so: then it is sent twice, under one key.
        """
        if not named:
            return []
        these = [_this(each.key, each.effect) | {"of_node": self._node} for each in named]

        def work(connection: Connection) -> list[DueEffect]:
            if self._node is not None:
                connection.run(sql.take, these)
            found = []
            for this in these:
                found += connection.fetch(sql.taken, **this | {"of_node": self._node or ""})
            return [_to_due(row) for row in found]

        if self._node is None:
            return await self._database.read(work)
        return await self._database.write(work)

    async def let_go(self) -> None:
        """Other nodes may send what this one was to send."""
        if self._node is not None:
            rows = [{"of_node": self._node}]
            await self._database.write(lambda each: each.run(sql.let_go, rows))

    async def note_try(
        self,
        key: SessionKey,
        effect: EffectId,
        *,
        tries: int,
        tried_at_ms: int,
        trouble: str,
        due_at_ms: int,
    ) -> None:
        """A try failed; the next one is at `due_at_ms`."""
        row = _this(key, effect) | {
            "of_tries": tries,
            "of_tried_at_ms": tried_at_ms,
            "of_trouble": trouble.encode(),
            "of_due_at_ms": due_at_ms,
        }
        await self._database.write(lambda each: each.run(sql.note_try, [row]), small=True)

    async def of_session(
        self, key: SessionKey, *, before: EffectId | None = None, limit: int
    ) -> list[EffectRecord]:
        """The newest first, of those before `before`."""
        last = LAST if before is None else before
        rows = await self._database.read(
            lambda each: each.fetch(sql.page_of, of_key=key, of_before=last, of_limit=limit)
        )
        return [to_record(row) for row in rows]

    async def count_waiting(self) -> int:
        """Requests of all sessions that are to be sent, or whose answers are waited for."""
        rows = await self._database.read(lambda each: each.fetch(sql.count_waiting))
        return int(rows[0][0])


def _to_due(row: Any) -> DueEffect:
    *effect, machine, session, version = row
    return DueEffect(to_record(effect), MachineId(machine), SessionId(session.decode()), version)


def waiting_of(connection: Connection, key: SessionKey) -> dict[EffectId, int]:
    """The requests of a session that wait, and their depths."""
    return dict(connection.fetch(sql.waiting_of, of_key=key))


def _this(key: SessionKey, effect: EffectId) -> dict[str, Any]:
    return {"of_key": key, "of_effect": effect}


def effect_row(key: SessionKey, effect: Effect, node: NodeId | None) -> dict[str, Any]:
    return {
        "key": key,
        "effect": effect.id,
        "seq": effect.seq,
        "ordinal": effect.ordinal,
        "request": effect.request,
        "at_ms": effect.at_ms,
        "depth": effect.depth,
        "due_at_ms": effect.at_ms,
        "node": node,
        "tries": 0,
        "tried_at_ms": None,
        "trouble": None,
        "ended_at_ms": None,
        "ended_seq": None,
        "outcome": None,
        "status": None,
        "took_ms": None,
    }


def ended_row(turn: TurnWrite, effect: EffectId, how: Conclusion) -> dict[str, Any]:
    return _this(turn.key, effect) | {
        "of_now_ms": turn.entry.now_ms,
        "of_seq": turn.entry.seq,
        "of_outcome": how.outcome,
        "of_status": how.status,
        "of_tries": how.tries,
        "of_took_ms": how.ms,
    }


def to_record(row: Any) -> EffectRecord:
    key, effect, seq, ordinal, request, at_ms, depth, due_at_ms, _node = row[:9]
    tries, tried_at_ms, trouble, ended_at_ms, ended_seq, outcome, status, took_ms = row[9:]
    return EffectRecord(
        key=key,
        effect=Effect(effect, seq, ordinal, request, at_ms, depth),
        tries=tries,
        tried_at_ms=tried_at_ms,
        due_at_ms=due_at_ms,
        trouble="" if trouble is None else trouble.decode(),
        ended_at_ms=ended_at_ms,
        ended_seq=ended_seq,
        conclusion=None
        if outcome is None
        else Conclusion(outcome, status, tries or 0, took_ms or 0),
    )
