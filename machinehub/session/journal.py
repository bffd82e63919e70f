"""The journal's pen: what sessions decided goes into the database, and only then may be told.

Decides: group commit (whatever is decided while a commit runs shares the next one), how long a
database may be slow before events are refused, and what a refused commit means. Does not know: SQL,
or who is told.

    decided --commit--> committed
               |--cannot be reached--> tried again, then refused: clients try again by id
               \\--it was there already--> the same lines: committed. Others: those sessions are rewound, the rest is committed
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from machinehub.errors import Unavailable
from machinehub.model import Entry, SavedCheckpoint, Settled
from machinehub.store.database import Taken
from machinehub.store.sessions import Deletion, Freeze
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from machinehub.metrics import Metrics
    from machinehub.session.core import Turn
    from machinehub.session.live import LiveSession
    from machinehub.store.sessions import Item, SessionStore

log = logging.getLogger("machinehub.journal")

LINES_AT_ONCE: Final = 1_000
LINES_WAITING_MAX: Final = 20_000
BYTES_WAITING_MAX: Final = 64 * 1024 * 1024
"""Of all sessions; above either, events are refused, since the database does not keep up."""
RETRY_S: Final = 0.05
RETRY_S_MAX: Final = 1.0
PATIENCE_S: Final = 1.0
"""New events are refused when the database has not answered for so long."""
GIVE_UP_S: Final = 5.0
"""What was decided already is refused after so long."""
PROBE_S: Final = 0.5


class Reader(Protocol):
    """Who hears what became of the lines, in their order."""

    def committed(self, session: LiveSession, turn: Turn | None) -> None: ...
    def superseded(self, session: LiveSession, known: list[Entry]) -> None:
        """The database has other lines of this session, or has some of its events already
        (`known`): it has to be restored from there.
        """

    def refused(self, session: LiveSession, error: Unavailable) -> None: ...
    def recovered(self) -> None:
        """The database answers again after lines were refused."""


@dataclass(slots=True)
class Line:
    item: Item
    session: LiveSession | None = None
    turn: Turn | None = None
    done: asyncio.Future[None] | None = None
    bytes: int = 0
    """What it holds in memory until it is committed, about."""


class Journal:
    def __init__(self, store: SessionStore, reader: Reader, metrics: Metrics) -> None:
        self._store = store
        self._reader = reader
        self._metrics = metrics
        self._queue: deque[Line] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks = Tasks()
        self._failing_since_s: float | None = None
        self._began_s: float | None = None
        """When the commit that is under way was first tried."""
        self._probing = False

    def start(self) -> None:
        self._tasks.spawn(self._write_on())

    def stop(self) -> None:
        self._tasks.cancel()

    async def drained(self) -> None:
        """Returns when everything that was added has been committed or refused."""
        await self._idle.wait()

    # --- what is written --------------------------------------------------------------------------

    def add_turn(self, session: LiveSession, turn: Turn) -> None:
        assert turn.settled is not None
        self._add(
            Line(
                turn.settled,
                session,
                turn,
                None,
                len(turn.pending.input) + len(turn.snapshot or b"") + 256 * len(turn.emitted),
            )
        )

    def add_checkpoint(self, session: LiveSession, checkpoint: SavedCheckpoint) -> None:
        self._add(
            Line(
                Freeze(session.record.key, checkpoint),
                session,
                None,
                None,
                len(checkpoint.data) + len(checkpoint.snapshot),
            )
        )

    async def delete(self, item: Deletion) -> None:
        """Behind everything that was added before. Raises `Unavailable`."""
        line = Line(item, done=asyncio.get_running_loop().create_future())
        self._add(line)
        assert line.done is not None
        await line.done

    def refusal(self) -> Unavailable | None:
        """Why no more can be taken in just now."""
        waiting_since_s = self._failing_since_s or self._began_s
        if (
            waiting_since_s is not None
            and asyncio.get_running_loop().time() - waiting_since_s > PATIENCE_S
        ):
            return Unavailable("unavailable", "the database does not answer; try again later")
        if len(self._queue) > LINES_WAITING_MAX or self._bytes > BYTES_WAITING_MAX:
            return Unavailable("unavailable", "the database does not keep up; try again later")
        return None

    def _add(self, line: Line) -> None:
        if line.session is not None:
            line.session.in_journal += 1
        self._queue.append(line)
        self._bytes += line.bytes
        self._idle.clear()
        self._wake.set()

    # --- writing ----------------------------------------------------------------------------------

    async def _write_on(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(LINES_AT_ONCE, len(self._queue)))]
                self._bytes -= sum(line.bytes for line in batch)
                try:
                    await self._commit(batch)
                except Exception:  # a mistake of ours must not silence every session for ever
                    log.exception("the journal cannot be written")
                    self._refuse(batch, Unavailable("unavailable", "the journal cannot be written"))
                self._began_s = None
            self._idle.set()

    async def _commit(self, batch: list[Line]) -> None:
        loop = asyncio.get_running_loop()
        began_s, delay_s = loop.time(), RETRY_S
        self._began_s = began_s
        while batch:
            started_s = loop.time()
            try:
                try:
                    await self._store.commit([line.item for line in batch])
                except Taken as taken:
                    batch = await self._settle_taken(batch, taken)
                    continue
            except Unavailable as error:
                self._failing_since_s = self._failing_since_s or started_s
                if loop.time() - began_s > GIVE_UP_S:
                    log.error("events are refused: %s", error.detail)
                    self._refuse(batch, error)
                    return
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_S_MAX)
                continue
            self._metrics.count_commit(len(batch), loop.time() - started_s)
            self._committed(batch)
            return

    async def _settle_taken(self, batch: list[Line], taken: Taken) -> list[Line]:
        """What is still to be committed of a batch of which something stood in the database
        already.
        """
        items = [line.item for line in batch if isinstance(line.item, Settled | Freeze)]
        foreign, all_ours = await self._store.whose(items)
        self._failing_since_s = None
        if all_ours or not any(
            isinstance(item, Settled) for item in items
        ):  # an earlier attempt did succeed; only its answer was lost
            self._committed(batch)
            return []
        if not foreign:
            raise AssertionError(f"a commit was refused, and nothing stands in its way: {taken}")
        sessions = {
            id(line.session): line.session
            for line in batch
            if line.session is not None and line.session.record.key in foreign
        }
        for session in sessions.values():
            log.info(
                "session %s/%s goes on from what the database knows",
                session.machine_id,
                session.session_id,
            )
        kept = [line for line in batch if id(line.session) not in sessions]
        self._drop(sessions)
        for session in sessions.values():
            self._reader.superseded(session, foreign[session.record.key])
        return kept

    def _committed(self, batch: list[Line]) -> None:
        self._failing_since_s = None
        for line in batch:
            if line.session is not None:
                line.session.in_journal -= 1
                try:
                    self._reader.committed(line.session, line.turn)
                except (
                    Exception
                ):  # it is committed; whoever could not be told must not keep it from the others
                    log.exception(
                        "a turn of %s/%s could not be told",
                        line.session.machine_id,
                        line.session.session_id,
                    )
            if line.done is not None and not line.done.done():
                line.done.set_result(None)

    def _refuse(self, batch: list[Line], error: Unavailable) -> None:
        """Nothing that waits can be committed before the batch: all of it is refused."""
        lines = [*batch, *self._queue]
        sessions = {id(line.session): line.session for line in lines if line.session is not None}
        self._drop(sessions)
        for line in lines:
            if line.done is not None and not line.done.done():
                line.done.set_exception(error)
        self._queue.clear()
        self._bytes = 0
        for session in sessions.values():
            try:
                self._reader.refused(session, error)
            except Exception:
                log.exception(
                    "a refusal could not be told to %s/%s", session.machine_id, session.session_id
                )
        if not self._probing:
            self._probing = True
            self._tasks.spawn(self._probe())

    def _drop(self, sessions: dict[int, LiveSession]) -> None:
        """Takes out what waits of these sessions."""
        self._queue = deque(line for line in self._queue if id(line.session) not in sessions)
        self._bytes = sum(line.bytes for line in self._queue)
        for session in sessions.values():
            session.in_journal = 0

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_S)
            try:
                await self._store.ping()
            except Unavailable:
                continue
            self._probing = False
            self._failing_since_s = None
            self._reader.recovered()
            return
