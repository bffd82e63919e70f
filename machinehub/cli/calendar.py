"""`machinehub cron`: a machine's calendar."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from machinehub.cli.common import AsJson, Hub, Server, TokenOption, print_json, say, table

RUNS_SHOWN = 5


def register(app: typer.Typer) -> None:
    app.command("cron")(cron)


def cron(
    machine: Annotated[str, typer.Argument(help="A machine's id or name.", show_default=False)],
    server: Server = "",
    token: TokenOption = "",
    as_json: AsJson = False,
) -> None:
    """List a machine's calendar: when each event is sent next, and what the last times came to."""
    found = Hub(server, token).read(f"/api/v1/machines/{machine}/cron")["data"]
    if as_json:
        print_json(found)
        return
    if not found:
        say("this machine has no calendar: [[cron]] in machinehub.toml")
        return
    table(
        ["NAME", "EXPRESSION", "ZONE", "SESSION", "EVENT", "CATCH UP", "NEXT"],
        (
            [
                each["name"],
                each["expression"],
                each["zone"],
                each["session"],
                each["event"]["type"],
                each["catch_up"],
                each["next_at"] or "never",
            ]
            for each in found
        ),
    )
    for each in found:
        for run in each["runs"][:RUNS_SHOWN]:
            say(f"{each['name']}  {run['at']}  {_outcome(run)}")


def _outcome(run: dict[str, Any]) -> str:
    if run["seq"] is not None:
        return f"accepted, seq {run['seq']}"
    return f"{run['outcome']}: {run['detail']}"
