"""The database of the control plane: machines, versions, images and engines.

It uses SQLAlchemy Core, with the same statements on SQLite and Postgres. It numbers the versions of
a machine and resolves names. An image is stored under the digest of its content, so deploying the
same content again stores no second image. The tables of sessions are in `sessions.py`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa
import zstandard
from sqlalchemy.exc import IntegrityError

from machinehub.errors import Conflict, NotFound, Unavailable
from machinehub.model import DEFAULT_PROJECT, Image, Machine, Version
from machinehub.store.calendar import forget_calendar, set_calendar
from machinehub.store.engine import transaction
from machinehub.store.prune import drop_images, prune_versions
from machinehub.store.tables import engines, images, machines, projects, versions

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from machinehub.ids import Digest, MachineId, ProjectId

_TRIES: Final = 5
"""How often a deployment is tried again when another one took its version number or its machine's
name.
"""


class Deployment(NamedTuple):
    """A version that was stored."""

    machine: Machine
    version: Version
    created: bool
    """Whether the version is new."""


class Store:
    """The tables of machines, versions, images and engines.

    Every query raises `Unavailable` when the database does not answer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def close(self) -> None:
        await self._engine.dispose()

    def _transaction(self) -> contextlib.AbstractAsyncContextManager[AsyncConnection]:
        return transaction(self._engine)

    async def ping(self) -> None:
        """Raises `Unavailable` when the database does not answer."""
        async with self._transaction() as connection:
            await connection.execute(sa.select(1))

    # --- machines ---------------------------------------------------------------------------------

    async def machine(
        self,
        id_or_name: str,
        *,
        project: ProjectId = DEFAULT_PROJECT,
        everywhere: bool = False,
    ) -> Machine:
        """By id, else by name, in one project; with `everywhere` an id may be of any. Raises
        `NotFound`.
        """
        async with self._transaction() as connection:
            return await _machine(connection, id_or_name, project, everywhere=everywhere)

    async def machine_list(
        self, project: ProjectId, *, after: str | None, limit: int
    ) -> list[Machine]:
        """A project's, by name, from behind the name `after`."""
        mine = machines.c.project_id == project
        query = sa.select(machines).where(mine).order_by(machines.c.name).limit(limit)
        if after is not None:
            query = query.where(machines.c.name > after)
        async with self._transaction() as connection:
            return [_to_machine(row) for row in (await connection.execute(query)).mappings()]

    async def rename(self, machine_id: MachineId, name: str) -> Machine:
        """Raises `Conflict` when another machine has the name."""
        try:
            async with self._transaction() as connection:
                await _check_is_no_id(connection, name, of=machine_id)
                await connection.execute(
                    machines.update().where(machines.c.id == machine_id).values(name=name)
                )
                return await _machine_of_id(connection, machine_id)
        except IntegrityError:
            raise Conflict("name_taken", f"there is a machine named {name!r} already") from None

    async def set_private(self, machine_id: MachineId, private: bool) -> Machine:
        """Raises `NotFound`."""
        async with self._transaction() as connection:
            await _change(connection, machine_id, private=private)
            return await _machine_of_id(connection, machine_id)

    async def delete_machine(self, machine_id: MachineId) -> None:
        """Deletes the machine, its versions, and images that nobody else uses."""
        async with self._transaction() as connection:
            mine = set(
                (
                    await connection.execute(
                        sa.select(versions.c.digest).where(versions.c.machine_id == machine_id)
                    )
                ).scalars()
            )
            await forget_calendar(connection, machine_id)
            await connection.execute(versions.delete().where(versions.c.machine_id == machine_id))
            await connection.execute(machines.delete().where(machines.c.id == machine_id))
        async with self._transaction() as connection:
            await drop_images(connection, mine)

    # --- versions ---------------------------------------------------------------------------------

    async def definition(self, digest: Digest, project: ProjectId) -> dict[str, Any] | None:
        """The definition of content that this project built before; None where it did not. What
        others built is built again: how long a deployment takes tells nobody about theirs.
        """
        known = (
            sa.select(images.c.definition)
            .join(versions, versions.c.digest == images.c.digest)
            .join(machines, machines.c.id == versions.c.machine_id)
            .where(images.c.digest == digest, machines.c.project_id == project)
            .limit(1)
        )
        async with self._transaction() as connection:
            found = (await connection.execute(known)).scalar()
        return None if found is None else msgspec.json.decode(found)

    async def deploy(
        self,
        *,
        new_id: MachineId,
        project: ProjectId,
        name: str,
        digest: Digest,
        entry: str,
        files: bytes,
        message: str,
        activate: bool,
        now_ms: int,
        image: bytes | None,
        engine: str,
        definition: bytes | None,
        template: str = "",
        private: bool | None = None,
        private_when_new: bool = False,
    ) -> Deployment | None:
        """Adds a version to the machine of this name, creating the machine with `new_id` if there
        is none; with `activate`, new sessions get the version. `files` comes from `pack_files`,
        `image` is zstd-compressed (against `template`), `definition` is JSON; both are stored if
        there is no such image. `private` is what the machine is from now on, None for what it was;
        one that is new is `private_when_new` then.

        Returns None, having stored nothing, if the database has no image `digest` and none is
        given. Raises `Conflict` if the name is a machine's id, or others kept deploying first.
        """
        stored = None
        if image is not None:
            stored = {"digest": digest, "engine": engine, "image": image, "definition": definition}
            stored["template"] = template or None
        uploaded = {"entry": entry, "files": files, "message": message}
        row = {"digest": digest, "created_at_ms": now_ms, **uploaded}
        for attempt in range(_TRIES):
            try:
                async with self._transaction() as connection:
                    if not await _has_image(connection, digest):
                        if stored is None:
                            return None
                        await connection.execute(images.insert().values(stored))
                    machine_id = await _machine_named(connection, project, name, new_id, now_ms)
                    is_new = machine_id == new_id
                    hidden = private_when_new if private is None and is_new else private
                    number, created = await _numbered(connection, row | {"machine_id": machine_id})
                    if activate:
                        await _go_live(connection, machine_id, number, now_ms)
                    if hidden is not None and (activate or is_new):
                        await _change(connection, machine_id, private=hidden)
                    newest = _versions(machine_id, before=number + 1, limit=1)
                    version = (await connection.execute(newest)).mappings().one()
                    machine = await _machine_of_id(connection, machine_id)
                    return Deployment(machine, _to_version(version), created)
            except IntegrityError:
                if attempt == _TRIES - 1:
                    raise Conflict(
                        "deploy_conflict",
                        "other deployments of this name kept coming first; try again",
                    ) from None
        raise AssertionError("unreachable")

    async def version(self, machine_id: MachineId, number: int) -> Version:
        """Raises `NotFound`."""
        found = await self.version_list(machine_id, before=number + 1, limit=1)
        if not found or found[0].number != number:
            raise NotFound("no_such_version", f"the machine has no version {number}")
        return found[0]

    async def version_list(
        self, machine_id: MachineId, *, before: int | None, limit: int
    ) -> list[Version]:
        """Newest first, with numbers below `before`."""
        query = _versions(machine_id, before=before, limit=limit)
        async with self._transaction() as connection:
            return [_to_version(row) for row in (await connection.execute(query)).mappings()]

    async def files(self, machine_id: MachineId, number: int) -> dict[str, str]:
        """The uploaded source. Raises `NotFound`."""
        query = sa.select(versions.c.files).where(
            versions.c.machine_id == machine_id, versions.c.number == number
        )
        async with self._transaction() as connection:
            packed = (await connection.execute(query)).scalar()
        if packed is None:
            raise NotFound("no_such_version", f"the machine has no version {number}")
        return unpack_files(packed)

    async def activate(self, machine_id: MachineId, number: int, *, now_ms: int) -> Machine:
        """Makes `number` the version that new sessions get. Raises `NotFound`."""
        there = sa.select(versions.c.number).where(
            versions.c.machine_id == machine_id, versions.c.number == number
        )
        mine = sa.and_(machines.c.id == machine_id, there.exists())
        async with self._transaction() as connection:
            activating = machines.update().where(mine).values(active_version=number)
            if not (await connection.execute(activating)).rowcount:
                raise NotFound("no_such_version", f"the machine has no version {number}")
            await set_calendar(connection, machine_id, number, now_ms=now_ms)
            return await _machine_of_id(connection, machine_id)

    async def private_among(self, machine_ids: Collection[MachineId]) -> set[MachineId]:
        """Which of these machines are private."""
        query = sa.select(machines.c.id).where(machines.c.private, machines.c.id.in_(machine_ids))
        async with self._transaction() as connection:
            return set((await connection.execute(query)).scalars())

    async def prune_versions(
        self, machine_id: MachineId, *, keep: int, used: Collection[int]
    ) -> list[int]:
        """Deletes versions that nothing uses, with their images: all but the active one, the newest
        `keep`, those that sessions are on, and `used`. Returns their numbers.
        """
        async with self._transaction() as connection:
            numbers, digests = await prune_versions(connection, machine_id, keep=keep, used=used)
        async with self._transaction() as connection:
            await drop_images(connection, digests)
        return numbers

    async def image(self, digest: Digest) -> Image:
        """Raises `NotFound` when its machine was deleted."""
        async with self._transaction() as connection:
            row = (
                await connection.execute(
                    sa.select(images.c.image, images.c.engine, images.c.template).where(
                        images.c.digest == digest
                    )
                )
            ).first()
        if row is None:
            raise NotFound("no_such_version", "the version's image is gone")
        return Image(image=row.image, engine=row.engine, template=row.template or "")

    # --- engines ----------------------------------------------------------------------------------

    async def has_engine(self, digest: str) -> bool:
        async with self._transaction() as connection:
            return (
                await connection.execute(
                    sa.select(engines.c.digest).where(engines.c.digest == digest)
                )
            ).scalar() is not None

    async def add_engine(self, digest: str, code: bytes) -> None:
        """Keeps an engine (zstd-compressed WASM) for as long as there may be images of it.

        One that is there stays as it is.
        """
        with contextlib.suppress(IntegrityError):
            async with self._transaction() as connection:
                await connection.execute(engines.insert().values(digest=digest, engine=code))

    async def engine_code(self, digest: str) -> bytes:
        """Raises `Unavailable` when it was not kept."""
        async with self._transaction() as connection:
            code: bytes | None = (
                await connection.execute(
                    sa.select(engines.c.engine).where(engines.c.digest == digest)
                )
            ).scalar()
        if code is None:
            raise Unavailable(
                "image_damaged", "the engine of this version was not kept; deploy it again"
            )
        return code


