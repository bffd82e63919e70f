"""Opening a database: URLs become engines, SQLite with the right pragmas, Postgres with all that
libpq's URLs say.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import asyncpg
from sqlalchemy import event, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from machinehub.settings import BadSettings
from machinehub.store.trouble import because_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncConnection

POOL_CONNECTIONS: Final = 8
POOL_OVERFLOW: Final = 8
LOCK_WAIT_S: Final = 10
"""How long SQLite waits for another process that writes."""
CONNECT_S: Final = 10.0
"""How long connecting to Postgres may take, unless `connect_timeout` says otherwise."""
_FILES: Final = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
"""Parameters that name files: one that is missing would be reported without its name."""


def open_engine(url: str, **settings: str) -> AsyncEngine:
    """The engine for an async SQLAlchemy URL. Nothing is connected yet. `settings` are those of a
    Postgres server, by name. Raises `BadSettings`.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_async_engine(
            parsed,
            async_creator=lambda: connect_postgres(parsed, **settings),
            pool_size=POOL_CONNECTIONS,
            max_overflow=POOL_OVERFLOW,
            pool_pre_ping=True,
        )
    engine = create_async_engine(parsed, connect_args={"timeout": LOCK_WAIT_S})
    event.listen(engine.sync_engine, "connect", set_up_sqlite)
    return engine


def file_of(url: str) -> Path | None:
    """The file of a database that is one."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database)


def url_of(path: Path) -> str:
    """The SQLAlchemy URL of a SQLite database."""
    return f"sqlite+aiosqlite:///{quote(str(path))}"


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


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncIterator[AsyncEngine]:
    """The same for as long as the block lasts, for commands that look once. Raises
    `BadSettings`.
    """
    engine = open_engine(url)
    try:
        yield engine
    finally:
        await engine.dispose()


@contextlib.asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """One transaction of the control plane. Raises `Unavailable`, and `IntegrityError` as it is."""
    try:
        async with engine.begin() as connection:
            yield connection
    except IntegrityError:
        raise
    except (SQLAlchemyError, OSError) as error:
        raise because_of(error) from error


def set_up_sqlite(connection: Any, _record: Any = None) -> None:
    """How every connection to SQLite is set up: WAL, full sync, foreign keys on."""
    cursor = connection.cursor()
    for pragma in (
        "auto_vacuum=INCREMENTAL",  # of a database that is empty yet
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"busy_timeout={LOCK_WAIT_S * 1000}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


async def connect_postgres(url: URL, **settings: str) -> asyncpg.Connection[Any]:
    """One connection, with what the URL's query says as libpq understands it (`sslmode`,
    `sslrootcert`, `host` for a socket's folder, `application_name`, ...). `settings` are the
    server's own, by name.

    Raises `BadSettings` for what cannot be understood, and as `asyncpg.connect` does.
    Source: PostgreSQL's documentation, section 34.1.1 (connection strings).
    """
    query = dict(url.query)
    timeout = query.pop("connect_timeout", None)
    for name in _FILES & query.keys():
        if query[name] != "system" and not Path(str(query[name])).is_file():
            raise BadSettings(f"MACHINEHUB_DATABASE_URL: {name}: there is no file {query[name]}")
    plain = url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)
    try:
        timeout_s = float(str(timeout)) if timeout is not None else CONNECT_S
        return await asyncpg.connect(plain, timeout=timeout_s or None, server_settings=settings)
    except OSError:  # a certificate that is not trusted is a ValueError as well
        raise
    except (ValueError, asyncpg.exceptions.ClientConfigurationError) as error:
        raise BadSettings(f"MACHINEHUB_DATABASE_URL: {error}") from error
