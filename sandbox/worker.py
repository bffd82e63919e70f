"""The worker process: `python -m sandbox.worker --fd N`. Holds thawed sessions, and builds images.

Decides: the order of work (as it arrives) and when to send answers (every few, so that a long batch does not hold back
its first ones). Does not know: the database, clients, clocks (`now_ms` comes with the input), or what to keep.

A worker starts with an empty environment and one descriptor, the socket. When the socket closes it ends: a hub that was
killed leaves no workers behind.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import socket
import sys
import time
from pathlib import Path
from typing import Final

import msgspec
import zstandard

from sandbox import bundler, protocol
from sandbox.engine import Engine, Module, Trap
from sandbox.forge import BuildError, Guest, digest_of, forge_image, load_guest
from sandbox.image import DamagedCheckpoint
from sandbox.instance import LiveMachine, LoadedImage, LostSession, Sizes, load_image
from sandbox.protocol import (
    Build,
    BuildFailed,
    Built,
    Checkpoint,
    Close,
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
    Step,
    decode_outbox,
)

GUEST: Final = Path(__file__).parent / "guest" / "dist"
ANSWERS_AT_ONCE: Final = 16
ANSWERS_WITHIN_S: Final = 0.005
"""Answers are sent when so many have gathered, when the oldest has waited so long, or when the batch is done."""
IMAGE_MEMORY_BYTES_MAX: Final = 256 * 1024 * 1024
_RECEIVE_BYTES: Final = 256 * 1024


class Worker:
    """The sessions of one process, by the numbers that the hub gave them."""

    def __init__(self, engine: Engine, guest: Guest) -> None:
        self._engine = engine
        self._guest = guest
        self._engines = {guest.engine_digest: guest.engine}
        self._esbuild: Module | None = None
        self._images: dict[str, LoadedImage] = {}
        self._sessions: dict[int, LiveMachine] = {}

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
                answers.append(Done(message.session, message.ticket, machine.checkpoint()) if machine else _lost(message))
            case Close():
                if machine := self._sessions.pop(message.session, None):
                    machine.close()
            case LoadImage():
                self._load(message)
            case LoadEngine():
                self._load_engine(message)
            case GiveEngine():
                answers.append(EngineGiven(message.ticket, self._guest.engine_digest, _pack((GUEST / "engine.wasm").read_bytes())))
            case Forget():
                self._images.pop(message.digest, None)
            case Build():
                answers.append(self._build(message))
            case Inputs():
                answers.append(self._inputs(message))

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
            answers.append(Done(step.session, step.ticket, outcome))
            if machine.wants_checkpoint:
                answers.append(Frozen(step.session, machine.checkpoint()))
        else:
            answers.append(Failed(step.session, step.ticket, outcome.code, outcome.message, outcome.at))

    def _open(self, request: Open) -> protocol.ToHub:
        try:
            image = self._images[request.digest]
            sizes = Sizes(request.memory_bytes_max, request.snapshot_bytes_max, request.emitted_bytes_max)
            machine = LiveMachine(self._engine, image, sizes, checkpoint=request.checkpoint)
        except KeyError:
            return Failed(request.session, request.ticket, "image_damaged", "the image could not be loaded", None)
        except (DamagedCheckpoint, Trap) as error:
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
        with contextlib.suppress(zstandard.ZstdError, ValueError, Trap):
            wasm = zstandard.ZstdDecompressor().decompress(request.image, max_output_size=IMAGE_MEMORY_BYTES_MAX)
            self._images[request.digest] = load_image(self._engine, self._engines, wasm, memory_bytes_max=IMAGE_MEMORY_BYTES_MAX)

    def _load_engine(self, request: LoadEngine) -> None:
        """Compiles an older engine, or maps it from the cache. A damaged one is noticed as its images are."""
        if request.digest in self._engines:
            return
        with contextlib.suppress(zstandard.ZstdError, ValueError):
            wasm = zstandard.ZstdDecompressor().decompress(request.engine, max_output_size=IMAGE_MEMORY_BYTES_MAX)
            if digest_of(wasm) == request.digest:
                self._engines[request.digest] = self._engine.compile_cached(wasm, name="engine")

    def _build(self, build: Build) -> protocol.ToHub:
        started = time.perf_counter_ns()
        try:
            bundle = bundler.bundle(self._engine, self.compiled_esbuild(), build.entry, build.files)
            if len(bundle.script.encode()) > build.bundle_bytes_max:
                raise BuildError("bundle_too_large", [protocol.BuildMessage(f"the bundle has more than {build.bundle_bytes_max} bytes")])
            bundled = time.perf_counter_ns()
            image, definition, more = forge_image(
                self._engine, self._guest, bundle.script, source_map=bundle.source_map,
                cpu_s=build.cpu_ms / 1000, memory_bytes_max=build.memory_bytes_max, on_error=build.on_error,
            )  # fmt: skip
        except BuildError as error:
            return BuildFailed(build.ticket, error.code, error.errors)
        except Exception as error:  # a stranger's file must not end the forge, whatever we forgot
            return BuildFailed(build.ticket, "machine_throws", [protocol.BuildMessage(f"the file cannot be built ({type(error).__name__})")])
        packed = _pack(image)
        frozen = time.perf_counter_ns()
        return Built(build.ticket, packed, msgspec.json.encode(definition), bundle.warnings + more, (bundled - started) // 1000, (frozen - bundled) // 1000)

    def _inputs(self, request: Inputs) -> protocol.ToHub:
        try:
            return InputsFound(request.ticket, bundler.inputs_of(self._engine, self.compiled_esbuild(), request.entry, Path(request.root)))
        except BuildError as error:
            return BuildFailed(request.ticket, error.code, error.errors)

    def compiled_esbuild(self) -> Module:
        if self._esbuild is None:
            self._esbuild = self._engine.compile_cached((GUEST / "esbuild.wasm").read_bytes(), name="esbuild")
        return self._esbuild


def _pack(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data)


def _lost(message: Step | Checkpoint | Replay) -> Failed:
    return Failed(message.session, message.ticket, "session_lost", "the session is not on this worker", None)


def serve(connection: socket.socket, worker: Worker) -> None:
    """Answers frames until the peer closes the connection."""
    reader = protocol.to_worker_reader()
    while data := connection.recv(_RECEIVE_BYTES):
        answers: list[protocol.ToHub] = []
        since = time.perf_counter()
        for batch in reader.feed(data):
            for message in batch:
                worker.handle(message, answers)
                if answers and (len(answers) >= ANSWERS_AT_ONCE or time.perf_counter() - since > ANSWERS_WITHIN_S):
                    connection.sendall(protocol.encode(answers))
                    answers.clear()
                    since = time.perf_counter()
        if answers:
            connection.sendall(protocol.encode(answers))


def main() -> int:
    arguments = argparse.ArgumentParser(prog="sandbox.worker")
    arguments.add_argument("--fd", type=int, required=True, help="the socket to the hub")
    arguments.add_argument("--cache", type=Path, help="where compiled modules are kept")
    arguments.add_argument("--forge", action="store_true", help="builds images: compile esbuild at the start")
    options = arguments.parse_args()
    with socket.socket(fileno=options.fd) as connection, contextlib.suppress(ConnectionError, KeyboardInterrupt):
        # A forge compiles code that runs once, esbuild above all: what it saves in compiling it never loses in running.
        engine = Engine(options.cache, forge=options.forge, on_compile=lambda name: connection.sendall(protocol.encode([Progress(name)])))
        guest = load_guest(engine, (GUEST / "engine.wasm").read_bytes(), (GUEST / "base.wasm").read_bytes())
        worker = Worker(engine, guest)
        if options.forge:
            worker.compiled_esbuild()
        gc.freeze()  # what is here now stays; the collector need not look at it again
        connection.sendall(protocol.encode([Ready(guest.engine_digest, guest.base_digest)]))
        serve(connection, worker)
    return 0


if __name__ == "__main__":
    sys.exit(main())
