"""The caller's side: what this node asks of others, and its clients whose sessions are elsewhere.

Decides: who of this node hears what comes from others. What a client does whose session moved is in
`subscription.py`.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec

from machinehub.cluster import messages, wire
from machinehub.cluster.links import LinkLost
from machinehub.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from machinehub.cluster.links import Links
    from machinehub.cluster.subscription import ClusterSubscription
    from machinehub.ids import MachineId, NodeId, Seq
    from machinehub.session.port import Address


class Remote:
    """`CallerHears` (`links.py`)."""

    def __init__(self, links: Links, *, new_id: Callable[[], str]) -> None:
        self._links = links
        self._new_id = new_id
        self._numbers = count(1)
        self._calls: dict[int, tuple[NodeId, asyncio.Future[msgspec.Raw]]] = {}
        self._clients: dict[int, ClusterSubscription] = {}
        """Those that listen, or are about to, at another node."""
        self.on_line: Callable[[MachineId, wire.Line], None] = lambda _machine, _line: None

    @property
    def clients(self) -> list[ClusterSubscription]:
        return list(self._clients.values())

    def new_id(self) -> str:
        return self._new_id()

    def new_number(self) -> int:
        return next(self._numbers)

    async def ask(self, node: NodeId, ask: wire.Ask) -> Any:
        """What another node answers. Raises what it raises, and `LinkLost`."""
        call = self.new_number()
        raw = await self._call(node, call, wire.Call(call, ask))
        return wire.decode_answer(raw, ask)

    async def listen(
        self,
        node: NodeId,
        client: ClusterSubscription,
        address: Address,
        who: wire.Who,
        *,
        given: bytes | None,
        emitted_after: Seq | None,
        inputs: bool,
    ) -> Limits:
        """The client listens at that node, and has heard the snapshot, when this returns what the
        session's version allows. Raises as `ask`.
        """
        call = self.new_number()
        self._clients[client.number] = client
        frame = wire.Open(call, client.number, address, who, given, emitted_after, inputs)
        try:
            raw = await self._call(node, call, frame)
        except BaseException:
            self.forget(client, node)
            raise
        return Limits(**msgspec.msgpack.decode(raw))

    def post(self, node: NodeId, frame: wire.ToOwner) -> None:
        self._links.to(node).post(frame)

    def detach(self, client: ClusterSubscription) -> None:
        """The client looks for its session elsewhere: the node knows that already, or is lost."""
        self._clients.pop(client.number, None)

    def forget(self, client: ClusterSubscription, node: NodeId) -> None:
        """The client does not listen there any more."""
        if self._clients.pop(client.number, None) is not None:
            self.post(node, wire.Leave(client.number))

    async def _call(self, node: NodeId, call: int, frame: wire.Call | wire.Open) -> msgspec.Raw:
        answered: asyncio.Future[msgspec.Raw] = asyncio.get_running_loop().create_future()
        self._calls[call] = node, answered
        self.post(node, frame)
        try:
            return await answered
        except asyncio.CancelledError:
            self.post(node, wire.Cancel(call))
            raise
        finally:
            self._calls.pop(call, None)

    # --- what comes back --------------------------------------------------------------------------

    def told(self, node: NodeId, frame: wire.ToEdge) -> None:
        match frame:
            case wire.Told(numbers, wired):
                message = messages.from_wire(wired)
                for client in self._at(node, numbers):
                    client.receive(message)
            case wire.Answer(call, answer):
                if (pending := self._calls.get(call)) and not pending[1].done():
                    pending[1].set_result(answer)
            case wire.Failed(call, trouble):
                if (pending := self._calls.get(call)) and not pending[1].done():
                    pending[1].set_exception(wire.error_from(trouble))
            case wire.Refused(number, event_id, trouble):
                for client in self._at(node, [number]):
                    client.refused(event_id, wire.error_from(trouble))
            case wire.Moved(numbers):
                for client in self._at(node, numbers):
                    client.look_again()
            case wire.Logged(machine_id, line):
                self.on_line(machine_id, line)

    def _at(self, node: NodeId, numbers: list[int]) -> Iterator[ClusterSubscription]:
        """The clients of these numbers that listen there."""
        for number in numbers:
            client = self._clients.get(number)
            if client is not None and client.node == node:
                yield client

    def lost(self, node: NodeId) -> None:
        for of, answered in list(self._calls.values()):
            if of == node and not answered.done():
                answered.set_exception(LinkLost())
        for client in self.clients:
            if client.node == node:
                client.look_again()
