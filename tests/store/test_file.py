"""A database's file that is moved, deleted or exchanged: what was acknowledged is not lost by it."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import sqlalchemy as sa

from machinehub.errors import Unavailable
from machinehub.store.database import Connection, Database, Statement
from machinehub.store.engine import open_engine, opened, url_of
from machinehub.store.file import create_database, create_private
from machinehub.store.schema import current_revision, migrate, newest_revision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from sqlalchemy.ext.asyncio import AsyncEngine

CREATE = Statement(sa.text("CREATE TABLE numbers (number INTEGER)"))
ADD = Statement(sa.text("INSERT INTO numbers VALUES (:number)"))
ALL = sa.text("SELECT number FROM numbers")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a folder?" / "hub#1%20.db"


@pytest_asyncio.fixture(loop_scope="session")
async def engine(path: Path) -> AsyncIterator[AsyncEngine]:
    create_database(path)
    made = open_engine(url_of(path))
    yield made
    await made.dispose()


@pytest_asyncio.fixture(loop_scope="session")
async def database(engine: AsyncEngine) -> AsyncIterator[Database]:
    made = Database(engine)
    made.check_file()
    await made.write(lambda connection: connection.run(CREATE, [{}]))
    yield made
    await made.close()


async def add(database: Database, number: int) -> None:
    def work(connection: Connection) -> None:
        connection.run(ADD, [{"number": number}])

    await database.write(work)


async def moved_away(path: Path, database: Database) -> Path:
    """Where the file is, with the newest commit in its log alone."""
    await add(database, 1)
    return path.rename(path.with_name("moved.db"))


async def numbers_of(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as connection:
        return [row[0] for row in await connection.execute(ALL)]


async def test_a_connection_opened_while_the_file_is_away_makes_no_new_one(
    path: Path, engine: AsyncEngine, database: Database
) -> None:
    """An empty file in its place would make SQLite delete the log, and the newest commits."""
    aside = await moved_away(path, database)
    for _ in range(2):
        with pytest.raises(Unavailable, match="moved or deleted"):
            await numbers_of(engine)
        with pytest.raises(Unavailable, match="moved or deleted"):
            await add(database, 2)
    assert not path.exists()
    aside.rename(path)
    assert await numbers_of(engine) == [1]
    await add(database, 2)
    async with contextlib.AsyncExitStack() as stack:  # connections that were not open before
        for _ in range(3):
            connection = await stack.enter_async_context(engine.connect())
            assert (await connection.execute(ALL)).all() == [(1,), (2,)]


async def test_a_log_that_was_taken_away_is_missed(
    path: Path, engine: AsyncEngine, database: Database
) -> None:
    """The newest commits stand in it: with the database alone nothing is whole again."""
    await add(database, 1)
    aside = path.with_name("aside")
    aside.mkdir()
    left = path.with_name(f"{path.name}-wal")
    for each in (path, left):
        each.rename(aside / each.name)
    for _ in range(2):
        with pytest.raises(Unavailable, match="moved or deleted"):
            await add(database, 2)
        if not path.exists():
            (aside / path.name).rename(path)
    (aside / left.name).rename(left)
    await add(database, 2)
    assert await numbers_of(engine) == [1, 2]
    left.unlink()
    with pytest.raises(Unavailable, match="moved or deleted"):
        await add(database, 3)
    await database.close()
    await engine.dispose()  # with the last connection everything comes into the database
    async with opened(url_of(path)) as again:
        assert await numbers_of(again) == [1, 2]


async def test_a_file_that_took_the_name_does_not_get_the_log(
    path: Path, engine: AsyncEngine, database: Database
) -> None:
    """Nothing in a log says whose it is: SQLite would write it into the other one."""
    aside = await moved_away(path, database)
    with contextlib.closing(sqlite3.connect(aside.with_name("other.db"))) as other:
        other.execute("CREATE TABLE other (number INTEGER)")
    aside.with_name("other.db").rename(path)
    with pytest.raises(Unavailable, match="moved or deleted"):
        await add(database, 2)
    async with opened(url_of(path)) as another:
        with pytest.raises(Unavailable) as refused:
            await current_revision(another)
        assert "holds what was written last" in refused.value.detail
    aside.rename(path)
    await add(database, 2)
    async with opened(url_of(path)) as another:
        assert await numbers_of(another) == [1, 2]


async def test_a_link_to_a_file_that_is_made_later(tmp_path: Path) -> None:
    link, volume = tmp_path / "hub.db", tmp_path / "volume"
    link.symlink_to(volume / "real.db")
    async with opened(url_of(link)) as engine:
        await migrate(engine)
        assert await current_revision(engine) == newest_revision()
    assert (volume / "real.db").stat().st_size


async def test_another_file_in_its_place_is_not_opened(
    path: Path, engine: AsyncEngine, database: Database
) -> None:
    aside = await moved_away(path, database)
    create_private(path)
    with pytest.raises(Unavailable, match="moved or deleted"):
        await numbers_of(engine)
    assert path.stat().st_size == 0
    aside.rename(path)
    assert await numbers_of(engine) == [1]


async def test_no_database_is_made_beside_the_log_of_one(path: Path) -> None:
    create_database(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE numbers (number INTEGER)")
        path.rename(path.with_name("moved.db"))
        with pytest.raises(Unavailable) as refused:
            create_database(path)
        assert "put that one back" in refused.value.detail
        path.touch()
        async with opened(url_of(path)) as engine:
            with pytest.raises(Unavailable, match="moved or deleted"):
                await current_revision(engine)
        path.unlink()
        assert refused.value.more["reason"] == "moved"
        assert not path.exists()
        path.with_name("moved.db").rename(path)
    create_database(path)
    assert path.stat().st_size > 0


async def test_a_file_that_was_never_there_is_not_made_by_looking(tmp_path: Path) -> None:
    engine = open_engine(url_of(tmp_path / "none.db"))
    with pytest.raises(sa.exc.OperationalError, match="unable to open"):
        await numbers_of(engine)
    await engine.dispose()
    assert not (tmp_path / "none.db").exists()
