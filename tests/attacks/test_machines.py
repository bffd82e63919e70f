"""Attacks by machines, through the front door: each ends with a named error, and nobody else
notices.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from machinehub.clock import ManualClock
from machinehub.limits import Limits
from tests.attacks.actions import ACTIONS, POLLUTIONS, UNSHOWABLE, UNSHOWABLE_CODES, Attack
from tests.support import COUNTER, ROOT, Client, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

IMPORTS = (
    "import { assign, createActor, createMachine, emit, fromCallback, fromPromise, raise, "
    'sendParent, sendTo, setup, spawnChild, stopChild } from "xstate";\n'
)
_numbers = itertools.count()
OK = "OK: { actions: assign({ n: ({ context }) => context.n + 1 }) }"


def acting(action: str, *, context: str = "{ n: 0 }", more: str = "") -> str:
    """A machine whose event X runs `action`, and whose event OK counts."""
    return f"{IMPORTS}export default createMachine({{ context: () => ({context}), {more} on: {{ X: {{ actions: () => {{ {action} }} }}, {OK} }} }});"


def handling(config: str, *, top: str = "", context: str = "{ n: 0 }") -> str:
    """A machine with `config` beside its event OK."""
    return f"{IMPORTS}{top}\nconst config = {{ {config} }};\nexport default createMachine({{ context: () => ({context}), ...config, on: {{ {OK}, ...config.on }} }});"


def fresh() -> str:
    """A session's id that no other test has: versions of one machine share its sessions."""
    return f"s{next(_numbers)}"


def refusals(client: Client, code: str) -> float:
    value: float = client.hub.metrics.rejected.labels(code=code)._value.get()
    return value


async def endure(
    client: Client, source: str, codes: list[str], *, name: str = "attack", event: str = "X"
) -> dict[str, Any]:
    """Sends an event, which must be refused by one of `codes`: with a metric that counts it, the
    session as it was and taking the next event, the same workers, a neighbour that is served.
    The refusal.
    """
    machine = await client.deploy(source, name=name)
    workers = client.worker_pids()
    session = f"/{machine}/{fresh()}"
    await client.http.post(session, json={"type": "OK"})
    before = (await client.http.get(session)).json()
    counted = {code: refusals(client, code) for code in codes}
    refused, neighbour = await asyncio.gather(
        client.http.post(session, json={"type": event}),
        client.http.post(f"/{machine}/{fresh()}", json={"type": "OK"}),
    )
    assert refused.status_code == 422, refused.text
    problem: dict[str, Any] = refused.json()
    assert problem["code"] in codes, problem
    assert refusals(client, problem["code"]) == counted[problem["code"]] + 1
    assert neighbour.json()["snapshot"]["context"]["n"] == 1
    after = (await client.http.get(session)).json()
    assert (after["seq"], after["snapshot"]) == (before["seq"], before["snapshot"])
    again = await client.http.post(session, json={"type": "OK"})
    assert again.json()["snapshot"]["context"]["n"] == before["snapshot"]["context"]["n"] + 1
    assert set(workers) <= set(client.worker_pids())
    return problem


ALL_ACTIONS = handling(
    "on: {"
    + ",".join(
        f"{json.dumps(attack.id)}: {{ actions: () => {{ {attack.action} }} }}" for attack in ACTIONS
    )
    + "}"
)
"""One machine of all of them, which is built once."""


@pytest.mark.parametrize("attack", ACTIONS, ids=lambda attack: attack.id)
async def test_in_an_action(client: Client, attack: Attack) -> None:
    problem = await endure(client, ALL_ACTIONS, attack.expected, name="actions", event=attack.id)
    assert len(problem["detail"]) < 2_500
    assert not re.search(r"/root|/home|wasmtime|quickjs|\.py\b|machine\.js", problem["detail"]), (
        "no path or part of the host"
    )
    assert str(ROOT) not in problem["detail"]


