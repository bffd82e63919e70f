"""The guest alone: turns, starts, checkpoints and memory of sessions, in this process, without a
hub, a journal or a socket.

Times are CPU time of this thread, which other processes of the machine disturb least.
"""

from __future__ import annotations

import os
import time
from statistics import median
from typing import TYPE_CHECKING, Final

from bench.processes import private_kb
from sandbox.compression import pack
from tests.sandbox.sandboxes import NOW_MS, Sandbox

if TYPE_CHECKING:
    from sandbox.instance import LiveMachine

SESSIONS: Final = 100
ROUNDS: Final = 60
COUNTER: Final = """const { createMachine, assign } = require("xstate");
module.exports.machine = createMachine({ id: "counter", context: { count: 0 }, on: {
  increment: { actions: assign({ count: ({ context }) => context.count + 1 }) } } });"""
IN_TURNS: Final = "an event, 100 sessions in turns, us"
CHECKPOINT: Final = "a checkpoint after 300 events, bytes"
IMAGE: Final = "the image of a version, packed, bytes"
EVENT: Final = b'[1,%d,{"type":"increment"},{"id":"client"}]'


def _turn(machine: LiveMachine, seed: int) -> None:
    answer = machine.apply(EVENT % seed, NOW_MS + seed, cpu_s=1)
    assert isinstance(answer, bytes), answer


def guest() -> dict[str, float]:
    """Microseconds of CPU, KB and bytes, by what they are of."""
    bench = Sandbox()
    image = bench.image_of(COUNTER)
    alone = bench.started(image)
    for seed in range(1, 300):
        _turn(alone, seed)
    hot = []
    for _ in range(10):
        began = time.thread_time_ns()
        for seed in range(1, 301):
            _turn(alone, seed)
        hot.append((time.thread_time_ns() - began) / 300_000)
    starts = []
    before_kb = private_kb(os.getpid())
    machines = []
    for _ in range(SESSIONS):
        began = time.thread_time_ns()
        machines.append(bench.started(image))
        starts.append((time.thread_time_ns() - began) / 1000)
    started_kb = private_kb(os.getpid())
    for seed in range(1, 4):
        for machine in machines:
            _turn(machine, seed)
    used_kb = private_kb(os.getpid())
    turns = []
    for seed in range(4, ROUNDS):
        began = time.thread_time_ns()
        for machine in machines:
            _turn(machine, seed)
        turns.append((time.thread_time_ns() - began) / SESSIONS / 1000)
    used = bench.started(image)
    for seed in range(1, 301):
        _turn(used, seed)
    checkpoint = used.checkpoint()
    thaws = []
    for _ in range(50):
        began = time.thread_time_ns()
        thawed = bench.thaw(image, checkpoint)
        _turn(thawed, 301)
        thaws.append((time.thread_time_ns() - began) / 1000)
        thawed.close()
    return {
        "an event, one session, us": median(hot),
        IN_TURNS: median(turns),
        "a start, us": median(starts),
        "thawing a checkpoint, and an event, us": median(thaws),
        "private memory of a session that started, KB": (started_kb - before_kb) / SESSIONS,
        "private memory of a session after three events, KB": (used_kb - before_kb) / SESSIONS,
        CHECKPOINT: len(checkpoint),
        IMAGE: len(pack(bench.forged(COUNTER))),
    }


if __name__ == "__main__":
    for name, figure in guest().items():
        print(f"{name:55} {figure:10.1f}")
