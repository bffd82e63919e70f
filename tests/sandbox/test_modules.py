"""Machines that come as WASM modules (docs/guest-abi.md): from the upload to the journal, and what
hostile ones come to.
"""

from __future__ import annotations

import base64
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import wasmtime

from machinehub.clock import ManualClock
from machinehub.limits import Limits
from sandbox import validate
from sandbox.image import ModuleHandles
from sandbox.leb128 import encode_unsigned
from sandbox.module import ModuleState
from sandbox.protocol.limits import GuestLimits
from sandbox.traps import Trap
from tests.attacks import fuzz
from tests.support import COUNTER, ROOT, Client, running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

TURNSTILE = ROOT / "examples" / "modules" / "turnstile"
PAGES = 256
MODULE_BYTES = 2**20


@pytest.fixture(scope="session", name="turnstile")
def _turnstile() -> bytes:
    built = TURNSTILE / "dist" / "turnstile.wasm"
    subprocess.run(["npm", "run", "--silent", "build"], cwd=TURNSTILE, check=True)
    return built.read_bytes()


async def deploy(client: Client, module: bytes, name: str = "module", **more: Any) -> Any:
    body = {
        "name": name,
        "entry": "m.wasm",
        "files": {"m.wasm": base64.b64encode(module).decode()},
        **more,
    }
    return await client.http.post("/api/v1/deployments", json=body)


async def machine_of(client: Client, module: bytes, name: str = "module", **more: Any) -> str:
    response = await deploy(client, module, name, **more)
    assert response.status_code in (200, 201), response.text
    machine: str = response.json()["machine"]["id"]
    return machine


# --- a machine like any other ---------------------------------------------------------------------


async def test_a_module_is_a_machine_like_any_other(tmp_path: Path, turnstile: bytes) -> None:
    clock = ManualClock(1_800_000_000_000)
    async with running_hub(tmp_path, clock=clock) as client:
        machine = await machine_of(client, turnstile, "turnstile")
        shown = (
            await client.http.get(f"/{machine}", headers={"Accept": "application/json"})
        ).json()
        assert shown["events"] == ["COIN", "KICK", "PUSH"]
        assert list(shown["definition"]["root"]["states"]) == ["locked", "unlocked"]
        async with client.socket(f"{machine}/s?cost=1") as peer:
            assert (await peer.until("snapshot"))["snapshot"] == {
                "value": "locked",
                "context": {"visitors": 0},
                "status": "active",
                "tags": [],
            }
            ack = await peer.event("COIN")
            assert ack["cost"]["cpu_us"] > 0
            assert ack["cost"]["memory_bytes"] % 65536 == 0
            await peer.event("PUSH")
            await peer.settle()
            assert [frame["event"] for frame in peer.seen if frame["type"] == "emitted"] == [
                {"type": "passed", "visitor": 1}
            ]
            refused = await peer.event("KICK")
            assert refused["error"] == {"code": "machine_error", "detail": "it does not move"}
            await peer.event("COIN")
        clock.move_to(clock.now_ms() + 10_000)
        client.hub.sessions.scheduler.fire()

        async def is_locked() -> bool:
            found = (await client.http.get(f"/{machine}/s")).json()
            return bool(found["snapshot"]["value"] == "locked")

        await until(is_locked)
        frame = (await client.http.get(f"/{machine}/s")).json()
        assert (frame["seq"], frame["snapshot"]["value"], frame["snapshot"]["context"]) == (
            5,
            "locked",
            {"visitors": 1},
        )
        past = (await client.http.get(f"/{machine}/s?at=2")).json()["snapshot"]
        assert (past["value"], past["context"]) == ("unlocked", {"visitors": 0})
        forked = await client.http.post(
            f"/api/v1/machines/{machine}/sessions/s/fork", json={"at": 2, "session": "f"}
        )
        assert forked.status_code == 201
        assert (await client.http.post(f"/{machine}/f", json={"type": "PUSH"})).json()["snapshot"][
            "context"
        ] == {"visitors": 1}
        journal = (await client.http.get(f"/api/v1/machines/{machine}/sessions/s/journal")).json()[
            "data"
        ]
        assert [entry["kind"] for entry in journal] == [
            "start",
            "event",
            "event",
            "event",
            "event",
            "timer",
        ]
    async with running_hub(
        tmp_path, clock=clock
    ) as client:  # the code is compiled anew, variables and memory come from the checkpoint
        assert (await client.http.get(f"/{machine}/s")).json()["snapshot"] == frame["snapshot"]
        for seq, (event, visitors) in enumerate((("COIN", 1), ("PUSH", 2)), start=6):
            answer = (await client.http.post(f"/{machine}/s", json={"type": event})).json()
            assert (answer["seq"], answer["snapshot"]["context"]["visitors"]) == (seq, visitors)
        assert (await deploy(client, turnstile, "turnstile")).json()["created"] is False


