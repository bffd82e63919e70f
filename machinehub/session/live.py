"""A session with what is around it: the worker that runs it, the people who watch it. And what the host asks of others."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from machinehub.session.core import Session
from machinehub.session.frames import RecentFrames
from machinehub.session.window import SendWindow

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.limits import Limits
    from machinehub.session.frames import Frame
    from machinehub.workers import Worker


class Connection(Protocol):
    """Somebody who watches a session: a WebSocket or an SSE response."""

    id: str
    user: str | None
    joined_at: str
    sender: bytes

    def send(self, frame: Frame) -> None: ...

    def send_update(self, frame: Frame) -> None:
        """An update: when the client is slow, only the newest needs to arrive."""

    def close(self, code: int, reason: str) -> None: ...


class Images(Protocol):
    async def image(self, digest: str) -> bytes: ...


class VersionRef(Protocol):
    """The version a session is opened on."""

    @property
    def number(self) -> int: ...
    @property
    def digest(self) -> str: ...
    @property
    def hears_presence(self) -> bool: ...


class LiveSession(Session):
    """A session with the people and the worker around it."""

    def __init__(self, machine_id: str, session_id: str, version: VersionRef, *, number: int, now_ms: int, limits: Limits) -> None:
        super().__init__(
            machine_id, session_id, number=number, version=version.number, digest=version.digest, created_at_ms=now_ms,
            timers_max=limits.timers, ids_max=limits.ids_remembered,
        )  # fmt: skip
        self.hears_presence = version.hears_presence
        self.last_input_ms = now_ms
        self.worker: Worker | None = None
        self.placing = False
        self.window = SendWindow()
        self.connections: dict[str, Connection] = {}
        self.emitted = RecentFrames(limits.emitted_kept_bytes)
        self.presence_due: asyncio.TimerHandle | None = None
        self.watchers: set[Callable[[Session], None]] = set()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
