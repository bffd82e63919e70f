"""Errors become HTTP here and nowhere else: problem+json (RFC 9457)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from machinehub.errors import HubError, Unauthorised, Unavailable

if TYPE_CHECKING:
    from starlette.requests import Request

log = logging.getLogger("machinehub.api")


class Json(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return msgspec.json.encode(content)


def problem(error: HubError) -> Response:
    body: dict[str, Any] = {
        "type": f"https://machinehub.dev/errors/{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        **error.more,
    }
    if error.errors:
        body["errors"] = error.errors
    headers = {}
    if isinstance(error, Unauthorised):
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, Unavailable):
        headers["Retry-After"] = "1"
    return Response(msgspec.json.encode(body), error.status, headers, "application/problem+json")


async def on_hub_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HubError)
    return problem(error)


async def on_http_exception(_request: Request, error: Exception) -> Response:
    """Starlette's own refusals: an unknown path, a method that a path does not have."""
    status: int = getattr(error, "status_code", 500)
    code = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(
        status, "bad_request"
    )
    body = {
        "type": "about:blank",
        "title": getattr(error, "detail", "Error"),
        "status": status,
        "detail": getattr(error, "detail", ""),
        "code": code,
    }
    return Response(
        msgspec.json.encode(body),
        status,
        getattr(error, "headers", None) or {},
        "application/problem+json",
    )


async def on_unexpected(request: Request, error: Exception) -> Response:
    """A bug of ours. The caller learns that, and nothing of its insides."""
    log.error("unexpected error in %s %r", request.method, request.url.path, exc_info=error)
    body = {
        "type": "about:blank",
        "title": "Internal error",
        "status": 500,
        "detail": "this is a bug of the hub, not yours",
        "code": "internal_error",
    }
    return Response(msgspec.json.encode(body), 500, None, "application/problem+json")
