"""Memory of workers: whose idle sessions are frozen when it runs short.

A worker is bounded twice. The kernel ends what it maps at `worker_bytes`, which counts a session's
memory whole; and all workers together must fit into the computer, where only pages count that were
touched. Sessions that rest are frozen before either is reached, those first that have rested long
and are large. So nobody is refused for sessions of others that do nothing.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Final

from machinehub.session.run.placement import FULL, room_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.clock import Clock
    from machinehub.limits import Limits
    from machinehub.session.decide.session import Session
    from machinehub.session.run.placement import Place, Placement
    from machinehub.session.run.worker_interfaces import SandboxWorker

LEFT: Final = 0.65
"""The share of a bound that is left in use once sessions were frozen."""
AT_LEAST: Final = 8
"""So many sessions make way when one finds no room."""


class Pressure:
    """`at_rest` says whether nothing about a session is under way, `let_go` freezes it.
    `resident_bytes` is what the workers may touch together, 0 for no bound.
    """

    def __init__(
        self,
        placement: Placement,
        clock: Clock,
        limits: Limits,
        *,
        resident_bytes: int,
        at_rest: Callable[[Session], bool],
        let_go: Callable[[Session], None],
    ) -> None:
        self._placement = placement
        self._clock = clock
        self._limits = limits
        self._resident_bytes = resident_bytes
        self._at_rest = at_rest
        self._let_go = let_go

    def relieve(self) -> None:
        """Freezes what rests, everywhere, where the workers together touch too much. Called now and
        then: how much a worker touches is not known by what it answers.
        """
        by_worker: dict[SandboxWorker, list[Place]] = defaultdict(list)
        for place in self._placement.places_on_workers:
            if place.worker is not None:
                by_worker[place.worker].append(place)
        touched = sum(worker.resident_bytes() for worker in by_worker)
        if self._resident_bytes and touched > FULL * self._resident_bytes:
            share = 1 - LEFT * self._resident_bytes / touched
            for places in by_worker.values():
                self._free(places, share * sum(place.memory_bytes for place in places))

    def make_room(self, worker: SandboxWorker) -> None:
        """A worker is full, or nearly: of what rests there some is frozen."""
        places = [each for each in self._placement.places_on_workers if each.worker is worker]
        mapped = sum(place.memory_bytes for place in places)
        self._free(places, mapped - LEFT * room_of(self._limits), at_least=AT_LEAST)

    def _free(self, places: list[Place], wanted: float, *, at_least: int = 0) -> None:
        now_ms = self._clock.now_ms()

        def weight(place: Place) -> float:
            return (now_ms - place.session.used_at_ms + 1) * place.memory_bytes

        resting = (place for place in places if self._at_rest(place.session))
        for count, place in enumerate(sorted(resting, key=weight, reverse=True)):
            if wanted <= 0 and count >= at_least:
                return
            wanted -= place.memory_bytes
            self._let_go(place.session)
