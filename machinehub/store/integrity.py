"""Whether a SQLite file is what it should be: looked at when a hub starts."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from typing import TYPE_CHECKING, Final

from machinehub.store.file import read_only
from machinehub.store.trouble import DAMAGED, unavailable

if TYPE_CHECKING:
    from pathlib import Path

    from machinehub.errors import Unavailable
    from machinehub.store.database import Database

log = logging.getLogger("machinehub.store")

AT_ONCE_BYTES: Final = 16 * 1024 * 1024
"""A file of at most this size is looked through before the hub starts: that takes 20 ms. A larger
one is looked through while it runs.
"""
WHAT_TO_DO: Final = (
    "Restore a backup (`machinehub restore FILE`), or save what can be read "
    "(`machinehub db recover NEW`)"
)


def faults_of(path: Path) -> str:
    """What `PRAGMA quick_check` has to say; empty for a sound database."""
    try:
        with sqlite3.connect(read_only(path), uri=True) as connection:
            found = [row[0] for row in connection.execute("PRAGMA quick_check(5)")]
        connection.close()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            return ""  # busy, or not there: whoever uses it will say so
        return str(error)
    return "" if found == ["ok"] else "; ".join(found)


def damaged(path: Path, faults: str) -> Unavailable:
    error = unavailable(DAMAGED)
    error.detail = f"{path} is damaged ({faults}). {WHAT_TO_DO}"
    return error


async def check_file(path: Path) -> bool:
    """Looks a small file through; whether it did. Raises `Unavailable` for a damaged one."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return True
    if size > AT_ONCE_BYTES:
        return False
    if faults := await asyncio.to_thread(faults_of, path):
        raise damaged(path, faults)
    return True


async def look_through(path: Path, database: Database) -> None:
    """Looks a file through beside its use, and says so where it is damaged."""
    faults = await asyncio.to_thread(faults_of, path)
    if faults:
        database.damaged = True
        log.error("%s", damaged(path, faults).detail)
