"""HTTP's transport: uvicorn's protocol, with bounds on what may come before there is a request.

A head that is too long is refused, one that does not arrive is not waited for; what is no HTTP gets
the same problem+json as everything else. (A request's body is bounded by who reads it,
`edge/requests.py`.)
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from machinehub.edge.problem import MEDIA_TYPE, problem_body
from machinehub.edge.websocket_connection import HubSocket
from machinehub.errors import HubError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from machinehub.edge.admission import Admission
    from machinehub.metrics import Metrics

HEAD_BYTES_MAX: Final = 32 * 1024
HEADERS_MAX: Final = 100
HEAD_S: Final = 10.0
"""From the first byte of a head, or from connecting, to its end."""
LINGER_S: Final = 5.0
"""How long the rest of a body is read and thrown away that was answered before it ended: a client
that is hung up on while it sends may never see the answer.
"""
WAITING_MAX: Final = 8
"""Requests that a client may send before it has the answer to its first."""


class Accepting(Protocol):
    """Whoever accepts connections."""

    def connected(self) -> None:
        """Hears of each that was accepted."""


class HubHttp(HttpToolsProtocol):
    admission: ClassVar[Admission | None] = None
    """Who counts connections; this and what follows is set by the hub that serves (`serving`)."""
    metrics: ClassVar[Metrics | None] = None
    accepting: ClassVar[Accepting | None] = None

    _timer: asyncio.TimerHandle | None = None
    """Ends the connection when a head, or the rest of a body that was answered, takes too long."""
    _head_bytes = 0
    _in_head = True
    _in_body = False
    _refused = False
    _leave: Callable[[], None] | None = None

    @classmethod
    def serving(cls, admission: Admission, metrics: Metrics, accepting: Accepting) -> type[HubHttp]:
        """The protocol for one hub."""
        own = {"admission": admission, "metrics": metrics, "accepting": accepting}
        return type("HubHttp", (cls,), own)

    # --- what asyncio calls -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.access_log = False  # whoever listens to the logger: a URL may hold a token
        if self.accepting is not None:
            self.accepting.connected()
        self._await_head()
        if self.admission is not None:
            try:
                self._leave = self.admission.connect(self.client, self.server)
            except HubError as error:
                self._refuse(error.status, error.code, error.detail)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        if self._leave is not None:
            self._leave()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._in_body and not self._in_head:  # what comes now begins the next request
            self._await_head()
        if self._in_head:
            self._head_bytes += len(data)
            if (
                self._head_bytes > HEAD_BYTES_MAX
                and b"\r\n\r\n" not in data[: HEAD_BYTES_MAX - self._head_bytes + len(data)]
            ):
                self._refuse(
                    431,
                    "headers_too_large",
                    f"the request's head has more than {HEAD_BYTES_MAX} bytes",
                )
                return
        super().data_received(data)

    # --- what the parser calls; it passes an exception on as an error of its own

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= WAITING_MAX:
            raise ValueError("too many requests that wait for their answers")
        super().on_message_begin()
        if not self._in_head:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._in_head, self._head_bytes, self._in_body = False, 0, True
        if len(self.headers) > HEADERS_MAX:
            raise ValueError("too many headers")
        if self.parser.should_upgrade() and self._should_upgrade():
            has_body = any(
                name in (b"content-length", b"transfer-encoding") and value != b"0"
                for name, value in self.headers
            )
            if self._is_answering or self.parser.get_method() != b"GET" or has_body:
                raise ValueError(
                    "a WebSocket begins with a GET without a body, on a connection that waits for "
                    "nothing"
                )
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_waiting()
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing() or self._timer is not None or self._is_answering:
            return
        if self._in_body:
            self._linger()
        elif self._in_head:  # the next request had begun to come
            self._await_head()

    def handle_websocket_upgrade(self) -> None:
        self._stop_waiting()
        leave, self._leave = self._leave, None
        super().handle_websocket_upgrade()
        socket = self.transport.get_protocol()
        if isinstance(socket, HubSocket):
            socket.leave = leave
        elif leave is not None:
            leave()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's
        if len(self.headers or ()) > HEADERS_MAX:
            self._refuse(431, "headers_too_large", f"a request has at most {HEADERS_MAX} headers")
        else:
            self._refuse(400, "bad_request", "this is no HTTP request")

    # --- our own ----------------------------------------------------------------------------------

    @property
    def _is_answering(self) -> bool:
        """Whether a request before this one still waits for its answer."""
        return self.cycle is not None and not self.cycle.response_complete

    def _await_head(self) -> None:
        self._in_head, self._in_body, self._head_bytes = True, False, 0
        if (
            self._timer is None and not self._is_answering
        ):  # else it is waited for when that answer is out
            self._timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self._refuse(
            408, "request_timeout", f"the request's head did not arrive within {HEAD_S:g} s"
        )

    def _linger(self) -> None:
        self._timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        if self.transport.is_closing():
            return
        self._stop_waiting()
        self._refused = True
        if self.metrics is not None:
            self.metrics.refused.labels(code=code).inc()
        if self._is_answering:
            if (
                self.pipeline or self.cycle.response_started
            ):  # no word of ours stands within another answer
                self.transport.close()
                return
            self.cycle.disconnected = True  # this is its answer
            self.cycle.message_event.set()
        title = HTTPStatus(status).phrase
        body = problem_body(status, title, code, detail)
        head = (
            f"HTTP/1.1 {status} {title}\r\nContent-Type: {MEDIA_TYPE}\r\n"
            "X-Content-Type-Options: nosniff\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self._linger()
