"""Errors become HTTP here and nowhere else: problem+json (RFC 9457)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec
from starlette.responses import Response

from machinehub.errors import HubError, Unauthorised, Unavailable

if TYPE_CHECKING:
    from starlette.requests import Request

log = logging.getLogger("machinehub.edge")

MEDIA_TYPE: Final = "application/problem+json"
_STARLETTES: Final = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def problem_body(status: int, title: str, code: str, detail: str, **more: Any) -> bytes:
    """The JSON of a problem. `code` is one of docs/errors.md."""
    return msgspec.json.encode(
        {
            "type": f"https://machinehub.dev/errors/{code}",
            "title": title,
            "status": status,
            "detail": detail,
            "code": code,
            **more,
        }
    )


def problem(error: HubError) -> Response:
    more = error.more | ({"errors": error.errors} if error.errors else {})
    headers = {}
    if isinstance(error, Unauthorised):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = "1"
    body = problem_body(error.status, error.title, error.code, error.detail, **more)
    return Response(body, error.status, headers, MEDIA_TYPE)


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """Starlette's own refusals: an unknown path, a method that a path does not have."""
    status: int = getattr(error, "status_code", 500)
    detail: str = getattr(error, "detail", "Error")
    body = problem_body(status, detail, _STARLETTES.get(status, "bad_request"), detail)
    return Response(body, status, getattr(error, "headers", None) or {}, MEDIA_TYPE)


async def on_unexpected(request: Request, error: Exception) -> Response:
    """A bug of ours. The caller learns that, and nothing of its insides."""
    log.error("unexpected error in %s %r", request.method, request.url.path, exc_info=error)
    detail = "this is a bug of the hub, not yours"
    return Response(
        problem_body(500, "Internal error", "internal_error", detail), 500, None, MEDIA_TYPE
    )
