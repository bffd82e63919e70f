"""The machine's page: one static file for all machines, and its assets. It holds no privilege: it uses the public API.

No value of a machine is ever put into HTML here; the script fetches JSON and writes text nodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from machinehub.errors import NotFound

if TYPE_CHECKING:
    from starlette.requests import Request

STATIC: Final = Path(__file__).parent / "static"
_TYPES: Final = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache",
}  # fmt: skip


def machine_page() -> Response:
    return _static("machine.html")


async def welcome(_request: Request) -> Response:
    return _static("welcome.html")


async def asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in {path.name for path in STATIC.iterdir()}:
        raise NotFound("not_found", "there is no such file")
    return _static(name)


def _static(name: str) -> Response:
    path = STATIC / name
    return Response(path.read_bytes(), headers=_HEADERS, media_type=_TYPES[path.suffix])
