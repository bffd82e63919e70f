"""What isolation costs, and what it is worth: the walls around workers, and a session beside
hostile ones.
"""

from __future__ import annotations

import statistics
import sys
from typing import TYPE_CHECKING, Any

from bench.hub import BenchHub

if TYPE_CHECKING:
    from collections.abc import Callable

    Measure = Callable[..., dict[str, Any]]

ROUNDS = 5
WITHOUT_WALLS = (
    sys.executable,
    "-c",
    (
        "import sys, machinehub.workers.process\n"
        "machinehub.workers.process.COMMAND = ('-c', 'from sandbox import walls, worker; "
        "walls.raise_first = walls.raise_rest = lambda **_: []; worker.main()')\n"
        "from machinehub.cli.main import main; sys.argv[0] = 'machinehub'; main()"
    ),
)
"""A hub whose workers put up no walls. There is no such setting: this is for the comparison alone.
"""
MACHINE = (
    'import { assign, createMachine, emit, spawnChild, fromCallback } from "xstate"; export '
    "default createMachine({ context: { n: 0 }, on: { X: { actions: %s } } });"
)
HOSTILE = {
    "loop": "() => { for (;;); }",
    "regular expression": "() => { /^(a+)+$/.test('a'.repeat(60) + 'b'); }",
    "just below its limit": "() => { const until = 1e6; for (let i = 0; i < until; i++); }",
    "memory": "() => { const a = []; for (;;) a.push(new Uint8Array(1e5)); }",
    "microtasks": "() => { const again = () => queueMicrotask(again); again(); }",
    "timers": "() => { for (let i = 0; i < 900; i++) setTimeout(() => {}, 1); }",
    "logs": "() => { for (let i = 0; i < 1e3; i++) console.log('x'.repeat(5000)); }",
    "large snapshots": "assign({ n: () => 'x'.repeat(200000) + Math.random() })",
}


def walls(data: str, measure: Measure) -> list[tuple[str, str, str]]:
    """The same load on a hub with walls and on one without, in turns."""
    events: dict[bool, list[float]] = {True: [], False: []}
    opening: dict[bool, list[float]] = {True: [], False: []}
    for number in range(ROUNDS):
        for standing in (True, False) if number % 2 else (False, True):
            with BenchHub(
                f"{data}/{number}-{standing}", command=() if standing else WITHOUT_WALLS
            ) as hub:
                _, _, machine = hub.deploy()
                events[standing].append(
                    measure("events", hub, machine, sessions=100, clients=1, seconds=4)[
                        "events_per_cpu_s"
                    ]
                )
                opening[standing].append(measure("opening", hub, machine, sessions=200)["cpu_ms"])
    ratio = statistics.median(
        with_walls / without
        for with_walls, without in zip(events[True], events[False], strict=True)
    )
    opened = statistics.median(
        with_walls / without
        for with_walls, without in zip(opening[True], opening[False], strict=True)
    )
    return [
        (
            "100 sessions x 1 client: events per CPU-second, with walls and without",
            f"{statistics.median(events[True]):,.0f} and {statistics.median(events[False]):,.0f}",
            "",
        ),
        (f"their ratio, median of {ROUNDS} pairs", f"{ratio:.2f}", "0.90"),
        (f"CPU of a new session, ratio, median of {ROUNDS} pairs", f"{opened:.2f}", ""),
    ]


def neighbours(data: str, measure: Measure) -> list[tuple[str, str, str]]:
    """A counter that is used 50 times a second, on a hub with one worker: alone, and beside two
    sessions each of hostile machines.
    """
    found = []
    with BenchHub(data, MACHINEHUB_WORKERS="1") as hub:
        _, _, machine = hub.deploy()
        hostile = {
            name: hub.deploy_source(f"hostile-{number}", MACHINE % actions)
            for number, (name, actions) in enumerate(HOSTILE.items())
        }
        slice_ms = 50 + 10  # `event_cpu_ms`, and the watchdog's tick
        alone = [
            measure("neighbour", hub, machine, hostile=[], seconds=6, pause_ms=20) for _ in range(2)
        ]
        p50, p99 = min(each["p50_ms"] for each in alone), min(each["p99_ms"] for each in alone)
        found.append(("a counter alone: p50, p99", f"{p50:.1f} ms, {p99:.1f} ms", ""))
        beside = [(name, [each, each]) for name, each in hostile.items()] + [
            ("all of them", list(hostile.values()))
        ]
        for name, machines in beside:
            there = measure("neighbour", hub, machine, hostile=machines, seconds=6, pause_ms=20)
            assert not there["rejected"]
            found.append(
                (
                    f"beside {name} ({there['hostile'] / 7:.0f} events a second): p50, p90, p99",
                    f"{there['p50_ms']:.1f} ms, {there['p90_ms']:.1f} ms, {there['p99_ms']:.1f} ms",
                    f"p99 {p99 + slice_ms:.0f} ms",
                )
            )
    return found
