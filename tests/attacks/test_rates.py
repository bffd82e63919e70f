"""Too much of everything: how many connections an address has, how often it and a machine may
ask.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from machinehub.edge.admission import network_of
from machinehub.limits import Limits
from tests.protocols.test_websocket import closed_with
from tests.support import COUNTER, problem, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_an_address_has_so_many_connections(tmp_path: Path) -> None:
    async with running_hub(
        tmp_path, token="t", workers=1, limits=Limits(connections_per_address=3)
    ) as client:
        machine = await client.deploy(COUNTER)
        async with (
            client.socket(f"{machine}/s") as one,
            client.socket(f"{machine}/s") as two,
            client.socket(f"{machine}/s") as three,
        ):
            await asyncio.gather(*(socket.until("snapshot") for socket in (one, two, three)))
            refused = await client.http.get(f"/{machine}/s")
            problem(refused, 429, "connections_exceeded")
            async with client.socket(f"{machine}/s") as four:
                assert (await four.until("error"))["code"] == "connections_exceeded"

        async def is_let_in() -> bool:
            return (await client.http.get(f"/{machine}/s")).status_code == 200

        await until(is_let_in)
        assert (
            'machinehub_refused_total{code="connections_exceeded"}'
            in (await client.http.get("/metrics")).text
        )


async def test_connections_that_ask_nothing_are_counted_too(tmp_path: Path) -> None:
    """By the address that they come from; those of a proxy on this computer by what it forwards."""
    async with running_hub(tmp_path, token="t", limits=Limits(connections_per_address=3)) as client:
        opened = [
            await asyncio.open_connection(
                "127.0.0.1", client.hub.settings.port, local_addr=("127.0.0.2", 0)
            )
            for _ in range(4)
        ]
        assert b"connections_exceeded" in await asyncio.wait_for(opened[-1][0].read(), 60)
        connected = client.hub.admission._connected
        await until(lambda: connected["127.0.0.2"] == 3)
        opened[0][1].transport.abort()
        await until(lambda: connected["127.0.0.2"] == 2)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", client.hub.settings.port, local_addr=("127.0.0.2", 0)
        )
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n"), 60)
        for _, each in [*opened, (reader, writer)]:
            each.transport.abort()
        await until(lambda: not connected)


async def test_an_address_makes_so_many_requests(tmp_path: Path) -> None:
    async with running_hub(
        tmp_path, token="t", workers=1, limits=Limits(requests_per_s=5)
    ) as client:
        answers = [(await client.http.get("/healthz")) for _ in range(12)]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert answers[-1].json()["code"] == "rate_limited" or answers[-1].status_code == 200


async def test_a_machine_takes_so_many_events(tmp_path: Path) -> None:
    """All its sessions and connections together: one stranger's machine is not the whole hub."""
    async with running_hub(
        tmp_path, token="t", workers=1, limits=Limits(machine_events_per_s=10)
    ) as client:
        machine, other = await client.deploy(COUNTER), await client.deploy(COUNTER, name="other")
        codes = [
            (await client.http.post(f"/{machine}/s{n}", json={"type": "increment"})).status_code
            for n in range(20)
        ]
        assert codes.count(200) < 20
        assert set(codes) == {200, 429}
        assert (
            await client.http.post(f"/{other}/s", json={"type": "increment"})
        ).status_code == 200


async def test_wrong_frames_have_a_rate_too(tmp_path: Path) -> None:
    async with running_hub(
        tmp_path, token="t", workers=1, limits=Limits(events_per_s=20)
    ) as client:
        machine = await client.deploy(COUNTER)
        async with client.socket(f"{machine}/s") as peer:
            await peer.until("snapshot")
            for _ in range(60):
                await peer.send_raw("nonsense")
            assert await closed_with(peer) == 4008


async def test_made_up_members_have_a_rate(tmp_path: Path) -> None:
    async with running_hub(
        tmp_path, workers=1, limits=Limits(joins_per_s=3, connections_per_session=3)
    ) as client:
        machine = await client.deploy(COUNTER)
        codes: list[str | None] = []
        for number in range(6):
            async with client.socket(f"{machine}/s?client=a-key-that-was-made-up-{number}") as peer:
                first = await peer.receive()
                codes.append(None if first["type"] == "snapshot" else first["code"])
        assert "rate_limited" in codes
        assert codes[0] is None


@pytest.mark.core
def test_addresses_of_both_kinds() -> None:
    """Whoever came through a proxy that writes IPv4 as IPv6 was one and the same address."""
    assert network_of("::ffff:10.0.0.7") == "10.0.0.7"
    assert (
        network_of("2001:db8:1:2:3:4:5:6")
        == network_of("2001:db8:1:2::9")
        != network_of("2001:db8:1:3::9")
    )
    assert network_of("") == ""
