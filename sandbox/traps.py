"""How a guest call that does not return has ended, and what the machine's author is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_STACK_OVERFLOW: Final = 0
INTERRUPT: Final = 10
_FAULTS: Final = {
    1: ("memory_exceeded", "the session needs more memory than it may have"),
    2: (
        "snapshot_too_large",
        "the snapshot, logs and emitted events of the turn are too large",
    ),
    4: ("jobs_exceeded", "the turn ran more promise jobs than it may"),
}
"""What the guest notes (guest/engine/engine.h), as code and words."""
_TRAPS: Final = {
    1: "an access outside the memory",
    3: "an access outside the table",
    4: "a call of nothing through the table",
    5: "a call through the table of another type",
    6: "an integer overflow",
    7: "an integer division by zero",
    8: "a number that is no integer",
    9: "unreachable code was reached",
}
"""wasmtime's codes (wasmtime/trap.h), in words for a module's author."""
CPU_EXCEEDED: Final = "the turn took more CPU than it may"


class Trap(Exception):
    """A guest call ended in a trap; the instance must be thrown away.

    `code` is one of `cpu_exceeded`, `memory_exceeded`, `stack_exceeded`, `jobs_exceeded`,
    `snapshot_too_large`, `snapshot_not_json`, `timers_exceeded`, `emitted_exceeded`,
    `machine_error`; `unavailable` when the worker is to blame.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def trap_of(code: int, fault_of: Callable[[], int]) -> Trap:
    """What wasmtime's `code` means. `fault_of()` is what the guest itself noted before it gave up
    (guest/engine/engine.h); 0 for nothing.
    """
    if code == INTERRUPT:
        return Trap("cpu_exceeded", CPU_EXCEEDED)
    if code == _STACK_OVERFLOW:
        return Trap("stack_exceeded", "the turn nested deeper than its stack")
    fault = fault_of()
    if fault in _FAULTS:
        return Trap(*_FAULTS[fault])
    what = _TRAPS.get(code, f"trap {code}")
    return Trap(
        "machine_error", f"the guest trapped: {what}" + (f" (fault {fault})" if fault else "")
    )
