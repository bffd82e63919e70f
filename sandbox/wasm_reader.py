"""Reading WASM's binary format: bytes, LEB128 numbers, counts, each within its bounds.

Source: the WebAssembly specification, section 5 (binary format).
"""

from __future__ import annotations

from typing import Final

I32, I64, F32, F64 = 0x7F, 0x7E, 0x7D, 0x7C
"""How the kinds of numbers are written."""
COUNTS_MAX: Final = {
    "types": 1_000,
    "functions": 10_000,
    "globals": 1_000,
    "exports": 1_000,
    "elements": 1_000,
    "segments": 10_000,
}


class BadModule(Exception):
    """The module is not let in; the message says what of it."""


class Reader:
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
