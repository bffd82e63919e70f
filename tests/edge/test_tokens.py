"""Tokens: which are valid, and when a hub is open."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.support import COUNTER, problem, running_hub

if TYPE_CHECKING:
    from pathlib import Path


async def test_tokens_guard_the_api_and_nothing_else(tmp_path: Path) -> None:
    async with running_hub(tmp_path, token="mh_secret", workers=1) as client:
        machine = await client.deploy(COUNTER)
        open_client = {"Authorization": ""}
        for header in ("", "Bearer", "Bearer wrong", "Basic mh_secret", "Bearer " + "x" * 10_000):
            response = await client.http.get("/api/v1/machines", headers={"Authorization": header})
            problem(response, 401, "unauthorised")
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.http.get(f"/{machine}/s", headers=open_client)).status_code == 200
        assert (await client.http.get("/healthz", headers=open_client)).status_code == 200
        token = await client.hub.store.add_token(name="t", token="mh_other", now_ms=1)
        other = {"Authorization": "Bearer mh_other"}
        await asyncio.sleep(2.1)
        assert (await client.http.get("/api/v1/machines", headers=other)).status_code == 200
        await client.hub.store.revoke_token(token.id, now_ms=2)
        deadline = time.monotonic() + 5
        while (await client.http.get("/api/v1/machines", headers=other)).status_code == 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)


async def test_revoking_the_last_token_closes_the_hub(tmp_path: Path) -> None:
    """It opened it to everybody."""
    async with running_hub(tmp_path / "first", workers=1) as client:
        await client.hub.store.add_token(name="t", token="mh_t", now_ms=1)
        await client.hub.store.revoke_token(1, now_ms=2)
    async with running_hub(tmp_path / "first", workers=1) as client:
        assert (await client.http.get("/api/v1/machines")).status_code == 401
