"""`machinehub deploy` and `machinehub check`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from machinehub.cli.common import (
    BROKEN_BUILD,
    DEFAULT_SERVER,
    USAGE,
    AsJson,
    Hub,
    Server,
    TokenOption,
    fail,
    print_json,
    progress,
    say,
    table,
)
from machinehub.cli.payloads import payloads_of
from machinehub.cli.project import collect_files, find_project, forge, gather
from machinehub.limits import Limits, lowered
from machinehub.model import place_and_text

if TYPE_CHECKING:
    from machinehub.cli.budget import Measured

File = Annotated[
    Path | None,
    typer.Argument(help="The machine file; else `main` of machinehub.toml.", show_default=False),
]

BudgetOption = Annotated[
    bool,
    typer.Option(
        "--budget", help="Send the machine its example events, and print what each costs."
    ),
]
EventsOption = Annotated[
    Path | None,
    typer.Option(
        "--events",
        help=(
            "Those events: a file with a JSON list. Else `[[examples]]` of machinehub.toml, "
            "else one of each type."
        ),
        show_default=False,
    ),
]


StrictOption = Annotated[bool, typer.Option("--strict", help="Take warnings for errors.")]


def register(app: typer.Typer) -> None:
    app.command("deploy")(deploy)
    app.command("check")(check)


def deploy(
    file: File = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="The machine's name; else the file's.", show_default=False),
    ] = None,
    message: Annotated[str, typer.Option("--message", "-m", help="What changed.")] = "",
    activate: Annotated[
        bool,
        typer.Option("--activate/--no-activate", help="Whether new sessions get this version."),
    ] = True,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public",
            help="Whether its sessions want a connect token.",
            show_default=False,
        ),
    ] = None,
    strict: StrictOption = False,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Upload FILE and what it imports, and go live. The last line on stdout is the URL."""
    project = find_project(file, name)
    files = gather(project)
    with progress.status("deploying"):
        body = {
            "name": project.name,
            "entry": project.entry,
            "files": files,
            "message": message,
            "activate": activate,
            "strict": strict,
            "payloads": msgspec.to_builtins(payloads_of(files, project.entry)),
            "machine": msgspec.structs.asdict(project.machine),
            "limits": msgspec.to_builtins(project.limits),
            "access": msgspec.to_builtins(project.access),
            "cron": msgspec.to_builtins(project.cron),
            "egress": msgspec.to_builtins(project.egress),
            "webhooks": msgspec.to_builtins(project.webhooks),
            "private": project.private if private is None else private,
        }
        answer = Hub(server, token).call("POST", "/api/v1/deployments", body=body)
    for warning in answer["warnings"]:
        progress.print(f"warning: {warning}", markup=False)
    if as_json:
        print_json(answer)
        return
    what = "" if answer["created"] else ", unchanged"
    progress.print(
        (
            f"{answer['machine']['name']}: version {answer['version']['number']}{what} in "
            f"{answer['timings_ms']['total']:.0f} ms"
            f"{', private' if answer['machine']['private'] else ''}"
        ),
        markup=False,
    )
    say(answer["machine"]["url"])


def check(
    file: File = None,
    budget: BudgetOption = False,
    events: EventsOption = None,
    strict: StrictOption = False,
    as_json: AsJson = False,
) -> None:
    """Build FILE here, without deploying it; print its states and events.

    Exit code 6 when it does not build, an example exceeds a limit, or with --strict there is a
    warning.
    """
    from machinehub.cli.budget import Answers, measure
    from machinehub.control.builds import Build, build
    from machinehub.control.uploads import Upload, check_upload

    project = find_project(file, None)
    budget = budget or events is not None
    given = _read_events(events) if events is not None else project.examples
    limits = lowered(Limits(), project.limits)
    answers = Answers()

    async def work() -> tuple[Build, list[Measured]]:
        async with forge(project.root, listener=answers if budget else None) as pool:
            upload = Upload(
                name=project.name,
                entry=project.entry,
                files=await collect_files(project, pool),
                machine=project.machine,
                limits=project.limits,
                access=project.access,
                cron=project.cron,
                egress=project.egress,
                webhooks=project.webhooks,
            )
            built = await build(pool, check_upload(upload, Limits()), Limits())
            if not budget:
                return built, []
            names = msgspec.json.decode(built.definition)["events"]
            examples = given or [
                {"type": name}
                for name in names
                if not name.startswith("presence.") and "*" not in name
            ]
            return built, await measure(pool, answers, built.image, examples, limits)

    built, measured = asyncio.run(work())
    definition: dict[str, Any] = msgspec.json.decode(built.definition)
    for warning in built.warnings:
        progress.print(f"warning: {place_and_text(warning)}", markup=False)
    if as_json:
        costs = {"budget": [each.as_json() for each in measured]} if budget else {}
        print_json(definition | costs)
    else:
        _show(definition)
        if budget:
            _show_costs(measured)
    if any(map(_is_broken, measured)) or (strict and built.warnings):
        raise typer.Exit(BROKEN_BUILD)


def _show(definition: dict[str, Any]) -> None:
    say(f"{definition['id']}: builds")
    say("states:")
    _show_states(definition["root"], 1)
    say(f"events: {', '.join(definition['events']) or 'none'}")


def _show_costs(measured: list[Measured]) -> None:
    header = ["EVENT", "OUTCOME", "CPU us", "OF ITS LIMIT", "MEMORY KiB", "FUEL"]
    table(header, map(_row, measured))
    for each in measured:
        if each.detail:
            say(f"{each.event}: {each.detail}")


def _is_broken(each: Measured) -> bool:
    """Whether the machine cannot do this: it exceeds a limit, or does not even start."""
    does_not_start = each.event == "(start)" and each.outcome != "accepted"
    return does_not_start or each.outcome.endswith("_exceeded")


def _row(each: Measured) -> list[str]:
    share = each.cost.cpu_us / (each.cpu_ms_max * 10)
    return [
        each.event,
        each.outcome,
        str(each.cost.cpu_us),
        f"{share:.1f} %",
        str(each.cost.memory_bytes // 1024),
        str(each.cost.fuel),
    ]


def _read_events(path: Path) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[dict[str, Any]])
    except (OSError, msgspec.MsgspecError) as error:
        fail(f"{path}: {error}; a JSON list of events is wanted", USAGE)


def _show_states(node: dict[str, Any], depth: int) -> None:
    for key, child in node.get("states", {}).items():
        marks = [child["type"]] if child["type"] not in ("atomic", "compound") else []
        if node.get("initial") == child["id"]:
            marks.append("initial")
        say("  " * depth + key + (f" ({', '.join(marks)})" if marks else ""))
        _show_states(child, depth + 1)
