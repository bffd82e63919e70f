"""Projects, and the tokens that let people do something in one, or in all of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from machinehub.errors import Conflict, NotFound
from machinehub.ids import ProjectId
from machinehub.model import Project, Quotas, Token
from machinehub.store.audit import AuditStore
from machinehub.store.engine import transaction
from machinehub.store.tables import jwt_keys, machines, projects, secrets, tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


class KeyStore:
    """Every query raises `Unavailable` when the database does not answer."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.audit = AuditStore(engine)
        """Where whoever changes something without the API says so."""

    # --- projects ---------------------------------------------------------------------------------

    async def project(self, id_or_name: str) -> Project:
        """Raises `NotFound`."""
        named = sa.or_(projects.c.id == id_or_name, projects.c.name == id_or_name)
        missing = NotFound("no_such_project", f"there is no project {id_or_name[:100]!r}")
        if len(id_or_name) > 100 or not id_or_name.isprintable():
            raise missing
        async with transaction(self._engine) as connection:
            row = (await connection.execute(sa.select(projects).where(named))).mappings().first()
        if row is None:
            raise missing
        return _to_project(row)

    async def project_list(self, *, after: str | None, limit: int) -> list[Project]:
        """By name, from behind the name `after`."""
        query = sa.select(projects).order_by(projects.c.name).limit(limit)
        if after is not None:
            query = query.where(projects.c.name > after)
        async with transaction(self._engine) as connection:
            return [_to_project(row) for row in (await connection.execute(query)).mappings()]

    async def add_project(self, new_id: ProjectId, name: str, *, now_ms: int) -> Project:
        """Raises `Conflict`."""
        row = {"id": new_id, "name": name, "created_at_ms": now_ms}
        try:
            async with transaction(self._engine) as connection:
                await connection.execute(projects.insert().values(row))
        except IntegrityError:
            raise Conflict("name_taken", f"there is a project named {name!r} already") from None
        return Project(id=new_id, name=name, created_at_ms=now_ms)

    async def set_quotas(self, project: ProjectId, quotas: Quotas) -> Project:
        """Raises `NotFound`."""
        changing = projects.update().where(projects.c.id == project)
        async with transaction(self._engine) as connection:
            await connection.execute(changing.values(quotas=msgspec.json.encode(quotas)))
        return await self.project(project)

    async def delete_project(self, project: ProjectId, *, now_ms: int) -> None:
        """Its tokens are revoked, its secrets go. Raises `Conflict` while it has machines."""
        has_machine = sa.select(machines.c.id).where(machines.c.project_id == project).exists()
        async with transaction(self._engine) as connection:
            deleting = projects.delete().where(projects.c.id == project, ~has_machine)
            if not (await connection.execute(deleting)).rowcount:
                raise Conflict("project_not_empty", "the project has machines: delete them first")
            mine = tokens.c.project_id == project
            revoking = tokens.update().where(mine, tokens.c.revoked_at_ms.is_(None))
            await connection.execute(revoking.values(revoked_at_ms=now_ms))
            ours = jwt_keys.c.project_id == project
            ending = jwt_keys.update().where(ours, jwt_keys.c.revoked_at_ms.is_(None))
            await connection.execute(ending.values(revoked_at_ms=now_ms))
            await connection.execute(secrets.delete().where(secrets.c.project_id == project))

    # --- tokens -----------------------------------------------------------------------------------

    async def add_token(
        self,
        *,
        name: str,
        token: str,
        now_ms: int,
        project: ProjectId | None = None,
        scopes: Iterable[str] = ("deploy", "read", "operate", "admin"),
        expires_at_ms: int | None = None,
        publishable: bool = False,
        origins: Iterable[str] = (),
    ) -> Token:
        """Stores the SHA-256 of a token; the token itself is kept of a `publishable` one alone.
        Without `project` it is for the whole hub. Raises `Conflict` when one of this name is in use
        there.
        """
        row = {
            "name": name,
            "hash": hash_token(token),
            "created_at_ms": now_ms,
            "project_id": project,
            "scopes": " ".join(scopes),
            "expires_at_ms": expires_at_ms,
            "publishable": token if publishable else None,
            "origins": " ".join(origins) or None,
        }
        async with transaction(self._engine) as connection:
            if name and await _is_in_use(
                connection, name, project, now_ms, publishable=publishable
            ):
                raise Conflict("token_exists", f"there is a token named {name!r}; revoke it first")
            added = await connection.execute(tokens.insert().values(row).returning(tokens))
            return _to_token(added.mappings().one())

    async def token_list(
        self, *projects_: ProjectId | None, publishable: bool = False
    ) -> list[Token]:
        """Those of these projects (None: of the whole hub); without any, all there ever were. The
        secret ones, or the publishable.
        """
        kind = _of_kind(publishable=publishable)
        query = sa.select(tokens).where(kind).order_by(tokens.c.id)
        if projects_:
            query = query.where(sa.or_(*(_of(project) for project in projects_)))
        async with transaction(self._engine) as connection:
            return [_to_token(row) for row in (await connection.execute(query)).mappings()]

    async def token_named(self, name: str) -> Token:
        """The token of that name that is in use, else the one that was revoked last. Raises
        `NotFound`.
        """
        named = sa.select(tokens).where(tokens.c.name == name, _of_kind(publishable=False))
        newest = named.order_by(tokens.c.revoked_at_ms.is_not(None), tokens.c.id.desc())
        async with transaction(self._engine) as connection:
            row = (await connection.execute(newest)).mappings().first()
        if row is None:
            raise NotFound("no_such_token", f"there is no token {name!r}")
        return _to_token(row)

    async def revoke_token(
        self,
        token_id: int,
        *,
        now_ms: int,
        project: ProjectId | None = None,
        publishable: bool = False,
    ) -> Token:
        """With `project`, only one of that; a secret one, or a publishable. Raises `NotFound`.
        Revoking twice changes nothing.
        """
        mine = sa.and_(tokens.c.id == token_id, _of_kind(publishable=publishable))
        if project is not None:
            mine = sa.and_(mine, tokens.c.project_id == project)
        async with transaction(self._engine) as connection:
            revoke = tokens.update().where(mine, tokens.c.revoked_at_ms.is_(None))
            await connection.execute(revoke.values(revoked_at_ms=now_ms))
            row = (await connection.execute(sa.select(tokens).where(mine))).mappings().first()
        if row is None:
            what = "key" if publishable else "token"
            raise NotFound(f"no_such_{what}", f"there is no {what} {token_id}")
        return _to_token(row)

    async def note_used(self, token_ids: Iterable[int], *, now_ms: int) -> None:
        using = tokens.update().where(tokens.c.id.in_(list(token_ids)))
        async with transaction(self._engine) as connection:
            await connection.execute(using.values(used_at_ms=now_ms))

    async def valid_tokens(self) -> dict[str, Token]:
        """The tokens that are not revoked, by their hashes. Some may have expired."""
        query = sa.select(tokens).where(tokens.c.revoked_at_ms.is_(None))
        async with transaction(self._engine) as connection:
            rows = (await connection.execute(query)).mappings()
            return {row["hash"]: _to_token(row) for row in rows}


