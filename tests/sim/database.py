"""A simulated database: it answers late, not at all, or not as it seems."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from machinehub.errors import Unavailable
from machinehub.store.database import AlreadyWritten
from tests.fakes import MemoryEffects, MemorySessionStore
from tests.sim.parts import DAMAGED

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence

    from machinehub.model import Entry, SavedCheckpoint
    from tests.sim.loop import VirtualLoop


class SimEffects(MemoryEffects):
    """As the store that it is of: it answers after a while, or cannot be reached."""

    reach: Callable[[], Awaitable[None]]

    async def due(self, now_ms: int, **page: Any) -> Any:
        await self.reach()
        return await super().due(now_ms, **page)

    async def take(self, named: Any) -> Any:
        await self.reach()
        return await super().take(named)

    async def note_try(self, key: int, effect: Any, **noted: Any) -> None:
        await self.reach()
        await super().note_try(key, effect, **noted)


class SimStore(MemorySessionStore):
    """Answers after a while. `away_until_s`: it cannot be reached.

    A commit may be lost, or done and its answer lost, or done later.
    """

    def __init__(self, loop: VirtualLoop, chance: random.Random) -> None:
        super().__init__(receipts_loaded=3)
        self.loop = loop
        self.chance = chance
        self.trouble = True
        self.away_until_s = 0.0
        self.commits = 0
        self.effects = SimEffects(self.records)
        self.effects.reach = self._reach

    async def commit(self, items: Sequence[Any]) -> None:
        await asyncio.sleep(self.chance.random() * 0.02)
        lot = self.chance.random() if self.trouble else 1.0
        if self.loop.now_s < self.away_until_s:
            if lot < 0.3:
                self._later(items)
            raise Unavailable("unavailable", "away")
        if lot < 0.03:
            raise Unavailable("unavailable", "the commit was lost")
        if lot < 0.05:
            self._later(items)
            raise Unavailable("unavailable", "who knows")
        self.apply(items)
        self.commits += 1
        if lot < 0.08:
            raise Unavailable("unavailable", "the answer was lost")

    def _later(self, items: Sequence[Any]) -> None:
        """A commit that was under way when the connection broke may still be done."""
        items = list(items)

        def land() -> None:
            with contextlib.suppress(AlreadyWritten):
                self.apply(items)

        self.loop.call_later(self.chance.random() * 3, land)

    def damage(self, key: int) -> None:
        """The newest checkpoint of a session cannot be read any more."""
        saved = self.saved.get(key)
        if saved:
            newest = max(saved)
            saved[newest] = msgspec.structs.replace(saved[newest], data=DAMAGED)

    @staticmethod
    def is_damaged(checkpoint: SavedCheckpoint) -> bool:
        return checkpoint.data == DAMAGED

    async def load(self, machine_id: str, session_id: str) -> Any:
        await self._reach()
        return await super().load(machine_id, session_id)

    async def explain_conflict(self, items: Sequence[Any]) -> Any:
        await self._reach()
        return await super().explain_conflict(items)

    async def record(self, machine_id: str, session_id: str) -> Any:
        await self._reach()
        return await super().record(machine_id, session_id)

    async def record_of(self, key: int) -> Any:
        await self._reach()
        return await super().record_of(key)

    async def timers_due(self, *, after_ms: int, until_ms: int) -> Any:
        await self._reach()
        return await super().timers_due(after_ms=after_ms, until_ms=until_ms)

    async def ping(self) -> None:
        await self._reach()

    async def span(self, key: int) -> Any:
        await self._reach()
        return await super().span(key)

    async def fork(
        self, record: Any, parent: int, checkpoint: Any, members: Any, **more: Any
    ) -> Any:
        await self._reach()
        forked = await super().fork(record, parent, checkpoint, members, **more)
        if self.trouble and self.chance.random() < 0.1:
            raise Unavailable("unavailable", "the answer was lost")
        return forked

    async def _reach(self) -> None:
        await asyncio.sleep(self.chance.random() * 0.005)
        if self.loop.now_s < self.away_until_s or (self.trouble and self.chance.random() < 0.01):
            raise Unavailable("unavailable", "away")


def journal_of(store: MemorySessionStore, session_id: str) -> list[Entry]:
    record = store._named("m", session_id)
    return (
        [] if record is None else [entry for _, entry in sorted(store.journals[record.key].items())]
    )
