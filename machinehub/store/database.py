"""One way to run a transaction of the session store, on either database.

Statements are SQLAlchemy's, compiled once for each kind of database. On Postgres they run over
asyncpg; on SQLite in a thread of their own (small ones in the event loop's thread while the disk is
fast), straight on the standard driver: this is the path of
every event, where an engine's bookkeeping costs more than SQLite does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from machinehub.clock import Stopwatch
from machinehub.store.claim import FileClaim, PostgresClaim, SharedClaim
from machinehub.store.engine import database_file, set_up_sqlite
from machinehub.store.file import LOCK_WAIT_S
from machinehub.store.trouble import (
    CLAIM_LOST,
    DAMAGED,
    UNREACHABLE,
    because_of,
    cause_of,
    unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import AsyncEngine

    from machinehub.store.claim import Claim
    from machinehub.store.file import DatabaseFile

log = logging.getLogger("machinehub.store")

T = TypeVar("T")
ANSWER_S: Final = 10.0
"""A Postgres that says nothing for so long is taken for unreachable."""
FAST_COMMIT_US: Final = 1_000
"""A commit above this is a slow one. Those of a solid-state disk take 100 to 300."""
FAST_COMMITS: Final = 32
"""After so many commits in a row that were fast, small ones are made in the event loop's thread."""


SERIALIZATION_FAILURE: Final = "40001"
"""SQLSTATE: another transaction changed what this one was about to."""
TRIES: Final = 5


class AlreadyWritten(Exception):
    """The transaction would have written what is there already; nothing of it was written."""


class Overtaken(Exception):
    """Another transaction changed what this one was about to; nothing of it was written."""


class Statement:
    """A statement whose parameters are given by name. Those with a value of their own keep it."""

    def __init__(self, statement: sa.sql.base.Executable) -> None:
        self._statement = statement
        self._compiled: dict[
            str, tuple[str, dict[str, Any], Callable[[dict[str, Any]], tuple[Any, ...]]]
        ] = {}

    def bind(
        self, dialect: sa.Dialect, rows: Sequence[dict[str, Any]]
    ) -> tuple[str, list[tuple[Any, ...]]]:
        """The SQL, and each row's parameters in their order."""
        known = self._compiled.get(dialect.name)
        if known is None:
            compiled = self._statement.compile(dialect=dialect)  # type: ignore[attr-defined]
            names = compiled.positiontup
            own = {
                name: compiled.params[name] for name in names if compiled.params[name] is not None
            }
            order: Callable[[dict[str, Any]], tuple[Any, ...]] = (
                itemgetter(*names)
                if len(names) > 1
                else lambda row: tuple(row[name] for name in names)
            )
            known = self._compiled[dialect.name] = (str(compiled), own, order)
        sql, own, order = known
        return sql, [order({**own, **row} if own else row) for row in rows]


class Connection(Protocol):
    """What a transaction can do."""

    def run(self, statement: Statement, rows: Sequence[dict[str, Any]]) -> None:
        """Once for each row."""

    def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        """The rows, as tuples in the order of the columns."""