def pack_files(files: dict[str, str]) -> bytes:
    """Files by path, as zstd-compressed JSON with sorted paths; `unpack_files` is the inverse."""
    return zstandard.ZstdCompressor(level=3).compress(
        msgspec.json.encode(dict(sorted(files.items())))
    )


def unpack_files(packed: bytes) -> dict[str, str]:
    return msgspec.json.decode(zstandard.ZstdDecompressor().decompress(packed), type=dict[str, str])


async def _machine_named(
    connection: AsyncConnection, project: ProjectId, name: str, new_id: MachineId, now_ms: int
) -> MachineId:
    """The project's machine of this name, created with `new_id` when there is none."""
    query = (
        sa.select(machines.c.id)
        .where(machines.c.project_id == project, machines.c.name == name)
        .with_for_update()
    )
    found: MachineId | None = (await connection.execute(query)).scalar()
    if found is not None:
        return found
    await _check_is_no_id(connection, name)
    there = sa.select(projects.c.id).where(projects.c.id == project).with_for_update()
    if (await connection.execute(there)).first() is None:
        raise NotFound("no_such_project", "the project was deleted")
    row = {"id": new_id, "name": name, "created_at_ms": now_ms, "project_id": project}
    await connection.execute(machines.insert().values(row))
    return new_id


