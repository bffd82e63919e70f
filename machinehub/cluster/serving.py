"""The answerer's side: clients of other nodes, who listen to sessions of this one.

A `Relay` stands for each of those clients among a session's listeners. When a link breaks they stay
for a while: the caller comes back under another link, and takes their places, so that nobody seems
to have left.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

import msgspec

from machinehub.cluster import wire
from machinehub.cluster.here import visitor_of
from machinehub.errors import HubError, Moving, Unavailable
from machinehub.session.messages import Closed, Ending
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from machinehub.cluster.here import Here
    from machinehub.cluster.links import Answering
    from machinehub.cluster.loglines import Followed
    from machinehub.ids import NodeId
    from machinehub.session.messages import Message
    from machinehub.session.port import Subscription

log = logging.getLogger("machinehub.cluster")

ORPHANED_S: Final = 3.0
"""How long the clients of a link that broke are waited for."""


class Relay:
    """A client of another node: a listener."""

    __slots__ = ("link", "number", "subscription")

    def __init__(self, link: Answering, number: int) -> None:
        self.link = link
        self.number = number
        self.subscription: Subscription | None = None

    def receive(self, message: Message) -> None:
        if isinstance(message, Closed) and message.why is Ending.GOING_AWAY:
            self.moved()  # this node ends, not theirs
        else:
            self.link.tell(self.number, message)

    def moved(self) -> None:
        self.link.post(wire.Moved([self.number]))


class Serving:
    """`AnswererHears` (`links.py`)."""

    def __init__(self, here: Here, followed: Followed) -> None:
        self._here = here
        self._followed = followed
        self._relays: dict[tuple[NodeId, int], Relay] = {}
        self._opening: dict[tuple[NodeId, int], asyncio.Task[None]] = {}
        self._calls: dict[tuple[Answering, int], asyncio.Task[None]] = {}
        self._tasks = Tasks()
        self._is_stopped = False

    def stop(self) -> None:
        self._is_stopped = True
        self._tasks.stop()
        for task in [*self._opening.values(), *self._calls.values()]:
            task.cancel()

    @property
    def count(self) -> int:
        return len(self._relays)

    def asked(self, link: Answering, frame: wire.ToOwner) -> None:
        if self._is_stopped:
            return  # nobody would end what begins now
        match frame:
            case wire.Event(number, event_id, event):
                self._event(link, number, event_id, event)
            case wire.Call(call, ask):
                self._start(self._calls, (link, call), self._answer(link, call, ask))
            case wire.Open(_, number):
                self._start(self._opening, (link.peer, number), self._open(link, frame))
            case wire.Leave(number):
                self._leave(link, number)
            case wire.Say(number, metadata):
                self._say(link, number, metadata)
            case wire.Follow(machine_id):
                self._followed.follow(link, machine_id)
            case wire.Cancel(call):
                if (task := self._calls.get((link, call))) is not None:
                    task.cancel()

    def _start(
        self, tasks: dict[Any, asyncio.Task[None]], name: Any, work: Coroutine[None, None, None]
    ) -> None:
        if (earlier := tasks.get(name)) is not None:
            earlier.cancel()
        task = tasks[name] = asyncio.ensure_future(work)

        def done(task: asyncio.Task[None]) -> None:
            if tasks.get(name) is task:
                del tasks[name]

        task.add_done_callback(done)

    # --- listening --------------------------------------------------------------------------------

    async def _open(self, link: Answering, frame: wire.Open) -> None:
        name = link.peer, frame.number
        relay = Relay(link, frame.number)
        try:
            self._here.check_taking_up(frame.address)
            relay.subscription = await self._here.local.subscribe(
                frame.address,
                relay,
                visitor_of(frame.who),
                given=frame.given,
                emitted_after=frame.emitted_after,
                inputs=frame.inputs,
                replaces=self._relays.get(name),
            )
        except HubError as error:
            link.post(wire.Failed(frame.call, wire.trouble_of(error)))
            return
        except Exception:
            log.exception("a client of node %s could not be let in", link.peer)
            link.post(wire.Failed(frame.call, wire.trouble_of(_broken())))
            return
        if link.is_open:
            self._relays[name] = relay
            limits = wire.encode(msgspec.structs.asdict(relay.subscription.limits))
            link.post(wire.Answer(frame.call, msgspec.Raw(limits)))
        else:
            relay.subscription.close()

    def _of(self, link: Answering, number: int) -> Subscription | None:
        relay = self._relays.get((link.peer, number))
        return relay.subscription if relay is not None and relay.link is link else None

    def _event(self, link: Answering, number: int, event_id: Any, event: bytes) -> None:
        subscription = self._of(link, number)
        if subscription is None:
            return  # its session moved; the caller was told
        try:
            subscription.send(event, event_id)
        except Moving:
            pass  # it is sent again to the next owner
        except HubError as error:
            link.post(wire.Refused(number, event_id, wire.trouble_of(error)))

    def _say(self, link: Answering, number: int, metadata: bytes) -> None:
        subscription = self._of(link, number)
        if subscription is None:
            return
        try:
            subscription.describe(metadata)
        except HubError as error:
            link.post(wire.Refused(number, None, wire.trouble_of(error)))

    def _leave(self, link: Answering, number: int) -> None:
        if (opening := self._opening.get((link.peer, number))) is not None:
            opening.cancel()
        self._end(self._relays.get((link.peer, number)))

    def _end(self, relay: Relay | None) -> None:
        if relay is None:
            return
        name = relay.link.peer, relay.number
        if self._relays.get(name) is relay:
            del self._relays[name]
        if relay.subscription is not None:
            relay.subscription.close()

    def left(self, link: Answering) -> None:
        for (of, _), task in list(self._calls.items()):
            if of is link:
                task.cancel()
        orphans = [relay for relay in self._relays.values() if relay.link is link]
        if orphans:
            self._tasks.spawn(self._wait_for(orphans))

    async def _wait_for(self, orphans: list[Relay]) -> None:
        await asyncio.sleep(ORPHANED_S)
        for relay in orphans:
            self._end(relay)

    def parted(self, relay: Relay) -> None:
        """The relay's session is another node's."""
        relay.moved()
        self._end(relay)

    # --- asking -----------------------------------------------------------------------------------

    async def _answer(self, link: Answering, call: int, ask: wire.Ask) -> None:
        try:
            answer = wire.encode(wire.answer_to_wire(await self._here.do(ask)))
        except HubError as error:
            link.post(wire.Failed(call, wire.trouble_of(error)))
        except Exception:
            log.exception("what node %s asked could not be answered", link.peer)
            link.post(wire.Failed(call, wire.trouble_of(_broken())))
        else:
            link.post(wire.Answer(call, msgspec.Raw(answer)))


def _broken() -> Unavailable:
    return Unavailable("unavailable", "another node could not answer; try again")
