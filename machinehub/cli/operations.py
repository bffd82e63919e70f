"""`machinehub tokens, doctor`: looking after a hub. `tokens` works on the database itself."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import platform
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from machinehub import capacity
from machinehub.cli.common import (
    DEFAULT_SERVER,
    FAILED,
    USAGE,
    AsJson,
    Compiling,
    Data,
    Expires,
    Hub,
    Server,
    TokenOption,
    fail,
    lasting_s,
    print_json,
    progress,
    say,
    table,
)
from machinehub.clock import SystemClock, new_token, timestamp
from machinehub.errors import HubError
from machinehub.model import DEFAULT_PROJECT, SCOPES
from machinehub.paths import cache_folder
from machinehub.settings import from_environment

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from machinehub.model import Token
    from machinehub.settings import Settings
    from machinehub.store.keys import KeyStore

T = TypeVar("T")
HERE = "somebody on the hub's computer"
ID_DIGITS = 9
"""Of a token's number; the database counts up to 2^31."""


def register(app: typer.Typer) -> None:
    tokens = typer.Typer(
        help="Create, list and revoke tokens, in the hub's database.", no_args_is_help=True
    )
    tokens.command("create")(create_token)
    tokens.command("list")(list_tokens)
    tokens.command("revoke")(revoke_token)
    app.add_typer(tokens, name="tokens")
    app.command("doctor")(doctor)


def _with_store(
    data: Path | None, work: Callable[[KeyStore], Awaitable[T]], *, otherwise: T | None = None
) -> T:
    """Hands `work` the store of the hub's database, whose schema stays as it is: a hub that runs
    may be older than this command, which then says so.

    A database that is empty gets the schema, unless there is an answer for that case, `otherwise`.
    Raises `Unavailable` for a database of a newer machinehub.
    """
    from machinehub.store.engine import file_of, opened
    from machinehub.store.keys import KeyStore
    from machinehub.store.schema import check_is_known, current_revision, newest_revision

    async def run() -> T:
        url = from_environment(os.environ, data=data).sqlalchemy_url
        async with opened(url) as engine:
            revision = await current_revision(engine)
            check_is_known(revision)
            if revision is None and otherwise is not None:
                return otherwise
            if revision is None:
                await _begin_database(url, file_of(url))
            elif revision != newest_revision():
                fail(
                    f"the database has schema {revision}, this machinehub {newest_revision()}: its"
                    " next start, or `machinehub db upgrade` while no hub runs, brings it there"
                )
            return await work(KeyStore(engine))

    return asyncio.run(run())


async def _begin_database(url: str, database: Path | None) -> None:
    """Makes a new database, and says so: a folder is easily mistyped. Ends the command where a hub
    runs whose file was taken away.
    """
    from machinehub.store.claim import FileClaim
    from machinehub.store.engine import opened
    from machinehub.store.schema import migrate

    claim = FileClaim(str(database)) if database is not None else contextlib.nullcontext()
    async with claim, opened(url) as engine:
        await migrate(engine)
    progress.print(f"a new database: {database or url.rsplit('@', maxsplit=1)[-1]}", markup=False)


def create_token(
    name: Annotated[str, typer.Option("--name", help="What it is for.")] = "",
    project: Annotated[
        str, typer.Option("--project", help="The project that it is for, by name or id.")
    ] = DEFAULT_PROJECT,
    whole_hub: Annotated[
        bool, typer.Option("--hub", help="For the whole hub: all projects, and making some.")
    ] = False,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help="deploy, read, operate or admin; several times. Else all."),
    ] = None,
    expires: Expires = "",
    data: Data = None,
) -> None:
    """Create a token and print it: it is shown this once."""
    name = " ".join(name.split())  # a name is a line
    token = new_token()
    now_ms = SystemClock().now_ms()
    scopes = _scopes(scope)
    expires_at_ms = now_ms + lasting_s(expires) * 1000 if expires else None

    async def create(keys: KeyStore) -> Token:
        of = None if whole_hub else (await keys.project(project)).id
        added = await keys.add_token(
            name=name[:100],
            token=token,
            now_ms=now_ms,
            project=of,
            scopes=scopes,
            expires_at_ms=expires_at_ms,
        )
        await keys.audit.add(of, HERE, f"created token {added.name!r}", now_ms=now_ms)
        return added

    _with_store(data, create)
    say(token)


def _scopes(wanted: list[str] | None) -> list[str]:
    if wrong := [scope for scope in wanted or () if scope not in SCOPES]:
        fail(f"there is no scope {wrong[0]!r}; there are {', '.join(SCOPES)}", USAGE)
    return [scope for scope in SCOPES if not wanted or scope in wanted]


def list_tokens(data: Data = None, as_json: AsJson = False) -> None:
    """List tokens; their text is not kept."""
    none: list[Token] = []
    found = _with_store(data, lambda keys: keys.token_list(), otherwise=none)
    if as_json:
        shown = [
            {
                "id": t.id,
                "name": t.name,
                "project": t.project,
                "scopes": [scope for scope in SCOPES if scope in t.scopes],
                "expires_at_ms": t.expires_at_ms,
                "used_at_ms": t.used_at_ms,
                "revoked": t.revoked_at_ms is not None,
            }
            for t in found
        ]
        print_json(shown)
        return
    now_ms = SystemClock().now_ms()
    table(
        ["ID", "NAME", "PROJECT", "SCOPES", "LAST USED", "STATE"],
        (
            [
                str(t.id),
                t.name,
                t.project or "(the hub)",
                "all" if t.scopes >= set(SCOPES) else " ".join(sorted(t.scopes)),
                timestamp(t.used_at_ms)[:16].replace("T", " ") if t.used_at_ms else "",
                _state(t, now_ms),
            ]
            for t in found
        ),
    )


