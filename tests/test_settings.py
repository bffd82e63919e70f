"""What a hub is told, and what it refuses to be told."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import subprocess
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from machinehub.errors import Unavailable
from machinehub.settings import BadSettings, Settings, check_can_listen, from_environment
from machinehub.store.engine import connect_postgres, open_engine
from machinehub.wiring import check_egress_settings
from tests.databases import new_database
from tests.support import COUNTER, free_port, running_hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.mark.core
@pytest.mark.parametrize(
    "wrong",
    [
        {"egress_allow": "https://"},
        {"egress_allow": "a.example, not/a host"},
        {"secrets_key": "short"},
        {"egress_ca": __file__},
    ],
)
def test_what_machines_would_be_refused_for_is_said_at_the_start(wrong: dict[str, str]) -> None:
    with pytest.raises(BadSettings, match="MACHINEHUB_" + next(iter(wrong)).upper()):
        check_egress_settings(Settings(**wrong))  # type: ignore[arg-type]


@pytest.mark.core
@pytest.mark.parametrize("name", ["EGRESS_CA", "SECRETS_KEY_FILE", "EGRESS_MOCK"])
def test_a_file_that_is_not_there(name: str) -> None:
    with pytest.raises(BadSettings, match=f"MACHINEHUB_{name}: there is no file"):
        from_environment({f"MACHINEHUB_{name}": "/nowhere/it"})


@pytest.mark.core
@pytest.mark.parametrize(
    "exposed",
    [
        {"host": "0.0.0.0"},
        {"host": "::"},
        {"host": "hub.example"},
        {"public_url": "https://hub.example"},
        {"public_url": "https://hub.example", "host": "localhost"},
        {"public_url": "http://10.0.0.7:8787"},
        {"public_url": "http://[2001:db8::1]"},
    ],
)
def test_a_hub_that_strangers_reach_needs_a_token(exposed: dict[str, str]) -> None:
    with pytest.raises(BadSettings, match="without a token"):
        check_can_listen(Settings(**exposed), has_tokens=False)  # type: ignore[arg-type]
    check_can_listen(Settings(**exposed), has_tokens=True)  # type: ignore[arg-type]
    check_can_listen(Settings(**exposed, token="mh_t"), has_tokens=False)  # type: ignore[arg-type]


@pytest.mark.core
@pytest.mark.parametrize(
    "near",
    [
        {},
        {"host": "localhost"},
        {"host": "::1"},
        {"public_url": "http://localhost:9000"},
        {"public_url": "http://127.0.0.1"},
        {"public_url": "http://[::1]:8787/"},
    ],
)
def test_a_hub_of_this_computer_needs_none(near: dict[str, str]) -> None:
    check_can_listen(Settings(**near), has_tokens=False)  # type: ignore[arg-type]


@pytest.mark.core
@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"DATABASE_URL": "mysql://x"}, "not a database this hub knows"),
        ({"DATABASE_URL": "sqlite:///"}, "names no file"),
        ({"LIMIT_NONSENSE": "1"}, "no such limit"),
        ({"LIMIT_TIMERS": "0"}, "is not a limit"),
        ({"LIMIT_TIMERS": "many"}, "is not a number"),
        ({"PORT": "70000"}, "is not between 1 and 65535"),
        ({"FUEL": "perhaps"}, "is not yes or no"),
        ({"PUBLIC_URL": "hub.example.com"}, "is not a URL"),
        ({"PUBLIC_URL": "localhost:8787"}, "is not a URL"),
        ({"PUBLIC_URL": "//hub.example"}, "is not a URL"),
        ({"PUBLIC_URL": "javascript:alert(1)"}, "is not a URL"),
        ({"PUBLIC_URL": "http://["}, "is not a URL"),
        ({"PUBLIC_URL": "http://localhost:port"}, "is not a URL"),
        ({"PUBLIC_URL": "http://localhost/?q"}, "is not a URL"),
    ],
)
def test_settings_that_mean_nothing_are_refused(environment: dict[str, str], says: str) -> None:
    named = {f"MACHINEHUB_{name}": value for name, value in environment.items()}
    with pytest.raises(BadSettings, match=says):
        _ = from_environment(named).sqlalchemy_url


async def test_an_exposed_hub_does_not_start_and_leaves_its_database_free(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match=r"hub\.example without a token"):
        async with running_hub(tmp_path, public_url="https://hub.example"):
            pass
    async with running_hub(tmp_path) as client:
        assert (await client.http.get("/api/v1/machines")).status_code == 200


# --- Postgres's own URLs


async def test_what_libpq_understands_of_a_url(postgres: str) -> None:
    url = postgres.replace("postgresql://", "postgresql+asyncpg://")
    more = url + ("&" if "?" in url else "?")
    engine = open_engine(more + "sslmode=disable&application_name=mine&connect_timeout=5")
    try:
        connection = await connect_postgres(engine.url)
        try:
            assert await connection.fetchval("SHOW application_name") == "mine"
        finally:
            await connection.close()
        async with engine.connect() as pooled:
            assert (await pooled.exec_driver_sql("SHOW application_name")).scalar() == "mine"
    finally:
        await engine.dispose()


@contextlib.asynccontextmanager
async def over_tcp(postgres: str, certificate: Path | None) -> AsyncIterator[int]:
    """The port of a Postgres server that is reached over TCP, with TLS if there is a certificate.

    The test's own server listens on a Unix socket alone; this takes connections in front of it.
    Source: PostgreSQL's documentation, section 54.2.10 (SSL session encryption).
    """
    folder = parse_qs(urlsplit(postgres).query)["host"][0]

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inside, to_inside = await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.5432")
        first = await reader.readexactly(8)
        if first == bytes.fromhex("0000000804d2162f"):  # "is there TLS?"
            writer.write(b"S" if certificate else b"N")
            await writer.drain()
            if certificate:
                context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
                context.load_cert_chain(certificate)
                try:
                    await writer.start_tls(context)
                except (ssl.SSLError, ConnectionError):  # the client does not trust it
                    to_inside.close()
                    return
        else:
            to_inside.write(first)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await asyncio.gather(relay(reader, to_inside), relay(inside, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port: int = server.sockets[0].getsockname()[1]
        yield port


def make_certificate(file: Path) -> Path:
    """A certificate for localhost, signed by itself, with its key in the same file."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    output = ["-keyout", str(file), "-out", str(file)]
    subprocess.run([*command.split(), *names, *output], check=True, capture_output=True)
    return file


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "server.pem")


