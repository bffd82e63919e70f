"""Transitions from tables do what XState's own do (sandbox/guest/prelude/transitions)."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from sandbox.protocol.outbox import decode_outbox
from tests.sandbox.sandboxes import NOW_MS, Sandbox

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
    ("tables", "historic ? keyThen : key", "key"),
    (
        "transition",
        "configuration.moves.get(key) === found",
        "true",
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


def said(
    sandbox: Sandbox, source: str, events: list[str], transitions: str, on_error: str = "reject"
) -> list[object]:
    """What a session of a machine answers to these events."""
    script = 'const { createMachine, raise } = require("xstate");' + source
    options = {"transitions": transitions, "on_error": on_error}
    machine = sandbox.thaw(sandbox.image_of(script, strict=transitions == "compiled", **options))
    inputs = [b"[0,5]", *(b'[1,1,{"type":"%b"},{"id":"c"}]' % each.encode() for each in events)]
    answers: list[object] = [machine.apply(data, NOW_MS, cpu_s=5) for data in inputs]
    machine.close()
    return answers


HISTORY_AND_MANY_MOVES = """
const states = {}; for (let i = 0; i < 20; i++) states["s" + i] = { on: { NEXT: "s" + ((i + 1) % 20) } };
const on = {}; for (let i = 0; i < 110; i++) on["E" + i] = {};
module.exports = { machine: createMachine({ type: "parallel", states: {
  n: { initial: "s0", states, on },
  h: { initial: "w1", states: { off: { on: { BACK: "work.hist" } }, w1: { on: { OFF: "off" } },
    work: { initial: "x", on: { OFF: "off" }, states: {
      x: { on: { FLIP: "y" } }, y: {}, hist: { type: "history" } } } } } } }) };"""


def test_history_is_right_when_no_more_moves_are_kept(sandbox: Sandbox) -> None:
    events = [*[f"E{i}" for i in range(110)], "NEXT"] * 20 + ["OFF", "BACK", "FLIP", "OFF", "BACK"]
    answers = said(sandbox, HISTORY_AND_MANY_MOVES, events, "compiled")
    assert answers == said(sandbox, HISTORY_AND_MANY_MOVES, events, "library")
    assert b'"h":{"work":"y"}' in answers[-1]  # type: ignore[operator]


@pytest.mark.parametrize("how", ["freeze", "preventExtensions", "seal"])
def test_a_machine_may_be_frozen(sandbox: Sandbox, how: str) -> None:
    source = f"""module.exports = {{ machine: Object.{how}(createMachine({{
      initial: "a", states: {{ a: {{ on: {{ GO: "b" }} }}, b: {{}} }} }})) }};"""
    answers = said(sandbox, source, ["GO"], "compiled")
    assert answers == said(sandbox, source, ["GO"], "library")
    assert b'"value":"b"' in answers[-1]  # type: ignore[operator]


@pytest.mark.parametrize("on_error", ["reject", "stop"])
@pytest.mark.parametrize("raised", ["undefined", "null", "7", "{}"])
def test_what_is_raised_may_be_anything(sandbox: Sandbox, raised: str, on_error: str) -> None:
    source = f"module.exports = {{ machine: createMachine({{ on: {{ U: {{ actions: raise(() => ({raised})) }} }} }}) }};"
    answers = said(sandbox, source, ["U"], "compiled", on_error)
    assert answers == said(sandbox, source, ["U"], "library", on_error)


def test_who_selects_transitions_alone_is_left_to_xstate(sandbox: Sandbox) -> None:
    source = """const machine = createMachine({ initial: "a", states: { a: { on: { GO: "b" } }, b: {} } });
    machine.getTransitionData = () => [];
    module.exports = { machine };"""
    script = 'const { createMachine } = require("xstate");' + source
    machine = sandbox.thaw(sandbox.image_of(script))
    machine.apply(b"[0,5]", NOW_MS, cpu_s=1)
    assert machine.apply(b'[1,1,{"type":"GO"},{"id":"c"}]', NOW_MS, cpu_s=1) == b"[3,2,null]"


@pytest.mark.parametrize(("states", "events"), [(150, 15), (96, 40), (480, 4), (20, 200)])
def test_many_names_of_events_do_not_keep_a_machine_out(
    sandbox: Sandbox, states: int, events: int
) -> None:
    """Neither by the time that tables take, nor by memory, ahead or in a session."""
    source = f"""const {{ createMachine }} = require("xstate");
    const states = {{}};
    for (let i = 0; i < {states}; i++) {{
      const on = {{}};
      for (let j = 0; j < {events}; j++) on["E" + i + "_" + j] = "s" + ((i + j + 1) % {states});
      states["s" + i] = {{ on }};
    }}
    module.exports = {{ machine: createMachine({{ initial: "s0", states }}) }};"""
    machine = sandbox.thaw(sandbox.image_of(source))
    assert isinstance(machine.apply(b"[0,5]", NOW_MS, cpu_s=2), bytes)
    for number in range(1500):
        name = b"E%d_%d" % (number * 7 % states, number % events)
        data = b'[1,1,{"type":"%b"},{"id":"c"}]' % name
        assert isinstance(machine.apply(data, NOW_MS, cpu_s=2), bytes)
    assert machine.cost.memory_bytes < 12 * 1024 * 1024
    machine.close()
