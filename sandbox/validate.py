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

from sandbox.leb128 import encode_unsigned as leb128
from sandbox.module import global_name

BODY_BYTES_MAX: Final = 128 * 1024
"""Of one function: what compiling takes may grow faster than the function."""
COUNTS_MAX: Final = {
    "types": 1_000,
    "functions": 10_000,
    "globals": 1_000,
    "exports": 1_000,
    "elements": 1_000,
    "segments": 10_000,
}
PARAMETERS_MAX: Final = 64
NAME_SHOWN: Final = 60
LOCALS_MAX: Final = 2_000
NESTING_MAX: Final = 500
TABLE_MAX: Final = 10_000
PAGE_BYTES: Final = 65_536

_MAGIC: Final = b"\0asm"
_I32, _I64, _F32, _F64 = 0x7F, 0x7E, 0x7D, 0x7C
_NUMERIC: Final = (_I32, _I64, _F32, _F64)
_TYPE_NAMES: Final = {_I32: "i32", _I64: "i64", _F32: "f32", _F64: "f64"}
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
_ORDER: Final = (
    _TYPE,
    _IMPORT,
    _FUNCTION,
    _TABLE,
    _MEMORY,
    _GLOBAL,
    _EXPORT,
    _START,
    _ELEMENT,
    _DATA_COUNT,
    _CODE,
    _DATA,
)
_CALLS: Final = {
    "alloc": (bytes([_I32]), bytes([_I32])),
    "start": (bytes([_I32, _I32, _I64]), bytes([_I64])),
    "step": (bytes([_I32, _I32, _I64]), bytes([_I64])),
    "_initialize": (b"", b""),
    "describe": (b"", bytes([_I64])),
}
"""The functions that the host calls: parameters and results. The last two may be missing."""
_OPTIONAL: Final = ("_initialize", "describe")

_NOTHING: Final = frozenset((0x00, 0x01, 0x05, 0x0F, 0x1A, 0x1B, *range(0x45, 0xC5)))
"""Instructions without operands: unreachable, nop, else, return, drop, select, and all arithmetic.
"""
_BLOCKS: Final = (0x02, 0x03, 0x04)
_END: Final = 0x0B
_INDEX: Final = frozenset((0x0C, 0x0D, 0x10, *range(0x20, 0x25)))
"""One number: br, br_if, call, local.* and global.*."""
_BR_TABLE, _CALL_INDIRECT, _MORE = 0x0E, 0x11, 0xFC
_MEMORY_ACCESS: Final = range(0x28, 0x3F)
_MEMORY_SIZE: Final = (0x3F, 0x40)
_CONSTANT_BYTES: Final = {0x43: 4, 0x44: 8}
_INTEGER_BITS: Final = {0x41: 32, 0x42: 64}
_SATURATING: Final = range(8)
_MEMORY_COPY, _MEMORY_FILL = 10, 11


class BadModule(Exception):
    """The module is not let in; the message says what of it."""


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


class _Reader:
    """Bytes, from front to back. Every length is checked before it is believed."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, at: int = 0, end: int | None = None) -> None:
        self.data, self.at, self.end = data, at, len(data) if end is None else end

    def byte(self) -> int:
        if self.at >= self.end:
            raise BadModule("it ends in the middle")
        self.at += 1
        return self.data[self.at - 1]

    def take(self, count: int) -> bytes:
        if count > self.end - self.at:
            raise BadModule("it ends in the middle")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, bits: int = 32) -> int:
        """An unsigned LEB128 of at most so many bits."""
        value, _ = self._leb128(bits)
        if value >> bits:
            raise BadModule("a number is too large")
        return value

    def signed(self, bits: int) -> int:
        """A signed LEB128, as the bits of its two's complement."""
        value, size = self._leb128(bits)
        if value >> (size - 1):  # the highest of its bits is the sign
            value -= 1 << size
        return value & ((1 << bits) - 1)

    def _leb128(self, bits: int) -> tuple[int, int]:
        """The bits of a LEB128, and how many there are."""
        value = size = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << size
            size += 7
            if not byte & 0x80:
                return value, size
            if size >= bits:
                raise BadModule("a number is too long")

    def count(self, what: str) -> int:
        count = self.number()
        if count > COUNTS_MAX[what]:
            raise BadModule(f"it has more than {COUNTS_MAX[what]} {what}")
        return count

    def done(self) -> None:
        if self.at != self.end:
            raise BadModule("a section is longer than what it holds")


