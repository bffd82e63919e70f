"""What projects have in the database."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from machinehub.ids import MachineId
from machinehub.model import Stored
from machinehub.store.engine import transaction
from machinehub.store.tables import (
    checkpoints,
    effects,
    images,
    journal,
    machines,
    sessions,
    versions,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from machinehub.ids import ProjectId, SessionId


class UsageStore:
    """Every query raises `Unavailable` when the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def machine_ids(self, project: ProjectId) -> dict[str, MachineId]:
        """By their names."""
        query = sa.select(machines.c.name, machines.c.id).where(machines.c.project_id == project)
        async with transaction(self._engine) as connection:
            rows = (await connection.execute(query)).all()
        return {row.name: MachineId(row.id) for row in rows}

    async def stored(self, project: ProjectId) -> Stored:
        """How many there are of each."""
        mine = sa.select(machines.c.id).where(machines.c.project_id == project)
        counts = [
            sa.select(sa.func.count()).select_from(table).where(column.in_(mine)).scalar_subquery()
            for table, column in (
                (machines, machines.c.id),
                (versions, versions.c.machine_id),
                (sessions, sessions.c.machine_id),
            )
        ]
        async with transaction(self._engine) as connection:
            row = (await connection.execute(sa.select(*counts))).one()
        return Stored(machines=row[0], versions=row[1], sessions=row[2])

    async def has_session(self, machine_id: MachineId, session_id: SessionId) -> bool:
        there = sa.select(sessions.c.key).where(
            sessions.c.machine_id == machine_id, sessions.c.session_id == session_id.encode()
        )
        async with transaction(self._engine) as connection:
            return (await connection.execute(there)).first() is not None

    async def bytes_of(self, project: ProjectId) -> int:
        """Bytes of a project's journals, requests, checkpoints, sources and images, without
        indices. Reads all of it.
        """
        mine = sa.select(machines.c.id).where(machines.c.project_id == project)
        keys = sa.select(sessions.c.key).where(sessions.c.machine_id.in_(mine))
        digests = sa.select(versions.c.digest).where(versions.c.machine_id.in_(mine))

        def size(*columns: sa.Column[bytes]) -> sa.ColumnElement[int]:
            return sa.func.coalesce(sa.func.sum(sum(map(sa.func.length, columns))), 0)

        sums = [
            sa.select(size(journal.c.input)).where(journal.c.key.in_(keys)),
            sa.select(size(effects.c.request)).where(effects.c.key.in_(keys)),
            sa.select(size(checkpoints.c.data, checkpoints.c.snapshot)).where(
                checkpoints.c.key.in_(keys)
            ),
            sa.select(size(versions.c.files)).where(versions.c.machine_id.in_(mine)),
            sa.select(size(images.c.image, images.c.definition)).where(
                images.c.digest.in_(digests)
            ),
        ]
        async with transaction(self._engine) as connection:
            return sum([int((await connection.execute(each)).scalar() or 0) for each in sums])
