"""The table of who did what."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from machinehub.ids import ProjectId
from machinehub.model import AuditLine
from machinehub.store.engine import transaction
from machinehub.store.tables import audit

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class AuditStore:
    """Every query raises `Unavailable` when the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def add(self, project: ProjectId | None, who: str, what: str, *, now_ms: int) -> None:
        row = {
            "project_id": project,
            "who": who.encode("utf-8", "replace"),
            "what": what.encode("utf-8", "replace"),
            "at_ms": now_ms,
        }
        async with transaction(self._engine) as connection:
            await connection.execute(audit.insert().values(row))

    async def page(
        self, project: ProjectId | None, *, before: int | None, limit: int
    ) -> list[AuditLine]:
        """The newest first: a project's, or of None all there are; with ids below `before`."""
        query = sa.select(audit).order_by(audit.c.id.desc()).limit(limit)
        if project is not None:
            query = query.where(audit.c.project_id == project)
        if before is not None:
            query = query.where(audit.c.id < before)
        async with transaction(self._engine) as connection:
            rows = (await connection.execute(query)).mappings().all()
        return [
            AuditLine(
                id=row["id"],
                at_ms=row["at_ms"],
                who=row["who"].decode(),
                what=row["what"].decode(),
                project=None if row["project_id"] is None else ProjectId(row["project_id"]),
            )
            for row in rows
        ]

    async def prune(self, *, before_ms: int) -> None:
        """Forgets what was noted before then."""
        async with transaction(self._engine) as connection:
            await connection.execute(audit.delete().where(audit.c.at_ms < before_ms))
