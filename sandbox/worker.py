"""The worker process: `python -m sandbox.worker --fd N`. Holds thawed sessions, and builds images.

Decides: the order of work (as it arrives) and when to send answers (every few, and before a turn
that may take long, so that a batch does not hold back its first ones). Does not know: the database,
clients, clocks (`now_ms` comes with the input), or what to keep.

A worker starts with an empty environment and one descriptor, the socket, and puts up the other
walls itself (`walls.py`). When the socket closes it ends: a hub that was killed leaves no workers
behind.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Final

import msgspec

from sandbox import bundler, protocol, walls
from sandbox.engine import Engine, Kind, Module, Trap
from sandbox.foreign import build_module, compile_module
from sandbox.forge import BuildError, Guest, digest_of, forge_image, load_guest
from sandbox.image import DamagedCheckpoint, pack, unpack
from sandbox.instance import LiveMachine, LoadedImage, LostSession, Sizes, load_image
from sandbox.protocol import (
    Build,
    BuildFailed,
    BuildModule,
    Built,
    Checkpoint,
    Close,
    Compile,
    Done,
    EngineGiven,
    Failed,
    Forget,
    Frozen,
    GiveEngine,
    Inputs,
    InputsFound,
    LoadEngine,
    LoadImage,
    Open,
    Progress,
    Ready,
    Replay,
    Replayed,
    Said,
    Step,
    decode_outbox,
)

GUEST: Final = Path(__file__).parent / "guest" / "dist"
ANSWERS_AT_ONCE: Final = 16
ANSWERS_WITHIN_S: Final = 0.005
"""Answers are sent when so many have gathered, when the oldest has waited so long, or when the
batch is done.
"""
HEAVY_US: Final = 1_000
"""A session whose last turn took so much is expected to do it again: the answers of others leave
before its next turn begins.
"""
RESERVED: Final = 0.8
"""The share of a worker's memory that the memories of modules may take together, were each to grow
as far as it may.
"""
ERRORS_MAX, ERROR_CHARS_MAX, FILE_CHARS_MAX = 50, 2_000, 300
"""Of a build that failed: what is shown."""
IMAGE_MEMORY_BYTES_MAX: Final = 256 * 1024 * 1024
KINDS: Final[dict[str, Kind]] = {
    "session": "session",
    "forge": "forge",
    "module": "module",
    "compiler": "module",
}
"""What a worker may be for, and which engine that takes: sessions of scripts, building scripts,
sessions of modules, building those.
"""
TRACEBACK_CHARS: Final = 4000
_RECEIVE_BYTES: Final = 256 * 1024


class Worker:
    """The sessions of one process, by the numbers that the hub gave them.

    `guest` is None where modules run, which need none.
    """

    def __init__(self, engine: Engine, guest: Guest | None, *, memory_bytes_max: int = 0) -> None:
        """`memory_bytes_max` is the process's own, 0 for none."""
        self._memory_bytes_max = memory_bytes_max
        self._engine = engine
        self._guest = guest
        self._engines = {guest.engine_digest: guest.engine} if guest else {}
        self._esbuild: Module | None = None
        self._images: dict[str, LoadedImage] = {}
        self._sessions: dict[int, LiveMachine] = {}

    def may_take_long(self, message: protocol.ToWorker) -> bool:
        """Whether the answers that there are should not wait for this message's: it is for a
        session whose last turn was heavy.
        """
        machine = self._sessions.get(message.session) if isinstance(message, Step) else None
        return machine is not None and machine.cost.cpu_us >= HEAVY_US

    def handle(self, message: protocol.ToWorker, answers: list[protocol.ToHub]) -> None:
        """Does what one message asks for, adding to `answers` what there is to say."""
        match message:
            case Step():
                self._step(message, answers)
            case Open():
                answers.append(self._open(message))
            case Replay():
                answers.append(self._replay(message))
            case Checkpoint():
                machine = self._sessions.get(message.session)
                answers.append(
                    Done(message.session, message.ticket, machine.checkpoint())
                    if machine
                    else _lost(message)
                )
            case Close():
                if machine := self._sessions.pop(message.session, None):
                    machine.close()
            case LoadImage():
                self._load(message)
            case LoadEngine():
                self._load_engine(message)
            case Forget():
                self._forget(message.digest)
            case Build():
                answers.append(self._build(message))
            case BuildModule():
                answers.append(build_module(self._engine, message))
            case Compile():
                answers.append(compile_module(self._engine, message))
            case Inputs():
                answers.append(self._inputs(message))
            case GiveEngine():
                assert self._guest is not None
                answers.append(
                    EngineGiven(
                        message.ticket, self._guest.engine_digest, pack(self._guest.engine_wasm)
                    )
                )

    def _forget(self, digest: str) -> None:
        image = self._images.pop(digest, None)
        if image is None or image.handles.module is None:
            return
        code = image.handles.engine
        if all(
            other.handles.engine != code for other in self._images.values()
        ):  # a module's code goes with the last image of it
            self._engines.pop(code, None)

    def _step(self, step: Step, answers: list[protocol.ToHub]) -> None:
        machine = self._sessions.get(step.session)
        if machine is None:
            answers.append(_lost(step))
            return
        try:
            outcome = machine.apply(step.input, step.now_ms, cpu_s=step.cpu_ms / 1000)
        except LostSession:
            del self._sessions[step.session]
            answers.append(_lost(step))
            return
        if isinstance(outcome, bytes):
            answers.append(Done(step.session, step.ticket, outcome, machine.cost))
            if (checkpoint := machine.keep()) is not None:
                answers.append(Frozen(step.session, checkpoint))
        else:
            answers.append(
                Failed(
                    step.session,
                    step.ticket,
                    outcome.code,
                    outcome.message,
                    outcome.at,
                    machine.cost,
                )
            )

    def _open(self, request: Open) -> protocol.ToHub:
        # A growth that the process cannot serve would be one answer now and another in a replay: a
        # module sees what `memory.grow` says.
        reserved = (
            request.memory_bytes_max
            + sum(machine.memory_bytes_max for machine in self._sessions.values())
            if self._guest is None
            else 0
        )
        if self._memory_bytes_max and reserved > RESERVED * self._memory_bytes_max:
            return Failed(
                request.session,
                request.ticket,
                "unavailable",
                "the sandbox has no room for another module's memory",
                None,
            )
        try:
            image = self._images[request.digest]
            sizes = Sizes(
                request.memory_bytes_max, request.snapshot_bytes_max, request.emitted_bytes_max
            )
            machine = LiveMachine(self._engine, image, sizes, checkpoint=request.checkpoint)
        except KeyError:
            return Failed(
                request.session,
                request.ticket,
                "image_damaged",
                "the image could not be loaded",
                None,
            )
        except Trap as trap:
            return Failed(
                request.session,
                request.ticket,
                "unavailable" if trap.code == "unavailable" else "session_damaged",
                trap.message,
                None,
            )
        except DamagedCheckpoint as error:
            return Failed(request.session, request.ticket, "session_damaged", str(error), None)
        self._sessions[request.session] = machine
        return Done(request.session, request.ticket, b"")

    def _replay(self, request: Replay) -> protocol.ToHub:
        machine = self._sessions.get(request.session)
        if machine is None:
            return _lost(request)
        try:
            outboxes = machine.replay(request.inputs, cpu_s=request.cpu_us / 1e6)
        except Trap as error:
            self._sessions.pop(request.session).close()
            return Failed(request.session, request.ticket, "session_damaged", str(error), None)
        snapshot, finished = b"null", False
        timers: list[tuple[int, list[tuple[int, int]], list[int]]] = []
        for position, outbox in enumerate(map(decode_outbox, outboxes)):
            snapshot = bytes(outbox.snapshot) if bytes(outbox.snapshot) != b"null" else snapshot
            finished = bool(outbox.finished)
            if outbox.timers_set or outbox.timers_cancelled:
                timers.append((position, outbox.timers_set, outbox.timers_cancelled))
        return Replayed(request.session, request.ticket, snapshot, finished, timers, len(outboxes))

    def _load(self, request: LoadImage) -> None:
        """A damaged image is noticed by the first `Open` that asks for it."""
        if request.digest in self._images:
            return
        with contextlib.suppress(ValueError, Trap):
            wasm = unpack(request.image, bytes_max=IMAGE_MEMORY_BYTES_MAX)
            self._images[request.digest] = load_image(
                self._engine, self._engines, wasm, memory_bytes_max=IMAGE_MEMORY_BYTES_MAX
            )

    def _load_engine(self, request: LoadEngine) -> None:
        """Compiles an older engine, or maps it from the cache; takes a module's machine code.

        What is damaged is noticed as its images are.
        """
        if request.digest in self._engines:
            return
        with contextlib.suppress(ValueError):
            code = unpack(request.engine, bytes_max=IMAGE_MEMORY_BYTES_MAX)
            if self._guest is None:
                self._engines[request.digest] = self._engine.load(code)
            elif digest_of(code) == request.digest:
                self._engines[request.digest] = self._engine.compile_cached(code, name="engine")

    def _build(self, build: Build) -> protocol.ToHub:
        started = time.perf_counter_ns()
        assert self._guest is not None
        try:
            bundle = bundler.bundle(self._engine, self.compiled_esbuild(), build.entry, build.files)
            if len(bundle.script.encode()) > build.bundle_bytes_max:
                raise BuildError(
                    "bundle_too_large",
                    [
                        protocol.BuildMessage(
                            f"the bundle has more than {build.bundle_bytes_max} bytes"
                        )
                    ],
                )
            bundled = time.perf_counter_ns()
            image, definition, more = forge_image(
                self._engine,
                self._guest,
                bundle.script,
                source_map=bundle.source_map,
                cpu_s=build.cpu_ms / 1000,
                memory_bytes_max=build.memory_bytes_max,
                on_error=build.on_error,
                limits=build.limits,
                own=build.own,
            )
        except BuildError as error:
            return _build_failed(build.ticket, error)
        except Exception as error:  # a stranger's file must not end the forge, whatever we forgot
            return BuildFailed(
                build.ticket,
                "machine_throws",
                [protocol.BuildMessage(f"the file cannot be built ({type(error).__name__})")],
            )
        packed = pack(image)
        frozen = time.perf_counter_ns()
        warnings = [text[:ERROR_CHARS_MAX] for text in (bundle.warnings + more)[:ERRORS_MAX]]
        return Built(
            build.ticket,
            packed,
            msgspec.json.encode(definition),
            warnings,
            (bundled - started) // 1000,
            (frozen - bundled) // 1000,
        )

    def _inputs(self, request: Inputs) -> protocol.ToHub:
        try:
            return InputsFound(
                request.ticket,
                bundler.inputs_of(
                    self._engine, self.compiled_esbuild(), request.entry, Path(request.root)
                ),
            )
        except BuildError as error:
            return _build_failed(request.ticket, error)

    def compiled_esbuild(self, wasm: bytes | None = None) -> Module:
        if self._esbuild is None:
            self._esbuild = self._engine.compile_cached(
                wasm or (GUEST / "esbuild.wasm").read_bytes(), name="esbuild"
            )
        return self._esbuild


