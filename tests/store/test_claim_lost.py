"""A hub whose claim on a Postgres database is lost stops serving at once, says so, and goes on when
it has it again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import asyncpg
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from machinehub.store.claim import HUB_LOCK
from tests.databases import new_database
from tests.durable import hub_on, send
from tests.support import COUNTER, problem, until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.support import Client


async def end_holder(connection: asyncpg.Connection[Any], *, take: bool) -> None:
    """Ends the connection that holds the claim; with `take` this one has it from then on."""
    holder = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND granted"
    pid = await connection.fetchval(holder, HUB_LOCK & 0xFFFFFFFF)
    assert pid is not None
    await connection.execute("SELECT pg_terminate_backend($1)", pid)
    while take and not await connection.fetchval("SELECT pg_try_advisory_lock($1)", HUB_LOCK):
        pass


async def is_ready(client: Client) -> tuple[bool, str | None]:
    answer = await client.http.get("/readyz")
    return answer.status_code == 200, answer.json().get("reason")


async def test_it_stops_serving_while_another_has_the_database(
    postgres: str, tmp_path: Path
) -> None:
    url = await new_database(postgres)
    async with hub_on(url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/s")
        connection = await asyncpg.connect(url)
        address = f"{client.url}/{machine}/s".replace("http", "ws", 1)
        try:
            async with connect(address) as socket:
                assert json.loads(await socket.recv())["seq"] == 2
                await end_holder(connection, take=True)
                try:
                    while True:
                        await socket.recv()
                except ConnectionClosed as closed:
                    assert closed.rcvd is not None
                    assert closed.rcvd.code == 1013

            async def is_refused() -> bool:
                return await is_ready(client) == (False, "claim_lost")

            await until(is_refused)
            for refused in (
                await send(client, f"{machine}/s"),
                await client.http.get(f"/{machine}/s"),
                await client.http.get("/api/v1/machines"),
            ):
                assert problem(refused, 503, "unavailable")["reason"] == "claim_lost"
            assert (await client.http.get("/healthz")).status_code == 200
            await connection.fetchval("SELECT pg_advisory_unlock($1)", HUB_LOCK)
        finally:
            await connection.close()

        async def goes_on() -> bool:
            return (await is_ready(client))[0]

        await until(goes_on)
        assert (await send(client, f"{machine}/s")).json()["seq"] == 3


async def test_it_takes_the_claim_again_when_nobody_has_it(
    postgres: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only its connection broke: sessions go on from what the database knows."""
    url = await new_database(postgres)
    async with hub_on(url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        await send(client, f"{machine}/s")
        connection = await asyncpg.connect(url)
        await end_holder(connection, take=False)
        await connection.close()

        async def goes_on() -> bool:
            answer = await send(client, f"{machine}/s")
            assert answer.status_code in (200, 503)
            # Before the hub has noticed anything, events are taken as well.
            return answer.status_code == 200 and "claimed again" in caplog.text

        await until(goes_on)
        replayed = await client.http.post(f"/api/v1/machines/{machine}/sessions/s/replay")
        assert replayed.json()["verified"] is True
