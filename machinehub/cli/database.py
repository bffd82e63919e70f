"""`machinehub db, backup, restore`: looking after the hub's database. They work on the database
itself.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from machinehub.cli.common import AsJson, Data, fail, print_json, progress, say, table
from machinehub.clock import Stopwatch, SystemClock, timestamp
from machinehub.settings import Settings, from_environment

if TYPE_CHECKING:
    from collections.abc import Iterable

    from machinehub.store.backup import Contents

File = Annotated[Path, typer.Argument(metavar="FILE")]
POSTGRES = (
    "the database is Postgres, which has its own: pg_dump and pg_restore, or a copy of the whole "
    "server (docs/operations.md)"
)


def register(app: typer.Typer) -> None:
    db = typer.Typer(help="Look after the hub's database.", no_args_is_help=True)
    db.command("status")(status)
    db.command("size")(size)
    db.command("upgrade")(upgrade)
    db.command("vacuum")(vacuum)
    db.command("recover")(recover)
    db.command("reset-clock")(reset_clock)
    app.add_typer(db, name="db")
    app.command("backup")(backup)
    app.command("restore")(restore)


def _sqlite_file(settings: Settings) -> Path:
    """The database's file. Ends the command where it is none."""
    from machinehub.store.engine import file_of

    return file_of(settings.sqlalchemy_url) or fail(POSTGRES)


def _existing(data: Path | None) -> Settings:
    """Of a database that is there; else the command ends."""
    from machinehub.store.engine import file_of

    settings = from_environment(os.environ, data=data)
    file = file_of(settings.sqlalchemy_url)
    if file is not None and not file.exists():
        fail(f"there is no database {file}")
    return settings


def _claimed(path: Path) -> bool:
    """Whether a hub uses this database now."""
    from machinehub.errors import Unavailable
    from machinehub.store.claim import FileClaim

    async def is_taken() -> bool:
        try:
            async with FileClaim(str(path)):
                return False
        except Unavailable:
            return True

    return path.exists() and asyncio.run(is_taken())


def status(data: Data = None, as_json: AsJson = False) -> None:
    """Say which schema the database has, and whether a hub uses it. Nothing is changed."""
    from machinehub.store.engine import opened
    from machinehub.store.schema import check_is_known, current_revision, newest_revision

    settings = from_environment(os.environ, data=data)

    async def look() -> str | None:
        async with opened(settings.sqlalchemy_url) as engine:
            return await current_revision(engine)

    revision, newest = asyncio.run(look()), newest_revision()
    is_file = settings.sqlalchemy_url.startswith("sqlite")
    path = _sqlite_file(settings) if is_file else None
    where = str(path) if path else settings.sqlalchemy_url.rsplit("@", maxsplit=1)[-1]
    found: dict[str, object] = {"database": where, "schema": revision, "newest": newest}
    if path is not None:
        found["in_use"] = _claimed(path)
        copies = sorted(path.parent.glob(f"{path.name}.schema-*"))
        found["copies"] = [str(copy) for copy in copies]
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            if name == "copies":
                for copy in copies:
                    say(f"copy      {copy}")
            else:
                shown = {None: "none: the database is empty", True: "yes", False: "no"}
                say(f"{name:<9} {shown.get(value, value)}")  # type: ignore[call-overload]
    check_is_known(revision)
    if not as_json and revision not in (None, newest):
        say(f"The next start brings it to {newest}.")


def size(data: Data = None, as_json: AsJson = False) -> None:
    """Say what takes the database's space, table by table, indices with their tables."""
    from machinehub.store.sizes import FREE, sizes_of

    settings = _existing(data)
    found = asyncio.run(sizes_of(settings.sqlalchemy_url))
    if as_json:
        print_json([{"table": name, "bytes": each} for name, each in found])
        return
    total = sum(each for _, each in found)
    rows = [[name, _kib(each), f"{each / total:.0%}" if total else ""] for name, each in found]
    table(["TABLE", "KIB", ""], [*rows, ["total", _kib(total), ""]])
    if dict(found).get(FREE, 0) > total / 2:
        progress.print("Free space is used again, and given back while a hub runs.")


def _kib(size_bytes: int) -> str:
    return f"{size_bytes / 1024:,.0f}"


def upgrade(data: Data = None) -> None:
    """Bring the database to the newest schema. A hub does this when it starts, too."""
    from machinehub.store.engine import opened
    from machinehub.store.schema import migrate, newest_revision

    settings = from_environment(os.environ, data=data)

    async def run() -> str | None:
        async with opened(settings.sqlalchemy_url) as engine:
            return await migrate(engine, backup=settings.backup_before_upgrade)

    before = asyncio.run(run())
    progress.print(f"schema {before or 'none'} -> {newest_revision()}", markup=False)