def _build_failed(ticket: int, error: BuildError) -> BuildFailed:
    """Cut to size: a stranger wrote names and messages."""
    shown = [
        msgspec.structs.replace(
            each,
            message=each.message[:ERROR_CHARS_MAX],
            file=each.file[:FILE_CHARS_MAX] if each.file else each.file,
        )
        for each in error.errors[:ERRORS_MAX]
    ]
    return BuildFailed(ticket, error.code, shown)


def _lost(message: Step | Checkpoint | Replay) -> Failed:
    return Failed(
        message.session, message.ticket, "session_lost", "the session is not on this worker", None
    )


def serve(connection: socket.socket, worker: Worker) -> None:
    """Answers frames until the peer closes the connection."""
    reader = protocol.to_worker_reader()
    while data := connection.recv(_RECEIVE_BYTES):
        answers: list[protocol.ToHub] = []
        since = time.perf_counter()
        for batch in reader.feed(data):
            for message in batch:
                if answers and (
                    len(answers) >= ANSWERS_AT_ONCE
                    or time.perf_counter() - since > ANSWERS_WITHIN_S
                    or worker.may_take_long(message)
                ):
                    connection.sendall(protocol.encode(answers))
                    answers.clear()
                    since = time.perf_counter()
                worker.handle(message, answers)
        if answers:
            connection.sendall(protocol.encode(answers))


