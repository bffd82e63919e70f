"""LEB128: how WebAssembly's binary format writes integers (core specification 2.0, section
5.2.2).
"""

from __future__ import annotations


def encode_unsigned(value: int) -> bytes:
    """Of a number that is not negative."""
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


def encode_signed(value: int) -> bytes:
    """Signed LEB128 of a number that is not negative."""
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        more = value or byte & 0x40
        out.append(byte | (0x80 if more else 0))
        if not more:
            return bytes(out)


def decode_unsigned(data: bytes, at: int) -> tuple[int, int]:
    """The integer at `at`, and the position behind it. For modules of our own: nothing is
    checked.
    """
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at
