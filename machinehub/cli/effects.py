"""`machinehub effects` and `secrets`: what machines ask of the world, and with what in headers."""

from __future__ import annotations

import getpass
import sys
from itertools import islice
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated, Any

import typer

from machinehub.cli.access import group, project_path
from machinehub.cli.common import (
    DEFAULT_SERVER,
    USAGE,
    AsJson,
    Hub,
    Server,
    SessionArgument,
    TokenOption,
    fail,
    path_part,
    plain,
    print_json,
    progress,
    read_json,
    say,
    table,
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The secret's name.")]


def register(app: typer.Typer) -> None:
    app.command("effects")(effects)
    secrets = group(app, "secrets", "Secrets of a project: for headers, and webhooks.", secret_list)
    secrets.command("set")(secret_set)
    secrets.command("delete")(secret_delete)
    secrets.command("rotate-key")(rotate_key)


# --- requests -------------------------------------------------------------------------------------


def effects(
    session: SessionArgument,
    cancel: Annotated[
        int | None,
        typer.Option("--cancel", metavar="ID", help="Reject this request.", show_default=False),
    ] = None,
    answer: Annotated[
        int | None,
        typer.Option(
            "--answer",
            metavar="ID",
            help='Answer this request with JSON from stdin: {"status": 200, "json": {}}.',
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Requests to show.")] = 50,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """List what a session asked of the world, the newest first; or settle a request by hand."""
    hub = Hub(server, token)
    path = hub.session_api_path(session) + "/effects"
    if cancel is not None and answer is not None:
        fail("--cancel or --answer, not both", USAGE)
    if cancel is not None:
        hub.call("POST", f"{path}/{cancel}/cancel")
        progress.print(f"request {cancel} is cancelled")
        return
    if answer is not None:
        try:
            body = read_json(sys.stdin.read())
        except ValueError:
            fail('stdin is no JSON: {"status": 200, "json": {...}}', USAGE)
        hub.call("POST", f"{path}/{answer}/answer", body=body)
        progress.print(f"request {answer} is answered")
        return
    found = list(islice(hub.items(path), limit))
    if as_json:
        print_json(found)
        return
    if not found:
        say("the session has asked nothing of the world")
        return
    table(
        ["ID", "SEQ", "AT", "REQUEST", "TRIES", "STATE", "OUTCOME"],
        (
            [
                str(each["id"]),
                str(each["seq"]),
                each["at"][:19].replace("T", " "),
                request_of(each),
                str(each["tries"]),
                each["state"],
                outcome_of(each),
            ]
            for each in found
        ),
    )


def request_of(effect: dict[str, Any]) -> str:
    request = effect["request"]
    url = "".join(each if each.isprintable() else repr(each)[1:-1] for each in request["url"])
    return f"{request['method']} {url}"


def outcome_of(effect: dict[str, Any]) -> str:
    """How a request ended, or what it waits for."""
    if effect["state"] == "held":
        return "not sent: the session is a fork"
    if effect["state"] == "pending":
        trouble = f", after: {effect['trouble']}" if effect["trouble"] else ""
        return f"next try {effect['next_try_at'][11:19]}{trouble}" if effect["next_try_at"] else ""
    status = "" if effect["status"] is None else f" {effect['status']}"
    return f"{effect['outcome']}{status} in {effect['ms']} ms"


# --- secrets --------------------------------------------------------------------------------------


def secret_list(
    as_json: AsJson = False, server: Server = DEFAULT_SERVER, token: TokenOption = ""
) -> None:
    """List secrets, without what they are."""
    hub = Hub(server, token)
    found = hub.read(project_path(hub, "secrets"))["data"]
    if as_json:
        print_json(found)
        return
    table(
        ["NAME", "HOSTS", "KEY", "CHANGED"],
        (
            [each["name"], " ".join(each["hosts"]) or "none", each["key"], each["changed_at"][:16]]
            for each in found
        ),
    )


def secret_set(
    name: Name,
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host",
            help="Where it may be sent, over https: a host, or *.host. Again for more; none for"
            " a webhook's.",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option("--file", help="Read it from here, in place of stdin.", show_default=False),
    ] = None,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Set a secret. What it is comes from stdin (or is asked for), never from an argument."""
    try:
        if file is not None:
            value = file.read_text("utf-8")
        elif sys.stdin.isatty():
            value = getpass.getpass(f"{name}: ")
        else:
            value = sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"the secret cannot be read: {error}", USAGE)
    value = value.removesuffix("\n").removesuffix("\r")
    hub = Hub(server, token)
    body = {"value": value, "hosts": host or []}
    hub.call("PUT", project_path(hub, f"secrets/{path_part(name)}"), body=body)
    where = ", ".join(host) if host else "no host: it is for what comes in"
    progress.print(f"{plain(name)} is set, for {plain(where)}")


def secret_delete(name: Name, server: Server = DEFAULT_SERVER, token: TokenOption = "") -> None:
    """Delete a secret: requests that name it are rejected from now on."""
    hub = Hub(server, token)
    hub.call("DELETE", project_path(hub, f"secrets/{path_part(name)}"))
    progress.print(f"{plain(name)} is deleted")


def rotate_key(server: Server = DEFAULT_SERVER, token: TokenOption = "") -> None:
    """Seal all secrets of the hub with a new key. Needs a token for the whole hub.

    Keys that a variable or a file of your own names are yours to replace: put the new one first,
    start the hub, run this, and take the old one away.
    """
    done = Hub(server, token).call("POST", "/api/v1/secrets/rotate")
    progress.print(f"{done['secrets']} secrets are sealed with the key {done['key']}")
