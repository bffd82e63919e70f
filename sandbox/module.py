"""Turns of a machine that came as a WASM module of the guest ABI (docs/guest-abi.md), rather than
as a script.

Decides: how an input goes in, and what of the answer may come out. A stranger wrote both the
machine and what spells its answers, so everything that the prelude sees to for scripts (limits,
timers, well-formed JSON) is seen to here. Does not know: how modules are checked (`validate.py`) or
compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from sandbox.protocol.inputs import Shape, shape_of, timer_of
from sandbox.protocol.nesting import is_deeper_than
from sandbox.traps import Trap

if TYPE_CHECKING:
    from sandbox.engine import Instance
    from sandbox.image import ModuleHandles

INPUT_BYTES_MAX: Final = 1024 * 1024
"""As large as a script's I/O area."""
OUTBOX_BYTES_MAX: Final = 1024 * 1024
EMITTED_MAX: Final = 256
DEPTH_MAX: Final = 256
NUMBER_MAX: Final = 2**53
FAR_MS: Final = 8_640_000_000_000_000
"""The last instant a Date can name: "never"."""
LEVELS: Final = ("debug", "info", "warn", "error")
STATUSES: Final = ("active", "done", "error", "stopped")
_DROPPED: Final = ["warn", "… further lines of this event were dropped"]


class Answer(msgspec.Struct, array_like=True):
    """The outbox of a module, as `protocol.Outbox` but with values that were read: what goes on is
    spelled by us.
    """

    format: int
    finished: Any = 0
    snapshot: Any = None
    emitted: list[Any] = []
    timers_set: list[tuple[int, int]] = []
    timers_cancelled: list[int] = []
    logs: list[tuple[str, str]] = []


