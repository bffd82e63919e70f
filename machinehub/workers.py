"""Sandbox workers: starting, watching and talking to the processes that run strangers' code.

Decides: how many there are, which one a session goes to, when one is given up for dead. Does not know: what a session
is; messages carry numbers. Everything a worker says is checked by type here and by meaning in `session/core.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, cast

from machinehub.errors import BuildFailed as BuildFailedError
from machinehub.errors import Unavailable
from machinehub.tasks import Tasks
from sandbox import protocol
from sandbox.protocol import (
    Build,
    BuildFailed,
    Built,
    EngineGiven,
    Forget,
    Frozen,
    GiveEngine,
    Inputs,
    InputsFound,
    LoadEngine,
    LoadImage,
    Progress,
    Ready,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from machinehub.model import Image

log = logging.getLogger("machinehub.workers")

SILENCE_S: Final = 15.0
"""A worker that owes answers and says nothing for this long is killed. Answers leave every few milliseconds; an undo may take 5 s."""
RESTART_DELAYS_S: Final = (0.0, 0.1, 0.5, 2.0)
"""How long to wait before a worker is started again that died again and again; the last one repeats."""
BUILD_TIMEOUT_S: Final = 20.0
"""Of one build, from when the forge begins it: bundling and loading are limited to less by CPU."""
BUILDS_WAITING_MAX: Final = 64
WORKER_WAIT_S: Final = 30.0
START_S: Final = 120.0
"""From a worker's start to its being ready: compiling esbuild takes ten seconds on a quiet computer."""
START_TRIES: Final = 5


class Listener(Protocol):
    """Who hears of the sessions' answers."""

    def worker_answered(self, worker: Worker, messages: list[protocol.ToHub], /) -> None: ...

    def worker_lost(self, worker: Worker, /) -> None: ...


