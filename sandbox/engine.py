"""The engine: compiled WASM, instances, traps and the watchdog.

The only file that imports wasmtime.

Decides: which WASM features exist, how much stack and memory a guest has, how a turn is
interrupted. Does not know: what an image means (`image.py`), what a session is (`instance.py`), or
JSON.

One wasmtime Engine per process, no host functions at all (wasmtime-py keeps the last exception of a
host callback in a process-wide variable, and a guest with nothing to call has nothing to attack),
and one guest thread. Calls go through `wasmtime_func_call_unchecked`: about 3 us instead of the 25
us of `Func.__call__`.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import wasmtime
from wasmtime import _bindings
from wasmtime import _ffi as ffi

from sandbox.cache import CodeCache, processor
from sandbox.traps import CPU_EXCEEDED, INTERRUPT, Trap, trap_of
from sandbox.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

WASM_PAGE_BYTES: Final = 65536
WASM_STACK_BYTES: Final = 2 * 1024 * 1024
"""Native stack for guest frames.

QuickJS's own check (`JS_STACK_BYTES`) is to fire first; this is the wall behind it.
"""

_PROPOSALS_OFF: Final = (
    "threads simd relaxed_simd memory64 multi_memory tail_call function_references gc exceptions"
)
_COMPONENT_FEATURES: Final = tuple(
    name for name in dir(ffi) if name.startswith("wasmtime_config_wasm_component_model")
)
_FUEL: Final = 2**62
"""An instance's supply: more than any can use. What a turn used is the difference."""

Kind = Literal["session", "forge", "module"]


class Engine:
    """The process's wasmtime engine and the cache of what it compiled."""

    def __init__(
        self,
        cache: Path | None,
        *,
        kind: Kind = "session",
        fuel: bool = False,
        on_compile: Callable[[str], None] | None = None,
    ) -> None:
        """`kind` is what runs here: "session" is QuickJS under images; "forge" is code that runs
        once (esbuild above all), compiled fast rather than well; "module" is what strangers
        compiled themselves. The latter two are interrupted by epoch.

        With `fuel` it is counted what turns use. `on_compile` hears the name of each module that is
        not in the cache, before it is compiled.
        """
        config = wasmtime.Config()
        config.epoch_interruption = kind != "session"
        config.consume_fuel = self.counts_fuel = fuel
        config.max_wasm_stack = WASM_STACK_BYTES
        config.cranelift_opt_level = "none" if kind == "forge" else "speed"
        config.memory_init_cow = True
        config.parallel_compilation = True
        # Off: every proposal the guest does not need. What is left is bulk memory, reference types
        # and multi-value.
        for proposal in _PROPOSALS_OFF.split():
            setattr(config, f"wasm_{proposal}", False)
        for feature in _COMPONENT_FEATURES:
            getattr(ffi, feature)(config.ptr(), False)
        if kind == "module":
            config.wasm_reference_types = False
            # A NaN's bits must not depend on the processor.
            ffi.wasmtime_config_cranelift_nan_canonicalization_set(config.ptr(), True)
        self._engine = wasmtime.Engine(config)
        self._on_compile = on_compile or (lambda _name: None)
        made_for = f"{_VERSION} {kind}{'-fuel' if fuel else ''} {processor()}"
        self._cache = None if cache is None else CodeCache(cache, made_for)
        self.watchdog = Watchdog(
            str(ffi.filename),
            ctypes.cast(self._engine.ptr(), ctypes.c_void_p),
            by_epoch=kind != "session",
        )

    def compile(self, wasm: bytes) -> Module:
        """Compiles `wasm`; nothing is cached. For images: data without code, about 2 ms.

        Raises `ValueError`.
        """
        try:
            return Module(wasmtime.Module(self._engine, wasm))
        except wasmtime.WasmtimeError as error:
            raise ValueError(f"not a module: {error}") from error

    def compile_cached(self, wasm: bytes, *, name: str) -> Module:
        """Compiles `wasm`, or takes what an earlier process compiled (`CodeCache`)."""
        if self._cache is None:
            return self.compile(wasm)  # nobody is told: without a cache every start compiles
        code = self._cache.take(wasm, name)
        if code is not None:
            try:
                return Module(wasmtime.Module.deserialize(self._engine, code))
            except wasmtime.WasmtimeError:
                pass  # written by another build of wasmtime: compile anew
        self._on_compile(name)
        module = wasmtime.Module(self._engine, wasm)
        self._cache.write(wasm, name, bytes(module.serialize()))
        return Module(module)

    def load(self, machine_code: bytes) -> Module:
        """A module that an engine of this kind compiled (`machine_code`).

        Raises `ValueError` for what another one did.
        """
        try:
            return Module(wasmtime.Module.deserialize(self._engine, machine_code))
        except wasmtime.WasmtimeError as error:
            raise ValueError(f"not this engine's: {error}") from error

    def fill_cache(self, modules: dict[str, bytes]) -> None:
        """Sees to it that these modules, by name, are in the cache: a process of its own compiles
        and writes those that are not.

        To be called before there are threads, by a worker that may not write to the cache later.
        """
        if self._cache is None:
            return
        missing = self._cache.prefetch(modules)
        if missing:
            child = os.fork()
            if not child:
                try:
                    for name, wasm in missing:
                        self.compile_cached(wasm, name=name)
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
        self._cache.stay_open()

    def thaw(self, image: Module, engine: Module, *, memory_bytes_max: int) -> Instance:
        """An instance of `engine` over a fresh copy-on-write memory of `image`. About 100 us."""
        return Instance(
            self._engine, image, engine, memory_bytes_max, self.watchdog, fuel=self.counts_fuel
        )

    def run_wasi(
        self,
        program: Module,
        argv: list[str],
        directory: Path,
        *,
        cpu_s: float,
        memory_bytes_max: int,
        output: Path | None = None,
    ) -> tuple[int, bytes, bytes]:
        """Runs a WASI command that may read `directory`, as "/", and write to `output`, as
        "/.output".

        Returns exit code, stdout and stderr. Raises `Trap` when it runs out of CPU or memory.
        """
        linker = wasmtime.Linker(self._engine)
        linker.define_wasi()
        store = wasmtime.Store(self._engine)
        store.set_limits(memory_size=memory_bytes_max)
        store.set_epoch_deadline(1)
        if self.counts_fuel:
            store.set_fuel(_FUEL)
        with tempfile.TemporaryDirectory() as streams:
            out, err = Path(streams, "out"), Path(streams, "err")
            wasi = wasmtime.WasiConfig()
            wasi.argv = argv
            wasi.preopen_dir(str(directory), "/", fs_mutable=False)
            if output is not None:
                wasi.preopen_dir(str(output), "/.output")
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
                if trap.trap_code is not None and trap.trap_code.value == INTERRUPT:
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

    def machine_code(self) -> bytes:
        return bytes(self._module.serialize())


