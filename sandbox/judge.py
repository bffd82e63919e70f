"""What a version's `access` and `view` say: each question goes to a fresh instance of its image,
which is thrown away afterwards (guest/prelude/judge.ts says the form of questions and answers).

So nothing that one answer leaves behind is found by the next, and no session's memory is touched:
replays need none of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from sandbox.protocol.nesting import is_deeper_than
from sandbox.traps import CPU_EXCEEDED, Trap

if TYPE_CHECKING:
    from sandbox.engine import Engine
    from sandbox.loaded import LoadedImage

DEPTH_MAX = 256


class _Fault(msgspec.Struct):
    code: str
    message: str
    at: str | None = None


class Judge:
    """Asks one image."""

    def __init__(self, engine: Engine, image: LoadedImage, *, memory_bytes_max: int) -> None:
        self._engine = engine
        self._image = image
        self._memory_bytes_max = memory_bytes_max
        self.cpu_ns = 0
        """What the last answer took."""

    def ask(self, question: bytes, now_ms: int, *, cpu_s: float) -> bytes:
        """The answer to a question, both JSON. Raises `Trap`."""
        handles = self._image.handles
        if len(question) > handles.io_bytes:
            raise Trap("view_failed", "the question does not fit into the I/O area")
        watchdog = self._engine.watchdog
        instance = self._engine.thaw(
            self._image.module, self._image.code, memory_bytes_max=self._memory_bytes_max
        )
        try:
            watchdog.start(cpu_s)
            try:
                instance.write_io(handles.io, question)
                length = instance.step(
                    step=handles.judge,
                    collect=handles.judged,
                    io=handles.io,
                    io_bytes=handles.io_bytes,
                    length=len(question),
                    now_ns=now_ms * 1_000_000,
                    jobs=handles.jobs,
                )
                answer = instance.read_io(handles.io, length)
            finally:
                self.cpu_ns = watchdog.stop()
            if self.cpu_ns > cpu_s * 1e9:  # it ended before the watchdog looked
                raise Trap("cpu_exceeded", CPU_EXCEEDED)
        finally:
            instance.close()
        if is_deeper_than(answer, DEPTH_MAX):
            raise Trap("view_failed", f"the answer nests more than {DEPTH_MAX} levels")
        return answer

    def fault_in(self, answer: bytes) -> str:
        """Why there is no answer, for the machine's author, with the place in their file."""
        try:
            fault = msgspec.json.decode(answer, type=tuple[int, _Fault])[1]
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            return "the answer cannot be read"
        source_map = self._image.handles.source_map
        place = source_map.find(fault.at) if source_map and fault.at else None
        where = f" ({':'.join(map(str, place))[:300]})" if place else ""
        return fault.message[:2000] + where
