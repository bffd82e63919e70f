"""The file of a SQLite database: made once, and opened only where it is that same file.

`sqlite3.connect` makes a file that is missing. Beside a database that was moved away under a hub
this destroys what was acknowledged: SQLite takes the new file for an empty database and deletes the
write-ahead log, in which the newest commits of the moved one stand.
Source: https://sqlite.org/howtocorrupt.html, section 2 (unlinking or renaming, hot journals).
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

from machinehub.store.trouble import MOVED, unavailable

log = logging.getLogger("machinehub.store")

LOCK_WAIT_S: Final = 10
"""How long SQLite waits for another process that writes."""
LOG_SUFFIX: Final = "-wal"
BESIDE: Final = (LOG_SUFFIX, "-shm")
"""What SQLite keeps beside a database that is in use."""


class DatabaseFile:
    """The file at `path`, as it was when it was first looked at."""

    def __init__(self, path: str) -> None:
        self.path: Final = Path(path)
        self._name = path
        self._inode = 0
        self._is_there = True

    def check(self) -> None:
        """Raises `Unavailable` when the file was taken away, or is another one: what is written
        goes nowhere. A file that was missing from the start is none that was taken away.
        """
        try:
            inode = os.stat(self._name).st_ino  # noqa: PTH116 - for every commit
        except OSError:
            inode = 0
        self._inode = self._inode or inode
        is_there = inode == self._inode
        if is_there != self._is_there:
            self._is_there = is_there
            log.error("%s %s", self._name, "is back" if is_there else "was moved or deleted")
        if not is_there:
            raise unavailable(MOVED)

    def to_open(self) -> str:
        """The URI by which SQLite opens it; a missing file is an error then, `SQLITE_CANTOPEN`.
        Raises `Unavailable` as `check` does.
        """
        self.check()
        return f"{self.path.absolute().as_uri()}?mode=rw"


def read_only(path: Path, *, immutable: bool = False) -> str:
    """The URI by which SQLite opens a file without changing it; `immutable`: nobody else does."""
    return f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if immutable else ''}"


def create_private(path: Path) -> None:
    """An empty file that only this user may read, unless there is one; of root in another user's
    folder, that user. SQLite gives what it keeps beside a database the database's own permissions.
    Raises `OSError`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        if os.geteuid() == 0:
            folder = path.parent.stat()
            os.chown(path, folder.st_uid, folder.st_gid)


def create_database(path: Path) -> None:
    """`create_private` for a database. Raises `Unavailable` where only the log of one is there: the
    database was moved without it, and SQLite would delete what was acknowledged last.
    """
    left = Path(f"{path}{LOG_SUFFIX}")
    if not path.exists() and left.exists() and left.stat().st_size:
        missing = unavailable(MOVED)
        missing.detail = (
            f"{path} is not there, but {left} is, which holds what was written to it last: put the "
            "database back, or move that file away as well"
        )
        raise missing
    create_private(path)
