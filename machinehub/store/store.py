"""The database of the control plane: machines, versions, images, engines and tokens.

It uses SQLAlchemy Core, with the same statements on SQLite and Postgres. It numbers the versions of
a machine and resolves names. An image is stored under the digest of its content, so deploying the
same content again stores no second image. The tables of sessions are in `sessions.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa
import zstandard
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from machinehub.errors import Conflict, NotFound, Unavailable
from machinehub.model import Image, Machine, Token, Version
from machinehub.store.prune import drop_images, prune_versions
from machinehub.store.tables import engines, images, machines, tokens, versions
from machinehub.store.trouble import because_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Sequence

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from machinehub.ids import Digest, MachineId

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
    """The tables of the control plane: machines, versions, images, engines and tokens.

    Every query raises `Unavailable` when the database does not answer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def close(self) -> None:
        await self._engine.dispose()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.begin() as connection:
                yield connection
        except IntegrityError:
            raise
        except (SQLAlchemyError, OSError) as error:
            raise because_of(error) from error

    async def ping(self) -> None:
        """Raises `Unavailable` when the database does not answer."""
        async with self._transaction() as connection:
            await connection.execute(sa.select(1))

    # --- machines ---------------------------------------------------------------------------------

    async def machine(self, id_or_name: str) -> Machine:
        """By id, else by name. Raises `NotFound`."""
        async with self._transaction() as connection:
            return await _machine(connection, id_or_name)

    async def machine_list(self, *, after: str | None, limit: int) -> list[Machine]:
        """By name, from behind the name `after`."""
        query = sa.select(machines).order_by(machines.c.name).limit(limit)
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
                return await _machine(connection, machine_id)
        except IntegrityError:
            raise Conflict("name_taken", f"there is a machine named {name!r} already") from None

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
            await connection.execute(versions.delete().where(versions.c.machine_id == machine_id))
            await connection.execute(machines.delete().where(machines.c.id == machine_id))
        async with self._transaction() as connection:
            await drop_images(connection, mine)

    # --- versions ---------------------------------------------------------------------------------

    async def definition(self, digest: Digest) -> dict[str, Any] | None:
        """The definition of content that was built before; None where it was not."""
        known = sa.select(images.c.definition).where(images.c.digest == digest)
        async with self._transaction() as connection:
            found = (await connection.execute(known)).scalar()
        return None if found is None else msgspec.json.decode(found)

    async def deploy(
        self,
        *,
        new_id: MachineId,
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
    ) -> Deployment | None:
        """Adds a version to the machine of this name, creating the machine with `new_id` if there
        is none; with `activate`, new sessions get the version. `files` comes from `pack_files`,
        `image` is zstd-compressed (against `template`), `definition` is JSON; both are stored if
        there is no such image.

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
                    machine_id = await _machine_named(connection, name, new_id, now_ms)
                    number, created = await _numbered(connection, row | {"machine_id": machine_id})
                    if activate:
                        mine = machines.c.id == machine_id
                        activating = machines.update().where(mine).values(active_version=number)
                        await connection.execute(activating)
                    newest = _versions(machine_id, before=number + 1, limit=1)
                    version = (await connection.execute(newest)).mappings().one()
                    machine = await _machine(connection, machine_id)
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

    async def activate(self, machine_id: MachineId, number: int) -> Machine:
        """Makes `number` the version that new sessions get. Raises `NotFound`."""
        there = sa.select(versions.c.number).where(
            versions.c.machine_id == machine_id, versions.c.number == number
        )
        mine = sa.and_(machines.c.id == machine_id, there.exists())
        async with self._transaction() as connection:
            activating = machines.update().where(mine).values(active_version=number)
            if not (await connection.execute(activating)).rowcount:
                raise NotFound("no_such_version", f"the machine has no version {number}")
            return await _machine(connection, machine_id)

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

    # --- tokens -----------------------------------------------------------------------------------

    async def add_token(self, *, name: str, token: str, now_ms: int) -> Token:
        """Stores the SHA-256 of a token; the token itself is not kept. Raises `Conflict` when one
        of this name is in use.
        """
        async with self._transaction() as connection:
            if name and (await connection.execute(_tokens_in_use(name))).first() is not None:
                raise Conflict("token_exists", f"there is a token named {name!r}; revoke it first")
            insert = (
                tokens.insert()
                .values(name=name, hash=hash_token(token), created_at_ms=now_ms)
                .returning(tokens)
            )
            return _to_token((await connection.execute(insert)).mappings().one())

    async def token_list(self) -> list[Token]:
        async with self._transaction() as connection:
            return [
                _to_token(row)
                for row in (
                    await connection.execute(sa.select(tokens).order_by(tokens.c.id))
                ).mappings()
            ]

    async def token_named(self, name: str) -> Token:
        """The token of that name that is in use, else the one that was revoked last. Raises
        `NotFound`.
        """
        named = sa.select(tokens).where(tokens.c.name == name)
        newest = named.order_by(tokens.c.revoked_at_ms.is_not(None), tokens.c.id.desc())
        async with self._transaction() as connection:
            row = (await connection.execute(newest)).mappings().first()
        if row is None:
            raise NotFound("no_such_token", f"there is no token {name!r}")
        return _to_token(row)

    async def revoke_token(self, token_id: int, *, now_ms: int) -> Token:
        """Raises `NotFound`. Revoking twice changes nothing."""
        async with self._transaction() as connection:
            revoke = (
                tokens.update()
                .where(tokens.c.id == token_id, tokens.c.revoked_at_ms.is_(None))
                .values(revoked_at_ms=now_ms)
            )
            await connection.execute(revoke)
            row = (
                (await connection.execute(sa.select(tokens).where(tokens.c.id == token_id)))
                .mappings()
                .first()
            )
        if row is None:
            raise NotFound("no_such_token", f"there is no token {token_id}")
        return _to_token(row)

    async def valid_tokens(self) -> dict[str, str]:
        """Hashes of the tokens in use, and their names."""
        query = sa.select(tokens.c.hash, tokens.c.name).where(tokens.c.revoked_at_ms.is_(None))
        async with self._transaction() as connection:
            return {row.hash: row.name for row in await connection.execute(query)}


def hash_token(token: str) -> str:
    """The SHA-256 of a token in hexadecimal. Stored tokens are random, so no salt is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def pack_files(files: dict[str, str]) -> bytes:
    """Files by path, as zstd-compressed JSON with sorted paths; `unpack_files` is the inverse."""
    return zstandard.ZstdCompressor(level=3).compress(
        msgspec.json.encode(dict(sorted(files.items())))
    )


