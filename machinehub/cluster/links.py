"""Links between nodes: whatever a node asks another comes in order and once, or the link breaks.

A link goes from one node (the caller) to another (the answerer), over a bus that may lose, repeat
and reorder packets. Both sides number their packets from 1; a packet that is missing, or silence,
breaks the link: the caller then calls again under a new name, and says everything anew
(`remote.py`). Frames of one turn of the event loop share a packet.

Decides: when a link is broken. Knows nothing of what frames mean. A packet:

    kind (1 byte: D data, R "I do not know that link") | sender (12) | link (12)
    | number (4) | whether the frames go on in the next packet (1) | MessagePack
"""

from __future__ import annotations

import asyncio
import logging
import struct
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from machinehub.cluster import messages, wire
from machinehub.ids import NodeId
from machinehub.tasks import Tasks, look_on

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.cluster.bus import Bus
    from machinehub.session.messages import Message

log = logging.getLogger("machinehub.cluster")

HEAD: Final = struct.Struct(">c12s12sI?")
TO_ANSWERER, TO_CALLER, UNKNOWN, NEWS = b"D", b"A", b"R", b"N"
BEAT_S: Final = 0.5
"""A link that says nothing is shown to live so often."""
SILENT_S: Final = 2.5
"""After so much silence the caller gives a link up."""
FORGOTTEN_S: Final = 6.0
"""After so much the answerer does."""


class LinkLost(Exception):
    """The link broke: nobody knows whether what was asked was done."""


class CallerHears(Protocol):
    """Who hears of what comes to the caller's side of a link."""

    def told(self, node: NodeId, frame: wire.ToEdge) -> None: ...
    def lost(self, node: NodeId) -> None:
        """The link broke: what was asked has to be asked again."""


class AnswererHears(Protocol):
    def asked(self, link: Answering, frame: wire.ToOwner) -> None: ...
    def left(self, link: Answering) -> None:
        """The caller is gone, or has another link by now."""


class _End:
    """One end of a link: numbers what it sends, puts together what it receives."""

    def __init__(self, bus: Bus, me: NodeId, peer: NodeId, name: bytes, kind: bytes) -> None:
        self._bus = bus
        self._me = me.encode()
        self.peer = peer
        self.name = name
        self._kind = kind
        self._sent = 0
        self._expected = 1
        self._parts: list[bytes] = []
        self._frames: list[msgspec.Raw] = []
        self._is_due = False
        self.heard_at_s = self.spoke_at_s = asyncio.get_running_loop().time()
        self.is_open = True

    def post(self, frame: wire.ToOwner | wire.ToEdge) -> None:
        """Raises for a frame that cannot be spelled: whoever posts it is to blame, and nobody
        else's goes with it.
        """
        self._frames.append(msgspec.Raw(wire.encode(frame)))
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def before_flush(self) -> None:
        """The last moment to add frames."""

    def flush(self) -> None:
        self._is_due = False
        self.before_flush()
        frames, self._frames = self._frames, []
        if self.is_open and frames:
            self._send(wire.encode(frames))

    def beat(self) -> None:
        """Shows that the link lives; a packet that was lost before is noticed by it."""
        self.flush()
        self._send(b"")

    def _send(self, data: bytes) -> None:
        self.spoke_at_s = asyncio.get_running_loop().time()
        room = self._bus.packet_bytes_max - HEAD.size
        for start in range(0, max(1, len(data)), room):
            self._sent += 1
            goes_on = start + room < len(data)
            head = HEAD.pack(self._kind, self._me, self.name, self._sent, goes_on)
            self._bus.send(self.peer, head + data[start : start + room])

    def take(self, number: int, goes_on: bool, data: bytes) -> bytes | None:
        """What a packet completes, if it completes something. Raises `LinkLost` for a gap."""
        self.heard_at_s = asyncio.get_running_loop().time()
        if number < self._expected:
            return None  # a copy
        if number > self._expected:
            raise LinkLost
        self._expected += 1
        if goes_on or self._parts:
            self._parts.append(data)
            if goes_on:
                return None
            data, self._parts = b"".join(self._parts), []
        return data or None


class Calling(_End):
    """The caller's end."""


class Answering(_End):
    """The answerer's end. Messages for several clients that come one after the other are sent once,
    with the clients' numbers.
    """

    def __init__(self, bus: Bus, me: NodeId, peer: NodeId, name: bytes) -> None:
        super().__init__(bus, me, peer, name, TO_CALLER)
        self._message: object | None = None
        self._wired: messages.MessageFrame | None = None
        self._numbers: list[int] = []

    def tell(self, number: int, message: Message) -> None:
        if message is self._message:
            self._numbers.append(number)
            return
        self._end_message()
        self._message, self._numbers = message, [number]
        self._wired = message.encoded(messages.to_wire)
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self.flush)

    def post(self, frame: wire.ToOwner | wire.ToEdge) -> None:
        self._end_message()
        super().post(frame)

    def before_flush(self) -> None:
        self._end_message()

    def _end_message(self) -> None:
        if self._wired is not None:
            self._frames.append(msgspec.Raw(wire.encode(wire.Told(self._numbers, self._wired))))
            self._message = self._wired = None