class _SqliteConnection:
    def __init__(self, file: DatabaseFile, dialect: sa.Dialect) -> None:
        self._dialect = dialect
        self.raw = sqlite3.connect(
            file.to_open(),
            uri=True,
            timeout=LOCK_WAIT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        set_up_sqlite(self.raw)

    def run(self, statement: Statement, rows: Sequence[dict[str, Any]]) -> None:
        self.raw.executemany(*statement.bind(self._dialect, rows))

    def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        sql, (parameters,) = statement.bind(self._dialect, [values])
        return self.raw.execute(sql, parameters).fetchall()


class _PostgresConnection:
    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def run(self, statement: Statement, rows: Sequence[dict[str, Any]]) -> None:
        self._connection.exec_driver_sql(*statement.bind(self._connection.dialect, rows))

    def fetch(self, statement: Statement, **values: Any) -> list[Any]:
        sql, (parameters,) = statement.bind(self._connection.dialect, [values])
        return list(self._connection.exec_driver_sql(sql, parameters).fetchall())


class _SqliteThread:
    """One connection, and the thread that it is used in.

    To hand a transaction to a thread and its result back costs a third of a lone event, more than
    the transaction itself. So a small one is made where it is asked for, in the event loop's
    thread, while the disk has been fast: one slow commit, which the loop has then waited for, sends
    the next ones to the thread again.
    """

    def __init__(self, file: DatabaseFile, dialect: sa.Dialect, *, name: str, begin: str) -> None:
        self._file = file
        self._dialect = dialect
        self._begin = begin
        self._executor = ThreadPoolExecutor(1, name)
        self._connection: _SqliteConnection | None = None
        self._queued = 0
        self._busy = threading.Lock()
        self._fast_commits = 0
        self._waits_for_locks = True

    async def run(self, work: Callable[[Connection], T], *, small: bool = False) -> T:
        """Runs `work` in a transaction; `small` says that it writes a few rows only."""
        may = small and not self._queued and self._fast_commits >= FAST_COMMITS
        # Somebody who asked for a transaction may have gone away while the thread is still at it.
        if may and self._busy.acquire(blocking=False):
            try:
                return self._transaction(work, wait=False)
            except sqlite3.OperationalError as error:
                # Whoever has the lock may need the event loop to release it. Nothing was written.
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
            finally:
                self._busy.release()
        asked = asyncio.get_running_loop().run_in_executor(self._executor, self._in_thread, work)
        self._queued += 1
        asked.add_done_callback(self._answered)
        return await asked

    def _answered(self, _: asyncio.Future[Any]) -> None:
        self._queued -= 1

    def _in_thread(self, work: Callable[[Connection], T]) -> T:
        with self._busy:
            return self._transaction(work, wait=True)

    def _transaction(self, work: Callable[[Connection], T], *, wait: bool) -> T:
        if self._connection is None:
            self._connection = _SqliteConnection(self._file, self._dialect)
        raw = self._connection.raw
        if wait != self._waits_for_locks:
            raw.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_S * 1000 if wait else 0}")
            self._waits_for_locks = wait
        raw.execute(self._begin)
        try:
            result = work(self._connection)
            took = Stopwatch()
            raw.execute("COMMIT")
            self._file.keep_log()
            self._fast_commits = self._fast_commits + 1 if took.us < FAST_COMMIT_US else 0
        except BaseException:
            with contextlib.suppress(sqlite3.Error):  # a full disk has rolled back by itself
                raw.execute("ROLLBACK")
            raise
        return result

    def close(self) -> None:
        self._executor.shutdown(wait=True)
        if self._connection is not None:
            self._connection.raw.close()


