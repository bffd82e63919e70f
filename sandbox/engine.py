"""The engine: compiled WASM, instances, traps and the watchdog. The only file that imports wasmtime.

Decides: which WASM features exist, how much stack and memory a guest has, how a turn is interrupted.
Does not know: what an image means (`image.py`), what a session is (`instance.py`), or JSON.

One wasmtime Engine per process, no host functions at all (wasmtime-py keeps the last exception of a host
callback in a process-wide variable, and a guest with nothing to call has nothing to attack), and one guest
thread. Calls go through `wasmtime_func_call_unchecked`: about 3 us instead of the 25 us of `Func.__call__`.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.metadata
import platform
import struct
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import wasmtime
from wasmtime import _bindings
from wasmtime import _ffi as ffi

if TYPE_CHECKING:
    from collections.abc import Callable

WASM_PAGE_BYTES: Final = 65536
WASM_STACK_BYTES: Final = 2 * 1024 * 1024
"""Native stack for guest frames. QuickJS's own check (`JS_STACK_BYTES`) is to fire first; this is the wall behind it."""
WATCHDOG_TICK_S: Final = 0.010
"""How often the watchdog looks at a running turn: a turn ends at most one tick after its CPU budget."""

_STACK_OVERFLOW: Final = 0
_INTERRUPT: Final = 10
_OUT_OF_MEMORY: Final = 1
_OUTBOX_TOO_LARGE: Final = 2


class Trap(Exception):
    """A guest call ended in a trap; the instance must be thrown away.

    `code` is one of `cpu_exceeded`, `memory_exceeded`, `stack_exceeded`, `snapshot_too_large`, `machine_error`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Engine:
    """The process's wasmtime engine and the cache of what it compiled."""

    def __init__(self, cache: Path | None, *, forge: bool = False, on_compile: Callable[[str], None] | None = None) -> None:
        """`forge`: for code that runs once (esbuild above all). Compiled fast rather than well, interrupted by epoch.

        `on_compile` hears the name of each module that is not in the cache, before it is compiled.
        """
        config = wasmtime.Config()
        config.epoch_interruption = forge
        config.max_wasm_stack = WASM_STACK_BYTES
        config.cranelift_opt_level = "none" if forge else "speed"
        config.memory_init_cow = True
        config.parallel_compilation = True
        # Off: every proposal the guest does not need. What is left is bulk memory, reference types and multi-value.
        config.wasm_threads = False
        config.wasm_simd = False
        config.wasm_relaxed_simd = False
        config.wasm_memory64 = False
        config.wasm_multi_memory = False
        config.wasm_tail_call = False
        config.wasm_function_references = False
        config.wasm_gc = False
        config.wasm_exceptions = False
        self._engine = wasmtime.Engine(config)
        self._cache = cache
        self._on_compile = on_compile or (lambda name: None)
        self._kind = "forge" if forge else "session"
        self.watchdog = Watchdog(self._engine, by_epoch=forge)

    def compile(self, wasm: bytes) -> Module:
        """Compiles `wasm`; nothing is cached. For images: data without code, about 2 ms. Raises `ValueError`."""
        try:
            return Module(wasmtime.Module(self._engine, wasm))
        except wasmtime.WasmtimeError as error:
            raise ValueError(f"not a module: {error}") from error

    def compile_cached(self, wasm: bytes, *, name: str) -> Module:
        """Compiles `wasm`, or maps what an earlier process compiled.

        The cache holds machine code, so a file is used only when its own digest still fits: a damaged or
        half-written one is built again. Files are keyed by wasmtime version, processor and digest of `wasm`.
        """
        if self._cache is None:
            return self.compile(wasm)  # nobody is told: without a cache every start compiles
        key = hashlib.sha256(wasm + f"{_VERSION} {self._kind} {_processor()}".encode()).hexdigest()[:32]
        path = self._cache / f"{name}-{key}.cwasm"
        code = _read_checked(path)
        if code is not None:
            try:
                return Module(wasmtime.Module.deserialize(self._engine, code))
            except wasmtime.WasmtimeError:
                pass  # written by another build of wasmtime: compile anew
        self._on_compile(name)
        module = wasmtime.Module(self._engine, wasm)
        _write_checked(path, bytes(module.serialize()))
        return Module(module)

    def thaw(self, image: Module, engine: Module, *, memory_bytes_max: int) -> Instance:
        """An instance of `engine` over a fresh copy-on-write memory of `image`. About 100 us."""
        return Instance(self._engine, image, engine, memory_bytes_max, self.watchdog)

    def run_wasi(self, program: Module, argv: list[str], directory: Path, *, cpu_s: float, memory_bytes_max: int) -> tuple[int, bytes, bytes]:
        """Runs a WASI command that sees only `directory`, as "/". Returns exit code, stdout and stderr.

        Raises `Trap` when it runs out of CPU or memory.
        """
        linker = wasmtime.Linker(self._engine)
        linker.define_wasi()
        store = wasmtime.Store(self._engine)
        store.set_limits(memory_size=memory_bytes_max)
        store.set_epoch_deadline(1)
        with tempfile.TemporaryDirectory() as streams:
            out, err = Path(streams, "out"), Path(streams, "err")
            wasi = wasmtime.WasiConfig()
            wasi.argv = argv
            wasi.preopen_dir(str(directory), "/")
            wasi.stdout_file = str(out)
            wasi.stderr_file = str(err)
            store.set_wasi(wasi)
            code = 0
            self.watchdog.start(cpu_s)
            try:
                instance = linker.instantiate(store, program._module)
                start = instance.exports(store)["_start"]
                assert isinstance(start, wasmtime.Func)
                start(store)
            except wasmtime.ExitTrap as exit_trap:
                code = exit_trap.code
            except wasmtime.Trap as trap:
                if trap.trap_code is not None and trap.trap_code.value == _INTERRUPT:
                    raise Trap("cpu_exceeded", f"it took more than {cpu_s:g} s of CPU") from None
                code = 134
            finally:
                self.watchdog.stop()
                store.close()
            return code, out.read_bytes(), err.read_bytes()


