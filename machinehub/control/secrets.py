"""The deploy API's part for the secrets of projects. What they are comes in and never goes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from starlette.responses import Response

from machinehub.clock import timestamp
from machinehub.control.routes import PROJECT
from machinehub.edge.admission import principal_of
from machinehub.edge.problem import Json
from machinehub.edge.requests import read_body
from machinehub.effects.secrets import VALUE_CHARS_MAX
from machinehub.errors import BadRequest

if TYPE_CHECKING:
    import builtins

    from starlette.requests import Request

    from machinehub.control.audit import Audit
    from machinehub.control.reach import Reach
    from machinehub.control.routes import Guarded
    from machinehub.effects.secrets import Secrets
    from machinehub.store.secrets import StoredSecret

BODY_BYTES_MAX: Final = VALUE_CHARS_MAX + 16 * 1024


class SecretBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `PUT /projects/{p}/secrets/{name}`."""

    value: str
    hosts: list[Annotated[str, msgspec.Meta(max_length=300)]] = []


class SecretApi:
    def __init__(self, secrets: Secrets, reach: Reach, audit: Audit) -> None:
        self._secrets = secrets
        self._reach = reach
        self._audit = audit

    def calls(self) -> builtins.list[Guarded]:
        return [
            ("admin", "GET", PROJECT + "/secrets", self.list),
            ("admin", "PUT", PROJECT + "/secrets/{name}", self.set),
            ("admin", "DELETE", PROJECT + "/secrets/{name}", self.delete),
            ("admin", "POST", "/secrets/rotate", self.rotate),
        ]

    async def list(self, request: Request) -> Response:
        project = await self._reach.in_path(request)
        found = await self._secrets.list(project.id)
        return Json({"data": [_show(each) for each in found], "next": None})

    async def set(self, request: Request) -> Response:
        project, name = await self._reach.in_path(request), request.path_params["name"]
        raw = await read_body(request, bytes_max=BODY_BYTES_MAX)
        try:
            body = msgspec.json.decode(raw, type=SecretBody)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            # Not what is wrong with it, which may quote it.
            raise BadRequest(
                "invalid_body", 'the body is {"value": "...", "hosts": [...]}'
            ) from None
        await self._secrets.set(project.id, name, body.value, body.hosts)
        await self._audit.note(
            request, "set secret %s of project %s", name, project.name, project=project.id
        )
        [stored] = [each for each in await self._secrets.list(project.id) if each.name == name]
        return Json(_show(stored))

    async def delete(self, request: Request) -> Response:
        project, name = await self._reach.in_path(request), request.path_params["name"]
        await self._secrets.delete(project.id, name)
        await self._audit.note(
            request, "deleted secret %s of project %s", name, project.name, project=project.id
        )
        return Response(status_code=204)

    async def rotate(self, request: Request) -> Response:
        """Seals all secrets of the hub with its newest key."""
        principal_of(request.scope).must_rule()
        count, key = await self._secrets.rotate()
        await self._audit.note(request, "sealed %s secrets with the key %s", count, key)
        return Json({"secrets": count, "key": key})


def _show(secret: StoredSecret) -> dict[str, Any]:
    return {
        "name": secret.name,
        "hosts": secret.hosts,
        "key": secret.key_id,
        "created_at": timestamp(secret.created_at_ms),
        "changed_at": timestamp(secret.changed_at_ms),
    }