class Database:
    """Runs transactions of the session store on SQLite or Postgres.

    On SQLite, writes and reads each have one connection in a thread of its own, and run one at a
    time. On Postgres they share a connection pool, and `read` uses REPEATABLE READ.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # A session is loaded by several statements, which must see one and the same moment.
        self._snapshots = (
            engine
            if engine.dialect.name == "sqlite"
            else engine.execution_options(isolation_level="REPEATABLE READ")
        )
        self.damaged = False
        """Whether something of it could not be read for what it is. That does not pass by itself.
        """
        self._file = database_file(engine)
        self._claim: Claim | None = None
        self._check_fence: Callable[[Connection], None] | None = None
        self._writer: _SqliteThread | None = None
        self._reader: _SqliteThread | None = None
        if (file := self._file) is not None:
            self._writer = _SqliteThread(
                file, engine.dialect, name="journal", begin="BEGIN IMMEDIATE"
            )
            self._reader = _SqliteThread(file, engine.dialect, name="reader", begin="BEGIN")

    async def write(self, work: Callable[[Connection], T], *, small: bool = False) -> T:
        """Runs `work` in a transaction; `small` says that it writes a few rows only.

        Raises `AlreadyWritten`, and `Unavailable` when it cannot be known to have been committed.
        """
        self._check_claim()
        return await self._run(self._fenced(work), self._writer, self._engine, small=small)

    async def write_as_of_one_moment(self, work: Callable[[Connection], T]) -> T:
        """`write`, in which everything that is read is of one moment, as in `read`."""
        for _ in range(TRIES):
            self._check_claim()
            with contextlib.suppress(Overtaken):
                return await self._run(self._fenced(work), self._writer, self._snapshots)
        raise unavailable(UNREACHABLE)

    async def write_unfenced(self, work: Callable[[Connection], T]) -> T:
        """`write`, also for a node that may not write any more."""
        return await self._run(work, self._writer, self._engine)

    def fence_by(self, check: Callable[[Connection], None]) -> None:
        """From now on every `write` begins with `check`, which raises `Unavailable` when this node
        may not write any more.
        """
        self._check_fence = check

    def _fenced(self, work: Callable[[Connection], T]) -> Callable[[Connection], T]:
        check = self._check_fence
        if check is None:
            return work

        def behind_the_fence(connection: Connection) -> T:
            check(connection)
            return work(connection)

        return behind_the_fence

    async def read(self, work: Callable[[Connection], T]) -> T:
        """The same for work that only reads."""
        self._check_claim()
        return await self._run(work, self._reader, self._snapshots)

    def _check_claim(self) -> None:
        if self._claim is not None and not self._claim.is_held:
            raise unavailable(CLAIM_LOST)
        self.check_file()

    async def claim(self, on_change: Callable[[bool], None] | None = None) -> None:
        """From now on the database is this hub's alone, until `close`. `on_change` hears when that
        is lost, and when it is so again. Raises `Unavailable` while another has it.
        """
        self._claim = (
            FileClaim(str(self._file.path))
            if self._file is not None
            else PostgresClaim(self._engine.url, on_change or (lambda _held: None))
        )
        await self._claim.take()

    async def share(self, lock: int) -> None:
        """The same with other nodes, which see by `lock` that this one's connection lives. Only
        Postgres can be shared.
        """
        self._claim = SharedClaim(self._engine.url, lock)
        await self._claim.take()

    @property
    def has_claim(self) -> bool:
        return self._claim is None or self._claim.is_held

    @property
    def path(self) -> Path | None:
        """The file of a database that is one."""
        return self._file.path if self._file is not None else None

    @property
    def folder(self) -> Path | None:
        return self.path.parent if self.path is not None else None

    def check_file(self) -> None:
        """Raises `Unavailable` when the file was taken away: what is written goes nowhere."""
        if self._file is not None:
            self._file.check()

    async def close(self) -> None:
        if self._claim is not None:
            await self._claim.release()
        if self._file is not None:
            self._file.forget_log()
        for thread in (self._writer, self._reader):
            if thread is not None:
                await asyncio.to_thread(thread.close)

    async def _run(
        self,
        work: Callable[[Connection], T],
        thread: _SqliteThread | None,
        engine: AsyncEngine,
        *,
        small: bool = False,
    ) -> T:
        try:
            if thread is not None:
                return await thread.run(work, small=small)
            async with asyncio.timeout(ANSWER_S), engine.begin() as connection:
                return await connection.run_sync(lambda plain: work(_PostgresConnection(plain)))
        except (IntegrityError, sqlite3.IntegrityError) as error:
            raise AlreadyWritten(str(error)) from error
        except (msgspec.MsgspecError, ValueError) as error:  # a row that is none of ours
            log.error("a row of the database cannot be read: %s", error)
            self.damaged = True
            raise unavailable(DAMAGED) from error
        except (SQLAlchemyError, sqlite3.Error, OSError, TimeoutError) as error:
            if getattr(getattr(error, "orig", None), "sqlstate", None) == SERIALIZATION_FAILURE:
                raise Overtaken(str(error)) from error
            self.damaged = self.damaged or cause_of(error) == DAMAGED
            raise because_of(error) from error
