"""Makes images: the base image once, when the guest is built, and a machine's image at each
deployment.

A deployment thaws the base image, evaluates the bundle under a CPU and memory limit, lets the
prelude find the machine, takes away the parser and freezes the memory. Uploaded scripts are
evaluated nowhere else.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sandbox import image as images
from sandbox.image import Handles
from sandbox.leb128 import decode_unsigned
from sandbox.places import Missing
from sandbox.protocol import formats
from sandbox.protocol.limits import GuestLimits, OwnLimits
from sandbox.protocol.messages import BuildMessage
from sandbox.traps import Trap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandbox.engine import Engine, Instance, Module
    from sandbox.protocol.access import Rule
    from sandbox.sourcemap import SourceMap

JS_STACK_BYTES: Final = 512 * 1024
"""QuickJS's stack (of 1 MiB that its module reserves): deep recursion is a RangeError that a
machine can catch.
"""
GC_SLACK_BYTES: Final = 512 * 1024
"""QuickJS first looks for cycles when a session uses this much more than its image; counting
references frees the rest.
"""
IO_BYTES: Final = 1024 * 1024
"""The area through which inputs go in and outboxes come out.

Only the part that is used is ever touched.
"""
EPOCH_NS: Final = 1_700_000_000_000_000_000
"""The time that code sees while an image is built: a constant, so that the same files give the same
digest.
"""
_BUNDLE_NAME: Final = "machine.js"
GUEST_TWINS: Final = {
    "timers": "timers",
    "actors": "actors",
    "log_lines": "logLines",
    "log_line_bytes": "logChars",
    "snapshot_bytes": "snapshotChars",
    "emitted_bytes": "emittedChars",
    "effects": "effects",
    "effect_bytes": "effectChars",
    "egress": "egress",
}
"""Limits that the prelude enforces (guest/prelude/turn.ts), by their names there.

A test compares the numbers.
"""


USUAL_LIMITS: Final = GuestLimits()
NO_LIMITS: Final = OwnLimits()


class BuildError(Exception):
    """The upload does not become a machine.

    `file`, `line` (from 1) and `column` (from 1) where they are known.
    """

    def __init__(self, code: str, errors: list[BuildMessage]) -> None:
        super().__init__(errors[0].message if errors else code)
        self.code = code
        self.errors = errors


class Thrown(msgspec.Struct, frozen=True):
    """What the prelude says of something that went wrong. Its text comes out of a stranger's
    realm.
    """

    code: str
    message: str
    at: str | None = None


class Definition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The machine as pages and types need it; `root` is a tree of states
    (guest/prelude/machine.ts).
    """

    id: str
    events: list[str]
    root: dict[str, Any]
    context: Any = None
    """What every session begins with, where that depends on nothing."""
    description: str | None = None
    on_error: str | None = None
    """"stop" when the version was deployed so."""
    access: bool = False
    """Whether the file exports `access`, which says who may send what."""
    view: bool = False
    """Whether the file exports `view`, which says what each member sees of a session."""


class Report(msgspec.Struct, frozen=True):
    """The prelude's answer to a bundle."""

    ok: bool
    fault: Thrown | None = None
    definition: Definition | None = None
    warnings: list[str] = []
    missing: list[Missing] = []
    rules: list[str] = []
    """`access`, `view` and `viewEmitted`, those that the file exports."""


@dataclass(frozen=True, slots=True)
class Guest:
    """The parts that `make guest` built, compiled for this process."""

    engine: Module
    engine_wasm: bytes
    engine_digest: str
    base: Module
    base_digest: str
    handles: Handles


def load_guest(engine: Engine, engine_wasm: bytes, base_wasm: bytes) -> Guest:
    handles = images.read_handles(base_wasm)
    return Guest(
        engine=engine.compile_cached(engine_wasm, name="engine"),
        engine_wasm=engine_wasm,
        engine_digest=digest_of(engine_wasm),
        base=engine.compile(base_wasm),
        base_digest=digest_of(base_wasm),
        handles=handles,
    )


