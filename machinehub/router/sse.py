"""Server-sent events: the frames of a WebSocket, one way."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final

from machinehub.session.frames import error_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from machinehub.limits import Limits
    from machinehub.session.frames import Frame
    from machinehub.session.host import SessionHost
    from machinehub.session.live import LiveSession
    from machinehub.session.members import Identity

KEEPALIVE_S: Final = 10.0
"""With `TCP_USER_TIMEOUT` of the listening socket, a reader whose network is gone is noticed within
30 s.
"""
CLOSE_TIMEOUT_S: Final = 2.0


class SseConnection:
    """One reader. What it has not read yet waits here, within the same bounds as a WebSocket's."""

    def __init__(self, limits: Limits, who: Identity, *, joined_at: str) -> None:
        self.who = who
        self.joined_at = joined_at
        self._limits = limits
        self._queue: deque[tuple[bytes, bool]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[object] | None = None

    def send(self, frame: Frame) -> None:
        self._push(frame, is_update=False)

    def send_update(self, frame: Frame) -> None:
        if self._queued_bytes > self._limits.unsent_bytes_soft:
            # Only the newest update needs to arrive: it takes the place of the last one that waits.
            for index in range(len(self._queue) - 1, -1, -1):
                if self._queue[index][1]:
                    self._queued_bytes += len(frame.json) - len(self._queue[index][0])
                    del self._queue[index]
                    self._queue.append((frame.json, True))
                    return
        self._push(frame, is_update=True)

    def _push(self, frame: Frame, *, is_update: bool) -> None:
        self._queued_bytes += len(frame.json)
        if self._queued_bytes > self._limits.unsent_bytes:
            self.close(4008, "the client reads too slowly")
            return
        self._queue.append((frame.json, is_update))
        self._wake.set()

    def close(self, code: int, reason: str) -> None:
        if (
            code == 4004
        ):  # a stream has no close codes: this is what tells a client not to come back
            self._push(error_frame("no_such_session", reason), is_update=False)
        self._closed = True
        self._wake.set()
        if self._task is not None:  # it may be stuck in a write that nobody reads
            asyncio.get_running_loop().call_later(CLOSE_TIMEOUT_S, self._task.cancel)

    async def stream(self, host: SessionHost, session: LiveSession) -> AsyncIterator[bytes]:
        """The response's body; leaving it leaves the session."""
        self._task = asyncio.current_task()
        try:
            yield b"retry: 1000\n\n"
            while True:
                while self._queue:
                    json, _ = self._queue.popleft()
                    self._queued_bytes -= len(json)
                    if (
                        b"\n" in json or b"\r" in json
                    ):  # white space between tokens, which a stream of lines cannot carry
                        json = json.replace(b"\r", b" ").replace(b"\n", b" ")
                    yield b"%bdata: %b\n\n" % (_id_line(json), json)
                if self._closed:
                    return
                self._wake.clear()
                try:
                    await asyncio.wait_for(self._wake.wait(), KEEPALIVE_S)
                except TimeoutError:
                    yield b": keep-alive\n\n"
        finally:
            self._task = None
            host.people.detach(session, self)


def _id_line(json: bytes) -> bytes:
    """`id:` for frames that carry a seq, which the hub always writes as the second field."""
    at = json.find(b'"seq":', 0, 40)
    if at < 0 or json.startswith(b'{"type":"ack"'):
        return b""
    end = at + 6
    while json[end : end + 1].isdigit():
        end += 1
    return b"id: " + json[at + 6 : end] + b"\n"