async def _go_live(
    connection: AsyncConnection, machine_id: MachineId, number: int, now_ms: int
) -> None:
    await _change(connection, machine_id, active_version=number)
    await set_calendar(connection, machine_id, number, now_ms=now_ms)


async def _numbered(connection: AsyncConnection, row: dict[str, Any]) -> tuple[int, bool]:
    """The number of a version with this content, and whether it is new: the same content again is
    the version that it was.
    """
    mine = versions.c.machine_id == row["machine_id"]
    same = sa.select(versions.c.number).where(mine, versions.c.digest == row["digest"])
    number: int | None = (await connection.execute(same)).scalar()
    if number is not None:
        return number, False
    newest = sa.select(sa.func.max(versions.c.number)).where(mine)
    number = 1 + ((await connection.execute(newest)).scalar() or 0)
    await connection.execute(versions.insert().values(row | {"number": number}))
    return number, True


def _versions(machine_id: MachineId, *, before: int | None, limit: int) -> sa.Select[Any]:
    """Versions without their files, newest first."""
    columns = [column for column in versions.c if column is not versions.c.files]
    query = (
        sa.select(*columns, images.c.engine, images.c.definition)
        .join(images, images.c.digest == versions.c.digest)
        .where(versions.c.machine_id == machine_id)
        .order_by(versions.c.number.desc())
        .limit(limit)
    )
    return query if before is None else query.where(versions.c.number < before)