def digest_of(data: bytes) -> str:
    """The name of a content: 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


def forge_base(
    engine: Engine,
    engine_wasm: bytes,
    genesis_wasm: bytes,
    scripts: list[str],
    *,
    memory_bytes_max: int,
) -> bytes:
    """The base image: QuickJS initialised, `scripts` evaluated, of which the first is the prelude.

    Trusted input only.
    """
    code = engine.compile_cached(engine_wasm, name="engine")

    def boot() -> Instance:
        instance = engine.thaw(
            engine.compile(genesis_wasm), code, memory_bytes_max=memory_bytes_max
        )
        if instance.call("boot", EPOCH_NS, JS_STACK_BYTES):
            raise AssertionError("QuickJS did not initialise")
        return instance

    # Parsing leaves a heap full of holes, so scripts are parsed in a memory that is thrown away:
    # the image is half the size, and what a session touches lies closer together.
    compiled = [_compile(boot(), script) for script in scripts]
    instance = boot()
    exports, *_ = [_evaluate_bytecode(instance, bytecode) for bytecode in compiled]

    def export(name: str) -> int:
        return instance.call("property", exports, _text(instance, name))

    instance.call("track_rejections", export("rejected"))
    # The I/O area begins at a page of its own, so that checkpoints can leave it out.
    io = instance.call("alloc", IO_BYTES + images.PAGE_BYTES)
    io += -io % images.PAGE_BYTES
    handles = Handles(
        load=export("load"),
        explain=export("explain"),
        step=export("step"),
        collect=export("collect"),
        judge=export("judge"),
        judged=export("judged"),
        io=io,
        io_bytes=IO_BYTES,
        stack_bytes=_stack_bytes(engine_wasm),
        eval_slot=_find_eval_slot(instance),
        engine=digest_of(engine_wasm),
        format=formats.IMAGE,
        inputs=formats.INPUT,
    )
    return _freeze(instance, handles, memory_bytes_max=memory_bytes_max)


def forge_image(
    engine: Engine,
    guest: Guest,
    bundle: str,
    *,
    source_map: SourceMap | None,
    cpu_s: float,
    memory_bytes_max: int,
    on_error: str = "reject",
    transitions: str = "compiled",
    strict: bool = False,
    limits: GuestLimits = USUAL_LIMITS,
    own: OwnLimits = NO_LIMITS,
    rules: Sequence[Rule] = (),
) -> tuple[bytes, Definition, Report]:
    """The image of the machine in `bundle` (a CommonJS script), the machine's definition, and
    the prelude's report, with its warnings.

    `source_map` leads from the bundle to the user's own files, for errors now and later. `on_error`
    says what an action that throws does: "reject" undoes the turn, "stop" ends the session in an
    error as XState does. `transitions` is "compiled" or "library" (guest/prelude/transitions); with
    `strict`, which is for tests, it is an error when the former cannot be had. `limits`, `own` and
    `rules`, who may send what, are frozen into the image. Raises `BuildError`.
    """
    instance = _begin(engine, guest, memory_bytes_max)
    handles = guest.handles
    engine.watchdog.start(cpu_s)
    try:
        options = _options(on_error, transitions, limits, strict=strict)
        report = _load(instance, handles, bundle, source_map, options)
    except Trap as trap:
        code = {
            "cpu_exceeded": "build_cpu_exceeded",
            "memory_exceeded": "build_memory_exceeded",
            "machine_error": "machine_throws",
        }.get(trap.code, trap.code)
        raise _refused(code, f"while the file was loaded: {trap.message}") from None
    except (msgspec.MsgspecError, RecursionError):
        raise _refused(
            "machine_throws",
            "the machine's definition cannot be read; does it nest too deeply, or does the file"
            " change built-in objects?",
        ) from None
    finally:
        engine.watchdog.stop()
    frozen = _freeze(
        instance,
        msgspec.structs.replace(
            handles,
            source_map=source_map,
            jobs=limits.jobs,
            own=own,
            asks_access="access" in report.rules,
            rules=list(rules),
        ),
        memory_bytes_max=memory_bytes_max,
    )
    instance.close()
    return frozen, _definition(report, on_error), report


def _definition(report: Report, on_error: str) -> Definition:
    """Raises `BuildError`."""
    if report.definition is None:
        raise _refused(
            "machine_throws", "the file changed the built-in objects that describe a machine"
        )
    return msgspec.structs.replace(
        report.definition,
        on_error="stop" if on_error == "stop" else None,
        access="access" in report.rules,
        view="view" in report.rules,
    )


def _begin(engine: Engine, guest: Guest, memory_bytes_max: int) -> Instance:
    """The base image, thawed. Raises `BuildError`."""
    try:
        return engine.thaw(guest.base, guest.engine, memory_bytes_max=memory_bytes_max)
    except Trap:
        raise _refused(
            "build_memory_exceeded",
            f"QuickJS and XState alone take more than {memory_bytes_max} bytes (memory_bytes):"
            " 4 MiB is a beginning",
        ) from None


def _load(
    instance: Instance,
    handles: Handles,
    bundle: str,
    source_map: SourceMap | None,
    options: dict[str, Any],
) -> Report:
    """Runs the bundle once, and takes its machine. `options` are those of `Bundle` in
    guest/prelude/machine.ts.

    Raises `BuildError`, `Trap`.
    """
    instance.call("set_clock", EPOCH_NS)
    # The wrapper stands on the bundle's first line, so that line numbers stay.
    wrapped = f"(function(module,exports,require){{{bundle}\n}})"
    if options:
        wrapped = f"Object.assign({wrapped},{msgspec.json.encode(options).decode()})"
    function = _evaluate(instance, wrapped, _BUNDLE_NAME)
    if function < 0:
        thrown = _call_text(instance, handles.explain, -function, handles)
        raise _build_error(msgspec.json.decode(thrown, type=Thrown), source_map)
    # The parser is gone before the bundle runs, not only afterwards: a library that looks whether
    # it may make functions of text must find what it will find later.
    instance.write(handles.eval_slot, bytes(4))
    loaded = _call_text(instance, handles.load, function, handles)
    report = msgspec.json.decode(loaded, type=Report)
    if report.fault is not None:
        raise _build_error(report.fault, source_map)
    instance.call("settle_heap", GC_SLACK_BYTES)
    return report


def _refused(code: str, why: str) -> BuildError:
    return BuildError(code, [BuildMessage(why)])


def _options(
    on_error: str, transitions: str, limits: GuestLimits, *, strict: bool
) -> dict[str, Any]:
    """What the prelude is told (`Bundle` in guest/prelude/machine.ts): what differs from usual."""
    options: dict[str, Any] = {}
    if on_error == "stop":
        options["onError"] = on_error
    if transitions == "library":
        options["transitions"] = transitions
    if strict:
        options["strict"] = True
    if chosen := _for_prelude(limits):
        options["limits"] = chosen
    return options


def _for_prelude(limits: GuestLimits) -> dict[str, int]:
    """The limits that differ from what the prelude has, by its names.

    What it counts in characters the worker counts in bytes.
    """
    usual = USUAL_LIMITS
    return {
        there: value
        for here, there in GUEST_TWINS.items()
        if (value := getattr(limits, here)) != getattr(usual, here)
    }


def _freeze(instance: Instance, handles: Handles, *, memory_bytes_max: int) -> bytes:
    memory = bytearray(instance.view())
    for area in handles.scratch:
        memory[area.start : area.stop] = bytes(len(area))
    return images.build_image(bytes(memory), handles, pages_max=memory_bytes_max // 65536)


def _stack_bytes(engine_wasm: bytes) -> int:
    """Where the engine's stack begins, growing down to 0: the initial value of its first global,
    `__stack_pointer`.

    Read from the module (WebAssembly binary format, section 6): i32, mutable, i32.const, value.
    """
    start, size = images.find_section(engine_wasm, 6)
    section = engine_wasm[start : start + size]
    assert section[1:4] == b"\x7f\x01\x41", "the engine's first global is no stack pointer"
    value, _ = decode_unsigned(section, 4)
    assert value == 1024 * 1024, "the stack does not lie where it was"
    return value


def _evaluate_bytecode(instance: Instance, bytecode: bytes) -> int:
    at = instance.call("alloc", len(bytecode))
    instance.write(at, bytecode)
    value = instance.call("evaluate_bytecode", at, len(bytecode))
    assert value > 0, "the prelude threw"
    instance.call("free", at)
    return value


def _compile(instance: Instance, source: str) -> bytes:
    code = source.encode() + b"\0"
    at, length_out = instance.call("alloc", len(code)), instance.call("alloc", 4)
    instance.write(at, code)
    bytecode = instance.call(
        "compile", at, len(code) - 1, _text(instance, "prelude.js"), length_out
    )
    assert bytecode, "the prelude does not parse"
    return instance.read(bytecode, int.from_bytes(instance.read(length_out, 4), "little"))


def _evaluate(instance: Instance, source: str, name: str) -> int:
    """The handle of the script's value; the negative handle of what it threw."""
    # QuickJS wants a terminating zero behind the code, which the length does not count.
    code = source.encode("utf-8", "surrogatepass")
    at = instance.call("alloc", len(code) + 1)
    instance.write(at, code + b"\0")
    try:
        return instance.call("evaluate", at, len(code), _text(instance, name))
    finally:
        instance.call("free", at)


