"""`machinehub dev`: a hub in this process, and a machine that is deployed whenever it is saved."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from machinehub.cli.common import USAGE, Compiling, Refused, fail, plain, progress, say
from machinehub.cli.project import Files, Project, config_path, find_project
from machinehub.cli.serve import Data, Host, Port, run
from machinehub.effects.mocked import read_mocks
from machinehub.errors import HubError
from machinehub.logging import configure_logging
from machinehub.session.port import Address
from machinehub.settings import from_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.app import Hub
    from machinehub.cli.appserver import AppServer
    from machinehub.control.catalog import Deployed
    from machinehub.effects.asked import Asked
    from machinehub.ids import MachineId
    from machinehub.logs import LogLine
    from machinehub.settings import Settings
    from sandbox.protocol.effects import Answer

SESSIONS_LOOKED_AT = 500
SESSIONS_NAMED = 5
USUAL_PORT = 8787


FreshOption = Annotated[
    bool,
    typer.Option("--fresh", help="After a save, start all sessions anew on the new version, too."),
]
MockOption = Annotated[
    Path | None,
    typer.Option(
        "--mock",
        help="Answer what machines ask of the world from this file, in the world's place.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    app.command("dev")(dev_command)


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
    fresh: FreshOption = False,
    mock: MockOption = None,
    host: Host = None,
    port: Port = None,
    data: Data = None,
) -> None:
    """Start a hub here, deploy FILE, and deploy it again whenever it is saved."""
    from machinehub.app import Hub
    from machinehub.server import serve

    configure_logging(structured=False)
    mocked = None if mock is None else str(_readable(mock))
    settings = from_environment(os.environ, host=host, port=port, data=data, egress_mock=mocked)

    def find() -> Project:
        return find_project(file, name)

    project = find()

    async def main() -> None:
        compiling = Compiling()
        hub = Hub(settings, on_progress=compiling.begun)
        files = Files(project)
        watching: list[asyncio.Task[None]] = []
        app = _app_of(project, settings)

        hub.broker.on_call = _show_call

        async def ready() -> None:
            compiling.ended()
            developing = Developing(hub, files, app, find=find, fresh=fresh)
            watching.append(asyncio.create_task(developing.go_on()))

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


class Developing:
    """The loop of a developer: save, deploy, look. `find` reads the configuration anew."""

    def __init__(
        self,
        hub: Hub,
        files: Files,
        app: AppServer | None,
        *,
        find: Callable[[], Project],
        fresh: bool,
    ) -> None:
        self._hub = hub
        self._files = files
        self._app = app
        self._find = find
        self._fresh = fresh
        self._watched = {files.project.entry_path, config_path(files.project)}
        self._told: set[MachineId] = set()
        """Machines of which everything was said that is said once."""

    async def go_on(self) -> None:
        """Deploys now, and again after every save.

        Editors replace files rather than write them, so folders are watched. After a build that
        failed packages are watched as well: what was missing may be installed.
        """
        import watchfiles

        root = self._files.project.root
        packages = {root / "package.json", root / "node_modules" / ".package-lock.json"}
        while True:
            # Read before deploying, so that a save while it deploys counts as one after it.
            before = _contents(self._watched | packages)
            watched = await self._deploy()
            self._watched = watched or self._watched
            looked_at = self._watched | (set() if watched else packages)
            seen = {path: before.get(path, new) for path, new in _contents(looked_at).items()}
            async for _ in watchfiles.awatch(
                *{path.parent for path in looked_at if path.parent.is_dir()},
                recursive=False,
                debounce=50,
                step=20,
                yield_on_timeout=True,
                rust_timeout=500,
            ):
                if _contents(looked_at) != seen:  # compared by content: a touch is no save
                    break
            else:
                return

    async def _deploy(self) -> set[Path]:
        """Deploys once, and returns the files to watch. A build that fails is shown, and costs
        nothing: none are returned then, and those that its errors name are watched besides.
        """
        from machinehub.cli.payloads import payloads_of
        from machinehub.control.uploads import Upload

        project = self._files.project
        try:
            project = self._files.project = self._find()
            found = await self._files.collect()
            watched = {project.root / path for path in found if "node_modules/" not in path}
            deployed = await self._hub.catalog.deploy(
                Upload(
                    name=project.name,
                    entry=project.entry,
                    files=found,
                    payloads=payloads_of(found, project.entry),
                    machine=project.machine,
                    limits=project.limits,
                    access=project.access,
                    cron=project.cron,
                    egress=project.egress,
                    webhooks=project.webhooks,
                    private=project.private,
                )
            )
        except HubError as error:
            Refused.of_error(error).show()
            self._watched |= {project.root / each["file"] for each in error.errors if each["file"]}
            return set()
        except typer.Exit:  # a file that could not be read; the message is out
            return set()
        await self._tell(deployed)
        return watched | {config_path(project)}

    async def _tell(self, deployed: Deployed) -> None:
        machine, number = deployed.machine, deployed.version.number
        for warning in deployed.version.warnings:
            progress.print(f"warning: {plain(warning)}")
        what = f"version {number}" + ("" if deployed.created else ", unchanged")
        progress.print(f"{machine.name}: {what} in {deployed.total_us / 1000:.0f} ms")
        url = f"{self._hub.settings.base_url}/{machine.id}"
        if machine.id not in self._told:
            self._told.add(machine.id)
            self._tell_once(machine.id, url)
        say(url)
        if deployed.created and number > 1:
            await self._tell_of_sessions(deployed)

    def _tell_once(self, machine_id: MachineId, url: str) -> None:
        settings = self._hub.settings
        if self._app is not None:
            self._app.machine_url = url
            progress.print(f"app: {self._app.url}", style="bold")
        else:
            client = f"{settings.base_url}/assets/machinehub-client.tgz"
            progress.print(f"the client, for an app: npm install {client}", style="dim")
        if settings.port != USUAL_PORT:
            progress.print(
                f"in other terminals: export MACHINEHUB_SERVER={settings.base_url}", style="dim"
            )
        self._hub.logs.follow(machine_id, _show_error)

    async def _tell_of_sessions(self, deployed: Deployed) -> None:
        """Sessions stay on the version that they began on: says which, or starts them anew."""
        machine, number = deployed.machine, deployed.version.number
        found = await self._hub.sessions.summaries(machine.id, after=None, limit=SESSIONS_LOOKED_AT)
        older = [each for each in found if each.version != number]
        if not older:
            return
        if not self._fresh:
            names = ", ".join(str(each.session_id) for each in older[:SESSIONS_NAMED])
            more = "" if len(older) <= SESSIONS_NAMED else ", ..."
            stays = "1 session stays" if len(older) == 1 else f"{len(older)} sessions stay"
            progress.print(
                f"{stays} on an older version: {plain(names + more)}. Start one anew with "
                f"`machinehub restart {machine.name}/SESSION`, or all of them after each save with "
                "`machinehub dev --fresh`"
            )
            return
        anew = 0
        for each in older:
            try:
                await self._hub.sessions.restart(Address(machine.id, each.session_id))
                anew += 1
            except HubError as error:
                progress.print(
                    f"{plain(each.session_id)} was not started anew: {plain(error.detail)}"
                )
        progress.print(f"{anew} started anew on version {number}")


def _readable(mock: Path) -> Path:
    """Ends the command for a file that answers nothing."""
    try:
        read_mocks(mock)
    except (OSError, ValueError) as error:
        fail(f"{mock}: {error}", USAGE)
    return mock.resolve()


def _show_call(address: Address, asked: Asked, answer: Answer, took_ms: int) -> None:
    """What a machine asked of the world."""
    request = asked.request
    came = f"{answer.error.code}" if answer.error else f"{answer.status}, {answer.body_bytes} bytes"
    where = f"{request.method} {request.url}"
    progress.print(
        plain(f"{address.session_id}: {where} -> {came} in {took_ms} ms"),
        style="red" if answer.error else "dim",
    )


def _show_error(line: LogLine) -> None:
    """A developer wants to hear at once of an event that was rejected."""
    if line.level == "error":
        progress.print(f"{plain(line.session)}: {plain(line.text)}", style="red")


def _contents(paths: set[Path]) -> dict[Path, bytes | None]:
    """What is in the files; None for one that is not there just now."""
    return {path: path.read_bytes() if path.is_file() else None for path in paths}
