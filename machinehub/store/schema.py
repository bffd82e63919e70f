"""The schema: migrations under a lock, and a refusal of what a newer hub has written.

Two hubs that start at once must not migrate at once: Postgres takes an advisory lock, SQLite a lock
on a file beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from machinehub.errors import Unavailable
from machinehub.store.backup import back_up
from machinehub.store.engine import database_file
from machinehub.store.file import check_log, create_database, create_private
from machinehub.store.tables import formats as formats_table
from sandbox.protocol import formats

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

log = logging.getLogger("machinehub.store")

MIGRATION_LOCK: Final = 0x6D_68_75_62  # "mhub"
_PACKAGED: Final = Path(__file__).parents[1] / "migrations"
_CHECKOUT: Final = Path(__file__).parents[2] / "migrations"
MIGRATIONS: Final = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
"""In a wheel they are part of the package, in a checkout they stand at the top."""
KNOWN_FORMATS: Final = {
    "image": formats.IMAGE,
    "checkpoint": formats.CHECKPOINT,
    "input": formats.INPUT,
    "outbox": formats.OUTBOX,
}
"""What this hub reads, and writes the newest of."""


async def migrate(engine: AsyncEngine, *, backup: bool = False) -> str | None:
    """Brings the schema to the newest revision; returns the revision that it found. With `backup` a
    SQLite database is copied before it is changed.

    Raises `Unavailable` for a database of a newer hub, which is left as it is.
    """
    async with contextlib.AsyncExitStack() as locks:
        if (file := database_file(engine)) is not None:
            await locks.enter_async_context(_file_lock(Path(f"{file.path}.lock")))
            create_database(file.path)
            if backup:
                await _back_up(file.path, await current_revision(engine))
        async with engine.connect() as connection:
            if engine.dialect.name == "sqlite":
                # Before the transaction, where it counts: a migration may replace a table.
                await connection.exec_driver_sql("PRAGMA foreign_keys = OFF")
                await connection.commit()
            else:
                await connection.execute(
                    sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK}
                )
            before = await connection.run_sync(_upgrade)
            await connection.commit()
            if engine.dialect.name == "sqlite":
                await connection.exec_driver_sql("PRAGMA foreign_keys = ON")
                await connection.commit()
            return before


async def _back_up(database: Path, revision: str | None) -> None:
    """Copies a database whose schema is about to change, to `<database>.schema-<revision>`."""
    if revision is None or revision == newest_revision():
        return
    check_is_known(revision)
    target = Path(f"{database}.schema-{revision}")
    if target.exists():
        log.info("%s is kept: it was copied by an upgrade before this one", target)
        return
    try:
        await asyncio.to_thread(back_up, database, target)
    except Unavailable as error:
        error.detail = (
            f"no copy could be made before the upgrade ({error.detail}); "
            "MACHINEHUB_BACKUP_BEFORE_UPGRADE=no does without"
        )
        raise
    log.warning("the database of schema %s was copied to %s before its upgrade", revision, target)


async def current_revision(engine: AsyncEngine) -> str | None:
    """The revision of the schema as it is; None for an empty database. Nothing is changed, and no
    file is made. Raises `Unavailable` for what is no database, or does not answer.
    """
    if (file := database_file(engine)) is not None and not file.path.exists():
        check_log(file.path)
        return None
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_revision)
    except sa.exc.SQLAlchemyError as error:
        raise Unavailable("unavailable", str(error).splitlines()[0]) from error


def newest_revision() -> str:
    """The revision that this hub brings databases to."""
    return max(_known_revisions())


def check_is_known(revision: str | None) -> None:
    """Raises `Unavailable` for the revision of a newer hub."""
    if revision is not None and revision not in _known_revisions():
        raise Unavailable(
            "unavailable",
            f"the database has schema {revision}, which this machinehub ({version('machinehub')}) "
            "does"
            f" not know ({newest_revision()} is its newest): a newer one has used it. Start that "
            "one,"
            " or restore a backup from before",
        )


def _known_revisions() -> set[str]:
    """A migration's file begins with its revision, which counts up (migrations/versions)."""
    return {path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py")}


def _upgrade(connection: Connection) -> str | None:
    before = _revision(connection)
    check_is_known(before)
    if before != newest_revision():
        _run_migrations(connection)
    _note_formats(connection)
    return before


def _note_formats(connection: Connection) -> None:
    """Notes which versions of what is kept this hub writes. Raises `Unavailable` where there are
    newer ones.
    """
    noted = connection.execute(sa.select(formats_table.c.name, formats_table.c.version))
    there = {row.name: row.version for row in noted}
    if newer := {name: v for name, v in there.items() if v > KNOWN_FORMATS.get(name, 0)}:
        found = ", ".join(f"{name} {number}" for name, number in sorted(newer.items()))
        raise Unavailable(
            "unavailable",
            f"the database holds formats that this machinehub ({version('machinehub')}) does not "
            "know"
            f" ({found}): a newer one has used it. Start that one, or restore a backup from before",
        )
    for name, number in KNOWN_FORMATS.items():
        if there.get(name) != number:
            connection.execute(formats_table.delete().where(formats_table.c.name == name))
            connection.execute(formats_table.insert().values(name=name, version=number))


def _revision(connection: Connection) -> str | None:
    """What Alembic noted; None in an empty database."""
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    noted: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return noted


def _run_migrations(connection: Connection) -> None:
    # To import Alembic takes longer than everything else about a schema that is the newest.
    from alembic import command  # noqa: PLC0415
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextlib.asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    create_private(path)
    with path.open("a") as file:
        await asyncio.to_thread(fcntl.flock, file, fcntl.LOCK_EX)
        yield
