"""Who is let in, before anything else is looked at."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from machinehub.edge.admission import principal_of
from machinehub.principal import Standing
from tests.support import COUNTER, Client, problem, running_hub, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

FORWARDED = [
    {"X-Forwarded-For": "203.0.113.9"},
    {"X-Forwarded-Host": "hub.example"},
    {"X-Forwarded-Proto": "https"},
    {"Forwarded": "for=203.0.113.9;proto=https"},
]


@pytest.mark.parametrize("headers", FORWARDED)
async def test_an_open_hub_is_not_for_a_proxys_clients(
    client: Client, headers: dict[str, str]
) -> None:
    machine = await client.deploy(COUNTER, name="admission-proxied")
    for path in ("/", "/api/v1/machines", f"/{machine}", f"/{machine}/s"):
        problem(await client.http.get(path, headers=headers), 403, "foreign_host")
    with pytest.raises(InvalidStatus) as refused:
        async with client.socket(f"{machine}/s", additional_headers=headers):
            pass
    assert refused.value.response.status_code == 403


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Client]:
    """A hub with a token."""
    async with running_hub(tmp_path_factory.mktemp("guarded"), token="mh_t") as client:
        yield client


async def test_a_hub_with_a_token_is(guarded: Client) -> None:
    machine = await guarded.deploy(COUNTER, name="forwarded")
    for headers in FORWARDED:
        answer = await guarded.http.get(f"/{machine}/s", headers=headers)
        assert answer.status_code == 200


async def test_a_request_names_one_host(client: Client) -> None:
    """Of two, the last one counted, whatever a proxy before it had gone by."""
    for hosts in (("elsewhere.example", "localhost"), ("localhost", "elsewhere.example")):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.hub.settings.port)
        lines = ["GET /healthz HTTP/1.1", *(f"Host: {host}" for host in hosts), "", ""]
        writer.write("\r\n".join(lines).encode())
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 400")
        assert b"bad_request" in await reader.readuntil(b"}")
        writer.close()


@pytest.mark.parametrize(
    ("origin", "is_let_in"),
    [
        ("http://localhost:5173", True),
        ("https://127.0.0.1", True),
        ("http://[::1]:3000", True),
        ("https://elsewhere.example", False),
        ("http://localhost.elsewhere.example", False),
        ("null", False),
        ("http://[", False),
        ("http://localhost@elsewhere.example", False),
    ],
)
async def test_an_open_hub_is_for_pages_of_this_computer(
    client: Client, origin: str, is_let_in: bool
) -> None:
    machine = await client.deploy(COUNTER, name="admission-pages")
    headers = {"Origin": origin}
    asked = [
        await client.http.get(f"/{machine}/s", headers=headers),
        await client.http.post(f"/{machine}/s", json={"type": "increment"}, headers=headers),
    ]
    for answer in asked:
        if is_let_in:
            assert answer.status_code == 200
        else:
            problem(answer, 403, "foreign_origin")
    try:
        async with client.socket(f"{machine}/s", additional_headers=headers) as socket:
            await socket.until("snapshot")
            got_in = True
    except InvalidStatus as refused:
        assert refused.response.status_code == 403
        got_in = False
    assert got_in == is_let_in


async def test_a_setting_names_the_sites_whose_pages_may(tmp_path: Path) -> None:
    async with running_hub(tmp_path, origins="https://ours.example") as client:
        machine = await client.deploy(COUNTER)
        ours = await client.http.get(f"/{machine}/s", headers={"Origin": "https://ours.example"})
        assert ours.status_code == 200
        other = await client.http.get(f"/{machine}/s", headers={"Origin": "https://other.example"})
        problem(other, 403, "foreign_origin")


@pytest.mark.parametrize(
    ("header", "standing"),
    [
        ((b"authorization", b"Bearer mh_t"), Standing.TOKEN),
        ((b"authorization", b"bearer mh_other"), Standing.WRONG_TOKEN),
        ((b"authorization", b"Basic mh_t"), Standing.ANONYMOUS),
        ((b"sec-websocket-protocol", b"machinehub.v1, machinehub.token.mh_t"), Standing.TOKEN),
        ((b"sec-websocket-protocol", b"machinehub.token.x"), Standing.WRONG_TOKEN),
        ((b"sec-websocket-protocol", b"machinehub.v1"), Standing.ANONYMOUS),
    ],
)
async def test_a_token_says_who_asks(
    guarded: Client, header: tuple[bytes, bytes], standing: Standing
) -> None:
    scope = {"headers": [(b"host", b"hub.example"), header], "path": "/", "client": ("1.2.3.4", 5)}
    scope["query_string"] = b""
    scope["http_version"] = "1.1"
    leave = await guarded.hub.admission.enter(scope)
    assert principal_of(scope).standing == standing
    leave()


async def test_a_socket_that_brings_a_token_speaks_the_protocol(guarded: Client) -> None:
    machine = await guarded.deploy(COUNTER, name="socket-token")
    url = f"{guarded.url.replace('http', 'ws', 1)}/{machine}/s"
    protocols = [Subprotocol("machinehub.token.mh_t"), Subprotocol("machinehub.v1")]
    async with connect(url, subprotocols=protocols) as socket:
        assert socket.subprotocol == "machinehub.v1"


async def test_an_open_hub_does_not_answer_what_proxies_speak(client: Client) -> None:
    """nginx, as Debian has it, says HTTP/1.0 and the hub's own address, and nothing of a client."""
    port = client.hub.settings.port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /api/v1/machines HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 403")
    assert b"foreign_host" in answer


CONNECT = """
import encodings.idna, os, socket, sys
try:
    os.setuid(65534)
except PermissionError:
    pass
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as hub:
    hub.sendall(b"GET /healthz HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\nConnection: close\\r\\n\\r\\n")
    print(os.getuid(), hub.recv(9000))
"""


async def test_an_open_hub_is_for_the_user_who_started_it(client: Client) -> None:
    """A proxy on this computer has a user of its own. (Only root can be another.)"""
    asking = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CONNECT, str(client.hub.settings.port)),
        stdout=asyncio.subprocess.PIPE,
    )
    said = (await asking.communicate())[0].decode()
    uid = int(said.split()[0])
    assert ("foreign_host" in said) == (uid != os.getuid()), said


async def test_the_first_token_closes_an_open_hub(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as client:
        deployment = {"name": "c", "entry": "c.ts", "files": {"c.ts": COUNTER}}
        assert (await client.http.post("/api/v1/deployments", json=deployment)).status_code == 201
        await client.hub.keys.add_token(name="first", token="mh_first", now_ms=0)

        async def is_closed() -> bool:
            return (await client.http.get("/api/v1/machines")).status_code == 401

        await until(is_closed)
        headers = {"Authorization": "Bearer mh_first"}
        assert (await client.http.get("/api/v1/machines", headers=headers)).status_code == 200
