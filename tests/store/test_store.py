"""The store's contract, on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from machinehub.errors import Conflict, NotFound, Unavailable
from machinehub.ids import Digest, MachineId, ProjectId
from machinehub.model import DEFAULT_PROJECT
from machinehub.settings import normalise_database_url
from machinehub.store.engine import open_engine
from machinehub.store.keys import KeyStore, hash_token
from machinehub.store.schema import migrate, newest_revision
from machinehub.store.store import Store, pack_files
from machinehub.store.tables import images, metadata

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from machinehub.model import Machine

pytestmark = pytest.mark.xdist_group("store")


@pytest_asyncio.fixture(loop_scope="session")
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = open_engine(normalise_database_url(database_url))
    await migrate(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
def store(engine: AsyncEngine) -> Store:
    return Store(engine)


async def deploy(
    store: Store,
    *,
    name: str = "m",
    digest: str = "d1",
    new_id: str = "Aaaaaa",
    activate: bool = True,
    now_ms: int = 1,
    project: ProjectId = DEFAULT_PROJECT,
) -> tuple[Machine, int, bool]:
    made = await store.deploy(
        new_id=MachineId(new_id),
        project=project,
        name=name,
        digest=Digest(digest),
        entry="m.ts",
        files=pack_files({"m.ts": "é\0'"}),
        message='it\'s "new"',
        activate=activate,
        now_ms=now_ms,
        image=b"\0image",
        engine="e1",
        definition=b'{"events":["A"]}',
    )
    assert made is not None
    return made.machine, made.version.number, made.created


async def test_a_new_database_has_the_tables_of_today(engine: AsyncEngine) -> None:
    def difference(connection: sa.Connection) -> list[Any]:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == newest_revision()
        return list(compare_metadata(context, metadata))

    async with engine.connect() as connection:
        assert await connection.run_sync(difference) == []


async def test_migrating_at_once_from_two_sides(database_url: str) -> None:
    engines = [open_engine(normalise_database_url(database_url)) for _ in range(3)]
    try:
        found = await asyncio.gather(*(migrate(engine) for engine in engines))
        assert sorted(revision or "" for revision in found) == [
            "",
            newest_revision(),
            newest_revision(),
        ]
    finally:
        for engine in engines:
            await engine.dispose()


async def test_versions_are_numbered_and_immutable(store: Store) -> None:
    machine, number, created = await deploy(store)
    assert (machine.id, machine.name, machine.active_version, number, created) == (
        "Aaaaaa",
        "m",
        1,
        1,
        True,
    )
    machine, number, created = await deploy(store, digest="d2", new_id="Bbbbbb")
    assert (machine.id, machine.active_version, number, created) == ("Aaaaaa", 2, 2, True)
    machine, number, created = await deploy(store, digest="d1")
    assert (machine.active_version, number, created) == (1, 1, False)
    version = await store.version(MachineId("Aaaaaa"), 1)
    assert (version.digest, version.engine, version.message, version.definition) == (
        "d1",
        "e1",
        'it\'s "new"',
        {"events": ["A"]},
    )
    assert await store.files(MachineId("Aaaaaa"), 1) == {"m.ts": "é\0'"}
    assert (await store.image(Digest("d1"))).image == b"\0image"
    assert [
        v.number for v in await store.version_list(MachineId("Aaaaaa"), before=None, limit=10)
    ] == [2, 1]
    assert [
        v.number for v in await store.version_list(MachineId("Aaaaaa"), before=2, limit=10)
    ] == [1]


async def test_a_version_may_wait_to_be_activated(store: Store) -> None:
    machine, _, _ = await deploy(store, activate=False)
    assert machine.active_version == 0
    assert (await store.activate(MachineId("Aaaaaa"), 1, now_ms=0)).active_version == 1
    with pytest.raises(NotFound):
        await store.activate(MachineId("Aaaaaa"), 2, now_ms=0)


async def test_many_deployments_of_one_name_at_once(store: Store) -> None:
    results = await asyncio.gather(
        *(deploy(store, digest=f"d{n}", new_id=f"Id{n:04}") for n in range(8)),
        return_exceptions=True,
    )
    done = [result for result in results if not isinstance(result, BaseException)]
    assert all(
        isinstance(result, Conflict) for result in results if isinstance(result, BaseException)
    )
    assert len({machine.id for machine, _, _ in done}) == 1
    assert sorted(number for _, number, _ in done) == list(range(1, len(done) + 1))


async def test_machines_are_found_by_id_and_by_name(store: Store) -> None:
    await deploy(store, name="one", new_id="Aaaaaa")
    await deploy(store, name="Bbbbbc", new_id="Bbbbbb", digest="d2")
    with pytest.raises(Conflict, match="is the id of another machine"):
        await deploy(store, name="Aaaaaa", new_id="Cccccc", digest="d3")
    with pytest.raises(Conflict, match="is the id of another machine"):
        await store.rename(MachineId("Bbbbbb"), "Aaaaaa")
    assert (await store.machine("one")).id == "Aaaaaa"
    assert (await store.machine("Aaaaaa")).name == "one"
    assert (await store.machine("Bbbbbb")).name == "Bbbbbc"
    for missing in ("", "two", "\0", "x" * 1000, "'; drop table machines; --", "\ud800"):
        with pytest.raises(NotFound):
            await store.machine(missing)
    assert [m.name for m in await store.machine_list(DEFAULT_PROJECT, after=None, limit=10)] == [
        "Bbbbbc",
        "one",
    ]
    assert [
        m.name for m in await store.machine_list(DEFAULT_PROJECT, after="Bbbbbc", limit=10)
    ] == ["one"]


async def test_renaming(store: Store) -> None:
    await deploy(store, name="one", new_id="Aaaaaa")
    await deploy(store, name="two", new_id="Bbbbbb", digest="d2")
    assert (await store.rename(MachineId("Aaaaaa"), "uno")).name == "uno"
    with pytest.raises(Conflict):
        await store.rename(MachineId("Aaaaaa"), "two")


async def test_deleting_takes_images_that_nobody_else_has(
    store: Store, engine: AsyncEngine
) -> None:
    await deploy(store, name="one", new_id="Aaaaaa", digest="shared")
    await deploy(store, name="one", new_id="Aaaaaa", digest="own")
    await deploy(store, name="two", new_id="Bbbbbb", digest="shared")
    await store.delete_machine(MachineId("Aaaaaa"))
    async with engine.connect() as connection:
        assert list((await connection.execute(sa.select(images.c.digest))).scalars()) == ["shared"]
    with pytest.raises(NotFound):
        await store.image(Digest("own"))
    with pytest.raises(NotFound):
        await store.machine("one")


async def test_tokens_are_kept_as_hashes(engine: AsyncEngine) -> None:
    store = KeyStore(engine)
    first = await store.add_token(name="ci", token="secret", now_ms=1)
    await store.add_token(name="", token="other", now_ms=2)
    assert set(await store.valid_tokens()) == {hash_token("secret"), hash_token("other")}
    assert (await store.revoke_token(first.id, now_ms=3)).revoked_at_ms == 3
    assert (await store.revoke_token(first.id, now_ms=9)).revoked_at_ms == 3
    assert set(await store.valid_tokens()) == {hash_token("other")}
    assert [(t.name, t.revoked_at_ms) for t in await store.token_list()] == [("ci", 3), ("", None)]
    with pytest.raises(NotFound):
        await store.revoke_token(99, now_ms=1)


async def test_names_are_a_projects_own(store: Store, engine: AsyncEngine) -> None:
    keys = KeyStore(engine)
    other = (await keys.add_project(ProjectId("Other1"), "other", now_ms=1)).id
    mine, *_ = await deploy(store, name="same", new_id="Aaaaaa")
    theirs, number, created = await deploy(store, name="same", new_id="Bbbbbb", project=other)
    assert (theirs.id, theirs.project, number, created) == ("Bbbbbb", other, 1, True)
    assert (await store.machine("same")).id == mine.id
    assert (await store.machine("same", project=other)).id == theirs.id
    assert (await store.machine(theirs.id, everywhere=True)).id == theirs.id
    for hidden, project in ((theirs.id, DEFAULT_PROJECT), (mine.id, other)):
        with pytest.raises(NotFound):
            await store.machine(hidden, project=project)
    assert [m.id for m in await store.machine_list(other, after=None, limit=9)] == [theirs.id]
    await store.rename(theirs.id, "renamed")
    with pytest.raises(Conflict):
        await keys.delete_project(other, now_ms=2)
    await store.delete_machine(theirs.id)
    token = await keys.add_token(name="t", token="secret", now_ms=1, project=other)
    await keys.delete_project(other, now_ms=3)
    with pytest.raises(NotFound):
        await deploy(store, name="late", new_id="Cccccc", project=other)
    assert await keys.valid_tokens() == {}
    assert [each.revoked_at_ms for each in await keys.token_list(other)] == [3]
    assert token.project == other
    with pytest.raises(Conflict):
        await keys.add_project(ProjectId("Third1"), "default", now_ms=1)


async def test_a_database_that_is_gone_is_unavailable(database_url: str) -> None:
    url = (
        "postgresql+asyncpg://nobody@127.0.0.1:1/none"
        if database_url.startswith("postgres")
        else "sqlite+aiosqlite:////proc/nowhere/hub.db"
    )
    from sqlalchemy.ext.asyncio import create_async_engine

    broken = create_async_engine(url)
    with pytest.raises(Unavailable):
        await Store(broken).ping()
    await broken.dispose()
