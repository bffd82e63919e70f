"""The watchdog: ends a turn that used up its CPU budget."""

from __future__ import annotations

import ctypes
import threading
import time
from typing import Any, Final, Protocol

WATCHDOG_TICK_S: Final = 0.010
"""How often the watchdog looks at a running turn: a turn ends at most one tick after its CPU
budget.
"""


class Guarded(Protocol):
    """What a turn runs in (`engine.Instance`)."""

    def take_memory_away(self, mprotect: Any) -> None: ...


class Watchdog:
    """Ends a turn that used up its CPU budget.

    A thread looks at the guest thread's own CPU clock every `WATCHDOG_TICK_S`, so a machine is not
    blamed for a busy computer. There are two ways of ending a turn:

    * *by epoch*: the watchdog increments wasmtime's epoch counter, which compiled code checks at
      every function entry and loop. The check costs QuickJS, whose interpreter is one big loop,
      38 % of each event, so every kind of worker uses it except those that run scripts.
    * *by protection*: the memory of the running instance is made inaccessible (`mprotect`), and the
      next load or store is the same trap as one out of bounds. It costs nothing while nothing is
      wrong. It reaches all code that touches its memory, which an interpreter does in every
      instruction; the engine has no call into native code that would touch it
      (guest/engine/runtime.c has copies of its own). Code compiled from an untrusted WASM module
      may loop without touching memory, so it is interrupted by epoch.

    A lock is held from the check to the act, and by the guest thread when it begins or ends a call:
    the turn that is ended is always the one that was checked, and the memory is never looked at
    after it was taken. The thread sleeps while no turn runs.
    """

    def __init__(self, library: str, engine: ctypes.c_void_p, *, by_epoch: bool) -> None:
        """`engine` is wasmtime's, of the C library at `library`."""
        self.by_epoch = by_epoch
        self.epoch = 0
        self._lock = threading.Lock()
        self._fired = False
        self._guarded: Guarded | None = None
        self._engine_ptr = engine
        self._budget_ns = 0
        self._started_ns = 0
        self._running = False
        self._parked = threading.Event()
        self._awake = False
        self._clock: int | None = None
        self._increment = ctypes.PyDLL(library).wasmtime_engine_increment_epoch
        self._increment.argtypes = [ctypes.c_void_p]
        self._increment.restype = None
        self._mprotect = ctypes.PyDLL(None).mprotect
        self._mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def start(self, cpu_s: float) -> None:
        """Begins a turn of the calling thread with a budget of `cpu_s` seconds of its CPU time."""
        if self._clock is None:
            self._clock = time.pthread_getcpuclockid(threading.get_ident())
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        with self._lock:
            self._budget_ns = int(cpu_s * 1e9)
            self._started_ns = time.thread_time_ns()
            self._fired = False
            self._running = True
        if not self._awake:
            self._awake = True
            self._parked.set()

    def stop(self) -> int:
        """Ends the watch; the CPU that the turn took, in nanoseconds."""
        with self._lock:
            self._running = False
        return time.thread_time_ns() - self._started_ns

    def guard(self, instance: Guarded) -> None:
        """A call into `instance` begins: it may be ended from now on."""
        with self._lock:
            self._guarded = instance

    def release(self) -> bool:
        """The call has returned and cannot be ended any more; whether it was."""
        with self._lock:
            self._guarded = None
            fired, self._fired = self._fired, False
            return fired

    def _watch(self) -> None:
        assert self._clock is not None
        idle = 0
        while True:
            time.sleep(WATCHDOG_TICK_S)
            if not self._running:
                idle += 1
                if idle > 20:  # nothing to watch for a while: wait to be woken
                    self._awake = False
                    if not self._running:
                        self._parked.wait()
                    self._parked.clear()
                    idle = 0
                continue
            idle = 0
            with self._lock:
                if (
                    self._running
                    and time.clock_gettime_ns(self._clock) - self._started_ns > self._budget_ns
                ):
                    self._end_turn()

    def _end_turn(self) -> None:
        if self.by_epoch:
            self._running = False
            self.epoch += 1
            self._increment(self._engine_ptr)
        elif (
            self._guarded is not None
        ):  # else no call is under way: the turn is over and only wants to say so
            self._running = False
            self._fired = True
            self._guarded.take_memory_away(self._mprotect)
