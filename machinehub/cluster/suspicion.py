"""Which nodes seem to be dead, decided from what one node sees of the others' heartbeats.

No two clocks are compared: a heartbeat is a number that grows, and how long it has not grown is
measured by the watcher's own clock. A node that is suspected wrongly is fenced all the same, which
costs it a restart and its sessions a move, and never an event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from machinehub.ids import NodeId
    from machinehub.store.nodes import NodeRecord

UNCONNECTED_S: Final = 1.0
"""A node whose connection to the database has ended, and that gave no sign of life for so long, is
dead: its process ended, most likely.
"""
SILENT_S: Final = 4.0
"""So is one that is connected and gave none for so long: it is stopped, or cut off."""
ABSENT_S: Final = 1.5
"""A watcher that has not looked for so long knows nothing of anybody: it may have been stopped
itself, or the database was away, and everybody comes back to it in their own time.
"""


@dataclass(slots=True)
class _Seen:
    beats: int
    since_s: float


class Suspicion:
    def __init__(self) -> None:
        self._seen: dict[NodeId, _Seen] = {}
        self._looked_at_s = float("-inf")

    def look(
        self, others: Iterable[NodeRecord], connected: AbstractSet[int], now_s: float
    ) -> list[NodeId]:
        """The nodes that seem to be dead. `connected` has the lock numbers of those whose
        connections live; `now_s` is the watcher's own time.
        """
        if now_s - self._looked_at_s > ABSENT_S:
            self._seen.clear()
        self._looked_at_s = now_s
        before, self._seen = self._seen, {}
        suspects = []
        for node in others:
            seen = before.get(node.id)
            if seen is None or seen.beats != node.beats:
                seen = _Seen(node.beats, now_s)
            self._seen[node.id] = seen
            patience_s = SILENT_S if node.lock in connected else UNCONNECTED_S
            if now_s - seen.since_s >= patience_s:
                suspects.append(node.id)
        return suspects
