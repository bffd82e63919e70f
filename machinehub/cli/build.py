"""`machinehub deploy` and `machinehub check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from machinehub.cli.common import DEFAULT_SERVER, AsJson, Hub, Server, TokenOption, print_json, progress, say
from machinehub.cli.project import collect_files, find_project, gather, with_forge
from machinehub.limits import Limits

if TYPE_CHECKING:
    from machinehub.workers import WorkerPool

File = Annotated[Path | None, typer.Argument(help="The machine file; else `main` of machinehub.toml.", show_default=False)]


def register(app: typer.Typer) -> None:
    app.command("deploy")(deploy)
    app.command("check")(check)


def deploy(
    file: File = None,
    name: Annotated[str | None, typer.Option("--name", help="The machine's name; else the file's.", show_default=False)] = None,
    message: Annotated[str, typer.Option("--message", "-m", help="What changed.")] = "",
    activate: Annotated[bool, typer.Option("--activate/--no-activate", help="Whether new sessions get this version.")] = True,
    as_json: AsJson = False, server: Server = DEFAULT_SERVER, token: TokenOption = "",
) -> None:  # fmt: skip
    """Upload FILE and what it imports, and go live. The last line on stdout is the URL."""
    project = find_project(file, name)
    files = gather(project)
    with progress.status("deploying"):
        body = {"name": project.name, "entry": project.entry, "files": files, "message": message, "activate": activate, "machine": msgspec.structs.asdict(project.machine)}
        answer = Hub(server, token).call("POST", "/api/v1/deployments", body=body)
    for warning in answer["warnings"]:
        progress.print(f"warning: {warning}", markup=False)
    if as_json:
        print_json(answer)
        return
    what = "" if answer["created"] else ", unchanged"
    progress.print(f"{answer['machine']['name']}: version {answer['version']['number']}{what} in {answer['timings_ms']['total']:.0f} ms", markup=False)
    say(answer["machine"]["url"])


def check(file: File = None, as_json: AsJson = False) -> None:
    """Build FILE here, without deploying it; print its states and events. Exit code 6 when it does not build."""
    from machinehub.catalog import Upload, build, check_upload

    project = find_project(file, None)

    async def work(pool: WorkerPool) -> dict[str, Any]:
        limits = Limits()
        upload = Upload(name=project.name, entry=project.entry, files=await collect_files(project, pool), machine=project.machine)
        check_upload(upload, limits)
        built = await build(pool, upload, limits)
        definition: dict[str, Any] = msgspec.json.decode(built.definition)
        return definition

    definition = with_forge(work)
    if as_json:
        print_json(definition)
        return
    say(f"{definition['id']}: builds")
    say("states:")
    _show_states(definition["root"], 1)
    say(f"events: {', '.join(definition['events']) or 'none'}")


def _show_states(node: dict[str, Any], depth: int) -> None:
    for key, child in node.get("states", {}).items():
        marks = [child["type"]] if child["type"] not in ("atomic", "compound") else []
        if node.get("initial") == child["id"]:
            marks.append("initial")
        say("  " * depth + key + (f" ({', '.join(marks)})" if marks else ""))
        _show_states(child, depth + 1)