ELSEWHERE = [
    Attack(
        1,
        "in a guard",
        'on: { X: { guard: () => { for (;;); }, target: ".a" } }, initial: "a", states: { a: {} }',
        "cpu_exceeded",
    ),
    Attack(
        1, "in an assign", "on: { X: { actions: assign(() => { for (;;); }) } }", "cpu_exceeded"
    ),
    Attack(
        1,
        "in an entry action",
        'initial: "a", states: { a: { on: { X: "b" } }, b: { entry: () => { for (;;); } } }',
        "cpu_exceeded",
    ),
    Attack(
        1,
        "always ping-pong",
        'initial: "o", states: { o: { on: { X: "a" } }, a: { always: "b" }, b: { always: "a" } }',
        "cpu_exceeded memory_exceeded machine_error",
    ),
    Attack(
        1,
        "raise to self",
        'on: { X: { actions: raise({ type: "X" }) } }',
        "cpu_exceeded memory_exceeded",
    ),
    Attack(
        1,
        "actor ping-pong",
        (
            'invoke: { id: "p", src: fromCallback(({ sendBack, receive }) => receive(() => '
            'sendBack({ type: "X" }))) }, on: { X: { actions: sendTo("p", { type: "X" }) } }'
        ),
        "cpu_exceeded memory_exceeded",
    ),
    Attack(
        5,
        "a promise actor for each answer",
        (
            'on: { X: { actions: spawnChild(fromPromise(async () => 1)) }, "xstate.done.actor.*": '
            "{ actions: spawnChild(fromPromise(async () => 1)) } }"
        ),
        "jobs_exceeded cpu_exceeded memory_exceeded",
    ),
    Attack(
        8,
        "64 MB of context",
        'on: { X: { actions: assign({ fat: () => "x".repeat(2 ** 26) }) } }',
        "memory_exceeded machine_error snapshot_too_large",
    ),
    Attack(
        8,
        "more context than is shown",
        'on: { X: { actions: assign({ fat: () => "x".repeat(300000) }) } }',
        "snapshot_too_large",
    ),
    Attack(
        8,
        "a large output",
        (
            'initial: "a", states: { a: { on: { X: "b" } }, b: { type: "final" } }, output: () => '
            '"x".repeat(300000)'
        ),
        "snapshot_too_large",
    ),
    Attack(
        8,
        "large tags",
        (
            'initial: "a", states: { a: { on: { X: "b" } }, b: { tags: Array.from({ length: 3000 '
            "}, "
            '(_, i) => "t".repeat(100) + i) } }'
        ),
        "snapshot_too_large",
    ),
    Attack(
        8,
        "a flood of actors",
        (
            "on: { X: { actions: Array.from({ length: 1001 }, (_, n) => spawnChild(fromCallback(() "
            "=> {}), { id: 'c' + n })) } }"
        ),
        "actors_exceeded cpu_exceeded memory_exceeded",
    ),
    Attack(
        8,
        "a flood of events",
        'on: { X: { actions: Array.from({ length: 300 }, () => emit({ type: "e" })) } }',
        "emitted_exceeded",
    ),
    Attack(
        8,
        "large events",
        'on: { X: { actions: emit(() => ({ type: "e", fat: "x".repeat(300000) })) } }',
        "emitted_exceeded",
    ),
]


@pytest.mark.parametrize("attack", ELSEWHERE, ids=lambda attack: attack.id)
async def test_elsewhere_in_a_machine(client: Client, attack: Attack) -> None:
    await endure(client, handling(attack.action), attack.expected)


# --- beginnings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "source", "codes"),
    [
        (1, handling("", context="(() => { for (;;); })()"), ["cpu_exceeded"]),
        (1, handling("entry: () => { for (;;); }"), ["cpu_exceeded"]),
        (2, handling("", context="(function f() { return f() + 1; })()"), ["machine_error"]),
        (
            4,
            handling(
                "", context="(() => { const a = []; for (;;) a.push(new Uint8Array(1e6)) })()"
            ),
            ["memory_exceeded"],
        ),
        (
            6,
            handling(
                "", context="(() => { for (let i = 0; i < 2000; i++) setTimeout(() => {}, 9) })()"
            ),
            ["timers_exceeded"],
        ),
        *(
            (12, handling("", context=context), list(UNSHOWABLE_CODES))
            for context in UNSHOWABLE.values()
        ),
    ],
)
async def test_a_session_that_cannot_begin_is_not_there(
    client: Client, row: int, source: str, codes: list[str]
) -> None:
    machine = await client.deploy(source, name="beginning")
    workers = client.worker_pids()
    for _ in range(2):
        refused = await client.http.get(f"/{machine}/s")
        assert refused.status_code == 422, refused.text
        assert refused.json()["code"] in codes
    assert (await client.http.get("/api/v1/machines/beginning/sessions")).json()["data"] == []
    assert set(workers) <= set(client.worker_pids())


# --- rows 5 to 7: what waits, and what is said ----------------------------------------------------


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


# --- row 9: pollution -----------------------------------------------------------------------------


@pytest.mark.parametrize("pollution", POLLUTIONS)
async def test_pollution_hurts_one_session(client: Client, pollution: str) -> None:
    """Its own may break, with a named error; another of the same machine is clean, and nothing was
    forged.
    """
    machine = await client.deploy(acting(pollution + ";"), name="pollution")
    workers = client.worker_pids()
    own = f"/{machine}/{fresh()}"
    for event in ("X", "OK", "OK"):
        answer = await client.http.post(own, json={"type": event})
        assert answer.status_code in (200, 409, 422), answer.text
        assert answer.json().get("code") not in ("unavailable", "internal_error", "worker_crashed")
    frame = (await client.http.get(own)).json()
    assert frame["seq"] >= 1
    clean = await client.http.post(f"/{machine}/{fresh()}", json={"type": "OK"})
    assert (clean.status_code, clean.json()["snapshot"]["context"]) == (200, {"n": 1})
    assert set(workers) <= set(client.worker_pids())


