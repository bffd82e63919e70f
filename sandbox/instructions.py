"""Checks that the body of a function contains only allowed instructions.

Source: the WebAssembly specification, section 5.4 (instructions).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandbox.wasm_reader import F32, F64, I32, I64, BadModule

if TYPE_CHECKING:
    from sandbox.wasm_reader import Reader

NESTING_MAX: Final = 500
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


def check_instructions(body: Reader) -> None:
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


def _check_rare_instruction(opcode: int, body: Reader) -> None:
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


def _zero(body: Reader) -> None:
    if body.byte() != 0:
        raise BadModule("there is one table and one memory")


def read_constant(reader: Reader, kind: int) -> int:
    """The bits of a constant expression of one constant, a number of this kind. Raises
    `BadModule`.
    """
    opcode = reader.byte()
    if opcode != {I32: 0x41, I64: 0x42, F32: 0x43, F64: 0x44}[kind]:
        raise BadModule("an initial value is not a constant of its type")
    bits = (
        reader.signed(_INTEGER_BITS[opcode])
        if opcode in _INTEGER_BITS
        else int.from_bytes(reader.take(_CONSTANT_BYTES[opcode]), "little")
    )
    if reader.byte() != _END:
        raise BadModule("an initial value is more than a constant")
    return bits
