"""Sandbox workers: starting, watching and talking to the processes that run strangers' code.

Decides: how many there are, which one a session goes to, when one is given up for dead. Does not
know: what a session is; messages carry numbers. Everything a worker says is checked by type here
and by meaning in `session/core.py`.

Workers are kept in rooms. Scripts share one, modules another; on a hub that isolates machines, each
machine has a room with a worker of its own, which ends some time after its last session.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from typing import TYPE_CHECKING, Final, Protocol

from machinehub.compiler import Compiler
from machinehub.errors import BuildFailed as BuildFailedError
from machinehub.errors import Unavailable
from machinehub.tasks import Tasks
from machinehub.worker import Start, Worker
from sandbox.protocol import (
    Build,
    BuildFailed,
    BuildModule,
    Built,
    Compile,
    Compiled,
    EngineGiven,
    GiveEngine,
    Inputs,
    InputsFound,
    ModuleBuilt,
    Progress,
    Ready,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandbox import protocol
    from sandbox.protocol import GuestLimits, OwnLimits

log = logging.getLogger("machinehub.workers")

SILENCE_S: Final = 15.0
"""A worker that owes answers and says nothing for this long is killed.

Answers leave every few milliseconds; an undo may take 5 s.
"""
RESTART_DELAYS_S: Final = (0.0, 0.1, 0.5, 2.0)
"""How long to wait before a worker is started again that died again and again; the last one
repeats.
"""
BUILD_TIMEOUT_S: Final = 20.0
"""Of one build, from when the forge begins it: bundling and loading are limited to less by CPU."""
BUILDS_WAITING_MAX: Final = 64
WORKER_WAIT_S: Final = 30.0
START_S: Final = 120.0
"""From a worker's start to its being ready: compiling esbuild takes ten seconds on a quiet
computer.
"""
START_TRIES: Final = 5
ROOM_IDLE_S: Final = 30.0
"""How long a machine's own worker outlives its last session."""
COMPILE_CPU_S: Final = 15
"""CPU of the process that compiles one module."""


Room = tuple[str, str]
"""What its workers are for ("session" or "module"), and whose it is: a machine's, or everybody's
("").
"""
SCRIPTS: Final[Room] = ("session", "")


class Listener(Protocol):
    """Who hears of the sessions' answers."""

    def worker_answered(self, worker: Worker, messages: list[protocol.ToHub], /) -> None: ...

    def worker_lost(self, worker: Worker, /) -> None: ...