@pytest.mark.parametrize("query", ["sslmode=require", "sslmode=verify-full&sslrootcert={}"])
async def test_a_hub_on_a_postgres_behind_tls(
    query: str, postgres: str, certificate: Path, tmp_path: Path
) -> None:
    database = urlsplit(await new_database(postgres)).path
    async with over_tcp(postgres, certificate) as port:
        url = f"postgresql://postgres@localhost:{port}{database}?{query.format(certificate)}"
        async with running_hub(tmp_path, database_url=url) as client:
            machine = await client.deploy(COUNTER)
            answer = await client.http.post(f"/{machine}/s", json={"type": "increment"})
            assert answer.json()["seq"] == 2


async def test_a_server_that_has_no_tls_or_is_not_trusted_is_not_used(
    postgres: str, certificate: Path, tmp_path: Path
) -> None:
    other = make_certificate(tmp_path / "other.pem")
    untrusted = f"sslmode=verify-full&sslrootcert={other}"
    for has, query in ((None, "sslmode=require"), (certificate, untrusted)):
        async with over_tcp(postgres, has) as port:
            url = f"postgresql://postgres@localhost:{port}/postgres?{query}"
            with pytest.raises(Unavailable, match="the database does not answer"):
                async with running_hub(tmp_path, database_url=url):
                    pass


@pytest.mark.parametrize(
    "query", ["sslmode=perhaps", "sslmode=verify-full&sslrootcert=/no", "sslmode=verify-ca"]
)
async def test_a_url_that_postgres_cannot_understand_is_said_to_be(
    query: str, tmp_path: Path
) -> None:
    url = f"postgresql://127.0.0.1:{free_port()}/db?{query}"
    with pytest.raises(BadSettings, match="MACHINEHUB_DATABASE_URL"):
        async with running_hub(tmp_path, database_url=url):
            pass