async def test_modules_survive_their_workers(client: Client, turnstile: bytes) -> None:
    machine = await machine_of(client, turnstile, "survivor")
    await client.http.post(f"/{machine}/s", json={"type": "COIN"})
    worker: Any = client.place(machine, "s").worker
    assert worker not in client.hub.pool.workers, "modules have workers of their own"
    worker.process.kill()
    answer = await client.http.post(f"/{machine}/s", json={"type": "PUSH"})
    assert answer.json()["snapshot"]["context"] == {"visitors": 1}


async def test_two_versions_and_a_script_live_side_by_side(
    client: Client, turnstile: bytes
) -> None:
    machine = await machine_of(client, turnstile, "mixed")
    await client.http.post(f"/{machine}/old", json={"type": "COIN"})
    assert (await deploy(client, wat('"on"'), "mixed")).json()["version"]["number"] == 2
    assert (await client.http.post(f"/{machine}/new", json={"type": "X"})).json()["snapshot"][
        "value"
    ] == "on"
    await client.deploy(COUNTER, name="mixed")
    assert (await client.http.post(f"/{machine}/script", json={"type": "increment"})).json()[
        "snapshot"
    ]["context"] == {"count": 1}
    assert (await client.http.post(f"/{machine}/old", json={"type": "PUSH"})).json()["snapshot"][
        "context"
    ] == {"visitors": 1}


# --- what is not let in ---------------------------------------------------------------------------


def wat(
    value: str = '"on"',
    *,
    step: str = "",
    fields: str = "",
    alloc: str = "(i32.const 4096)",
    memory: str = "2 10",
    start: str = "",
    snapshot: str = "",
) -> bytes:
    """A module whose every answer is a snapshot with this value, unless `step` (which may `return`)
    says otherwise.
    """
    text = snapshot or f'[1,0,{{"status":"active","value":{value}}}]'
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return bytes(
        wasmtime.wat2wasm(f"""(module
        (memory (export "memory") {memory})
        (global $n (mut i32) (i32.const 0))
        {fields}
        (data (i32.const 16) "{quoted}")
        (func $answer (result i64) (i64.const {16 << 32 | len(text.encode())}))
        (func (export "alloc") (param i32) (result i32) {alloc})
        (func (export "start") (param i32 i32 i64) (result i64) {start} (call $answer))
        (func (export "step") (param i32 i32 i64) (result i64) {step} (call $answer)))""")
    )


def raw(*sections: tuple[int, bytes], base: bytes | None = None) -> bytes:
    """A well-formed module with sections put in place of, or beside, its own."""
    module = validate.read_module(base or wat(), pages_max=PAGES, bytes_max=MODULE_BYTES)
    parts = {**module.raw, **dict(sections)}
    order = [*validate._ORDER, *(number for number in parts if number not in validate._ORDER)]
    return b"\0asm\1\0\0\0" + b"".join(
        bytes([number]) + encode_unsigned(len(parts[number])) + parts[number]
        for number in order
        if number in parts
    )


def bomb() -> bytes:
    """As much to compile as fits: functions that are one long chain of loops within blocks."""
    body = (
        "(block (loop (br_if 0 (i32.eqz (local.get 0))) (local.set 0 (i32.add (local.get 0) "
        "(i32.const 1)))))" * 60
    )
    return wat(
        fields="".join(f"(func (param i32) (result i32) {body} (local.get 0))" for _ in range(700))
    )


async def test_traps_have_names(client: Client) -> None:
    machine = await machine_of(client, wat(step="unreachable"), "named")
    assert (
        "unreachable code was reached"
        in (await client.http.post(f"/{machine}/s", json={"type": "X"})).json()["detail"]
    )


