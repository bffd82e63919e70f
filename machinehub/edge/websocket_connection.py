"""The WebSocket's transport: uvicorn's sans-I/O protocol with two short cuts.

Incoming text goes straight to the connection instead of through an ASGI queue, and outgoing frames,
already spelled with their WebSocket header, straight to the transport: a broadcast to a hundred
clients is a hundred writes of the same bytes. Everything else (handshake, ping, close, limits while
parsing) is uvicorn's and websockets' own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, cast

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from machinehub.closecodes import CloseCode

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from websockets.frames import Frame as WebSocketFrame
    from websockets.http11 import Request

EXTENSION: Final = "machinehub.socket"
"""Where the ASGI scope carries the `HubSocket`, under `extensions`."""
HELLO: Final = "machinehub.hello"
FRAGMENTS_MAX: Final = 1024
CLOSE_TIMEOUT_S: Final = 2.0


class SocketListener(Protocol):
    """The connection behind a socket."""

    def receive_text(self, data: bytes) -> None: ...

    def receive_binary(self) -> None: ...

    def writable_again(self) -> None: ...


class HubSocket(WebSocketsSansIOProtocol):
    listener: SocketListener | None = None
    on_pong: Callable[[bytes], None] | None = None
    """Hears the payloads of pongs: of `write_ping`, of our keepalive, or of nobody's."""
    write_paused = False
    leave: Callable[[], None] | None = None
    """Tells admission that the connection is gone."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unflushed: list[bytes] = []

    def listen(self, listener: SocketListener, *, high_water_bytes: int) -> None:
        """From now on `listener` hears what the client says, beginning with what already waits."""
        if self.disconnected or self.transport.is_closing():
            return
        self.transport.set_write_buffer_limits(high=high_water_bytes)
        self.listener = listener
        waiting = []
        while not self.queue.empty():
            waiting.append(self.queue.get_nowait())
        for message in waiting:
            if message["type"] == "websocket.receive" and self.listener is listener:
                text = message.get("text")
                listener.receive_text(
                    text.encode()
                ) if text is not None else listener.receive_binary()
            else:  # in their order, behind what the listener may have handed back
                self.queue.put_nowait(message)
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def hand_back(self, data: bytes) -> None:
        """The listener leaves `data`, and all that follows, to whoever called `listen`: it is heard
        there as a message of type `HELLO`, until it listens again.
        """
        self.listener = None
        self.queue.put_nowait(cast("Any", {"type": HELLO, "bytes": data}))

    def write_frame(self, wire: bytes) -> None:
        """Sends bytes that are a whole frame already, together with what else is sent in this turn
        of the event loop: a system call costs more than everything else about a frame, and an
        update and its ack come as a pair.
        """
        if self.close_sent:
            return
        if not self._unflushed:
            self.loop.call_soon(self.flush_frames)
        self._unflushed.append(wire)

    def offer(self, wire: bytes, *, unsent_bytes_max: int) -> bool:
        """As `write_frame`. False, and nothing sent, for a client that reads so slowly that more
        than this would wait for it.
        """
        if self.write_paused and self.unsent_bytes + len(wire) > unsent_bytes_max:
            return False
        self.write_frame(wire)
        return True

    def write_ping(self, payload: bytes) -> None:
        """Sends a ping of up to 125 bytes behind the frames before it (RFC 6455, section 5.5.2)."""
        self.write_frame(bytes((0x89, len(payload))) + payload)

    def flush_frames(self) -> None:
        wires, self._unflushed = self._unflushed, []
        if wires and not self.transport.is_closing():
            self.transport.write(wires[0] if len(wires) == 1 else b"".join(wires))

    @property
    def unsent_bytes(self) -> int:
        return self.transport.get_write_buffer_size() + sum(map(len, self._unflushed))

    def close(self, code: CloseCode, reason: str) -> None:
        """Says goodbye, and hangs up on a client that does not answer."""
        if self.close_sent or self.disconnected or self.transport.is_closing():
            return
        self.flush_frames()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason[:120])
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.listener = None
        self.close_timer = self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.leave is not None:
            self.leave()
        super().connection_lost(exc)

    # --- what uvicorn calls -----------------------------------------------------------------------

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            cast("MutableMapping[str, Any]", self.scope["extensions"])[EXTENSION] = self

    def handle_cont(self, event: WebSocketFrame) -> None:
        if len(self.frames) >= FRAGMENTS_MAX:
            self.close(CloseCode.POLICY_VIOLATION, "too many fragments")
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        listener = self.listener
        if listener is None:
            self._leave_for_later()
            return
        data = bytes(self.frames[0]) if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "text":
            listener.receive_text(data)
        else:
            listener.receive_binary()

    def _leave_for_later(self) -> None:
        """Into the queue, for whoever listens next."""
        try:
            if self.curr_msg_data_type == "text":
                b"".join(self.frames).decode()
        except UnicodeDecodeError:
            self.frames = []
            self.close(CloseCode.INVALID_DATA, "the text is not UTF-8")
        else:
            super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        """The pong, unless the client reads nothing: pings must not fill the memory either."""
        pong = b"".join(self.conn.data_to_send())
        if not self.write_paused:
            self.transport.write(pong)

    def handle_pong(self, event: WebSocketFrame) -> None:
        if self.on_pong is not None:
            self.on_pong(bytes(event.data))
        super().handle_pong(event)

    def keepalive_timeout(self) -> None:
        self.pong_timer = None
        self.close(CloseCode.INTERNAL_ERROR, "keepalive ping timeout")

    def pause_writing(self) -> None:
        super().pause_writing()
        self.write_paused = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self.write_paused = False
        if self.listener is not None:
            self.listener.writable_again()

    def shutdown(self) -> None:
        """The hub goes away: 1001, which tells clients to come back."""
        self.stop_keepalive()
        if self.handshake_complete:
            self.close(CloseCode.GOING_AWAY, "the hub is going away")
            self.transport.close()
        else:
            super().shutdown()
