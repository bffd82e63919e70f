"""`machinehub nodes`: the hubs that share a database."""

from __future__ import annotations

from typing import Annotated

import typer

from machinehub.cli.common import AsJson, Hub, Server, TokenOption, print_json, say, table


def register(app: typer.Typer) -> None:
    app.command("nodes")(nodes)


def nodes(
    drain: Annotated[
        str | None,
        typer.Option("--drain", help="End the node of this id: others take its sessions over."),
    ] = None,
    server: Server = "",
    token: TokenOption = "",
    as_json: AsJson = False,
) -> None:
    """List the hubs that share a database, with their sessions and load; or drain one."""
    hub = Hub(server, token)
    if drain is not None:
        hub.call("POST", f"/api/v1/nodes/{drain}/drain")
        say(f"node {drain} hands over its sessions, and ends")
        return
    found = hub.read("/api/v1/nodes")["data"]
    if as_json:
        print_json(found)
        return
    if not found:
        say("this hub shares its database with nobody")
        return
    table(
        ["ID", "NODE", "VERSION", "SESSIONS", "CONNECTIONS", "TURNS", "CAPACITY", "STATE"],
        (
            [
                each["id"],
                each["name"],
                each["version"],
                str(each["sessions"]),
                str(each["connections"]),
                str(each["turns"]),
                str(each["capacity"]),
                ("draining" if each["draining"] else "ready")
                + (", answered this" if each["answers"] else ""),
            ]
            for each in found
        ),
    )
