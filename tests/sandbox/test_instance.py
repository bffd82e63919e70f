"""The sandbox in this process: images, checkpoints, turns that must be undone, and code that means
harm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import zstandard

from sandbox import image as images
from sandbox.checkpoint import DamagedCheckpoint, apply_checkpoint
from sandbox.compression import Template
from sandbox.engine import Engine
from sandbox.forge import BuildError, forge_base, forge_image, load_guest
from sandbox.instance import Fault
from sandbox.loaded import load_image
from sandbox.protocol.formats import checkpoint_digest
from sandbox.protocol.ids import Slot, Ticket
from sandbox.protocol.messages import (
    Checkpoint,
    Done,
    LoadEngine,
    LoadImage,
    LoadTemplate,
    Open,
    Replay,
    Step,
)
from sandbox.protocol.outbox import decode_outbox
from sandbox.worker import GUEST, Worker
from tests.attacks.actions import ACTIONS, Attack
from tests.runs import example_image, read_run
from tests.sandbox.sandboxes import MEMORY, NOW_MS, Sandbox, send
from tests.support import CACHE, EXAMPLES

if TYPE_CHECKING:
    from pathlib import Path


def worker_of(sandbox: Sandbox) -> Worker:
    return Worker(sandbox.engine, sandbox.guest, None)


COUNTER = "createMachine({context:{count:0},on:{INC:{actions:assign({count:({context})=>context.count+1})},BAD:{actions:[assign({count:99}),()=>{%s}]}}})"


# --- freezing and thawing


def test_the_base_image_is_reproducible() -> None:
    engine = Engine(None, kind="forge")
    engine_wasm, genesis = (
        (GUEST / "engine.wasm").read_bytes(),
        (GUEST / "genesis.wasm").read_bytes(),
    )
    base = forge_base(
        engine,
        engine_wasm,
        genesis,
        [(GUEST / name).read_text() for name in ("prelude.js", "polyfills.js")],
        memory_bytes_max=MEMORY,
    )
    assert base == (GUEST / "base.wasm").read_bytes()


def test_the_engine_imports_nothing_but_its_memory() -> None:
    import wasmtime

    module = wasmtime.Module(wasmtime.Engine(), (GUEST / "engine.wasm").read_bytes())
    assert [(i.module, i.name) for i in module.imports] == [("image", "memory")]


def test_an_image_holds_no_code(sandbox: Sandbox) -> None:
    import wasmtime

    wasm, _, _ = forge_image(
        sandbox.engine,
        sandbox.guest,
        'module.exports={machine:require("xstate").createMachine({})}',
        source_map=None,
        cpu_s=2,
        memory_bytes_max=MEMORY,
    )
    module = wasmtime.Module(wasmtime.Engine(), wasm)
    assert not list(module.imports)
    assert [export.name for export in module.exports] == ["memory"]


def test_same_inputs_same_memory(sandbox: Sandbox) -> None:
    image = sandbox.image(COUNTER % "")
    machines = [sandbox.thaw(image) for _ in range(2)]
    for machine in machines:
        machine.apply(b"[0,5]", NOW_MS, cpu_s=1)
        for number in range(300):
            machine.apply(
                b'[1,%d,{"type":"INC"},{"id":"c"}]' % (number + 1), NOW_MS + number, cpu_s=1
            )
    assert machines[0].memory() == machines[1].memory()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ts")), ids=lambda path: path.stem)
def test_recorded_runs_come_to_the_same_bytes(sandbox: Sandbox, path: Path) -> None:
    """Straight through, and restored from checkpoints and replayed, at every turn: as it was
    recorded once.
    """
    run = read_run(path.stem)
    image, _ = example_image(sandbox, path)
    inputs = [(data.encode(), now_ms) for data, now_ms in run.inputs]
    live = sandbox.thaw(image)
    checkpoint: bytes | None = None
    since: list[tuple[bytes, int]] = []
    for number, (pair, snapshot) in enumerate(zip(inputs, run.snapshots, strict=True)):
        outbox = live.apply(*pair, cpu_s=1)
        assert isinstance(outbox, bytes), outbox
        assert msgspec.json.decode(decode_outbox(outbox).snapshot) == snapshot
        since.append(pair)
        if number % 7 == 3:
            restored = sandbox.thaw(image, checkpoint)
            restored.replay(since)
            assert restored.memory() == live.memory()
            restored.close()
        if number % 10 == 0:
            checkpoint, since = live.checkpoint(), []
    digest = checkpoint_digest(live.checkpoint())
    replayed = sandbox.thaw(image)
    replayed.replay(inputs)
    assert checkpoint_digest(replayed.checkpoint()) == digest
    if (
        run.base == sandbox.guest.base_digest
    ):  # another guest lays its memory out differently: `python -m tests.runs`
        assert digest == run.digest


def test_an_image_is_unpacked_against_the_template_that_it_names(sandbox: Sandbox) -> None:
    """One that is not there, or is not what it says, leaves the image damaged, and the worker well."""
    script = 'module.exports={default:require("xstate").createMachine({})};'
    wasm, _, _ = forge_image(
        sandbox.engine, sandbox.guest, script, source_map=None, cpu_s=2, memory_bytes_max=MEMORY
    )
    template = Template(b"of an earlier guest " * 1000 + wasm[:100_000])
    packed = template.pack(wasm)
    assert template.unpack(packed, bytes_max=len(wasm)) == wasm
    with pytest.raises(ValueError, match="may hold"):
        template.unpack(packed, bytes_max=len(wasm) - 1)
    assert len(packed) < len(zstandard.compress(wasm))
    worker = worker_of(sandbox)
    answers: list[Any] = []
    opening = (MEMORY, 10**6, 10**6, None)
    messages: list[Any] = [
        LoadImage("early", packed, template.digest),
        LoadTemplate(template.digest, zstandard.compress(b"another")),
        LoadTemplate(template.digest, b"no zstd"),
        LoadImage("forged", packed, template.digest),
        LoadTemplate(template.digest, zstandard.compress(template.data)),
        LoadImage("i", packed, template.digest),
        LoadImage("bare", packed),
        *(
            Open(Slot(slot), Ticket(0), name, *opening)
            for slot, name in enumerate(("early", "forged", "i", "bare"))
        ),
    ]
    for message in messages:
        worker.handle(message, answers)
    assert [getattr(answer, "code", "opened") for answer in answers] == [
        "image_damaged",
        "image_damaged",
        "opened",
        "image_damaged",
    ]


def test_an_image_runs_under_the_engine_that_it_was_frozen_under(sandbox: Sandbox) -> None:
    """A worker that has both gives each image its own."""
    older = another_engine((GUEST / "engine.wasm").read_bytes())
    base = forge_base(
        sandbox.engine,
        older,
        (GUEST / "genesis.wasm").read_bytes(),
        [(GUEST / name).read_text() for name in ("prelude.js", "polyfills.js")],
        memory_bytes_max=MEMORY,
    )
    guest = load_guest(sandbox.engine, older, base)
    assert guest.engine_digest != sandbox.guest.engine_digest
    script = (
        f"const "
        f'{{assign,createMachine}}=require("xstate");module.exports={{default:{COUNTER % ""}}};'
    )
    wasm, _, _ = forge_image(
        sandbox.engine, guest, script, source_map=None, cpu_s=2, memory_bytes_max=MEMORY
    )
    with pytest.raises(ValueError, match="another engine"):
        sandbox.load(wasm)
    worker = worker_of(sandbox)
    answers: list[Any] = []
    for message in (
        LoadEngine(guest.engine_digest, zstandard.compress(older)),
        LoadImage("i", zstandard.compress(wasm)),
        Open(Slot(1), Ticket(0), "i", MEMORY, 10**6, 10**6, None),
        Step(Slot(1), Ticket(1), b"[0,5]", NOW_MS, 1000),
        Step(Slot(1), Ticket(2), b'[1,5,{"type":"INC"},{"id":"c"}]', NOW_MS, 1000),
        Open(Slot(2), Ticket(0), "i", MEMORY, 10**6, 10**6, None),
        Replay(
            Slot(2),
            Ticket(0),
            [(b"[0,5]", NOW_MS), (b'[1,5,{"type":"INC"},{"id":"c"}]', NOW_MS)],
            0,
        ),
        Checkpoint(Slot(1), Ticket(3)),
        Checkpoint(Slot(2), Ticket(1)),
        Replay(Slot(9), Ticket(0), [], 0),
    ):
        worker.handle(message, answers)
    opened, _, stepped, _, replayed, *frozen, lost = answers
    assert opened == Done(Slot(1), Ticket(0), b"")
    assert b'"count":1' in stepped.result
    assert (b'"count":1' in replayed.snapshot, replayed.finished, replayed.timers) == (
        True,
        False,
        [],
    )
    assert frozen[0].result == frozen[1].result
    assert lost.code == "session_lost"


def test_a_replay_says_which_input_set_a_timer(sandbox: Sandbox) -> None:
    image = sandbox.image('createMachine({initial:"a",states:{a:{after:{50:"b"}},b:{on:{X:"a"}}}})')
    worker = worker_of(sandbox)
    worker._turns._images["i"] = image
    answers: list[Any] = []
    worker.handle(Open(Slot(1), Ticket(0), "i", MEMORY, 10**6, 10**6, None), answers)
    worker.handle(
        Replay(
            Slot(1),
            Ticket(0),
            [
                (b"[0,5]", NOW_MS),
                (b"[2,5,1]", NOW_MS + 50),
                (b'[1,5,{"type":"NOP"},{"id":"c"}]', NOW_MS),
                (b'[1,5,{"type":"X"},{"id":"c"}]', NOW_MS + 60),
            ],
            0,
        ),
        answers,
    )
    assert answers[-1].timers == [(0, [(1, NOW_MS + 50)], []), (3, [(2, NOW_MS + 110)], [])]
    worker.handle(Replay(Slot(1), Ticket(0), [(b"not an input", NOW_MS)], 0), answers)
    assert answers[-1].code == "session_damaged"


def test_a_replay_stops_when_it_has_taken_its_share(sandbox: Sandbox) -> None:
    worker = worker_of(sandbox)
    worker._turns._images["i"] = sandbox.image(COUNTER % "")
    answers: list[Any] = []
    worker.handle(Open(Slot(1), Ticket(0), "i", MEMORY, 10**6, 10**6, None), answers)
    inputs = [(b"[0,5]", NOW_MS), *[(b'[1,5,{"type":"INC"},{"id":"c"}]', NOW_MS)] * 200]
    worker.handle(Replay(Slot(1), Ticket(0), inputs, 2_000), answers)
    assert 1 <= answers[-1].count < len(inputs)
    done = answers[-1].count
    worker.handle(Replay(Slot(1), Ticket(0), inputs[done:], 0), answers)
    assert answers[-1].count == len(inputs) - done
    assert b'"count":200' in answers[-1].snapshot


def test_what_nests_too_deeply_to_be_read_is_undone(sandbox: Sandbox) -> None:
    """Workers could read deeper texts than the hub, which then took them for broken."""
    machine = sandbox.start(
        "createMachine({context:{deep:null},on:{DEEPER:{actions:assign({deep:({context,event})=>{let d=context.deep;for(let i=0;i<event.by;i++)d=[d];return d}})}}})"
    )
    assert isinstance(send(machine, "DEEPER", by=200), bytes)
    fault = send(machine, "DEEPER", by=100)
    assert isinstance(fault, Fault)
    assert fault.code == "snapshot_too_deep"
    assert isinstance(send(machine, "DEEPER", by=10), bytes)


def another_engine(engine_wasm: bytes) -> bytes:
    """The same engine under another digest: with a custom section at its end."""
    return engine_wasm + b"\0\x05\x04note"


def test_a_checkpoint_is_small_and_damage_is_noticed(sandbox: Sandbox) -> None:
    machine = sandbox.start(COUNTER % "")
    for _ in range(300):
        send(machine, "INC")
    checkpoint = machine.checkpoint()
    assert len(checkpoint) < 30_000
    image = memoryview(bytes(MEMORY))

    def restored(data: bytes) -> tuple[int, list[tuple[int, bytes]], tuple[int, ...]] | None:
        """What comes of it; None when the damage is noticed."""
        try:
            size, pages, extras = apply_checkpoint(data, image, bytes_max=MEMORY)
        except DamagedCheckpoint:
            return None
        return size, list(pages), extras

    def flipped(at: int) -> bytes:
        return checkpoint[:at] + bytes([checkpoint[at] ^ 1]) + checkpoint[at + 1 :]

    as_it_was = restored(checkpoint)
    assert as_it_was is not None
    for at in (0, 17, len(checkpoint) - 1):
        assert restored(flipped(at)) is None
    # Compressed data has a few bits that mean nothing: a change there, and only there, harms
    # nobody.
    results = [restored(flipped(at)) for at in range(0, len(checkpoint), 61)]
    assert all(result in (None, as_it_was) for result in results)
    assert results.count(None) > 0.9 * len(results)
    for cut in (0, 10, 20, len(checkpoint) - 1):
        with pytest.raises(DamagedCheckpoint):
            apply_checkpoint(checkpoint[:cut], image, bytes_max=MEMORY)


def test_what_is_no_image_is_refused() -> None:
    for data in (b"", b"\0asm\x01\0\0\0", b"\x7fELF", b"\0asm\x01\0\0\0\0\x05\x04evil"):
        with pytest.raises((ValueError, IndexError)):
            images.read_handles(data)


def test_an_image_of_another_engine_is_refused(sandbox: Sandbox) -> None:
    """Old memory under new code would mean something else."""
    wasm, _, _ = forge_image(
        sandbox.engine,
        sandbox.guest,
        'module.exports={machine:require("xstate").createMachine({})}',
        source_map=None,
        cpu_s=2,
        memory_bytes_max=MEMORY,
    )
    with pytest.raises(ValueError, match="another engine"):
        load_image(sandbox.engine, {"other": sandbox.guest.engine}, wasm, memory_bytes_max=MEMORY)


# --- turns that must not have happened


@pytest.mark.parametrize("attack", ACTIONS, ids=lambda attack: attack.id)
def test_a_turn_that_fails_never_happened(sandbox: Sandbox, attack: Attack) -> None:
    """The memory is as it was, byte for byte.

    What clients see of it is in `tests/attacks/test_machines.py`.
    """
    machine = sandbox.start(COUNTER % attack.action)
    send(machine, "INC")
    before = machine.memory()
    fault = send(machine, "BAD")
    assert isinstance(fault, Fault), fault
    assert fault.code in attack.expected
    assert len(fault.message) < 2000
    assert machine.memory() == before
    outbox = send(machine, "INC")
    assert isinstance(outbox, bytes)
    assert b'"count":2' in outbox


def test_randomness_differs_between_sessions_and_repeats_on_replay(sandbox: Sandbox) -> None:
    image = sandbox.image(
        "createMachine({context:{r:0},on:{R:{actions:assign({r:()=>[Math.random(),crypto.randomUUID(),crypto.getRandomValues(new Uint8Array(4))[0]]})}}})"
    )
    outboxes = []
    for seed in (1, 2, 1):
        machine = sandbox.thaw(image)
        machine.apply(b"[0,%d]" % seed, NOW_MS, cpu_s=1)
        outboxes.append(machine.apply(b'[1,%d,{"type":"R"},null]' % (seed + 10), NOW_MS, cpu_s=1))
    assert outboxes[0] == outboxes[2] != outboxes[1]


def test_logs_are_cut_with_a_mark(sandbox: Sandbox) -> None:
    machine = sandbox.start(
        COUNTER % "for (let i = 0; i < 1000; i++) console.log('x'.repeat(10000), i)"
    )
    outbox = send(machine, "BAD", cpu_s=1)
    assert isinstance(outbox, bytes)
    logs = msgspec.json.decode(outbox)[6]
    assert len(logs) == 65
    assert all(len(text) <= 4097 for _, text in logs)
    assert "dropped" in logs[-1][1]


# --- builds that fail


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("throw new Error('at load')", "machine_throws"),
        ("for (;;);", "build_cpu_exceeded"),
        ("const a = []; for (;;) a.push(new Array(1000).fill(0))", "build_memory_exceeded"),
        ("module.exports = {}", "no_machine"),
        ("module.exports = { a: 1, b: 2 }", "no_machine"),
        ("let x = ;", "syntax_error"),
        ("throw null", "machine_throws"),
        ("require('fs')", "machine_throws"),
        (
            "const m = require('xstate').createMachine; module.exports = { a: m({}), b: m({}) }",
            "several_machines",
        ),
        (
            (
                "module.exports = { machine: require('xstate').createMachine({ initial: 'nowhere', "
                "states: { a: {} } }) }"
            ),
            "machine_throws",
        ),
        ("module.exports = new Proxy({}, { ownKeys() { for (;;); } })", "build_cpu_exceeded"),
    ],
)
def test_bundles_that_are_no_machine(sandbox: Sandbox, script: str, code: str) -> None:
    forge = Engine(CACHE, kind="forge")
    guest = load_guest(
        forge, (GUEST / "engine.wasm").read_bytes(), (GUEST / "base.wasm").read_bytes()
    )
    with pytest.raises(BuildError) as failed:
        forge_image(forge, guest, script, source_map=None, cpu_s=0.3, memory_bytes_max=MEMORY)
    assert failed.value.code == code
    assert failed.value.errors[0].message
