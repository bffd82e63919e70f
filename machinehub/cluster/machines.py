"""What other nodes did to machines, as the database says: messages about it may be lost, and a node
that was about to finish something may have ended.

Decides: whose clients have to come again because a machine became private, and when a machine that
another node began to delete is open again after all.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final, Protocol

from machinehub.errors import NotFound, Unavailable
from machinehub.session.messages import Closed, Ending
from machinehub.tasks import Tasks, look_on

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from machinehub.cluster.subscription import ClusterSubscription
    from machinehub.ids import MachineId
    from machinehub.model import Machine

log = logging.getLogger("machinehub.cluster")

LOOK_S: Final = 2.0
DELETED_S: Final = 60.0
"""How long another node may take to delete a machine: the database is asked then, and again."""
PRIVATE: Final = "the machine is private now"


class MachineTable(Protocol):
    """The machines, in the database (`store/store.py`)."""

    async def machine(self, name: str, *, everywhere: bool = False) -> Machine:
        """Raises `NotFound`, `Unavailable`."""
        ...

    async def private_among(self, machines: Collection[MachineId]) -> set[MachineId]:
        """Raises `Unavailable`."""
        ...


class Machines:
    def __init__(
        self,
        table: MachineTable,
        clients: Callable[[], Collection[ClusterSubscription]],
        changed: Callable[[MachineId], None],
        reopen: Callable[[MachineId], None],
    ) -> None:
        """`changed` hears that something about a machine is to be looked up anew, `reopen` that
        sessions of it may begin.
        """
        self._table = table
        self._clients = clients
        self._changed = changed
        self._reopen = reopen
        self._public: set[MachineId] = set()
        """Machines with clients here that were public when it was looked last."""
        self._tasks = Tasks()

    def start(self) -> None:
        self._tasks.spawn(look_on("machines", LOOK_S, self.look, log, logging.DEBUG))

    def stop(self) -> None:
        self._tasks.stop()

    async def look(self) -> None:
        """Whether machines became private that clients of this node use."""
        there = {client.address.machine_id for client in self._clients()}
        private = await self._table.private_among(there) if there else set()
        for machine in private & self._public:
            self._changed(machine)
            self.send_away(machine)
        self._public = there - private

    def send_away(self, machine: MachineId) -> None:
        """Clients of this node have to come again, and show who they are."""
        for client in [each for each in self._clients() if each.address.machine_id == machine]:
            client.receive(Closed(Ending.RESTARTED, PRIVATE))

    def closed(self, machine: MachineId) -> None:
        """Another node deletes a machine, and may end before it has."""
        self._tasks.spawn(self._look_after(machine))

    async def _look_after(self, machine: MachineId) -> None:
        while True:
            await asyncio.sleep(DELETED_S)
            with contextlib.suppress(Unavailable):
                try:
                    await self._table.machine(machine, everywhere=True)
                except NotFound:
                    return
                self._reopen(machine)
                return
