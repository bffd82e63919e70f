"""Hubs that this user has logged in to: `machinehub login, logout, whoami`. `--server` takes their
names.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from machinehub.cli.common import (
    DEFAULT_SERVER,
    NOT_FOUND,
    UNAUTHORISED,
    USAGE,
    AsJson,
    Hub,
    Server,
    TokenOption,
    fail,
    print_json,
    progress,
    say,
)
from machinehub.cli.known import Known, forget, known, remember

if TYPE_CHECKING:
    from collections.abc import Mapping


def register(app: typer.Typer) -> None:
    app.command("login")(login)
    app.command("logout")(logout)
    app.command("whoami")(whoami)


def login(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="What `--server` is to call this hub.")
    ],
    server: Annotated[str, typer.Option("--server", help="The hub's URL.")],
    token: TokenOption = "",
) -> None:
    """Keep a hub's URL and a token for it, in the user's configuration folder. The token is asked
    for, or read from stdin where that is no terminal.
    """
    if "://" not in server:
        fail(f"{server!r} is not a URL", USAGE)
    if "://" in name or not name.isprintable() or not 1 <= len(name) <= 64:
        fail("a name has 1 to 64 characters, and is no URL", USAGE)
    if not token:
        token = (
            typer.prompt("Token", hide_input=True, err=True)
            if sys.stdin.isatty()
            else sys.stdin.readline()
        ).strip()
    found = Hub(server, token).read("/api/v1/whoami")
    if found["standing"] != "token":
        fail("the hub does not take this token", UNAUTHORISED)
    remember(name, Known(server.rstrip("/"), token))
    progress.print(f"{name}: {_described(found)}", markup=False)


def logout(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Forget a hub, and the token for it. The token stays valid: revoke it if nobody else needs
    it.
    """
    if not forget(name):
        fail(f"there is no login {name!r}", NOT_FOUND)
    progress.print(f"{name}: forgotten", markup=False)


def whoami(
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Say who the hub takes this command line for, and what that may do; and which hubs are
    known.
    """
    hub = Hub(server, token)
    found = hub.read("/api/v1/whoami")
    if as_json:
        print_json(found | {"server": hub.server})
        return
    say(f"{hub.server}: {_described(found)}")
    for name, each in known().items():
        progress.print(f"login {name}: {each.url}", style="dim", markup=False)


def _described(found: Mapping[str, Any]) -> str:
    if found["standing"] == "local":
        return "anybody on this computer, who may do everything"
    if found["standing"] != "token":
        return f"{found['standing']}: may use machines whose URL is known"
    where = "the whole hub" if found["project"] is None else f"project {found['project']['name']}"
    return f"token {found['token']} for {where}: {', '.join(found['scopes'])}"
