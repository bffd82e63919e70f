"""The journal's writer: what sessions decided goes into the database, and only then may be told.

Decides: group commit (whatever is decided while a commit runs shares the next one), how long a
database may be slow before events are refused, and what a commit means that was refused. Does not
know: SQL, or who is told.

    decided --commit--> committed
               |--cannot be reached--> tried again, then refused: clients try again by id
               |--the same entries stand there--> committed
               \\--others stand there--> those sessions are rewound, the rest is committed
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from machinehub.errors import Unavailable
from machinehub.model import CheckpointWrite, Release, TurnWrite
from machinehub.store.database import AlreadyWritten
from machinehub.store.trouble import UNREACHABLE, unavailable
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from machinehub.ids import SessionKey
    from machinehub.metrics import Metrics
    from machinehub.model import Entry, SavedCheckpoint, SessionDelete, Write
    from machinehub.session.decide.session import Session
    from machinehub.session.decide.turn import Turn
    from machinehub.store.sessions import SessionStore

log = logging.getLogger("machinehub.journal")

LINES_AT_ONCE: Final = 1_000
LINES_WAITING_MAX: Final = 20_000
BYTES_WAITING_MAX: Final = 64 * 1024 * 1024
"""How many writes (`LINES_WAITING_MAX`) and bytes of all sessions may wait to be committed. Above
either, new events are refused, because the database does not keep up.
"""
RETRY_S: Final = 0.05
RETRY_S_MAX: Final = 1.0
PATIENCE_S: Final = 1.0
"""New events are refused when the database has not answered for so long."""
GIVE_UP_S: Final = 5.0
"""What was decided already is refused after so long."""
PROBE_S: Final = 0.5
LATELY_S: Final = 10.0


class CommitOutcomes(Protocol):
    """Who hears what became of what was written, in its order."""

    def committed(self, session: Session, turn: Turn | None) -> None:
        """The turn is in the database; None for a checkpoint."""

    def superseded(self, session: Session, known: list[Entry]) -> None:
        """The database has other entries of this session, or has some of its events already
        (`known`): it has to be restored from there.
        """

    def refused(self, session: Session, error: Unavailable) -> None:
        """The database cannot be reached: nothing that was decided of the session was committed, as
        far as is known.
        """

    def recovered(self) -> None:
        """The database answers again after something was refused."""


@dataclass(slots=True)
class QueuedWrite:
    """What waits to be committed, and who is to hear of it."""

    item: Write
    session: Session | None = None
    turn: Turn | None = None
    done: asyncio.Future[None] | None = None
    bytes: int = 0
    """What it holds in memory until it is committed, about."""


class Journal:
    """The queue of writes to the database, which one task commits in batches (group commit).

    Every write is reported to `CommitOutcomes` in the order of the queue: committed, superseded or
    refused.
    """

    def __init__(self, store: SessionStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._queue: deque[QueuedWrite] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks = Tasks()
        self._failing_since_s: float | None = None
        self._failure: Unavailable | None = None
        """Why the last attempt failed."""
        self._last_failure: tuple[float, Unavailable] | None = None
        self._began_s: float | None = None
        """When the commit that is under way was first tried."""
        self._probing = False
        self._uncommitted: dict[Session, int] = {}
        """How much of a session is on its way into the database."""
        self._outcomes: CommitOutcomes

    def report_to(self, outcomes: CommitOutcomes) -> None:
        """Once, before anything is added."""
        self._outcomes = outcomes

    def holds(self, session: Session) -> bool:
        """Whether something of the session is on its way into the database."""
        return session in self._uncommitted

    def start(self) -> None:
        self._tasks.spawn(self._write_on())

    def stop(self) -> None:
        self._tasks.stop()

    async def drained(self) -> None:
        """Returns when everything that was added has been committed or refused."""
        await self._idle.wait()

    # --- what is written --------------------------------------------------------------------------

    def add_turn(self, session: Session, turn: Turn) -> None:
        """Queues a turn for the next commit. The turn must have a `write`."""
        assert turn.write is not None
        self._add(
            QueuedWrite(
                turn.write,
                session,
                turn,
                None,
                len(turn.pending.input) + len(turn.snapshot or b"") + 256 * len(turn.emitted),
            )
        )

    def add_checkpoint(
        self, session: Session, checkpoint: SavedCheckpoint, *, compacts: bool = False
    ) -> None:
        self._add(
            QueuedWrite(
                CheckpointWrite(session.record.key, checkpoint, compacts),
                session,
                None,
                None,
                len(checkpoint.data) + len(checkpoint.snapshot),
            )
        )

    async def delete(self, item: SessionDelete) -> None:
        """Behind everything that was added before. Raises `Unavailable`."""
        line = QueuedWrite(item, done=asyncio.get_running_loop().create_future())
        self._add(line)
        assert line.done is not None
        await line.done

    def release(self, key: SessionKey, claim: int) -> asyncio.Future[None]:
        """Another node may claim the session, behind everything that was added before. Done when it
        is so; what raises is `Unavailable`.
        """
        line = QueuedWrite(Release(key, claim), done=asyncio.get_running_loop().create_future())
        self._add(line)
        assert line.done is not None
        line.done.add_done_callback(asyncio.Future.exception)  # nobody may be waiting
        return line.done

    def refusal(self) -> Unavailable | None:
        """Why no more can be taken in just now."""
        waiting_since_s = self._failing_since_s or self._began_s
        if (
            waiting_since_s is not None
            and asyncio.get_running_loop().time() - waiting_since_s > PATIENCE_S
        ):
            return self._failure or unavailable(UNREACHABLE)
        if len(self._queue) > LINES_WAITING_MAX or self._bytes > BYTES_WAITING_MAX:
            return Unavailable("unavailable", "the database does not keep up; try again later")
        return None

    @property
    def waiting(self) -> int:
        """How much waits to be committed."""
        return len(self._queue)

    def failed_lately(self) -> Unavailable | None:
        """Why the last commit failed, if that was not long ago. A full disk may have room for less
        than events need, so nothing else shows that events can be written.
        """
        if self._last_failure is None:
            return None
        at_s, error = self._last_failure
        return error if asyncio.get_running_loop().time() - at_s < LATELY_S else None

    def _add(self, line: QueuedWrite) -> None:
        if line.session is not None:
            self._uncommitted[line.session] = self._uncommitted.get(line.session, 0) + 1
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

    async def _commit(self, batch: list[QueuedWrite]) -> None:
        loop = asyncio.get_running_loop()
        began_s, delay_s = loop.time(), RETRY_S
        self._began_s = began_s
        while batch:
            started_s = loop.time()
            try:
                try:
                    await self._store.commit([line.item for line in batch])
                except AlreadyWritten as found:
                    batch = await self._settle_already_written(batch, found)
                    continue
            except Unavailable as error:
                self._failing_since_s, self._failure = self._failing_since_s or started_s, error
                self._last_failure = (loop.time(), error)
                self._metrics.commit_failures.labels(error.more.get("reason", "unknown")).inc()
                if loop.time() - began_s > GIVE_UP_S:
                    log.error("events are refused: %s", error.detail)
                    self._refuse(batch, error)
                    return
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_S_MAX)
                continue
            self._metrics.count_commit(len(batch), loop.time() - started_s)
            self._last_failure = None
            self._committed(batch)
            return

    async def _settle_already_written(
        self, batch: list[QueuedWrite], found: AlreadyWritten
    ) -> list[QueuedWrite]:
        """What is still to be committed of a batch of which something stood in the database
        already.
        """
        items = [line.item for line in batch if isinstance(line.item, TurnWrite | CheckpointWrite)]
        foreign, all_ours = await self._store.explain_conflict(items)
        self._failing_since_s = self._failure = None
        if all_ours or not any(
            isinstance(item, TurnWrite) for item in items
        ):  # an earlier attempt did succeed; only its answer was lost
            self._committed(batch)
            return []
        if not foreign:
            raise AssertionError(f"a commit was refused, and nothing stands in its way: {found}")
        rewound = {
            line.session
            for line in batch
            if line.session is not None and line.session.record.key in foreign
        }
        sessions = [
            each for each in dict.fromkeys(line.session for line in batch) if each in rewound
        ]
        for session in sessions:
            log.info("session %s goes on from what the database knows", session.name)
        kept = [line for line in batch if line.session not in rewound]
        self._drop(rewound)
        for session in sessions:
            self._outcomes.superseded(session, foreign[session.record.key])
        return kept

    def _committed(self, batch: list[QueuedWrite]) -> None:
        self._failing_since_s = self._failure = None
        for line in batch:
            if line.session is not None:
                left = self._uncommitted.get(line.session, 1) - 1
                if left:
                    self._uncommitted[line.session] = left
                else:
                    self._uncommitted.pop(line.session, None)
                try:
                    self._outcomes.committed(line.session, line.turn)
                except (
                    Exception
                ):  # it is committed; whoever could not be told must not keep it from the others
                    log.exception("a turn of %s could not be told", line.session.name)
            if line.done is not None and not line.done.done():
                line.done.set_result(None)

    def _refuse(self, batch: list[QueuedWrite], error: Unavailable) -> None:
        """Nothing that waits can be committed before the batch: all of it is refused."""
        lines = [*batch, *self._queue]
        sessions = dict.fromkeys(line.session for line in lines if line.session is not None)
        self._drop(sessions.keys())
        for line in lines:
            if line.done is not None and not line.done.done():
                line.done.set_exception(error)
        self._queue.clear()
        self._bytes = 0
        for session in sessions:
            try:
                self._outcomes.refused(session, error)
            except Exception:
                log.exception("a refusal could not be told to %s", session.name)
        if not self._probing:
            self._probing = True
            self._tasks.spawn(self._probe())

    def _drop(self, sessions: AbstractSet[Session]) -> None:
        """Takes out what waits of these sessions."""
        self._queue = deque(line for line in self._queue if line.session not in sessions)
        self._bytes = sum(line.bytes for line in self._queue)
        for session in sessions:
            self._uncommitted.pop(session, None)

    async def _probe(self) -> None:
        while True:
            await asyncio.sleep(PROBE_S)
            try:
                await self._store.ping()
            except Unavailable:
                continue
            except Exception:  # nothing would be written ever again
                log.exception("the database could not be tried")
                continue
            self._probing = False
            log.warning("the database is written again")
            self._failing_since_s = self._failure = None
            self._outcomes.recovered()
            return
