"""Which WASM modules of strangers are let in: read with an allow-list, byte by byte, before
anything compiles them.

Decides: sections, types, imports, exports, sizes and instructions of a module of the guest ABI
(docs/guest-abi.md); and how one is split into code without data and the memory that it begins with.
What is accepted here may still be wrong (a stack that does not add up): the compiler says so, in a
process that may die of it. Nothing here recurses or allocates by a number that the module names.

Source: the WebAssembly core specification 2.0, chapter 5 (binary format). What is allowed is
version 1 with sign extension, saturating conversions, multi-value and the two bulk instructions for
memory. There is nothing by which a table or a segment could change while the module runs, so memory
and variables are all of its state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from sandbox.instructions import check_instructions, read_constant
from sandbox.leb128 import encode_unsigned as leb128
from sandbox.module import global_name
from sandbox.wasm_reader import F32, F64, I32, I64, BadModule, Reader

BODY_BYTES_MAX: Final = 128 * 1024
"""Of one function: what compiling takes may grow faster than the function."""
PARAMETERS_MAX: Final = 64
NAME_SHOWN: Final = 60
LOCALS_MAX: Final = 2_000
TABLE_MAX: Final = 10_000
PAGE_BYTES: Final = 65_536

_MAGIC: Final = b"\0asm"
_NUMERIC: Final = (I32, I64, F32, F64)
_TYPE_NAMES: Final = {I32: "i32", I64: "i64", F32: "f32", F64: "f64"}
(
    _CUSTOM,
    _TYPE,
    _IMPORT,
    _FUNCTION,
    _TABLE,
    _MEMORY,
    _GLOBAL,
    _EXPORT,
    _START,
    _ELEMENT,
    _CODE,
    _DATA,
    _DATA_COUNT,
) = range(13)
_ORDER: Final = (*range(_TYPE, _ELEMENT + 1), _DATA_COUNT, _CODE, _DATA)
_CALLS: Final = {
    "alloc": (bytes([I32]), bytes([I32])),
    "start": (bytes([I32, I32, I64]), bytes([I64])),
    "step": (bytes([I32, I32, I64]), bytes([I64])),
    "_initialize": (b"", b""),
    "describe": (b"", bytes([I64])),
}
"""The functions that the host calls: parameters and results. The last two may be missing."""
_OPTIONAL: Final = ("_initialize", "describe")


@dataclass(slots=True)
class Module:
    """What was read of a module. Sections that are kept as they are stand in `raw`."""

    raw: dict[int, bytes]
    types: list[tuple[bytes, bytes]] = field(default_factory=list)
    functions: list[int] = field(default_factory=list)
    """Their types"""
    table_size: int = 0
    pages: int = 0
    pages_max: int = PAGE_BYTES
    mutable: list[int] = field(default_factory=list)
    """The variables, by index, that may change."""
    initial: list[int] = field(default_factory=list)
    """The bits that those begin with."""
    exports: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Kind and index"""
    segments: list[tuple[int, bytes]] = field(default_factory=list)
    """Data, by address"""

    def memory(self) -> bytearray:
        """What the memory holds before anything has run."""
        memory = bytearray(self.pages * PAGE_BYTES)
        for at, data in self.segments:
            memory[at : at + len(data)] = data
        return memory


def read_module(wasm: bytes, *, pages_max: int, bytes_max: int) -> Module:
    """Reads a module of the guest ABI whose memory may have `pages_max` pages of 64 KiB.

    Raises `BadModule`.
    """
    if len(wasm) > bytes_max:
        raise BadModule(f"it has more than {bytes_max} bytes")
    if not wasm.startswith(_MAGIC):
        raise BadModule(
            "it is no WebAssembly module; compiled files of a runtime, programs and text are not "
            "taken"
        )
    if wasm[4:8] != b"\1\0\0\0":
        raise BadModule(
            "it is a component, or of another version of WebAssembly: a core module of version 1 "
            "is wanted"
        )
    module = Module(_sections(wasm))
    for number, read in _READERS:
        if number in module.raw:
            reader = Reader(module.raw[number])
            read(module, reader, pages_max)
            reader.done()
    _check_exports(module)
    return module


