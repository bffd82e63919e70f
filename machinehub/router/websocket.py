"""WebSockets: the frames of CONTRACT, between a client and its session.

`SocketConnection` is one client. `WebSocketRouter` is the raw ASGI callable that finds the session
first; it closes with the codes of CONTRACT rather than refusing the handshake, since browsers show
scripts nothing of a refused one.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs

import msgspec

from machinehub.clock import timestamp
from machinehub.errors import BadRequest, CallerError, HubError, NotFound, RateLimited, Unavailable
from machinehub.rates import Rate
from machinehub.router.paths import read_address
from machinehub.router.sessions import check_own_bounds, client_key, open_session, wants_cost
from machinehub.router.socket import EXTENSION, HubSocket
from machinehub.session import frames
from machinehub.session.event import EVENT_ID_CHARS_MAX, check_event, check_input, check_metadata

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from machinehub.catalog import Catalog
    from machinehub.clock import Clock
    from machinehub.limits import Limits
    from machinehub.metrics import Metrics
    from machinehub.router.door import Door
    from machinehub.session.core import Receipt
    from machinehub.session.frames import Frame
    from machinehub.session.host import SessionHost
    from machinehub.session.live import LiveSession
    from machinehub.session.members import Identity

HOLD_GAP_S: Final = 0.05
HOLD_S: Final = 0.25


class ClientFrame(msgspec.Struct):
    type: str
    id: str | None = None
    event: msgspec.Raw = msgspec.Raw(b"")
    metadata: msgspec.Raw = msgspec.Raw(b"")


_decode = msgspec.json.Decoder(ClientFrame).decode


class SocketConnection:
    """One client of one session. Slow ones get the newest update only, then 4008."""

    def __init__(
        self,
        socket: HubSocket,
        host: SessionHost,
        session: LiveSession,
        limits: Limits,
        who: Identity,
        door: Door,
        metrics: Metrics,
        *,
        joined_at: str,
        tells_cost: bool,
    ) -> None:
        self.who = who
        self.joined_at = joined_at
        self._sender = who.sender
        self._tells_cost = tells_cost
        self._socket = socket
        self._host = host
        self._session = session
        self._limits = limits
        self._skipped: Frame | None = None
        self._hold: tuple[float, float, HubError] | None = None
        """Since when events are refused because one before them was, when the last one was, and
        why.
        """
        self._door = door
        self._metrics = metrics
        self._events = Rate(session.allowed.events_per_s) if door.counts else None
        self._bytes = Rate(session.allowed.event_burst_bytes) if door.counts else None
        self._others = Rate(limits.events_per_s) if door.counts else None

    # --- to the client ----------------------------------------------------------------------------

    def send(self, frame: Frame) -> None:
        socket = self._socket
        if (
            socket.write_paused
            and socket.unsent_bytes + len(frame.json) > self._limits.unsent_bytes
        ):
            self._metrics.refused.labels(code="slow_reader").inc()
            self.close(4008, "the client reads too slowly")
            return
        socket.write_frame(frame.wire)

    def send_update(self, frame: Frame) -> None:
        if self._socket.write_paused:
            self._skipped = frame
        else:
            self._socket.write_frame(frame.wire)

    def close(self, code: int, reason: str) -> None:
        self._socket.close(code, reason)

    def writable_again(self) -> None:
        frame, self._skipped = self._skipped, None
        if frame is not None:
            self._socket.write_frame(frame.wire)

    # --- from the client --------------------------------------------------------------------------

    def receive_binary(self) -> None:
        self.close(1003, "frames are JSON text")

    def receive_text(self, data: bytes) -> None:
        try:
            frame = _decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            self._refuse_frame(data, error)
            return
        if frame.type == "event":
            self._receive_event(frame, len(data))
        elif self._too_many():
            pass
        elif frame.type == "ping":
            self.send(frames.PONG)
        elif frame.type == "presence":
            self._receive_presence(frame, len(data))
        else:
            self._refuse(
                BadRequest("bad_frame", 'a frame\'s type is "event", "presence" or "ping"')
            )

    def _receive_event(self, frame: ClientFrame, size: int) -> None:
        event_id = frame.id
        if event_id is not None and not 1 <= len(event_id) <= EVENT_ID_CHARS_MAX:
            self._refuse(BadRequest("bad_frame", f"an id has 1 to {EVENT_ID_CHARS_MAX} characters"))
            return
        try:
            if event_id is not None:
                self._check_hold()
            self._check_rate(size)
            self._door.take_event(self._session)
            check_own_bounds(self._session, frame.event)
            check_event(
                frame.event, bytes_max=self._limits.event_bytes, depth_max=self._limits.event_depth
            )
            then = partial(self._acknowledge, event_id) if event_id is not None else None
            self._host.intake.send(
                self._session, bytes(frame.event), self._sender, event_id=event_id, then=then
            )
        except HubError as error:
            if event_id is None:
                self._refuse(error)
            else:
                self._metrics.refused.labels(code=error.code).inc()
                self._refused(error)
                self.send(frames.ack_frame(event_id, self._session.seq, (error.code, error.detail)))

    def _check_hold(self) -> None:
        """Keeps the order of a client that sends again what could not be taken: what was on its way
        behind it is refused too.

        Until the client pauses, but not for long: one that does not send again should not be locked
        out.
        """
        if self._hold is None:
            return
        since_s, last_s, error = self._hold
        now_s = time.monotonic()
        if now_s - last_s > HOLD_GAP_S or now_s - since_s > HOLD_S:
            self._hold = None
        else:
            self._hold = since_s, now_s, error
            raise error

    def _refused(self, error: HubError) -> None:
        if error.code in ("rate_limited", "unavailable") and self._hold is None:
            now_s = time.monotonic()
            self._hold = now_s, now_s, error

    def _receive_presence(self, frame: ClientFrame, size: int) -> None:
        try:
            self._check_rate(size)
            metadata = check_metadata(
                bytes(frame.metadata),
                bytes_max=self._session.allowed.presence_metadata_bytes,
                depth_max=self._limits.event_depth,
            )
            self._host.people.describe(self._session, self.who, metadata)
        except HubError as error:
            self._refuse(error)

    def _refuse(self, error: HubError) -> None:
        self._metrics.refused.labels(code=error.code).inc()
        self.send(frames.error_frame(error.code, error.detail))

    def _too_many(self) -> bool:
        """Frames that are no events, wrong ones among them, have a rate of their own: who exceeds
        it wants nothing of a session.
        """
        if self._others is None or self._others.take(1, time.monotonic()):
            return False
        self._metrics.refused.labels(code="rate_limited").inc()
        self.close(4008, "too many frames")
        return True

    def _check_rate(self, size: int) -> None:
        if self._events is None or self._bytes is None:
            return
        now_s = time.monotonic()
        if not self._events.take(1, now_s):
            raise RateLimited(
                "rate_limited",
                f"a connection sends at most {self._session.allowed.events_per_s} events a second",
            )
        burst = self._session.allowed.event_burst_bytes
        if not self._bytes.take(min(size, burst), now_s):
            raise RateLimited(
                "rate_limited", f"a connection sends at most {burst} bytes of events a second"
            )

    def _acknowledge(self, event_id: str, receipt: Receipt) -> None:
        if receipt.error is not None:
            self._refused(Unavailable(*receipt.error))
        self.send(
            frames.ack_frame(
                event_id, receipt.seq, receipt.error, receipt.cost if self._tells_cost else None
            )
        )

    def _refuse_frame(self, data: bytes, error: Exception) -> None:
        try:
            data.decode()
        except UnicodeDecodeError:
            self.close(1007, "the text is not UTF-8")
            return
        detail = (
            "the frame nests too deeply"
            if isinstance(error, RecursionError)
            else f"not a frame: {error}"[:300]
        )
        if not self._too_many():
            self._refuse(BadRequest("bad_frame", detail))


class WebSocketRouter:
    def __init__(
        self,
        catalog: Catalog,
        host: SessionHost,
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
        door: Door,
    ) -> None:
        self._catalog = catalog
        self._host = host
        self._clock = clock
        self._limits = limits
        self._metrics = metrics
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = await self._accept(scope, receive, send)
        try:
            session, who = await self._open(scope)
            connection = SocketConnection(
                socket,
                self._host,
                session,
                self._limits,
                who,
                self._door,
                self._metrics,
                joined_at=timestamp(self._clock.now_ms()),
                tells_cost=wants_cost(scope["query_string"]),
            )
            self._host.people.attach(session, connection)
        except HubError as error:
            self._metrics.refused.labels(code=error.code).inc()
            self._say_why(socket, error)
            return
        self._metrics.connections.inc()
        try:
            socket.listen(connection, high_water_bytes=self._limits.unsent_bytes_soft)
            while (await receive())["type"] != "websocket.disconnect":
                pass
        finally:
            self._metrics.connections.dec()
            self._host.people.detach(session, connection)

    async def refuse(self, error: HubError, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets somebody in only to be told why not."""
        self._say_why(await self._accept(scope, receive, send), error)

    async def _accept(self, scope: Scope, receive: Receive, send: Send) -> HubSocket:
        await receive()  # websocket.connect
        await send(
            {
                "type": "websocket.accept",
                "subprotocol": frames.SUBPROTOCOL
                if frames.SUBPROTOCOL in scope["subprotocols"]
                else None,
            }
        )
        socket = scope["extensions"][EXTENSION]
        assert isinstance(socket, HubSocket)
        return socket

    def _say_why(self, socket: HubSocket, error: HubError) -> None:
        socket.write_frame(frames.error_frame(error.code, error.detail).wire)
        socket.close(close_code(error), error.detail)

    async def _open(self, scope: Scope) -> tuple[LiveSession, Identity]:
        address = read_address(scope["raw_path"], session_chars_max=self._limits.session_id_chars)
        if address.session is None or address.action is not None:
            raise NotFound("no_such_session", "a WebSocket goes to /{machine}/{session}")
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        input_json = query["input"][0].encode() if "input" in query else None
        if input_json is not None:
            check_input(
                input_json, bytes_max=self._limits.input_bytes, depth_max=self._limits.event_depth
            )
        who = self._host.people.identify(
            address.machine, address.session, client_key(scope["query_string"])
        )
        return await open_session(self._catalog, self._host, address, input_json=input_json), who


def close_code(error: HubError) -> int:
    """CONTRACT's close code for an error that ends a connection before it began."""
    match error:
        case NotFound():
            return 4004
        case RateLimited():
            return 4008
        case Unavailable() if error.code == "connections_exceeded":
            return 4008
        case Unavailable():
            return 1013
        case CallerError():
            return {401: 4001, 403: 4003}.get(error.status, 1008)
    return 1008
