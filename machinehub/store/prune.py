"""Versions that nothing uses any more, and the images that go with them."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from machinehub.store.tables import images, machines, sessions, versions

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy.ext.asyncio import AsyncConnection

    from machinehub.ids import Digest, MachineId


async def prune_versions(
    connection: AsyncConnection, machine_id: MachineId, *, keep: int, used: Collection[int]
) -> tuple[list[int], set[Digest]]:
    """Deletes a machine's versions but the active one, the newest `keep`, those of sessions in the
    database, and `used`. Returns their numbers, and the digests of their images.
    """
    mine = versions.c.machine_id == machine_id
    newest = sa.select(versions.c.number).where(mine).order_by(versions.c.number.desc()).limit(keep)
    active = sa.select(machines.c.active_version).where(machines.c.id == machine_id)
    of_sessions = sa.select(sessions.c.version).where(sessions.c.machine_id == machine_id)
    superfluous = versions.delete().where(
        mine,
        versions.c.number.not_in(newest.scalar_subquery()),
        versions.c.number.not_in(active.scalar_subquery()),
        versions.c.number.not_in(of_sessions.distinct().scalar_subquery()),
        versions.c.number.not_in(list(used)),
    )
    gone = list(
        await connection.execute(superfluous.returning(versions.c.number, versions.c.digest))
    )
    return sorted(number for number, _ in gone), {digest for _, digest in gone}


async def drop_images(connection: AsyncConnection, digests: Collection[Digest]) -> None:
    """Deletes those images that no version is of, and no session. A deployment of the same content
    may come between: then the image stays.
    """
    used = sa.select(versions.c.digest).where(versions.c.digest == images.c.digest).exists()
    needed = sa.select(sessions.c.digest).where(sessions.c.digest == images.c.digest).exists()
    deleting = images.delete().where(images.c.digest.in_(digests), ~used, ~needed)
    with contextlib.suppress(IntegrityError):
        async with connection.begin_nested():
            await connection.execute(deleting)
