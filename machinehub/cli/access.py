"""`machinehub keys`, `jwt-keys`, `connect-token`, `revocations` and `audit`: what an app's own
users show, how it is taken back, and who did what.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from machinehub.cli.common import (
    DEFAULT_SERVER,
    USAGE,
    AsJson,
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
from machinehub.clock import SystemClock

SECRET_VARIABLE = "MACHINEHUB_JWT_SECRET"  # noqa: S105 - its name
Name = Annotated[str, typer.Argument(metavar="NAME", help="What it is for.")]


def register(app: typer.Typer) -> None:
    keys = group(app, "keys", "Publishable keys: for browsers, to open and use sessions.", key_list)
    keys.command("create")(key_create)
    keys.command("revoke")(key_revoke)
    jwt_keys = group(app, "jwt-keys", "Keys by which connect tokens are believed.", jwt_key_list)
    jwt_keys.command("create")(jwt_key_create)
    jwt_keys.command("revoke")(jwt_key_revoke)
    revocations = group(
        app,
        "revocations",
        "Users and sessions whose connect tokens count no more.",
        revocation_list,
    )
    revocations.command("add")(revocation_add)
    revocations.command("remove")(revocation_remove)
    app.command("connect-token")(connect_token)
    app.command("audit")(audit)


def group(app: typer.Typer, name: str, text: str, list_: Any) -> typer.Typer:
    """Commands of which `list` runs when none is named."""
    group = typer.Typer(help=text, invoke_without_command=True)

    def by_default(
        context: typer.Context,
        as_json: AsJson = False,
        server: Server = DEFAULT_SERVER,
        token: TokenOption = "",
    ) -> None:
        if context.invoked_subcommand is None:
            list_(as_json, server, token)

    group.callback()(by_default)
    group.command("list")(list_)
    app.add_typer(group, name=name)
    return group


def project_path(hub: Hub, what: str) -> str:
    """Of what a project has: the one that `MACHINEHUB_PROJECT` names, else the token's own."""
    named = os.environ.get("MACHINEHUB_PROJECT", "")
    if not named:
        mine = hub.call("GET", "/api/v1/whoami")["project"]
        named = "default" if mine is None else mine["id"]
    return f"/api/v1/projects/{path_part(named)}/{what}"


def _moments(each: dict[str, Any], *names: str) -> list[str]:
    return [str(each[name] or "")[:16] for name in names]


# --- publishable keys -----------------------------------------------------------------------------


def key_list(
    as_json: AsJson = False, server: Server = DEFAULT_SERVER, token: TokenOption = ""
) -> None:
    """List a project's publishable keys."""
    hub = Hub(server, token)
    found: list[dict[str, Any]] = list(hub.items(project_path(hub, "keys")))
    if as_json:
        print_json(found)
        return
    table(
        ["ID", "NAME", "KEY", "ORIGINS", "LAST USED", "REVOKED"],
        (
            [
                str(each["id"]),
                each["name"],
                each["token"],
                " ".join(each["origins"]),
                *_moments(each, "used_at", "revoked_at"),
            ]
            for each in found
        ),
    )


