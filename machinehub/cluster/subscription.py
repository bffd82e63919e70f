"""One client's way into a session that may be on any node, and move: `Subscription`.

Decides: what a client hears when its session is found elsewhere (only what it does not know yet),
and that each of its events is taken in once: they are kept until it is known what became of them,
and sent again under their ids to whichever node has the session.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

from machinehub.cluster import wire
from machinehub.errors import HubError, Moving, NotFound, Unavailable, fault_of
from machinehub.ids import EventId, Seq
from machinehub.session.decide.events import check_event, check_metadata
from machinehub.session.decide.identity import UNSHOWN
from machinehub.session.messages import Closed, Emitted, Ending, Settled, Snapshot, Update

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from machinehub.clock import Clock
    from machinehub.ids import NodeId
    from machinehub.limits import Limits
    from machinehub.session.messages import Listener, Message
    from machinehub.session.port import Address, Subscription, Visitor

PATIENCE_S: Final = 10.0
"""How long a client waits for a node that has its session, before it is told to try again later."""
LOST: Final = "no node could be reached that has the session; try again"


class Elsewhere(Protocol):
    """The other nodes, as a client needs them (`remote.py`)."""

    def post(self, node: NodeId, frame: wire.ToOwner) -> None: ...
    def forget(self, client: ClusterSubscription, node: NodeId) -> None: ...
    def new_id(self) -> str:
        """For an event whose sender gave none."""
        ...


class ClusterSubscription:
    """`find` lets a client in wherever its session is. A client whose session is on this node is
    a listener there itself; this object stands between only when the session came here later, or is
    elsewhere.
    """

    def __init__(
        self,
        address: Address,
        listener: Listener,
        visitor: Visitor,
        who: wire.Who,
        limits: Limits,
        *,
        number: int,
        inputs: bool,
        remote: Elsewhere,
        clock: Clock,
        find: Callable[[ClusterSubscription], Awaitable[None]],
        closed: Callable[[ClusterSubscription], None],
    ) -> None:
        self.address = address
        self.listener = listener
        self.visitor = visitor
        self.who = who
        self.number = number
        self.inputs = inputs
        """Whether it hears of each input."""
        self._limits = limits
        self._hub_limits = limits
        self._remote = remote
        self._clock = clock
        self._find = find
        self._closed = closed
        self.node: NodeId | None = None
        """The other node where it listens."""
        self.local: Subscription | None = None
        """Where it listens here."""
        self.is_known = False
        """Whether the listener has heard a snapshot."""
        self.has_moved = False
        """Whether the session moved on, or the link broke, while this was being let in."""
        self._seq = Seq(0)
        self._pending: dict[EventId, bytes] = {}
        """Events of which it is not known what became of them."""
        self._metadata: bytes | None = None
        self._looking: asyncio.Task[None] | None = None
        self._looking_since_s = 0.0
        self.is_closed = False

    # --- where it listens -------------------------------------------------------------------------

    def listens_here(self, local: Subscription) -> None:
        self.local, self.node = local, None
        if self.is_known:
            self._say_again(lambda event_id, event: self._send_here(event, event_id))
            if self._metadata is not None:
                self._describe_here(self._metadata)
        self.is_known = True

    def listens_at(self, node: NodeId, limits: Limits) -> None:
        self.local, self.node, self._limits = None, node, limits
        self._say_again(
            lambda event_id, event: self._remote.post(
                node, wire.Event(self.number, event_id, event)
            )
        )
        if self._metadata is not None:
            self._remote.post(node, wire.Say(self.number, self._metadata))
        self.is_known = True

    def _say_again(self, send: Callable[[EventId, bytes], None]) -> None:
        for event_id, event in list(self._pending.items()):
            send(event_id, event)

    def look_again(self) -> None:
        """The session is, or will be, on another node."""
        if self.local is not None:
            self._limits = self.local.limits
            self._seq = max(self._seq, self.local.seq)
        self.local = None
        if self.is_closed:
            return
        if not self.is_known or self._looking is not None:
            self.has_moved = True  # whoever lets it in looks at that
            return
        self.has_moved = False
        self._looking_since_s = self._clock.monotonic_s()
        self._looking = asyncio.ensure_future(self._look())

    async def _look(self) -> None:
        try:
            await self._find(self)
        except NotFound as error:
            self._end(Closed(Ending.DELETED, error.detail))
        except HubError as error:
            self._end(Closed(Ending.UNAVAILABLE, error.detail))
        finally:
            self._looking = None
        if self.has_moved or (self.local is None and self.node is None):
            self.look_again()  # it moved on while this was looking

    def _end(self, closed: Closed) -> None:
        if self.is_closed:
            return
        fault = fault_of(Unavailable("unavailable", closed.detail))
        for event_id in [each for each in self._pending if not each.startswith(UNSHOWN)]:
            self.listener.receive(Settled(event_id, self.seq, changed=False, error=fault))
        self.close()
        self.listener.receive(closed)

    # --- to the client ----------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """From the node that has the session."""
        if self.is_closed:
            return
        if isinstance(message, Update):
            self._seq = message.seq
        elif isinstance(message, Emitted):
            self._seq = max(self._seq, message.seq)
        elif isinstance(message, Settled):
            if not self._settle(message):
                return
        elif isinstance(message, Snapshot):
            # What a member was shown of that moment is not known here.
            is_news = not self.is_known or message.seq != self._seq or message.is_personal
            self._seq = message.seq
            if not is_news:
                return
            if self.is_known:
                message = Update(message.seq, message.state)
        elif isinstance(message, Closed):
            self._end_here(message)
            return
        self.listener.receive(message)

    def _settle(self, message: Settled) -> bool:
        """Whether the client is to hear of it."""
        event_id = message.event_id
        self._seq = max(self._seq, message.seq)
        if event_id is None or event_id.startswith(UNSHOWN):
            self._pending.pop(event_id or EventId(""), None)
            return False
        # What was sent here was not kept; of what was sent to others a second answer may come.
        was_pending = self._pending.pop(event_id, None) is not None
        return was_pending or self.local is not None

    def _end_here(self, message: Closed) -> None:
        self._pending.clear()
        self.close()
        self.listener.receive(message)

    def refused(self, event_id: EventId | None, error: HubError) -> None:
        """An event was not taken in, or what the member said of itself."""
        if event_id is not None and self._pending.pop(event_id, None) is None:
            return
        shown = None if event_id is None or event_id.startswith(UNSHOWN) else event_id
        self.listener.receive(Settled(shown, self.seq, changed=False, error=fault_of(error)))

    # --- `Subscription` ---------------------------------------------------------------------------

    @property
    def seq(self) -> Seq:
        return self._seq if self.local is None else max(self._seq, self.local.seq)

    @property
    def limits(self) -> Limits:
        return self._limits if self.local is None else self.local.limits

    def send(self, event: bytes, event_id: EventId | None) -> None:
        if self.local is not None:
            try:
                self.local.send(event, event_id)
            except Moving:
                pass
            else:
                return
        else:
            self._check(event)
        if len(self._pending) >= self._hub_limits.pending_per_session or self._waits_too_long():
            raise Unavailable("unavailable", LOST)
        kept = event_id if event_id is not None else EventId(f"{UNSHOWN}{self._remote.new_id()}")
        if kept in self._pending:
            return  # a copy, which is answered with the first one
        self._pending[kept] = event
        if self.node is not None and self._looking is None:
            self._remote.post(self.node, wire.Event(self.number, kept, event))

    def _check(self, event: bytes) -> None:
        """As `Intake.check` does, for a session that is elsewhere."""
        principal, limits = self.visitor.principal, self._limits
        if principal.allowance is not None:
            principal.allowance.take_event(self._clock.monotonic_s())
        principal.must_send(
            check_event(event, bytes_max=limits.event_bytes, depth_max=limits.event_depth)
        )

    def _waits_too_long(self) -> bool:
        waits_s = self._clock.monotonic_s() - self._looking_since_s
        return self._looking is not None and waits_s > PATIENCE_S / 2

    def _send_here(self, event: bytes, event_id: EventId) -> None:
        assert self.local is not None
        try:
            self.local.send(event, event_id)
        except Moving:
            pass
        except HubError as error:
            self.refused(event_id, error)

    def describe(self, metadata: bytes) -> None:
        limits = self._hub_limits
        if self.local is not None:
            self.local.describe(metadata)
        else:
            check_metadata(
                metadata, bytes_max=limits.presence_metadata_bytes, depth_max=limits.event_depth
            )
            if self.node is not None and self._looking is None:
                self._remote.post(self.node, wire.Say(self.number, metadata))
        self._metadata = metadata

    def _describe_here(self, metadata: bytes) -> None:
        assert self.local is not None
        try:
            self.local.describe(metadata)
        except HubError as error:
            self.refused(None, error)

    def close(self) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        self._closed(self)
        if self._looking is not None:
            self._looking.cancel()
        if self.local is not None:
            self.local.close()
        if self.node is not None:
            self._remote.forget(self, self.node)
