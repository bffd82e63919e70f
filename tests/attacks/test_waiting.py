"""Attacks by what machines leave waiting, and by what they say: promises, timers, logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from machinehub.clock import ManualClock
from machinehub.limits import Limits
from tests.attacks.test_machines import acting, fresh, handling
from tests.support import Client, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_promise_that_never_settles_costs_nothing(client: Client) -> None:
    source = handling(
        'initial: "a", states: { a: { on: { X: "b" } }, b: { invoke: { src: fromPromise(() => new '
        "Promise(() => {})) } } }"
    )
    machine = await client.deploy(source, name="never-settles")
    await client.http.post(f"/{machine}/s", json={"type": "X"})
    await client.put_to_sleep(machine, "s")
    answer = await client.http.post(f"/{machine}/s", json={"type": "OK"})
    assert (answer.json()["snapshot"]["value"], answer.json()["snapshot"]["context"]) == (
        "b",
        {"n": 1},
    )


async def test_odd_delays_are_never_early(tmp_path: Path) -> None:
    clock = ManualClock(1_800_000_000_000)
    delays = [
        "NaN",
        "Infinity",
        "-1",
        "'5'",
        "0.5",
        "2 ** 31",
        "2 ** 53",
        "{}",
        "null",
        "undefined",
        "-Infinity",
        "1e308",
    ]
    source = acting("".join(f"setTimeout(() => {{}}, {delay});" for delay in delays))
    async with running_hub(tmp_path, clock=clock, workers=1) as client:
        machine = await client.deploy(source)
        await client.http.post(f"/{machine}/s", json={"type": "X"})
        session = client.find(machine, "s")
        assert session is not None
        now, never = clock.now_ms(), 8_640_000_000_000_000
        assert [armed.due_at_ms for armed in session.timers.values()] == [
            now,
            never,
            now,
            now + 5,
            now + 1,
            now + 2**31,
            never,
            now,
            now,
            now,
            now,
            never,
        ]
        clock.move_to(now + 2**31 - 1)
        client.hub.sessions.scheduler.fire()
        await client.http.post(f"/{machine}/s", json={"type": "OK"})
        await until(lambda: len(session.timers) <= 4)
        assert sorted(armed.due_at_ms for armed in session.timers.values()) == [
            now + 2**31,
            never,
            never,
            never,
        ]


@pytest.mark.parametrize(
    "timers",
    [
        "after: { 0: 'a' }",
        "entry: () => setInterval(() => {}, 1)",
        "after: { 0: { target: 'a', reenter: true } }",
    ],
)
async def test_timers_that_never_rest_are_slowed_down(tmp_path: Path, timers: str) -> None:
    """At most so many in a second, and a neighbour is served meanwhile."""
    clock = ManualClock(1_800_000_000_000)
    async with running_hub(
        tmp_path, clock=clock, workers=1, limits=Limits(timer_turns_per_s=20)
    ) as client:
        machine = await client.deploy(
            handling(
                f'initial: "a", states: {{ a: {{ on: {{ X: "a" }}, {timers.replace("0: ", "1: ")} '
                f"}} }}"
            )
        )
        await client.http.get(f"/{machine}/s")
        for step in range(60):
            clock.move_to(clock.now_ms() + 10)
            client.hub.sessions.scheduler.fire()
            assert (
                await client.http.post(f"/{machine}/neighbour-{step % 3}", json={"type": "OK"})
            ).status_code == 200
        entries = (await client.http.get(f"/api/v1/machines/{machine}/sessions/s/journal")).json()[
            "data"
        ]
        fired = [entry for entry in entries if entry["kind"] == "timer"]
        assert 1 <= len(fired) <= 40


async def test_what_machines_say_is_cut_and_spelled(client: Client) -> None:
    said = [
        "one\r\ntwo",
        "\u001b[2J\u001b]0;title\u0007",
        "\u202eevil",
        '{"level":"error","at_ms":1}',
        "\u0000",
        "<script>alert(1)</script>",
    ]
    lines = "".join(f"console.log({text!a});" for text in said)
    machine = await client.deploy(
        acting("console.log('x'.repeat(5e6)); for (let i = 0; i < 1e4; i++) console.log(i)"),
        name="talkative",
    )
    assert (await client.http.post(f"/{machine}/{fresh()}", json={"type": "X"})).status_code in (
        200,
        422,
    )
    machine = await client.deploy(
        acting(lines + "for (let i = 0; i < 200; i++) console.log('x'.repeat(5000))"),
        name="talkative",
    )
    assert (await client.http.post(f"/{machine}/{fresh()}", json={"type": "X"})).status_code == 200
    logged = [
        line["text"]
        for line in (await client.http.get("/api/v1/machines/talkative/logs")).json()["data"]
    ]
    assert logged[-65:][: len(said)] == said, "as it was said, since JSON escapes it"
    assert "dropped" in logged[-1]
    assert max(map(len, logged)) <= 4_097
