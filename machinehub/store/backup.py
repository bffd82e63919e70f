"""Copies of a SQLite database, made while a hub uses it, and put back while none does."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from machinehub.errors import Unavailable
from machinehub.store.engine import LOCK_WAIT_S, create_private
from machinehub.store.integrity import damaged
from machinehub.store.trouble import because_of

if TYPE_CHECKING:
    from collections.abc import Iterator

BESIDE: Final = ("-wal", "-shm")
"""What SQLite keeps beside a database that is in use."""


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
        try:
            source = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=LOCK_WAIT_S)
            copy = sqlite3.connect(unfinished)
            try:
                # In one step: a copy in several begins again whenever somebody writes.
                source.backup(copy, pages=-1)
                copy.execute("PRAGMA journal_mode=DELETE")
            finally:
                copy.close()
                source.close()
        except (sqlite3.Error, OSError) as error:
            raise because_of(error) from error
        return look_into(unfinished, named=target)


def restore(backup: Path, database: Path, *, aside: Path) -> Contents:
    """Puts a copy of `backup` in the place of `database`, which no hub uses, and what was there at
    `aside`. Raises `Unavailable`, and has then changed nothing.
    """
    found = look_into(backup, named=backup)
    with _arriving(database, replaces=True) as unfinished:
        try:
            shutil.copyfile(backup, unfinished)
            if database.exists():
                _set_aside(database, aside)
        except OSError as error:
            raise because_of(error) from error
    return found


def look_into(database: Path, *, named: Path) -> Contents:
    """Checks every page and index of a database that nobody uses, and counts what it holds. Raises
    `Unavailable`.
    """
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro&immutable=1", uri=True)
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


def _set_aside(database: Path, aside: Path) -> None:
    """Moves a database away, with what stands beside it."""
    for suffix in ("", *BESIDE):
        with contextlib.suppress(FileNotFoundError):
            Path(f"{database}{suffix}").rename(f"{aside}{suffix}")


@contextlib.contextmanager
def _arriving(target: Path, *, replaces: bool = False) -> Iterator[Path]:
    """A file beside `target`, for this user alone, that becomes it when the block ends well."""
    if target.exists() and not replaces:
        raise Unavailable("unavailable", f"{target} is there already")
    unfinished = target.with_name(f"{target.name}.unfinished-{os.getpid()}")
    try:
        create_private(unfinished)
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
        folder = os.open(target.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
    except OSError as error:
        raise Unavailable(
            "unavailable", f"{error.filename or target}: {error.strerror or error}"
        ) from error
    finally:
        for suffix in ("", "-journal", *BESIDE):
            Path(f"{unfinished}{suffix}").unlink(missing_ok=True)