def vacuum(data: Data = None) -> None:
    """Rewrite a SQLite database as small as it can be, while no hub runs. Needs as much free space
    as the database has.
    """
    from machinehub.store import space
    from machinehub.store.claim import FileClaim

    path = _sqlite_file(from_environment(os.environ, data=data))
    if not path.exists():
        fail(f"there is no database {path}")

    async def rewrite() -> tuple[int, int]:
        async with FileClaim(str(path)):
            return await asyncio.to_thread(space.vacuum, path)

    before, after = asyncio.run(rewrite())
    progress.print(f"{_kib(before)} KiB -> {_kib(after)} KiB", markup=False)


def recover(
    file: Annotated[Path, typer.Argument(metavar="NEW", help="The file to make.")],
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Save what can be read of a damaged SQLite database into the file NEW, while no hub runs."""
    from machinehub.store import recovery
    from machinehub.store.engine import opened, url_of
    from machinehub.store.schema import migrate

    database = _sqlite_file(from_environment(os.environ, data=data))
    if not database.exists():
        fail(f"there is no database {database}")
    if file.exists():
        fail(f"{file} is there already")

    async def make() -> None:
        async with opened(url_of(file)) as engine:
            await migrate(engine)

    asyncio.run(make())
    try:
        counts = recovery.recover(database, file)
    except sqlite3.Error as error:
        file.unlink()
        fail(f"{database}: {error}")
    if as_json:
        print_json(counts)
        return
    table(["TABLE", "ROWS"], [[name, str(count)] for name, count in counts.items()])
    progress.print(
        f"{file} has what could be read. `machinehub restore {file}` puts it in place; then look "
        "with `machinehub verify`.",
        markup=False,
    )


def reset_clock(data: Data = None) -> None:
    """Let sessions' time be the computer's again, after that was far ahead by mistake. Timers that
    were armed meanwhile keep the time that they are due at.
    """
    from machinehub.store.database import Database
    from machinehub.store.engine import opened
    from machinehub.store.notes import Notes

    settings = _existing(data)

    async def run() -> None:
        async with opened(settings.sqlalchemy_url) as engine:
            database = Database(engine)
            try:
                await database.claim()
                await Notes(database).forget_clock()
            finally:
                await database.close()

    asyncio.run(run())
    progress.print("sessions' time is the computer's from the next start on")


def backup(file: File, data: Data = None, as_json: AsJson = False) -> None:
    """Copy the database to FILE, as it is at one moment, while the hub runs; and check the copy.

    What was acknowledged before this began is in it. Exit code 1 when there is no whole copy.
    """
    from machinehub.store.backup import back_up

    database = _sqlite_file(from_environment(os.environ, data=data))
    stopwatch = Stopwatch()
    found = back_up(database, file)
    _tell("backed up to", file, found, as_json=as_json, seconds=stopwatch.us / 1e6)


def restore(file: File, data: Data = None, as_json: AsJson = False) -> None:
    """Put the backup FILE in the place of the database, while no hub runs. The database that was
    there is kept beside it.
    """
    from machinehub.store import backup as backups
    from machinehub.store.claim import FileClaim
    from machinehub.store.file import LOG_SUFFIX
    from machinehub.store.schema import check_is_known

    database = _sqlite_file(from_environment(os.environ, data=data))
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if file.exists():
        check_is_known(backups.look_into(file, named=file).revision)
    aside = _free_name(Path(os.path.realpath(database)))

    async def put_back() -> Contents:
        async with FileClaim(str(database)):
            return backups.restore(file, database, aside=aside)

    found = asyncio.run(put_back())
    for kept in (aside, Path(f"{aside}{LOG_SUFFIX}")):
        if kept.exists():
            progress.print(f"what was there is {kept}", markup=False)
    _tell("restored from", file, found, as_json=as_json)


def _free_name(database: Path) -> Path:
    """For the database that is replaced: no two have one."""
    second = timestamp(SystemClock().now_ms())[:19].replace(":", "")
    name = f"{database.name}.replaced-{second}"
    numbers = itertools.chain([""], (f".{number}" for number in itertools.count(2)))
    return next(
        path for number in numbers if not (path := database.with_name(name + number)).exists()
    )


def _tell(
    what: str, file: Path, found: Contents, *, as_json: bool, seconds: float | None = None
) -> None:
    if as_json:
        print_json({"file": str(file), "bytes": file.stat().st_size, **found._asdict()})
        return
    counts: Iterable[str] = (
        f"{count} {name if count != 1 else name[:-1]}"
        for name, count in found._asdict().items()
        if name != "revision"
    )
    took = f" in {seconds:.1f} s" if seconds is not None else ""
    say(f"{what} {file}{took}: {file.stat().st_size / 2**20:.1f} MiB, {', '.join(counts)}")
