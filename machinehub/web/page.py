"""The machine's page: one static file for all machines, and its assets, built from clients/page.
Among them is the client as an npm package, so that `npm install` of a hub's URL installs it.

It holds no privilege: it uses the public API.

No value of a machine is ever put into HTML here; the script fetches JSON and writes text.
"""

from __future__ import annotations

import base64
import hashlib
import html
from pathlib import Path
from typing import TYPE_CHECKING, Final

from starlette.responses import Response

from machinehub.errors import NotFound

if TYPE_CHECKING:
    from starlette.requests import Request

STATIC: Final = Path(__file__).parent / "static"
CLIENT: Final = "client.js"
"""The client package in one file, for pages without a bundler. Any site may import it."""
PACKAGE: Final = "machinehub-client.tgz"
"""The client as an npm package. The file's name has its version behind the dash; both names are
served.
"""
_TYPES: Final = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".html": "text/html",
    ".tgz": "application/gzip",
}
_PAGE: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src "
        "'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
}
BASE_PATH: Final = "machinehub.base_path"
"""Where the ASGI scope carries the path that the hub has on its site, if it has one."""
_ALWAYS: Final = {"Referrer-Policy": "no-referrer"}
_FRESH: Final = {"Cache-Control": "no-cache"}
_FOREVER: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
"""For files whose names change with what is in them."""


def page(request: Request, *, status: int = 200) -> Response:
    """The page, whichever machine and session its address names.

    Raises `NotFound` when it was not built.
    """
    response = _static(request, "index.html", _PAGE | _FRESH)
    response.status_code = status
    base = request.scope.get(BASE_PATH, "")
    return _moved(response, base) if base else response


async def welcome(request: Request) -> Response:
    return page(request)


async def asset(request: Request) -> Response:
    name = request.path_params["name"]
    if name == CLIENT:
        return _static(
            request,
            name,
            _FRESH
            | {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"},
        )
    if name == PACKAGE:
        name = next((path.name for path in STATIC.glob("machinehub-client-*.tgz")), name)
    if name.endswith(".tgz"):
        return _package(request, name)
    return _static(request, name, _FOREVER if "-" in name else _FRESH)


def _moved(response: Response, base: str) -> Response:
    """The page as it is below a base path: its files are named from there, and a `meta` element
    says it to the page's script.
    """
    text = (STATIC / "index.html").read_text()
    quoted = html.escape(base, quote=True)
    text = text.replace('"/assets/', f'"{quoted}/assets/').replace(
        "<head>", f'<head><meta name="machinehub-base" content="{quoted}">', 1
    )
    headers = {
        name: value
        for name, value in response.headers.items()
        if name not in ("content-encoding", "content-length", "content-type")
    }
    return Response(text, response.status_code, headers, _TYPES[".html"])


def _package(request: Request, name: str) -> Response:
    """An npm package, with what npm calls its integrity in `Repr-Digest` (RFC 9530)."""
    response = _static(request, name, _FRESH)
    digest = base64.b64encode(hashlib.sha512(response.body).digest()).decode()
    response.headers["Repr-Digest"] = f"sha-512=:{digest}:"
    return response


def _static(request: Request, name: str, headers: dict[str, str]) -> Response:
    path = STATIC / name
    if path.suffix not in _TYPES or name not in {there.name for there in STATIC.glob("*")}:
        raise NotFound(
            "not_found",
            f"there is no file {name!r} here"
            if name != "index.html"
            else "this hub was installed without its page: `make page` builds it",
        )
    headers = _ALWAYS | headers | {"Vary": "Accept, Accept-Encoding"}
    zipped = path.with_name(name + ".gz")
    if "gzip" in request.headers.get("accept-encoding", "") and zipped.exists():
        return Response(
            zipped.read_bytes(),
            headers=headers | {"Content-Encoding": "gzip"},
            media_type=_TYPES[path.suffix],
        )
    return Response(path.read_bytes(), headers=headers, media_type=_TYPES[path.suffix])