def unpack_files(packed: bytes) -> dict[str, str]:
    return msgspec.json.decode(zstandard.ZstdDecompressor().decompress(packed), type=dict[str, str])


async def _machine_named(
    connection: AsyncConnection, name: str, new_id: MachineId, now_ms: int
) -> MachineId:
    """The machine of this name, created with `new_id` when there is none."""
    query = sa.select(machines.c.id).where(machines.c.name == name).with_for_update()
    found: MachineId | None = (await connection.execute(query)).scalar()
    if found is not None:
        return found
    await _check_is_no_id(connection, name)
    row = {"id": new_id, "name": name, "created_at_ms": now_ms, "active_version": 0}
    await connection.execute(machines.insert().values(row))
    return new_id


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


def _tokens_in_use(name: str) -> sa.Select[Any]:
    return sa.select(tokens.c.id).where(tokens.c.name == name, tokens.c.revoked_at_ms.is_(None))


async def _has_image(connection: AsyncConnection, digest: Digest) -> bool:
    known = sa.select(images.c.digest).where(images.c.digest == digest)
    return (await connection.execute(known)).scalar() is not None


async def _machine(connection: AsyncConnection, id_or_name: str) -> Machine:
    missing = NotFound("no_such_machine", f"there is no machine {id_or_name[:100]!r}")
    if len(id_or_name) > 100 or not id_or_name.isprintable():
        raise missing  # what no name can be; Postgres would refuse some of it as text
    query = sa.select(machines).where(
        sa.or_(machines.c.id == id_or_name, machines.c.name == id_or_name)
    )
    rows: Sequence[Any] = (await connection.execute(query)).mappings().all()
    if not rows:
        raise missing
    return _to_machine(next((row for row in rows if row["id"] == id_or_name), rows[0]))


def _to_machine(row: Any) -> Machine:
    return Machine(
        id=row["id"],
        name=row["name"],
        created_at_ms=row["created_at_ms"],
        active_version=row["active_version"],
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


def _to_token(row: Any) -> Token:
    return Token(
        id=row["id"],
        name=row["name"],
        created_at_ms=row["created_at_ms"],
        revoked_at_ms=row["revoked_at_ms"],
    )
