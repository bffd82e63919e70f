"""Requests that wait for something of a session: its next turn, a condition.

They end when the hub goes away.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from machinehub.errors import PreconditionFailed, Unavailable
from machinehub.session.publish import snapshot_frame

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from machinehub.session.core import Session
    from machinehub.session.frames import Frame
    from machinehub.session.live import LiveSession


class Waits:
    def __init__(self, *, per_session: int) -> None:
        self._per_session = per_session
        self._waits: set[asyncio.Future[Any]] = set()

    def new(self) -> asyncio.Future[Any]:
        """A future that also ends when the hub goes away."""
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

    async def until(self, session: LiveSession, holds: Callable[[bytes], bool]) -> Frame:
        """The first snapshot frame, from now on, on which `holds`.

        Raises `PreconditionFailed` when the session ends without it.
        """
        if len(session.watchers) >= self._per_session:
            raise Unavailable(
                "connections_exceeded", f"at most {self._per_session} requests wait for a session"
            )
        found: asyncio.Future[Frame] = self.new()

        def look(_: Session) -> None:
            # Looked at as each turn settles, not when a task wakes up: later turns may have come by
            # then.
            if found.done():
                return
            if holds(session.snapshot):
                found.set_result(snapshot_frame(session))
            elif session.finished or session.gone:
                found.set_exception(
                    PreconditionFailed("session_ended", "the session ended without it")
                )

        session.watchers.add(look)
        try:
            look(session)
            return await found
        finally:
            session.watchers.discard(look)

    async def next_turn(self, session: LiveSession) -> None:
        """Returns after something about the session settled."""
        happened: asyncio.Future[None] = self.new()

        def notice(_: Session) -> None:
            if not happened.done():
                happened.set_result(None)

        session.watchers.add(notice)
        try:
            await happened
        finally:
            session.watchers.discard(notice)
