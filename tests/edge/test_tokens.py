"""Tokens: which are valid, and when a hub is open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.clock import ManualClock
from machinehub.edge.tokens import REMEMBERED_S
from tests.support import COUNTER, problem, running_hub

if TYPE_CHECKING:
    from pathlib import Path


async def test_tokens_guard_the_api_and_nothing_else(tmp_path: Path) -> None:
    clock = ManualClock()
    async with running_hub(tmp_path, token="mh_secret", clock=clock) as client:
        machine = await client.deploy(COUNTER)
        open_client = {"Authorization": ""}
        for header in ("", "Bearer", "Bearer wrong", "Basic mh_secret", "Bearer " + "x" * 10_000):
            response = await client.http.get("/api/v1/machines", headers={"Authorization": header})
            problem(response, 401, "unauthorised")
            assert response.headers["www-authenticate"] == "Bearer"
        assert (await client.http.get(f"/{machine}/s", headers=open_client)).status_code == 200
        assert (await client.http.get("/healthz", headers=open_client)).status_code == 200
        token = await client.hub.keys.add_token(name="t", token="mh_other", now_ms=1)
        other = {"Authorization": "Bearer mh_other"}
        clock.move_to(clock.now_ms() + int(REMEMBERED_S * 1000))
        assert (await client.http.get("/api/v1/machines", headers=other)).status_code == 200
        await client.hub.keys.revoke_token(token.id, now_ms=2)
        clock.move_to(clock.now_ms() + int(REMEMBERED_S * 1000))
        problem(await client.http.get("/api/v1/machines", headers=other), 401, "unauthorised")


async def test_revoking_the_last_token_closes_the_hub(tmp_path: Path) -> None:
    """It opened it to everybody."""
    async with running_hub(tmp_path / "first", workers=1) as client:
        await client.hub.keys.add_token(name="t", token="mh_t", now_ms=1)
        await client.hub.keys.revoke_token(1, now_ms=2)
    async with running_hub(tmp_path / "first", workers=1) as client:
        assert (await client.http.get("/api/v1/machines")).status_code == 401
