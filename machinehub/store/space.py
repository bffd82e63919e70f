"""Space that a SQLite database does not need any more, given back to the disk.

SQLite keeps pages that became free and uses them again. Databases that this hub made give them back
a few at a time (`auto_vacuum=INCREMENTAL`); older ones do after `machinehub db vacuum`.
Source: https://sqlite.org/pragma.html#pragma_auto_vacuum.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from machinehub.store.trouble import because_of
from machinehub.tasks import look_on

if TYPE_CHECKING:
    from pathlib import Path

    from machinehub.store.database import Database

log = logging.getLogger("machinehub.store")

LOOK_S: Final = 10.0
STEP_S: Final = 0.1
PAGES_AT_ONCE: Final = 256
"""1 MiB: a few milliseconds, in which nothing else is written."""
PAGES_KEPT: Final = 1024
"""Free pages that are worth keeping: they are used again soon."""
_INCREMENTAL: Final = 2


async def give_back_on(database: Database) -> None:
    """Gives back free pages for as long as this runs."""
    if database.path is None:
        return

    async def give_all_back() -> None:
        while await database.write(give_back):
            await asyncio.sleep(STEP_S)

    await look_on("free pages", LOOK_S, give_all_back, log, logging.DEBUG)


def give_back(connection: Any) -> bool:
    """Gives back some pages of a SQLite database; whether there are more to be given back."""
    raw: sqlite3.Connection = connection.raw
    free = raw.execute("PRAGMA freelist_count").fetchone()[0]
    if free <= PAGES_KEPT or raw.execute("PRAGMA auto_vacuum").fetchone()[0] != _INCREMENTAL:
        return False
    raw.execute(f"PRAGMA incremental_vacuum({PAGES_AT_ONCE})").fetchall()
    return bool(free - PAGES_AT_ONCE > PAGES_KEPT)


def vacuum(path: Path) -> tuple[int, int]:
    """Rewrites a database that nobody uses, so that it is as small as it can be, and gives back
    space from then on. Needs as much free space as the database has. Returns how many bytes the
    file had and has. Raises `Unavailable`.
    """
    before = path.stat().st_size
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute(f"PRAGMA auto_vacuum = {_INCREMENTAL}")
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise because_of(error) from error
    return before, path.stat().st_size
