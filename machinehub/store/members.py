"""What an app's own users show: by which keys their connect tokens are believed, and which of those
tokens are not valid any more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from machinehub.errors import Conflict, NotFound
from machinehub.ids import MachineId, ProjectId, SessionId
from machinehub.model import JwtKey, Revocation
from machinehub.store.engine import transaction
from machinehub.store.tables import jwt_keys, revocations

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


KEYS_MAX: Final = 20
"""Of a project, in use: each may be where another's tokens are looked for."""


class MemberStore:
    """Every query raises `Unavailable` when the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    # --- keys -------------------------------------------------------------------------------------

    async def add_key(self, key: JwtKey) -> None:
        """Raises `Conflict` when the project has one of this name that is in use, or too many."""
        row = {
            "kid": key.kid,
            "project_id": key.project,
            "name": key.name,
            "secret": key.secret,
            "jwks_url": key.jwks_url,
            "issuer": key.issuer,
            "audience": key.audience,
            "created_at_ms": key.created_at_ms,
        }
        in_use = sa.select(jwt_keys.c.name).where(
            jwt_keys.c.project_id == key.project, jwt_keys.c.revoked_at_ms.is_(None)
        )
        async with transaction(self._engine) as connection:
            names = (await connection.execute(in_use)).scalars().all()
            if key.name in names:
                raise Conflict("key_exists", f"there is a key named {key.name!r}; revoke it first")
            if len(names) >= KEYS_MAX:
                raise Conflict("keys_exceeded", f"a project has at most {KEYS_MAX} keys in use")
            await connection.execute(jwt_keys.insert().values(row))

    async def key_list(self, project: ProjectId) -> list[JwtKey]:
        """All that a project ever had, the oldest first."""
        order = jwt_keys.c.created_at_ms, jwt_keys.c.kid
        query = sa.select(jwt_keys).where(jwt_keys.c.project_id == project).order_by(*order)
        async with transaction(self._engine) as connection:
            return [_to_key(row) for row in (await connection.execute(query)).mappings()]

    async def valid_keys(self) -> list[JwtKey]:
        """Of all projects."""
        query = sa.select(jwt_keys).where(jwt_keys.c.revoked_at_ms.is_(None))
        async with transaction(self._engine) as connection:
            return [_to_key(row) for row in (await connection.execute(query)).mappings()]

    async def revoke_key(self, project: ProjectId, kid: str, *, now_ms: int) -> JwtKey:
        """Raises `NotFound`. Revoking twice changes nothing."""
        mine = sa.and_(jwt_keys.c.kid == kid, jwt_keys.c.project_id == project)
        async with transaction(self._engine) as connection:
            revoking = jwt_keys.update().where(mine, jwt_keys.c.revoked_at_ms.is_(None))
            await connection.execute(revoking.values(revoked_at_ms=now_ms))
            row = (await connection.execute(sa.select(jwt_keys).where(mine))).mappings().first()
        if row is None:
            raise NotFound("no_such_key", "the project has no such key")
        return _to_key(row)

    # --- revocations ------------------------------------------------------------------------------

    async def revoke(
        self,
        project: ProjectId,
        *,
        now_ms: int,
        sub: str | None = None,
        machine_id: MachineId | None = None,
        session_id: SessionId | None = None,
    ) -> Revocation:
        """Tokens that were issued until now are not valid any more for this user, or for this
        session. A second one of the same takes the place of the first.
        """
        said = {
            "sub": None if sub is None else sub.encode(),
            "machine_id": machine_id,
            "session_id": None if session_id is None else session_id.encode(),
        }
        same = [revocations.c[name].is_not_distinct_from(value) for name, value in said.items()]
        row = said | {"project_id": project, "at_ms": now_ms}
        async with transaction(self._engine) as connection:
            earlier = revocations.delete().where(revocations.c.project_id == project, *same)
            await connection.execute(earlier)
            added = await connection.execute(
                revocations.insert().values(row).returning(revocations)
            )
            return _to_revocation(added.mappings().one())

    async def revocations_mark(self) -> tuple[int, int, int]:
        """Another one when there is another revocation anywhere, or one less."""
        columns = revocations.c
        query = sa.select(
            sa.func.count(), sa.func.max(columns.id), sa.func.max(columns.at_ms)
        ).select_from(revocations)
        async with transaction(self._engine) as connection:
            count, last, at_ms = (await connection.execute(query)).one()
        return count, last or 0, at_ms or 0

    async def revocation_list(self, project: ProjectId | None = None) -> list[Revocation]:
        """A project's, or all."""
        query = sa.select(revocations).order_by(revocations.c.id)
        if project is not None:
            query = query.where(revocations.c.project_id == project)
        async with transaction(self._engine) as connection:
            return [_to_revocation(row) for row in (await connection.execute(query)).mappings()]

    async def forget_revocation(self, project: ProjectId, number: int) -> None:
        """Raises `NotFound`."""
        mine = sa.and_(revocations.c.id == number, revocations.c.project_id == project)
        async with transaction(self._engine) as connection:
            if not (await connection.execute(revocations.delete().where(mine))).rowcount:
                raise NotFound("no_such_revocation", "the project has no such revocation")


def _to_key(row: Any) -> JwtKey:
    return JwtKey(
        kid=row["kid"],
        project=ProjectId(row["project_id"]),
        name=row["name"],
        created_at_ms=row["created_at_ms"],
        secret=row["secret"],
        jwks_url=row["jwks_url"],
        issuer=row["issuer"],
        audience=row["audience"],
        revoked_at_ms=row["revoked_at_ms"],
    )


def _to_revocation(row: Any) -> Revocation:
    sub, session = row["sub"], row["session_id"]
    return Revocation(
        id=row["id"],
        project=ProjectId(row["project_id"]),
        at_ms=row["at_ms"],
        sub=None if sub is None else sub.decode(),
        machine_id=None if row["machine_id"] is None else MachineId(row["machine_id"]),
        session_id=None if session is None else SessionId(session.decode()),
    )