# --- what a module may not do ---------------------------------------------------------------------

ANSWERS: dict[str, tuple[str, str]] = {
    "no JSON": ("x", "snapshot_not_json"),
    "cut-off JSON": ('[1,0,{"status":"active"', "snapshot_not_json"),
    "no outbox": ("[]", "snapshot_not_json"),
    "an object": ("{}", "snapshot_not_json"),
    "no status": ('[1,0,{"value":1}]', "snapshot_not_json"),
    "a status of its own": ('[1,0,{"status":"flying"}]', "snapshot_not_json"),
    "tags that are a number": ('[1,0,{"status":"active","tags":5}]', "snapshot_not_json"),
    "tags that are numbers": ('[1,0,{"status":"active","tags":[1]}]', "snapshot_not_json"),
    "a snapshot that is a number": ("[1,0,7]", "snapshot_not_json"),
    "half a character": ('[1,0,{"status":"active","context":"\\ud800"}]', "snapshot_not_json"),
    "a number that is none": ('[1,0,{"status":"active","context":1e999}]', "snapshot_not_json"),
    "a number without end": (
        '[1,0,{"status":"active","context":' + "9" * 5000 + "}]",
        "snapshot_not_json",
    ),
    "nothing but brackets": ("[" * 5000, "snapshot_too_deep"),
    "the hub's own refusal": ('[0,{"code":"unavailable","message":"try again"}]', "machine_error"),
    "a refusal without words": ("[0,7]", "machine_error"),
    "a timer that counts down": ("[1,0,null,[],[[0,1]]]", "machine_error"),
    "a timer beyond counting": ("[1,0,null,[],[[99999999999999999999,1]]]", "machine_error"),
    "a timer that is text": ('[1,0,null,[],[["a",1]]]', "snapshot_not_json"),
    "too many timers": (
        "[1,0,null,[],[" + ",".join(f"[{n},9]" for n in range(1, 1002)) + "]]",
        "timers_exceeded",
    ),
    "too many events": (
        "[1,0,null,[" + ",".join(['{"type":"a"}'] * 257) + "]]",
        "emitted_exceeded",
    ),
    "an event without a type": ("[1,0,null,[{}]]", "snapshot_not_json"),
    "a large snapshot": (
        '[1,0,{"status":"active","context":"' + "x" * 300_000 + '"}]',
        "snapshot_too_large",
    ),
}
STEPS: dict[str, tuple[dict[str, str], str]] = {
    "an endless loop": ({"step": "(loop (br 0))"}, "cpu_exceeded"),
    "recursion": ({"step": "(call $r)", "fields": "(func $r (call $r))"}, "stack_exceeded"),
    "a trap": ({"step": "unreachable"}, "machine_error"),
    "a division by zero": (
        {"step": "(drop (i32.div_s (i32.const 1) (i32.const 0)))"},
        "machine_error",
    ),
    "an answer outside the memory": (
        {"step": "(return (i64.const 0x7fffffff_00000010))"},
        "machine_error",
    ),
    "an answer of four gigabytes": (
        {"step": "(return (i64.const 0x00000010_ffffffff))"},
        "snapshot_too_large",
    ),
    "input outside the memory": (
        {
            "alloc": (
                "(if (global.get $n) (then (return (i32.const -8)))) (global.set $n (i32.const "
                "1)) (i32.const 4096)"
            )
        },
        "machine_error",
    ),
    "endless allocation": (
        {
            "alloc": (
                "(if (global.get $n) (then (loop (br 0)))) (global.set $n (i32.const 1)) "
                "(i32.const 4096)"
            )
        },
        "cpu_exceeded",
    ),
    "bad UTF-8": (
        {
            "fields": '(data (i32.const 9000) "\\ff")',
            "step": f"(return (i64.const {9000 << 32 | 1}))",
        },
        "snapshot_not_json",
    ),
    "an access outside": ({"step": "(drop (i32.load (i32.const -1)))"}, "machine_error"),
}


