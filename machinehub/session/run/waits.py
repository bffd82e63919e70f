"""Requests that wait for something of a session: its next turn, a condition. They end when the hub
stops.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from machinehub.errors import Moving, PreconditionFailed, Unavailable
from machinehub.session.run.publisher import snapshot_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from weakref import WeakSet

    from machinehub.session.decide.session import Session
    from machinehub.session.messages import Snapshot
    from machinehub.session.run.publisher import Publisher


class Waits:
    """At most `per_session` requests wait for one session."""

    def __init__(self, publisher: Publisher, *, per_session: int, moving: WeakSet[Session]) -> None:
        self._moving = moving
        self._publisher = publisher
        self._per_session = per_session
        self._waits: set[asyncio.Future[Any]] = set()

    def new(self) -> asyncio.Future[Any]:
        """A future that also ends when the hub stops."""
        wait: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)
        return wait

    def end(self, reason: str, others: Iterable[asyncio.Future[Any]]) -> None:
        """Everybody who waits, and `others`, are told `unavailable`."""
        for wait in [*self._waits, *others]:
            if not wait.done():
                wait.set_exception(Unavailable("unavailable", reason))
                wait.exception()  # nobody may be waiting

    async def until(self, session: Session, holds: Callable[[bytes], bool]) -> Snapshot:
        """The first snapshot, from now on, on which `holds`.

        Raises `PreconditionFailed` when the session ends without it, and `Moving`.
        """
        watchers = self._publisher.audience(session).watchers
        if len(watchers) >= self._per_session:
            raise Unavailable(
                "connections_exceeded", f"at most {self._per_session} requests wait for a session"
            )
        found: asyncio.Future[Snapshot] = self.new()

        def look() -> None:
            # As each turn settles, not when a task wakes up: later turns may have come by then.
            if found.done():
                return
            if holds(session.snapshot):
                found.set_result(snapshot_of(session))
            elif session in self._moving and session.gone:
                found.set_exception(Moving())
            elif session.finished or session.gone:
                found.set_exception(
                    PreconditionFailed("session_ended", "the session ended without it")
                )

        watchers.add(look)
        try:
            look()
            return await found
        finally:
            watchers.discard(look)
            if session.gone:
                self._publisher.drop(session)

    async def next_turn(self, session: Session) -> None:
        """Returns after something about the session settled."""
        happened: asyncio.Future[None] = self.new()

        def notice() -> None:
            if not happened.done():
                happened.set_result(None)

        watchers = self._publisher.audience(session).watchers
        watchers.add(notice)
        try:
            await happened
        finally:
            watchers.discard(notice)
