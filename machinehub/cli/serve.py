"""`machinehub serve` and `machinehub dev`: a hub in this process."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from machinehub.cli.common import Compiling, Refused, fail, plain, progress, say
from machinehub.cli.project import Files, Project, find_project
from machinehub.errors import HubError
from machinehub.logging import configure_logging
from machinehub.session.port import Address
from machinehub.settings import Settings, from_environment

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from machinehub.app import Hub
    from machinehub.cli.appserver import AppServer
    from machinehub.control.catalog import Deployed

SESSIONS_LOOKED_AT = 500
SESSIONS_NAMED = 5

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


def register(app: typer.Typer) -> None:
    app.command("serve")(serve_command)
    app.command("dev")(dev_command)


def serve_command(host: Host = None, port: Port = None, data: Data = None) -> None:
    """Start a hub. Ends on SIGTERM or Ctrl-C, telling its clients to come back."""
    from machinehub.app import Hub
    from machinehub.server import serve

    configure_logging(structured=True)
    settings = from_environment(os.environ, host=host, port=port, data=data)

    compiling = Compiling()

    async def ready() -> None:
        compiling.ended()
        progress.print(f"machinehub is ready at {settings.base_url}")

    async def main() -> None:
        try:
            await serve(Hub(settings, on_progress=compiling.begun), on_ready=ready)
        finally:
            compiling.ended()

    run(main(), settings)


def dev_command(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="The machine file; else `main` of machinehub.toml.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The machine's name.", show_default=False)
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="After a save, start all sessions anew on the new version, too."
        ),
    ] = False,
    host: Host = None,
    port: Port = None,
    data: Data = None,
) -> None:
    """Start a hub here, deploy FILE, and deploy it again whenever it is saved."""
    from machinehub.app import Hub
    from machinehub.server import serve

    configure_logging(structured=False)
    settings = from_environment(os.environ, host=host, port=port, data=data)
    project = find_project(file, name)

    async def main() -> None:
        compiling = Compiling()
        hub = Hub(settings, on_progress=compiling.begun)
        files = Files(project)
        watching: list[asyncio.Task[None]] = []
        app = _app_of(project, settings)

        async def ready() -> None:
            compiling.ended()
            redeploying = _redeploy_on_save(hub, project, files, app, fresh=fresh)
            watching.append(asyncio.create_task(redeploying))

        try:
            await serve(hub, on_ready=ready)
        finally:
            compiling.ended()
            for task in watching:
                task.cancel()
            await asyncio.gather(*watching, return_exceptions=True)
            await files.close()
            if app is not None:
                app.close()

    run(main(), settings)


def _app_of(project: Project, settings: Settings) -> AppServer | None:
    """What serves the project's app, if it has one beside its machine."""
    from machinehub.cli.appserver import FOLDER, AppServer

    folder = project.entry_path.parent / FOLDER
    return AppServer(folder, settings.port) if (folder / "index.html").is_file() else None


async def _deploy(
    hub: Hub,
    project: Project,
    files: Files,
    known: set[Path],
    app: AppServer | None,
    *,
    fresh: bool,
) -> set[Path]:
    """Deploys once. A build that fails is shown, and costs nothing.

    Returns what to watch: of a build that fails what was `known` before, and the files that its
    errors name.
    """
    from machinehub.cli.payloads import payloads_of
    from machinehub.control.uploads import Upload

    watched = known
    try:
        found = await files.collect()
        watched = {project.root / path for path in found if "node_modules/" not in path}
        deployed = await hub.catalog.deploy(
            Upload(
                name=project.name,
                entry=project.entry,
                files=found,
                payloads=payloads_of(found, project.entry),
                machine=project.machine,
                limits=project.limits,
            )
        )
    except HubError as error:
        Refused.of_error(error).show()
        return watched | {project.root / each["file"] for each in error.errors if each.get("file")}
    except typer.Exit:  # a file that could not be read; the message is out
        return watched
    for warning in deployed.version.warnings:
        progress.print(f"warning: {plain(warning)}")
    what = (
        f"version {deployed.version.number}"
        if deployed.created
        else f"version {deployed.version.number}, unchanged"
    )
    progress.print(f"{project.name}: {what} in {deployed.total_us / 1000:.0f} ms")
    url = f"{hub.settings.base_url}/{deployed.machine.id}"
    if app is not None:
        if not app.machine_url:
            progress.print(f"app: {app.url}", style="bold")
        app.machine_url = url
    elif not known - {project.entry_path}:
        client = f"{hub.settings.base_url}/assets/machinehub-client.tgz"
        progress.print(f"the client, for an app: npm install {client}", style="dim")
    say(url)
    if deployed.created and deployed.version.number > 1:
        await _tell_of_sessions(hub, deployed, fresh=fresh)
    return watched


async def _tell_of_sessions(hub: Hub, deployed: Deployed, *, fresh: bool) -> None:
    """Sessions stay on the version that they began on: says which they are, or starts them anew."""
    machine, number = deployed.machine, deployed.version.number
    found = await hub.sessions.summaries(machine.id, after=None, limit=SESSIONS_LOOKED_AT)
    older = [each for each in found if each.version != number]
    if not older:
        return
    if not fresh:
        names = ", ".join(str(each.session_id) for each in older[:SESSIONS_NAMED])
        more = "" if len(older) <= SESSIONS_NAMED else ", ..."
        stays = "1 session stays" if len(older) == 1 else f"{len(older)} sessions stay"
        progress.print(
            f"{stays} on an older version: {plain(names + more)}. Start one anew with "
            f"`machinehub restart {machine.name}/SESSION`, or all of them after each save with "
            "`machinehub dev --fresh`"
        )
        return
    for each in older:
        try:
            await hub.sessions.restart(Address(machine.id, each.session_id))
        except HubError as error:
            progress.print(f"{plain(each.session_id)} was not started anew: {plain(error.detail)}")
    progress.print(f"{len(older)} started anew on version {number}")


async def _redeploy_on_save(
    hub: Hub, project: Project, files: Files, app: AppServer | None, *, fresh: bool
) -> None:
    """Deploys now, and again after every save.

    Editors replace files rather than write them, so folders are watched.
    """
    import watchfiles

    watched = {project.entry_path}
    while True:
        # Read before deploying, so that a save while it deploys counts as one after it.
        seen = _contents(watched)
        watched = await _deploy(hub, project, files, watched, app, fresh=fresh)
        seen = {path: seen.get(path, content) for path, content in _contents(watched).items()}
        folders = {path.parent for path in watched}
        async for _ in watchfiles.awatch(
            *folders, recursive=False, debounce=50, step=20, yield_on_timeout=True, rust_timeout=500
        ):
            if _contents(watched) != seen:  # compared by content: a touch is no save
                break
        else:
            return


def _contents(paths: set[Path]) -> dict[Path, bytes | None]:
    """What is in the files; None for one that is not there just now."""
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


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
            fail(f"cannot listen on {settings.host}:{settings.port}; is another hub running there?")
    except OSError as error:
        fail(f"{error.filename or 'the hub'}: {error.strerror or error}")
    except Unavailable as error:
        fail(error.detail)
    except SQLAlchemyError as error:
        fail(f"the database cannot be used: {str(error).splitlines()[0]}")
