"""The hub's own protocol as bytes: messages of the session port, encoded as the JSON of
docs/protocol.md.

WebSockets and server-sent events carry the same JSON. `to_frame` adds the WebSocket header of an
unmasked, unfragmented text message (RFC 6455, section 5.2), which is the same for every client, so
that a broadcast is encoded once whoever hears it (`Message.encoded`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from machinehub.edge.websocket_frames import text_frame
from machinehub.session.messages import Emitted, Message, Presence, Settled, Snapshot, Update

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.model import Fault

SUBPROTOCOL: Final = "machinehub.v1"
WHOLE_BYTES_MAX: Final = 2048
"""As long as the whole list of members is this short it goes along with what changed, for a client
that keeps no list.
"""

quote: Final = msgspec.json.Encoder().encode


def to_json(message: Message) -> bytes:
    """The frame of a message."""
    return _ENCODERS[type(message)](message)


def to_frame(message: Message) -> bytes:
    """The same as a whole WebSocket frame."""
    return text_frame(message.encoded(to_json))


def error_json(code: str, detail: str) -> bytes:
    """An error that is not an event's."""
    return quote({"type": "error", "code": code, "detail": detail})


PONG: Final = text_frame(b'{"type":"pong"}')


def members_json(presence: Presence) -> bytes:
    """`{"count", "members"}`"""
    return b'{"count":%d,"members":%b}' % (presence.count, quote(presence.members))


def fault_json(fault: Fault) -> bytes:
    """`{"code", "detail"}`, and `reason` where there is one."""
    told = {"code": fault.code, "detail": fault.detail}
    if fault.reason is not None:
        told["reason"] = fault.reason
    return quote(told)


def _snapshot(message: Snapshot) -> bytes:
    connection = b""
    if message.connection_id is not None:
        connection = b',"connection":{"id":%b,"count":%d}' % (
            quote(message.connection_id),
            message.count,
        )
    return b'{"type":"snapshot","seq":%d,"version":%d,"snapshot":%b%b}' % (
        message.seq,
        message.version,
        message.state,
        connection,
    )


def _update(message: Update) -> bytes:
    return b'{"type":"update","seq":%d,"snapshot":%b}' % (message.seq, message.state)


def settled_json(message: Settled, *, with_cost: bool) -> bytes:
    """The ack of an event, for the client that sent it."""
    spent = b""
    if with_cost and message.cost is not None:
        spent = b',"cost":%b' % quote(message.cost.as_json())
    head = b'{"type":"ack","id":%b,"seq":%d' % (quote(message.event_id), message.seq)
    if message.error is None:
        said = b"%b%b" % (message.what_changed, spent)
        return b'%b,"outcome":"accepted",%b}' % (head, said)
    return b'%b,"outcome":"rejected","error":%b%b}' % (head, fault_json(message.error), spent)


def _emitted(message: Emitted) -> bytes:
    return b'{"type":"emitted","seq":%d,"event":%b}' % (message.seq, message.event)


def _presence(message: Presence) -> bytes:
    listing, news = members_json(message), message.news
    if news is None:
        return b'{"type":"presence",' + listing[1:]
    head = listing[1:-1] if len(listing) <= WHOLE_BYTES_MAX else b'"count":%d' % message.count
    changed = b',"changed":' + quote(news.changed) if news.changed else b""
    return b'{"type":"presence",%b,"joined":%b,"left":%b%b}' % (
        head,
        quote(news.joined),
        quote(news.left),
        changed,
    )


_ENCODERS: Final[dict[type[Message], Callable[[Any], bytes]]] = {
    Snapshot: _snapshot,
    Update: _update,
    Emitted: _emitted,
    Presence: _presence,
}
