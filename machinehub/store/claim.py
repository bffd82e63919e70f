"""A database is one hub's: who has claimed it, and what happens when the claim is lost.

Two hubs on one database would each serve what they remember of a session. SQLite is claimed by a
lock on a file, Postgres by an advisory lock that one connection holds. When that connection breaks
(Postgres was restarted, say) nothing is written until the lock is held again.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Protocol

import asyncpg

from machinehub.errors import Unavailable
from machinehub.store.engine import connect_postgres
from machinehub.store.file import create_private
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import URL

log = logging.getLogger("machinehub.store")

HUB_LOCK: Final = 0x6D_68_75_63
"""The key of the advisory lock; the one before it is for migrations."""
NODE_LOCKS: Final = 0x6D_68_75_64
"""The class of the locks by which nodes see that one another's connections live."""
LOOK_S: Final = 0.5
"""How often it is looked whether the lock is still held."""
ANSWER_S: Final = 5.0
TRIES: Final = 10
"""At a start, `LOOK_S` apart: a server takes a moment to notice that a hub was killed."""
_KEEPALIVE: Final = {
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
"""Seconds, after which a server gives up a hub whose computer is gone."""
_HOLDER: Final = """
    SELECT activity.application_name, activity.client_addr::text, activity.pid,
           to_char(activity.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS')
      FROM pg_locks AS locks JOIN pg_stat_activity AS activity ON activity.pid = locks.pid
     WHERE locks.locktype = 'advisory' AND locks.granted AND locks.classid = 0 AND locks.objid = $1
       AND locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


class Claim(Protocol):
    """Exclusive use of a database by one hub: `take` comes before any write, `release` at the end.

    `is_held` is False before `take`, after `release`, and while the lock is lost.
    """

    async def take(self) -> None:
        """Raises `Unavailable`, which names whoever has it."""

    @property
    def is_held(self) -> bool: ...

    async def release(self) -> None: ...


class FileClaim:
    """The claim on a SQLite database: an flock(2) lock on the file `<database>.hub`, which the
    kernel releases when the hub's process ends.
    """

    def __init__(self, database: str) -> None:
        self._database = database
        self._file: IO[str] | None = None

    async def take(self) -> None:
        path = Path(f"{self._database}.hub")
        create_private(path)
        file = path.open("a")  # noqa: ASYNC230 - it stays open
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise Unavailable(
                "unavailable",
                f"another hub uses {self._database}: a SQLite database is one hub's",
            ) from None
        self._file = file

    @property
    def is_held(self) -> bool:
        return self._file is not None

    async def release(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    async def __aenter__(self) -> None:
        await self.take()

    async def __aexit__(self, *_: object) -> None:
        await self.release()


class PostgresClaim:
    """The claim on a Postgres database: a session-level advisory lock that one connection holds.

    It is lost the moment that the connection ends, which a task checks every `LOOK_S` seconds
    besides; the task then takes it again. `on_change` hears of both.
    Source: PostgreSQL's documentation, section 13.3.5 (advisory locks).
    """

    def __init__(self, url: URL, on_change: Callable[[bool], None]) -> None:
        self._url = url
        self._on_change = on_change
        self._connection: asyncpg.Connection[Any] | None = None
        self._tasks = Tasks()

    _advice = (
        "A database is one hub's, unless all of them have MACHINEHUB_NATS_URL, by which they reach "
        "one another (docs/cluster.md)"
    )

    async def take(self) -> None:
        for attempt in range(TRIES):
            holder = await self._try()
            if holder is None:
                self._tasks.spawn(self._watch())
                return
            if attempt < TRIES - 1:
                await asyncio.sleep(LOOK_S)
        raise Unavailable(
            "unavailable", f"another hub uses this database: {holder}. {self._advice}"
        )

    @property
    def is_held(self) -> bool:
        return self._connection is not None

    async def release(self) -> None:
        self._tasks.stop()
        await self._let_go()

    async def _try(self) -> str | None:
        """None when the lock is held now; else who holds it. Raises `Unavailable`."""
        name = f"machinehub on {socket.gethostname()}, process {os.getpid()}"
        try:
            connection = await connect_postgres(self._url, application_name=name[:63], **_KEEPALIVE)
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            raise Unavailable(
                "unavailable", f"the database does not answer: {error or type(error).__name__}"
            ) from error
        try:
            if await self._lock(connection):
                connection.add_termination_listener(self._ended)
                self._connection = connection
                return None
            row = await connection.fetchrow(_HOLDER, HUB_LOCK)
        except (OSError, TimeoutError, asyncpg.PostgresError) as error:
            raise Unavailable("unavailable", f"the database does not answer: {error}") from error
        finally:
            if self._connection is not connection:
                await _close(connection)
        if row is None:
            return "it has just ended"
        who, address, pid, since = row
        return (
            f"{who or 'unnamed'} at {address or 'this computer'}, since {since} UTC (backend {pid})"
        )

    async def _lock(self, connection: asyncpg.Connection[Any]) -> bool:
        return bool(await connection.fetchval("SELECT pg_try_advisory_lock($1)", HUB_LOCK))

    async def _watch(self) -> None:
        """Notices that the lock is gone, and takes it again."""
        while True:
            await asyncio.sleep(LOOK_S)
            if self._connection is not None:
                try:
                    await self._connection.fetchval("SELECT 1", timeout=ANSWER_S)
                    continue
                except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    await self._lost()
            try:
                holder = await self._try()
            except Unavailable:
                continue
            if holder is None:
                log.warning("the database is claimed again")
                self._on_change(True)
            else:
                log.error("another hub has taken the database: %s", holder)

    def _ended(self, connection: asyncpg.Connection[Any]) -> None:
        """The connection is closed, by whomever."""
        if connection is self._connection:
            self._tasks.spawn(self._lost())

    async def _lost(self) -> None:
        if self._connection is None:
            return
        log.error("the claim on the database is lost: the hub serves nothing meanwhile")
        gone, self._connection = self._connection, None
        self._on_change(False)
        await _close(gone)

    async def _let_go(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await _close(connection)


class SharedClaim(PostgresClaim):
    """The claim of one node among several: no hub that wants the database for itself may have it.
    That it is lost says nothing of what the node may do, which its fence decides
    (`store/nodes.py`); the others see it at once, since a connection ends with its process.
    """

    _advice = "That one has no MACHINEHUB_NATS_URL, and shares its database with nobody"

    def __init__(self, url: URL, number: int) -> None:
        super().__init__(url, lambda _held: None)
        self._number = number

    @property
    def is_held(self) -> bool:
        return True

    async def _lock(self, connection: asyncpg.Connection[Any]) -> bool:
        shared = "SELECT pg_try_advisory_lock_shared($1)"
        if not await connection.fetchval(shared, HUB_LOCK):
            return False
        # Its own connection from before may not have been noticed to be gone yet.
        own = "SELECT pg_try_advisory_lock($1, $2)"
        return bool(await connection.fetchval(own, _signed(NODE_LOCKS), self._number))


def _signed(number: int) -> int:
    """As Postgres takes 32 bits."""
    return number - 2**32 if number >= 2**31 else number


async def _close(connection: asyncpg.Connection[Any]) -> None:
    with contextlib.suppress(Exception):
        await connection.close(timeout=ANSWER_S)
