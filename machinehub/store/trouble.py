"""What is wrong with a database: a driver's error becomes a cause that an operator can act on."""

from __future__ import annotations

import errno
import sqlite3
from typing import Final

from machinehub.errors import Unavailable

DISK_FULL: Final = "disk_full"
READ_ONLY: Final = "read_only"
DAMAGED: Final = "damaged"
CLAIM_LOST: Final = "claim_lost"
MOVED: Final = "moved"
UNREACHABLE: Final = "unreachable"
FENCED: Final = "fenced"
UNCONFIRMED: Final = "unconfirmed"
_SQLITE: Final = {
    sqlite3.SQLITE_FULL: DISK_FULL,
    sqlite3.SQLITE_READONLY: READ_ONLY,
    sqlite3.SQLITE_CORRUPT: DAMAGED,
    sqlite3.SQLITE_NOTADB: DAMAGED,
    sqlite3.SQLITE_FORMAT: DAMAGED,
}
"""By primary result code: https://sqlite.org/rescode.html."""
_POSTGRES: Final = {
    "53100": DISK_FULL,
    "25006": READ_ONLY,
    "XX001": DAMAGED,
    "XX002": DAMAGED,
}
"""By SQLSTATE: PostgreSQL's documentation, appendix A."""
_OF_SYSTEM: Final = {
    errno.ENOSPC: DISK_FULL,
    errno.EDQUOT: DISK_FULL,
    errno.EROFS: READ_ONLY,
}
_WORDS: Final = {
    DISK_FULL: "the database cannot be written: its disk is full (ENOSPC)",
    READ_ONLY: "the database cannot be written: it is read-only",
    DAMAGED: "the database is damaged",
    MOVED: "the database's file was moved or deleted: nothing is written until it is back",
    CLAIM_LOST: "this hub has lost its claim on the database",
    UNCONFIRMED: "the database does not answer: this node does not know whether it is one",
    FENCED: "the other nodes took this one for dead: it ends",
}


def cause_of(error: BaseException) -> str:
    """One of the causes above, for what a driver or the system raised."""
    while True:
        if isinstance(error, sqlite3.Error):
            return _SQLITE.get((getattr(error, "sqlite_errorcode", None) or 0) & 0xFF, UNREACHABLE)
        state = getattr(error, "sqlstate", None)
        if state is not None:
            return _POSTGRES.get(str(state), UNREACHABLE)
        if isinstance(error, OSError) and error.errno in _OF_SYSTEM:
            return _OF_SYSTEM[error.errno]
        under = getattr(error, "orig", None) or error.__cause__
        if under is None:
            return UNREACHABLE
        error = under


def unavailable(cause: str, error: BaseException | None = None) -> Unavailable:
    """The error that a caller gets: code `unavailable`, with the cause as `reason`."""
    detail = _WORDS.get(cause)
    if detail is None:
        why = f": {type(error).__name__}" if error is not None else "; try again later"
        detail = f"the database does not answer{why}"
    refused = Unavailable("unavailable", detail)
    refused.more["reason"] = cause
    return refused


def because_of(error: BaseException) -> Unavailable:
    return unavailable(cause_of(error), error)
