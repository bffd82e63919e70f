"""The immortal image (docs/engine.md): sessions change what belongs to their image, and nobody
notices.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from sandbox.image import PAGE_BYTES
from sandbox.protocol.outbox import decode_outbox
from tests.sandbox import torture
from tests.sandbox.sandboxes import NOW_MS, Sandbox, send

if TYPE_CHECKING:
    from sandbox.instance import LiveMachine

COUNTER = """const { createMachine, assign } = require("xstate");
module.exports.machine = createMachine({ id: "counter", context: { count: 0 }, on: {
  increment: { actions: assign({ count: ({ context }) => context.count + 1 }) } } });"""
CYCLES = """(globalThis.turn = 0, createMachine({ context: { kept: null }, on: { TURN: { actions: assign({ kept: () => {
  const kept = { list: [] };
  for (let i = 0; i < 50; i++) { const a = { kept }, b = { a }; a.b = b; kept.list.push(a); }
  return kept.list.length + turn++ * 1000;
} }) } } }))"""


def context(outbox: object) -> dict[str, object]:
    assert isinstance(outbox, bytes), outbox
    seen: dict[str, object] = json.loads(bytes(decode_outbox(outbox).snapshot))["context"]
    return seen


@pytest.mark.parametrize("seed", range(6))
def test_objects_of_the_image_change_as_in_node(sandbox: Sandbox, seed: int) -> None:
    assert not torture.differences(sandbox, seed, steps=80, collecting=seed % 2 == 0)


def test_each_kind_of_change_is_tried(sandbox: Sandbox) -> None:
    """None of the steps only throws: it would change nothing."""
    said = " ".join(torture.seen_by_node(list(range(400))))
    tried: set[str] = set()
    failed: set[str] = set()
    for words in said.split():
        for name in words.split(","):
            (failed if "!" in name else tried).add(name.partition("!")[0])
    assert len(tried) > 55
    assert not failed - tried


def test_cycles_are_given_back(sandbox: Sandbox) -> None:
    machine = sandbox.start(CYCLES)
    sizes = []
    for turn in range(3000):
        assert context(send(machine, "TURN", cpu_s=1))["kept"] == turn * 1000 + 50
        sizes.append(machine.cost.memory_bytes)
    assert sizes[-1] == sizes[500], "the memory grows from turn to turn"


def test_growth_of_what_the_image_has_is_bounded(sandbox: Sandbox) -> None:
    """What replaces a block of the image is the session's, and is given back when it is replaced."""
    machine = sandbox.thaw(
        sandbox.image_of(
            """const { createMachine, assign } = require("xstate");
            const map = new Map(), list = [], wide = {};
            let turns = 0;
            for (let i = 0; i < 500; i++) { map.set(i, i); list.push(i); wide["k" + i] = i; }
            function turn() {
              for (let i = 0; i < 500; i++) { map.set("n" + i, i); list.push(i); wide["n" + i] = i; }
              const size = map.size + list.length + Object.keys(wide).length + (turns++ % 2);
              for (let i = 0; i < 500; i++) { map.delete("n" + i); delete wide["n" + i]; }
              list.length = 500;
              return size;
            }
            module.exports = { default: createMachine({ context: { size: 0 },
              on: { TURN: { actions: assign({ size: () => turn() }) } } }) };"""
        )
    )
    machine.apply(b"[0,5]", NOW_MS, cpu_s=1)
    sizes = []
    for turn in range(200):
        assert context(send(machine, "TURN", cpu_s=1))["size"] == 3000 + turn % 2
        sizes.append(machine.cost.memory_bytes)
    assert sizes[-1] == sizes[50]


def test_the_same_inputs_give_the_same_memory(sandbox: Sandbox) -> None:
    """Whether a session was frozen and thawed in between, or not."""
    image = sandbox.image_of(torture.SCRIPT.read_text() + torture.MACHINE)

    def memory(thaw_at: int) -> bytes:
        machine = sandbox.thaw(image)
        machine.apply(b"[0,1]", NOW_MS, cpu_s=1)
        for seed in range(40):
            data = b'[1,1,{"type":"ACT","seed":%d},{"id":"c"}]' % seed
            assert isinstance(machine.apply(data, NOW_MS, cpu_s=5), bytes)
            if seed == thaw_at:
                checkpoint = machine.checkpoint()
                machine.close()
                machine = sandbox.thaw(image, checkpoint)
        seen = machine.memory()
        machine.close()
        return seen

    assert memory(-1) == memory(-1) == memory(7) == memory(39)


def pages_written(machine: LiveMachine, before: bytes) -> int:
    after = machine.memory()
    return sum(
        before[at : at + PAGE_BYTES] != after[at : at + PAGE_BYTES]
        for at in range(0, len(after), PAGE_BYTES)
    )


def test_a_session_writes_to_few_pages(sandbox: Sandbox) -> None:
    """Counting references of shared objects would write to a hundred of them."""
    image = sandbox.image_of(COUNTER)
    machine = sandbox.thaw(image)
    machine.apply(b"[0,5]", NOW_MS, cpu_s=1)
    assert pages_written(machine, image.memory) <= 24
    for _ in range(300):
        send(machine, "increment")
    assert pages_written(machine, image.memory) <= 24
    before = machine.memory()
    send(machine, "increment")
    assert pages_written(machine, before) <= 14
    assert len(machine.checkpoint()) <= 5_500


CALL_SITES = """const { createMachine } = require("xstate");
const held = [];
module.exports = { machine: createMachine({ on: {
  DEEP: { actions: () => { const down = (part) => { down([part]); }; try { down(1); } catch {} } },
  CALLER: { actions: () => {
    const before = Error.prepareStackTrace;
    Error.prepareStackTrace = (_error, sites) => sites;
    held.push(new Error("x").stack);
    Error.prepareStackTrace = before;
  } } } }) };"""


def test_nothing_of_the_stack_comes_into_the_heap(sandbox: Sandbox) -> None:
    """The stack is no part of a checkpoint, so what a thawed session has there differs."""
    image = sandbox.image_of(CALL_SITES)

    def memory(*, thaws: bool) -> bytes:
        machine = sandbox.thaw(image)
        machine.apply(b"[0,1]", NOW_MS, cpu_s=1)
        machine.apply(b'[1,7,{"type":"DEEP"},{"id":"c"}]', NOW_MS, cpu_s=1)
        if thaws:
            checkpoint = machine.checkpoint()
            machine.close()
            machine = sandbox.thaw(image, checkpoint)
        machine.apply(b'[1,7,{"type":"CALLER"},{"id":"c"}]', NOW_MS, cpu_s=1)
        seen = machine.memory()
        machine.close()
        return seen

    assert memory(thaws=True) == memory(thaws=False)