class Module:
    """A compiled module; opaque to everybody else."""

    __slots__ = ("_module",)

    def __init__(self, module: wasmtime.Module) -> None:
        self._module = module


_STEP_ARGS = struct.Struct("<i12xi12xi12xi12xi12xq8x")


class Instance:
    """One memory under the engine's code. All pointers and lengths that come out of it are hostile: they are checked.

    Not thread-safe. After a `Trap` only `close` may be called.
    """

    __slots__ = ("_base", "_bytes_max", "_context", "_epoch", "_exports", "_instance", "_memory", "_raw", "_step", "_store", "_watchdog")

    def __init__(self, engine: wasmtime.Engine, image: Module, code: Module, memory_bytes_max: int, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._bytes_max = memory_bytes_max
        self._store = wasmtime.Store(engine)
        self._store.set_limits(memory_size=memory_bytes_max, table_elements=10_000, instances=2, tables=1, memories=1)
        self._context = self._store._context()
        if watchdog.by_epoch:
            self._set_deadline()
        data = self._instantiate(image, None)
        self._memory = self._export(data, b"memory")
        self._instance = self._instantiate(code, self._memory)
        self._step = self._export(self._instance, b"step").of.func
        self._base = self._find_base()
        self._raw = (ffi.wasmtime_val_raw_t * 6)()
        self._exports: dict[bytes, Any] = {}

    def close(self) -> None:
        self._store.close()

    def step(self, *, step: int, collect: int, io: int, io_bytes: int, length: int, now_ns: int) -> int:
        """Runs the glue's `step`: one input, all its promise jobs, one outbox. Returns the outbox's length at `io`."""
        raw = self._raw
        _STEP_ARGS.pack_into(raw, 0, step, collect, io, io_bytes, length, now_ns)
        self._call(self._step, raw, 6)
        answer: int = raw[0].i32
        if not 0 <= answer <= io_bytes:
            raise Trap("machine_error", "the guest answered with a length that cannot be")
        return answer

    def call(self, name: str, *arguments: int) -> int:
        """Calls another function of the glue (see glue.wat). Pointers and lengths are i32, times are i64."""
        key = name.encode()
        function = self._exports.get(key)
        if function is None:
            function = self._exports[key] = self._export(self._instance, key).of.func
        raw = (ffi.wasmtime_val_raw_t * max(1, len(arguments)))()
        for slot, argument in zip(raw, arguments, strict=False):
            slot.i64 = argument
        self._call(function, raw, len(raw))
        result: int = raw[0].i32
        return result

    def _call(self, function: Any, raw: ctypes.Array[ffi.wasmtime_val_raw_t], count: int) -> None:
        watchdog = self._watchdog
        if watchdog.by_epoch:
            if self._epoch != watchdog.epoch:
                self._set_deadline()
        else:
            watchdog.guard(self)
        trap = ctypes.POINTER(ffi.wasm_trap_t)()
        error = _call_unchecked(self._context, function, raw, count, trap)
        if watchdog.release():  # first of all: the memory may be gone
            if trap:
                ffi.wasm_trap_delete(trap)
            raise Trap("cpu_exceeded", "the turn took more CPU than it may")
        if error or trap:
            raise self._trap(error, trap)

    def _trap(self, error: ctypes._Pointer[ffi.wasmtime_error_t], trap: ctypes._Pointer[ffi.wasm_trap_t]) -> Trap:
        if error:
            return Trap("machine_error", str(wasmtime.WasmtimeError._from_ptr(error)))
        code = ctypes.c_uint8(255)
        ffi.wasmtime_trap_code(trap, ctypes.byref(code))
        ffi.wasm_trap_delete(trap)
        if code.value == _INTERRUPT:
            return Trap("cpu_exceeded", "the turn took more CPU than it may")
        if code.value == _STACK_OVERFLOW:
            return Trap("stack_exceeded", "the turn nested deeper than its stack")
        fault = self._fault()
        if fault == _OUT_OF_MEMORY:
            return Trap("memory_exceeded", "the session needs more memory than it may have")
        if fault == _OUTBOX_TOO_LARGE:
            return Trap("snapshot_too_large", "the snapshot, logs and emitted events of the turn are too large")
        return Trap("machine_error", f"the guest trapped (trap {code.value}, fault {fault})")

    def _fault(self) -> int:
        value = ffi.wasmtime_val_t()
        extern = self._export(self._instance, b"fault")
        ffi.wasmtime_global_get(self._context, ctypes.byref(extern.of.global_), ctypes.byref(value))
        fault: int = value.of.i32
        return fault

    # --- memory ------------------------------------------------------------------------------------------------

    @property
    def memory_bytes(self) -> int:
        size: int = ffi.wasmtime_memory_data_size(self._context, ctypes.byref(self._memory.of.memory))
        return size

    def read(self, at: int, length: int) -> bytes:
        self._check(at, length)
        return ctypes.string_at(self._base + at, length)

    def read_io(self, io: int, length: int) -> bytes:
        """`read` for the I/O area, whose bounds the image fixed and `step` checked."""
        return ctypes.string_at(self._base + io, length)

    def write(self, at: int, data: bytes) -> None:
        self._check(at, len(data))
        ctypes.memmove(self._base + at, data, len(data))

    def write_io(self, io: int, data: bytes) -> None:
        """`write` for the I/O area; the caller has checked that `data` fits."""
        ctypes.memmove(self._base + io, data, len(data))

    def view(self) -> memoryview:
        """The whole memory, without a copy. Valid until the next call into the guest."""
        return memoryview((ctypes.c_char * self.memory_bytes).from_address(self._base)).cast("B")

    def take_memory_away(self, mprotect: ctypes._NamedFuncPointer) -> None:
        """Makes the whole memory, and what it may still grow into, inaccessible: the guest's next load or store traps.

        Called by the watchdog's thread while the guest runs, so nothing of the store is looked at.
        """
        mprotect(self._base, self._bytes_max, 0)

    def grow_to(self, size: int) -> None:
        """Makes the memory `size` bytes large (a multiple of 64 KiB), for restoring a checkpoint."""
        pages = (size - self.memory_bytes) // WASM_PAGE_BYTES
        if pages <= 0:
            return
        before = ctypes.c_uint64()
        error = ffi.wasmtime_memory_grow(self._context, ctypes.byref(self._memory.of.memory), pages, ctypes.byref(before))
        if error:
            raise self._trap(error, ctypes.POINTER(ffi.wasm_trap_t)())
        self._base = self._find_base()

    def _check(self, at: int, length: int) -> None:
        if at < 0 or length < 0 or at + length > self.memory_bytes:
            raise Trap("machine_error", "a pointer of the guest leads out of its memory")

    # --- plumbing ----------------------------------------------------------------------------------------------

    def _set_deadline(self) -> None:
        """The watchdog interrupts by moving the epoch; every instance must then be told the new one."""
        ffi.wasmtime_context_set_epoch_deadline(self._context, 1)
        self._epoch = self._watchdog.epoch

    def _find_base(self) -> int:
        pointer = ffi.wasmtime_memory_data(self._context, ctypes.byref(self._memory.of.memory))
        return ctypes.cast(pointer, ctypes.c_void_p).value or 0

    def _instantiate(self, module: Module, memory: Any) -> Any:
        instance = ffi.wasmtime_instance_t()
        trap = ctypes.POINTER(ffi.wasm_trap_t)()
        imports = (ffi.wasmtime_extern_t * 1)(memory) if memory is not None else None
        error = ffi.wasmtime_instance_new(
            self._context, module._module.ptr(), imports, 0 if memory is None else 1, ctypes.byref(instance), ctypes.byref(trap)
        )
        if error:
            raise Trap("memory_exceeded", str(wasmtime.WasmtimeError._from_ptr(error)))
        assert not trap, "images and the engine have no start function"
        return instance

    def _export(self, instance: Any, name: bytes) -> Any:
        extern = ffi.wasmtime_extern_t()
        found = ffi.wasmtime_instance_export_get(self._context, ctypes.byref(instance), ctypes.create_string_buffer(name), len(name), ctypes.byref(extern))
        if not found:
            raise KeyError(name.decode())
        return extern


class Watchdog:
    """Ends a turn that used up its CPU budget.

    A thread looks at the guest thread's own CPU clock every `WATCHDOG_TICK_S`, so a machine is not blamed for a busy
    computer. There are two ways of ending a turn:

    * *by epoch*: wasmtime's counter, checked at every function entry and loop. It costs QuickJS, whose interpreter is one
      big loop, 38 % of each event, so only the forge uses it.
    * *by protection*: the memory of the running instance is made inaccessible (`mprotect`), and the next load or store is
      the same trap as one out of bounds. It costs nothing while nothing is wrong. It reaches all code that touches its
      memory, which an interpreter does in every instruction; the engine has no call into native code that would touch it
      (glue.wat has copies of its own). Code that is compiled from a stranger's own WASM must use the other way.

    A lock is held from the check to the act, and by the guest thread when it begins or ends a call: the turn that is ended
    is always the one that was checked, and the memory is never looked at after it was taken. The thread sleeps while no
    turn runs.
    """

    def __init__(self, engine: wasmtime.Engine, *, by_epoch: bool) -> None:
        self.by_epoch = by_epoch
        self.epoch = 0
        self._lock = threading.Lock()
        self._fired = False
        self._guarded: Instance | None = None
        self._engine_ptr = ctypes.cast(engine.ptr(), ctypes.c_void_p)
        self._budget_ns = 0
        self._started_ns = 0
        self._running = False
        self._parked = threading.Event()
        self._awake = False
        self._clock: int | None = None
        self._increment = ctypes.PyDLL(str(ffi.filename)).wasmtime_engine_increment_epoch
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

    def guard(self, instance: Instance) -> None:
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
                if self._running and time.clock_gettime_ns(self._clock) - self._started_ns > self._budget_ns:
                    self._end_turn()

    def _end_turn(self) -> None:
        if self.by_epoch:
            self._running = False
            self.epoch += 1
            self._increment(self._engine_ptr)
        elif self._guarded is not None:  # else no call is under way: the turn is over and only wants to say so
            self._running = False
            self._fired = True
            self._guarded.take_memory_away(self._mprotect)


_VERSION: Final = importlib.metadata.version("wasmtime")
_call_unchecked = _bindings._wasmtime_func_call_unchecked


def _processor() -> str:
    """What the machine code was made for: the architecture and the processor's feature list."""
    features = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                features = hashlib.sha256(line.encode()).hexdigest()[:16]
                break
    return f"{platform.system()} {platform.machine()} {features}"


def _read_checked(path: Path) -> bytes | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write_checked(path: Path, code: bytes) -> None:
    """Writes beside and renames, so that two processes that compile at once cannot see each other's half file."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        try:
            Path(file.name).replace(path)
        finally:
            Path(file.name).unlink(missing_ok=True)
