"""The session host: carries words between sessions, sandbox workers, timers and connections.

The thin shell around `core.py`. Decides: which worker a session lives on, when it is thawed and put to sleep, and that
results are spoken only here, after they are settled. Does not know: HTTP, WebSockets, SQL.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from machinehub.errors import Conflict, HubError, NotFound, PreconditionFailed, Unavailable, error_of
from machinehub.session import frames, presence
from machinehub.session.alarm import Alarm
from machinehub.session.core import BrokenWorker, Kind, Receipt, Session, Turn
from machinehub.session.event import event_input, sender_json, start_input, timer_input
from machinehub.session.live import LiveSession
from sandbox.protocol import Checkpoint, Close, Done, Failed, Frozen, Open, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from machinehub.clock import Clock, Entropy
    from machinehub.limits import Limits
    from machinehub.logs import MachineLogs
    from machinehub.metrics import Metrics
    from machinehub.session.frames import Frame
    from machinehub.session.live import Connection, Images, VersionRef
    from machinehub.workers import Worker, WorkerPool
    from sandbox.protocol import ToHub

log = logging.getLogger("machinehub.session")

HIBERNATE_AFTER_MS: Final = 60_000
"""A session without input for this long is frozen and leaves its worker; its sockets stay open."""
SWEEP_S: Final = 5.0
COPIES_WAITING_MAX: Final = 64
"""Copies of one event that may wait for its answer."""


class SessionHost:
    def __init__(
        self, pool: WorkerPool, images: Images, clock: Clock, entropy: Entropy, limits: Limits, *, logs: MachineLogs, metrics: Metrics
    ) -> None:
        self._pool = pool
        self._images = images
        self._clock = clock
        self._entropy = entropy
        self._limits = limits
        self._logs = logs
        self._metrics = metrics
        self._sessions: dict[tuple[str, str], LiveSession] = {}
        self._by_number: dict[int, LiveSession] = {}
        self._numbers = 0
        self.alarm = Alarm(clock, self._timer_due)
        self._tasks: set[asyncio.Task[None]] = set()
        self._waits: set[asyncio.Future[Any]] = set()
        self._deleted: set[str] = set()

    def start(self) -> None:
        self._spawn(self._sweep())

    async def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        self.alarm.stop()

    # --- opening and closing -----------------------------------------------------------------------------------

    def find(self, machine_id: str, session_id: str) -> LiveSession | None:
        return self._sessions.get((machine_id, session_id))

    def sessions_of(self, machine_id: str) -> list[LiveSession]:
        return [session for session in self._sessions.values() if session.machine_id == machine_id and session.started]

    def __len__(self) -> int:
        return len(self._sessions)

    async def open(self, machine_id: str, session_id: str, version: VersionRef, *, input_json: bytes | None = None) -> LiveSession:
        """The session, created on `version` when it is new. Raises `Rejected` when its machine cannot start."""
        session = self.find(machine_id, session_id) or self._create(machine_id, session_id, version, input_json)
        if not session.started:
            await asyncio.shield(session.opened)
        return session

    async def create(self, machine_id: str, session_id: str, version: VersionRef, *, input_json: bytes | None) -> LiveSession:
        """A new session. Raises `Conflict` when there is one of this name."""
        if self.find(machine_id, session_id) is not None:
            raise Conflict("session_exists", "there is a session of this name; its input was given when it began")
        return await self.open(machine_id, session_id, version, input_json=input_json)

    def _create(self, machine_id: str, session_id: str, version: VersionRef, input_json: bytes | None) -> LiveSession:
        if machine_id in self._deleted:  # it was found just before; ids are never used twice
            raise NotFound("no_such_machine", f"there is no machine {machine_id!r}")
        self._numbers += 1
        now_ms = self._clock.now_ms()
        session = LiveSession(machine_id, session_id, version, number=self._numbers, now_ms=now_ms, limits=self._limits)
        self._sessions[machine_id, session_id] = session
        self._by_number[session.number] = session
        self._offer(session, Kind.START, start_input(self._entropy.turn_seed(), input_json))
        return session

    def delete(self, session: LiveSession, *, code: int = 4004, reason: str = "the session was deleted") -> None:
        """Forgets a session; whoever is connected is told and closed."""
        session.gone = True
        self._sessions.pop((session.machine_id, session.session_id), None)
        self._by_number.pop(session.number, None)
        self._leave_worker(session)
        for turn in session.refuse_pending("session_deleted", reason):
            self._answer(turn.receipt)
        for connection in list(session.connections.values()):
            connection.close(code, reason)
        if not session.opened.done():
            session.opened.set_exception(NotFound("no_such_session", reason))
            session.opened.exception()
        self._notify(session)

    def delete_machine(self, machine_id: str) -> None:
        self._deleted.add(machine_id)
        for session in [s for s in self._sessions.values() if s.machine_id == machine_id]:
            self.delete(session, reason="the machine was deleted")

    def _new_wait(self) -> asyncio.Future[Any]:
        """A future that also ends when the hub goes away."""
        wait: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waits.add(wait)
        wait.add_done_callback(self._waits.discard)
        return wait

    def say_goodbye(self, code: int, reason: str) -> None:
        """Closes every connection, and ends every request that waits for something."""
        for wait in [*self._waits, *(session.opened for session in self._sessions.values())]:
            if not wait.done():
                wait.set_exception(Unavailable("unavailable", reason))
                wait.exception()  # nobody may be waiting
        for session in self._sessions.values():
            for connection in list(session.connections.values()):
                connection.close(code, reason)

    # --- events ------------------------------------------------------------------------------------------------

    def send(self, session: LiveSession, event: bytes, sender: bytes, *, event_id: str | None, then: Callable[[Receipt], None] | None) -> None:
        """Hands a checked event to the session; `then` hears what became of it, at once when the id is known.

        Raises `Conflict` when the session is finished and `Unavailable` when too much waits.
        """
        receipt, is_new = session.receipt_of(event_id)
        if not is_new:
            if then is not None:
                if receipt.settled:
                    then(receipt)
                elif len(receipt.waiting) < COPIES_WAITING_MAX:
                    receipt.waiting.append(then)
                else:
                    raise Unavailable("unavailable", "too many copies of this event wait for its answer")
            return
        error = self._refusal(session)
        if error is not None:
            session.forget_receipt(event_id)
            raise error
        if then is not None:
            receipt.waiting.append(then)
        self._offer(session, Kind.EVENT, event_input(self._entropy.turn_seed(), event, sender), receipt)

    async def send_and_wait(
        self, session: LiveSession, event: bytes, sender: bytes, *, event_id: str | None = None, if_match: int | None = None
    ) -> tuple[Receipt, bytes]:
        """`send`, awaited: what became of the event, and the snapshot right after it.

        With `if_match` the event is sent only while the session's seq is that number. Raises `PreconditionFailed`.
        """
        if if_match is not None and not session.knows(event_id):
            while session.pending:  # what is under way may move the seq
                await self.next_turn(session)
            if session.seq != if_match and not session.knows(event_id):
                raise PreconditionFailed("seq_moved", f"the session is at {session.seq}, not at {if_match}")
        answered: asyncio.Future[tuple[Receipt, bytes]] = self._new_wait()

        def settle(receipt: Receipt) -> None:
            if not answered.done():
                answered.set_result((receipt, session.snapshot))

        self.send(session, event, sender, event_id=event_id, then=settle)
        return await answered

    async def wait_until(self, session: LiveSession, holds: Callable[[bytes], bool]) -> Frame:
        """The first snapshot frame, from now on, on which `holds`. Raises `PreconditionFailed` when the session ends without it."""
        found: asyncio.Future[Frame] = self._new_wait()

        def look(_: Session) -> None:
            # Looked at as each turn settles, not when a task wakes up: later turns may have come by then.
            if found.done():
                return
            if holds(session.snapshot):
                found.set_result(self.snapshot_frame(session))
            elif session.finished or session.gone:
                found.set_exception(PreconditionFailed("session_ended", "the session ended without it"))

        session.watchers.add(look)
        try:
            look(session)
            return await found
        finally:
            session.watchers.discard(look)

    async def next_turn(self, session: LiveSession) -> None:
        """Returns after something about the session settled."""
        happened: asyncio.Future[None] = self._new_wait()

        def notice(_: Session) -> None:
            if not happened.done():
                happened.set_result(None)

        session.watchers.add(notice)
        try:
            await happened
        finally:
            session.watchers.discard(notice)

    def _refusal(self, session: LiveSession) -> HubError | None:
        if session.gone:
            return NotFound("no_such_session", "the session was deleted")
        if session.finished:
            return Conflict("session_finished", "the session has ended and takes no more events")
        if len(session.pending) >= self._limits.pending_per_session or session.pending_bytes >= self._limits.pending_bytes:
            return Unavailable("unavailable", "too many events of this session wait for their turn")
        return None

    def _offer(self, session: LiveSession, kind: Kind, data: bytes, receipt: Receipt | None = None, *, timer: int = 0) -> None:
        now_ms = session.last_input_ms = self._clock.now_ms()
        session.offer(kind, data, now_ms, receipt, timer=timer)
        if session.worker is not None:
            self._send_steps(session)
        else:
            self._place(session)

    def _send_steps(self, session: LiveSession) -> None:
        """Hands over what fits into the session's window."""
        worker = session.worker
        while worker is not None and (index := session.window.next(len(session.pending))) is not None:
            pending = session.pending[index]
            if pending.kind is Kind.CHECKPOINT:
                worker.ask(session.number, Checkpoint(session.number, pending.ticket))
            else:
                worker.ask(session.number, Step(session.number, pending.ticket, pending.input, pending.now_ms, self._cpu_ms(pending.kind)))

    def _step_settled(self, session: LiveSession, *, overran: bool) -> None:
        pause_s = session.window.settled(overran=overran)
        if pause_s:
            asyncio.get_running_loop().call_later(pause_s, self._resume, session)
        else:
            self._send_steps(session)

    def _resume(self, session: LiveSession) -> None:
        session.window.resume()
        self._send_steps(session)

    def _timer_due(self, session: LiveSession, timer: int) -> None:
        self._offer(session, Kind.TIMER, timer_input(self._entropy.turn_seed(), timer), timer=timer)

    def _cpu_ms(self, kind: Kind) -> int:
        return self._limits.start_cpu_ms if kind is Kind.START else self._limits.event_cpu_ms

    # --- where sessions live -----------------------------------------------------------------------------------

    def _place(self, session: LiveSession) -> None:
        if not session.placing:
            session.placing = True
            self._spawn(self._place_soon(session))

    async def _place_soon(self, session: LiveSession) -> None:
        try:
            image = await self._images.image(session.digest)
            worker = await self._pool.wait_for_worker()
        except HubError as error:
            self._lose(session, error.code, error.detail)
            return
        finally:
            session.placing = False
        if session.gone:
            return
        # A new number each time: what an earlier worker, or an earlier stay on this one, still has to say is nobody's.
        self._by_number.pop(session.number, None)
        self._numbers += 1
        session.number = self._numbers
        self._by_number[session.number] = session
        worker.take(session.digest, image)
        session.worker = worker
        limits = self._limits
        worker.ask(
            session.number,
            Open(session.number, 0, session.digest, limits.memory_bytes, limits.snapshot_bytes, limits.emitted_bytes, session.checkpoint, session.tail),
        )
        session.window.restart()
        self._send_steps(session)

    def _leave_worker(self, session: LiveSession) -> None:
        worker, session.worker = session.worker, None
        if worker is not None and not worker.lost:
            worker.tell(Close(session.number))
            worker.leave(session.digest)

    def worker_lost(self, worker: Worker) -> None:
        """Every session that lived there is thawed elsewhere, from its checkpoint and the inputs since.

        The one whose answer was due next is held to blame: a worker does its work in order.
        """
        self._metrics.worker_crashes.inc()
        for session in [s for s in self._sessions.values() if s.worker is worker]:
            session.worker = None
            self._move(session, blamed=session.number == worker.suspect)

    def _move(self, session: LiveSession, *, blamed: bool) -> None:
        turn = session.crashed() if blamed else None
        if turn is not None:
            self._speak(session, turn)
        if session.pending and not session.gone:
            self._place(session)

    def _lose(self, session: LiveSession, code: str, message: str) -> None:
        """The session cannot be thawed: say so, rather than go on from a guess."""
        log.error("session %s/%s cannot be restored: %s", session.machine_id, session.session_id, message)
        session.forget_unsettled()
        for turn in session.refuse_pending(code, message):
            self._speak(session, turn)

    async def _sweep(self) -> None:
        """Puts idle sessions to sleep."""
        while True:
            await asyncio.sleep(SWEEP_S)
            before_ms = self._clock.now_ms() - HIBERNATE_AFTER_MS
            live = sorted(session.last_input_ms for session in self._sessions.values() if session.worker is not None)
            if len(live) > self._limits.live_sessions:  # too many to wait for: those that were idle longest go now
                before_ms = max(before_ms, live[len(live) - self._limits.live_sessions])
            self.hibernate_idle(before_ms)

    def hibernate_idle(self, before_ms: int) -> int:
        """Freezes every session without input since `before_ms`; returns how many it asked for."""
        asked = 0
        for session in self._by_number.values():
            if session.worker is not None and session.started and not session.pending and session.last_input_ms <= before_ms:
                self._checkpoint(session)
                asked += 1
        return asked

    def _checkpoint(self, session: LiveSession) -> None:
        session.offer(Kind.CHECKPOINT, b"", self._clock.now_ms())
        self._send_steps(session)

    # --- what workers answer -----------------------------------------------------------------------------------

    def worker_answered(self, worker: Worker, messages: list[ToHub]) -> None:
        for message in messages:
            if not isinstance(message, Done | Failed | Frozen):
                worker.kill("it said what a session worker never says")
                return
            session = self._by_number.get(message.session)
            if session is None or session.worker is not worker:
                continue  # deleted or moved meanwhile; a worker may not speak for what it does not hold
            try:
                if isinstance(message, Frozen):
                    session.frozen(message.checkpoint)
                else:
                    self._settle(session, message)
            except BrokenWorker as error:
                worker.kill(str(error), suspect=session.number)
                return

    def _settle(self, session: LiveSession, message: Done | Failed) -> None:
        if message.ticket == 0:  # Open
            if isinstance(message, Failed):
                self._leave_worker(session)
                self._lose(session, message.code, message.message)
            return
        if isinstance(message, Done):
            turn = session.done(message.ticket, message.result)
            self._step_settled(session, overran=False)
            if turn is None:  # it was put to sleep; unless something came meanwhile, it leaves
                if not session.pending:
                    self._leave_worker(session)
                self._notify(session)
                return
        elif message.code == "session_lost":
            self._leave_worker(session)
            self._move(session, blamed=True)
            return
        else:
            turn = session.failed(message.ticket, message.code, message.message, message.at)
            self._step_settled(session, overran=message.code == "cpu_exceeded")
        self._speak(session, turn)

    def _speak(self, session: LiveSession, turn: Turn) -> None:
        """Tells everybody what a settled turn changed: nothing of it was visible before."""
        if turn.timers_set:
            self.alarm.set(session, turn.timers_set)
        if turn.error is not None:
            self._metrics.rejected.labels(code=turn.error[0]).inc()
            self._logs.add(session.machine_id, session.session_id, "error", f"{turn.error[0]}: {turn.error[1]}", self._clock.now_ms())
        else:
            self._metrics.count_turn()
        for level, text in turn.logs:
            self._logs.add(session.machine_id, session.session_id, level, text, self._clock.now_ms())
        if turn.started:
            self._opened(session, turn)
        if turn.changed and session.connections:
            update = frames.update_frame(turn.seq, session.snapshot)
            for connection in list(session.connections.values()):
                connection.send_update(update)
        for event in turn.emitted:
            emitted = frames.emitted_frame(turn.seq, event)
            session.emitted.add(turn.seq, emitted)
            for connection in list(session.connections.values()):
                connection.send(emitted)
        self._answer(turn.receipt)
        if session.watchers:
            self._notify(session)

    def _opened(self, session: LiveSession, turn: Turn) -> None:
        if turn.error is None:
            self._metrics.sessions_opened.inc()
            if not session.opened.done():
                session.opened.set_result(None)
            return
        # A session that cannot start never was: the name is free again.
        if not session.opened.done():
            session.opened.set_exception(error_of(*turn.error))
            session.opened.exception()  # nobody may be waiting any more
        self.delete(session, reason="the session could not start")

    @staticmethod
    def _answer(receipt: Receipt | None) -> None:
        if receipt is not None:
            waiting, receipt.waiting = receipt.waiting, []
            for then in waiting:
                then(receipt)

    @staticmethod
    def _notify(session: LiveSession) -> None:
        for notice in list(session.watchers):
            notice(session)

    # --- people ------------------------------------------------------------------------------------------------

    def attach(self, session: LiveSession, connection: Connection) -> None:
        """Adds a watcher: it gets the snapshot first, then everything that follows. Raises `Unavailable` when full."""
        if session.gone:
            raise NotFound("no_such_session", "the session was deleted")
        if len(session.connections) >= self._limits.connections_per_session:
            raise Unavailable("connections_exceeded", f"a session has at most {self._limits.connections_per_session} connections")
        session.connections[connection.id] = connection
        connection.send(self.snapshot_frame(session, connection.id))
        self._presence(session, b"presence.joined", connection)

    def detach(self, session: LiveSession, connection: Connection) -> None:
        if session.connections.pop(connection.id, None) is not None:
            self._presence(session, b"presence.left", connection)

    @staticmethod
    def snapshot_frame(session: LiveSession, connection_id: str | None = None) -> Frame:
        return frames.snapshot_frame(
            seq=session.seq, version=session.version, snapshot=session.snapshot, connection_id=connection_id, count=len(session.connections)
        )

    def _presence(self, session: LiveSession, kind: bytes, connection: Connection) -> None:
        if session.gone:
            return
        if session.hears_presence and not session.finished:
            event = b'{"type":"%b","count":%d}' % (kind, len(session.connections))
            with contextlib.suppress(HubError):
                self.send(session, event, connection.sender, event_id=None, then=None)
        presence.tell_soon(session)

    def sender(self, user: str | None = None) -> tuple[str, bytes]:
        """A new connection's id, and its `sender` as JSON."""
        connection_id = self._entropy.connection_id()
        return connection_id, sender_json(connection_id, user)

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