def read_module(wasm: bytes, *, pages_max: int, bytes_max: int) -> Module:
    """Reads a module of the guest ABI whose memory may have `pages_max` pages of 64 KiB.

    Raises `BadModule`.
    """
    if len(wasm) > bytes_max:
        raise BadModule(f"it has more than {bytes_max} bytes")
    if not wasm.startswith(_MAGIC):
        raise BadModule(
            "it is no WebAssembly module; compiled files of a runtime, programs and text are not taken"
        )
    if wasm[4:8] != b"\1\0\0\0":
        raise BadModule(
            "it is a component, or of another version of WebAssembly: a core module of version 1 is wanted"
        )
    module = Module(_sections(wasm))
    for number, read in _READERS:
        if number in module.raw:
            reader = _Reader(module.raw[number])
            read(module, reader, pages_max)
            reader.done()
    _check_exports(module)
    return module


def _sections(wasm: bytes) -> dict[int, bytes]:
    reader = _Reader(wasm, 8)
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


def _read_types(module: Module, reader: _Reader, _pages_max: int) -> None:
    for _ in range(reader.count("types")):
        if reader.byte() != 0x60:
            raise BadModule("a type is no function's")
        module.types.append((_value_types(reader), _value_types(reader)))


def _value_types(reader: _Reader) -> bytes:
    count = reader.number()
    if count > PARAMETERS_MAX:
        raise BadModule(f"a function has more than {PARAMETERS_MAX} parameters or results")
    types = reader.take(count)
    if any(each not in _NUMERIC for each in types):
        raise BadModule("only i32, i64, f32 and f64 are allowed")
    return types


def _read_imports(_module: Module, reader: _Reader, _pages_max: int) -> None:
    if reader.number():
        module, name = (
            reader.take(min(reader.number(), NAME_SHOWN)).decode("utf-8", "replace")
            for _ in range(2)
        )
        raise BadModule(f"it imports {module}.{name}: there is nothing to import")


def _read_functions(module: Module, reader: _Reader, _pages_max: int) -> None:
    module.functions = [reader.number() for _ in range(reader.count("functions"))]
    if any(index >= len(module.types) for index in module.functions):
        raise BadModule("a function has a type that is not there")


def _read_table(module: Module, reader: _Reader, _pages_max: int) -> None:
    if reader.number() > 1:
        raise BadModule("it has more than one table")
    if reader.at < reader.end:
        if reader.byte() != 0x70:
            raise BadModule("a table holds functions")
        module.table_size, most = _bounds(reader)
        if module.table_size > TABLE_MAX or most < module.table_size:
            raise BadModule(f"its table has more than {TABLE_MAX} places")


def _read_memory(module: Module, reader: _Reader, pages_max: int) -> None:
    if reader.number() != 1:
        raise BadModule("it has more or less than one memory")
    module.pages, most = _bounds(reader)
    module.pages_max = min(most, pages_max)
    if module.pages > module.pages_max:
        raise BadModule(
            f"its memory has more than {pages_max} pages, or begins with more than it may have"
        )


def _bounds(reader: _Reader) -> tuple[int, int]:
    """Lower and upper bound of a table's or memory's size."""
    flags = reader.byte()
    if flags not in (0, 1):
        raise BadModule("shared and 64-bit memories and tables are not allowed")
    least = reader.number()
    return least, reader.number() if flags else 2**32


def _read_globals(module: Module, reader: _Reader, _pages_max: int) -> None:
    for index in range(reader.count("globals")):
        kind, mutable = reader.byte(), reader.byte()
        if kind not in _NUMERIC or mutable not in (0, 1):
            raise BadModule("a variable is no number")
        bits = _constant(reader, kind)
        if mutable:
            module.mutable.append(index)
            module.initial.append(bits)


def _constant(reader: _Reader, kind: int) -> int:
    """The bits of a constant expression of one constant."""
    opcode = reader.byte()
    if opcode != {_I32: 0x41, _I64: 0x42, _F32: 0x43, _F64: 0x44}[kind]:
        raise BadModule("an initial value is not a constant of its type")
    bits = (
        reader.signed(_INTEGER_BITS[opcode])
        if opcode in _INTEGER_BITS
        else int.from_bytes(reader.take(_CONSTANT_BYTES[opcode]), "little")
    )
    if reader.byte() != _END:
        raise BadModule("an initial value is more than a constant")
    return bits