def _sections(wasm: bytes) -> dict[int, bytes]:
    reader = Reader(wasm, 8)
    found: dict[int, bytes] = {}
    last = -1
    while reader.at < reader.end:
        number = reader.byte()
        content = reader.take(reader.number())
        if number == _CUSTOM:
            continue  # names and the like, which are left out
        if number not in _ORDER:
            raise BadModule(f"it has a section {number}, which is not allowed")
        if _ORDER.index(number) <= last:
            raise BadModule("its sections are not in order")
        last = _ORDER.index(number)
        found[number] = content
    if _START in found:
        raise BadModule("it has a start function; what is to run once is called _initialize")
    return found


def _read_types(module: Module, reader: Reader, _pages_max: int) -> None:
    for _ in range(reader.count("types")):
        if reader.byte() != 0x60:
            raise BadModule("a type is no function's")
        module.types.append((_value_types(reader), _value_types(reader)))


def _value_types(reader: Reader) -> bytes:
    count = reader.number()
    if count > PARAMETERS_MAX:
        raise BadModule(f"a function has more than {PARAMETERS_MAX} parameters or results")
    types = reader.take(count)
    if any(each not in _NUMERIC for each in types):
        raise BadModule("only i32, i64, f32 and f64 are allowed")
    return types


def _read_imports(_module: Module, reader: Reader, _pages_max: int) -> None:
    if reader.number():
        module, name = (
            reader.take(min(reader.number(), NAME_SHOWN)).decode("utf-8", "replace")
            for _ in range(2)
        )
        raise BadModule(f"it imports {module}.{name}: there is nothing to import")


def _read_functions(module: Module, reader: Reader, _pages_max: int) -> None:
    module.functions = [reader.number() for _ in range(reader.count("functions"))]
    if any(index >= len(module.types) for index in module.functions):
        raise BadModule("a function has a type that is not there")


def _read_table(module: Module, reader: Reader, _pages_max: int) -> None:
    if reader.number() > 1:
        raise BadModule("it has more than one table")
    if reader.at < reader.end:
        if reader.byte() != 0x70:
            raise BadModule("a table holds functions")
        module.table_size, most = _bounds(reader)
        if module.table_size > TABLE_MAX or most < module.table_size:
            raise BadModule(f"its table has more than {TABLE_MAX} places")


def _read_memory(module: Module, reader: Reader, pages_max: int) -> None:
    if reader.number() != 1:
        raise BadModule("it has more or less than one memory")
    module.pages, most = _bounds(reader)
    module.pages_max = min(most, pages_max)
    if module.pages > module.pages_max:
        raise BadModule(
            f"its memory has more than {pages_max} pages, or begins with more than it may have"
        )


def _bounds(reader: Reader) -> tuple[int, int]:
    """Lower and upper bound of a table's or memory's size."""
    flags = reader.byte()
    if flags not in (0, 1):
        raise BadModule("shared and 64-bit memories and tables are not allowed")
    least = reader.number()
    return least, reader.number() if flags else 2**32


def _read_globals(module: Module, reader: Reader, _pages_max: int) -> None:
    for index in range(reader.count("globals")):
        kind, mutable = reader.byte(), reader.byte()
        if kind not in _NUMERIC or mutable not in (0, 1):
            raise BadModule("a variable is no number")
        bits = read_constant(reader, kind)
        if mutable:
            module.mutable.append(index)
            module.initial.append(bits)


def _read_exports(module: Module, reader: Reader, _pages_max: int) -> None:
    for _ in range(reader.count("exports")):
        try:
            name = reader.take(reader.number()).decode()
        except UnicodeDecodeError:
            raise BadModule("the name of an export is not UTF-8") from None
        if name in module.exports:
            raise BadModule("two exports have one name")
        module.exports[name] = (reader.byte(), reader.number())


def _read_elements(module: Module, reader: Reader, _pages_max: int) -> None:
    for _ in range(reader.count("elements")):
        if reader.number() != 0:
            raise BadModule("passive and declared elements are not allowed")
        at = read_constant(reader, I32)
        count = reader.number()
        if at + count > module.table_size:
            raise BadModule("elements lie outside the table")
        if any(reader.number() >= len(module.functions) for _ in range(count)):
            raise BadModule("an element is a function that is not there")


