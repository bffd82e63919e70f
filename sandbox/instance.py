"""One session's memory on a worker: it runs inputs, makes and restores checkpoints, and undoes
turns.

Each input is a transaction: if a turn traps or its outbox reports a fault, the instance is thrown
away, the last checkpoint is thawed, and the inputs since are replayed, which gives the same bytes.
This module also decides when a checkpoint is due: when replaying would take too long, here or
elsewhere. It uses no session ids and no connections.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.access import Guard, Refused
from sandbox.checkpoint import DamagedCheckpoint, apply_checkpoint, encode_checkpoint
from sandbox.judge import Judge
from sandbox.module import ModuleState
from sandbox.protocol.inputs import is_start
from sandbox.protocol.messages import NO_COST, Cost
from sandbox.protocol.nesting import is_deeper_than
from sandbox.protocol.outbox import decode_outbox
from sandbox.traps import CPU_EXCEEDED, Trap

if TYPE_CHECKING:
    from sandbox.engine import Engine, Instance
    from sandbox.loaded import LoadedImage

CHECKPOINT_INPUTS: Final = 256
"""A checkpoint costs what 10 to 20 events cost; replaying this many inputs takes about 25 ms."""
CHECKPOINT_CPU_NS: Final = 100_000_000
"""A checkpoint goes to the hub after this much CPU time in inputs. It bounds how long the replay
blocks the other sessions of a worker on which the session is thawed.
"""
CHECKPOINT_BYTES: Final = 1024 * 1024
"""A checkpoint goes to the hub after this many bytes of inputs, which the hub keeps until then."""
UNDO_CPU_NS: Final = 50_000_000
"""A session is frozen, without telling the hub, after this much CPU time in inputs. It bounds the
replay that undoing a turn takes, during which the worker's other sessions wait.
"""
HEAVY_TURN_NS: Final = 10_000_000
"""After a turn of this CPU time the session is frozen at once, which takes about a fifth of it, so
that undoing a later turn need not replay this one.
"""
REPLAY_CPU_S: Final = 5.0
"""CPU budget for a replay: ten times what the bounds above let come together, for a slower hour."""
PLACE_CHARS_MAX: Final = 300
DEPTH_MAX: Final = 256
NO_ROOM: Final = "the sandbox worker has no memory left"
"""Of an outbox: the hub's parser, and those of clients, recurse."""
_REJECTED: Final = b"[0,"


def _less(own: int | None, given: int) -> int:
    return given if own is None else min(own, given)


class Fault(msgspec.Struct, frozen=True):
    """Why a turn was undone. `at` is "file:line:column" where the author's own code is to blame."""

    code: str
    message: str
    at: str | None = None


class LostSession(Exception):
    """The session could not be brought back to where it was; the hub thaws it anew."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a session may become."""

    memory_bytes_max: int
    snapshot_bytes_max: int
    emitted_bytes_max: int


