"""Opening a database: the engine with the right pragmas, and migrations under a lock.

Two hubs that start at once must not migrate at once: Postgres takes an advisory lock, SQLite a lock
on a file beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Connection

ADVISORY_LOCK: Final = 0x6D_68_75_62  # "mhub"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


def open_engine(url: str) -> AsyncEngine:
    """The engine for an async SQLAlchemy URL. SQLite: WAL, full sync, foreign keys on."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return create_async_engine(parsed, pool_size=8, max_overflow=8, pool_pre_ping=True)
    if parsed.database and parsed.database != ":memory:":
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_async_engine(parsed, connect_args={"timeout": 10})
    event.listen(engine.sync_engine, "connect", on_connect)
    return engine


def on_connect(connection: Any, _record: Any) -> None:
    """How every connection to SQLite is set up."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


async def migrate(engine: AsyncEngine) -> str | None:
    """Brings the schema to the newest revision; returns the revision it found before."""
    if engine.dialect.name == "sqlite":
        database = engine.url.database
        async with (
            _file_lock(Path(f"{database}.lock"))
            if database and database != ":memory:"
            else contextlib.nullcontext()
        ):
            async with engine.begin() as connection:
                return await connection.run_sync(_upgrade)
    async with engine.begin() as connection:
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        return await connection.run_sync(_upgrade)


def newest_revision() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def _upgrade(connection: Connection) -> str | None:
    before = MigrationContext.configure(connection).get_current_revision()
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    return before


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    return config


@contextlib.asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    with path.open("a") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield
