"""Stately's clients beside the hub's own: what an event and a delivery cost, in turns."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Any, Final

from bench.hub import BenchHub

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS: Final = 4


def sky(data: str, measure: Callable[..., dict[str, Any]]) -> list[tuple[str, str, str]]:
    shapes = {"pairs": {"sessions": 100, "clients": 2}, "crowd": {"sessions": 1, "clients": 100}}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with BenchHub(data) as hub:
        machine = hub.deploy()[2]
        for number in range(ROUNDS):
            order = ["events", "sky"] if number % 2 else ["sky", "events"]
            for shape, options in shapes.items():
                for protocol in order:
                    ran = measure(protocol, hub, machine, seconds=3, **options)
                    assert not ran["rejected"]
                    found.setdefault((shape, protocol), []).append(ran)
    events, sky_events = (_us(found["pairs", name], "events") for name in ("events", "sky"))
    fan, sky_fan = (_us(found["crowd", name], "deliveries") for name in ("events", "sky"))
    return [
        ("100 sessions x 2 native clients, an event: CPU of all processes", f"{events:.0f} us", ""),
        ("the same by Stately's protocol", f"{sky_events:.0f} us", ""),
        ("against each other", f"{sky_events / events:.2f}", "1.5"),
        ("1 session x 100 native clients, a delivery: CPU", f"{fan:.1f} us", ""),
        ("the same by Stately's protocol", f"{sky_fan:.1f} us", ""),
        ("against each other", f"{sky_fan / fan:.2f}", "1.5"),
    ]


def _us(runs: list[dict[str, Any]], what: str) -> float:
    rates: list[float] = [each[f"{what}_per_cpu_s"] for each in runs]
    return 1e6 / median(rates)