_STEP_ARGS = struct.Struct("<i12xi12xi12xi12xi12xq8xI12x")
_FOUR_BYTES: Final = (0, 2)
"""i32 and f32, as wasmtime counts kinds of values."""


class Instance:
    """One memory under the engine's code.

    All pointers and lengths that come out of it are hostile: they are checked.

    Not thread-safe. After a `Trap` only `close` may be called.
    """

    __slots__ = (
        "_base",
        "_bytes_max",
        "_context",
        "_counts_fuel",
        "_epoch",
        "_exports",
        "_instance",
        "_memory",
        "_raw",
        "_step",
        "_store",
        "_watchdog",
    )

    def __init__(
        self,
        engine: wasmtime.Engine,
        image: Module,
        code: Module,
        memory_bytes_max: int,
        watchdog: Watchdog,
        *,
        fuel: bool,
    ) -> None:
        self._watchdog = watchdog
        self._bytes_max = memory_bytes_max
        self._store = wasmtime.Store(engine)
        self._store.set_limits(
            memory_size=memory_bytes_max, table_elements=10_000, instances=2, tables=1, memories=1
        )
        self._context = self._store._context()
        self._counts_fuel = fuel
        if fuel:
            ffi.wasmtime_context_set_fuel(self._context, _FUEL)
        if watchdog.by_epoch:
            self._set_deadline()
        data = self._instantiate(image, None)
        self._memory = self._export(data, b"memory")
        self._instance = self._instantiate(code, self._memory)
        self._step = self._export(self._instance, b"step").of.func
        self._base = self._find_base()
        self._raw = (ffi.wasmtime_val_raw_t * 7)()
        self._exports: dict[bytes, Any] = {}

    def close(self) -> None:
        self._store.close()

    def step(
        self,
        *,
        step: int,
        collect: int,
        io: int,
        io_bytes: int,
        length: int,
        now_ns: int,
        jobs: int,
    ) -> int:
        """Runs the glue's `step`: one input, all its promise jobs, one outbox.

        Returns the outbox's length at `io`.
        """
        raw = self._raw
        _STEP_ARGS.pack_into(raw, 0, step, collect, io, io_bytes, length, now_ns, jobs)
        self._call(self._step, raw, 7)  # engines of old take six, and do not look at the last
        answer: int = raw[0].i32
        if not 0 <= answer <= io_bytes:
            raise Trap("machine_error", "the guest answered with a length that cannot be")
        return answer

    def call(self, name: str, *arguments: int) -> int:
        """Calls another exported function (see guest/engine/glue.c).

        Pointers and lengths are i32, times are i64.
        """
        result: int = self._called(name, arguments).i32
        return result

    def call_i64(self, name: str, *arguments: int) -> int:
        """The same for a function whose result is an i64, read as an unsigned number."""
        result: int = self._called(name, arguments).i64
        return result & 0xFFFFFFFFFFFFFFFF

    def _called(self, name: str, arguments: tuple[int, ...]) -> Any:
        key = name.encode()
        function = self._exports.get(key)
        if function is None:
            function = self._exports[key] = self._export(self._instance, key).of.func
        raw = (ffi.wasmtime_val_raw_t * max(1, len(arguments)))()
        for slot, argument in zip(raw, arguments, strict=False):
            slot.i64 = argument
        self._call(function, raw, len(raw))
        return raw[0]

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
            raise Trap("cpu_exceeded", CPU_EXCEEDED)
        if error or trap:
            raise self._trap(error, trap)

    def _trap(
        self, error: ctypes._Pointer[ffi.wasmtime_error_t], trap: ctypes._Pointer[ffi.wasm_trap_t]
    ) -> Trap:
        if error:
            return Trap("machine_error", str(wasmtime.WasmtimeError._from_ptr(error)))
        code = ctypes.c_uint8(255)
        ffi.wasmtime_trap_code(trap, ctypes.byref(code))
        ffi.wasm_trap_delete(trap)
        return trap_of(code.value, self._fault)

    def _fault(self) -> int:
        try:
            return self.read_global(b"fault") & 0xFFFFFFFF
        except KeyError:
            return 0  # code of a stranger's own

    def read_global(self, name: bytes) -> int:
        """The bits of an exported variable. Raises `KeyError`."""
        _, value = self._variable(name)
        bits: int = value.of.i64
        return bits & (0xFFFFFFFF if value.kind in _FOUR_BYTES else 0xFFFFFFFFFFFFFFFF)

    def write_global(self, name: bytes, bits: int) -> None:
        """Sets an exported variable to these bits. Raises `KeyError`."""
        variable, value = self._variable(name)  # it keeps its type
        value.of.i64 = bits - (1 << 64) if bits >> 63 else bits
        error = ffi.wasmtime_global_set(self._context, variable, ctypes.byref(value))
        assert not error, "a mutable variable takes any bits"

    def _variable(self, name: bytes) -> tuple[Any, ffi.wasmtime_val_t]:
        variable = ctypes.byref(self._export(self._instance, name).of.global_)
        value = ffi.wasmtime_val_t()
        ffi.wasmtime_global_get(self._context, variable, ctypes.byref(value))
        return variable, value

    @property
    def fuel(self) -> int:
        """What is left of it; 0 where it is not counted."""
        if not self._counts_fuel:
            return 0
        left = ctypes.c_uint64()
        ffi.wasmtime_context_get_fuel(self._context, ctypes.byref(left))
        return left.value

    # --- memory -----------------------------------------------------------------------------------

    @property
    def memory_bytes(self) -> int:
        size: int = ffi.wasmtime_memory_data_size(
            self._context, ctypes.byref(self._memory.of.memory)
        )
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
        """Makes the whole memory, and what it may still grow into, inaccessible: the guest's next
        load or store traps.

        Called by the watchdog's thread while the guest runs, so nothing of the store is looked at.
        """
        mprotect(self._base, self._bytes_max, 0)

    def grow_to(self, size: int) -> None:
        """Makes the memory `size` bytes large, a multiple of 64 KiB, to restore a checkpoint."""
        pages = (size - self.memory_bytes) // WASM_PAGE_BYTES
        if pages <= 0:
            return
        before = ctypes.c_uint64()
        error = ffi.wasmtime_memory_grow(
            self._context, ctypes.byref(self._memory.of.memory), pages, ctypes.byref(before)
        )
        if error:
            raise self._trap(error, ctypes.POINTER(ffi.wasm_trap_t)())
        self._base = self._find_base()

    def _check(self, at: int, length: int) -> None:
        if at < 0 or length < 0 or at + length > self.memory_bytes:
            raise Trap("machine_error", "a pointer of the guest leads out of its memory")

    # --- plumbing ---------------------------------------------------------------------------------

    def _set_deadline(self) -> None:
        """The watchdog interrupts by moving the epoch, of which each instance is told anew."""
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
            self._context,
            module._module.ptr(),
            imports,
            0 if memory is None else 1,
            ctypes.byref(instance),
            ctypes.byref(trap),
        )
        if error:
            raise Trap("unavailable", str(wasmtime.WasmtimeError._from_ptr(error)))
        assert not trap, "images and the engine have no start function"
        return instance

    def _export(self, instance: Any, name: bytes) -> Any:
        extern = ffi.wasmtime_extern_t()
        found = ffi.wasmtime_instance_export_get(
            self._context,
            ctypes.byref(instance),
            ctypes.create_string_buffer(name),
            len(name),
            ctypes.byref(extern),
        )
        if not found:
            raise KeyError(name.decode())
        return extern


_VERSION: Final = importlib.metadata.version("wasmtime")
_call_unchecked = _bindings._wasmtime_func_call_unchecked