def hash_token(token: str) -> str:
    """The SHA-256 of a token in hexadecimal. Stored tokens are random, so no salt is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def _of(project: ProjectId | None) -> sa.ColumnElement[bool]:
    column = tokens.c.project_id
    return column.is_(None) if project is None else column == project


def _of_kind(*, publishable: bool) -> sa.ColumnElement[bool]:
    column = tokens.c.publishable
    return column.is_not(None) if publishable else column.is_(None)


async def _is_in_use(
    connection: AsyncConnection,
    name: str,
    project: ProjectId | None,
    now_ms: int,
    *,
    publishable: bool,
) -> bool:
    there = sa.select(tokens.c.id).where(
        tokens.c.name == name,
        _of(project),
        _of_kind(publishable=publishable),
        tokens.c.revoked_at_ms.is_(None),
        sa.or_(tokens.c.expires_at_ms.is_(None), tokens.c.expires_at_ms > now_ms),
    )
    return (await connection.execute(there)).first() is not None


def _to_project(row: Any) -> Project:
    quotas = msgspec.json.decode(row["quotas"], type=Quotas) if row["quotas"] else Quotas()
    return Project(
        id=ProjectId(row["id"]),
        name=row["name"],
        created_at_ms=row["created_at_ms"],
        quotas=quotas,
    )


def _to_token(row: Any) -> Token:
    return Token(
        id=row["id"],
        name=row["name"],
        created_at_ms=row["created_at_ms"],
        revoked_at_ms=row["revoked_at_ms"],
        project=row["project_id"],
        scopes=frozenset(row["scopes"].split()),
        expires_at_ms=row["expires_at_ms"],
        used_at_ms=row["used_at_ms"],
        publishable=row["publishable"],
        origins=tuple((row["origins"] or "").split()),
    )
