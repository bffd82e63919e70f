"""A session with what is around it: the worker that runs it, the people who watch it.

And what the host asks of others.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from machinehub.rates import Rate
from machinehub.session.core import Session
from machinehub.session.frames import RecentFrames
from machinehub.session.members import Members
from machinehub.session.window import SendWindow

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.limits import Limits
    from machinehub.model import Image, SessionRecord
    from machinehub.session.core import Receipt
    from machinehub.session.frames import Frame
    from machinehub.session.members import Identity
    from sandbox.protocol import Question, ToWorker


class Connection(Protocol):
    """Somebody who watches a session: a WebSocket or an SSE response."""

    who: Identity
    joined_at: str

    def send(self, frame: Frame) -> None: ...

    def send_update(self, frame: Frame) -> None:
        """An update: when the client is slow, only the newest needs to arrive."""

    def close(self, code: int, reason: str) -> None: ...


class Images(Protocol):
    async def image(self, digest: str) -> Image: ...

    def at_hand(self, digest: str) -> Image | None:
        """The image, if it is in memory."""


class SandboxWorker(Protocol):
    """What a session needs of the worker that it lives on (`workers.Worker`)."""

    suspect: int | None
    lost: bool

    def ask(self, about: int, message: Question) -> None: ...
    def tell(self, message: ToWorker) -> None: ...
    def take(self, digest: str, image: Image) -> None: ...
    def leave(self, digest: str) -> None: ...
    def kill(self, why: str, *, suspect: int | None = None) -> None: ...


class SandboxWorkers(Protocol):
    def choose(self, *, modules: bool = False, machine: str = "") -> SandboxWorker | None:
        """One that is ready, if there is, of those where this machine's sessions live; modules live
        apart from scripts.
        """

    async def wait_for_worker(
        self, *, modules: bool = False, machine: str = ""
    ) -> SandboxWorker: ...


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

    def __init__(self, record: SessionRecord, *, number: int, now_ms: int, limits: Limits) -> None:
        super().__init__(record, number=number, limits=limits)
        self.last_input_ms = now_ms
        self.worker: SandboxWorker | None = None
        self.placing = False
        self.window = SendWindow()
        self.limits: Limits | None = None
        """What its version allows, once somebody has asked the catalog."""
        self._hubs_limits = limits
        self.joins = Rate(limits.joins_per_s, burst=limits.connections_per_session)
        self.connections: dict[int, Connection] = {}
        self.members = Members()
        self.newcomers: list[Connection] = []
        """Connections that have not been told who is there."""
        self.leaving: dict[str, asyncio.TimerHandle] = {}
        """Members without a connection, and when they are given up."""
        self.emitted = RecentFrames(limits.emitted_kept_bytes)
        self.presence_due: asyncio.TimerHandle | None = None
        self.watchers: set[Callable[[Session], None]] = set()
        self.in_journal = 0
        """Lines of it that are on their way into the database."""
        self.recognised: list[Receipt] = []
        """Of events that had been committed after all, to be answered when that can be read."""
        self.restoring: asyncio.Future[None] | None = None
        self.opened: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Done when the session can be read; says whether it was created then."""

    @property
    def allowed(self) -> Limits:
        """What its version allows, as far as that is known; else what the hub does."""
        return self.limits or self._hubs_limits

    @property
    def at_rest(self) -> bool:
        """Whether nothing about it is under way."""
        return (
            self.opened.done()
            and not self.pending
            and not self.waiting
            and not self.in_journal
            and not self.placing
            and self.restoring is None
            and not self.snapshot_is_old
        )
