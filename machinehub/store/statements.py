"""The SQL statements of the session store, which `sessions.py` executes.

Bind parameters other than the columns of an INSERT have names that begin with `of_`.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from machinehub.store.database import Statement
from machinehub.store.parameters import constant as _count
from machinehub.store.parameters import parameter as _of
from machinehub.store.tables import (
    beats,
    checkpoints,
    journal,
    members,
    nodes,
    notes,
    places,
    sessions,
    timers,
)

RECEIPTS_LOADED: Final = 100
"""Event ids that a session is loaded with.

Older ones are found by the journal's own key, which costs more.
"""
FINISHED_AT_ONCE: Final = 100
DELETED_AT_ONCE: Final = 100


_key = _of("key")
_named = (
    sessions.c.machine_id == _of("machine", sa.String),
    sessions.c.session_id == _of("session", sa.LargeBinary),
)
_applied = journal.c.attempt == _count(0)
_newest = (journal.c.seq.desc(), journal.c.attempt.desc())
_limit = _of("limit")

# --- sessions

add_session = Statement(sessions.insert())
session_named = Statement(sa.select(sessions).where(*_named))
session_of_key = Statement(sa.select(sessions).where(sessions.c.key == _key))
finish_session = Statement(
    sessions.update().where(sessions.c.key == _key).values(finished_at_ms=_of("now_ms"))
)
finished_sessions = Statement(
    sa.select(sessions)
    .where(sessions.c.finished_at_ms < _of("before_ms"))
    .order_by(sessions.c.finished_at_ms)
    .limit(_count(FINISHED_AT_ONCE))
)
_last_seq = (
    sa.select(sa.func.max(journal.c.seq)).where(journal.c.key == sessions.c.key).scalar_subquery()
)
_frozen_seq = (
    sa.select(sa.func.max(checkpoints.c.seq))
    .where(checkpoints.c.key == sessions.c.key)
    .scalar_subquery()
)
session_page = Statement(
    sa.select(sessions, _last_seq, _frozen_seq)
    .where(
        sessions.c.machine_id == _of("machine", sa.String),
        sessions.c.session_id > _of("after", sa.LargeBinary),
    )
    .order_by(sessions.c.session_id)
    .limit(_limit)
)

count_sessions = Statement(sa.select(sa.func.count()).select_from(sessions))

some_keys = Statement(
    sa.select(sessions.c.key)
    .where(sessions.c.machine_id == _of("machine", sa.String))
    .limit(_count(DELETED_AT_ONCE))
)
delete_session = [
    Statement(table.delete().where(table.c.key == _key))
    for table in (journal, checkpoints, timers, members, places, sessions)
]

# --- the journal

add_entry = Statement(journal.insert())
entry_at = Statement(
    sa.select(journal).where(
        journal.c.key == _key,
        journal.c.seq == _of("seq"),
        journal.c.attempt == _of("attempt", sa.Integer),
    )
)
entry_of_id = Statement(
    sa.select(journal).where(
        journal.c.key == _key, journal.c.event_id == _of("event_id", sa.LargeBinary)
    )
)
newest_entry = Statement(
    sa.select(journal.c.seq, journal.c.attempt)
    .where(journal.c.key == _key)
    .order_by(*_newest)
    .limit(_count(1))
)
applied_since = Statement(
    sa.select(journal)
    .where(journal.c.key == _key, journal.c.seq > _of("seq"), _applied)
    .order_by(journal.c.seq)
)
newest_ids = Statement(
    sa.select(journal)
    .where(journal.c.key == _key, journal.c.event_id.is_not(None))
    .order_by(*_newest)
    .limit(_count(RECEIPTS_LOADED))
)
entries = Statement(
    sa.select(journal)
    .where(
        journal.c.key == _key,
        sa.or_(
            journal.c.seq > _of("seq"),
            sa.and_(journal.c.seq == _of("seq"), journal.c.attempt > _of("attempt", sa.Integer)),
        ),
    )
    .where(journal.c.seq <= _of("until"), journal.c.attempt <= _of("attempts", sa.Integer))
    .order_by(journal.c.seq, journal.c.attempt)
    .limit(_limit)
)
_compacted_to = sa.func.coalesce(
    sa.select(sessions.c.compacted_to).where(sessions.c.key == _key).scalar_subquery(), _count(0)
)
applied_span = Statement(
    sa.select(sa.func.min(journal.c.seq), sa.func.max(journal.c.seq)).where(
        journal.c.key == _key, _applied, journal.c.seq > _compacted_to
    )
)
forget_entries = Statement(
    journal.delete().where(journal.c.key == _key, journal.c.seq <= _of("seq"))
)
forget_ticks = Statement(
    journal.delete().where(
        journal.c.key == _key,
        journal.c.seq <= _of("seq"),
        journal.c.kind == sa.literal_column("'timer'"),
    )
)
_inherited = (
    "seq",
    "attempt",
    "kind",
    "input",
    "now_ms",
    "changed",
    "error",
    "format",
    "taken",
    "cause",
)
inherit_entries = Statement(
    journal.insert().from_select(
        ["key", *_inherited],
        sa.select(_of("child"), *(journal.c[name] for name in _inherited)).where(
            journal.c.key == _key, journal.c.seq <= _of("seq"), _applied
        ),
    )
)

note_compacted = Statement(
    sessions.update().where(sessions.c.key == _key).values(compacted_to=_of("seq"))
)

# --- checkpoints and timers

add_checkpoint = Statement(checkpoints.insert())
delete_checkpoint = Statement(
    checkpoints.delete().where(checkpoints.c.key == _key, checkpoints.c.seq == _of("seq"))
)
checkpoint_until = Statement(
    sa.select(checkpoints)
    .where(checkpoints.c.key == _key, checkpoints.c.seq <= _of("seq"))
    .order_by(checkpoints.c.seq.desc())
    .limit(_count(1))
)
checkpoint_seqs = Statement(
    sa.select(checkpoints.c.seq).where(checkpoints.c.key == _key).order_by(checkpoints.c.seq)
)
add_timer = Statement(timers.insert())
delete_timer = Statement(
    timers.delete().where(timers.c.key == _key, timers.c.timer == _of("timer"))
)
delete_timers, delete_members = delete_session[2:4]
timers_of = Statement(
    sa.select(timers.c.timer, timers.c.due_at_ms, timers.c.tries)
    .where(timers.c.key == _key)
    .order_by(timers.c.timer)
)
timers_due = Statement(
    sa.select(timers.c.key, timers.c.timer, timers.c.due_at_ms)
    .where(timers.c.due_at_ms > _of("after_ms"), timers.c.due_at_ms <= _of("until_ms"))
    .order_by(timers.c.due_at_ms, timers.c.timer)
)

# --- members

add_member = Statement(members.insert())
delete_member = Statement(
    members.delete().where(members.c.key == _key, members.c.member == _of("member", sa.LargeBinary))
)
members_of = Statement(
    sa.select(members.c.member, members.c.sender)
    .where(members.c.key == _key)
    .order_by(members.c.member)
)
all_members = Statement(sa.select(members).order_by(members.c.key, members.c.member))
presence_entries = Statement(
    sa.select(journal)
    .where(
        journal.c.key == _key,
        journal.c.seq <= _of("seq"),
        _applied,
        journal.c.kind == sa.literal_column("'presence'"),
    )
    .order_by(journal.c.seq)
)

# --- up to where clients have heard

place_of = Statement(
    sa.select(places.c.seq).where(
        places.c.key == _key, places.c.client == _of("client", sa.LargeBinary)
    )
)
keep_place = Statement(
    sa.text(
        "INSERT INTO places (key, client, seq, at_ms) VALUES (:key, :client, :seq, :at_ms)"
        " ON CONFLICT (key, client) DO UPDATE SET seq = excluded.seq, at_ms = excluded.at_ms"
        " WHERE excluded.seq > places.seq"
    ).bindparams(
        *(sa.bindparam(name, type_=sa.BigInteger()) for name in ("key", "seq", "at_ms")),
        sa.bindparam("client", type_=sa.LargeBinary()),
    )
)
_eldest_kept = (
    sa.select(places.c.at_ms)
    .where(places.c.key == _key)
    .order_by(places.c.at_ms.desc())
    .offset(_of("kept"))
    .limit(_count(1))
    .scalar_subquery()
)
forget_places = Statement(
    places.delete().where(places.c.key == _key, places.c.at_ms <= _eldest_kept)
)

# --- who has which session, where several hubs share a database

_me = _of("node", sa.String)
_alive = sa.exists().where(nodes.c.id == sessions.c.owner, nodes.c.ended_at_ms.is_(None))
_is_free = sa.or_(sessions.c.owner.is_(None), ~_alive)
_mine = sa.select(sessions.c.key).where(sessions.c.owner == _me).scalar_subquery()

fence = Statement(
    sa.select(nodes.c.id)
    .where(nodes.c.id == _me, nodes.c.ended_at_ms.is_(None))
    .with_for_update(read=True)
)
"""A row as long as the node is not declared dead, which waits for this transaction's end."""
claim_named = Statement(
    sessions.update()
    .where(*_named, sa.or_(sessions.c.owner == _me, _is_free))
    .values(owner=_me, claims=sessions.c.claims + _count(1))
    .returning(sessions.c.claims)
)
owner_of_named = Statement(sa.select(sessions.c.owner).where(*_named))
living_owner = Statement(sa.select(sa.case((_alive, sessions.c.owner))).where(*_named))
release = Statement(
    sessions.update()
    .where(sessions.c.key == _key, sessions.c.owner == _me, sessions.c.claims == _of("claim"))
    .values(owner=sa.null())
)
release_all = Statement(sessions.update().where(sessions.c.owner == _me).values(owner=sa.null()))
my_timers_due = Statement(
    sa.select(timers.c.key, timers.c.timer, timers.c.due_at_ms)
    .where(
        timers.c.due_at_ms > _of("after_ms"),
        timers.c.due_at_ms <= _of("until_ms"),
        timers.c.key.in_(_mine),
    )
    .order_by(timers.c.due_at_ms, timers.c.timer)
)
free_finished_sessions = Statement(
    sa.select(sessions)
    .where(sessions.c.finished_at_ms < _of("before_ms"), _is_free)
    .order_by(sessions.c.finished_at_ms)
    .limit(_count(FINISHED_AT_ONCE))
)
free_keys_due = Statement(
    sa.select(timers.c.key, sa.func.min(timers.c.due_at_ms))
    .join_from(timers, sessions, sessions.c.key == timers.c.key)
    .where(timers.c.due_at_ms <= _of("until_ms"), _is_free)
    .group_by(timers.c.key)
    .order_by(sa.func.min(timers.c.due_at_ms))
    .limit(_limit)
)
"""Sleeping sessions, and those of dead nodes, whose timers are due."""
free_keys_with_members = Statement(
    sa.select(members.c.key)
    .join_from(members, sessions, sessions.c.key == members.c.key)
    .where(_is_free)
    .distinct()
    .limit(_limit)
)
my_keys_due = Statement(
    sa.select(timers.c.key)
    .where(timers.c.due_at_ms <= _of("until_ms"), timers.c.key.in_(_mine))
    .distinct()
)
my_keys_with_members = Statement(
    sa.select(members.c.key).where(members.c.key.in_(_mine)).distinct()
)

