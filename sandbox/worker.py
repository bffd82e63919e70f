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
from typing import TYPE_CHECKING, Any, Final

from sandbox import walls
from sandbox.builds import Builds
from sandbox.compression import Template
from sandbox.engine import Engine, Kind
from sandbox.forge import load_guest
from sandbox.protocol import frames, messages
from sandbox.protocol.formats import FRAMES
from sandbox.protocol.messages import Progress, Ready, Said, Step
from sandbox.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbox.engine import Module
    from sandbox.forge import Guest
    from sandbox.protocol.messages import ToHub, ToWorker

GUEST: Final = Path(__file__).parent / "guest" / "dist"
ANSWERS_AT_ONCE: Final = 16
ANSWERS_WITHIN_S: Final = 0.005
"""Answers are sent when so many have gathered, when the oldest has waited so long, or when the
batch is done.
"""
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
    """What one process does, by kind of message."""

    def __init__(
        self,
        engine: Engine,
        guest: Guest | None,
        esbuild: Module | None,
        template: Template | None = None,
        *,
        memory_bytes_max: int = 0,
    ) -> None:
        """`guest` and `template` are None where modules run; `esbuild` is a forge's;
        `memory_bytes_max` is the process's.
        """
        self._turns = turns = Turns(engine, guest, template, memory_bytes_max=memory_bytes_max)
        builds = Builds(engine, guest, esbuild, template)
        self._does: dict[type, Callable[[Any, list[ToHub]], None]] = {
            messages.Step: turns.step,
            messages.Open: turns.open,
            messages.Replay: turns.replay,
            messages.Checkpoint: turns.checkpoint,
            messages.View: turns.view,
            messages.Close: turns.close,
            messages.LoadImage: turns.load_image,
            messages.LoadEngine: turns.load_engine,
            messages.LoadTemplate: turns.load_template,
            messages.Forget: turns.forget,
            messages.Build: builds.build,
            messages.BuildModule: builds.build_module,
            messages.Compile: builds.compile,
            messages.Inputs: builds.inputs,
            messages.GiveEngine: builds.give_engine,
        }

    def may_take_long(self, message: ToWorker) -> bool:
        """Whether answers that are ready should leave before this message is handled: it is for a
        session whose last turn was heavy.
        """
        return isinstance(message, Step) and self._turns.is_heavy(message.session)

    def handle(self, message: ToWorker, answers: list[ToHub]) -> None:
        """Does what one message asks for, and adds what there is to answer to `answers`."""
        self._does[type(message)](message, answers)


def serve(connection: socket.socket, worker: Worker) -> None:
    """Answers frames until the peer closes the connection."""
    reader = frames.to_worker_reader()
    while data := connection.recv(_RECEIVE_BYTES):
        answers: list[ToHub] = []
        since = time.perf_counter()
        for batch in reader.feed(data):
            for message in batch:
                if answers and (
                    len(answers) >= ANSWERS_AT_ONCE
                    or time.perf_counter() - since > ANSWERS_WITHIN_S
                    or worker.may_take_long(message)
                ):
                    connection.sendall(frames.encode(answers))
                    answers.clear()
                    since = time.perf_counter()
                worker.handle(message, answers)
        if answers:
            connection.sendall(frames.encode(answers))


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
        help=(
            "the user's own folder, of whose files bundles are made: for the command line, never "
            "for a hub"
        ),
    )
    arguments.add_argument("--fuel", action="store_true", help="count wasmtime's fuel")
    arguments.add_argument("--memory-bytes-max", type=int, default=0, help="of the whole process")
    arguments.add_argument("--cpu-s-max", type=int, default=0, help="of the whole process")
    options = arguments.parse_args()
    with (
        socket.socket(fileno=options.fd) as connection,
        contextlib.suppress(ConnectionError, KeyboardInterrupt),
    ):
        worker, ready = _set_up(options, connection)
        connection.sendall(frames.encode([ready]))
        try:
            serve(connection, worker)
        except ConnectionError:
            raise
        except BaseException:
            connection.sendall(frames.encode([Said(traceback.format_exc()[-TRACEBACK_CHARS:])]))
            raise
    return 0


def _set_up(options: argparse.Namespace, connection: socket.socket) -> tuple[Worker, Ready]:
    """Loads what the worker needs and puts up its walls; no stranger's byte is read before it
    returns.
    """
    starting = True

    def tell(name: str) -> None:
        if starting:
            connection.sendall(frames.encode([Progress(name)]))

    # A forge compiles code that runs once, esbuild above all: what it saves in compiling it never
    # loses in running.
    engine = Engine(options.cache, kind=KINDS[options.kind], fuel=options.fuel, on_compile=tell)
    names = {
        "session": ("engine", "base", "template"),
        "forge": ("engine", "base", "template", "esbuild"),
    }.get(options.kind, ())
    files = {name: (GUEST / f"{name}.wasm").read_bytes() for name in names}
    compiled = {name: wasm for name, wasm in files.items() if name in ("engine", "esbuild")}
    engine.fill_cache(compiled)
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
    esbuild = files.get("esbuild")
    bundler = engine.compile_cached(esbuild, name="esbuild") if esbuild else None
    template = Template(files["template"]) if files else None
    worker = Worker(engine, guest, bundler, template, memory_bytes_max=options.memory_bytes_max)
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
        guest.engine_digest if guest else "",
        guest.base_digest if guest else "",
        stood,
        FRAMES,
        template.digest if template else "",
    )


if __name__ == "__main__":
    sys.exit(main())