class WorkerPool:
    """The session workers of a hub, its one forge, and the compiler of modules."""

    def __init__(
        self,
        *,
        count: int,
        cache: Path,
        worker_bytes_max: int = 0,
        forge_bytes_max: int = 0,
        fuel: bool = False,
        root: Path | None = None,
        isolated_max: int = 0,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        """`root` is a folder whose files `inputs` may be asked about; `fuel`: whether sessions
        count it.

        With `isolated_max` each machine has a worker of its own, of which there are so many at
        most; `count` more are kept ready.
        """
        self._isolated_max = isolated_max
        self._count = count
        self._how: dict[str, Start] = {
            "session": Start(cache=cache, memory_bytes_max=worker_bytes_max, fuel=fuel),
            "module": Start(
                cache=cache, kind="module", memory_bytes_max=worker_bytes_max, fuel=fuel
            ),
            "forge": Start(cache=cache, kind="forge", memory_bytes_max=forge_bytes_max, root=root),
        }
        self._compiler = Compiler(
            Start(
                cache=cache,
                kind="compiler",
                memory_bytes_max=forge_bytes_max,
                cpu_s_max=COMPILE_CPU_S,
                fuel=fuel,
            )
        )
        self._on_progress = on_progress or (lambda what: None)
        self._numbers = 0
        self._crashes = 0
        self.restarts = 0
        self.breaches = 0
        """Workers that their own walls ended."""
        self._listener: Listener | None = None
        self._rooms: dict[Room, list[Worker]] = {SCRIPTS: []}
        """All but that of scripts are opened when there is the first session for them."""
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
        self._rooms[SCRIPTS] = [self._new_worker() for _ in range(self._count)]
        self._forge = self._new_worker()
        await asyncio.gather(
            self._forge.start(self._how["forge"]),
            *(worker.start(self._how["session"]) for worker in self.workers),
        )
        # One that dies meanwhile is replaced as later; several that do are a reason to give up.
        while not all(worker.ready.is_set() for worker in self._everybody()):
            if self.restarts > START_TRIES:
                raise Unavailable(
                    "unavailable",
                    "the sandbox workers end as soon as they start; see the log, and `machinehub doctor`",
                )
            await asyncio.sleep(0.01)
        self._tasks.spawn(self._watch())

    @property
    def workers(self) -> list[Worker]:
        """Those of scripts; on a hub that isolates machines, those that are kept ready."""
        return self._rooms[SCRIPTS]

    @property
    def walls(self) -> dict[str, list[tuple[str, bool, str]]]:
        """What stands around a worker of each kind that was started (sandbox/walls.py)."""
        kinds = (
            ("session worker", self.choose()),
            ("module worker", self.choose(modules=True)),
            ("forge", self._forge),
        )
        return {kind: worker.walls for kind, worker in kinds if worker is not None}

    def _everybody(self) -> list[Worker]:
        return [
            *(worker for room in self._rooms.values() for worker in room),
            *([self._forge] if self._forge else []),
        ]

    async def stop(self) -> None:
        self._closed = True
        self._tasks.cancel()
        await asyncio.gather(*(worker.stop() for worker in self._everybody()))

    @property
    def is_ready(self) -> bool:
        return (
            _freest(self.workers) is not None
            and self._forge is not None
            and self._forge.ready.is_set()
            and not self._forge.lost
        )

    @property
    def engine_and_base(self) -> tuple[str, str]:
        """The digests of the engine and the base image that new versions are built from."""
        return self._digests

    # --- rooms ------------------------------------------------------------------------------------

    def choose(self, *, modules: bool = False, machine: str = "") -> Worker | None:
        """The worker with the fewest sessions, of those where sessions of `machine` live; None
        while none is ready.
        """
        worker = _freest(self._rooms.get(self._room_of(modules=modules, machine=machine), []))
        if worker is not None:
            worker.wanted_at = self._loop_time()
        return worker

    async def wait_for_worker(self, *, modules: bool = False, machine: str = "") -> Worker:
        """A worker that is ready. Raises `Unavailable` when none becomes so for a while."""
        room = self._room_of(modules=modules, machine=machine)
        try:
            async with asyncio.timeout(WORKER_WAIT_S):
                while (worker := self.choose(modules=modules, machine=machine)) is None:
                    self._worker_ready.clear()
                    if room not in self._rooms:
                        await self._open(room)
                    else:
                        await self._worker_ready.wait()
                return worker
        except TimeoutError:
            raise Unavailable(
                "unavailable", "no sandbox worker can be started; try again later"
            ) from None

    def _room_of(self, *, modules: bool, machine: str) -> Room:
        return "module" if modules else "session", machine if self._isolated_max else ""

    async def _open(self, room: Room) -> None:
        """The first session comes to a room.

        A worker that was kept ready moves in, and another is started in its place.
        """
        if self._isolated_max and len(self._rooms) > self._isolated_max:
            raise Unavailable(
                "unavailable",
                f"{self._isolated_max} machines have sessions that are awake, and workers of their own; try again later",
            )
        self._rooms[room] = []
        spare = _freest(self.workers) if room[0] == SCRIPTS[0] else None
        fresh = self._new_worker()
        if spare is not None:
            self.workers[self.workers.index(spare)] = fresh
            self._rooms[room] = [spare]
            self._tasks.spawn(self._start(fresh, SCRIPTS))
        else:
            self._rooms[room] = [fresh]
            await self._start(fresh, room)

    async def _start(self, worker: Worker, room: Room) -> None:
        try:
            await worker.start(self._how[room[0]])
        except OSError as error:  # out of descriptors, processes or memory: `_replace` tries again
            log.error("a sandbox worker could not be started: %s", error)
            worker.lost = True
            self._worker_lost(worker)

    def _close_idle_rooms(self, now_s: float) -> None:
        for room, workers in list(self._rooms.items()):
            if room[1] and all(
                worker.ready.is_set()
                and not worker.session_count
                and not worker.owes
                and now_s - worker.wanted_at > ROOM_IDLE_S
                for worker in workers
            ):
                del self._rooms[room]
                for worker in workers:
                    self._tasks.spawn(worker.stop())

    def _loop_time(self) -> float:
        return asyncio.get_running_loop().time()

    # --- builds -----------------------------------------------------------------------------------

    async def build(
        self,
        *,
        entry: str,
        files: dict[str, str],
        cpu_ms: int,
        memory_bytes_max: int,
        bundle_bytes_max: int,
        on_error: str,
        limits: GuestLimits,
        own: OwnLimits,
    ) -> Built:
        """Bundles and freezes an upload.

        Raises `errors.BuildFailed` for what is wrong with it, `Unavailable` for us.
        """
        answer = await self._ask(
            lambda ticket: Build(
                ticket,
                entry,
                files,
                on_error,
                cpu_ms,
                memory_bytes_max,
                bundle_bytes_max,
                limits,
                own,
            )
        )
        assert isinstance(answer, Built)
        return answer

    async def build_module(
        self,
        *,
        module: bytes,
        name: str,
        cpu_ms: int,
        memory_bytes_max: int,
        limits: GuestLimits,
        own: OwnLimits,
    ) -> ModuleBuilt:
        """Checks, compiles and freezes a module (docs/guest-abi.md). Raises as `build` does."""
        answer = await self._ask_compiler(
            BuildModule(1, module, name, cpu_ms, memory_bytes_max, limits, own)
        )
        assert isinstance(answer, ModuleBuilt)
        return answer

    async def compile(self, code: bytes) -> bytes:
        """Machine code of a module's code, both zstd-compressed. Raises as `build` does."""
        answer = await self._ask_compiler(Compile(1, code))
        assert isinstance(answer, Compiled)
        return answer.compiled

    async def _ask_compiler(self, question: BuildModule | Compile) -> protocol.ToHub:
        with self._waiting():
            return _raised(await self._compiler.ask(question))

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

    async def _ask(self, question: Callable[[int], protocol.Question]) -> protocol.ToHub:
        with self._waiting():
            async with (
                self._building
            ):  # one at a time, so that the clock runs, and a crash is blamed, for one build only
                return _raised(await self._ask_forge(question))

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        if self._builds_waiting >= BUILDS_WAITING_MAX:
            raise Unavailable("unavailable", "too many builds are waiting; try again")
        self._builds_waiting += 1
        try:
            yield
        finally:
            self._builds_waiting -= 1

    async def _ask_forge(self, question: Callable[[int], protocol.Question]) -> protocol.ToHub:
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
                    if message.engine:
                        self._digests = (message.engine, message.base)
                    worker.walls = message.walls
                    worker.ready.set()
                    self._worker_ready.set()
                case Built() | BuildFailed() | InputsFound() | EngineGiven():
                    if (
                        self._answer is not None
                        and not self._answer.done()
                        and message.ticket == self._tickets
                    ):
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
        if await worker.ended() == -signal.SIGSYS:
            self.breaches += 1
            log.error(
                "sandbox worker %d tried what no worker does, and its walls ended it: somebody may have got out of wasmtime",
                worker.number,
            )
        if worker is self._forge and self._answer is not None and not self._answer.done():
            self._answer.set_exception(
                BuildFailedError("build_crashed", "the sandbox died of this build")
            )
        while True:
            await asyncio.sleep(
                RESTART_DELAYS_S[max(0, min(self._crashes, len(RESTART_DELAYS_S)) - 1)]
            )
            room = next((room for room, workers in self._rooms.items() if worker in workers), None)
            if room is None and worker is not self._forge:
                return  # its room was closed
            fresh = self._new_worker()
            try:
                await fresh.start(self._how["forge" if room is None else room[0]])
            except OSError as error:  # out of descriptors, processes or memory: that may pass
                self._crashes += 1
                log.error("a sandbox worker could not be started: %s", error)
            else:
                break
        if room is None:
            self._forge = fresh
        elif worker in (workers := self._rooms.get(room, [])):
            workers[workers.index(worker)] = fresh
        else:
            await fresh.stop()

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        forgiven_at = loop.time()
        while True:
            await asyncio.sleep(1)
            self._close_idle_rooms(loop.time())
            if loop.time() - forgiven_at > 10:
                forgiven_at, self._crashes = loop.time(), max(0, self._crashes - 1)
            for worker in self._everybody():
                if (
                    not worker.ready.is_set()
                    and worker.started_at
                    and loop.time() - worker.started_at > START_S
                    and not worker.lost
                ):
                    worker.kill(f"it was not ready within {START_S:g} s")
                if (
                    worker is not self._forge
                    and worker.owes
                    and loop.time() - worker.heard_at > SILENCE_S
                    and not worker.lost
                ):
                    worker.kill(f"it owes {worker.owes} answers and was silent for {SILENCE_S:g} s")


def _freest(workers: list[Worker]) -> Worker | None:
    """The one with the fewest sessions, of those that are ready."""
    alive = [worker for worker in workers if worker.ready.is_set() and not worker.lost]
    return min(alive, key=lambda worker: worker.session_count) if alive else None


def _raised(answer: protocol.ToHub) -> protocol.ToHub:
    """The answer, unless it is a refusal: that is raised."""
    if isinstance(answer, BuildFailed):
        first = answer.errors[0] if answer.errors else None
        place = (
            ":".join(
                str(part) for part in (first.file, first.line, first.column) if part is not None
            )
            + ": "
            if first and first.file
            else ""
        )
        raise BuildFailedError(
            answer.code,
            place + (first.message if first else "the build failed"),
            errors=[
                {"file": e.file, "line": e.line, "column": e.column, "message": e.message}
                for e in answer.errors
            ],
        )
    return answer
