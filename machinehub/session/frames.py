"""The frames that the hub sends, as bytes. A broadcast is spelled once, whoever hears it.

CONTRACT's WebSocket frames; the same JSON goes out over SSE. `wire` adds the WebSocket header of an
unmasked, unfragmented text message (RFC 6455, section 5.2), which is the same for every client and
so is made once too.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from sandbox.protocol import Cost

SUBPROTOCOL: Final = "machinehub.v1"


class Frame:
    """One message to clients."""

    __slots__ = ("_wire", "json")

    def __init__(self, json: bytes) -> None:
        self.json = json
        self._wire: bytes | None = None

    @property
    def wire(self) -> bytes:
        if self._wire is None:
            size = len(self.json)
            if size < 126:
                head = bytes((0x81, size))
            elif size < 65536:
                head = b"\x81\x7e" + size.to_bytes(2, "big")
            else:
                head = b"\x81\x7f" + size.to_bytes(8, "big")
            self._wire = head + self.json
        return self._wire


class RecentFrames:
    """The last emitted frames of a session, for an SSE client that comes back with `Last-Event-ID`.

    Bounded in bytes.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._frames: deque[tuple[int, Frame]] = deque()

    def add(self, seq: int, frame: Frame) -> None:
        self._frames.append((seq, frame))
        self._bytes += len(frame.json)
        while self._bytes > self._bytes_max:
            self._bytes -= len(self._frames.popleft()[1].json)

    def since(self, seq: int) -> list[Frame]:
        """What was emitted after `seq`, as far as it is remembered."""
        return [frame for number, frame in self._frames if number > seq]


quote = msgspec.json.Encoder().encode


def snapshot_frame(
    *, seq: int, version: int, snapshot: bytes, connection_id: str | None, count: int
) -> Frame:
    connection = (
        b',"connection":{"id":%b,"count":%d}' % (quote(connection_id), count)
        if connection_id is not None
        else b""
    )
    return Frame(
        b'{"type":"snapshot","seq":%d,"version":%d,"snapshot":%b%b}'
        % (seq, version, snapshot, connection)
    )


def update_frame(seq: int, snapshot: bytes) -> Frame:
    return Frame(b'{"type":"update","seq":%d,"snapshot":%b}' % (seq, snapshot))


def ack_frame(
    event_id: str, seq: int, error: tuple[str, str] | None, cost: Cost | None = None
) -> Frame:
    """`cost` for those who asked for it."""
    spent = b',"cost":%b' % quote(cost_of(cost)) if cost is not None else b""
    if error is None:
        return Frame(
            b'{"type":"ack","id":%b,"seq":%d,"outcome":"accepted"%b}'
            % (quote(event_id), seq, spent)
        )
    code, detail = error
    return Frame(
        b'{"type":"ack","id":%b,"seq":%d,"outcome":"rejected","error":%b%b}'
        % (quote(event_id), seq, quote({"code": code, "detail": detail}), spent)
    )


def cost_of(cost: Cost) -> dict[str, int]:
    """What a turn took, as clients and logs are told: fuel only where the hub counts it."""
    return {
        "cpu_us": cost.cpu_us,
        "memory_bytes": cost.memory_bytes,
        **({"fuel": cost.fuel} if cost.fuel else {}),
    }


def emitted_frame(seq: int, event: bytes | msgspec.Raw) -> Frame:
    return Frame(b'{"type":"emitted","seq":%d,"event":%b}' % (seq, event))


def error_frame(code: str, detail: str) -> Frame:
    return Frame(quote({"type": "error", "code": code, "detail": detail}))


PONG = Frame(b'{"type":"pong"}')
