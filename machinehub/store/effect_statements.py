"""The SQL statements about what machines ask of the world, as `statements.py`."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from machinehub.store.database import Statement
from machinehub.store.parameters import constant as _count
from machinehub.store.parameters import parameter as _of
from machinehub.store.tables import effects, nodes, sessions

_COLUMNS: Final = [column.name for column in effects.columns]


_key = _of("key")
_this = (effects.c.key == _key, effects.c.effect == _of("effect"))
_waits = effects.c.ended_at_ms.is_(None)

add_effect = Statement(
    sa.text(
        f"INSERT INTO effects ({', '.join(_COLUMNS)})"  # noqa: S608 - names of columns
        f" VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"
        " ON CONFLICT (key, effect) DO NOTHING"
    ).bindparams(*(sa.bindparam(column.name, type_=column.type) for column in effects.columns))
)
"""A guest that was taken over may count wrong: that must not hold up a commit."""
end_effect = Statement(
    effects.update()
    .where(*_this, _waits)
    .values(
        ended_at_ms=_of("now_ms"),
        ended_seq=_of("seq"),
        outcome=_of("outcome", sa.String),
        status=_of("status", sa.Integer),
        tries=_of("tries", sa.Integer),
        took_ms=_of("took_ms"),
        due_at_ms=sa.null(),
        node=sa.null(),
    )
)
end_all = Statement(
    effects.update()
    .where(effects.c.key == _key, _waits)
    .values(
        ended_at_ms=_of("now_ms"),
        ended_seq=_of("seq"),
        outcome=sa.literal_column("'session_finished'"),
        due_at_ms=sa.null(),
        node=sa.null(),
    )
)
delete_all = Statement(effects.delete().where(effects.c.key == _key))
forget_ended = Statement(
    effects.delete().where(effects.c.key == _key, effects.c.ended_seq <= _of("seq"))
)
waiting_of = Statement(
    sa.select(effects.c.effect, effects.c.depth).where(effects.c.key == _key, _waits)
)
page_of = Statement(
    sa.select(effects)
    .where(effects.c.key == _key, effects.c.effect < _of("before"))
    .order_by(effects.c.effect.desc())
    .limit(_of("limit"))
)

_ended_by_then = effects.c.ended_seq <= _of("until")
_inherited: Final = ("effect", "seq", "ordinal", "request", "at_ms", "depth")
_endings: Final = ("ended_at_ms", "ended_seq", "outcome", "status", "took_ms")
inherit = Statement(
    effects.insert().from_select(
        ["key", *_inherited, "due_at_ms", "tries", *_endings],
        sa.select(
            _of("child"),
            *(effects.c[name] for name in _inherited),
            sa.case((_ended_by_then, sa.null()), else_=_of("due_at_ms")),
            sa.case((_ended_by_then, effects.c.tries), else_=_count(0)),
            *(sa.case((_ended_by_then, effects.c[name])) for name in _endings),
        ).where(effects.c.key == _key, effects.c.seq <= _of("until")),
    )
)
"""Those that a session had asked for until then, for one that is forked there."""

_me = _of("node", sa.String)
_carried = sa.exists().where(nodes.c.id == effects.c.node, nodes.c.ended_at_ms.is_(None))
_mine_or_free = sa.or_(effects.c.node.is_(None), effects.c.node == _me, ~_carried)
_place = effects.c.due_at_ms, effects.c.key, effects.c.effect
due = Statement(
    sa.select(*_place, sessions.c.machine_id, sessions.c.version)
    .join_from(effects, sessions, sessions.c.key == effects.c.key)
    .where(
        effects.c.due_at_ms >= _of("after_ms"),
        effects.c.due_at_ms <= _of("now_ms"),
        sa.tuple_(*_place) > sa.tuple_(_of("after_ms"), _of("after_key"), _of("after_effect")),
        _mine_or_free,
    )
    .order_by(*_place)
    .limit(_of("limit"))
)
take = Statement(effects.update().where(*_this, _mine_or_free, _waits).values(node=_me))
taken = Statement(
    sa.select(effects, sessions.c.machine_id, sessions.c.session_id, sessions.c.version)
    .join_from(effects, sessions, sessions.c.key == effects.c.key)
    .where(*_this, _mine_or_free, effects.c.due_at_ms.is_not(None))
)
note_try = Statement(
    effects.update()
    .where(*_this, _waits)
    .values(
        tries=_of("tries", sa.Integer),
        tried_at_ms=_of("tried_at_ms"),
        trouble=_of("trouble", sa.LargeBinary),
        due_at_ms=_of("due_at_ms"),
    )
)
let_go = Statement(effects.update().where(effects.c.node == _me, _waits).values(node=sa.null()))
count_waiting = Statement(
    sa.select(sa.func.count()).select_from(effects).where(effects.c.due_at_ms.is_not(None))
)
