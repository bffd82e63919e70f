"""The immortal image under mutation: `make fuzz` for minutes, `test_image.py` for seconds.

    python -m tests.sandbox.torture [--seconds 60] [--seed 1]

`torture.cjs` changes objects of an image in every way that JavaScript has. What can be seen of them
must be what Node shows after the same steps, though cycles are collected at every chance, and the
session is frozen and thawed in between. A reference that is counted where it must not be, or not
counted where it must, shows as a difference or as a trap.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from sandbox.instance import Fault
from sandbox.protocol.outbox import decode_outbox
from tests.sandbox.sandboxes import NOW_MS, Sandbox

SCRIPT: Final = Path(__file__).with_suffix(".cjs")
MACHINE: Final = """
const { createMachine, assign } = require("xstate");
module.exports = { default: createMachine({ context: { said: "" }, on: {
  ACT: { actions: assign({ said: ({ event }) => act(event.seed) }) } } }) };
"""
ORACLE: Final = """
const { act } = require(process.argv[1]);
(async () => {
  for (const seed of JSON.parse(process.argv[2])) {
    console.log(act(seed));
    for (let i = 0; i < 50; i++) await null;
  }
})();
"""


def seen_by_node(seeds: list[int]) -> list[str]:
    """What Node shows after each of these steps."""
    command = ["node", "-e", ORACLE, str(SCRIPT), json.dumps(seeds)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return run.stdout.splitlines()


def seen_in_session(
    sandbox: Sandbox, seeds: list[int], *, collecting: bool, thaw_every: int
) -> list[str]:
    """What a session shows; it is frozen and thawed after every so many steps."""
    image = sandbox.image_of(SCRIPT.read_text() + MACHINE)
    machine = sandbox.thaw(image)
    assert isinstance(machine.apply(b"[0,1]", NOW_MS, cpu_s=1), bytes)
    if collecting:
        assert machine._instance is not None
        machine._instance.call("collect_after", 1024)
    seen = []
    for at, seed in enumerate(seeds):
        outbox = machine.apply(
            b'[1,1,{"type":"ACT","seed":%d},{"id":"c"}]' % seed, NOW_MS, cpu_s=30
        )
        if isinstance(outbox, Fault):
            seen.append(f"{outbox.code}: {outbox.message}")
            break
        seen.append(json.loads(bytes(decode_outbox(outbox).snapshot))["context"]["said"])
        if at % thaw_every == thaw_every - 1:
            checkpoint = machine.checkpoint()
            machine.close()
            machine = sandbox.thaw(image, checkpoint)
    machine.close()
    return seen


def differences(sandbox: Sandbox, seed: int, *, steps: int, collecting: bool) -> str:
    """The first step after which a session shows something else than Node; empty when none."""
    rng = random.Random(seed)
    seeds = [rng.getrandbits(32) for _ in range(steps)]
    here = seen_in_session(sandbox, seeds, collecting=collecting, thaw_every=rng.choice((7, 50)))
    for at, (there, said) in enumerate(zip(seen_by_node(seeds), here, strict=False)):
        if there != said:
            return f"seed {seed}, step {at}: Node shows {there}, the session {said}"
    return "" if len(here) == steps else f"seed {seed}: the session ended after {len(here)} steps"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    sandbox, until_s, seed = Sandbox(), time.monotonic() + options.seconds, options.seed
    while time.monotonic() < until_s:
        if found := differences(sandbox, seed, steps=options.steps, collecting=seed % 2 == 0):
            print(found)
            return 1
        seed += 1
    print(f"{seed - options.seed} sessions of {options.steps} steps: nothing differs from Node")
    return 0


if __name__ == "__main__":
    sys.exit(main())
