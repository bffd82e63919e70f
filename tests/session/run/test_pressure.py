"""Memory of workers: idle sessions make way, and nobody is refused because of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from machinehub.limits import Limits
from tests.durable import send
from tests.support import COUNTER, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Client

FAT = """
import { createMachine, assign } from "xstate";
export default createMachine({
  context: () => ({ held: 0 }),
  on: { EAT: { actions: assign({ held: ({ context }) => { kept.push(new Uint8Array(6 * 1024 * 1024).fill(7)); return context.held + 1; } }) } },
});
const kept = [];
"""
MIB = 1024 * 1024


def live(client: Client) -> int:
    return client.hub.sessions.placement.live_count


async def test_idle_sessions_of_others_cost_nobody_a_refusal(tmp_path: Path) -> None:
    """Sixty sessions of 10 MB, where a worker has room for some twenty; nobody sweeps."""
    limits = Limits(worker_bytes=384 * MIB)
    async with running_hub(tmp_path, limits=limits) as client:
        client.hub.sessions.housekeeper.stop()
        fat = await client.deploy(FAT, name="fat")
        counter = await client.deploy(COUNTER, name="counter")
        for number in range(60):
            answer = await send(client, f"{fat}/{number}", "EAT")
            assert answer.status_code == 200, (number, answer.text)
        assert live(client) < 60
        answers = await asyncio.gather(*(send(client, f"{counter}/{n}") for n in range(20)))
        assert {answer.status_code for answer in answers} == {200}
        again = await send(client, f"{fat}/0", "EAT")
        assert again.json()["snapshot"]["context"]["held"] == 2
        assert client.hub.pool.restarts == 0


async def test_the_fattest_and_oldest_make_way_before_a_bound_is_reached(tmp_path: Path) -> None:
    limits = Limits(worker_bytes=256 * MIB)
    async with running_hub(tmp_path, limits=limits) as client:
        fat = await client.deploy(FAT, name="fat")
        counter = await client.deploy(COUNTER, name="counter")
        for number in range(22):
            await send(client, f"{fat}/{number}", "EAT")
        for number in range(10):
            await send(client, f"{counter}/{number}")

        def mapped() -> int:
            return sum(
                each.memory_bytes for each in client.hub.sessions.placement.places_on_workers
            )

        await until(lambda: mapped() < 0.8 * 256 * MIB)
        left = {each.machine_id for each in client.hub.sessions.placement.live}
        assert counter in left  # small ones stay


async def test_touched_memory_is_bounded_too(tmp_path: Path) -> None:
    """By what the computer has, or the container."""
    async with running_hub(tmp_path, limits=Limits(resident_bytes=220 * MIB)) as client:
        fat = await client.deploy(FAT, name="fat")
        for number in range(30):
            assert (await send(client, f"{fat}/{number}", "EAT")).status_code == 200
        (worker,) = client.hub.pool.workers
        await until(lambda: worker.resident_bytes() < 200 * MIB)
        assert (await send(client, f"{fat}/0", "EAT")).json()["snapshot"]["context"]["held"] == 2
