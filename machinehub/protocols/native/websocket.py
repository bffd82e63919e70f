"""WebSockets: frames of docs/protocol.md, between a client and its session.

`SocketListener` is one client. `WebSocketProtocol` is the raw ASGI callable that finds the session
first; it closes with the codes of `closecodes.py` rather than refusing the handshake, since
browsers show scripts nothing of a refused one.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from machinehub.closecodes import CloseCode
from machinehub.edge.addresses import read_url
from machinehub.edge.admission import principal_of
from machinehub.edge.client_rates import ClientRates
from machinehub.edge.revoked import REVOKED, Watch
from machinehub.edge.websocket_connection import EXTENSION, HELLO, HubSocket
from machinehub.edge.websocket_frames import text_frame
from machinehub.errors import (
    BadRequest,
    Forbidden,
    HubError,
    NotFound,
    RateLimited,
    Unauthorised,
    Unavailable,
    ViewFailed,
    error_of,
    fault_of,
)
from machinehub.ids import EventId
from machinehub.protocols.native.frames import (
    PONG,
    SUBPROTOCOL,
    error_json,
    settled_json,
    to_frame,
)
from machinehub.protocols.native.queries import client_key, given_input, wants_cost
from machinehub.protocols.native.resends import ResendGuard
from machinehub.session.decide.events import EVENT_ID_CHARS_MAX
from machinehub.session.decide.identity import UNSHOWN
from machinehub.session.messages import Closed, Ending, Settled, Update
from machinehub.session.port import Visitor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import Receive, Scope, Send

    from machinehub.clock import Clock
    from machinehub.edge.gate import Gate
    from machinehub.limits import Limits
    from machinehub.metrics import Metrics
    from machinehub.principal import Principal
    from machinehub.session.messages import Message
    from machinehub.session.port import Address, Sessions, Subscription

HELLO_PROTOCOL: Final = "machinehub.hello"
"""A client that offers it says who it is in its first frame, and gets nothing before that."""
HELLO_S: Final = 10.0
_ENDS: Final = ("websocket.disconnect", HELLO)
_ENDINGS: Final = {
    Ending.DELETED: CloseCode.NO_SUCH_SESSION,
    Ending.RESTARTED: CloseCode.MOVED,
    Ending.UNAVAILABLE: CloseCode.TRY_AGAIN_LATER,
    Ending.GOING_AWAY: CloseCode.GOING_AWAY,
    Ending.REVOKED: CloseCode.UNAUTHORISED,
    Ending.UNSEEN: CloseCode.VIEW_FAILED,
}


class ClientFrame(msgspec.Struct):
    """What a client sends."""

    type: str
    id: str | None = None
    event: msgspec.Raw = msgspec.Raw(b"")
    metadata: msgspec.Raw = msgspec.Raw(b"")


class Hello(msgspec.Struct):
    """A first frame that says who the client is, where a subprotocol cannot."""

    type: Literal["hello"]
    key: str | None = None
    token: str | list[str] | None = None
    """Of several, what may be done is what all of them allow."""


_decode: Final = msgspec.json.Decoder(ClientFrame).decode


class SocketListener:
    """One client of one session. Slow ones get the newest update only, then are closed."""

    def __init__(
        self, socket: HubSocket, limits: Limits, clock: Clock, metrics: Metrics, *, tells_cost: bool
    ) -> None:
        self._socket = socket
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._tells_cost = tells_cost
        self._skipped: Update | None = None
        self._resends = ResendGuard()
        self._rates: ClientRates | None = None
        self._subscription: Subscription
        self._may_say_hello = True

    def begin(self, subscription: Subscription, *, is_counted: bool) -> None:
        """From now on frames of the client are for this session."""
        self._subscription = subscription
        self._rates = None
        if is_counted:
            self._rates = ClientRates(self._limits, subscription.limits)

    def leave(self) -> None:
        """The client leaves its session, perhaps to come back as somebody else: nothing of what was
        for it is left.
        """
        self._skipped = None
        self._resends = ResendGuard()

    # --- to the client ----------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        if isinstance(message, Update):  # first: what all listeners of a session receive
            if self._socket.write_paused:
                self._skipped = message
            else:
                self._socket.write_frame(message.encoded(to_frame))
        elif isinstance(message, Settled):  # for this client alone
            self._acknowledge(message)
        elif isinstance(message, Closed):
            self.close(_ENDINGS[message.why], message.detail)
        else:
            self._write(message.encoded(to_frame))

    def _acknowledge(self, message: Settled) -> None:
        if message.error is not None:
            error, now_s = error_of(message.error), self._clock.monotonic_s()
            self._resends.refused(message.event_id, error, now_s)
        self._write(text_frame(settled_json(message, with_cost=self._tells_cost)))

    def _write(self, frame: bytes) -> None:
        if not self._socket.offer(frame, unsent_bytes_max=self._limits.unsent_bytes):
            self._metrics.refused.labels(code="slow_reader").inc()
            self.close(CloseCode.LIMIT_EXCEEDED, "the client reads too slowly")

    def close(self, code: CloseCode, reason: str) -> None:
        self._socket.close(code, reason)

    def writable_again(self) -> None:
        skipped, self._skipped = self._skipped, None
        if skipped is not None:
            self._socket.write_frame(skipped.encoded(to_frame))

    # --- from the client --------------------------------------------------------------------------

    def receive_binary(self) -> None:
        self.close(CloseCode.UNSUPPORTED_DATA, "frames are JSON text")

    def receive_text(self, data: bytes) -> None:
        try:
            frame = _decode(data)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            self._refuse_frame(data, error)
            return
        if frame.type == "hello" and self._may_say_hello:
            self._may_say_hello = False
            self._hand_back(data)
            return
        self._may_say_hello = False
        if frame.type == "event":
            self._receive_event(frame, len(data))
        elif self._too_many():
            pass
        elif frame.type == "ping":
            self._write(PONG)
        elif frame.type == "presence":
            self._receive_presence(frame, len(data))
        else:
            self._refuse(
                BadRequest(
                    "bad_frame",
                    'a frame\'s type is "event", "presence" or "ping"; the first one\'s may be'
                    ' "hello"',
                )
            )

    def _hand_back(self, hello: bytes) -> None:
        try:
            hello.decode()  # what is skipped in a frame was not looked at
        except UnicodeDecodeError:
            self.close(CloseCode.INVALID_DATA, "the text is not UTF-8")
        else:
            self._socket.hand_back(hello)

    def _receive_event(self, frame: ClientFrame, size: int) -> None:
        event_id = EventId(frame.id) if frame.id is not None else None
        if event_id is not None and not 1 <= len(event_id) <= EVENT_ID_CHARS_MAX:
            self._refuse(BadRequest("bad_frame", f"an id has 1 to {EVENT_ID_CHARS_MAX} characters"))
            return
        if event_id is not None and event_id.startswith(UNSHOWN):  # it would never be acknowledged
            self._refuse(BadRequest("bad_frame", "an id begins as the hub's own ids do"))
            return
        try:
            if event_id is not None:
                self._resends.check(event_id, self._clock.monotonic_s())
            self._take(size)
            self._subscription.send(bytes(frame.event), event_id)
        except HubError as error:
            if event_id is None:
                self._refuse(error)
            else:
                self._metrics.refused.labels(code=error.code).inc()
                fault = fault_of(error)
                seq = self._subscription.seq
                self.receive(Settled(event_id, seq, changed=False, error=fault, cost=None))

    def _receive_presence(self, frame: ClientFrame, size: int) -> None:
        try:
            self._take(size)
            self._subscription.describe(bytes(frame.metadata))
        except HubError as error:
            self._refuse(error)

    def _take(self, size: int) -> None:
        """Raises `RateLimited`."""
        if self._rates is not None:
            self._rates.take_event(size, self._clock.monotonic_s())

    def _refuse(self, error: HubError) -> None:
        self._metrics.refused.labels(code=error.code).inc()
        self._write(text_frame(error_json(error.code, error.detail)))

    def _too_many(self) -> bool:
        """Frames that are no events, wrong ones among them, have a rate of their own: who exceeds
        it wants nothing of a session.
        """
        if self._rates is None or self._rates.may_send_other(self._clock.monotonic_s()):
            return False
        self._metrics.refused.labels(code="rate_limited").inc()
        self.close(CloseCode.LIMIT_EXCEEDED, "too many frames")
        return True

    def _refuse_frame(self, data: bytes, error: Exception) -> None:
        try:
            data.decode()
        except UnicodeDecodeError:
            self.close(CloseCode.INVALID_DATA, "the text is not UTF-8")
            return
        detail = f"not a frame: {error}"[:300]
        if isinstance(error, RecursionError):
            detail = "the frame nests too deeply"
        if not self._too_many():
            self._refuse(BadRequest("bad_frame", detail))


class WebSocketProtocol:
    """The ASGI callable for WebSockets."""

    def __init__(
        self,
        sessions: Sessions,
        clock: Clock,
        limits: Limits,
        metrics: Metrics,
        gate: Gate,
        identify: Callable[[Scope, list[str]], Awaitable[Principal | None]],
        watch: Watch,
    ) -> None:
        """`identify` finds out whose tokens those are that a socket shows later than in its head;
        None where they mean nothing. `watch` tells when what a principal showed is not valid any
        more.
        """
        self._gate = gate
        self._watch = watch
        self._identify = identify
        self._sessions = sessions
        self._clock = clock
        self._limits = limits
        self._metrics = metrics

    def takes(self, scope: Scope) -> bool:
        """Whether a connection is this protocol's."""
        return bool(scope["type"] == "websocket")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = await self._accept(scope, receive, send)
        listener = SocketListener(
            socket,
            self._limits,
            self._clock,
            self._metrics,
            tells_cost=wants_cost(scope["query_string"]),
        )
        self._metrics.connections.inc()
        try:
            await self._serve(scope, receive, socket, listener)
        except HubError as error:
            self._metrics.refused.labels(code=error.code).inc()
            _say_why(socket, error)
        finally:
            self._metrics.connections.dec()

    async def _serve(
        self, scope: Scope, receive: Receive, socket: HubSocket, listener: SocketListener
    ) -> None:
        """Until the client goes. One that announced a first frame is somebody only behind it;
        another that sends one becomes somebody else. Raises `HubError`.
        """
        principal, key = principal_of(scope), client_key(scope)
        waits = HELLO_PROTOCOL in scope["subprotocols"]
        while True:
            if waits:
                principal, key = await self._hello(scope, receive, principal, key)
            with contextlib.ExitStack() as leaving:
                await self._enter(scope, listener, Visitor(principal, key), leaving)
                socket.listen(listener, high_water_bytes=self._limits.unsent_bytes_soft)
                while (message := await receive())["type"] not in _ENDS:
                    pass
            if message["type"] == "websocket.disconnect":
                return
            principal, key = await self._known(scope, message["bytes"], principal, key)
            waits = False

    async def _hello(
        self, scope: Scope, receive: Receive, principal: Principal, key: str | None
    ) -> tuple[Principal, str | None]:
        try:
            async with asyncio.timeout(HELLO_S):
                message = await receive()
        except TimeoutError:
            raise BadRequest("bad_frame", "no frame of type hello came") from None
        if message["type"] == "websocket.disconnect":
            raise BadRequest("bad_frame", "the client went before it said who it is")
        text = (message.get("text") or "").encode()
        return await self._known(scope, text, principal, key)

    async def _known(
        self, scope: Scope, text: bytes, principal: Principal, key: str | None
    ) -> tuple[Principal, str | None]:
        """Who says hello so. Raises `BadRequest`, `Unauthorised`."""
        try:
            said = msgspec.json.decode(text, type=Hello)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BadRequest("bad_frame", f"not a hello: {error}"[:300]) from None
        if said.token is not None:
            shown = [said.token] if isinstance(said.token, str) else said.token
            principal = await self._identify(scope, shown) or principal
        return principal, key if said.key is None else said.key

    async def refuse(self, error: HubError, scope: Scope, receive: Receive, send: Send) -> None:
        """Turns away somebody whom admission did not let in: lets them in only to be told why not.

        A page of a site that may not use this hub is told no more than that.
        """
        if isinstance(error, Forbidden):
            await send({"type": "websocket.close", "code": CloseCode.FORBIDDEN})
        else:
            _say_why(await self._accept(scope, receive, send), error)

    async def _accept(self, scope: Scope, receive: Receive, send: Send) -> HubSocket:
        await receive()  # websocket.connect
        offered = scope["subprotocols"]
        chosen = SUBPROTOCOL if SUBPROTOCOL in offered else None
        await send({"type": "websocket.accept", "subprotocol": chosen})
        socket: Any = scope["extensions"][EXTENSION]
        assert isinstance(socket, HubSocket)
        return socket

    async def _enter(
        self,
        scope: Scope,
        listener: SocketListener,
        visitor: Visitor,
        leaving: contextlib.ExitStack,
    ) -> None:
        """The client is with its session from now on, until `leaving` is closed. Raises
        `HubError`.
        """
        address = self._address(scope)
        principal = await self._gate.enter(visitor.principal, address, "read")
        if principal.only_looks:
            await self._sessions.members(address)  # or there is none, and looking begins none
        assert principal.allowance is not None
        leaving.callback(principal.allowance.connect())
        leaving.callback(listener.leave)
        subscription = await self._sessions.subscribe(
            address,
            listener,
            visitor._replace(principal=principal),
            given=given_input(scope["query_string"]),
        )
        leaving.callback(subscription.close)
        listener.begin(subscription, is_counted=principal.is_counted)
        leave = self._watch(
            principal, lambda: listener.receive(REVOKED), address.machine_id, address.session_id
        )
        leaving.callback(leave)

    def _address(self, scope: Scope) -> Address:
        """Raises `NotFound`."""
        url = read_url(scope["raw_path"], session_chars_max=self._limits.session_id_chars)
        if url.session is None or url.action is not None:
            raise NotFound("no_such_session", "a WebSocket goes to /{machine}/{session}")
        return url.address


def _say_why(socket: HubSocket, error: HubError) -> None:
    socket.write_frame(text_frame(error_json(error.code, error.detail)))
    socket.close(close_code(error), error.detail)


def close_code(error: HubError) -> CloseCode:
    """For an error that ends a connection before it began."""
    match error:
        case NotFound():
            return CloseCode.NO_SUCH_SESSION
        case RateLimited():
            return CloseCode.LIMIT_EXCEEDED
        case Unavailable() if error.code == "connections_exceeded":
            return CloseCode.LIMIT_EXCEEDED
        case Unavailable():
            return CloseCode.TRY_AGAIN_LATER
        case Unauthorised():
            return CloseCode.UNAUTHORISED
        case Forbidden():
            return CloseCode.FORBIDDEN
        case ViewFailed():
            return CloseCode.VIEW_FAILED
    return CloseCode.POLICY_VIOLATION
