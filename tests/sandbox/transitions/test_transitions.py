"""Transitions from tables do what XState's own do (sandbox/guest/prelude/transitions)."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.protocol.outbox import decode_outbox
from tests.sandbox.test_instance import NOW_MS, Sandbox

if TYPE_CHECKING:
    from sandbox.instance import LiveMachine

HERE = Path(__file__).parent
MACHINES = 200
MUTANT_MACHINES = 400

MUTANTS = [
    # (file, what stands there, what a mistake would put in its place)
    ("tables", "if (done) next.sort", "if (false) next.sort"),
    ("tables", "recorded.length > 0 || nodes.length", "nodes.length"),
    ("tables", 'past.history === "deep"', 'past.history !== "deep"'),
    ("tables", "if (byDefault.has(node)) actions", "if (true) actions"),
    (
        "tables",
        "if (historic) keepMove(configuration, key",
        "if (false) keepMove(configuration, key",
    ),
    (
        "tables",
        "for (const node of [...toEnter].sort((a, b) => a.order - b.order))",
        "for (const node of toEnter)",
    ),
    ("transition", "if (taken.length > before) continue;", ""),
    ("transition", "eventless = !wasEventless || work.dirty", "eventless = true"),
    ("transition", 'else if (event.type.startsWith("xstate.error.actor"))', "else if (false)"),
    ("transition", "work.children = children; // they", "// they"),
    ("transition", "if (after.length) run", "if (false) run"),
    ("transition", "parentId !== null", "true"),
    ("actions", "if (nest[4] !== undefined) work.children = {", "if (false) work.children = {"),
    ("actions", "if (retries !== null && ", "if (false && "),
    ("actions", "if (more) run", "if (false) run"),
    ("work", "if (work.queue.length) work.queue = [];", ""),
]


def compare(first: int, count: int, *mutant: str) -> tuple[bool, dict[str, Any]]:
    """Whether all is the same, and what was compared, or the first difference."""
    command = ["node", str(HERE / "compare.mjs"), str(first), str(count), *mutant]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.stdout, run.stderr
    answer: dict[str, Any] = json.loads(run.stdout)
    return run.returncode == 0, answer


@pytest.mark.parametrize("first", range(1, 1 + 3 * MACHINES, MACHINES))
def test_random_machines_do_the_same(first: int) -> None:
    same, answer = compare(first, MACHINES)
    assert same, answer
    assert answer["active"] > answer["steps"] / 3, "most machines end before anything is compared"


@pytest.mark.parametrize(("file", "old", "new"), MUTANTS)
def test_mistakes_are_noticed(file: str, old: str, new: str) -> None:
    same, _ = compare(1, MUTANT_MACHINES, file, old, new)
    assert not same


IN_THE_GUEST = """
const { machine, trace } = module.exports.generate(require("xstate"), %d);
const { transition } = machine;
machine.transition = (...all) => {
  try {
    return transition(...all);
  } finally {
    let hash = 0;
    for (const letter of trace.splice(0).join()) hash = (Math.imul(hash, 31) + letter.charCodeAt(0)) | 0;
    console.log(hash);
  }
};
module.exports = { machine };
"""


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox()


def outboxes(sandbox: Sandbox, seed: int, transitions: str) -> list[object]:
    """What a session of the seed's machine says to events, and to timers that come due."""
    script = (HERE / "machines.cjs").read_text() + IN_THE_GUEST % seed
    machine: LiveMachine = sandbox.thaw(
        sandbox.image_of(
            script, transitions=transitions, strict=transitions == "compiled", on_error="stop"
        )
    )
    rng, said, due = random.Random(seed), list[object](), list[tuple[int, int]]()
    inputs = [b'[0,%d,{"n":2}]' % rng.getrandbits(50)]
    names = ("A", "B", "C", "D", "go.left", "go.right.up", "unknown", "xstate.route")
    for _ in range(25):
        event = b'{"type":"%b"}' % rng.choice(names).encode()
        inputs.append(b'[1,%d,%b,{"id":"c"}]' % (rng.getrandbits(50), event))
    now_ms = NOW_MS
    for data in inputs:
        if due and rng.random() < 0.3:
            at_ms, timer = due.pop(0)
            now_ms = max(now_ms, at_ms)
            data = b"[2,7,%d]" % timer
        answer = machine.apply(data, now_ms, cpu_s=5)
        said.append(answer)
        if isinstance(answer, bytes):
            due = sorted([*due, *((at, timer) for timer, at in decode_outbox(answer).timers_set)])
    machine.close()
    return said


@pytest.mark.parametrize("first", range(0, 40, 10))
def test_random_machines_do_the_same_in_the_guest(sandbox: Sandbox, first: int) -> None:
    for seed in range(first, first + 10):
        theirs = outboxes(sandbox, seed, "library")
        assert outboxes(sandbox, seed, "compiled") == theirs, f"seed {seed}"


def test_what_cannot_be_run_from_tables_is_said_when_asked(sandbox: Sandbox) -> None:
    """A machine that is inspected is run by XState's own functions, which is the documented way."""
    source = """const { createMachine } = require("xstate");
    module.exports = { machine: createMachine({ context: {}, initial: "a",
      entry: ({ system }) => { system.inspect(() => {}); },
      states: { a: { on: { GO: "b" } }, b: {} } }) };"""
    machine = sandbox.thaw(sandbox.image_of(source, strict=True))
    assert isinstance(machine.apply(b"[0,5]", NOW_MS, cpu_s=1), bytes)
    answer = machine.apply(b'[1,1,{"type":"GO"},{"id":"c"}]', NOW_MS, cpu_s=1)
    assert isinstance(answer, bytes)
    assert b'"value":"b"' in answer
