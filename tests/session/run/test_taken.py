"""Whether a transition took an event, which event a timer was, and promises that nobody handles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from machinehub.limits import Limits
from tests.support import COUNTER, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support import Client

SOURCE = """import { setup, raise, sendTo, assign } from "xstate";
export default setup({ delays: { soon: 20 } }).createMachine({
  id: "m", initial: "a", context: { asked: 0 },
  states: {
    a: { on: {
      GO: { guard: () => false, target: "b" }, STAY: {}, NOTE: { actions: () => {} }, "any.*": {},
      WAIT: "b", LATER: { actions: raise({ type: "BELL" }, { delay: 20 }) }, BELL: "a",
      TIMEOUT: { actions: () => { setTimeout(() => {}, 20); } },
      REJECT: { actions: async () => { throw new TypeError("nobody hears this"); } },
      CAUGHT: { actions: () => { Promise.reject(new Error("x")).catch(() => {}); } },
      MANY_CAUGHT: { actions: () => { for (let i = 0; i < 200; i++) Promise.reject(i).catch(() => {}); } },
      LATE: { actions: () => { const p = Promise.reject(1); Promise.resolve().then(() => p.catch(() => {})); } },
    } },
    b: { after: { soon: "a" } },
  },
});
"""


@pytest.mark.parametrize("transitions", ["compiled", "library"])
async def test_answers_say_whether_the_event_was_taken(client: Client, transitions: str) -> None:
    body = {
        "name": f"taken-{transitions}",
        "entry": "m.ts",
        "files": {"m.ts": SOURCE},
        "machine": {"transitions": transitions},
    }
    deployed = await client.http.post("/api/v1/deployments", json=body)
    machine = deployed.json()["machine"]["id"]
    for event, taken in (
        ("GO", False),
        ("STAY", True),
        ("NOTE", True),
        ("any.thing", True),
        ("NONE", False),
    ):
        answer = await client.http.post(f"/{machine}/s", json={"type": event})
        assert (answer.json()["taken"], answer.json()["changed"]) == (taken, False), event
        async with client.socket(f"{machine}/s") as socket:
            ack = await socket.event(event)
            assert (ack["taken"], ack["changed"]) == (taken, False), event


async def test_what_was_said_is_said_again(tmp_path: Path) -> None:
    headers = {"Idempotency-Key": "k"}
    async with running_hub(tmp_path, workers=1) as client:
        machine = await client.deploy(COUNTER)
        first = await client.http.post(f"/{machine}/s", json={"type": "x"}, headers=headers)
        again = await client.http.post(f"/{machine}/s", json={"type": "x"}, headers=headers)
        assert first.json() == again.json()
        assert first.json()["taken"] is False
    async with running_hub(tmp_path, workers=1) as client:
        again = await client.http.post(f"/{machine}/s", json={"type": "x"}, headers=headers)
        assert again.json()["taken"] is False
        other = await client.http.post(f"/{machine}/s", json={"type": "y"}, headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
        spelled = await client.http.post(
            f"/{machine}/s", content=b' { "type" :\n"x" } ', headers=headers
        )
        assert spelled.status_code == 200, "the same event, spelled otherwise"
        assert (await client.http.get(f"/{machine}/s")).json()["seq"] == 2


async def journal(client: Client, machine: str) -> list[dict[str, Any]]:
    path = f"/api/v1/machines/{machine}/sessions/s/journal"
    data: list[dict[str, Any]] = (await client.http.get(path)).json()["data"]
    return data


@pytest.mark.parametrize(
    ("event", "cause"),
    [("WAIT", "xstate.after.soon.m.b"), ("LATER", "BELL"), ("TIMEOUT", None)],
)
async def test_the_journal_says_which_event_a_timer_was(
    client: Client, event: str, cause: str | None
) -> None:
    machine = await client.deploy(SOURCE, name=f"cause-{event.lower()}")
    await client.http.post(f"/{machine}/s", json={"type": event})

    async def fired() -> bool:
        return bool((await journal(client, machine))[-1]["kind"] == "timer")

    await until(fired)
    entries = await journal(client, machine)
    assert entries[-1].get("cause") == cause
    assert [entry.get("taken") for entry in entries] == [None, True, None]


async def test_promises_that_nobody_handles_are_logged(client: Client) -> None:
    machine = await client.deploy(SOURCE, name="rejections")
    for event in ("CAUGHT", "LATE", "MANY_CAUGHT", "REJECT"):
        answer = await client.http.post(f"/{machine}/s", json={"type": event})
        assert answer.status_code == 200
    lines = (await client.http.get(f"/api/v1/machines/{machine}/logs")).json()["data"]
    said = [(line["level"], line["text"]) for line in lines]
    assert said == [
        (
            "error",
            "a promise was rejected, and nothing handles that: TypeError: nobody hears this",
        )
    ]


async def test_thousands_of_rejections_cost_no_event(client: Client) -> None:
    source = """import { createMachine } from "xstate";
    export default createMachine({ on: { MANY: { actions: () => { for (let i = 0; i < 5000; i++) void Promise.reject(i); } } } });"""
    machine = await client.deploy(source, name="many-rejections")
    answer = await client.http.post(f"/{machine}/s", json={"type": "MANY"})
    assert answer.status_code == 200, answer.text
    lines = (await client.http.get(f"/api/v1/machines/{machine}/logs")).json()["data"]
    assert 60 <= len(lines) <= 65


async def test_pending_timers_are_listed(client: Client) -> None:
    source = SOURCE.replace("soon: 20", "soon: 3600000")
    machine = await client.deploy(source, name="pending")
    await client.http.post(f"/{machine}/s", json={"type": "WAIT"})
    session = f"/api/v1/machines/{machine}/sessions/s"
    (timer,) = (await client.http.get(session)).json()["timers"]
    assert set(timer) == {"id", "due_at"}
    definition = (await client.http.get(f"/{machine}")).json()["definition"]
    (after,) = definition["root"]["states"]["b"]["transitions"]
    assert (after["delay"], after["delayMs"]) == ("soon", 3600000)


async def test_another_event_under_a_forgotten_id_is_refused(tmp_path: Path) -> None:
    """Also when memory has forgotten the id, or the hub was started again in between."""
    limits = Limits(ids_remembered=2)

    async def send(client: Client, machine: str, body: bytes, key: str) -> Any:
        headers = {"Idempotency-Key": key}
        return await client.http.post(f"/{machine}/s", content=body, headers=headers)

    odd = b'{"type":"x","n":[1e400,%d,true]}' % 10**400
    async with running_hub(tmp_path, workers=1, limits=limits) as client:
        machine = await client.deploy(COUNTER)
        assert (await send(client, machine, odd, "odd")).status_code == 200
        assert (await send(client, machine, b'{"type":"increment"}', "old")).status_code == 200
        for number in range(6):
            await send(client, machine, b'{"type":"increment"}', f"k{number}")
        other = await send(client, machine, b'{"type":"decrement"}', "old")
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
    async with running_hub(tmp_path, workers=1, limits=limits) as client:
        other = await send(client, machine, b'{"type":"decrement"}', "old")
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")
        assert (await send(client, machine, odd, "odd")).json()["seq"] == 2
        spaced = odd.replace(b",", b" , ")
        assert (await send(client, machine, spaced, "odd")).json()["seq"] == 2
        unlike = await send(client, machine, odd.replace(b"true", b"1"), "odd")
        assert unlike.status_code == 422
        assert (await client.http.get(f"/{machine}/s")).json()["seq"] == 9
