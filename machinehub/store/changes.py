"""What turns change of sessions besides their memories, written into the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from machinehub.effect import Effect
from machinehub.model import Armed
from machinehub.store import effect_statements as effect_sql
from machinehub.store import statements as sql
from machinehub.store.effects import effect_row, ended_row
from machinehub.store.rows import checkpoint_row, entry_row, member_row, session_row, timer_row

if TYPE_CHECKING:
    from machinehub.ids import MemberId, NodeId, SessionKey
    from machinehub.model import Successor, TurnWrite
    from machinehub.store.database import Connection
    from sandbox.protocol.ids import TimerId


def succeed(connection: Connection, new: Successor, node: NodeId | None) -> None:
    """A session takes another's place."""
    key, checkpoint = new.record.key, new.checkpoint
    connection.run(sql.add_session, [session_row(new.record)])
    connection.run(sql.add_entry, [entry_row(key, new.entry)])
    connection.run(sql.add_checkpoint, [checkpoint_row(key, checkpoint)])
    if checkpoint.timers:
        rows = [timer_row(key, timer, Armed(due)) for timer, due in checkpoint.timers.items()]
        connection.run(sql.add_timer, rows)
    if new.effects:
        rows = [effect_row(key, effect, node) for effect in new.effects]
        connection.run(effect_sql.add_effect, rows)


def write_changes(connection: Connection, turns: list[TurnWrite], node: NodeId | None) -> None:
    """Folds what the turns changed, of each session in order, and writes what it comes to."""
    _write_timers(connection, turns)
    _write_members(connection, turns)
    _write_effects(connection, turns, node)
    finished = [
        {"of_key": turn.key, "of_now_ms": turn.entry.now_ms, "of_seq": turn.entry.seq}
        for turn in turns
        if turn.changes.finished
    ]
    if finished:
        for statement in (sql.finish_session, sql.delete_timers, sql.delete_members):
            connection.run(statement, finished)
        connection.run(effect_sql.end_all, finished)


def _write_timers(connection: Connection, turns: list[TurnWrite]) -> None:
    timers: dict[tuple[SessionKey, TimerId], Armed | None] = {}
    for turn in turns:
        for timer, armed in turn.changes.timers.items():
            timers[turn.key, timer] = armed
    if not timers:
        return
    connection.run(sql.delete_timer, [{"of_key": key, "of_timer": timer} for key, timer in timers])
    if rows := [
        timer_row(key, timer, armed) for (key, timer), armed in timers.items() if armed is not None
    ]:
        connection.run(sql.add_timer, rows)


def _write_members(connection: Connection, turns: list[TurnWrite]) -> None:
    members: dict[tuple[SessionKey, MemberId], bytes | None] = {}
    for turn in turns:
        if (told := turn.changes.member) is not None:
            members[turn.key, told.member] = told.sender
    if not members:
        return
    gone = [{"of_key": key, "of_member": member.encode()} for key, member in members]
    connection.run(sql.delete_member, gone)
    if rows := [
        member_row(key, member, sender)
        for (key, member), sender in members.items()
        if sender is not None
    ]:
        connection.run(sql.add_member, rows)


def _write_effects(connection: Connection, turns: list[TurnWrite], node: NodeId | None) -> None:
    asked: list[dict[str, Any]] = []
    ended: list[dict[str, Any]] = []
    for turn in turns:
        for effect, change in turn.changes.effects.items():
            if isinstance(change, Effect):
                asked.append(effect_row(turn.key, change, node))
            else:
                ended.append(ended_row(turn, effect, change))
    if asked:
        connection.run(effect_sql.add_effect, asked)
    if ended:
        connection.run(effect_sql.end_effect, ended)
