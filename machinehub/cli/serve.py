"""`machinehub serve`: a hub in this process; and what `dev` shares with it."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from machinehub.cli.common import FAILED, USAGE, Compiling, fail, progress
from machinehub.logging import configure_logging
from machinehub.settings import Settings, from_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

log = logging.getLogger("machinehub")

Host = Annotated[
    str | None,
    typer.Option(
        "--host",
        help="Address to listen on. [env MACHINEHUB_HOST, default 127.0.0.1]",
        show_default=False,
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        "--port",
        help="Port to listen on. [env MACHINEHUB_PORT, default 8787]",
        min=1,
        max=65535,
        show_default=False,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Data folder. [env MACHINEHUB_DATA, default ./.machinehub]",
        show_default=False,
    ),
]

Nodes = Annotated[
    str | None,
    typer.Option(
        "--nodes",
        help="Run so many nodes behind one port, or `auto`; with Postgres and NATS.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    app.command("serve")(serve_command)


def serve_command(
    host: Host = None, port: Port = None, data: Data = None, nodes: Nodes = None
) -> None:
    """Start a hub. Ends on SIGTERM or Ctrl-C, telling its clients to come back."""
    from machinehub.app import Hub
    from machinehub.server import serve

    configure_logging(structured=True)
    settings = from_environment(os.environ, host=host, port=port, data=data)
    if nodes is not None:
        _serve_nodes(settings, nodes)
        return

    compiling = Compiling()

    async def ready() -> None:
        compiling.ended()
        listens = f"http://{settings.host}:{settings.port}"
        where = "" if settings.base_url == listens else f" (listening on {listens})"
        _tell(f"machinehub is ready at {settings.base_url}{where}")

    async def main() -> None:
        try:
            await serve(Hub(settings, on_progress=_begun(compiling)), on_ready=ready)
        finally:
            compiling.ended()

    run(main(), settings)


def _serve_nodes(settings: Settings, nodes: str) -> None:
    from machinehub.cli.supervisor import Supervisor, count_of, node_command

    try:
        count = count_of(nodes)
    except ValueError:
        fail(f"--nodes: {nodes!r} is not a number from 1 to 64, and not auto", USAGE)
    if count > 1 and not settings.nats_url:
        fail(
            "several nodes need Postgres and NATS: set MACHINEHUB_DATABASE_URL and "
            "MACHINEHUB_NATS_URL (docs/cluster.md)",
            USAGE,
        )
    _tell(f"{count} nodes listen at http://{settings.host}:{settings.port}")
    run(Supervisor(settings, count, node_command(settings)).run(), settings)


def _tell(text: str) -> None:
    """To whoever started the hub: in words on a terminal, else as a line of the log."""
    if sys.stderr.isatty():
        progress.print(text, markup=False)
    else:
        log.info(text)


def _begun(compiling: Compiling) -> Callable[[str], None]:
    if sys.stderr.isatty():
        return compiling.begun
    return lambda what: log.info("compiling %s, once; it is kept", what)


def _end(text: str) -> NoReturn:
    """The hub does not start, or ends in an accident."""
    if sys.stderr.isatty() or not log.isEnabledFor(logging.INFO):
        fail(text)
    log.critical("error: %s", " ".join(text.split()))
    raise typer.Exit(FAILED)


def run(main: Coroutine[None, None, None], settings: Settings) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from machinehub.errors import Unavailable

    try:
        import uvloop

        uvloop.run(main)
    except ImportError:
        asyncio.run(main)
    except SystemExit as stopped:  # how uvicorn says that it could not listen
        if stopped.code:
            _end(f"cannot listen on {settings.host}:{settings.port}; is another hub running there?")
    except OSError as error:
        _end(f"{error.filename or 'the hub'}: {error.strerror or error}")
    except Unavailable as error:
        _end(error.detail)
    except SQLAlchemyError as error:
        _end(f"the database cannot be used: {str(error).splitlines()[0]}")
