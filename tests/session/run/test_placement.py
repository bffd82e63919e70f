"""Whoever asks for much does not hold up the others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

from tests.attacks.test_hub import machine
from tests.support import COUNTER, Client, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_undoing_stays_cheap_behind_heavy_turns(client: Client) -> None:
    """Hundreds of heavy inputs and then one to undo: the replay took longer than a worker may be
    silent.
    """
    source = machine("() => { throw new Error('x'); }").replace(
        "OK:", "BUSY: { actions: () => { for (let i = 0; i < 60000; i++); } }, OK:"
    )
    machine_id = await client.deploy(source, name="replay")
    before = client.worker_pids()
    async with client.socket(f"{machine_id}/s") as peer:
        for number in range(150):
            await peer.send_raw({"type": "event", "id": f"b{number}", "event": {"type": "BUSY"}})
        await peer.send_raw({"type": "event", "id": "x", "event": {"type": "X"}})
        while (ack := await peer.until("ack"))["id"] != "x":
            assert ack["outcome"] == "accepted"
        assert ack["error"]["code"] == "machine_error"
        assert (await peer.event("OK"))["outcome"] == "accepted"
    assert set(before) <= set(client.worker_pids())


async def test_an_innocent_build_waits_for_the_guilty(tmp_path: Path) -> None:
    """Builds in a queue were blamed for the time, and the crash, of the one before them."""
    async with running_hub(tmp_path, workers=1) as client:

        async def deploy(name: str, source: str) -> int:
            response = await client.http.post(
                "/api/v1/deployments",
                json={"name": name, "entry": "m.ts", "files": {"m.ts": source}},
            )
            return response.status_code

        guilty = asyncio.create_task(deploy("guilty", "for (;;);"))
        builds: Any = client.hub.pool.builds
        await until(lambda: builds._waiting_count == 1)
        innocent = [
            asyncio.create_task(deploy(f"innocent-{number}", COUNTER + "\n" * number))
            for number in range(3)
        ]
        await until(lambda: builds._waiting_count == 4)
        forge = client.hub.pool._forge
        assert forge is not None
        assert forge.process is not None
        os.kill(forge.process.pid, signal.SIGKILL)
        assert await guilty == 422
        assert await asyncio.gather(*innocent) == [201, 201, 201]


async def test_hostile_sessions_hold_up_their_neighbours_only_a_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker ran everything that a session had sent ahead before anybody else's event, even after
    its deletion; and the hub did before it stopped.
    """
    monkeypatch.setattr("machinehub.session.run.housekeeping.FREEZE_ALL_S", 1000)
    async with asyncio.timeout(30), running_hub(tmp_path, workers=1) as client:
        machine_id = await client.deploy(machine("() => { for (;;); }"))
        async with contextlib.AsyncExitStack() as stack:
            for number in range(4):
                hostile = await stack.enter_async_context(
                    client.socket(f"{machine_id}/hostile-{number}")
                )
                for _ in range(60):
                    await hostile.send_raw({"type": "event", "event": {"type": "X"}})
            for _ in range(5):
                assert (
                    await client.http.post(f"/{machine_id}/innocent", json={"type": "OK"})
                ).status_code == 200
            waiting = [
                session
                for session in client.hub.sessions.registry.all
                if session.session_id.startswith("hostile")
            ]
            assert sum(len(session.pending) for session in waiting) > 200


async def test_copies_of_an_event_do_not_pile_up(client: Client) -> None:
    """Each copy of an id that was not settled yet was remembered."""
    machine_id = await client.deploy(machine("() => { for (;;); }"), name="copies")
    async with client.socket(f"{machine_id}/s") as peer:
        await peer.until("snapshot")
        for _ in range(3):
            await peer.send_raw({"type": "event", "event": {"type": "X"}})
        for _ in range(200):
            await peer.send_raw({"type": "event", "id": "same", "event": {"type": "OK"}})
        acks = [await peer.until("ack") for _ in range(200)]
    codes = [ack.get("error", {}).get("code") for ack in acks]
    assert codes.count("unavailable") == 200 - 64
    assert len({ack["seq"] for ack in acks if ack["outcome"] == "accepted"}) == 1