def key_create(
    name: Name,
    origin: Annotated[
        list[str] | None,
        typer.Option("--origin", help="A site whose pages may show it; several times; else all."),
    ] = None,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Create a publishable key, and print it."""
    hub = Hub(server, token)
    made = hub.call("POST", project_path(hub, "keys"), body={"name": name, "origins": origin or []})
    print_json(made) if as_json else say(made["token"])


def key_revoke(
    number: Annotated[int, typer.Argument(metavar="ID", min=1)],
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Revoke a publishable key: what it opened is closed within seconds."""
    hub = Hub(server, token)
    hub.call("DELETE", f"{project_path(hub, 'keys')}/{number}")
    progress.print(f"key {number}: revoked", markup=False)


# --- keys of connect tokens -----------------------------------------------------------------------


def jwt_key_list(
    as_json: AsJson = False, server: Server = DEFAULT_SERVER, token: TokenOption = ""
) -> None:
    """List the keys by which a project believes connect tokens."""
    hub = Hub(server, token)
    found: list[dict[str, Any]] = list(hub.items(project_path(hub, "jwt-keys")))
    if as_json:
        print_json(found)
        return
    table(
        ["KID", "NAME", "ISSUER", "AUDIENCE", "CREATED", "REVOKED"],
        (
            [
                each["kid"],
                each["name"],
                each["issuer"] or "",
                each["audience"] or "",
                *_moments(each, "created_at", "revoked_at"),
            ]
            for each in found
        ),
    )


def jwt_key_create(
    name: Name,
    jwks_url: Annotated[
        str, typer.Option("--jwks-url", help="Where an identity provider publishes its keys.")
    ] = "",
    issuer: Annotated[str, typer.Option("--issuer", help="What its tokens say as `iss`.")] = "",
    audience: Annotated[str, typer.Option("--audience", help="And as `aud`.")] = "",
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Create a secret that an app's back end signs connect tokens with, and print its kid and the
    secret, which is shown this once; or, with the three options, believe an identity provider.
    """
    hub = Hub(server, token)
    body = {"name": name, "jwks_url": jwks_url, "issuer": issuer, "audience": audience}
    given = {key: value for key, value in body.items() if value}
    made = hub.call("POST", project_path(hub, "jwt-keys"), body=given)
    if as_json:
        print_json(made)
    else:
        say(f"kid     {made['kid']}")
        if "secret" in made:
            say(f"secret  {made['secret']}")


def jwt_key_revoke(
    kid: Annotated[str, typer.Argument(metavar="KID")],
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Revoke such a key: what its tokens opened is closed within seconds."""
    hub = Hub(server, token)
    hub.call("DELETE", f"{project_path(hub, 'jwt-keys')}/{path_part(kid)}")
    progress.print(f"key {kid}: revoked", markup=False)


def connect_token(
    kid: Annotated[str, typer.Option("--kid", help="Which key signs it.")],
    sub: Annotated[str, typer.Option("--sub", help="Whose it is.")],
    role: Annotated[list[str] | None, typer.Option("--role", help="Several times.")] = None,
    name: Annotated[str, typer.Option("--name", help="What they are called.")] = "",
    machine: Annotated[list[str] | None, typer.Option("--machine", help="By id or name.")] = None,
    session: Annotated[
        list[str] | None, typer.Option("--session", help="An id, or `prefix*`.")
    ] = None,
    event: Annotated[
        list[str] | None, typer.Option("--event", help="A type, `type.*` or `*`.")
    ] = None,
    expires: Annotated[str, typer.Option("--expires", help="30s, 15m, 12h, 7d.")] = "1h",
) -> None:
    """Sign a connect token here, as an app's back end does, and print it: for trying things out.
    The secret is read from MACHINEHUB_JWT_SECRET, or else from standard input.
    """
    import jwt

    secret = os.environ.get(SECRET_VARIABLE) or sys.stdin.readline().strip()
    if not secret:
        fail(f"give the secret of the key in {SECRET_VARIABLE}, or on standard input", USAGE)
    now_s = SystemClock().now_ms() // 1000
    said: dict[str, Any] = {
        "sub": sub,
        "iat": now_s,
        "exp": now_s + lasting_s(expires),
        "roles": role or [],
        "name": name or None,
        "machine": machine,
        "session": session,
        "events": event,
    }
    claims = {key: value for key, value in said.items() if value is not None}
    say(jwt.encode(claims, secret, "HS256", headers={"kid": kid}))


# --- revocations, and who did what ----------------------------------------------------------------


def revocation_list(
    as_json: AsJson = False, server: Server = DEFAULT_SERVER, token: TokenOption = ""
) -> None:
    """List whose connect tokens, from before when, are not valid."""
    hub = Hub(server, token)
    found: list[dict[str, Any]] = list(hub.items(project_path(hub, "revocations")))
    if as_json:
        print_json(found)
        return
    table(
        ["ID", "USER", "MACHINE", "SESSION", "TOKENS UNTIL"],
        (
            [
                str(each["id"]),
                each["sub"] or "",
                each["machine"] or "",
                each["session"] or "",
                each["at"],
            ]
            for each in found
        ),
    )


def revocation_add(
    sub: Annotated[str, typer.Option("--sub", help="A user: all their tokens until now.")] = "",
    session: Annotated[
        str, typer.Option("--session", help="MACHINE/SESSION: all tokens until now, for it.")
    ] = "",
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Connect tokens that were issued until now are not valid any more for a user, or a session."""
    if bool(sub) == bool(session) or (session and not all(session.partition("/"))):
        fail("name a user with --sub, or a session with --session MACHINE/SESSION", USAGE)
    machine, _, name = session.partition("/")
    hub = Hub(server, token)
    body = {"sub": sub} if sub else {"machine": machine, "session": name}
    made = hub.call("POST", project_path(hub, "revocations"), body=body)
    if as_json:
        print_json(made)
    else:
        progress.print(f"{sub or session}: revoked", markup=False)


def revocation_remove(
    number: Annotated[int, typer.Argument(metavar="ID", min=1)],
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Take a revocation back: tokens from before it are valid again, if they still are."""
    hub = Hub(server, token)
    hub.call("DELETE", f"{project_path(hub, 'revocations')}/{number}")
    progress.print(f"revocation {number}: taken back", markup=False)


def audit(
    limit: Annotated[int, typer.Option("--limit", min=1, max=500, help="How many lines.")] = 50,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Who did what, the newest first: in MACHINEHUB_PROJECT, the token's own project, or all."""
    found = Hub(server, token).call("GET", f"/api/v1/audit?limit={limit}")["data"]
    if as_json:
        print_json(found)
    else:
        table(
            ["WHEN", "WHO", "WHAT"],
            ([each["at"][:19], each["who"], each["what"]] for each in found),
        )
