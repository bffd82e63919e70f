"""The deploy API's part for projects and their tokens, and who somebody is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from starlette.responses import Response

from machinehub.clock import new_token, timestamp, timestamp_or_none
from machinehub.control.routes import PROJECT
from machinehub.control.uploads import check_name
from machinehub.edge.admission import principal_of
from machinehub.edge.problem import Json
from machinehub.edge.requests import decode, page, page_of, read_body
from machinehub.egress.rules import check_allowed
from machinehub.errors import BadRequest, NotFound
from machinehub.ids import ProjectId
from machinehub.model import DEFAULT_PROJECT, SCOPES, Quotas

if TYPE_CHECKING:
    import builtins
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from machinehub.clock import Clock, Entropy
    from machinehub.control.audit import Audit
    from machinehub.control.reach import Reach
    from machinehub.control.routes import Guarded
    from machinehub.edge.quotas import ProjectQuotas
    from machinehub.limits import Limits
    from machinehub.model import Project, Token
    from machinehub.store.keys import KeyStore

BODY_BYTES_MAX: Final = 4096
NAME_CHARS_MAX: Final = 100
EXPIRES_S_MAX: Final = 10 * 366 * 24 * 3600
NUMBER: Final = re.compile("[0-9]{1,9}")
"""Of a token or a key."""


class ProjectBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /projects`."""

    name: str