def _read_data_count(_module: Module, reader: Reader, _pages_max: int) -> None:
    reader.number()


def _read_data(module: Module, reader: Reader, _pages_max: int) -> None:
    for _ in range(reader.count("segments")):
        if reader.number() != 0:
            raise BadModule("passive data is not allowed")
        at = read_constant(reader, I32)
        data = reader.take(reader.number())
        if at + len(data) > module.pages * PAGE_BYTES:
            raise BadModule("data lies outside the memory")
        module.segments.append((at, data))


def _read_code(module: Module, reader: Reader, _pages_max: int) -> None:
    if reader.number() != len(module.functions):
        raise BadModule("there are more or fewer bodies than functions")
    for _ in module.functions:
        size = reader.number()
        if size > BODY_BYTES_MAX:
            raise BadModule(f"a function has more than {BODY_BYTES_MAX} bytes")
        body = Reader(reader.data, reader.at, reader.at + size)
        reader.take(size)
        if sum(_locals(body) for _ in range(body.number())) > LOCALS_MAX:
            raise BadModule(f"a function has more than {LOCALS_MAX} variables")
        check_instructions(body)


def _locals(body: Reader) -> int:
    count = body.number()
    if body.byte() not in _NUMERIC:
        raise BadModule("a variable is no number")
    return count


_READERS: Final = (
    (_TYPE, _read_types),
    (_IMPORT, _read_imports),
    (_FUNCTION, _read_functions),
    (_TABLE, _read_table),
    (_MEMORY, _read_memory),
    (_GLOBAL, _read_globals),
    (_EXPORT, _read_exports),
    (_ELEMENT, _read_elements),
    (_DATA_COUNT, _read_data_count),
    (_CODE, _read_code),
    (_DATA, _read_data),
)


def _check_exports(module: Module) -> None:
    if _MEMORY not in module.raw or _CODE not in module.raw:
        raise BadModule("it has no memory or no code")
    if module.exports.get("memory") != (2, 0):
        raise BadModule('it does not export its memory as "memory"')
    for name, expected in _CALLS.items():
        kind, index = module.exports.get(name, (None, 0))
        if kind is None and name in _OPTIONAL:
            continue
        if (
            kind != 0
            or index >= len(module.functions)
            or module.types[module.functions[index]] != expected
        ):
            there = (
                "it exports none"
                if kind is None
                else "it exports something else"
                if kind != 0 or index >= len(module.functions)
                else f"it exports {_spelled(module.types[module.functions[index]])}"
            )
            raise BadModule(
                f"the guest ABI wants an exported function {name}{_spelled(expected)}; {there}"
            )


def _spelled(signature: tuple[bytes, bytes]) -> str:
    parameters, results = (", ".join(_TYPE_NAMES[each] for each in types) for types in signature)
    return f"({parameters}) -> ({results})"


def split(module: Module) -> bytes:
    """The module's code alone: its memory is imported, its data gone, and every variable that may
    change is exported.
    """
    exports = [(name.encode(), *module.exports[name]) for name in _CALLS if name in module.exports]
    exports += [(global_name(number), 3, index) for number, index in enumerate(module.mutable)]
    parts = {
        **{
            number: module.raw[number]
            for number in (_TYPE, _FUNCTION, _TABLE, _GLOBAL, _ELEMENT, _CODE)
            if number in module.raw
        },
        _IMPORT: b"\1\5image\6memory\2\1" + leb128(module.pages) + leb128(PAGE_BYTES),
        _EXPORT: leb128(len(exports))
        + b"".join(
            leb128(len(name)) + name + bytes([kind]) + leb128(index)
            for name, kind, index in exports
        ),
    }
    return (
        _MAGIC
        + b"\1\0\0\0"
        + b"".join(
            bytes([number]) + leb128(len(parts[number])) + parts[number]
            for number in _ORDER
            if number in parts
        )
    )
