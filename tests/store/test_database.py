"""Where a small transaction on SQLite is made: in the event loop's thread while the disk is fast."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from typing import TYPE_CHECKING, Any

import pytest_asyncio
import sqlalchemy as sa

from machinehub.settings import normalise_database_url
from machinehub.store import database
from machinehub.store.database import FAST_COMMITS, Connection, Database, Statement
from machinehub.store.engine import open_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import pytest

ADD = Statement(sa.text("INSERT INTO numbers VALUES (:number)"))
COUNT = Statement(sa.text("SELECT count(*) FROM numbers"))


@pytest_asyncio.fixture(loop_scope="session")
async def numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    monkeypatch.setattr(database, "FAST_COMMIT_US", 10**9)  # any disk will do
    path = tmp_path / "hub.db"
    plain = sqlite3.connect(path)
    plain.execute("CREATE TABLE numbers (number INTEGER)")
    plain.close()
    engine = open_engine(normalise_database_url(f"sqlite:///{path}"))
    made = Database(engine)
    yield made
    await made.close()
    await engine.dispose()


async def add(numbers: Database, *, small: bool = True) -> bool:
    """Adds a number; whether that was done in the event loop's thread."""

    def work(connection: Connection) -> int:
        connection.run(ADD, [{"number": 1}])
        return threading.get_ident()

    return await numbers.write(work, small=small) == threading.get_ident()


async def count(numbers: Database) -> int:
    rows: list[Any] = await numbers.read(lambda connection: connection.fetch(COUNT))
    return int(rows[0][0])


async def test_small_ones_are_made_at_once_after_so_many_fast_commits(numbers: Database) -> None:
    assert [await add(numbers) for _ in range(FAST_COMMITS)] == [False] * FAST_COMMITS
    assert await add(numbers)
    assert not await add(numbers, small=False)
    assert await add(numbers)
    assert await count(numbers) == FAST_COMMITS + 3


async def test_a_slow_commit_sends_them_to_the_thread_again(
    numbers: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(FAST_COMMITS):
        await add(numbers)
    monkeypatch.setattr(database, "FAST_COMMIT_US", 0)
    assert await add(numbers)  # it finds out
    assert not await add(numbers)
    monkeypatch.setattr(database, "FAST_COMMIT_US", 10**9)
    assert [await add(numbers) for _ in range(FAST_COMMITS + 1)][-2:] == [False, True]


async def test_a_lock_that_somebody_else_has_is_waited_for_in_the_thread(
    numbers: Database, tmp_path: Path
) -> None:
    """Whoever has it may need the event loop to let go of it."""
    for _ in range(FAST_COMMITS):
        await add(numbers)
    other = sqlite3.connect(tmp_path / "hub.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    adding = asyncio.create_task(add(numbers))
    await asyncio.sleep(0)  # it finds the lock taken, and the loop goes on
    assert not adding.done()
    other.execute("COMMIT")
    other.close()
    assert await adding is False
    assert await add(numbers)
    assert await count(numbers) == FAST_COMMITS + 2


async def test_what_is_under_way_in_the_thread_is_not_disturbed(numbers: Database) -> None:
    for _ in range(FAST_COMMITS):
        await add(numbers)
    may_end = threading.Event()

    def slow(connection: Connection) -> None:
        connection.run(ADD, [{"number": 2}])
        may_end.wait()

    writing = asyncio.create_task(numbers.write(slow))
    await asyncio.sleep(0)
    adding = asyncio.create_task(add(numbers))
    await asyncio.sleep(0)
    may_end.set()
    await writing
    assert await adding is False
    assert await count(numbers) == FAST_COMMITS + 2
