"""One machine's requests do not keep others from asking, and are nobody else's: not of whoever takes
a session's name, not of an hour that a clock skips.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.clock import Entropy, SystemClock
from machinehub.effect import Conclusion, Effect
from machinehub.effects import broker
from machinehub.effects.asked import Leave
from machinehub.egress.rules import EgressRules
from machinehub.errors import NotFound
from machinehub.ids import MachineId, ProjectId, Seq, SessionId, SessionKey
from machinehub.limits import Limits
from machinehub.logs import MachineLogs
from machinehub.metrics import Metrics
from machinehub.session.port import Address
from sandbox.protocol.effects import Answer, encode_answer
from sandbox.protocol.ids import EffectId
from tests.effects.test_broker import came, deployed, fetching, send, sqlite
from tests.effects.world import world
from tests.support import until

if TYPE_CHECKING:
    from pathlib import Path

    from machinehub.effects.asked import Asked
    from tests.support import Client


async def test_one_machine_leaves_room_for_others(tmp_path: Path) -> None:
    """However much it asks, and however long that takes: half of what may be under way is for
    other machines, and a quarter for other projects, of which none has all of that.
    """
    limits = Limits(effects_in_flight=8)
    async with (
        world() as there,
        fetching(sqlite(tmp_path), tmp_path, there, limits=limits) as client,
    ):
        greedy = [await deployed(client, name=name, in_flight=1000) for name in ("a", "b")]
        for machine, count in zip(greedy, (4, 6), strict=True):
            for number in range(6):
                event = {"type": "fetch", "url": there.url + "/wait"}
                await send(client, machine, f"s{number}", event)
            await until(lambda count=count: there.under_way == count)  # type: ignore[misc]
        too_greedy, modest = [await in_project(client, name) for name in ("other", "third")]
        greedy.append(too_greedy)
        for number in range(6):
            event = {"type": "fetch", "url": there.url + "/wait"}
            await send(client, too_greedy, f"s{number}", event)
        await until(lambda: there.under_way == 7)
        await send(client, modest, "s", {"type": "fetch", "url": there.url + "/echo"})
        assert (await came(client, modest, "s"))["got"][0]["status"] == 200
        assert there.under_way == 7
        there.let_go.set()
        for machine in greedy:
            for number in range(6):
                await came(client, machine, f"s{number}")


async def test_one_machine_leaves_room_for_others_of_its_project() -> None:
    """Where the project may have no more under way: who has less of that comes first. The broker is
    the real one, between a session and a world that answer at once.
    """
    begun: list[str] = []

    class Around:
        async def of(self, machine: str, _version: int) -> Leave:
            return Leave(ProjectId("p"), machine, EgressRules(per_second=1000), [])

        async def answer(self, *_: Any, **__: Any) -> None:
            """Every answer is taken."""

        async def carry(self, asked: Asked) -> Answer:
            begun.append(asked.leave.machine)
            await asyncio.sleep(0)
            return Answer(200, text="")

    around: Any = Around()
    there = broker.Broker(
        around,
        around,
        around,
        around.carry,
        SystemClock(),
        Entropy(),
        logs=MachineLogs(kept=1),
        metrics=Metrics(),
        at_once=1,
    )
    for key, (machine, count) in enumerate((("busy", 6), ("modest", 3))):
        address = Address(MachineId(machine), SessionId("s"), 1)
        request = b'{"method":"GET","url":"https://a.example/"}'
        effects_ = [Effect(EffectId(number), Seq(1), number, request, 0) for number in range(count)]
        there.asked(address, SessionKey(key), effects_)
    await until(lambda: len(begun) == 9)
    await until(lambda: not there.known)
    assert begun == ["busy", "modest"] * 3 + ["busy"] * 3
    assert there.in_flight == 0


async def in_project(client: Client, project: str) -> str:
    """A machine of a new project."""
    answer = await client.http.post("/api/v1/projects", json={"name": project})
    assert answer.status_code == 201, answer.text
    client.http.params = client.http.params.set("project", project)
    machine = await deployed(client, name="m", in_flight=1000)
    client.http.params = client.http.params.remove("project")
    return machine


async def test_one_machine_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it asks beyond that waits in the database, and others are found behind it."""
    for name, value in (("JOBS_MAX", 4), ("JOBS_OF_ONE", 3), ("JOBS_ALWAYS", 2), ("PAGE", 2)):
        monkeypatch.setattr(broker, name, value)
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        greedy = await deployed(client, name="greedy", in_flight=1)
        for number in range(9):
            await send(client, greedy, f"s{number}", {"type": "fetch", "url": there.url + "/wait"})
        assert client.hub.broker.known == 3
        await until(lambda: there.under_way == 1)
        exposed = (await client.http.get("/metrics")).text
        assert "machinehub_effects_waiting 9.0" in exposed
        assert "machinehub_effects_in_flight 1.0" in exposed
        modest = await deployed(client, name="modest")
        for number in range(3):
            url = there.url + "/echo"
            await send(client, modest, f"s{number}", {"type": "fetch", "url": url})
        for number in range(3):
            await came(client, modest, f"s{number}")
        assert client.hub.broker.known == 3
        there.let_go.set()
        for number in range(9):
            await came(client, greedy, f"s{number}")