def main() -> int:
    arguments = argparse.ArgumentParser(prog="sandbox.worker")
    arguments.add_argument("--fd", type=int, required=True, help="the socket to the hub")
    arguments.add_argument("--parent", type=int, required=True, help="the hub's process")
    arguments.add_argument("--cache", type=Path, help="where compiled modules are kept")
    arguments.add_argument("--kind", choices=KINDS, default="session", help="what it is for")
    arguments.add_argument("--scratch", type=Path, help="the one folder that a forge may write to")
    arguments.add_argument(
        "--root",
        type=Path,
        help="the user's own folder, of whose files bundles are made: for the command line, never for a hub",
    )
    arguments.add_argument("--fuel", action="store_true", help="count wasmtime's fuel")
    arguments.add_argument("--memory-bytes-max", type=int, default=0, help="of the whole process")
    arguments.add_argument("--cpu-s-max", type=int, default=0, help="of the whole process")
    options = arguments.parse_args()
    with (
        socket.socket(fileno=options.fd) as connection,
        contextlib.suppress(ConnectionError, KeyboardInterrupt),
    ):
        worker, ready = _furnish(options, connection)
        connection.sendall(protocol.encode([ready]))
        try:
            serve(connection, worker)
        except ConnectionError:
            raise
        except BaseException:
            connection.sendall(protocol.encode([Said(traceback.format_exc()[-TRACEBACK_CHARS:])]))
            raise
    return 0


