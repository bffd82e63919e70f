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
MARK_SUFFIX: Final = "-replaced"
"""Of a note of which file the log belongs to, where another one took its name."""
BESIDE: Final = (LOG_SUFFIX, "-shm")
"""What SQLite keeps beside a database that is in use."""


class DatabaseFile:
    """The file at `path`, as it was when it was first looked at, and the log beside it."""

    def __init__(self, path: str) -> None:
        self.path: Final = Path(path)
        self._name = os.path.realpath(path)  # SQLite keeps the log beside the file itself
        self._log = self._name + LOG_SUFFIX
        self._file: _Identity = None
        self._log_file: _Identity = None
        self._is_there = True

    def check(self) -> None:
        """Raises `Unavailable` when the file or its log was taken away, or is another one: what is
        written goes nowhere. A file that was missing from the start is none that was taken away.
        """
        found = _identity(self._name)
        self._file = self._file or found
        is_there = found == self._file
        if self._log_file is not None and is_there:
            is_there = _identity(self._log) == self._log_file
        if is_there != self._is_there:
            self._is_there = is_there
            log.error("%s %s", self.path, "is back" if is_there else "was moved or deleted")
            self._mark(None if is_there or found == self._file else self._file)
        if not is_there:
            raise unavailable(MOVED)

    def keep_log(self) -> None:
        """From now on the log is what it is now, since a connection stays open."""
        self._log_file = self._log_file or _identity(self._log)

    def forget_log(self) -> None:
        """The connection is closed; with the last one SQLite deletes the log."""
        self._log_file = None

    def _mark(self, replaced: _Identity) -> None:
        """Notes for whoever comes later whose log that is, while another file has the name."""
        with contextlib.suppress(OSError):
            if replaced is not None:
                Path(self._name + MARK_SUFFIX).write_text(str(replaced))
            else:
                Path(self._name + MARK_SUFFIX).unlink(missing_ok=True)

    def to_open(self) -> str:
        """The URI by which SQLite opens it; a missing file is an error then, `SQLITE_CANTOPEN`.
        Raises `Unavailable` as `check` and `check_log` do.
        """
        self.check()
        check_log(Path(self._name))
        return f"{self.path.absolute().as_uri()}?mode=rw"


_Identity = tuple[int, int] | None


def _identity(path: str) -> _Identity:
    """Which file that is; None for none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - for every commit
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_orphaned(database: Path) -> bool:
    """Whether a log is there without its database: SQLite deletes the log of an empty file, and
    writes that of another one into whatever has the name.
    """
    name = os.path.realpath(database)
    if not _size(Path(name + LOG_SUFFIX)):
        return False
    try:
        whose = Path(name + MARK_SUFFIX).read_text()
    except OSError:
        whose = ""
    found = _identity(name)
    return _size(database) == 0 or bool(whose and found and whose != str(found))


def check_log(database: Path) -> None:
    """Raises `Unavailable` where a log is there without its database. Where there is none, a note
    of whose it was is deleted.
    """
    if is_orphaned(database):
        missing = unavailable(MOVED)
        missing.detail = (
            f"{database}{LOG_SUFFIX} holds what was written last to a database that is not there: "
            "put that one back, or move this file away as well"
        )
        raise missing
    if not _size(Path(os.path.realpath(database) + LOG_SUFFIX)):
        Path(os.path.realpath(database) + MARK_SUFFIX).unlink(missing_ok=True)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


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
    """`create_private` for a database. Raises `Unavailable` as `check_log` does."""
    check_log(path)
    create_private(Path(os.path.realpath(path)))
