"""Where transitions from tables differ from XState's own: what sandbox/guest/README.md names, and
nothing that a documented interface shows.
"""

from __future__ import annotations

import json

from sandbox.protocol.outbox import decode_outbox
from tests.sandbox.sandboxes import NOW_MS, Sandbox


def seen(sandbox: Sandbox, source: str, transitions: str) -> object:
    """`context.seen` after the event GO, twice."""
    script = 'const { createMachine, assign } = require("xstate");' + source
    machine = sandbox.thaw(sandbox.image_of(script, transitions=transitions))
    snapshot = None
    for data in (b"[0,5]", *[b'[1,1,{"type":"GO"},{"id":"c"}]'] * 2):
        answer = machine.apply(data, NOW_MS, cpu_s=1)
        assert isinstance(answer, bytes), answer
        # Null when nothing has changed.
        snapshot = json.loads(bytes(decode_outbox(answer).snapshot)) or snapshot
    machine.close()
    assert snapshot is not None
    return snapshot["context"]["seen"]


def test_the_same_states_are_the_same_array(sandbox: Sandbox) -> None:
    source = """
    let first;
    module.exports = { machine: createMachine({ context: { seen: "" }, initial: "a", states: {
      a: { on: { GO: { target: "b", actions: ({ self }) => { first = self.getSnapshot()._nodes; } } } },
      b: { on: { GO: "c" } },
      c: { always: { target: "a", actions: assign({ seen: ({ self }) => typeof first }) } },
    } }) };
    module.exports.machine.root.states.a.entry.push(function look({ self }) {
      queueMicrotask(() => { self.getSnapshot().context.seen = self.getSnapshot()._nodes === first; });
    });"""
    assert seen(sandbox, source, "library") is False
    assert seen(sandbox, source, "compiled") is True


def test_a_guard_with_a_check_of_its_own_sees_no_snapshot(sandbox: Sandbox) -> None:
    source = """
    let kind = "";
    const guard = () => {};
    guard.check = (snapshot) => { kind = Object.hasOwn(snapshot, "status") && Object.hasOwn(snapshot, "matches"); return true; };
    module.exports = { machine: createMachine({ context: { seen: "" }, on: {
      GO: { guard, actions: assign({ seen: () => kind }) } } }) };"""
    assert seen(sandbox, source, "library") is True
    assert seen(sandbox, source, "compiled") is False


def test_changed_state_nodes_are_not_noticed(sandbox: Sandbox) -> None:
    source = """
    const machine = createMachine({ context: { seen: 0 }, initial: "a", states: {
      a: { on: { GO: { target: "b", actions: () => { machine.root.states.b.entry.push(assign({ seen: 1 })); } } } },
      b: { on: { GO: { target: "b", reenter: true } } },
    } });
    module.exports = { machine };"""
    assert seen(sandbox, source, "library") == 1
    assert seen(sandbox, source, "compiled") == 0


def test_the_value_of_a_snapshot_that_is_changed_in_place_is_not_noticed(sandbox: Sandbox) -> None:
    source = """
    module.exports = { machine: createMachine({ context: { seen: "" }, initial: "a", states: {
      a: { on: { GO: { actions: [({ self }) => { self.getSnapshot().value = "b"; }] } } },
      b: { on: { GO: { actions: assign({ seen: "from b" }) } } },
    } }) };"""
    assert seen(sandbox, source, "library") == "from b"
    assert seen(sandbox, source, "compiled") == ""


def test_get_transition_data_that_is_replaced_later_is_not_noticed(sandbox: Sandbox) -> None:
    source = """
    const machine = createMachine({ context: { seen: 0 }, on: { GO: { actions: assign({
      seen: ({ context }) => { machine.getTransitionData = () => []; return context.seen + 1; },
    }) } } });
    module.exports = { machine };"""
    assert seen(sandbox, source, "library") == 1
    assert seen(sandbox, source, "compiled") == 2
