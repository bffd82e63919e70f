"""`machinehub projects`: what machines and tokens belong to, over the hub's API."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from machinehub.cli.common import (
    DEFAULT_SERVER,
    USAGE,
    AsJson,
    Expires,
    Hub,
    Server,
    TokenOption,
    fail,
    lasting_s,
    path_part,
    print_json,
    progress,
    say,
    table,
)

Project = Annotated[str, typer.Argument(metavar="PROJECT", help="A project's name or id.")]


def register(app: typer.Typer) -> None:
    projects = typer.Typer(
        help="Projects: what machines and tokens belong to.", invoke_without_command=True
    )
    projects.callback()(_list_by_default)
    projects.command("list")(list_)
    projects.command("create")(create)
    projects.command("delete")(delete)
    projects.command("usage")(usage)
    projects.command("limit")(limit)
    projects.command("tokens")(tokens)
    projects.command("add-token")(add_token)
    projects.command("revoke-token")(revoke_token)
    app.add_typer(projects, name="projects")


def _list_by_default(
    context: typer.Context,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    if context.invoked_subcommand is None:
        list_(as_json, server, token)


def list_(
    as_json: AsJson = False, server: Server = DEFAULT_SERVER, token: TokenOption = ""
) -> None:
    """List projects: all, or the token's own."""
    found = list(Hub(server, token).items("/api/v1/projects"))
    if as_json:
        print_json(found)
    else:
        table(["PROJECT", "ID"], ([each["name"], each["id"]] for each in found))


def create(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Create a project. Needs a token for the whole hub."""
    made = Hub(server, token).call("POST", "/api/v1/projects", body={"name": name})
    print_json(made) if as_json else say(made["id"])


def delete(project: Project, server: Server = DEFAULT_SERVER, token: TokenOption = "") -> None:
    """Delete a project that has no machines. Its tokens are revoked."""
    hub = Hub(server, token)
    hub.call("DELETE", _path(project))
    progress.print(f"project {project}: deleted", markup=False)


def usage(
    project: Project,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """What a project uses, and what it may use at most."""
    found = Hub(server, token).call("GET", _path(project) + "/usage")
    if as_json:
        print_json(found)
        return
    names = dict.fromkeys([*found["used"], *found["quotas"]])
    table(
        ["", "USED", "AT MOST"],
        (
            [name, *(str(found[which].get(name, "")) for which in ("used", "quotas"))]
            for name in names
        ),
    )


def limit(
    project: Project,
    quotas: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME=NUMBER...",
            help="NAME=none takes it away; egress=HOST,HOST says where machines may send requests.",
        ),
    ],
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Set what a project may use at most. Needs a token for the whole hub."""
    body: dict[str, Any] = {}
    for each in quotas:
        name, _, text = each.partition("=")
        if name == "egress" and text != "none":
            body[name] = [host for host in text.split(",") if host]
            continue
        try:
            number = float(text)
            body[name] = int(number) if number.is_integer() else number
        except (ValueError, OverflowError):
            if text != "none":
                fail(f"{each}: write NAME=NUMBER, or NAME=none", USAGE)
            body[name] = None
    hub = Hub(server, token)
    changed = hub.call("PATCH", _path(project), body={"quotas": body})
    if as_json:
        print_json(changed)
    else:
        say(", ".join(f"{name}={value}" for name, value in changed["quotas"].items()) or "none")


def tokens(
    project: Project,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """List a project's tokens; their text is not kept."""
    found: list[dict[str, Any]] = list(Hub(server, token).items(_path(project) + "/tokens"))
    if as_json:
        print_json(found)
        return
    table(
        ["ID", "NAME", "SCOPES", "EXPIRES", "LAST USED", "REVOKED"],
        (
            [
                str(each["id"]),
                each["name"],
                " ".join(each["scopes"]),
                *(str(each[when] or "")[:16] for when in ("expires_at", "used_at", "revoked_at")),
            ]
            for each in found
        ),
    )


def add_token(
    project: Project,
    name: Annotated[str, typer.Option("--name", help="What it is for.")],
    scope: Annotated[
        list[str],
        typer.Option("--scope", help="deploy, read, operate or admin; several times."),
    ],
    expires: Expires = "",
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Create a token of a project and print it: it is shown this once."""
    body: dict[str, Any] = {"name": name, "scopes": scope}
    if expires:
        body["expires_in_s"] = lasting_s(expires)
    made = Hub(server, token).call("POST", _path(project) + "/tokens", body=body)
    print_json(made) if as_json else say(made["token"])


def revoke_token(
    project: Project,
    number: Annotated[int, typer.Argument(metavar="ID", min=1)],
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Revoke a token of a project: what it opened is closed within seconds."""
    Hub(server, token).call("DELETE", f"{_path(project)}/tokens/{number}")
    progress.print(f"token {number}: revoked", markup=False)


def _path(project: str) -> str:
    return f"/api/v1/projects/{path_part(project)}"
