"""One way to run a transaction, on either database.

What a transaction does is a function of a plain SQLAlchemy connection. On Postgres it runs over asyncpg; on SQLite in one
thread of its own with the standard driver, since a commit for many sessions must not pay a change of threads for every statement.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, InterfaceError, SQLAlchemyError

from machinehub.errors import Unavailable
from machinehub.store.migrate import on_connect

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")
ANSWER_S: Final = 30.0
"""A Postgres that says nothing for so long is taken for unreachable."""


class Taken(Exception):
    """The transaction would have written what is there already; nothing of it was written."""


class Database:
    """`write` has one transaction at a time on SQLite, which could not do more; `read` sees what was committed."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._sync: sa.Engine | None = None
        self._writer = self._reader = None
        if engine.dialect.name == "sqlite":
            self._sync = sa.create_engine(engine.url.set(drivername="sqlite"), pool_size=2, connect_args={"timeout": 10, "check_same_thread": False})
            sa.event.listen(self._sync, "connect", on_connect)
            self._writer = ThreadPoolExecutor(1, "journal")
            self._reader = ThreadPoolExecutor(1, "reader")

    async def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in a transaction. Raises `Taken`, and `Unavailable` when it cannot be known to have been committed."""
        return await self._run(work, self._writer)

    async def read(self, work: Callable[[sa.Connection], T]) -> T:
        return await self._run(work, self._reader)

    async def close(self) -> None:
        if self._sync is not None:
            for executor in (self._writer, self._reader):
                assert executor is not None
                executor.shutdown(wait=True)
            self._sync.dispose()

    async def _run(self, work: Callable[[sa.Connection], T], executor: ThreadPoolExecutor | None) -> T:
        try:
            if executor is not None:
                return await asyncio.get_running_loop().run_in_executor(executor, self._in_thread, work)
            async with asyncio.timeout(ANSWER_S), self._engine.begin() as connection:
                return await connection.run_sync(work)
        except IntegrityError as error:
            raise Taken(str(error.orig)) from error
        except (SQLAlchemyError, InterfaceError, OSError, TimeoutError) as error:
            raise Unavailable("unavailable", f"the database does not answer: {type(error).__name__}") from error

    def _in_thread(self, work: Callable[[sa.Connection], T]) -> T:
        assert self._sync is not None
        with self._sync.begin() as connection:
            return work(connection)
