"""Handing sessions over to other nodes, where several hubs share a database.

Decides: that a session is at rest, frozen and committed before it is free, and that nothing is
taken in meanwhile: what is sent to it then is sent to its next owner.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from machinehub.errors import Unavailable
from machinehub.session.decide.lifecycle import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.session.decide.session import Session
    from machinehub.session.run.housekeeping import Housekeeper
    from machinehub.session.run.loading import Loader
    from machinehub.session.run.placement import Placement
    from machinehub.session.run.registry import Registry

log = logging.getLogger("machinehub.session")

AT_ONCE: Final = 16
"""Sessions that are handed over side by side."""
LOOK_S: Final = 0.002
RETRY_S: Final = 0.05
REST_S: Final = 5.0
"""A session that does not come to rest within this stays: the next owner replays its journal."""


class Handover:
    def __init__(
        self,
        registry: Registry,
        placement: Placement,
        loader: Loader,
        housekeeper: Housekeeper,
        *,
        has_untold: Callable[[Session], bool],
    ) -> None:
        """`has_untold`: whether members of a session are still to be shown what was committed."""
        self._has_untold = has_untold
        self._registry = registry
        self._placement = placement
        self._loader = loader
        self._housekeeper = housekeeper

    async def hand_over_all(self) -> None:
        """Every session in memory becomes free, one after the other, also those that come meanwhile
        from loads that were under way.
        """
        room = asyncio.Semaphore(AT_ONCE)

        async def one(session: Session) -> None:
            async with room:
                await self.hand_over(session)

        tried: set[Session] = set()
        while sessions := [each for each in self._registry.all if each not in tried]:
            tried.update(sessions)
            await asyncio.gather(*(one(session) for session in sessions))

    async def hand_over(self, session: Session) -> None:
        """Any node may claim the session, which is not in memory here, when this returns."""
        try:
            async with asyncio.timeout(REST_S):
                self._registry.moving.add(session)
                await self._freeze(session)
                await self._release(session)
        except TimeoutError:
            log.warning("session %s does not rest: it is left to be replayed", session.name)
        self._loader.part_with(session)

    async def _release(self, session: Session) -> None:
        while (released := self._loader.release(session)) is not None:
            try:
                await asyncio.shield(released)
            except Unavailable as error:
                log.warning("session %s is not free yet: %s", session.name, error.detail)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _rest(self, session: Session) -> None:
        while not session.gone and not self._is_at_rest(session):
            await asyncio.sleep(LOOK_S)

    def _is_at_rest(self, session: Session) -> bool:
        return self._housekeeper.at_rest(session) and not self._has_untold(session)

    async def _freeze(self, session: Session) -> None:
        while not session.gone:
            await self._rest(session)
            if self._placement.stage(session) is Stage.OFF:
                return
            if self._is_at_rest(session):
                self._placement.freeze(session)