class Links:
    """All links of this node. `new_name` makes up names of 12 characters."""

    def __init__(
        self,
        bus: Bus,
        me: NodeId,
        *,
        new_name: Callable[[], str],
        is_alive: Callable[[NodeId], bool],
    ) -> None:
        self._bus = bus
        self._me = me
        self._new_name = new_name
        self._is_alive = is_alive
        self._calling: dict[NodeId, Calling] = {}
        self._answering: dict[NodeId, Answering] = {}
        self._caller: CallerHears
        self._answerer: AnswererHears
        self.on_news: Callable[[NodeId, bytes], None] = lambda _node, _text: None
        self._tasks = Tasks()

    def report_to(self, caller: CallerHears, answerer: AnswererHears) -> None:
        self._caller, self._answerer = caller, answerer

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks.spawn(
            look_on("links", BEAT_S, lambda: self.beat(loop.time()), log, logging.WARNING)
        )

    def stop(self) -> None:
        """What is on its way is sent."""
        for end in [*self._calling.values(), *self._answering.values()]:
            end.flush()
        self._tasks.stop()

    def to(self, node: NodeId) -> Calling:
        """The link that this node calls another by, a new one if there is none."""
        link = self._calling.get(node)
        if link is None:
            name = self._new_name().encode()
            link = Calling(self._bus, self._me, node, name, TO_ANSWERER)
            self._calling[node] = link
        return link

    def spread(self, text: bytes) -> None:
        """Tells every other node, if it is reached."""
        self._bus.spread(HEAD.pack(NEWS, self._me.encode(), b"", 0, False) + text)

    def receive(self, packet: bytes) -> None:
        """From the bus. What is no packet of a living node is passed over."""
        if len(packet) < HEAD.size:
            return
        kind, sender, name, number, goes_on = HEAD.unpack_from(packet)
        node = NodeId(sender.decode("ascii", "replace"))
        data = packet[HEAD.size :]
        try:
            if kind == TO_CALLER:
                self._to_caller(node, name, number, goes_on, data)
            elif kind == UNKNOWN:
                link = self._calling.get(node)
                if link is not None and link.name == name:
                    self.give_up(node)
            elif node != self._me and self._is_alive(node):
                if kind == NEWS:
                    self.on_news(node, data)
                elif kind == TO_ANSWERER:
                    self._to_answerer(node, name, number, goes_on, data)
        except (msgspec.MsgspecError, ValueError) as error:
            log.error("node %s sent what cannot be read: %s", node, error)

    def _to_caller(
        self, node: NodeId, name: bytes, number: int, goes_on: bool, data: bytes
    ) -> None:
        link = self._calling.get(node)
        if link is None or link.name != name:
            return
        try:
            complete = link.take(number, goes_on, data)
        except LinkLost:
            self.give_up(node)
            return
        for frame in wire.decode_to_edge(complete) if complete is not None else ():
            try:
                self._caller.told(node, frame)
            except Exception:  # one client's trouble must not keep it from the others
                log.exception("what node %s said could not be told", node)

    def _to_answerer(
        self, node: NodeId, name: bytes, number: int, goes_on: bool, data: bytes
    ) -> None:
        link = self._answering.get(node)
        if link is None or link.name != name:
            if number != 1:
                self._bus.send(node, HEAD.pack(UNKNOWN, self._me.encode(), name, 0, False))
                return
            if link is not None:
                self._leave(link)
            link = self._answering[node] = Answering(self._bus, self._me, node, name)
        try:
            complete = link.take(number, goes_on, data)
        except LinkLost:
            self._leave(link)
            self._bus.send(node, HEAD.pack(UNKNOWN, self._me.encode(), name, 0, False))
            return
        for frame in wire.decode_to_owner(complete) if complete is not None else ():
            try:
                self._answerer.asked(link, frame)
            except Exception:
                log.exception("what node %s asked could not be done", node)

    def _leave(self, link: Answering) -> None:
        link.is_open = False
        if self._answering.get(link.peer) is link:
            del self._answering[link.peer]
        self._answerer.left(link)

    def give_up(self, node: NodeId) -> None:
        """The link to a node is broken, or the node is dead."""
        link = self._calling.pop(node, None)
        if link is not None:
            link.is_open = False
            self._caller.lost(node)

    def is_gone(self, node: NodeId) -> None:
        """A node is dead: both links with it are over."""
        self.give_up(node)
        link = self._answering.get(node)
        if link is not None:
            self._leave(link)

    def beat(self, now_s: float) -> None:
        for node, link in list(self._calling.items()):
            if now_s - link.heard_at_s > SILENT_S:
                log.warning("node %s does not answer", node)
                self.give_up(node)
            else:
                link.beat()
        for answering in list(self._answering.values()):
            if now_s - answering.heard_at_s > FORGOTTEN_S:
                self._leave(answering)
            else:
                answering.beat()