def _furnish(options: argparse.Namespace, connection: socket.socket) -> tuple[Worker, Ready]:
    """Loads what the worker needs and puts up its walls; no stranger's byte is read before it
    returns.
    """
    starting = True

    def tell(name: str) -> None:
        if starting:
            connection.sendall(protocol.encode([Progress(name)]))

    # A forge compiles code that runs once, esbuild above all: what it saves in compiling it never
    # loses in running.
    engine = Engine(options.cache, kind=KINDS[options.kind], fuel=options.fuel, on_compile=tell)
    names = {"session": ("engine", "base"), "forge": ("engine", "base", "esbuild")}.get(
        options.kind, ()
    )
    files = {name: (GUEST / f"{name}.wasm").read_bytes() for name in names}
    engine.fill_cache({name: wasm for name, wasm in files.items() if name != "base"})
    own_user = options.root is None
    writable = [options.scratch] if options.scratch is not None else []
    readable = [options.cache] if files and options.cache else []
    readable += [options.root] if options.root is not None else []
    stood = walls.raise_first(
        parent=options.parent,
        keep=options.fd,
        readable=readable,
        writable=writable,
        memory_bytes_max=options.memory_bytes_max,
        cpu_s_max=options.cpu_s_max,
        own_user=own_user,
    )
    guest = load_guest(engine, files["engine"], files["base"]) if files else None
    worker = Worker(engine, guest, memory_bytes_max=options.memory_bytes_max)
    if "esbuild" in files:
        worker.compiled_esbuild(files["esbuild"])
    if options.scratch is not None:
        tempfile.tempdir = str(options.scratch)
    engine.watchdog.start(1)  # its thread is there from now on
    engine.watchdog.stop()
    stood += walls.raise_rest(
        stood=stood, reads_files=bool(readable), writes_files=bool(writable), own_user=own_user
    )
    gc.freeze()  # what is here now stays; the collector need not look at it again
    starting = False
    return worker, Ready(
        guest.engine_digest if guest else "", guest.base_digest if guest else "", stood
    )


if __name__ == "__main__":
    sys.exit(main())
