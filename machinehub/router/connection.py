"""HTTP's transport: uvicorn's protocol, with bounds on what may come before there is a request.

A head that is too long is refused, one that does not arrive is not waited for; what is no HTTP gets the same problem+json as
everything else. (A request's body is bounded by who reads it, `api/requests.py`.)
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:
    import asyncio

HEAD_BYTES_MAX: Final = 32 * 1024
HEADERS_MAX: Final = 100
HEAD_S: Final = 10.0
"""From the first byte of a head, or from connecting, to its end."""
LINGER_S: Final = 5.0
"""How long the rest of a body is read and thrown away that was answered before it ended: a client that is hung up on while it sends may never see the answer."""


class HubHttp(HttpToolsProtocol):
    _timer: asyncio.TimerHandle | None = None
    """Ends the connection when a head, or the rest of a body that nobody wants, takes too long."""
    _head_bytes = 0
    _in_head = True
    _in_body = False
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if not self._in_body and not self._in_head:  # what comes now begins the next request
            self._await_head()
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX and b"\r\n\r\n" not in data[: HEAD_BYTES_MAX - self._head_bytes + len(data)]:
                self._refuse(431, "headers_too_large", f"the request's head has more than {HEAD_BYTES_MAX} bytes")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._timer is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._in_head, self._head_bytes, self._in_body = False, 0, True
        if len(self.headers) > HEADERS_MAX:
            raise ValueError("too many headers")  # the parser passes it on as an error of its own
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle is not None and self.cycle.response_complete and self._timer is None:
            self._linger()

    def on_message_complete(self) -> None:
        self._stop_waiting()
        self._in_body = False
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        self._stop_waiting()
        super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        if len(self.headers or ()) > HEADERS_MAX:
            self._refuse(431, "headers_too_large", f"a request has at most {HEADERS_MAX} headers")
        else:
            self._refuse(400, "bad_request", "this is no HTTP request")

    def _await_head(self) -> None:
        self._in_head, self._in_body, self._head_bytes = True, False, 0
        self._timer = self.loop.call_later(HEAD_S, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self._refuse(408, "request_timeout", f"the request's head did not arrive within {HEAD_S:g} s")

    def _linger(self) -> None:
        self._timer = self.loop.call_later(LINGER_S, self.transport.close)

    def _refuse(self, status: int, code: str, detail: str) -> None:
        if self.transport.is_closing():
            return
        self._stop_waiting()
        self._refused = True
        title = HTTPStatus(status).phrase
        problem: dict[str, Any] = {"type": f"https://machinehub.dev/errors/{code}", "title": title, "status": status, "detail": detail, "code": code}
        body = msgspec.json.encode(problem)
        head = f"HTTP/1.1 {status} {title}\r\nContent-Type: application/problem+json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        self.transport.write(head.encode() + body)
        self.transport.write_eof()
        self._linger()
