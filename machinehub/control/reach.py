"""What a request may reach: whose project it is about, and the machine in it that it names.

What is outside of somebody's project is answered as what is not there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.edge.admission import principal_of
from machinehub.errors import BadRequest, NotFound
from machinehub.model import DEFAULT_PROJECT

if TYPE_CHECKING:
    from starlette.requests import Request

    from machinehub.ids import ProjectId
    from machinehub.model import Machine, Project
    from machinehub.principal import Principal
    from machinehub.store.keys import KeyStore
    from machinehub.store.store import Store


class Reach:
    def __init__(self, store: Store, keys: KeyStore) -> None:
        self._store = store
        self._keys = keys

    async def project(self, request: Request) -> ProjectId:
        """`?project=`, by id or name; else the token's own, or `default`. Raises `NotFound`."""
        principal = principal_of(request.scope)
        named = request.query_params.getlist("project")
        if len(named) > 1:
            raise BadRequest("invalid_project", "there are two projects")
        if not named:
            return principal.project or DEFAULT_PROJECT
        return (await self.named(principal, named[0])).id

    async def in_path(self, request: Request) -> Project:
        """The project that a path names. Raises `NotFound`."""
        return await self.named(principal_of(request.scope), request.path_params["project"])

    async def named(self, principal: Principal, id_or_name: str) -> Project:
        """Raises `NotFound`, for another's project as for one that is not there."""
        project = await self._keys.project(id_or_name)
        if principal.project not in (None, project.id):
            raise NotFound("no_such_project", f"there is no project {id_or_name[:100]!r}")
        return project

    async def machine(self, request: Request) -> Machine:
        """By id or name, in the request's project; who may reach all projects finds an id in any.
        Raises `NotFound`.
        """
        everywhere = principal_of(request.scope).project is None
        asked: str = request.path_params["machine"]
        project = await self.project(request)
        is_free = everywhere and "project" not in request.query_params
        return await self._store.machine(asked, project=project, everywhere=is_free)
