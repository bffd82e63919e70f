"""Connections of requests that leave the hub: whose they are, which are kept, whose certificate
counts, who is held up by a lookup.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from machinehub.egress.connections import LOOKUPS_OF_ONE
from tests.effects.test_outside import (
    LOOPBACK,
    _closing,  # noqa: F401 - a fixture
    fetch,
    opened,
    refused,
    resolving,
)
from tests.effects.world import world
from tests.support import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@contextlib.asynccontextmanager
async def tls_world(tmp_path: Path, *names: str) -> AsyncIterator[tuple[Any, str]]:
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with world(context) as there:
        yield there, str(ca)


async def test_connections_are_kept_for_their_owner_alone() -> None:
    """What somebody left on one must not become a part of somebody else's request."""
    async with world() as there:
        egress = opened(LOOPBACK)
        for owner in ("a", "a", "b", "a", "b"):
            await fetch(egress, there.url + "/echo", owner=owner)
        assert there.connections == 2


async def test_a_connection_is_not_kept_behind_a_body_that_a_server_may_not_read() -> None:
    async with world() as there:
        egress = opened(LOOPBACK)
        for method, body in (
            ("DELETE", b"GET / HTTP/1.1\r\n\r\n"),
            ("POST", b"x"),
            ("DELETE", b""),
        ):
            await fetch(egress, there.url + "/echo", method=method, body=body)
        assert there.connections == 2


@pytest.mark.parametrize("size", [100, 65536])
@pytest.mark.parametrize("secure", [False, True])
async def test_an_answer_that_nobody_asked_for_is_nobodys(
    tmp_path: Path, size: int, secure: bool
) -> None:
    """Wherever it waits: as much as is read at once, or a record of TLS of its own."""
    async with contextlib.AsyncExitStack() as stack:
        if secure:
            there, ca = await stack.enter_async_context(tls_world(tmp_path, "127.0.0.1"))
        else:
            there, ca = await stack.enter_async_context(world()), ""
        egress = opened(LOOPBACK, ca=ca)
        assert b"two" not in (await fetch(egress, f"{there.url}/twice/{size}")).body
        assert (await fetch(egress, there.url + "/bytes/3")).body == b"\xff" * 3
        assert there.connections == 2


async def test_a_server_of_names_that_never_answers_is_its_owners_trouble() -> None:
    """Nobody can end a lookup: it counts until it is over, though its request was given up."""
    never = asyncio.Event()
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> list[str]:
        asked.append(host)
        if host == "never.example":
            await never.wait()
            raise OSError("no such name")
        return ["127.0.0.1"]

    async with world() as there:
        egress = opened(LOOPBACK, resolve=resolve)
        url = "http://never.example/"
        hanging = [
            asyncio.ensure_future(fetch(egress, url, owner="a")) for _ in range(LOOKUPS_OF_ONE + 2)
        ]
        await until(lambda: len(asked) == LOOKUPS_OF_ONE)
        for each in hanging:
            each.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        assert asked == ["never.example"] * LOOKUPS_OF_ONE
        error = await refused(egress, f"http://pay.example:{there.port}/", owner="a", within_s=0.2)
        assert error.code == "egress_failed"
        answer = await fetch(egress, f"http://pay.example:{there.port}/echo", owner="b")
        assert answer.status == 200
        never.set()
        answer = await fetch(egress, f"http://pay.example:{there.port}/echo", owner="a")
        assert answer.status == 200


async def test_the_next_address_is_tried() -> None:
    async with world() as there:
        egress = opened(LOOPBACK, resolve=resolving(["127.1.2.3", "127.0.0.1"]))
        answer = await fetch(egress, f"http://pay.example:{there.port}/echo")
        assert answer.status == 200


async def test_certificates_are_checked_for_the_name(tmp_path: Path) -> None:
    """Not for the address that is connected to; and HTTP/1.1 is spoken with who offers more."""
    async with tls_world(tmp_path, "pay.example") as (there, ca):
        resolve = resolving(["127.0.0.1"])
        egress = opened(LOOPBACK, ca=ca, resolve=resolve)
        answer = await fetch(egress, f"https://pay.example:{there.port}/echo")
        assert answer.status == 200
        error = await refused(egress, f"https://other.example:{there.port}/echo")
        assert "certificate" in error.detail.lower()
        assert [each.header("host") for each in there.seen] == [f"pay.example:{there.port}"]
        strict = opened(LOOPBACK, resolve=resolve)
        error = await refused(strict, f"https://pay.example:{there.port}/echo")
        assert "certificate" in error.detail.lower()


async def test_a_connection_is_not_anothers(tmp_path: Path) -> None:
    """Two names of one address: each has its own certificate checked."""
    async with tls_world(tmp_path, "one.example") as (there, ca):
        egress = opened(LOOPBACK, ca=ca, resolve=resolving(["127.0.0.1"]))
        await fetch(egress, f"https://one.example:{there.port}/echo")
        await refused(egress, f"https://two.example:{there.port}/echo")
        assert len(there.seen) == 1