async def _check_is_no_id(connection: AsyncConnection, name: str, *, of: str = "") -> None:
    """A machine called as another one's id would be taken for that one. Raises `Conflict`."""
    found = (
        await connection.execute(sa.select(machines.c.id).where(machines.c.id == name))
    ).scalar()
    if found is not None and found != of:
        raise Conflict("name_taken", f"{name!r} is the id of another machine")


async def _has_image(connection: AsyncConnection, digest: Digest) -> bool:
    known = sa.select(images.c.digest).where(images.c.digest == digest)
    return (await connection.execute(known)).scalar() is not None


async def _machine(
    connection: AsyncConnection, id_or_name: str, project: ProjectId, *, everywhere: bool
) -> Machine:
    missing = NotFound("no_such_machine", f"there is no machine {id_or_name[:100]!r}")
    if len(id_or_name) > 100 or not id_or_name.isprintable():
        raise missing  # what no name can be; Postgres would refuse some of it as text
    mine = machines.c.project_id == project
    by_id = machines.c.id == id_or_name
    query = sa.select(machines).where(
        sa.or_(
            by_id if everywhere else sa.and_(by_id, mine),
            sa.and_(machines.c.name == id_or_name, mine),
        )
    )
    rows: Sequence[Any] = (await connection.execute(query)).mappings().all()
    if not rows:
        raise missing
    return _to_machine(next((row for row in rows if row["id"] == id_or_name), rows[0]))


async def _change(connection: AsyncConnection, machine_id: MachineId, **values: Any) -> None:
    changing = machines.update().where(machines.c.id == machine_id)
    await connection.execute(changing.values(**values))


async def _machine_of_id(connection: AsyncConnection, machine_id: MachineId) -> Machine:
    return await _machine(connection, machine_id, DEFAULT_PROJECT, everywhere=True)


def _to_machine(row: Any) -> Machine:
    return Machine(
        id=row["id"],
        name=row["name"],
        created_at_ms=row["created_at_ms"],
        active_version=row["active_version"],
        project=row["project_id"],
        private=row["private"],
    )


def _to_version(row: Any) -> Version:
    return Version(
        machine_id=row["machine_id"],
        number=row["number"],
        digest=row["digest"],
        engine=row["engine"],
        entry=row["entry"],
        message=row["message"],
        created_at_ms=row["created_at_ms"],
        definition=msgspec.json.decode(row["definition"]),
    )
