"""Row 20: pages of other sites, and requests that are two."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.attacks.test_clients import ask
from tests.support import COUNTER, Client, running_hub

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8787",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[::1].evil.example",
        "",
        "169.254.169.254",
        "0x7f000001",
    ],
)
async def test_an_open_hub_has_no_other_name(client: Client, host: str) -> None:
    """So a name that somebody's server points here reaches nothing (DNS rebinding)."""
    machine = await client.deploy(COUNTER, name="rebinding")
    for path in ("/api/v1/machines", f"/{machine}/s", "/"):
        assert (
            await ask(
                client, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
        ).split()[1] == b"403"


@pytest.mark.parametrize(
    "request_bytes",
    [
        (
            b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
            b"4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: "
            b"localhost\r\n\r\n"
        ),
        (
            b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
            b"4\r\nContent-Length: "
            b"5\r\n\r\n{}{}"
        ),
        (
            b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: "
            b"xchunked\r\n\r\n0\r\n\r\n"
        ),
        (
            b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : "
            b"chunked\r\n\r\n0\r\n\r\n"
        ),
        b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        (
            b"POST /{machine}/s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: "
            b"chunked\r\n\r\nfffffffffffffffff\r\n"
        ),
        b"GET /{machine}/s HTTP/1.1\r\nHost: localhost\r\n folded: x\r\n\r\n",
        b"GET /{machine}/s HTTP/9.9\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /{machine}/s HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n",
    ],
    ids=[
        "both lengths",
        "two lengths",
        "an unknown coding",
        "a space before the colon",
        "a negative length",
        "an endless chunk",
        "a folded header",
        "a version",
        "TLS",
        "a NUL",
    ],
)
async def test_a_request_is_one_request(client: Client, request_bytes: bytes) -> None:
    """What could be read in two ways is refused and ends the connection: nothing of it is a second
    request.
    """
    machine = await client.deploy(COUNTER, name="smuggling")
    answer = await ask(client, request_bytes.replace(b"{machine}", machine.encode()))
    assert answer.startswith(b"HTTP/1.1 400"), answer
    assert b"bad_request" in answer
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("X: " + "y" * 131_072, 431),
        ("\r\n".join(f"X{n}: y" for n in range(200)), 431),
        ("X: " + "y" * 20_000, 200),
    ],
)
async def test_large_heads_are_refused(client: Client, head: str, status: int) -> None:
    answer = await ask(
        client,
        f"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{head}\r\n\r\n".encode(),
    )
    assert answer.startswith(f"HTTP/1.1 {status}".encode())
    assert status == 200 or b"headers_too_large" in answer


async def test_an_origin_that_is_none(client: Client) -> None:
    """These were 500s."""
    assert (
        await client.http.get("/api/v1/machines", headers={"Origin": "http://["})
    ).status_code == 403
    assert (await client.http.get("/api/v1/machines/none/%73essions/a")).status_code == 404


async def test_pages_of_named_sites_only(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="t", workers=1, origins="https://app.example") as client:
        machine = await client.deploy(COUNTER)
        for origin, status in (
            ("https://app.example", 200),
            ("https://evil.example", 403),
            ("null", 403),
        ):
            assert (
                await client.http.get(f"/{machine}/s", headers={"Origin": origin})
            ).status_code == status
        async with client.socket(f"{machine}/s", origin="https://app.example") as peer:
            await peer.until("snapshot")
        with pytest.raises(Exception, match="403"):
            async with client.socket(f"{machine}/s", origin="https://evil.example"):
                pass