add_node = Statement(nodes.insert())
add_beat = Statement(beats.insert())
beat = Statement(
    beats.update()
    .where(beats.c.node == _me)
    .values(
        count=beats.c.count + _count(1),
        draining=_of("draining", sa.Boolean),
        sessions=_of("sessions", sa.Integer),
        connections=_of("connections", sa.Integer),
        turns=_of("turns"),
    )
)
living_nodes = Statement(
    sa.select(nodes, beats)
    .join_from(nodes, beats, beats.c.node == nodes.c.id)
    .where(nodes.c.ended_at_ms.is_(None))
    .order_by(nodes.c.id)
)
tell_to_drain = Statement(beats.update().where(beats.c.node == _me).values(told_to_drain=sa.true()))
end_node = Statement(
    nodes.update()
    .where(nodes.c.id == _me, nodes.c.ended_at_ms.is_(None))
    .values(ended_at_ms=_of("now_ms"))
)
delete_beat = Statement(beats.delete().where(beats.c.node == _me))
forget_nodes = Statement(nodes.delete().where(nodes.c.ended_at_ms < _of("before_ms")))
held_locks = Statement(
    sa.text(
        "SELECT CAST(objid AS BIGINT) FROM pg_locks"
        " WHERE locktype = 'advisory' AND granted AND classid = CAST(:of_class AS oid)"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    ).bindparams(_of("class"))
)
"""The numbers of the nodes whose connections live."""

# --- the hub's notes

keep_note = Statement(
    sa.text(
        "INSERT INTO notes (name, value) VALUES (:name, :value)"
        " ON CONFLICT (name) DO UPDATE SET value = excluded.value"
    ).bindparams(
        sa.bindparam("name", type_=sa.String()), sa.bindparam("value", type_=sa.LargeBinary())
    )
)
delete_note = Statement(notes.delete().where(notes.c.name == _of("name", sa.String)))
note_named = Statement(sa.select(notes.c.value).where(notes.c.name == _of("name", sa.String)))
