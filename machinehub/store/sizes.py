"""What takes the space of a database."""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from machinehub.store.engine import opened
from machinehub.store.tables import metadata
from machinehub.store.trouble import because_of

FREE: Final = "free"
OTHER: Final = "other"
_SQLITE: Final = sa.text(
    "SELECT master.tbl_name, sum(stat.pgsize) FROM dbstat AS stat "
    "JOIN sqlite_master AS master ON master.name = stat.name GROUP BY master.tbl_name"
)
"""Source: https://sqlite.org/dbstat.html."""
_POSTGRES: Final = sa.text(
    "SELECT relname, pg_total_relation_size(oid) FROM pg_class "
    "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
)


async def sizes_of(url: str) -> list[tuple[str, int]]:
    """(table, bytes with its indices), the largest first; `FREE` is space that is used again.

    Raises `Unavailable`.
    """
    try:
        async with opened(url) as engine, engine.connect() as connection:
            found: dict[str, int] = {}
            is_sqlite = engine.dialect.name == "sqlite"
            for name, size in await connection.execute(_SQLITE if is_sqlite else _POSTGRES):
                known = name if name in metadata.tables else OTHER
                found[known] = found.get(known, 0) + int(size)
            if is_sqlite:
                pages = await connection.scalar(sa.text("PRAGMA freelist_count"))
                found[FREE] = (pages or 0) * await connection.scalar(sa.text("PRAGMA page_size"))
    except SQLAlchemyError as error:
        raise because_of(error) from error
    return sorted(found.items(), key=lambda pair: -pair[1])