@pytest.mark.parametrize("name", [*ANSWERS, *STEPS])
async def test_a_turn_that_fails_never_happened(client: Client, name: str) -> None:
    """The first event is refused with a code; the session is as it was, its neighbours too, and no
    worker has died.
    """
    if name in ANSWERS:
        text, code = ANSWERS[name]
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        parts = {
            "fields": f'(data (i32.const 70000) "{quoted}")',
            "step": f"(return (i64.const {70000 << 32 | len(text)}))",
            "memory": "10 10",
        }
    else:
        parts, code = STEPS[name]
    machine = await machine_of(client, wat(**parts), "turns")
    first = (await client.http.get(f"/{machine}/{name}")).json()
    worker: Any = client.place(machine, name).worker
    for _ in range(2):
        response = await client.http.post(f"/{machine}/{name}", json={"type": "X"})
        assert (response.status_code, response.json()["code"]) == (422, code), response.text
    again = (await client.http.get(f"/{machine}/{name}")).json()
    assert (again["seq"], again["snapshot"]) == (first["seq"], first["snapshot"])
    assert not worker.lost


def test_a_timer_that_fires_is_not_set_a_thousand_times() -> None:
    """The hub took the answer for a worker's lie, and ended the worker."""
    state = ModuleState(ModuleHandles([], GuestLimits(timers=5)), ())
    memory: Any = fuzz._Memory(b"[1,0,null,[],[[1,9]]]")
    state.turn(memory, b"[1,1,{},{}]", 5)
    memory = fuzz._Memory(b"[1,0,null,[],[" + b",".join([b"[1,9]"] * 6) + b"]]")
    with pytest.raises(Trap, match="at most 5 timers"):
        state.turn(memory, b"[2,1,1]", 9)


async def test_what_a_memory_may_grow_to_is_kept_for_it(tmp_path: Path) -> None:
    """A growth that failed because others had grown was acknowledged, and succeeded in a replay."""
    async with running_hub(
        tmp_path, limits=Limits(worker_bytes=512 * 2**20, memory_bytes=64 * 2**20)
    ) as client:
        machine = await machine_of(client, wat(), "large")
        answers = [
            await client.http.post(f"/{machine}/s{number}", json={"type": "X"})
            for number in range(8)
        ]
        # Six have room at once: those that rest make way for the others.
        assert [answer.status_code for answer in answers] == [200] * 8
        assert client.hub.sessions.placement.live_count <= 6
        again = await client.http.post(f"/{machine}/s0", json={"type": "X"})
        assert again.json()["seq"] == 3


async def test_growing_stops_at_the_limit(client: Client) -> None:
    """`memory.grow` says no; that is the module's business, and the same when it is replayed."""
    module = wat(
        memory="2",
        step=(
            "(if (i32.ne (memory.grow (i32.const 300)) (i32.const -1)) (then unreachable)) (drop "
            "(memory.grow (i32.const 200)))"
        ),
    )
    machine = await machine_of(client, module, "growing")
    costs = [
        (await client.http.post(f"/{machine}/s?cost=1", json={"type": "X"})).json()["cost"][
            "memory_bytes"
        ]
        for _ in range(3)
    ]
    assert costs == [202 * 65536] * 3


async def test_old_timers_are_not_early(tmp_path: Path) -> None:
    """A due time in the past is now; one that nobody can wait for is never."""
    clock = ManualClock(1_800_000_000_000)
    async with running_hub(tmp_path, clock=clock, workers=1) as client:
        machine = await machine_of(
            client,
            wat(
                snapshot='[1,0,{"status":"active"},[],[[1,-5],[2,999999999999999999]]]',
                step="(return (i64.const 0))",
            ),
            "late",
        )
        await client.http.get(f"/{machine}/s")
        live = client.find(machine, "s")
        assert live is not None
        assert {timer: armed.due_at_ms for timer, armed in live.timers.items()} == {
            1: clock.now_ms(),
            2: 8_640_000_000_000_000,
        }


async def test_a_modules_own_limits_are_lower(client: Client) -> None:
    spin = wat(
        step=(
            "(loop (global.set $n (i32.add (global.get $n) (i32.const 1))) (br_if 0 (i32.lt_u "
            "(global.get $n) (i32.const 300000000))))"
        )
    )
    machine = await machine_of(client, spin, "spinning", limits={"event_cpu_ms": 5})
    assert (await client.http.post(f"/{machine}/s", json={"type": "X"})).json()[
        "code"
    ] == "cpu_exceeded"
    refused = await deploy(client, spin, "spinning", limits={"event_cpu_ms": 5000})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_limits")
