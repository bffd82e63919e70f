"""Deletion: sessions, and all of a machine's, go out of memory at once and out of the database in
order.

Decides: that a session which begins under the name of one that is being deleted waits for the end
of that.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from machinehub.errors import NotFound, Unavailable
from machinehub.model import SessionDelete
from machinehub.session.messages import Ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.errors import HubError
    from machinehub.ids import MachineId, SessionId, SessionKey
    from machinehub.model import Successor
    from machinehub.session.decide.session import Session
    from machinehub.session.run.journal import Journal
    from machinehub.session.run.presence_events import PresenceEvents
    from machinehub.session.run.registry import Registry
    from machinehub.store.sessions import SessionStore

DELETED: Final = NotFound("no_such_session", "the session was deleted")
RESTARTED: Final = Unavailable("unavailable", "the session is started anew just now; try again")


class Deletions:
    """`forget` takes a session out of memory, and tells whoever is connected why; `ended` hears of
    those that are in the database no more.
    """

    def __init__(
        self,
        registry: Registry,
        store: SessionStore,
        journal: Journal,
        presence_events: PresenceEvents,
        *,
        forget: Callable[[Session, HubError, Ending], None],
        ended: Callable[[SessionKey], None],
    ) -> None:
        self._registry = registry
        self._store = store
        self._journal = journal
        self._presence_events = presence_events
        self._forget = forget
        self._ended = ended
        self._under_way: dict[tuple[MachineId, SessionId], asyncio.Future[None]] = {}

    async def settled(self, machine_id: MachineId, session_id: SessionId) -> None:
        """Returns when no session of this name is being deleted."""
        if deleting := self._under_way.get((machine_id, session_id)):
            await asyncio.wait([deleting])

    async def delete(
        self,
        machine_id: MachineId,
        session_id: SessionId,
        *,
        successor: Successor | None = None,
    ) -> None:
        """Deletes a session and everything that is kept of it. Raises `NotFound`, `Unavailable`.

        A `successor` takes its place in the same transaction: who comes meanwhile waits for that,
        and who was there is told to come again.
        """
        name = machine_id, session_id
        session = self._registry.find(machine_id, session_id)
        if session is not None and session.started:
            key = session.record.key
        else:
            key = (await self._store.record(machine_id, session_id)).key
        self._presence_events.forget(key)
        deleting = asyncio.ensure_future(self._journal.delete(SessionDelete(key, successor)))
        self._under_way[name] = deleting
        session = self._registry.find(machine_id, session_id)
        if session is not None:
            if successor is None:
                self._forget(session, DELETED, Ending.DELETED)
            else:
                self._forget(session, RESTARTED, Ending.RESTARTED)
        try:
            await asyncio.shield(deleting)
            self._ended(key)
        finally:
            if self._under_way.get(name) is deleting:
                del self._under_way[name]

    def close_machine(self, machine_id: MachineId) -> None:
        """All its sessions leave memory, and no new one begins."""
        gone = NotFound("no_such_session", "the machine was deleted")
        for session in self._registry.close_machine(machine_id):
            self._forget(session, gone, Ending.DELETED)

    async def delete_machine(self, machine_id: MachineId) -> None:
        """Deletes all its sessions, and lets no new one begin. Raises `Unavailable`."""
        self.close_machine(machine_id)
        try:
            # Some at a time: others' events are committed in between.
            while keys := await self._store.keys_of(machine_id):
                await asyncio.gather(*(self._journal.delete(SessionDelete(key)) for key in keys))
                for key in keys:
                    self._ended(key)
        except Unavailable:
            self._registry.reopen_machine(machine_id)
            raise