class ProjectPatch(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `PATCH /projects/{p}`."""

    quotas: dict[str, int | float | list[str] | None]


class TokenBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /projects/{p}/tokens`. Without `expires_in_s` it is valid until it is
    revoked.
    """

    name: str
    scopes: list[Literal["deploy", "read", "operate", "admin"]]
    expires_in_s: Annotated[int, msgspec.Meta(ge=1, le=EXPIRES_S_MAX)] | None = None


class ProjectApi:
    """`changed` is called after a token became valid, or is not any more."""

    def __init__(
        self,
        keys: KeyStore,
        reach: Reach,
        audit: Audit,
        quotas: ProjectQuotas,
        clock: Clock,
        entropy: Entropy,
        limits: Limits,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self._audit = audit
        self._quotas = quotas
        self._keys = keys
        self._reach = reach
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._changed = changed

    def calls(self) -> builtins.list[Guarded]:
        return [
            ("read", "GET", "/projects", self.list),
            ("admin", "POST", "/projects", self.create),
            ("admin", "PATCH", PROJECT, self.change),
            ("admin", "DELETE", PROJECT, self.delete),
            ("read", "GET", PROJECT + "/usage", self.usage),
            ("admin", "GET", PROJECT + "/tokens", self.token_list),
            ("admin", "POST", PROJECT + "/tokens", self.token_create),
            ("admin", "DELETE", PROJECT + "/tokens/{token}", self.token_revoke),
        ]

    async def whoami(self, request: Request) -> Response:
        """Who the hub takes the request to be of, and what that lets them do, and where."""
        principal = principal_of(request.scope)
        project = None
        if principal.project is not None:
            found = await self._keys.project(principal.project)
            project = {"id": found.id, "name": found.name}
        return Json(
            {
                "standing": principal.standing.value,
                "token": principal.token,
                "project": project,
                "scopes": principal.granted,
            }
        )

    async def list(self, request: Request) -> Response:
        limit, after = page_of(request, limit_max=self._limits.page_items)
        principal = principal_of(request.scope)
        if principal.project is not None:
            return Json(
                {"data": [_show(await self._keys.project(principal.project))], "next": None}
            )
        found = await self._keys.project_list(after=after, limit=limit + 1)
        return Json(page([_show(project) for project in found], limit=limit, key="name"))

    async def create(self, request: Request) -> Response:
        principal_of(request.scope).must_rule()
        body = decode(await read_body(request, bytes_max=BODY_BYTES_MAX), ProjectBody)
        check_name(body.name)
        new_id = ProjectId(self._entropy.machine_id())
        added = await self._keys.add_project(new_id, body.name, now_ms=self._clock.now_ms())
        await self._audit.note(
            request, "created project %s (%s)", added.name, added.id, project=added.id
        )
        return Json(_show(added), 201)

    async def change(self, request: Request) -> Response:
        """Its quotas: those that are named; null for none."""
        principal_of(request.scope).must_rule()
        project = await self._reach.in_path(request)
        body = decode(await read_body(request, bytes_max=BODY_BYTES_MAX), ProjectPatch)
        if unknown := body.quotas.keys() - set(Quotas.__struct_fields__):
            known = ", ".join(Quotas.__struct_fields__)
            raise BadRequest(
                "invalid_quotas", f"there is no quota of {min(unknown)[:100]}: {known}"
            )
        merged = msgspec.to_builtins(project.quotas) | body.quotas
        try:
            quotas = msgspec.convert(merged, Quotas)
        except msgspec.ValidationError as error:
            raise BadRequest("invalid_quotas", str(error)) from None
        check_allowed(quotas.egress or [])
        changed = await self._keys.set_quotas(project.id, quotas)
        self._quotas.forget(project.id)
        said = ", ".join(f"{name} {value}" for name, value in body.quotas.items())
        await self._audit.note(
            request, "set quotas of project %s: %s", project.name, said, project=project.id
        )
        return Json(_show(changed))

    async def usage(self, request: Request) -> Response:
        """What a project uses, and its quotas."""
        project = await self._reach.in_path(request)
        return Json(await self._quotas.usage(project.id))

    async def delete(self, request: Request) -> Response:
        principal_of(request.scope).must_rule()
        project = await self._reach.in_path(request)
        if project.id == DEFAULT_PROJECT:
            raise BadRequest("invalid_project", "the project `default` stays")
        await self._keys.delete_project(project.id, now_ms=self._clock.now_ms())
        await self._changed()
        await self._audit.note(
            request, "deleted project %s (%s)", project.name, project.id, project=project.id
        )
        return Response(status_code=204)

    async def token_list(self, request: Request) -> Response:
        project = await self._reach.in_path(request)
        found = await self._keys.token_list(project.id)
        return Json({"data": [show_token(token) for token in found], "next": None})

    async def token_create(self, request: Request) -> Response:
        """The token itself is in this answer, and nowhere else."""
        project = await self._reach.in_path(request)
        body = decode(await read_body(request, bytes_max=BODY_BYTES_MAX), TokenBody)
        name, now_ms = check_token_name(body.name), self._clock.now_ms()
        if not body.scopes:
            raise BadRequest("invalid_scopes", f"a token has one of the scopes {', '.join(SCOPES)}")
        expires_at_ms = None if body.expires_in_s is None else now_ms + body.expires_in_s * 1000
        text = new_token()
        added = await self._keys.add_token(
            name=name,
            token=text,
            now_ms=now_ms,
            project=project.id,
            scopes=[scope for scope in SCOPES if scope in body.scopes],
            expires_at_ms=expires_at_ms,
        )
        await self._changed()
        await self._audit.note(
            request, "created token %r of project %s", name, project.name, project=project.id
        )
        return Json(show_token(added) | {"token": text}, 201)

    async def token_revoke(self, request: Request) -> Response:
        project = await self._reach.in_path(request)
        number: str = request.path_params["token"]
        if not NUMBER.fullmatch(number):
            raise NotFound("no_such_token", "there is no such token")
        revoked = await self._keys.revoke_token(
            int(number), now_ms=self._clock.now_ms(), project=project.id
        )
        await self._changed()
        await self._audit.note(
            request,
            "revoked token %r of project %s",
            revoked.name,
            project.name,
            project=project.id,
        )
        return Response(status_code=204)


def check_token_name(text: str) -> str:
    """A name is a line. Raises `BadRequest`."""
    name = " ".join(text.split())
    if not 1 <= len(name) <= NAME_CHARS_MAX or not name.isprintable():
        raise BadRequest("invalid_name", f"a token's name has 1 to {NAME_CHARS_MAX} characters")
    return name


def _show(project: Project) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "created_at": timestamp(project.created_at_ms),
        "quotas": msgspec.to_builtins(project.quotas),
    }


def show_token(token: Token) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": token.id, "name": token.name}
    if token.publishable is not None:
        shown |= {"token": token.publishable, "origins": list(token.origins)}
    else:
        shown["scopes"] = [scope for scope in SCOPES if scope in token.scopes]
    return shown | {
        "created_at": timestamp(token.created_at_ms),
        "expires_at": timestamp_or_none(token.expires_at_ms),
        "used_at": timestamp_or_none(token.used_at_ms),
        "revoked_at": timestamp_or_none(token.revoked_at_ms),
    }
