"""The session port where several hubs share a database: whatever is asked of a session is asked of
the node that has it.

Decides: which node that is. A session in this node's memory is here; else it is where it was found
last, else where `placing.py` says. A node that is asked for a session which another has says so;
the claim in the database has the last word.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final, TypeVar

from machinehub.cluster import wire
from machinehub.cluster.links import LinkLost
from machinehub.cluster.placing import place
from machinehub.cluster.subscription import LOST, PATIENCE_S, ClusterSubscription
from machinehub.errors import HubError, Moving, OwnedElsewhere, Unavailable
from machinehub.ids import EventId
from machinehub.session.decide.events import check_event, check_input
from machinehub.session.decide.identity import UNSHOWN
from machinehub.session.messages import Closed, Ending

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from machinehub.clock import Clock, Entropy
    from machinehub.cluster.here import Here
    from machinehub.cluster.membership import Membership
    from machinehub.cluster.remote import Remote
    from machinehub.effect import Conclusion, EffectRecord
    from machinehub.ids import MachineId, NodeId, Seq, SessionId, SessionKey
    from machinehub.limits import Limits
    from machinehub.model import Entry, Fault
    from machinehub.session.decide.conditions import Condition
    from machinehub.session.messages import Listener, Presence, Snapshot
    from machinehub.session.port import (
        Address,
        Answered,
        Busy,
        Persisted,
        Place,
        Recomputed,
        Subscription,
        Summary,
        Visitor,
    )
    from sandbox.protocol.ids import EffectId, TimerId

T = TypeVar("T")
PAUSE_S: Final = 0.01
PAUSE_S_MAX: Final = 0.2
OTHERS_S: Final = 2.0
"""How long other nodes are waited for where an answer without theirs will do."""
OWNERS_REMEMBERED: Final = 50_000


class ClusterSessions:
    """`Sessions` (session/port.py)."""

    def __init__(
        self,
        here: Here,
        remote: Remote,
        membership: Membership,
        clock: Clock,
        entropy: Entropy,
        limits: Limits,
    ) -> None:
        self._here = here
        self._local = here.local
        self._remote = remote
        self._membership = membership
        self._me = membership.node
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._owners: OrderedDict[tuple[MachineId, SessionId], NodeId] = OrderedDict()
        """Where sessions were found that are not where they should be."""
        self.clients: set[ClusterSubscription] = set()
        """Everybody who listens by this node, wherever their sessions are."""
        self._listening_here: dict[Listener, ClusterSubscription] = {}
        """By what is among a session's listeners."""

    # --- finding the node -------------------------------------------------------------------------

    def where(self, address: Address) -> NodeId:
        """The node to ask for a session."""
        if self._local.is_in_memory(address):
            return self._me
        name = address.machine_id, address.session_id
        known = self._owners.get(name)
        if known is not None and self._membership.is_alive(known):
            return known
        return place(self._membership.capacities, *name) or self._me

    async def _at_owner(
        self,
        address: Address,
        here: Callable[[], Awaitable[T]],
        there: Callable[[NodeId], Awaitable[T]],
        *,
        again: bool = True,
    ) -> T:
        """Does something where the session is. `again`: also when it may have been done already,
        by a node that is gone now.
        """
        give_up_at_s, pause_s = self._clock.monotonic_s() + PATIENCE_S, PAUSE_S
        while True:
            node = self.where(address)
            waits, began_s = True, self._clock.monotonic_s()
            try:
                return await (here() if node == self._me else there(node))
            except OwnedElsewhere as error:
                self._found(address, error.owner)
                # A dead one's sessions are free once all others know that it is.
                waits = error.owner in (node, self._me) or not self._membership.is_alive(
                    error.owner
                )
            except Moving:
                self._owners.pop((address.machine_id, address.session_id), None)
            except LinkLost:
                self._owners.pop((address.machine_id, address.session_id), None)
                if not again:
                    raise Unavailable(
                        "unavailable", "another node was lost meanwhile; look whether it was done"
                    ) from None
            now_s = self._clock.monotonic_s()
            if now_s - began_s > PATIENCE_S / 2:  # it was being done, and is to be done anew
                give_up_at_s, pause_s = now_s + PATIENCE_S, PAUSE_S
            if now_s > give_up_at_s:
                raise Unavailable("unavailable", LOST)
            if waits:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def _found(self, address: Address, owner: NodeId) -> None:
        name = address.machine_id, address.session_id
        self._owners[name] = owner
        self._owners.move_to_end(name)
        if len(self._owners) > OWNERS_REMEMBERED:
            self._owners.popitem(last=False)

    async def _ask(
        self,
        address: Address,
        here: Callable[[], Awaitable[T]],
        ask: wire.Ask,
        *,
        again: bool = True,
    ) -> T:
        async def there(node: NodeId) -> T:
            answer: T = await self._remote.ask(node, ask)
            return answer

        return await self._at_owner(address, here, there, again=again)

    async def _ask_others(self, ask: wire.Ask) -> list[Any]:
        """What the other nodes answer, those that do within a while."""

        answers: list[Any] = []

        async def one(node: NodeId) -> None:
            with contextlib.suppress(HubError, LinkLost, TimeoutError):
                async with asyncio.timeout(OTHERS_S):
                    answers.append(await self._remote.ask(node, ask))

        await asyncio.gather(*(one(node) for node in self._membership.others))
        return answers

    def _who(self, address: Address, visitor: Visitor) -> wire.Who:
        crowds = self._local.crowds
        identity = crowds.identify(address.machine_id, address.session_id, visitor)
        return wire.who_of(identity, is_counted=visitor.principal.is_counted)

    # --- listening --------------------------------------------------------------------------------

    async def subscribe(
        self,
        address: Address,
        listener: Listener,
        visitor: Visitor,
        *,
        given: bytes | None = None,
        emitted_after: Seq | None = None,
        inputs: bool = False,
    ) -> Subscription:
        self._check_given(given)
        who = self._who(address, visitor)
        client = ClusterSubscription(
            address,
            listener,
            visitor._replace(identity=who.identity),
            who,
            self._limits,
            number=self._remote.new_number(),
            inputs=inputs,
            remote=self._remote,
            clock=self._clock,
            find=self._find,
            closed=self.clients.discard,
        )
        await self._let_in(client, given, emitted_after)
        if not client.is_closed:
            self.clients.add(client)
        if client.has_moved:
            client.look_again()
        return client

    async def _find(self, client: ClusterSubscription) -> None:
        """Wherever the client's session is now."""
        self._remote.detach(client)
        client.node = None
        await self._let_in(client, None, client.seq)

    async def _let_in(
        self, client: ClusterSubscription, given: bytes | None, emitted_after: Seq | None
    ) -> None:
        address = client.address
        # Somebody who was in already hears by the client what is new.
        listener: Listener = client if client.is_known else client.listener

        async def here() -> None:
            client.has_moved = False
            self._here.check_taking_up(address)
            local = await self._local.subscribe(
                address,
                listener,
                client.visitor,
                given=given,
                emitted_after=emitted_after,
                inputs=client.inputs,
            )
            if client.is_closed:
                local.close()
                return
            self._listening_here[listener] = client
            client.listens_here(_Leaving(local, listener, self._listening_here))

        async def there(node: NodeId) -> None:
            client.node, client.has_moved = node, False
            try:
                limits = await self._remote.listen(
                    node,
                    client,
                    address,
                    client.who,
                    given=given,
                    emitted_after=emitted_after,
                    inputs=client.inputs,
                )
            except BaseException:
                client.node = None
                raise
            client.listens_at(node, limits)

        await self._at_owner(address, here, there)

    def moved(self, listeners: list[Listener]) -> None:
        """These listened here to a session that another node has, or will have."""
        for listener in listeners:
            client = self._listening_here.pop(listener, None)
            if client is not None:
                client.look_again()

    def say_goodbye(self, reason: str) -> None:
        """Ends what clients of this node have elsewhere."""
        for client in [client for client in self.clients if client.local is None]:
            client.receive(Closed(Ending.GOING_AWAY, reason))

    # --- using a session --------------------------------------------------------------------------

    async def read(self, address: Address, visitor: Visitor, at: Seq | None = None) -> Snapshot:
        async def here() -> Snapshot:
            self._here.check_taking_up(address)
            return await self._local.read(address, visitor, at)

        return await self._ask(address, here, wire.Read(address, self._who(address, visitor), at))

    async def create(self, address: Address, visitor: Visitor, given: bytes | None) -> Snapshot:
        self._check_given(given)
        ask = wire.Create(address, self._who(address, visitor), given)

        async def here() -> Snapshot:
            self._here.check_taking_up(address)
            return await self._local.create(address, visitor, given)

        return await self._ask(address, here, ask, again=False)

    async def send(
        self,
        address: Address,
        event: bytes,
        visitor: Visitor,
        *,
        event_id: EventId | None = None,
        if_match: Seq | None = None,
    ) -> Answered:
        if self.where(address) == self._me:
            with contextlib.suppress(OwnedElsewhere, Moving):
                self._here.check_taking_up(address)
                return await self._local.send(
                    address, event, visitor, event_id=event_id, if_match=if_match
                )
        return await self._send_there(address, event, visitor, event_id, if_match)

    async def _send_there(
        self,
        address: Address,
        event: bytes,
        visitor: Visitor,
        event_id: EventId | None,
        if_match: Seq | None,
    ) -> Answered:
        limits, principal = self._limits, visitor.principal
        type_ = check_event(event, bytes_max=limits.event_bytes, depth_max=limits.event_depth)
        if principal.allowance is not None:
            principal.allowance.take_event(self._clock.monotonic_s())
        principal.must_send(type_)
        who = self._who(address, visitor)
        # With an id of ours it can be sent again, should the node be lost meanwhile.
        sent_id = event_id or EventId(f"{UNSHOWN}{self._entropy.connection_id()}")
        ask = wire.Send(address, who, event, sent_id, if_match)
        answered: Answered = await self._ask(address, lambda: self._here.do(ask), ask)
        answered.settled.event_id = event_id
        return answered

    async def wait(self, address: Address, visitor: Visitor, condition: Condition) -> Snapshot:
        async def here() -> Snapshot:
            self._here.check_taking_up(address)
            return await self._local.wait(address, visitor, condition)

        ask = wire.Wait(address, self._who(address, visitor), condition)
        return await self._ask(address, here, ask)

    async def members(self, address: Address) -> Presence:
        return await self._ask(address, lambda: self._here.members(address), wire.Members(address))

    async def describe(self, address: Address, visitor: Visitor, metadata: bytes) -> Presence:
        return await self._ask(
            address,
            lambda: self._here.describe(address, visitor, metadata),
            wire.Describe(address, self._who(address, visitor), metadata),
        )

    def _check_given(self, given: bytes | None) -> None:
        if given is not None:
            limits = self._limits
            check_input(given, bytes_max=limits.input_bytes, depth_max=limits.event_depth)

    # --- looking after sessions -------------------------------------------------------------------

    async def inspect(self, address: Address, at: Seq | None = None) -> tuple[Summary, Snapshot]:
        if at is not None:
            return await self._local.inspect(address, at)
        return await self._ask(address, lambda: self._here.inspect(address), wire.Inspect(address))

    async def timers(self, address: Address) -> list[tuple[TimerId, int]]:
        return await self._local.timers(address)

    async def summaries(
        self, machine_id: MachineId, *, after: SessionId | None, limit: int
    ) -> list[Summary]:
        found = await self._local.summaries(machine_id, after=after, limit=limit)
        ask = wire.About(machine_id, [each.session_id for each in found])
        known = {each.session_id: each for about in await self._ask_others(ask) for each in about}
        return [_with(each, known.get(each.session_id)) for each in found]

    async def journal_of(
        self, address: Address, *, after: tuple[Seq, int], limit: int
    ) -> list[Entry]:
        return await self._local.journal_of(address, after=after, limit=limit)

    async def persisted(self, address: Address) -> Persisted:
        return await self._local.persisted(address)

    async def place_of(self, address: Address, client: bytes) -> Seq | None:
        return await self._local.place_of(address, client)

    async def keep_places(self, places: Collection[Place]) -> None:
        await self._local.keep_places(places)

    async def fork(
        self, address: Address, at: Seq | None, session_id: SessionId, *, sends: bool = False
    ) -> Summary:
        return await self._local.fork(address, at, session_id, sends=sends)

    async def effects(
        self, address: Address, *, before: EffectId | None, limit: int
    ) -> list[EffectRecord]:
        return await self._local.effects(address, before=before, limit=limit)

    async def answer(
        self,
        address: Address,
        effect: EffectId,
        answer: bytes,
        how: Conclusion,
        *,
        key: SessionKey | None = None,
        is_last: bool = False,
    ) -> Fault | None:
        ask = wire.AnswerRequest(address, effect, answer, how, key, is_last)
        fault: Fault | None = await self._ask(address, lambda: self._here.do(ask), ask)
        return fault

    async def replay(self, address: Address, seq: Seq | None) -> Recomputed:
        ask = wire.ReplayAgain(address, seq)
        return await self._ask(address, lambda: self._here.replay(address, seq), ask)

    async def delete(self, address: Address) -> None:
        ask = wire.Delete(address)
        await self._ask(address, lambda: self._here.delete(address), ask, again=False)

    async def restart(self, address: Address) -> Snapshot:
        ask = wire.Restart(address)
        return await self._ask(address, lambda: self._here.restart(address), ask, again=False)

    async def delete_machine(self, machine_id: MachineId) -> None:
        others = self._membership.others
        close = wire.CloseMachine(machine_id)
        try:
            if len(await self._ask_others(close)) < len(others):
                raise Unavailable(
                    "unavailable", "a node that may have its sessions does not answer"
                )
            await self._local.delete_machine(machine_id)
        except Unavailable:
            await self._ask_others(wire.ReopenMachine(machine_id))
            raise

    async def versions_in_use(self, machine_id: MachineId) -> set[int]:
        used = await self._local.versions_in_use(machine_id)
        for theirs in await self._ask_others(wire.VersionsInUse(machine_id)):
            used |= theirs
        return used

    def reconnect(self, machine_id: MachineId, reason: str) -> None:
        self._local.reconnect(machine_id, reason)
        self._membership.tell_others(b"reconnect", machine_id)

    def is_in_memory(self, address: Address) -> bool:
        return self._local.is_in_memory(address)

    def count_in_memory(self, machines: Collection[MachineId]) -> int:
        return self._local.count_in_memory(machines)

    async def busiest(self, count: int) -> list[Busy]:
        found = await self._local.busiest(count)
        for theirs in await self._ask_others(wire.Busiest(count)):
            found += theirs
        return sorted(found, key=lambda each: -each.turns)[:count]


class _Leaving:
    """A local subscription of a client that is forgotten with it."""

    __slots__ = ("_all", "_listener", "_local", "describe", "send")

    def __init__(
        self, local: Subscription, listener: Listener, all_: dict[Listener, ClusterSubscription]
    ) -> None:
        self._local = local
        self._listener = listener
        self._all = all_
        self.send = local.send
        self.describe = local.describe

    @property
    def seq(self) -> Seq:
        return self._local.seq

    @property
    def limits(self) -> Limits:
        return self._local.limits

    def close(self) -> None:
        self._all.pop(self._listener, None)
        self._local.close()


def _with(summary: Summary, known: wire.Known | None) -> Summary:
    if known is None:
        return summary
    finished = summary.finished or known.finished
    return summary._replace(connections=known.connections, live=known.live, finished=finished)
