"""The deploy API's part for what an app's own users show: publishable keys, the keys of connect
tokens, and revocations.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.responses import Response

from machinehub.clock import new_jwt_secret, new_publishable_key, timestamp, timestamp_or_none
from machinehub.control.projects import NUMBER, check_token_name, show_token
from machinehub.control.routes import PROJECT
from machinehub.edge.addresses import check_session_id
from machinehub.edge.problem import Json
from machinehub.edge.requests import decode, read_body
from machinehub.egress.addresses import EgressError, read_target
from machinehub.errors import BadRequest, NotFound
from machinehub.model import JwtKey
from machinehub.settings import is_origin

if TYPE_CHECKING:
    import builtins
    from collections.abc import Awaitable, Callable

    from starlette.requests import Request

    from machinehub.clock import Clock, Entropy
    from machinehub.control.audit import Audit
    from machinehub.control.reach import Reach
    from machinehub.control.routes import Guarded
    from machinehub.limits import Limits
    from machinehub.model import Revocation
    from machinehub.store.keys import KeyStore
    from machinehub.store.members import MemberStore
    from machinehub.store.store import Store

BODY_BYTES_MAX: Final = 8192
ORIGINS_MAX: Final = 20
TEXT_CHARS_MAX: Final = 500
SUB_CHARS_MAX: Final = 256
_KID: Final = re.compile("[A-Za-z0-9]{1,32}")


class KeyBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /projects/{p}/keys`."""

    name: str
    origins: list[str] = []


class JwtKeyBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /projects/{p}/jwt-keys`: nothing but a name for a secret that the hub makes
    up, or where an issuer publishes its keys.
    """

    name: str
    jwks_url: str | None = None
    issuer: str | None = None
    audience: str | None = None


class RevocationBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of `POST /projects/{p}/revocations`: a user, or a session of a machine."""

    sub: str | None = None
    machine: str | None = None
    session: str | None = None


class KeyApi:
    """`changed` is called after something became valid, or is not any more."""

    def __init__(
        self,
        keys: KeyStore,
        members: MemberStore,
        store: Store,
        reach: Reach,
        audit: Audit,
        clock: Clock,
        entropy: Entropy,
        limits: Limits,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        self._keys = keys
        self._members = members
        self._store = store
        self._reach = reach
        self._audit = audit
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._changed = changed

    def calls(self) -> builtins.list[Guarded]:
        revocations = PROJECT + "/revocations"
        return [
            ("admin", "GET", PROJECT + "/keys", self.list),
            ("admin", "POST", PROJECT + "/keys", self.create),
            ("admin", "DELETE", PROJECT + "/keys/{key}", self.revoke),
            ("admin", "GET", PROJECT + "/jwt-keys", self.jwt_list),
            ("admin", "POST", PROJECT + "/jwt-keys", self.jwt_create),
            ("admin", "DELETE", PROJECT + "/jwt-keys/{kid}", self.jwt_revoke),
            ("operate", "GET", revocations, self.revocation_list),
            ("operate", "POST", revocations, self.revocation_create),
            ("operate", "DELETE", revocations + "/{revocation}", self.revocation_delete),
        ]

    # --- publishable keys -------------------------------------------------------------------------

    async def list(self, request: Request) -> Response:
        project = await self._reach.in_path(request)
        found = await self._keys.token_list(project.id, publishable=True)
        return Json({"data": [show_token(each) for each in found], "next": None})

    async def create(self, request: Request) -> Response:
        project = await self._reach.in_path(request)
        body = decode(await read_body(request, bytes_max=BODY_BYTES_MAX), KeyBody)
        name = check_token_name(body.name)
        if len(body.origins) > ORIGINS_MAX or not all(map(is_origin, body.origins)):
            raise BadRequest(
                "invalid_origins",
                f"origins are at most {ORIGINS_MAX}, each as in https://app.example",
            )
        text = new_publishable_key()
        added = await self._keys.add_token(
            name=name,
            token=text,
            now_ms=self._clock.now_ms(),
            project=project.id,
            scopes=[],
            publishable=True,
            origins=body.origins,
        )
        await self._changed()
        await self._audit.note(
            request,
            "created publishable key %r of project %s",
            name,
            project.name,
            project=project.id,
        )
        return Json(show_token(added), 201)

    async def revoke(self, request: Request) -> Response:
        project = await self._reach.in_path(request)
        revoked = await self._keys.revoke_token(
            _number(request, "key", "no_such_key"),
            now_ms=self._clock.now_ms(),
            project=project.id,
            publishable=True,
        )
        await self._changed()
        await self._audit.note(
            request,
            "revoked publishable key %r of project %s",
            revoked.name,
            project.name,
            project=project.id,
        )
        return Response(status_code=204)

    # --- keys of connect tokens -------------------------------------------------------------------

    async def jwt_list(self, request: Request) -> Response:
        project = await self._reach.in_path(request)
        found = await self._members.key_list(project.id)
        return Json({"data": [_show_jwt_key(each) for each in found], "next": None})

    async def jwt_create(self, request: Request) -> Response:
        """The secret of a key that the hub made up is in this answer alone."""
        project = await self._reach.in_path(request)
        body = decode(await read_body(request, bytes_max=BODY_BYTES_MAX), JwtKeyBody)
        name = check_token_name(body.name)
        published = (body.jwks_url, body.issuer, body.audience)
        secret = None
        if published == (None, None, None):
            secret = new_jwt_secret()
        else:
            _check_published(*published)
        key = JwtKey(
            kid=self._entropy.connection_id(),
            project=project.id,
            name=name,
            created_at_ms=self._clock.now_ms(),
            secret=None if secret is None else secret.encode(),
            jwks_url=body.jwks_url,
            issuer=body.issuer,
            audience=body.audience,
        )
        await self._members.add_key(key)
        await self._changed()
        await self._audit.note(
            request, "created jwt key %r of project %s", name, project.name, project=project.id
        )
        shown = _show_jwt_key(key)
        return Json(shown if secret is None else shown | {"secret": secret}, 201)

    async def jwt_revoke(self, request: Request) -> Response:
        project = await self._reach.in_path(request)
        kid: str = request.path_params["kid"]
        if not _KID.fullmatch(kid):
            raise NotFound("no_such_key", "the project has no such key")
        revoked = await self._members.revoke_key(project.id, kid, now_ms=self._clock.now_ms())
        await self._changed()
        await self._audit.note(
            request,
            "revoked jwt key %r of project %s",
            revoked.name,
            project.name,
            project=project.id,
        )
        return Response(status_code=204)

    # --- revocations ------------------------------------------------------------------------------

    async def revocation_list(self, request: Request) -> Response:
        project = await self._reach.in_path(request)
        found = await self._members.revocation_list(project.id)
        return Json({"data": [_show_revocation(each) for each in found], "next": None})

    async def revocation_create(self, request: Request) -> Response:
        """Connect tokens that were issued until now are not valid any more for this."""
        project = await self._reach.in_path(request)
        body = decode(await read_body(request, bytes_max=BODY_BYTES_MAX), RevocationBody)
        now_ms = self._clock.now_ms()
        if body.sub is not None and body.machine is body.session is None:
            if not 1 <= len(body.sub) <= SUB_CHARS_MAX:
                raise BadRequest("invalid_revocation", "a sub has 1 to 256 characters")
            added = await self._members.revoke(project.id, now_ms=now_ms, sub=body.sub)
            what = f"user {body.sub!r}"
        elif body.sub is None and body.machine is not None and body.session is not None:
            machine = await self._store.machine(body.machine, project=project.id)
            session = check_session_id(body.session, chars_max=self._limits.session_id_chars)
            added = await self._members.revoke(
                project.id, now_ms=now_ms, machine_id=machine.id, session_id=session
            )
            what = f"all users of session {session!r} of {machine.name}"
        else:
            raise BadRequest(
                "invalid_revocation", "a revocation names a sub, or a machine and a session"
            )
        await self._changed()
        await self._audit.note(
            request, "revoked %s of project %s", what, project.name, project=project.id
        )
        return Json(_show_revocation(added), 201)

    async def revocation_delete(self, request: Request) -> Response:
        """Tokens from before it are valid again, if they still are."""
        project = await self._reach.in_path(request)
        number = _number(request, "revocation", "no_such_revocation")
        await self._members.forget_revocation(project.id, number)
        await self._changed()
        await self._audit.note(
            request,
            "took back revocation %d of project %s",
            number,
            project.name,
            project=project.id,
        )
        return Response(status_code=204)


def _number(request: Request, name: str, code: str) -> int:
    text: str = request.path_params[name]
    if not NUMBER.fullmatch(text):
        raise NotFound(code, f"the project has no such {name}")
    return int(text)


def _check_published(jwks_url: str | None, issuer: str | None, audience: str | None) -> None:
    """Raises `BadRequest`."""
    if jwks_url is None or issuer is None or audience is None:
        raise BadRequest(
            "invalid_jwks", "an issuer is named by jwks_url, issuer and audience together"
        )
    for text in (jwks_url, issuer, audience):
        if not 1 <= len(text) <= TEXT_CHARS_MAX or not text.isprintable():
            raise BadRequest(
                "invalid_jwks",
                f"jwks_url, issuer and audience have 1 to {TEXT_CHARS_MAX} characters",
            )
    try:
        read_target(jwks_url)
    except EgressError as error:
        raise BadRequest("invalid_jwks", f"jwks_url: {error.detail}") from None


def _show_jwt_key(key: JwtKey) -> dict[str, Any]:
    return {
        "kid": key.kid,
        "name": key.name,
        "algorithms": ["HS256"] if key.jwks_url is None else ["EdDSA", "ES256", "RS256"],
        "jwks_url": key.jwks_url,
        "issuer": key.issuer,
        "audience": key.audience,
        "created_at": timestamp(key.created_at_ms),
        "revoked_at": timestamp_or_none(key.revoked_at_ms),
    }


def _show_revocation(each: Revocation) -> dict[str, Any]:
    return {
        "id": each.id,
        "sub": each.sub,
        "machine": each.machine_id,
        "session": each.session_id,
        "at": timestamp(each.at_ms),
    }
