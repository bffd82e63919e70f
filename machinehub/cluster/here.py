"""What is asked of a session that this node has, or may claim: by its own edge, and by others'.

Decides: what `LocalSessions` is to answer only for sessions of this node's, which it cannot know
where nothing has to be loaded. Everything here raises `OwnedElsewhere` when another living node has
the session, and `Moving` while it is being handed over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from machinehub.cluster import wire
from machinehub.cluster.loglines import wired
from machinehub.errors import Moving, OwnedElsewhere
from machinehub.principal import Principal, Standing
from machinehub.session.port import Visitor

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.ids import MachineId, NodeId, SessionId
    from machinehub.logs import MachineLogs
    from machinehub.session.messages import Presence, Snapshot
    from machinehub.session.port import Address, Recomputed, Summary
    from machinehub.session.run.local import LocalSessions
    from machinehub.store.sessions import SessionStore


class Here:
    def __init__(
        self, local: LocalSessions, store: SessionStore, logs: MachineLogs, node: NodeId
    ) -> None:
        self.local = local
        self._store = store
        self._logs = logs
        self._node = node
        self.on_machine_closed: Callable[[MachineId], None] = lambda _machine: None
        """Hears of machines that another node deletes."""
        self.is_leaving = False
        """Whether this node hands its sessions over: it takes up no more."""

    def check_taking_up(self, address: Address) -> None:
        """Raises `Moving` when the session would have to be taken up, and this node is leaving."""
        if self.is_leaving and not self.local.is_in_memory(address):
            raise Moving

    async def check_mine(self, address: Address) -> None:
        """Raises `OwnedElsewhere`, `NotFound`. One that no node has is anybody's."""
        if self.local.is_in_memory(address):
            return
        owner = await self._store.owner(address.machine_id, address.session_id)
        if owner not in (None, self._node):
            raise OwnedElsewhere(owner)

    async def claim(self, address: Address) -> None:
        """Raises `OwnedElsewhere`, `NotFound`."""
        self.check_taking_up(address)
        if not self.local.is_in_memory(address):
            await self._store.claim(address.machine_id, address.session_id)

    async def members(self, address: Address) -> Presence:
        await self.check_mine(address)
        return await self.local.members(address)

    async def describe(self, address: Address, visitor: Visitor, metadata: bytes) -> Presence:
        await self.check_mine(address)
        return await self.local.describe(address, visitor, metadata)

    async def inspect(self, address: Address) -> tuple[Summary, Snapshot]:
        self.check_taking_up(address)
        return await self.local.inspect(address)

    async def replay(self, address: Address, seq: Any) -> Recomputed:
        await self.check_mine(address)
        return await self.local.replay(address, seq)

    async def delete(self, address: Address) -> None:
        await self.claim(address)
        await self.local.delete(address)

    async def restart(self, address: Address) -> Snapshot:
        await self.claim(address)
        return await self.local.restart(address)

    def about(self, machine_id: MachineId, sessions: list[SessionId]) -> list[wire.Known]:
        found = []
        for session_id in sessions:
            session = self.local.registry.find(machine_id, session_id)
            if session is None:
                continue
            connections = self.local.crowds.connections(session)
            live = self.local.placement.is_on_worker(session)
            found.append(wire.Known(session_id, connections, live, session.finished))
        return found

    async def close_machine(self, machine_id: MachineId) -> None:
        """Nothing of the machine's sessions is written any more when this returns."""
        self.local.deletions.close_machine(machine_id)
        await self.local.journal.drained()

    async def do(self, ask: wire.Ask) -> Any:
        """What another node asks."""
        match ask:
            case wire.Send(address, who, event, event_id, if_match):
                self.check_taking_up(address)
                visitor = visitor_of(who)
                return await self.local.send(
                    address, event, visitor, event_id=event_id, if_match=if_match
                )
            case wire.Read(address, who, at):
                self.check_taking_up(address)
                return await self.local.read(address, visitor_of(who), at)
            case wire.Create(address, who, given):
                self.check_taking_up(address)
                return await self.local.create(address, visitor_of(who), given)
            case wire.Wait(address, who, condition):
                self.check_taking_up(address)
                return await self.local.wait(address, visitor_of(who), condition)
            case wire.Members(address):
                return await self.members(address)
            case wire.Describe(address, who, metadata):
                return await self.describe(address, visitor_of(who), metadata)
            case wire.Inspect(address):
                return await self.inspect(address)
            case wire.ReplayAgain(address, seq):
                return await self.replay(address, seq)
            case wire.Delete(address):
                return await self.delete(address)
            case wire.AnswerRequest(address, effect, answer, how, key, is_last):
                self.check_taking_up(address)
                return await self.local.answer(
                    address, effect, answer, how, key=key, is_last=is_last
                )
            case wire.Restart(address):
                return await self.restart(address)
        return await self._do_of_machine(ask)

    async def _do_of_machine(self, ask: wire.Ask) -> Any:
        match ask:
            case wire.About(machine_id, sessions):
                return self.about(machine_id, sessions)
            case wire.CloseMachine(machine_id):
                self.on_machine_closed(machine_id)
                return await self.close_machine(machine_id)
            case wire.ReopenMachine(machine_id):
                return self.local.registry.reopen_machine(machine_id)
            case wire.VersionsInUse(machine_id):
                return await self.local.versions_in_use(machine_id)
            case wire.Busiest(count):
                return await self.local.busiest(count)
            case wire.Logs(machine_id, count):
                return [wired(each) for each in self._logs.last(machine_id, count)]
        raise AssertionError(ask)


def visitor_of(who: wire.Who) -> Visitor:
    """Whom another node's edge let in: what they may do was looked at there."""
    standing = Standing.ANONYMOUS if who.is_counted else Standing.LOCAL
    return Visitor(Principal(standing), None, who.identity)