def _state(token: Token, now_ms: int) -> str:
    if token.revoked_at_ms is not None:
        return "revoked"
    if token.expires_at_ms is None:
        return ""
    when = timestamp(token.expires_at_ms)[:16].replace("T", " ")
    return f"{'expired' if token.expires_at_ms <= now_ms else 'until'} {when}"


def revoke_token(
    token: Annotated[str, typer.Argument(metavar="NAME", help="Its name, or its number.")],
    data: Data = None,
) -> None:
    """Revoke a token: a running hub refuses it within seconds."""
    now_ms = SystemClock().now_ms()

    async def revoke(store: KeyStore) -> Token:
        is_number = token.isascii() and token.isdigit() and len(token) <= ID_DIGITS
        known = {each.name for each in await store.token_list()}
        number = int(token) if is_number and token not in known else 0
        revoked = await store.revoke_token(
            number or (await store.token_named(token)).id, now_ms=now_ms
        )
        said = f"revoked token {revoked.name!r}"
        await store.audit.add(revoked.project, HERE, said, now_ms=now_ms)
        return revoked

    revoked = _with_store(data, revoke)
    progress.print(f"token {revoked.name or revoked.id}: revoked", markup=False)


def _capacity(settings: Settings) -> str:
    """What was derived from the computer or the container."""
    from machinehub.edge.listening import connections_allowed, raise_descriptor_limit

    descriptors = raise_descriptor_limit()
    return (
        f"{capacity.cores()} cores: {settings.worker_count} session workers; "
        f"{capacity.memory_bytes() / 2**30:.1f} GiB: workers touch at most "
        f"{settings.resident_bytes / 2**30:.1f} GiB; {descriptors} descriptors: "
        f"{connections_allowed()} connections"
    )


async def _look_at_database(url: str) -> str:
    """What is to be said of a database, which is left as it is. Raises `HubError`."""
    from machinehub.store.engine import file_of, opened
    from machinehub.store.schema import check_is_known, current_revision, newest_revision

    if (file := file_of(url)) is not None:
        folder = next(each for each in file.absolute().parents if each.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise OSError(errno.EACCES, "cannot be written", str(folder))
    async with opened(url) as engine:
        revision = await current_revision(engine)
    check_is_known(revision)
    where = url.rsplit("@", maxsplit=1)[-1]
    if revision is None:
        return f"{where}, still empty"
    newest = newest_revision()
    behind = "" if revision == newest else f", which the next start brings to {newest}"
    return f"{where}, schema {revision}{behind}"


def doctor(
    data: Data = None,
    as_json: AsJson = False,
    server: Server = DEFAULT_SERVER,
    token: TokenOption = "",
) -> None:
    """Check what a hub needs on this computer. Exit code 1 when something is missing."""
    checks: list[tuple[str, str, str]] = []

    def note(what: str, fine: bool, detail: str) -> None:
        checks.append((what, "ok" if fine else "MISSING", detail))

    note("python", sys.version_info >= (3, 11), platform.python_version())
    note("wasmtime", True, version("wasmtime"))
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        note("cache", os.access(cache, os.W_OK), str(cache))
    except OSError as error:
        note("cache", False, f"{cache}: {error.strerror}")
    try:
        settings = from_environment(os.environ, data=data)
        note("capacity", True, _capacity(settings))
        note("database", True, asyncio.run(_look_at_database(settings.sqlalchemy_url)))
    except (HubError, OSError) as error:
        note("database", False, str(error))
    fine, detail, walls = asyncio.run(_try_sandbox(cache))
    note("sandbox", fine, detail)
    for kind, name, stands, what in walls:
        checks.append((f"{kind}: {name}", "ok" if stands else "refused", what))
    standing = {name for _, name, stands, _ in walls if stands}
    note(
        "walls",
        bool(standing & {"files", "own user"}) and "system calls" in standing,
        f"{len(walls) - sum(not stands for _, _, stands, _ in walls)} of {len(walls)} stand",
    )
    note("hub", True, f"{'ready' if Hub(server, token).answers() else 'none running'} at {server}")
    if as_json:
        names = ("check", "state", "detail")
        print_json([dict(zip(names, each, strict=True)) for each in checks])
    else:
        table(["CHECK", "", "DETAIL"], map(list, checks))
    if any(state == "MISSING" for _, state, _ in checks):
        raise typer.Exit(FAILED)


async def _try_sandbox(cache: Path) -> tuple[bool, str, list[tuple[str, str, bool, str]]]:
    """Whether workers start, what they are, and the walls around each kind: (kind, wall, whether it
    stands, what it is).
    """
    from machinehub.workers.pool import WorkerPool

    compiling = Compiling()
    limits = from_environment(os.environ).limits
    pool = WorkerPool(
        count=1,
        cache=cache,
        worker_bytes_max=limits.worker_bytes,
        forge_bytes_max=limits.forge_bytes,
        on_progress=compiling.begun,
    )
    try:
        await asyncio.wait_for(pool.start(None), 60)
        await pool.wait_for_worker(modules=True)
        engine, base = pool.engine_and_base
        return (
            True,
            f"engine {engine[:12]}, base {base[:12]}",
            [(kind, *wall) for kind, walls in pool.walls.items() for wall in walls],
        )
    except (OSError, HubError, TimeoutError) as error:
        return False, f"a worker did not start: {error}", []
    finally:
        compiling.ended()
        await pool.stop()