_decode = msgspec.json.Decoder(Answer).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class ModuleState:
    """What a module's session has besides its memory: its variables, and which timers it waits for.

    `extras` is what `freeze` gave for a checkpoint; empty for a session that begins.
    """

    def __init__(self, handles: ModuleHandles, extras: tuple[int, ...]) -> None:
        count = len(handles.globals)
        self._limits = handles.limits
        self._globals = list(extras[:count]) if extras else handles.globals
        self._last_timer, *timers = extras[count:] if extras else (0,)
        self._timers = set(timers)

    def thaw(self, instance: Instance) -> None:
        """Gives a fresh instance the variables."""
        for number, bits in enumerate(self._globals):
            instance.write_global(global_name(number), bits)

    def freeze(self, instance: Instance) -> tuple[int, ...]:
        variables = (
            instance.read_global(global_name(number)) for number in range(len(self._globals))
        )
        return (*variables, self._last_timer, *sorted(self._timers))

    def turn(self, instance: Instance, data: bytes, now_ms: int) -> bytes:
        """One input; the outbox as `protocol.Outbox` has it, or [0, fault]. Raises `Trap`."""
        try:
            shape = shape_of(data)
        except ValueError:
            raise Trap("machine_error", "a module does not know inputs of this kind") from None
        compact = msgspec.json.format(
            data, indent=-1
        )  # one spelling, whatever the client's white space
        answer = call_json(instance, "start" if shape is Shape.START else "step", compact, now_ms)
        if answer.startswith(b"[0,"):
            return _rejection(answer)
        if is_deeper_than(answer, DEPTH_MAX):
            raise Trap("snapshot_too_deep", f"the answer nests more than {DEPTH_MAX} levels")
        try:
            said = _decode(answer)
            fired = timer_of(data) if shape is Shape.TIMER else None
            return self._spell(said, fired=fired, now_ms=now_ms, is_start=shape is Shape.START)
        except (
            msgspec.MsgspecError,
            RecursionError,
            UnicodeError,
            OverflowError,
            ValueError,
        ) as error:
            raise Trap("snapshot_not_json", f"the answer is no outbox: {error}"[:300]) from None

    def _spell(self, said: Answer, *, fired: int | None, now_ms: int, is_start: bool) -> bytes:
        snapshot = said.snapshot
        if snapshot is None and is_start:
            raise Trap("snapshot_not_json", "the answer to `start` has no snapshot")
        if snapshot is not None and (
            not isinstance(snapshot, dict) or snapshot.get("status") not in STATUSES
        ):
            raise Trap(
                "snapshot_not_json",
                f"a snapshot is an object whose status is one of {', '.join(STATUSES)}",
            )
        if snapshot is not None and not (
            isinstance(tags := snapshot.get("tags", []), list)
            and all(isinstance(tag, str) for tag in tags)
        ):
            raise Trap("snapshot_not_json", "a snapshot's tags are a list of texts")
        if len(said.emitted) > EMITTED_MAX:
            raise Trap("emitted_exceeded", f"a turn emits at most {EMITTED_MAX} events")
        if not all(
            isinstance(event, dict) and isinstance(event.get("type"), str) for event in said.emitted
        ):
            raise Trap("snapshot_not_json", "an emitted event is an object with a type")
        finished = int(bool(said.finished) if snapshot is None else snapshot["status"] != "active")
        timers_set, cancelled = self._keep_timers(said, fired=fired, now_ms=now_ms)
        return _encode(
            [1, finished, snapshot, said.emitted, timers_set, cancelled, self._cut(said.logs)]
        )

    def _keep_timers(
        self, said: Answer, *, fired: int | None, now_ms: int
    ) -> tuple[list[tuple[int, int]], list[int]]:
        """Ids count up, since the host takes one that it has seen for the old one; the one that
        fires may be set again.
        """
        if max(len(said.timers_set), len(said.timers_cancelled)) > self._limits.timers:
            raise Trap(
                "timers_exceeded", f"a turn sets and cancels at most {self._limits.timers} timers"
            )
        if fired is not None:
            self._timers.discard(fired)
        timers_set: list[tuple[int, int]] = []
        for timer, due_ms in said.timers_set:
            if not (timer == fired or self._last_timer < timer <= NUMBER_MAX):
                raise Trap("machine_error", f"timer {timer}: ids of timers count up")
            self._last_timer = max(self._last_timer, timer)
            self._timers.add(timer)
            timers_set.append((timer, min(max(due_ms, now_ms), FAR_MS)))
        cancelled = [
            timer for timer in dict.fromkeys(said.timers_cancelled) if timer in self._timers
        ]
        self._timers.difference_update(cancelled)
        if len(self._timers) > self._limits.timers:
            raise Trap("timers_exceeded", f"a session has at most {self._limits.timers} timers")
        return timers_set, cancelled

    def _cut(self, logs: list[tuple[str, str]]) -> list[Any]:
        chars = self._limits.log_line_bytes
        lines: list[Any] = [
            (
                level if level in LEVELS else "info",
                text if len(text) <= chars else text[:chars] + "…",
            )
            for level, text in logs[: self._limits.log_lines]
        ]
        return lines if len(logs) <= self._limits.log_lines else [*lines, _DROPPED]


def global_name(number: int) -> bytes:
    """What the variable is called among the exports (`validate.split` adds them)."""
    return b"machinehub.%d" % number


def call_json(instance: Instance, name: str, data: bytes | None, now_ms: int = 0) -> bytes:
    """Calls `start`, `step` or (without data) `describe`, which answers with address and length of
    a text. Raises `Trap`.
    """
    arguments: tuple[int, ...] = ()
    if data is not None:
        if len(data) > INPUT_BYTES_MAX:
            raise Trap("event_too_large", "the input is too large for a module")
        at = instance.call("alloc", len(data)) & 0xFFFFFFFF
        instance.write(at, data)
        arguments = (at, len(data), now_ms)
    packed = instance.call_i64(name, *arguments)
    at, length = packed >> 32, packed & 0xFFFFFFFF
    if length > OUTBOX_BYTES_MAX:
        raise Trap("snapshot_too_large", f"an answer has at most {OUTBOX_BYTES_MAX} bytes")
    answer = instance.read(at, length)
    try:
        answer.decode()
    except UnicodeDecodeError:
        raise Trap("snapshot_not_json", "the answer is not UTF-8") from None
    return answer


def _rejection(answer: bytes) -> bytes:
    """The module refuses the event: its words, under a code that no client mistakes for the
    hub's.
    """
    message = "the machine refused the event"
    try:
        fault = _decode_any(answer)[1]
        message = str(fault["message"])[:2000]
    except (msgspec.MsgspecError, RecursionError, LookupError, TypeError):
        pass
    return _encode([0, {"code": "machine_error", "message": message}])
