"""Opening a database: URLs become engines, SQLite with the right pragmas, Postgres with all that
libpq's URLs say.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import asyncpg
from sqlalchemy import event, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from machinehub.settings import BadSettings
from machinehub.store.file import LOCK_WAIT_S, DatabaseFile
from machinehub.store.trouble import because_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncConnection

POOL_CONNECTIONS: Final = 8
POOL_OVERFLOW: Final = 8
CONNECT_S: Final = 10.0
"""How long connecting to Postgres may take, unless `connect_timeout` says otherwise."""
_FILE: Final = "machinehub_file"
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
    file = DatabaseFile(parsed.database or "")
    engine = create_async_engine(
        parsed,
        connect_args={"timeout": LOCK_WAIT_S, "uri": True},
        execution_options={_FILE: file},
    )

    def open_file(_dialect: Any, _record: Any, arguments: list[Any], _named: Any) -> None:
        arguments[0] = file.to_open()

    event.listen(engine.sync_engine, "do_connect", open_file)
    event.listen(engine.sync_engine, "connect", set_up_sqlite)
    event.listen(engine.sync_engine, "checkout", lambda *_: file.check())
    return engine


def database_file(engine: AsyncEngine) -> DatabaseFile | None:
    """The file that an engine of `open_engine` works on; None for Postgres."""
    file: DatabaseFile | None = engine.get_execution_options().get(_FILE)
    return file


def file_of(url: str) -> Path | None:
    """The file of a database that is one."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return None
    return Path(parsed.database)


def url_of(path: Path) -> str:
    """The SQLAlchemy URL of a SQLite database."""
    return f"sqlite+aiosqlite:///{quote(str(path))}"


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