def _read_exports(module: Module, reader: _Reader, _pages_max: int) -> None:
    for _ in range(reader.count("exports")):
        try:
            name = reader.take(reader.number()).decode()
        except UnicodeDecodeError:
            raise BadModule("the name of an export is not UTF-8") from None
        if name in module.exports:
            raise BadModule("two exports have one name")
        module.exports[name] = (reader.byte(), reader.number())


def _read_elements(module: Module, reader: _Reader, _pages_max: int) -> None:
    for _ in range(reader.count("elements")):
        if reader.number() != 0:
            raise BadModule("passive and declared elements are not allowed")
        at = _constant(reader, _I32)
        count = reader.number()
        if at + count > module.table_size:
            raise BadModule("elements lie outside the table")
        if any(reader.number() >= len(module.functions) for _ in range(count)):
            raise BadModule("an element is a function that is not there")


def _read_data_count(_module: Module, reader: _Reader, _pages_max: int) -> None:
    reader.number()


def _read_data(module: Module, reader: _Reader, _pages_max: int) -> None:
    for _ in range(reader.count("segments")):
        if reader.number() != 0:
            raise BadModule("passive data is not allowed")
        at = _constant(reader, _I32)
        data = reader.take(reader.number())
        if at + len(data) > module.pages * PAGE_BYTES:
            raise BadModule("data lies outside the memory")
        module.segments.append((at, data))


def _read_code(module: Module, reader: _Reader, _pages_max: int) -> None:
    if reader.number() != len(module.functions):
        raise BadModule("there are more or fewer bodies than functions")
    for _ in module.functions:
        size = reader.number()
        if size > BODY_BYTES_MAX:
            raise BadModule(f"a function has more than {BODY_BYTES_MAX} bytes")
        body = _Reader(reader.data, reader.at, reader.at + size)
        reader.take(size)
        if sum(_locals(body) for _ in range(body.number())) > LOCALS_MAX:
            raise BadModule(f"a function has more than {LOCALS_MAX} variables")
        _check_instructions(body)


def _locals(body: _Reader) -> int:
    count = body.number()
    if body.byte() not in _NUMERIC:
        raise BadModule("a variable is no number")
    return count


def _check_instructions(body: _Reader) -> None:
    """Every instruction is one of those that are allowed, and blocks end where they must."""
    depth = 1
    while depth:
        opcode = body.byte()
        if opcode in _NOTHING:
            continue
        if opcode in _INDEX:
            body.number()
        elif opcode in _INTEGER_BITS:
            body.signed(_INTEGER_BITS[opcode])
        elif opcode in _MEMORY_ACCESS:
            if body.number() > 3:
                raise BadModule("an access to memory is aligned beyond its size")
            body.number()
        elif opcode in _BLOCKS:
            depth += 1
            if depth > NESTING_MAX:
                raise BadModule(f"blocks nest more than {NESTING_MAX} levels")
            body.signed(33)
        elif opcode == _END:
            depth -= 1
        else:
            _check_rare_instruction(opcode, body)
    body.done()


def _check_rare_instruction(opcode: int, body: _Reader) -> None:
    if opcode in _CONSTANT_BYTES:
        body.take(_CONSTANT_BYTES[opcode])
    elif opcode == _BR_TABLE:
        for _ in range(body.number() + 1):
            body.number()
    elif opcode == _CALL_INDIRECT:
        body.number()
        _zero(body)
    elif opcode in _MEMORY_SIZE:
        _zero(body)
    elif opcode == _MORE:
        more = body.number()
        if more in (_MEMORY_COPY, _MEMORY_FILL):
            _zero(body)
            if more == _MEMORY_COPY:
                _zero(body)
        elif more not in _SATURATING:
            raise BadModule(f"the instruction 0xfc {more} is not allowed")
    else:
        raise BadModule(f"the instruction {opcode:#04x} is not allowed")


def _zero(body: _Reader) -> None:
    if body.byte() != 0:
        raise BadModule("there is one table and one memory")


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
