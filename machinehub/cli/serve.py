"""`machinehub serve` and `machinehub dev`: a hub in this process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import watchfiles

from machinehub.app import Hub, serve
from machinehub.catalog import Upload
from machinehub.cli.common import Refused, fail, progress, say
from machinehub.cli.project import Project, collect_files, find_project
from machinehub.errors import HubError
from machinehub.logging import configure_logging
from machinehub.settings import Settings, from_environment

if TYPE_CHECKING:
    from collections.abc import Coroutine

Host = Annotated[str | None, typer.Option("--host", help="Address to listen on. [env MACHINEHUB_HOST, default 127.0.0.1]", show_default=False)]
Port = Annotated[int | None, typer.Option("--port", help="Port to listen on. [env MACHINEHUB_PORT, default 8787]", min=1, max=65535, show_default=False)]
Data = Annotated[Path | None, typer.Option("--data", help="Data folder. [env MACHINEHUB_DATA, default ./.machinehub]", show_default=False)]


def register(app: typer.Typer) -> None:
    app.command("serve")(serve_command)
    app.command("dev")(dev_command)


def serve_command(host: Host = None, port: Port = None, data: Data = None) -> None:
    """Start a hub. Ends on SIGTERM or Ctrl-C, telling its clients to come back."""
    configure_logging(structured=True)
    settings = from_environment(os.environ, host=host, port=port, data=data)

    async def ready() -> None:
        progress.print(f"machinehub is ready at {settings.base_url}")

    run(serve(Hub(settings, on_progress=_compiling), on_ready=ready), settings)


def dev_command(
    file: Annotated[Path | None, typer.Argument(help="The machine file; else `main` of machinehub.toml.", show_default=False)] = None,
    name: Annotated[str | None, typer.Option("--name", help="The machine's name.", show_default=False)] = None,
    host: Host = None, port: Port = None, data: Data = None,
) -> None:  # fmt: skip
    """Start a hub here, deploy FILE, and deploy it again whenever it is saved."""
    configure_logging(structured=False)
    settings = from_environment(os.environ, host=host, port=port, data=data)
    project = find_project(file, name)
    hub = Hub(settings, on_progress=_compiling)
    tasks: set[asyncio.Task[None]] = set()

    async def ready() -> None:
        files = await _deploy(hub, project)
        task = asyncio.create_task(_redeploy_on_save(hub, project, files))
        tasks.add(task)

    run(serve(hub, on_ready=ready), settings)


async def _deploy(hub: Hub, project: Project) -> set[Path]:
    """Deploys once. A build that fails is shown, and costs nothing. Returns what to watch."""
    watched = {project.entry_path}
    try:
        files = await collect_files(project, hub.pool)
        watched |= {project.root / path for path in files if "node_modules/" not in path}
        deployed = await hub.catalog.deploy(Upload(name=project.name, entry=project.entry, files=files))
    except HubError as error:
        Refused.of_error(error).show()
        return watched
    except typer.Exit:  # a file that could not be read; the message is out
        return watched
    for warning in deployed.warnings:
        progress.print(f"warning: {warning}", markup=False)
    what = f"version {deployed.version.number}" if deployed.created else f"version {deployed.version.number}, unchanged"
    progress.print(f"{project.name}: {what} in {deployed.total_us / 1000:.0f} ms")
    say(f"{hub.settings.base_url}/{deployed.machine.id}")
    return watched


async def _redeploy_on_save(hub: Hub, project: Project, watched: set[Path]) -> None:
    """Editors replace files rather than write them, so folders are watched and names compared."""
    while True:
        folders = {path.parent for path in watched}
        async for changes in watchfiles.awatch(*folders, recursive=False, debounce=100):
            if any(Path(path) in watched for _, path in changes):
                break
        else:
            return
        watched = await _deploy(hub, project)


def run(main: Coroutine[None, None, None], settings: Settings) -> None:
    try:
        import uvloop

        uvloop.run(main)
    except ImportError:
        asyncio.run(main)
    except SystemExit as stopped:  # how uvicorn says that it could not listen
        if stopped.code:
            fail(f"cannot listen on {settings.host}:{settings.port}; is another hub running there?")
    except OSError as error:
        fail(str(error))


def _compiling(what: str) -> None:
    progress.print(f"compiling {what} (once, cached afterwards)")
