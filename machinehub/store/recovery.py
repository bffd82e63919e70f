"""What can still be read of a damaged SQLite database, into a new one.

Tables are read row by row, in the order in which they lie in the file; rows on pages that cannot be
read are passed over. What of it is whole, `machinehub verify` says.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from machinehub.store.file import read_only
from machinehub.store.tables import metadata

if TYPE_CHECKING:
    from pathlib import Path

    from sqlalchemy import Table

Rows = list[tuple[object, ...]]
Read = Callable[[str], Iterator[Rows]]
"""Reads these columns of a table."""
ROWS_AT_ONCE: Final = 200
STRIDE_MAX: Final = 2**40
"""How far ahead a row is looked for, behind pages that cannot be read."""


def recover(damaged: Path, new: Path) -> dict[str, int]:
    """Copies what can be read into `new`, a database with an empty schema of today. Returns the
    number of rows of each table. Raises `sqlite3.Error` for what is no database at all.
    """
    source = sqlite3.connect(read_only(damaged), uri=True, isolation_level=None)
    target = sqlite3.connect(new, isolation_level=None)
    counts: dict[str, int] = {}
    try:
        target.execute("PRAGMA foreign_keys = OFF")
        # Those in the order of sessions come last: by then it is known which there are.
        for table in sorted(metadata.sorted_tables, key=_is_clustered):
            there = {row[1] for row in source.execute(f'PRAGMA table_info("{table.name}")')}
            columns = [column.name for column in table.columns if column.name in there]
            counts[table.name] = 0
            if not columns:
                continue
            named = ", ".join(f'"{name}"' for name in columns)
            marks = ", ".join("?" for _ in columns)
            insert = f'INSERT OR IGNORE INTO "{table.name}" ({named}) VALUES ({marks})'  # noqa: S608
            target.execute("BEGIN")
            read = (
                _by_session(source, target, table)
                if _is_clustered(table)
                else _by_rowid(source, table)
            )
            for rows in read(named):
                counts[table.name] += target.executemany(insert, rows).rowcount
            target.execute("COMMIT")
    finally:
        target.close()
        source.close()
    return counts


def _is_clustered(table: Table) -> bool:
    return not table.dialect_options["sqlite"]["with_rowid"]


def _by_rowid(source: sqlite3.Connection, table: Table) -> Read:
    """In the order of the file, `ROWS_AT_ONCE`; behind pages that cannot be read, ever further."""
    query = (
        'SELECT rowid, {1} FROM "{0}" NOT INDEXED WHERE rowid >= ? ORDER BY rowid LIMIT ?'
    ).format

    def read(named: str) -> Iterator[Rows]:
        at, limit, stride = -(2**62), ROWS_AT_ONCE, 1
        while stride < STRIDE_MAX:
            try:
                found = source.execute(query(table.name, named), (at, limit)).fetchall()
            except sqlite3.DatabaseError:
                if limit > 1:
                    limit = 1
                else:
                    at, stride = at + stride, stride * 2
                continue
            if not found:
                return
            yield [row[1:] for row in found]
            at, limit, stride = found[-1][0] + 1, ROWS_AT_ONCE, 1

    return read


def _by_session(source: sqlite3.Connection, target: sqlite3.Connection, table: Table) -> Read:
    """What lies in the order of sessions: of each from both of its ends, as far as that goes."""
    keys = [key for (key,) in target.execute("SELECT key FROM sessions ORDER BY key")]
    order = [column.name for column in table.primary_key]

    def read(named: str) -> Iterator[Rows]:
        for key in keys:
            for way in ("ASC", "DESC"):
                by = ", ".join(f'"{name}" {way}' for name in order)
                query = f'SELECT {named} FROM "{table.name}" WHERE key = ? ORDER BY {by}'  # noqa: S608
                rows: Rows = []
                try:
                    rows.extend(source.execute(query, (key,)))
                except sqlite3.DatabaseError:
                    yield rows  # and what comes before it, from the other end
                else:
                    yield rows
                    break

    return read
