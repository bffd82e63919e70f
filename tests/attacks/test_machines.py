"""Attacks by machines, through the front door: each ends with a named error, and nobody else
notices.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import Any

import pytest

from tests.attacks.actions import ACTIONS, POLLUTIONS, UNSHOWABLE, UNSHOWABLE_CODES, Attack
from tests.support import COUNTER, ROOT, Client

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