@pytest.mark.parametrize("pollution", POLLUTIONS)
async def test_pollution_at_top_level_builds_or_does_not(client: Client, pollution: str) -> None:
    source = handling("", top=pollution + ";")
    response = await client.http.post(
        "/api/v1/deployments", json={"name": "polluted", "entry": "m.ts", "files": {"m.ts": source}}
    )
    assert response.status_code in (200, 201, 422), response.text
    if response.is_success:
        machine = response.json()["machine"]["id"]
        answer = await client.http.post(f"/{machine}/s", json={"type": "OK"})
        assert answer.status_code in (200, 422), answer.text
    clean = await client.deploy(COUNTER, name="clean")
    assert (await client.http.post(f"/{clean}/s", json={"type": "increment"})).status_code == 200
    await client.http.delete("/api/v1/machines/clean")
    await client.http.delete("/api/v1/machines/polluted")


# --- row 10: what there is ------------------------------------------------------------------------


async def test_the_globals_are_those_of_the_docs(client: Client) -> None:
    """A machine sees what docs/guest.md lists and nothing else, in its image and alive."""
    names = "Reflect.ownKeys(globalThis).map(String).sort()"
    source = (
        f"{IMPORTS}const built = {names};\nexport default createMachine({{ context: () => ({{ "
        f"built, alive: {names} }}) }});"
    )
    machine = await client.deploy(source, name="globals")
    context = (await client.http.get(f"/{machine}/{fresh()}")).json()["snapshot"]["context"]
    text = (ROOT / "docs" / "guest.md").read_text()
    listed = re.findall(r"`([^`]+)`", text.split("<!-- globals -->")[1])
    assert context["built"] == context["alive"] == sorted(listed)


# --- rows 11 and 12: what is thrown late, and what changes while it is shown ----------------------


@pytest.mark.parametrize(
    "late",
    [
        "Promise.reject(new Error('late'))",
        "(async () => { throw new Error('late') })()",
        "setTimeout(() => { throw new Error('late') }, 0)",
        "queueMicrotask(() => { throw new Error('late') })",
    ],
)
async def test_what_is_thrown_late_stays_in_the_machine(client: Client, late: str) -> None:
    machine = await client.deploy(acting(late), name="late")
    workers = client.worker_pids()
    session = f"/{machine}/{fresh()}"
    answer = await client.http.post(session, json={"type": "X"})
    assert answer.status_code in (200, 422), answer.text
    assert (await client.http.post(session, json={"type": "OK"})).json()["snapshot"]["context"] == {
        "n": 1
    }
    assert set(workers) <= set(client.worker_pids())


@pytest.mark.parametrize(
    "context",
    [
        "{ n: 0, flips: 0, get f() { return this.flips = 1 - this.flips } }",
        "{ n: 0, get f() { return Math.random() } }",
        "{ n: 0, f: { toJSON: () => Date.now() } }",
        "{ n: 0, f: new Date(NaN) }",
        "{ n: 0, f: new Map([[1, 2]]) }",
        "{ n: 0, f: [undefined, () => {}, Symbol('x')] }",
        "{ n: 0, f: new Proxy({}, { get: () => 1 }) }",
        "{ n: 0, f: -0 }",
        "{ n: 0, f: NaN }",
        "{ n: 0, f: Infinity }",
        "{ n: 0, f: 2 ** 53 + 1 }",
        "{ n: 0, f: '\\ud800' }",
        'JSON.parse(\'{ "n": 0, "__proto__": { "then": 1 } }\')',
    ],
)
async def test_live_equals_restored(client: Client, context: str) -> None:
    """What is shown is spelled once, in the turn: it is the same for those who ask later, after
    sleep, and in the past.
    """
    machine = await client.deploy(acting("", context=context), name="shown")
    name = fresh()
    for _ in range(2):
        pushed = (await client.http.post(f"/{machine}/{name}", json={"type": "OK"})).json()
    live = (await client.http.get(f"/{machine}/{name}")).json()
    assert live["snapshot"] == pushed["snapshot"]
    await client.put_to_sleep(machine, name)
    assert (await client.http.get(f"/{machine}/{name}")).json()["snapshot"] == live["snapshot"]
    assert (await client.http.get(f"/{machine}/{name}?at={live['seq']}")).json()[
        "snapshot"
    ] == live["snapshot"]
    verified = await client.http.post(
        f"/api/v1/machines/shown/sessions/{name}/replay?at={live['seq']}"
    )
    assert verified.json()["verified"] is True, verified.text
    assert (await client.http.post(f"/{machine}/{name}", json={"type": "OK"})).json()[
        "seq"
    ] == live["seq"] + 1


# --- row 25: time ---------------------------------------------------------------------------------


async def test_the_clock_stands_still_during_a_turn(client: Client) -> None:
    """Nobody can measure a neighbour by it."""
    source = acting(
        "",
        context=(
            "(() => { const t = () => [Date.now(), performance.now(), new Date().getTime()]; "
            "const a = t(); for (let i = 0; i < 1e5; i++); return { n: 0, a, b: t() } })()"
        ),
    )
    machine = await client.deploy(source, name="clock")
    context = (await client.http.get(f"/{machine}/{fresh()}")).json()["snapshot"]["context"]
    assert context["a"] == context["b"], "many loops later"
    assert len(set(context["a"])) == 1
