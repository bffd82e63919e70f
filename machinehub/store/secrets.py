"""The secrets of projects, as they are kept: sealed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import sqlalchemy as sa

from machinehub.ids import ProjectId
from machinehub.store.engine import transaction
from machinehub.store.tables import secrets

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class StoredSecret(NamedTuple):
    project: ProjectId
    name: str
    hosts: list[str]
    sealed: bytes
    key_id: str
    created_at_ms: int
    changed_at_ms: int


class SecretStore:
    """Every method is one transaction, and raises `Unavailable` when the database does not
    answer.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def put(
        self,
        project: ProjectId,
        name: str,
        hosts: list[str],
        sealed: bytes,
        key_id: str,
        *,
        now_ms: int,
    ) -> None:
        """Adds or replaces one."""
        row: dict[str, Any] = {
            "hosts": msgspec.json.encode(hosts),
            "sealed": sealed,
            "key_id": key_id,
            "changed_at_ms": now_ms,
        }
        named = {"project_id": project, "name": name, "created_at_ms": now_ms}
        async with transaction(self._engine) as connection:
            changed = await connection.execute(
                secrets.update().where(*_is(project, name)).values(row)
            )
            if not changed.rowcount:
                await connection.execute(secrets.insert().values(row | named))

    async def delete(self, project: ProjectId, name: str) -> bool:
        """Whether there was one."""
        async with transaction(self._engine) as connection:
            gone = await connection.execute(secrets.delete().where(*_is(project, name)))
            return bool(gone.rowcount)

    async def of_project(self, project: ProjectId) -> list[StoredSecret]:
        return await self._find(secrets.c.project_id == project)

    async def all(self) -> list[StoredSecret]:
        return await self._find(sa.true())

    async def _find(self, where: sa.ColumnElement[bool]) -> list[StoredSecret]:
        query = sa.select(secrets).where(where).order_by(secrets.c.project_id, secrets.c.name)
        async with transaction(self._engine) as connection:
            return [_to_secret(row) for row in await connection.execute(query)]

    async def reseal(self, secret: StoredSecret, sealed: bytes, key_id: str) -> None:
        """The same secret under another key, unless it was changed meanwhile."""
        same = (*_is(secret.project, secret.name), secrets.c.sealed == secret.sealed)
        async with transaction(self._engine) as connection:
            await connection.execute(
                secrets.update().where(*same).values(sealed=sealed, key_id=key_id)
            )


def _is(project: ProjectId, name: str) -> tuple[sa.ColumnElement[bool], ...]:
    return secrets.c.project_id == project, secrets.c.name == name


def _to_secret(row: Any) -> StoredSecret:
    hosts = msgspec.json.decode(row.hosts, type=list[str])
    return StoredSecret(
        ProjectId(row.project_id),
        row.name,
        hosts,
        row.sealed,
        row.key_id,
        row.created_at_ms,
        row.changed_at_ms,
    )