def _text(instance: Instance, text: str) -> int:
    """A C string in the guest's memory.

    Never freed: there are five, and images are built from them.
    """
    data = text.encode() + b"\0"
    at = instance.call("alloc", len(data))
    instance.write(at, data)
    return at


def _call_text(instance: Instance, function: int, argument: int, handles: Handles) -> bytes:
    length = instance.call("call_with_value", function, argument, handles.io, handles.io_bytes)
    return instance.read(handles.io, length)


def _find_eval_slot(instance: Instance) -> int:
    """Where the context keeps its pointer to the parser (`eval_internal`).

    `eval`, `Function` and its kin all go through that pointer; with zero there they answer "eval is
    not supported". A context without a parser is given one, and the word that changed shows the
    offset.
    """
    span = 4096
    raw = instance.call("raw_context")
    before = instance.read(raw, span)
    instance.call("add_parser", raw)
    after = instance.read(raw, span)
    instance.call("free_context", raw)
    changed = [at for at in range(0, span, 4) if before[at : at + 4] != after[at : at + 4]]
    assert len(changed) == 1, f"adding the parser changed {len(changed)} words"
    slot = instance.call("context") + changed[0]
    assert instance.read(slot, 4) == after[changed[0] : changed[0] + 4], (
        "the slot does not hold the parser"
    )
    return slot


def _build_error(thrown: Thrown, source_map: SourceMap | None) -> BuildError:
    place = source_map.find(thrown.at) if thrown.at and source_map else None
    code = (
        thrown.code
        if thrown.code in ("syntax_error", "machine_throws", "no_machine", "several_machines")
        else "machine_throws"
    )
    return BuildError(
        code, [BuildMessage(thrown.message, *place) if place else BuildMessage(thrown.message)]
    )
