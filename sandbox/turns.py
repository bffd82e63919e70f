"""The sessions of one worker process.

`Turns` passes each message of the hub to the `LiveMachine` that it is about, and makes answers of
the results. It uses no sockets, and does not decide the order of messages.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from sandbox.checkpoint import DamagedCheckpoint
from sandbox.compression import Template, unpack
from sandbox.forge import digest_of
from sandbox.instance import LiveMachine, LostSession, Sizes
from sandbox.judge import Judge
from sandbox.loaded import LoadedImage, load_image
from sandbox.protocol.limits import HEAVY_US
from sandbox.protocol.messages import (
    Checkpoint,
    Close,
    Done,
    Failed,
    Forget,
    Frozen,
    LoadEngine,
    LoadImage,
    LoadTemplate,
    Open,
    Replay,
    Replayed,
    Step,
    ToHub,
    View,
)
from sandbox.protocol.outbox import decode_outbox
from sandbox.traps import Trap

if TYPE_CHECKING:
    from sandbox.engine import Engine
    from sandbox.forge import Guest
    from sandbox.protocol.ids import Slot, TimerId

RESERVED: Final = 0.8
"""The share of a worker's memory that the memories of modules may take together, were each to grow
as far as it may.
"""
IMAGE_MEMORY_BYTES_MAX: Final = 256 * 1024 * 1024


class Turns:
    """The sessions of one process, by the slots that the hub gave them."""

    def __init__(
        self,
        engine: Engine,
        guest: Guest | None,
        template: Template | None = None,
        *,
        memory_bytes_max: int = 0,
    ) -> None:
        """`guest` and `template` are None where modules run, which need none; `memory_bytes_max` is
        the process's, 0 for none.
        """
        self._templates = {template.digest: template} if template else {}
        self._memory_bytes_max = memory_bytes_max
        self._engine = engine
        self._runs_modules = guest is None
        self._engines = {guest.engine_digest: guest.engine} if guest else {}
        self._images: dict[str, LoadedImage] = {}
        self._sessions: dict[Slot, LiveMachine] = {}

    def is_heavy(self, slot: Slot) -> bool:
        """Whether the session's last turn was heavy."""
        machine = self._sessions.get(slot)
        return machine is not None and machine.cost.cpu_us >= HEAVY_US

    def step(self, step: Step, answers: list[ToHub]) -> None:
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

    def checkpoint(self, request: Checkpoint, answers: list[ToHub]) -> None:
        machine = self._sessions.get(request.session)
        if machine is None:
            answers.append(_lost(request))
        else:
            answers.append(Done(request.session, request.ticket, machine.checkpoint()))

    def close(self, request: Close, _answers: list[ToHub]) -> None:
        if machine := self._sessions.pop(request.session, None):
            machine.close()

    def open(self, request: Open, answers: list[ToHub]) -> None:
        failure = self._open(request)
        if failure is None:
            answers.append(Done(request.session, request.ticket, b""))
        else:
            code, message = failure
            answers.append(Failed(request.session, request.ticket, code, message, None))

    def _open(self, request: Open) -> tuple[str, str] | None:
        """Thaws a session; else code and message of what stands against it."""
        if not self._has_room_for(request.memory_bytes_max):
            return "unavailable", "the sandbox has no room for another module's memory"
        image = self._images.get(request.digest)
        if image is None:
            return "image_damaged", "the image could not be loaded"
        sizes = Sizes(
            request.memory_bytes_max, request.snapshot_bytes_max, request.emitted_bytes_max
        )
        try:
            machine = LiveMachine(
                self._engine,
                image,
                sizes,
                checkpoint=request.checkpoint,
                snapshot=request.snapshot,
            )
        except Trap as trap:
            code = "unavailable" if trap.code == "unavailable" else "session_damaged"
            return code, trap.message
        except DamagedCheckpoint as error:
            return "session_damaged", str(error)
        self._sessions[request.session] = machine
        return None

    def _has_room_for(self, memory_bytes_max: int) -> bool:
        """Whether all modules here, and one more with `memory_bytes_max`, could grow to their
        limits at the same time; always True for scripts.

        A module sees the result of `memory.grow`. If the process ran out of memory, that result
        could differ in a replay, and the replay would not give the same memory.
        """
        if not self._runs_modules or not self._memory_bytes_max:
            return True
        reserved = sum(machine.memory_bytes_max for machine in self._sessions.values())
        return reserved + memory_bytes_max <= RESERVED * self._memory_bytes_max

    def replay(self, request: Replay, answers: list[ToHub]) -> None:
        answers.append(self._replay(request))

    def _replay(self, request: Replay) -> ToHub:
        machine = self._sessions.get(request.session)
        if machine is None:
            return _lost(request)
        try:
            outboxes = machine.replay(request.inputs, cpu_s=request.cpu_us / 1e6)
        except Trap as error:
            self._sessions.pop(request.session).close()
            return Failed(request.session, request.ticket, "session_damaged", str(error), None)
        snapshot, finished = b"null", False
        timers: list[tuple[int, list[tuple[TimerId, int]], list[TimerId]]] = []
        for position, outbox in enumerate(map(decode_outbox, outboxes)):
            snapshot = bytes(outbox.snapshot) if bytes(outbox.snapshot) != b"null" else snapshot
            finished = outbox.finished
            if outbox.timers_set or outbox.timers_cancelled:
                timers.append((position, outbox.timers_set, outbox.timers_cancelled))
        return Replayed(request.session, request.ticket, snapshot, finished, timers, len(outboxes))

    def view(self, request: View, answers: list[ToHub]) -> None:
        answers.append(self._view(request))

    def _view(self, request: View) -> ToHub:
        image = self._images.get(request.digest)
        if image is None:
            code, message = "image_damaged", "the image could not be loaded"
            return Failed(request.session, request.ticket, code, message, None)
        judge = Judge(self._engine, image, memory_bytes_max=request.memory_bytes_max)
        try:
            cpu_ms = min(request.cpu_ms, image.handles.own.event_cpu_ms or request.cpu_ms)
            answer = judge.ask(request.question, request.now_ms, cpu_s=cpu_ms / 1000)
        except Trap as trap:
            code = "unavailable" if trap.code == "unavailable" else "view_failed"
            return Failed(request.session, request.ticket, code, trap.message, None)
        return Done(request.session, request.ticket, answer)

    # --- images and engines -----------------------------------------------------------------------

    def load_image(self, request: LoadImage, _answers: list[ToHub]) -> None:
        """A damaged image is noticed by the first `Open` that asks for it."""
        if request.digest in self._images:
            return
        with contextlib.suppress(ValueError, Trap):
            wasm = self._unpacked(request)
            self._images[request.digest] = load_image(
                self._engine, self._engines, wasm, memory_bytes_max=IMAGE_MEMORY_BYTES_MAX
            )

    def _unpacked(self, request: LoadImage) -> bytes:
        """Raises `ValueError`."""
        if not request.template:
            return unpack(request.image, bytes_max=IMAGE_MEMORY_BYTES_MAX)
        template = self._templates.get(request.template)
        if template is None:
            raise ValueError("its template could not be loaded")
        return template.unpack(request.image, bytes_max=IMAGE_MEMORY_BYTES_MAX)

    def load_template(self, request: LoadTemplate, _answers: list[ToHub]) -> None:
        """What is damaged is noticed as its images are."""
        if request.digest in self._templates:
            return
        with contextlib.suppress(ValueError):
            template = Template(unpack(request.template, bytes_max=IMAGE_MEMORY_BYTES_MAX))
            if template.digest == request.digest:
                self._templates[request.digest] = template

    def load_engine(self, request: LoadEngine, _answers: list[ToHub]) -> None:
        """Compiles an older engine, or maps it from the cache; takes a module's machine code.

        What is damaged is noticed as its images are.
        """
        if request.digest in self._engines:
            return
        with contextlib.suppress(ValueError):
            code = unpack(request.engine, bytes_max=IMAGE_MEMORY_BYTES_MAX)
            if self._runs_modules:
                self._engines[request.digest] = self._engine.load(code)
            elif digest_of(code) == request.digest:
                self._engines[request.digest] = self._engine.compile_cached(code, name="engine")

    def forget(self, request: Forget, _answers: list[ToHub]) -> None:
        """Drops an image; a module's code goes with the last image of it."""
        image = self._images.pop(request.digest, None)
        if image is None or image.handles.module is None:
            return
        code = image.handles.engine
        if all(other.handles.engine != code for other in self._images.values()):
            self._engines.pop(code, None)


def _lost(message: Step | Checkpoint | Replay) -> Failed:
    return Failed(
        message.session, message.ticket, "session_lost", "the session is not on this worker", None
    )
