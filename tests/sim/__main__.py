"""`make sim SEED=n`: plays one seed again. `make sim SEED=n COUNT=m`: that many, from there on.
`make sim-cluster` does the same with several nodes.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.sim.cluster import ClusterWorld
from tests.sim.world import World


def main() -> int:
    arguments = argparse.ArgumentParser(prog="sim")
    arguments.add_argument("seed", type=int)
    arguments.add_argument("count", type=int, nargs="?", default=1)
    arguments.add_argument("--cluster", action="store_true")
    options = arguments.parse_args()
    name = "sim-cluster" if options.cluster else "sim"
    began_s, commits, kills = time.perf_counter(), 0, 0
    for seed in range(options.seed, options.seed + options.count):
        world = ClusterWorld(seed) if options.cluster else World(seed)
        try:
            world.play()
        except BaseException:  # noqa: BLE001 - whatever it is, it has a seed
            traceback.print_exc()
            print(f"seed {seed} fails: make {name} SEED={seed}")
            return 1
        commits, kills = commits + world.store.commits, kills + world.kills
    print(
        f"{options.count} seeds hold: {commits} commits, {kills} hubs killed, "
        f"{time.perf_counter() - began_s:.1f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
