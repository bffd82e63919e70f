"""Server-sent events: the frames of a WebSocket, one way."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from machinehub.protocols.native.frames import error_json, to_json
from machinehub.session.messages import Closed, Emitted, Ending, Message, Snapshot, Update

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from machinehub.limits import Limits
    from machinehub.session.port import Subscription

KEEPALIVE_S: Final = 10.0
"""With `TCP_USER_TIMEOUT` of the listening socket, a reader whose network is gone is noticed within
30 s.
"""
CLOSE_TIMEOUT_S: Final = 2.0
_FINAL: Final = {
    Ending.DELETED: "no_such_session",
    Ending.REVOKED: "unauthorised",
    Ending.UNSEEN: "view_failed",
}


class SseListener:
    """One reader. What it has not read yet waits here, within the same bounds as a WebSocket's."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queue: deque[tuple[bytes, bool]] = deque()
        """Events as they are written, and whether each is an update, which a newer one may replace.
        """
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[object] | None = None

    def receive(self, message: Message) -> None:
        if isinstance(message, Closed):
            self._end(message)
            return
        is_update = isinstance(message, Update)
        event = message.encoded(_to_event)
        if is_update and self._queued_bytes > self._limits.unsent_bytes_soft:
            self._drop_last_update()
        self._push(event, is_update=is_update)

    def _drop_last_update(self) -> None:
        """Only the newest update needs to arrive: it takes the place of the last one that waits."""
        for index in range(len(self._queue) - 1, -1, -1):
            event, is_update = self._queue[index]
            if is_update:
                self._queued_bytes -= len(event)
                del self._queue[index]
                return

    def _push(self, event: bytes, *, is_update: bool) -> None:
        self._queued_bytes += len(event)
        if self._queued_bytes > self._limits.unsent_bytes:
            self._stop()  # the client reads too slowly
            return
        self._queue.append((event, is_update))
        self._wake.set()

    def _end(self, message: Closed) -> None:
        if message.why in _FINAL:
            # A stream has no close codes: this is what tells a client not to come back.
            error = error_json(_FINAL[message.why], message.detail)
            self._push(b"data: %b\n\n" % error, is_update=False)
        self._stop()

    def _stop(self) -> None:
        self._closed = True
        self._wake.set()
        if self._task is not None:  # it may be stuck in a write that nobody reads
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._task.cancel)

    async def stream(self, subscription: Subscription) -> AsyncIterator[bytes]:
        """The response's body; leaving it leaves the session."""
        self._task = asyncio.current_task()
        try:
            yield b"retry: 1000\n\n"
            while True:
                while self._queue:
                    event, _ = self._queue.popleft()
                    self._queued_bytes -= len(event)
                    yield event
                if self._closed:
                    return
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), KEEPALIVE_S)
                except TimeoutError:
                    yield b": keep-alive\n\n"
        finally:
            self._task = None
            subscription.close()


def _to_event(message: Message) -> bytes:
    """A message as an event of the stream; `id:` is the seq, where there is one."""
    json = message.encoded(to_json)
    if b"\n" in json or b"\r" in json:  # white space between tokens, which lines cannot carry
        json = json.replace(b"\r", b" ").replace(b"\n", b" ")
    if isinstance(message, Snapshot | Update | Emitted):
        return b"id: %d\ndata: %b\n\n" % (message.seq, json)
    return b"data: %b\n\n" % json