@pytest.mark.parametrize("how", ["restart", "delete"])
async def test_an_answer_is_not_for_who_took_the_sessions_name(
    how: str, database_url: str, tmp_path: Path
) -> None:
    async with world() as there, fetching(database_url, tmp_path, there) as client:
        machine = await deployed(client)
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/wait"})
        await until(lambda: there.under_way)
        [[old]] = [list(jobs.values()) for jobs in client.hub.broker._jobs.values()]
        path = f"/api/v1/machines/{machine}/sessions/s"
        if how == "restart":
            assert (await client.http.post(path + "/restart")).status_code == 200
        else:
            assert (await client.http.delete(path)).status_code == 204
        await until(lambda: not client.hub.broker.known)  # and nobody is asked again
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/wait"})
        await until(lambda: there.under_way)
        # Another node may hear of the deletion too late.
        answer, done = Answer(200, text="of another"), Conclusion("answered", 200)
        with pytest.raises(NotFound):
            await client.hub.port.answer(
                old.address, EffectId(1), encode_answer(answer), done, key=old.key
            )
        there.let_go.set()
        [got] = (await came(client, machine, "s"))["got"]
        assert got["text"] == "waited"


async def test_an_unexpected_error_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client)
        leaves, fails = client.hub.broker._leaves, [True]

        class Failing:
            async def of(self, *name: Any) -> Any:
                if fails:
                    raise ZeroDivisionError(fails.pop())
                return await leaves.of(*name)

        monkeypatch.setattr(client.hub.broker, "_leaves", Failing())
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/echo"})
        assert len((await came(client, machine, "s"))["got"]) == 1
        assert "ZeroDivisionError" in caplog.text


async def test_a_clock_that_jumps_takes_no_tries_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor gives any: how long it was tried is measured by a clock that does not jump."""
    async with world() as there, fetching(sqlite(tmp_path), tmp_path, there) as client:
        machine = await deployed(client, tries=3)
        clock = client.hub.broker._clock

        class Jumping:
            def now_ms(self) -> int:
                return clock.now_ms() + 3_600_000 * len(there.seen)

            def __getattr__(self, name: str) -> Any:
                return getattr(clock, name)

        monkeypatch.setattr(client.hub.broker, "_clock", Jumping())
        await send(client, machine, "s", {"type": "fetch", "url": there.url + "/status/503/2"})
        [got] = (await came(client, machine, "s"))["got"]
        assert (got["status"], len(there.seen)) == (200, 3)
