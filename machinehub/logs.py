"""What machines log, and which of their events were rejected: the last lines of each machine, and
whoever follows them.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable


class LogLine(msgspec.Struct, frozen=True, omit_defaults=True):
    at_ms: int
    session: str
    level: str
    text: str
    cost: dict[str, int] | None = None
    """What the turn took that wrote the line: `cpu_us`, `memory_bytes`, `fuel` where it is counted.
    """


class Logs(Protocol):
    """What may be read of a machine's lines, of one hub or of several."""

    async def read(self, machine_id: str, count: int) -> list[LogLine]:
        """The last lines, the oldest first."""
        ...

    def follow(self, machine_id: str, follower: Callable[[LogLine], None]) -> Callable[[], None]:
        """Calls `follower` with every line from now on; the answer ends that."""
        ...

    def forget(self, machine_id: str) -> None: ...


class MachineLogs:
    """In memory, `kept` lines a machine."""

    def __init__(self, *, kept: int) -> None:
        self._kept = kept
        self._lines: dict[str, deque[LogLine]] = {}
        self._followers: dict[str, set[Callable[[LogLine], None]]] = {}

    def add(
        self,
        machine_id: str,
        session: str,
        level: str,
        text: str,
        at_ms: int,
        cost: dict[str, int] | None = None,
    ) -> None:
        line = LogLine(at_ms, session, level, text, cost)
        self._lines.setdefault(machine_id, deque(maxlen=self._kept)).append(line)
        for follower in list(self._followers.get(machine_id, ())):
            follower(line)

    def last(self, machine_id: str, count: int) -> list[LogLine]:
        return list(self._lines.get(machine_id, ()))[-count:]

    async def read(self, machine_id: str, count: int) -> list[LogLine]:
        return self.last(machine_id, count)

    def follow(self, machine_id: str, follower: Callable[[LogLine], None]) -> Callable[[], None]:
        """Calls `follower` with every line from now on; the answer ends that."""
        followers = self._followers.setdefault(machine_id, set())
        followers.add(follower)
        return lambda: followers.discard(follower)

    def forget(self, machine_id: str) -> None:
        self._lines.pop(machine_id, None)