class Worker(asyncio.Protocol):
    """One worker process and the socket to it. It is replaced, not restarted: its number never comes again."""

    def __init__(self, number: int, on_messages: Callable[[Worker, list[protocol.ToHub]], None], on_lost: Callable[[Worker], None]) -> None:
        self.number = number
        self.ready = asyncio.Event()
        self.lost = False
        self.suspect: int | None = None
        self._killed = False
        self.heard_at = 0.0
        self.started_at = 0.0
        self._images: Counter[str] = Counter()
        self._engines: set[str] = set()
        self._owed: deque[int] = deque()
        self.process: asyncio.subprocess.Process | None = None
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._reader = protocol.to_hub_reader()
        self._outgoing: list[protocol.ToWorker] = []
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self, *, cache: Path, forge: bool) -> None:
        ours, theirs = socket.socketpair()
        try:
            for end in (ours, theirs):
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    end.setsockopt(socket.SOL_SOCKET, option, 1024 * 1024)
            arguments = [sys.executable, "-m", "sandbox.worker", "--fd", str(theirs.fileno()), "--cache", str(cache)]
            self.process = await asyncio.create_subprocess_exec(
                *arguments, *(["--forge"] if forge else []),
                pass_fds=[theirs.fileno()], env={}, cwd=Path(protocol.__file__).parents[1],
                stdin=asyncio.subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.started_at = self._loop.time()
        ours.setblocking(False)
        await self._loop.create_connection(lambda: self, sock=ours)

    # --- asyncio.Protocol --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if self._killed:
            return  # what it says after it was given up may contradict what is done elsewhere now
        self.heard_at = self._loop.time()
        try:
            for batch in self._reader.feed(data):
                for message in batch:
                    if not isinstance(message, Ready | Progress | Frozen) and self._owed:
                        self._owed.popleft()
                self._on_messages(self, batch)
                if self._killed:
                    return
        except protocol.BadFrame as error:
            self.kill(f"it sent no frame of the protocol: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            if not self._killed:
                self.suspect = self._due_next
            self._on_lost(self)

    # --- words of our own --------------------------------------------------------------------------------------

    @property
    def session_count(self) -> int:
        return self._images.total()

    @property
    def owes(self) -> int:
        """How many answers are due."""
        return len(self._owed)

    @property
    def _due_next(self) -> int | None:
        """Whom the next answer is about: what the worker does now."""
        return self._owed[0] if self._owed else None

    def ask(self, about: int, message: protocol.ToWorker) -> None:
        """Sends a message that will be answered, about a session or a build."""
        if not self._owed:
            self.heard_at = self._loop.time()
        self._owed.append(about)
        self.tell(message)

    def tell(self, message: protocol.ToWorker) -> None:
        """Sends `message` with whatever else is sent in this turn of the event loop."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(message)

    def take(self, digest: str, image: Image) -> None:
        """Another session of this image comes to live here; the image is sent along with the first, and its engine if it is an old one."""
        if not self._images[digest]:
            if image.engine_code and image.engine not in self._engines:
                self._engines.add(image.engine)
                self.tell(LoadEngine(image.engine, image.engine_code))
            self.tell(LoadImage(digest, image.image))
        self._images[digest] += 1

    def leave(self, digest: str) -> None:
        """A session of this image is gone; with the last one the image goes too."""
        self._images[digest] -= 1
        if self._images[digest] <= 0:
            del self._images[digest]
            self.tell(Forget(digest))

    def _flush(self) -> None:
        messages, self._outgoing = self._outgoing, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(protocol.encode(messages))

    def kill(self, why: str, *, suspect: int | None = None) -> None:
        """Ends the process. `suspect` is the session to blame; else the one whose answer was due next, since a worker works
        in order."""
        if self._killed:
            return
        log.error("killing sandbox worker %d: %s", self.number, why)
        self._killed = True
        self.suspect = self._due_next if suspect is None else suspect
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()

    async def stop(self) -> None:
        """Closes the socket, which ends the worker; kills it when that takes too long."""
        self.lost = True
        if self._transport is not None:
            self._transport.close()
        if self.process is not None:
            try:
                await asyncio.wait_for(self.process.wait(), 2)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self.process.kill()
                await self.process.wait()


class WorkerPool:
    """The session workers of a hub, and its one forge."""

    def __init__(self, *, count: int, cache: Path, on_progress: Callable[[str], None] | None = None) -> None:
        self._count = count
        self._cache = cache
        self._on_progress = on_progress or (lambda what: None)
        self._numbers = 0
        self._crashes = 0
        self.restarts = 0
        self._listener: Listener | None = None
        self.workers: list[Worker] = []
        self._forge: Worker | None = None
        self._tickets = 0
        self._answer: asyncio.Future[protocol.ToHub] | None = None
        self._building = asyncio.Lock()
        self._builds_waiting = 0
        self._tasks = Tasks()
        self._closed = False
        self._worker_ready = asyncio.Event()
        self._digests = ("", "")

    async def start(self, listener: Listener | None) -> None:
        """Starts everything and waits until it is ready."""
        self._listener = listener
        self.workers = [self._new_worker() for _ in range(self._count)]
        self._forge = self._new_worker()
        await asyncio.gather(*(worker.start(cache=self._cache, forge=worker is self._forge) for worker in self._everybody()))
        # One that dies meanwhile is replaced as later; several that do are a reason to give up.
        while not all(worker.ready.is_set() for worker in self._everybody()):
            if self.restarts > START_TRIES:
                raise Unavailable("unavailable", "the sandbox workers end as soon as they start; see the log, and `machinehub doctor`")
            await asyncio.sleep(0.01)
        self._tasks.spawn(self._watch())

    def _everybody(self) -> list[Worker]:
        return [*self.workers, *([self._forge] if self._forge else [])]

    async def stop(self) -> None:
        self._closed = True
        self._tasks.cancel()
        await asyncio.gather(*(worker.stop() for worker in self._everybody()))

    @property
    def is_ready(self) -> bool:
        return self.choose() is not None and self._forge is not None and self._forge.ready.is_set() and not self._forge.lost

    @property
    def engine_and_base(self) -> tuple[str, str]:
        """The digests of the engine and the base image that new versions are built from."""
        return self._digests

    def choose(self) -> Worker | None:
        """The worker with the fewest sessions; None while all are being replaced."""
        alive = [worker for worker in self.workers if worker.ready.is_set() and not worker.lost]
        return min(alive, key=lambda worker: worker.session_count) if alive else None

    async def wait_for_worker(self) -> Worker:
        """A worker that is ready. Raises `Unavailable` when none becomes so for a while."""
        try:
            async with asyncio.timeout(WORKER_WAIT_S):
                while (worker := self.choose()) is None:
                    self._worker_ready.clear()
                    await self._worker_ready.wait()
                return worker
        except TimeoutError:
            raise Unavailable("unavailable", "no sandbox worker can be started; try again later") from None

    async def build(self, *, entry: str, files: dict[str, str], cpu_ms: int, memory_bytes_max: int, bundle_bytes_max: int, on_error: str) -> Built:
        """Bundles and freezes an upload. Raises `errors.BuildFailed` for what is wrong with it, `Unavailable` for us."""
        answer = await self._ask(lambda ticket: Build(ticket, entry, files, on_error, cpu_ms, memory_bytes_max, bundle_bytes_max))
        assert isinstance(answer, Built)
        return answer

    async def engine_code(self) -> bytes:
        """The engine of new images, zstd-compressed."""
        answer = await self._ask(GiveEngine)
        assert isinstance(answer, EngineGiven)
        return answer.engine

    async def inputs(self, *, root: str, entry: str) -> list[str]:
        """The files below `root` that `entry` needs, relative to it."""
        answer = await self._ask(lambda ticket: Inputs(ticket, root, entry))
        assert isinstance(answer, InputsFound)
        return answer.files

    async def _ask(self, question: Callable[[int], protocol.ToWorker]) -> protocol.ToHub:
        if self._builds_waiting >= BUILDS_WAITING_MAX:
            raise Unavailable("unavailable", "too many builds are waiting; try again")
        self._builds_waiting += 1
        try:
            async with self._building:  # one at a time, so that the clock runs, and a crash is blamed, for one build only
                answer = await self._ask_forge(question)
        finally:
            self._builds_waiting -= 1
        if isinstance(answer, BuildFailed):
            first = answer.errors[0] if answer.errors else None
            place = ":".join(str(part) for part in (first.file, first.line, first.column) if part is not None) + ": " if first and first.file else ""
            raise BuildFailedError(
                answer.code, place + (first.message if first else "the build failed"),
                errors=[{"file": e.file, "line": e.line, "column": e.column, "message": e.message} for e in answer.errors],
            )  # fmt: skip
        return answer

    async def _ask_forge(self, question: Callable[[int], protocol.ToWorker]) -> protocol.ToHub:
        try:
            async with asyncio.timeout(BUILD_TIMEOUT_S):
                while (forge := self._forge) is None or forge.lost or not forge.ready.is_set():
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise Unavailable("unavailable", "the forge does not start; try again later") from None
        self._tickets += 1
        self._answer = asyncio.get_running_loop().create_future()
        forge.ask(self._tickets, question(self._tickets))
        try:
            return await asyncio.wait_for(self._answer, BUILD_TIMEOUT_S)
        except TimeoutError:
            forge.kill("a build took too long")
            raise BuildFailedError("build_timeout", "the build took too long") from None
        finally:
            self._answer = None

    def _new_worker(self) -> Worker:
        self._numbers += 1
        return Worker(self._numbers, self._received, self._worker_lost)

    def _received(self, worker: Worker, messages: list[protocol.ToHub]) -> None:
        if worker.ready.is_set() and worker is not self._forge:
            assert self._listener is not None
            self._listener.worker_answered(worker, messages)
            return
        for message in messages:
            match message:
                case Progress():
                    self._on_progress(message.what)
                case Ready():
                    self._digests = (message.engine, message.base)
                    worker.ready.set()
                    self._worker_ready.set()
                case Built() | BuildFailed() | InputsFound() | EngineGiven():
                    if self._answer is not None and not self._answer.done() and message.ticket == self._tickets:
                        self._answer.set_result(message)

    def _worker_lost(self, worker: Worker) -> None:
        if self._closed:
            return
        self.restarts += 1
        self._crashes += 1
        log.warning("sandbox worker %d ended; starting another", worker.number)
        self._tasks.spawn(self._replace(worker))
        if worker is not self._forge and self._listener is not None:
            self._listener.worker_lost(worker)

    async def _replace(self, worker: Worker) -> None:
        if worker.process is not None:
            await worker.process.wait()
        if worker is self._forge and self._answer is not None and not self._answer.done():
            self._answer.set_exception(BuildFailedError("build_crashed", "the sandbox died of this build"))
        while True:
            await asyncio.sleep(RESTART_DELAYS_S[max(0, min(self._crashes, len(RESTART_DELAYS_S)) - 1)])
            fresh = self._new_worker()
            try:
                await fresh.start(cache=self._cache, forge=worker is self._forge)
            except OSError as error:  # out of descriptors, processes or memory: that may pass
                self._crashes += 1
                log.error("a sandbox worker could not be started: %s", error)
            else:
                break
        if worker is self._forge:
            self._forge = fresh
        else:
            self.workers[self.workers.index(worker)] = fresh

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        forgiven_at = loop.time()
        while True:
            await asyncio.sleep(1)
            if loop.time() - forgiven_at > 10:
                forgiven_at, self._crashes = loop.time(), max(0, self._crashes - 1)
            for worker in self._everybody():
                if not worker.ready.is_set() and worker.started_at and loop.time() - worker.started_at > START_S and not worker.lost:
                    worker.kill(f"it was not ready within {START_S:g} s")
                if worker is not self._forge and worker.owes and loop.time() - worker.heard_at > SILENCE_S and not worker.lost:
                    worker.kill(f"it owes {worker.owes} answers and was silent for {SILENCE_S:g} s")
