"""Makes an image of an uploaded WASM module: checks it, compiles it, runs `_initialize` once, and
freezes the memory.

This runs in a process of its own, because an uploaded module may crash the compiler.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import msgspec

from sandbox import image as images
from sandbox import validate
from sandbox.compression import pack, unpack
from sandbox.forge import Definition, digest_of
from sandbox.image import Handles, ModuleHandles
from sandbox.module import DEPTH_MAX, ModuleState, call_json
from sandbox.protocol import formats
from sandbox.protocol.ids import MODULE_ENGINE_PREFIX
from sandbox.protocol.messages import BuildFailed, BuildMessage, Compiled, ModuleBuilt
from sandbox.protocol.nesting import is_deeper_than
from sandbox.traps import Trap
from sandbox.wasm_reader import BadModule

if TYPE_CHECKING:
    from sandbox.engine import Engine, Instance
    from sandbox.protocol.messages import BuildModule, Compile

DEFINITION_BYTES_MAX: Final = 256 * 1024
CODE_BYTES_MAX: Final = 64 * 1024 * 1024
_FAULTS: Final = {"cpu_exceeded": "build_cpu_exceeded", "memory_exceeded": "build_memory_exceeded"}


def build_module(engine: Engine, request: BuildModule) -> ModuleBuilt | BuildFailed:
    """`BuildModule`, answered."""
    started = time.perf_counter_ns()
    try:
        module = validate.read_module(
            request.module,
            pages_max=request.memory_bytes_max // validate.PAGE_BYTES,
            bytes_max=request.module_bytes_max,
        )
        code = validate.split(module)
    except BadModule as error:
        return _refused(request, "invalid_module", f"the module is not let in: {error}")
    checked = time.perf_counter_ns()
    try:
        compiled = engine.compile(code)
    except ValueError as error:
        return _refused(request, "invalid_module", f"the module does not compile: {error}"[:2000])
    ready = time.perf_counter_ns()
    digest = MODULE_ENGINE_PREFIX + digest_of(code)
    variables = ModuleHandles(module.initial, request.limits)
    handles = Handles(
        engine=digest,
        own=request.own,
        rules=request.rules,
        module=variables,
        format=formats.IMAGE,
        inputs=formats.INPUT,
    )
    before = images.build_image(bytes(module.memory()), handles, pages_max=module.pages_max)
    first = engine.compile(before)
    engine.watchdog.start(request.cpu_ms / 1000)
    try:
        instance = engine.thaw(first, compiled, memory_bytes_max=request.memory_bytes_max)
        image, definition = _load(instance, module, handles, variables, request.name)
    except Trap as trap:
        code_ = _FAULTS.get(trap.code, "machine_throws")
        return _refused(request, code_, f"while the module was loaded: {trap.message}")
    except ValueError as error:
        what = f"what `describe` answers is no definition: {error}"[:2000]
        return _refused(request, "invalid_definition", what)
    finally:
        engine.watchdog.stop()
    return ModuleBuilt(
        request.ticket,
        pack(image),
        pack(code),
        pack(compiled.machine_code()),
        digest,
        msgspec.json.encode(definition),
        (checked - started) // 1000,
        (ready - checked) // 1000,
    )


def _load(
    instance: Instance,
    module: validate.Module,
    handles: Handles,
    variables: ModuleHandles,
    name: str,
) -> tuple[bytes, Definition]:
    """Runs the module's beginning once: its image from then on, and what it says of itself.

    Raises `Trap`, and `ValueError` for a definition that is none.
    """
    state = ModuleState(variables, ())
    state.thaw(instance)
    if "_initialize" in module.exports:
        instance.call("_initialize")
    described = call_json(instance, "describe", None) if "describe" in module.exports else None
    definition = _definition(described, name)
    held = list(state.freeze(instance)[: len(module.initial)])
    frozen = msgspec.structs.replace(handles, module=ModuleHandles(held, variables.limits))
    image = images.build_image(bytes(instance.view()), frozen, pages_max=module.pages_max)
    instance.close()
    return image, definition


def _refused(request: BuildModule | Compile, code: str, why: str) -> BuildFailed:
    return BuildFailed(request.ticket, code, [BuildMessage(why)])


def compile_module(engine: Engine, request: Compile) -> Compiled | BuildFailed:
    """`Compile`, answered."""
    try:
        code = unpack(request.code, bytes_max=CODE_BYTES_MAX)
        return Compiled(request.ticket, pack(engine.compile(code).machine_code()))
    except ValueError as error:
        return _refused(request, "image_damaged", f"the module's code is damaged: {error}"[:2000])


def _definition(text: bytes | None, name: str) -> Definition:
    """What pages and types know of the machine. Raises `ValueError`."""
    if text is None:
        return Definition(
            id=name, events=[], root={"id": name, "key": name, "type": "atomic", "transitions": []}
        )
    if len(text) > DEFINITION_BYTES_MAX or is_deeper_than(text, DEPTH_MAX):
        raise ValueError(f"it has more than {DEFINITION_BYTES_MAX} bytes, or nests too deeply")
    try:
        definition = msgspec.json.decode(text, type=Definition)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return msgspec.structs.replace(
        definition,
        on_error=None,
        access=False,
        view=False,
        root=_node(definition.root, definition.id, 1),
    )


def _node(given: Any, key: str, depth: int) -> dict[str, Any]:
    """A state as `Definition.root` has them, with what pages rely on put in where it is missing."""
    if not isinstance(given, dict) or depth > 64:
        raise ValueError("a state is an object, in at most 64 levels")
    states, transitions = given.get("states", {}), given.get("transitions", [])
    if (
        not isinstance(states, dict)
        or not isinstance(transitions, list)
        or not all(isinstance(each, dict) for each in transitions)
    ):
        raise ValueError("`states` is an object, `transitions` a list of objects")
    children = {name: _node(child, name, depth + 1) for name, child in states.items()}
    node = {
        "id": key,
        "key": key,
        "type": "compound" if children else "atomic",
        **given,
        "transitions": transitions,
    }
    return node | ({"states": children} if children else {})
