"""`machinehub list, info, versions, activate, rollback, delete, open`: machines and their
versions.
"""

from __future__ import annotations

import sys
import webbrowser
from typing import Annotated

import typer

from machinehub.cli.common import (
    CONFLICT,
    DEFAULT_SERVER,
    USAGE,
    AsJson,
    Hub,
    MachineArgument,
    Server,
    TokenOption,
    fail,
    print_json,
    progress,
    say,
    table,
)


def register(app: typer.Typer) -> None:
    app.command("list")(list_command)
    for command in (info, versions, activate, rollback, delete):
        app.command(command.__name__)(command)
    app.command("set")(change)
    app.command("open")(open_command)


def list_command(
    as_json: AsJson = False, server: Server = DEFAULT_SERVER, token: TokenOption = ""
) -> None:
    """List the hub's machines."""
    machines = list(Hub(server, token).items("/api/v1/machines"))
    if as_json:
        print_json(machines)
        return
    table(
        ["NAME", "ID", "VERSION", "URL"],
        ([m["name"], m["id"], str(m["active_version"] or "-"), m["url"]] for m in machines),
    )


def info(
    machine: MachineArgument,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Show a machine and its active version."""
    hub = Hub(server, token)
    answer = hub.read(hub.machine_path(machine))
    if as_json:
        print_json(answer)
        return
    for key in ("name", "id", "url", "created_at"):
        say(f"{key:<11} {answer[key]}")
    say(f"sessions    {'private' if answer['private'] else 'public'}")
    if version := answer.get("version"):
        say(f"version     {version['number']} ({version['entry']}, {version['created_at']})")
        say(f"digest      {version['digest']}")


def versions(
    machine: MachineArgument,
    prune: Annotated[bool, typer.Option("--prune", help="Delete those that nothing uses.")] = False,
    keep: Annotated[
        int, typer.Option("--keep", min=1, help="With --prune: how many of the newest stay.")
    ] = 10,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """List a machine's versions, newest first; or delete those that are neither active, nor one of
    the newest, nor that of a session.
    """
    hub = Hub(server, token)
    if prune:
        gone = hub.call("POST", f"{hub.machine_path(machine)}/versions/prune", body={"keep": keep})
        count = len(gone["deleted"])
        progress.print(f"{count} version{'' if count == 1 else 's'} deleted", markup=False)
        if as_json:
            print_json(gone)
        return
    found = list(hub.items(hub.machine_path(machine) + "/versions"))
    if as_json:
        print_json(found)
        return
    table(
        ["VERSION", "ACTIVE", "CREATED", "ENTRY", "MESSAGE"],
        (
            [
                str(v["number"]),
                "yes" if v["active"] else "",
                v["created_at"],
                v["entry"],
                v["message"],
            ]
            for v in found
        ),
    )


def change(
    machine: MachineArgument,
    private: Annotated[
        bool, typer.Option("--private/--public", help="Whether sessions want a connect token.")
    ],
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Change whether everybody who knows a machine's URL may use its sessions."""
    hub = Hub(server, token)
    answer = hub.call("PATCH", hub.machine_path(machine), body={"private": private})
    print_json(answer) if as_json else progress.print(
        f"{answer['name']}: {'private' if private else 'public'}", markup=False
    )


def activate(
    machine: MachineArgument,
    number: Annotated[int, typer.Argument(metavar="VERSION", min=1)],
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Make VERSION the one that new sessions get."""
    hub = Hub(server, token)
    answer = hub.call("POST", f"{hub.machine_path(machine)}/versions/{number}/activate")
    print_json(answer) if as_json else progress.print(
        f"{answer['name']}: version {number} is active", markup=False
    )


def rollback(
    machine: MachineArgument,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Activate the version before the active one."""
    hub = Hub(server, token)
    found = list(hub.items(hub.machine_path(machine) + "/versions"))
    current = next((v["number"] for v in found if v["active"]), 0)
    earlier = [v["number"] for v in found if v["number"] < current]
    if not earlier:
        fail("there is no earlier version", CONFLICT)
    activate(machine, max(earlier), as_json, server, token)


def delete(
    machine: MachineArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Delete a machine, its versions and its sessions."""
    hub = Hub(server, token)
    answer = hub.read(hub.machine_path(machine))
    if not yes:
        if not sys.stdin.isatty():
            fail("deleting cannot be undone; say --yes", USAGE)
        typer.confirm(
            f"Delete {answer['name']} ({answer['id']}) with all its sessions?", abort=True, err=True
        )
    hub.call("DELETE", hub.machine_path(answer["id"]))
    progress.print(f"{answer['name']}: deleted", markup=False)


def open_command(
    machine: MachineArgument, server: Server = DEFAULT_SERVER, token: TokenOption = ""
) -> None:
    """Open a machine's page in the browser; print its URL."""
    hub = Hub(server, token)
    url = hub.read(hub.machine_path(machine))["url"]
    say(url)
    webbrowser.open(url)
