"""Copies of a SQLite database, made while a hub uses it, and put back while none does."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from machinehub.errors import Unavailable
from machinehub.store.file import (
    BESIDE,
    LOCK_WAIT_S,
    MARK_SUFFIX,
    create_private,
    is_orphaned,
    read_only,
)
from machinehub.store.integrity import damaged
from machinehub.store.trouble import because_of

if TYPE_CHECKING:
    from collections.abc import Iterator


class Contents(NamedTuple):
    """What a database holds."""

    revision: str | None
    machines: int
    versions: int
    sessions: int
    inputs: int


def back_up(database: Path, target: Path) -> Contents:
    """Copies `database`, as it is at one moment, to `target`, and checks the copy: it is whole, or
    not there. Writers are not held up. Raises `Unavailable`.
    """
    if not database.exists():
        raise Unavailable("unavailable", f"there is no database {database}")
    with _arriving(target) as unfinished:
        _copy(database, unfinished)
        found = look_into(unfinished, named=target)
        if found.revision is None:
            raise Unavailable("unavailable", f"{database} is no database of a hub")
        return found


def restore(backup: Path, database: Path, *, aside: Path) -> Contents:
    """Puts a copy of `backup` in the place of `database`, which no hub uses, and what was there at
    `aside`. Raises `Unavailable`, and has then changed nothing.
    """
    if not backup.exists():
        raise Unavailable("unavailable", f"there is no file {backup}")
    database = Path(os.path.realpath(database))
    with _arriving(database, replaces=True) as unfinished:
        _copy(backup, unfinished)
        found = look_into(unfinished, named=backup)
        _sync(unfinished)
        _keep(database, aside)
    return found


def _copy(database: Path, target: Path) -> None:
    """As it is at one moment, with what stands in its log beside it. Raises `Unavailable`."""
    try:
        source = sqlite3.connect(read_only(database), uri=True, timeout=LOCK_WAIT_S)
        copy = sqlite3.connect(target)
        try:
            # In one step: a copy in several begins again whenever somebody writes.
            source.backup(copy, pages=-1)
            copy.execute("PRAGMA journal_mode=DELETE")
        finally:
            copy.close()
            source.close()
    except sqlite3.OperationalError as error:
        raise because_of(error) from error
    except sqlite3.DatabaseError as error:
        raise damaged(database, str(error)) from error


def look_into(database: Path, *, named: Path) -> Contents:
    """Checks every page and index of a database that nobody uses, and counts what it holds. Raises
    `Unavailable`.
    """
    try:
        connection = sqlite3.connect(read_only(database, immutable=True), uri=True)
        try:
            faults = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
            if faults != ["ok"]:
                raise damaged(named, "; ".join(faults))
            return _contents(connection)
        finally:
            connection.close()
    except sqlite3.OperationalError as error:
        raise Unavailable("unavailable", f"{named}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise damaged(named, str(error)) from error


def _contents(connection: sqlite3.Connection) -> Contents:
    tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
    if "alembic_version" not in tables:
        return Contents(None, 0, 0, 0, 0)
    (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    counts = (
        connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - our own
        if table in tables
        else 0
        for table in ("machines", "versions", "sessions", "journal")
    )
    return Contents(revision, *counts)


def _keep(database: Path, aside: Path) -> None:
    """Gives a database a second name, which it keeps when another takes the first. What stands in
    its log comes into it before; of a damaged or a missing one the log is moved along. Raises
    `OSError`.
    """
    if database.exists() and not is_orphaned(database):
        with contextlib.suppress(sqlite3.Error):
            connection = sqlite3.connect(database)
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            connection.close()
    if database.exists():
        aside.hardlink_to(database)
    Path(f"{database}{MARK_SUFFIX}").unlink(missing_ok=True)
    for suffix in BESIDE:  # or it would be taken for the new database's
        with contextlib.suppress(FileNotFoundError):
            Path(f"{database}{suffix}").rename(f"{aside}{suffix}")


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextlib.contextmanager
def _arriving(target: Path, *, replaces: bool = False) -> Iterator[Path]:
    """A file beside `target`, for this user alone, that becomes it when the block ends well."""
    if target.exists() and not replaces:
        raise Unavailable("unavailable", f"{target} is there already")
    unfinished = target.with_name(f"{target.name}.unfinished-{os.getpid()}")
    try:
        create_private(unfinished)
        yield unfinished
        _sync(unfinished)
        unfinished.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise Unavailable(
            "unavailable", f"{error.filename or target}: {error.strerror or error}"
        ) from error
    finally:
        for suffix in ("", "-journal", *BESIDE):
            Path(f"{unfinished}{suffix}").unlink(missing_ok=True)
