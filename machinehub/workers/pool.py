"""Sandbox workers: starting, watching and talking to the processes that run strangers' code.

Decides: how many there are, which one a session goes to, when one is given up for dead. Does not
know: what a session is; messages carry numbers. Everything a worker says is checked by type here
and by meaning in `session/decide/session.py`.

Workers stand in groups. Scripts share one, modules another; on a hub that isolates machines, each
machine has a group with a worker of its own, which ends some time after its last session.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from machinehub.errors import Unavailable
from machinehub.tasks import Tasks, look_on
from machinehub.workers import scratch
from machinehub.workers.builds import Builds
from machinehub.workers.compiler import Compiler
from machinehub.workers.process import Start, WorkerProcess
from sandbox.protocol.formats import FRAMES
from sandbox.protocol.messages import Progress, Ready

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandbox.protocol.messages import ToHub

log = logging.getLogger("machinehub.workers")

SILENCE_S: Final = 15.0
"""A worker that owes answers and says nothing for this long is killed.

Answers leave every few milliseconds; an undo may take 5 s.
"""
RESTART_DELAYS_S: Final = (0.0, 0.1, 0.5, 2.0)
"""How long to wait before a worker is started again that died again and again; the last one
repeats.
"""
WORKER_WAIT_S: Final = 30.0
FORGIVE_S: Final = 10.0
"""So long without another one a crash counts."""
WATCH_S: Final = 1.0
START_S: Final = 120.0
"""From a worker's start to its being ready: compiling esbuild takes ten seconds on a quiet
computer.
"""
START_TRIES: Final = 5
GROUP_IDLE_S: Final = 30.0
"""How long a machine's own worker outlives its last session."""
COMPILE_CPU_S: Final = 15
"""CPU of the process that compiles one module."""


Group = tuple[str, str]
"""The key of a group of workers: their kind ("session" or "module"), and the id of the machine that
they are reserved for, or "" when all machines share them.
"""
SCRIPTS: Final[Group] = ("session", "")


