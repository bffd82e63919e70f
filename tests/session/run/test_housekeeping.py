"""Sessions that nobody uses sleep in the database, and wake when somebody asks. On real databases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.limits import Limits
from machinehub.session.decide.lifecycle import Phase, Stage
from tests.durable import asleep, hub_on, send
from tests.support import COUNTER, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_sleeping_sessions_are_in_the_database_only(
    database_url: str, tmp_path: Path
) -> None:
    async with hub_on(database_url, tmp_path) as client:
        machine = await client.deploy(COUNTER)
        for _ in range(3):
            await send(client, f"{machine}/alone", event_id="same")
        await asleep(client, machine, "alone")
        assert client.find(machine, "alone") is None
        async with client.socket(f"{machine}/watched") as socket:
            await socket.event("increment", event_id="w")
            await asleep(client, machine, "watched")
            watched = client.find(machine, "watched")
            assert watched is not None
            assert (watched.phase, watched.tail, watched.checkpoint) == (Phase.ASLEEP, [], None)
            assert client.place(machine, "watched").stage is Stage.OFF
            await socket.settle()
            assert (await client.http.get(f"/{machine}/watched")).json()["seq"] == 2
            assert watched.phase is Phase.ASLEEP
            assert (await socket.event("increment", event_id="w"))["seq"] == 2
            assert (await socket.event("increment"))["seq"] == 3
            assert socket.snapshot["context"] == {"count": 2}
        assert (await client.http.get(f"/{machine}/alone")).json()["snapshot"]["context"] == {
            "count": 1
        }
        assert (await send(client, f"{machine}/alone", event_id="same")).json()["seq"] == 2
        conditional = await send(client, f"{machine}/alone", **{"If-Match": '"2"'})
        assert (conditional.status_code, conditional.json()["seq"]) == (200, 3)


async def test_too_many_live_sessions_make_the_oldest_sleep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("machinehub.session.run.housekeeping.FRESH_MS", 0)
    async with running_hub(tmp_path, workers=1, limits=Limits(live_sessions=5)) as client:
        machine = await client.deploy(COUNTER)
        for number in range(30):
            await send(client, f"{machine}/s{number}")

        def have_gone() -> bool:
            client.hub.sessions.housekeeper.sweep()
            return len(list(client.hub.sessions.placement.live)) <= 5

        await until(have_gone)
        assert len(list(client.hub.sessions.placement.live)) == 5
        answers = [
            (await send(client, f"{machine}/s{number}")).json()["snapshot"]["context"]
            for number in range(30)
        ]
        assert answers == [{"count": 2}] * 30
