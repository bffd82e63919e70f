"""The same event scripts through real XState in Node and through the hub; what there is to see must
be the same.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from machinehub.clock import ManualClock
from tests.support import Client, Socket, running_hub

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

HERE = Path(__file__).parent
START_MS = 1_700_000_000_000


@cache
def reference() -> list[dict[str, Any]]:
    """Every case with what Node saw, computed once."""
    run = subprocess.run(["node", str(HERE / "reference.mjs")], capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr.decode()
    cases: list[dict[str, Any]] = json.loads(run.stdout)
    return cases


class Rig:
    """A hub whose clock stands still, and the clients of one session."""

    def __init__(self, client: Client, clock: ManualClock) -> None:
        self.client = client
        self.clock = clock

    async def play(self, case: dict[str, Any], number: int) -> list[dict[str, Any]]:
        """What the hub showed: after the start, and after every step."""
        self.clock.move_to(START_MS)
        machine_id = await self.client.deploy(
            case["source"], name=f"case-{number}", entry=case["entry"]
        )
        steps = list(case["script"])
        if steps and isinstance(steps[0], dict) and "input" in steps[0]:
            created = await self.client.http.put(
                f"/{machine_id}/s", json={"input": steps.pop(0)["input"]}
            )
            assert created.status_code == 201, created.text
        async with contextlib.AsyncExitStack() as stack:
            sockets: dict[str, Socket] = {}
            names: dict[str, str] = {}

            async def socket_of(name: str) -> Socket:
                if name not in sockets:
                    socket = sockets[name] = await stack.enter_async_context(
                        self.client.socket(f"{machine_id}/s")
                    )
                    names[(await socket.until("snapshot"))["connection"]["id"]] = name
                    await self.quiet(machine_id)
                    await socket.settle()
                return sockets[name]

            alice = await socket_of("alice")
            seen = [self.look(alice, names)]
            for step in steps:
                alice.seen.clear()
                if isinstance(step, dict) and "wait" in step:
                    await self.wait(machine_id, step["wait"])
                    await alice.settle()
                    seen.append(self.look(alice, names))
                    continue
                event = {"type": step} if isinstance(step, str) else dict(step)
                name = event.pop("as", "alice")
                if name in sockets:
                    sockets[name].seen.clear()
                socket = await socket_of(name)
                ack = await socket.event(event)
                seen.append(
                    self.look(socket, names)
                    | ({"rejected": ack["error"]["code"]} if ack["outcome"] == "rejected" else {})
                )
            return seen

    async def wait(self, machine_id: str, ms: int) -> None:
        end = self.clock.now_ms() + ms
        scheduler = self.client.hub.sessions.scheduler
        while (due := scheduler.next_due_at_ms()) is not None and due <= end:
            self.clock.move_to(max(due, self.clock.now_ms()))
            scheduler.fire()
            await self.quiet(machine_id)
        self.clock.move_to(end)

    async def quiet(self, machine_id: str) -> None:
        session = self.client.find(machine_id, "s")
        assert session is not None
        while session.waiting:
            await self.client.hub.sessions.waits.next_turn(session)

    @staticmethod
    def look(socket: Socket, names: dict[str, str]) -> dict[str, Any]:
        snapshot = {
            key: value
            for key, value in socket.snapshot.items()
            if key in ("value", "context", "status", "tags", "output")
        }
        emitted = [frame["event"] for frame in socket.seen if frame["type"] == "emitted"]
        text = json.dumps(snapshot | {"emitted": emitted})
        for connection_id, name in names.items():
            text = text.replace(connection_id, name)
        look: dict[str, Any] = json.loads(text)
        return look


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def rig(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rig]:
    clock = ManualClock(START_MS)
    async with running_hub(tmp_path_factory.mktemp("conformance"), clock=clock) as client:
        yield Rig(client, clock)


@pytest.mark.xdist_group("conformance")
@pytest.mark.parametrize("number", range(91))
async def test_hub_shows_what_xstate_shows(rig: Rig, number: int) -> None:
    case = reference()[number]
    expected, seen = case["seen"], await rig.play(case, number)
    assert len(seen) == len(expected)
    for index, (here, there) in enumerate(zip(seen, expected, strict=True)):
        step = case["script"][index - 1] if index else "start"
        if there["status"] == "error":
            # XState stops the actor; the hub undoes the event and goes on from before it.
            assert here.pop("rejected") == "machine_error"
            assert here == {**expected[index - 1], "emitted": []}, f"{case['name']}: after {step}"
            return
        if here.pop("rejected", None) is not None:
            assert expected[index - 1]["status"] == "done", f"{case['name']}: {step} was rejected"
        assert here == there, f"{case['name']}: after {step}"


def test_there_is_a_case_for_everything() -> None:
    """The table has at least 60 machines besides the examples, and every example is played."""
    cases = reference()
    names = {case["name"] for case in cases}
    examples = {path.name for path in (HERE.parent.parent / "examples").glob("*.ts")}
    assert len(cases) == 94
    assert examples <= names
    assert len(names - examples) >= 60