def process_has(size_bytes: int) -> bool:
    """Whether the process could get so much more memory. If not, a session that could not grow may
    have met the process's bound, not its own.
    """
    try:
        mmap.mmap(-1, max(1, size_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True


class LiveMachine:
    """A thawed session. `apply` is the only way to change it."""

    __slots__ = (
        "_checkpoint",
        "_cpu_s_max",
        "_engine",
        "_guard",
        "_image",
        "_instance",
        "_module",
        "_sizes",
        "_start_cpu_s_max",
        "_tail",
        "_tail_cpu_ns",
        "_untold_bytes",
        "_untold_cpu_ns",
        "_untold_inputs",
        "cost",
    )

    def __init__(
        self,
        engine: Engine,
        image: LoadedImage,
        sizes: Sizes,
        *,
        checkpoint: bytes | None = None,
        snapshot: bytes = b"null",
    ) -> None:
        """`snapshot` is the public one of that moment, by which it is decided who may send what."""
        self._engine = engine
        self._image = image
        own = image.handles.own
        self._sizes = Sizes(
            sizes.memory_bytes_max,
            _less(own.snapshot_bytes, sizes.snapshot_bytes_max),
            _less(own.emitted_bytes, sizes.emitted_bytes_max),
        )
        self._cpu_s_max, self._start_cpu_s_max = (
            (ms / 1000 if ms else float("inf")) for ms in (own.event_cpu_ms, own.start_cpu_ms)
        )
        self.cost = NO_COST
        """Of the last turn, whatever became of it."""
        self._module: ModuleState | None = None
        self._checkpoint = checkpoint
        self._tail: list[tuple[bytes, int]] = []
        """The inputs since `_checkpoint`."""
        self._tail_cpu_ns = 0
        self._untold_inputs = self._untold_bytes = self._untold_cpu_ns = 0
        """What came since the last checkpoint that the hub has."""
        self._instance: Instance | None = None
        self._guard = self._make_guard(snapshot)
        self._thaw()

    def _make_guard(self, snapshot: bytes) -> Guard | None:
        handles = self._image.handles
        judge = None
        if handles.asks_access:
            judge = Judge(self._engine, self._image, memory_bytes_max=self.memory_bytes_max)
        return Guard(handles.rules, judge, snapshot) if handles.rules or judge else None

    @property
    def memory_bytes_max(self) -> int:
        """What its memory may grow to."""
        return self._sizes.memory_bytes_max

    def apply(self, data: bytes, now_ms: int, *, cpu_s: float) -> bytes | Fault:
        """Runs one input (JSON text, see guest/prelude/session.ts) at `now_ms`.

        Returns the outbox (JSON text of an `Outbox`), or the fault that undid the turn. Raises
        `LostSession` when it could not be undone.
        """
        watchdog, instance = self._engine.watchdog, self._instance
        assert instance is not None
        if self._guard is not None:
            try:
                self._guard.check(data, now_ms, cpu_s=min(cpu_s, self._cpu_s_max))
            except Refused as refused:  # nothing has happened: there is nothing to undo
                self.cost = Cost(self._guard.cpu_ns // 1000, instance.memory_bytes)
                return Fault(refused.code, refused.message)
        outbox = b""
        fault: Fault | None = None
        fuel = instance.fuel
        cpu_s = min(cpu_s, self._start_cpu_s_max if is_start(data) else self._cpu_s_max)
        watchdog.start(cpu_s)
        try:
            outbox = self._step(data, now_ms)
        except Trap as trap:
            fault = Fault(trap.code, trap.message)
            more = self._sizes.memory_bytes_max - instance.memory_bytes
            if trap.code == "memory_exceeded" and not process_has(more):
                fault = Fault("unavailable", NO_ROOM)
        cpu_ns = watchdog.stop()
        asked_ns = self._guard.cpu_ns if self._guard is not None else 0
        cost_us = (cpu_ns + asked_ns) // 1000
        self.cost = Cost(cost_us, instance.memory_bytes, fuel - instance.fuel)
        if fault is None:
            fault = self._fault_in(outbox)
        if fault is None and cpu_ns > cpu_s * 1e9:  # it ended before the watchdog looked
            fault = Fault("cpu_exceeded", CPU_EXCEEDED)
        if fault is not None:
            self._undo()
            return fault
        self._count([(data, now_ms)], cpu_ns)
        if self._guard is not None:
            self._guard.saw(outbox)
        return outbox

    def keep(self) -> bytes | None:
        """To be called after a turn that was taken: freezes the session where undoing its next turn
        would take too long.

        Returns the checkpoint when the hub should have it too, since thawing the session elsewhere
        would take too long.
        """
        if (
            self._untold_inputs >= CHECKPOINT_INPUTS
            or self._untold_cpu_ns >= CHECKPOINT_CPU_NS
            or self._untold_bytes >= CHECKPOINT_BYTES
        ):
            return self.checkpoint()
        if self._tail_cpu_ns >= UNDO_CPU_NS or self.cost.cpu_us * 1000 >= HEAVY_TURN_NS:
            self._freeze()
        return None

    def replay(self, tail: list[tuple[bytes, int]], *, cpu_s: float = 0) -> list[bytes]:
        """Applies inputs that were accepted before, until it has taken `cpu_s` (0: to the end); the
        outboxes of those it did.

        Raises `Trap` when one is not accepted now: the session is of no use then.
        """
        outboxes, cpu_ns = self._replay(tail, cpu_s)
        if self._guard is not None:
            for outbox in outboxes:
                self._guard.saw(outbox)
        self._count(tail[: len(outboxes)], cpu_ns)
        return outboxes

    def checkpoint(self) -> bytes:
        """The session as it is now, for the hub; what comes later is replayed on top of this."""
        if self._tail or self._checkpoint is None:
            self._freeze()
        self._untold_inputs = self._untold_bytes = self._untold_cpu_ns = 0
        assert self._checkpoint is not None
        return self._checkpoint

    def memory(self) -> bytes:
        """The whole memory, with zeros where its content means nothing between turns.

        For comparing.
        """
        assert self._instance is not None
        memory = bytearray(self._instance.view())
        for area in self._image.handles.scratch:
            memory[area.start : area.stop] = bytes(len(area))
        return bytes(memory)

    def close(self) -> None:
        if self._instance is not None:
            self._instance.close()
            self._instance = None

    def _step(self, data: bytes, now_ms: int) -> bytes:
        instance, handles = self._instance, self._image.handles
        assert instance is not None
        if self._module is not None:
            return self._module.turn(instance, data, now_ms)
        if len(data) > handles.io_bytes:
            raise Trap("event_too_large", "the input does not fit into the I/O area")
        instance.write_io(handles.io, data)
        length = instance.step(
            step=handles.step,
            collect=handles.collect,
            io=handles.io,
            io_bytes=handles.io_bytes,
            length=len(data),
            now_ns=now_ms * 1_000_000,
            jobs=handles.jobs,
        )
        return instance.read_io(handles.io, length)

    def _replay(self, tail: list[tuple[bytes, int]], cpu_s: float) -> tuple[list[bytes], int]:
        """The outboxes, and the CPU it took in nanoseconds."""
        outboxes: list[bytes] = []
        until_s = time.thread_time() + cpu_s if cpu_s else float("inf")
        self._engine.watchdog.start(REPLAY_CPU_S)
        try:
            for data, now_ms in tail:
                outboxes.append(self._step(data, now_ms))
                if outboxes[-1].startswith(_REJECTED):
                    raise Trap(
                        "machine_error", "an accepted input was rejected when it was replayed"
                    )
                if time.thread_time() >= until_s:
                    break
        finally:
            cpu_ns = self._engine.watchdog.stop()
        return outboxes, cpu_ns

    def _count(self, inputs: list[tuple[bytes, int]], cpu_ns: int) -> None:
        self._tail += inputs
        self._tail_cpu_ns += cpu_ns
        self._untold_inputs += len(inputs)
        self._untold_bytes += sum(len(data) for data, _ in inputs)
        self._untold_cpu_ns += cpu_ns

    def _freeze(self) -> None:
        assert self._instance is not None
        extras = self._module.freeze(self._instance) if self._module else ()
        self._checkpoint = encode_checkpoint(
            self._image.memory,
            self._instance.view(),
            scratch=self._image.handles.scratch,
            extras=extras,
        )
        self._tail, self._tail_cpu_ns = [], 0

    def _thaw(self) -> None:
        self._instance = instance = self._engine.thaw(
            self._image.module, self._image.code, memory_bytes_max=self._sizes.memory_bytes_max
        )
        extras: tuple[int, ...] = ()
        try:
            if self._checkpoint is not None:
                size, pages, extras = apply_checkpoint(
                    self._checkpoint,
                    memoryview(self._image.memory),
                    bytes_max=self._sizes.memory_bytes_max,
                )
                instance.grow_to(size)
                for at, content in pages:
                    instance.write(at, content)
            if self._image.handles.module is not None:
                self._module = ModuleState(self._image.handles.module, extras)
                self._module.thaw(instance)
        except (
            ValueError,
            LookupError,
            OverflowError,
        ) as error:  # its digest fits, but who wrote it was no worker of ours
            raise DamagedCheckpoint(str(error)) from error

    def _undo(self) -> None:
        self.close()
        try:
            self._thaw()
            self._replay(self._tail, 0)
        except (Trap, DamagedCheckpoint) as error:
            raise LostSession(str(error)) from error

    def _fault_in(self, outbox: bytes) -> Fault | None:
        """Why this outbox cannot count: the guest says so, or it is none.

        User code shares the guest with what wrote it.
        """
        if outbox.startswith(_REJECTED):
            try:
                fault = msgspec.json.decode(outbox, type=tuple[int, Fault])[1]
            except (msgspec.MsgspecError, RecursionError):
                return Fault("machine_error", "the turn failed and did not say why")
            source_map = self._image.handles.source_map
            place = source_map.find(fault.at) if source_map and fault.at else None
            return Fault(
                fault.code[:100],
                fault.message[:2000],
                ":".join(map(str, place))[:PLACE_CHARS_MAX] if place else None,
            )
        try:
            if is_deeper_than(outbox, DEPTH_MAX):
                return Fault(
                    "snapshot_too_deep",
                    f"the snapshot, or what the turn emitted, nests more than {DEPTH_MAX} levels",
                )
            said = decode_outbox(outbox)
        except (msgspec.MsgspecError, RecursionError):
            return Fault(
                "snapshot_not_json",
                (
                    "the snapshot, or what the turn emitted or logged, is not JSON that others can "
                    "read"
                ),
            )
        sizes = self._sizes
        if len(bytes(said.snapshot)) > sizes.snapshot_bytes_max:
            return Fault(
                "snapshot_too_large", f"the snapshot has more than {sizes.snapshot_bytes_max} bytes"
            )
        if (
            said.emitted
            and sum(len(bytes(event)) for event in said.emitted) > sizes.emitted_bytes_max
        ):
            return Fault(
                "emitted_exceeded", f"a turn emits at most {sizes.emitted_bytes_max} bytes"
            )
        return None