class Listener(Protocol):
    """Who hears of the sessions' answers."""

    def worker_answered(self, worker: WorkerProcess, said: list[ToHub], /) -> None: ...

    def worker_lost(self, worker: WorkerProcess, /) -> None: ...


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
        on_ended: Callable[[str, str], None] | None = None,
    ) -> None:
        """`on_ended` hears of each worker that ended unasked: its kind, and why, in a word.

        `root` is a folder whose files `inputs` may be asked about; `fuel`: whether sessions
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
        compiler = Compiler(
            Start(
                cache=cache,
                kind="compiler",
                memory_bytes_max=forge_bytes_max,
                cpu_s_max=COMPILE_CPU_S,
                fuel=fuel,
            )
        )
        self.builds = Builds(compiler, lambda: self._forge)
        self._on_ended = on_ended or (lambda _kind, _reason: None)
        self._on_progress = on_progress or (lambda _what: None)
        self._numbers = 0
        self._crashes = 0
        self._forgiven_at_s = 0.0
        self.restarts = 0
        self._listener: Listener | None = None
        self._groups: dict[Group, list[WorkerProcess]] = {SCRIPTS: []}
        """All but that of scripts are opened when there is the first session for them."""
        self._forge: WorkerProcess | None = None
        self._tasks = Tasks()
        self._closed = False
        self._worker_ready = asyncio.Event()
        self._digests = ("", "")
        self.template = ""
        """The digest of what new images are compressed against."""

    async def start(self, listener: Listener | None) -> None:
        """Starts everything and waits until it is ready."""
        for folder in scratch.left_behind():
            self._tasks.spawn(asyncio.to_thread(scratch.remove, folder))
        self._listener = listener
        self._groups[SCRIPTS] = [self._new_worker() for _ in range(self._count)]
        self._forge = self._new_worker()
        await asyncio.gather(
            self._forge.start(self._how["forge"]),
            *(worker.start(self._how["session"]) for worker in self.workers),
        )
        # One that dies meanwhile is replaced as later; several that do are a reason to give up.
        while not all(worker.ready.is_set() for worker in self.everybody()):
            if self.restarts > START_TRIES:
                raise Unavailable(
                    "unavailable",
                    (
                        "the sandbox workers end as soon as they start; see the log, and "
                        "`machinehub doctor`"
                    ),
                )
            await asyncio.sleep(0.01)
        self._tasks.spawn(look_on("workers", WATCH_S, self._watch, log, logging.WARNING))

    @property
    def workers(self) -> list[WorkerProcess]:
        """Those of scripts; on a hub that isolates machines, those that are kept ready."""
        return self._groups[SCRIPTS]

    @property
    def walls(self) -> dict[str, list[tuple[str, bool, str]]]:
        """What stands around a worker of each kind that was started (sandbox/walls.py)."""
        kinds = (
            ("session worker", self.choose()),
            ("module worker", self.choose(modules=True)),
            ("forge", self._forge),
        )
        return {kind: worker.walls for kind, worker in kinds if worker is not None}

    def everybody(self) -> list[WorkerProcess]:
        return [
            *(worker for group in self._groups.values() for worker in group),
            *([self._forge] if self._forge else []),
        ]

    async def stop(self) -> None:
        self._closed = True
        self._tasks.stop()
        await asyncio.gather(*(worker.stop() for worker in self.everybody()))

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

    # --- groups -----------------------------------------------------------------------------------

    def choose(self, *, modules: bool = False, machine: str = "") -> WorkerProcess | None:
        """The worker with the fewest sessions, of those where sessions of `machine` live; None
        while none is ready.
        """
        worker = _freest(self._groups.get(self._group_of(modules=modules, machine=machine), []))
        if worker is not None:
            worker.wanted_at = self._loop_time()
        return worker

    async def wait_for_worker(self, *, modules: bool = False, machine: str = "") -> WorkerProcess:
        """A worker that is ready. Raises `Unavailable` when none becomes so for a while."""
        group = self._group_of(modules=modules, machine=machine)
        try:
            async with asyncio.timeout(WORKER_WAIT_S):
                while (worker := self.choose(modules=modules, machine=machine)) is None:
                    self._worker_ready.clear()
                    if group not in self._groups:
                        await self._open(group)
                    else:
                        await self._worker_ready.wait()
                return worker
        except TimeoutError:
            raise Unavailable(
                "unavailable", "no sandbox worker can be started; try again later"
            ) from None

    def _group_of(self, *, modules: bool, machine: str) -> Group:
        return "module" if modules else "session", machine if self._isolated_max else ""

    async def _open(self, group: Group) -> None:
        """The first session comes to a group.

        A worker that was kept ready moves in, and another is started in its place.
        """
        if self._isolated_max and len(self._groups) > self._isolated_max:
            raise Unavailable(
                "unavailable",
                f"{self._isolated_max} machines have sessions that are awake, and workers of their"
                " own; try again later",
            )
        self._groups[group] = []
        spare = _freest(self.workers) if group[0] == SCRIPTS[0] else None
        fresh = self._new_worker()
        if spare is not None:
            self.workers[self.workers.index(spare)] = fresh
            self._groups[group] = [spare]
            self._tasks.spawn(self._start(fresh, SCRIPTS))
        else:
            self._groups[group] = [fresh]
            await self._start(fresh, group)

    async def _start(self, worker: WorkerProcess, group: Group) -> None:
        try:
            await worker.start(self._how[group[0]])
        except OSError as error:  # out of descriptors, processes or memory: `_replace` tries again
            log.error("a sandbox worker could not be started: %s", error)
            worker.lost = True
            self._worker_lost(worker)

    def _close_idle_groups(self, now_s: float) -> None:
        for group, workers in list(self._groups.items()):
            if group[1] and all(
                worker.ready.is_set()
                and not worker.session_count
                and not worker.owes
                and now_s - worker.wanted_at > GROUP_IDLE_S
                for worker in workers
            ):
                del self._groups[group]
                for worker in workers:
                    self._tasks.spawn(worker.stop())

    def _loop_time(self) -> float:
        return asyncio.get_running_loop().time()

    # --- processes --------------------------------------------------------------------------------

    def _new_worker(self) -> WorkerProcess:
        self._numbers += 1
        return WorkerProcess(self._numbers, self._received, self._worker_lost)

    def _received(self, worker: WorkerProcess, said: list[ToHub]) -> None:
        if worker.ready.is_set() and worker is not self._forge:
            assert self._listener is not None
            self._listener.worker_answered(worker, said)
            return
        for message in said:
            match message:
                case Progress():
                    self._on_progress(message.what)
                case Ready() if message.frames != FRAMES:
                    worker.kill(
                        "it is of another version of machinehub: was that installed while the hub "
                        "ran?",
                        reason="version",
                    )
                    return
                case Ready():
                    if message.engine:
                        self._digests = (message.engine, message.base)
                        self.template = message.template
                    worker.walls = message.walls
                    worker.ready.set()
                    self._worker_ready.set()
                case _:
                    self.builds.received(message)

    def _worker_lost(self, worker: WorkerProcess) -> None:
        if self._closed:
            return
        self.restarts += 1
        self._crashes += 1
        self._tasks.spawn(self._replace(worker))
        if worker is not self._forge and self._listener is not None:
            self._listener.worker_lost(worker)

    async def _replace(self, worker: WorkerProcess) -> None:
        reason, why = await worker.end()
        self._on_ended(worker.kind, reason)
        log.warning("sandbox worker %d ended (%s); starting another", worker.number, why)
        if reason == "walls":
            log.error(
                "sandbox worker %d tried what no worker does, and its walls ended it: somebody may"
                " have got out of wasmtime",
                worker.number,
            )
        if worker is self._forge:
            self.builds.forge_lost()
        while True:
            await asyncio.sleep(
                RESTART_DELAYS_S[max(0, min(self._crashes, len(RESTART_DELAYS_S)) - 1)]
            )
            group = next(
                (group for group, workers in self._groups.items() if worker in workers), None
            )
            if group is None and worker is not self._forge:
                return  # its group was closed
            fresh = self._new_worker()
            try:
                await fresh.start(self._how["forge" if group is None else group[0]])
            except OSError as error:  # out of descriptors, processes or memory: that may pass
                self._crashes += 1
                log.error("a sandbox worker could not be started: %s", error)
            else:
                break
        if group is None:
            self._forge = fresh
        elif worker in (workers := self._groups.get(group, [])):
            workers[workers.index(worker)] = fresh
        else:
            await fresh.stop()

    def _watch(self) -> None:
        now_s = asyncio.get_running_loop().time()
        self._close_idle_groups(now_s)
        if now_s - self._forgiven_at_s > FORGIVE_S:
            self._forgiven_at_s, self._crashes = now_s, max(0, self._crashes - 1)
        for worker in self.everybody():
            if (
                not worker.ready.is_set()
                and worker.started_at
                and now_s - worker.started_at > START_S
                and not worker.lost
            ):
                worker.kill(f"it was not ready within {START_S:g} s", reason="slow_start")
            if (
                worker is not self._forge
                and worker.owes
                and now_s - worker.heard_at > SILENCE_S
                and not worker.lost
            ):
                why = f"it owes {worker.owes} answers and was silent for {SILENCE_S:g} s"
                worker.kill(why, reason="silent")


def _freest(workers: list[WorkerProcess]) -> WorkerProcess | None:
    """The one with the fewest sessions, of those that are ready."""
    alive = [worker for worker in workers if worker.ready.is_set() and not worker.lost]
    return min(alive, key=lambda worker: worker.session_count) if alive else None
