"""The guest alone: turns, starts, checkpoints and memory of sessions, in this process, without a
hub, a journal or a socket.

Times are CPU time of this thread, which other processes of the machine disturb least.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Final

from sandbox.compression import pack
from sandbox.engine import Engine
from sandbox.forge import forge_image, load_guest
from sandbox.instance import LiveMachine, LoadedImage, Sizes, load_image
from sandbox.worker import GUEST

MEMORY: Final = 16 * 1024 * 1024
NOW_MS: Final = 1_700_000_000_000
SESSIONS: Final = 100
ROUNDS: Final = 60
COUNTER: Final = """const { createMachine, assign } = require("xstate");
module.exports.machine = createMachine({ id: "counter", context: { count: 0 }, on: {
  increment: { actions: assign({ count: ({ context }) => context.count + 1 }) } } });"""
IN_TURNS: Final = "an event, 100 sessions in turns, us"
CHECKPOINT: Final = "a checkpoint after 300 events, bytes"
IMAGE: Final = "the image of a version, packed, bytes"
EVENT: Final = b'[1,%d,{"type":"increment"},{"id":"client"}]'


class Bench:
    def __init__(self, cache: Path | None) -> None:
        self.engine = Engine(cache)
        self.guest = load_guest(
            self.engine, (GUEST / "engine.wasm").read_bytes(), (GUEST / "base.wasm").read_bytes()
        )

    def wasm(self) -> bytes:
        """The counter's image."""
        wasm, _, _ = forge_image(
            self.engine, self.guest, COUNTER, source_map=None, cpu_s=5, memory_bytes_max=MEMORY
        )
        return wasm

    def image(self) -> LoadedImage:
        codes = {self.guest.engine_digest: self.guest.engine}
        return load_image(self.engine, codes, self.wasm(), memory_bytes_max=MEMORY)

    def thaw(self, image: LoadedImage, checkpoint: bytes | None = None) -> LiveMachine:
        sizes = Sizes(MEMORY, 256 * 1024, 256 * 1024)
        return LiveMachine(self.engine, image, sizes, checkpoint=checkpoint)

    def started(self, image: LoadedImage) -> LiveMachine:
        machine = self.thaw(image)
        assert isinstance(machine.apply(b"[0,5]", NOW_MS, cpu_s=1), bytes)
        return machine


def _turn(machine: LiveMachine, seed: int) -> None:
    answer = machine.apply(EVENT % seed, NOW_MS + seed, cpu_s=1)
    assert isinstance(answer, bytes), answer


def private_kb() -> int:
    """What this process does not share, in KB: also what it shares with no file (Linux)."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith(("Private_Dirty:",)):
            return int(line.split()[1])
    raise AssertionError("no Private_Dirty")


def guest(cache: Path | None = None) -> dict[str, float]:
    """Microseconds of CPU, KB and bytes, by what they are of."""
    bench = Bench(cache)
    image = bench.image()
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
    before_kb = private_kb()
    machines = []
    for _ in range(SESSIONS):
        began = time.thread_time_ns()
        machines.append(bench.started(image))
        starts.append((time.thread_time_ns() - began) / 1000)
    started_kb = private_kb()
    for seed in range(1, 4):
        for machine in machines:
            _turn(machine, seed)
    used_kb = private_kb()
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
        IMAGE: len(pack(bench.wasm())),
    }


if __name__ == "__main__":
    for name, figure in guest().items():
        print(f"{name:55} {figure:10.1f}")
