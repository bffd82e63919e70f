"""Images and checkpoints: freezing a memory into bytes, and bytes back into a memory.

An *image* is a WASM module that has a memory and no code: a custom section with what the host must
know to call into it, one exported memory, and a data segment per run of pages that are not zero.
The runtime maps it copy-on-write.

A *checkpoint* is what one session has that its image has not: the pages that differ, XOR'd with the
image's (most bytes of a changed page are the same, so zeros) and compressed. Its digest is checked
when it is thawed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec
import zstandard

from sandbox.engine import WASM_PAGE_BYTES
from sandbox.protocol import GuestLimits, OwnLimits
from sandbox.sourcemap import SourceMap
from sandbox.validate import leb128

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PAGE_BYTES: Final = 4096
_HEADER: Final = b"\0asm\x01\0\0\0"
_SECTION_NAME: Final = b"machinehub"
_ZERO_PAGE: Final = bytes(PAGE_BYTES)


class ModuleHandles(msgspec.Struct, frozen=True):
    """What a machine that came as a module (docs/guest-abi.md) keeps outside its memory."""

    globals: list[int]
    """The bits of its variables, in the order in which the code exports them."""
    limits: GuestLimits


class Handles(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where things are in a frozen memory: QuickJS value handles and addresses, all positions in
    the linear memory.
    """

    engine: str
    """Digest of the engine that this memory belongs to."""
    load: int = 0
    explain: int = 0
    step: int = 0
    collect: int = 0
    io: int = 0
    io_bytes: int = 0
    eval_slot: int = 0
    """Address of the context's pointer to the parser; zeroed when a machine's image is frozen."""
    stack_bytes: int = 0
    """The engine's stack is the memory below this address. Between turns nothing of it is alive."""
    source_map: SourceMap | None = None
    """From the bundle in this image to its author's files."""
    jobs: int = 2**32 - 1
    """Promise jobs of one turn."""
    own: OwnLimits = OwnLimits()
    module: ModuleHandles | None = None
    """Of a machine that is no script for QuickJS: the fields before it mean nothing then."""

    @property
    def dead(self) -> tuple[range, range]:
        """Addresses whose content means nothing between turns: the stack, and the I/O area."""
        return range(self.stack_bytes), range(self.io, self.io + self.io_bytes)


class _CheckpointBody(msgspec.Struct, array_like=True):
    size: int
    changed: list[int]
    """Numbers of pages"""
    xored: bytes
    beside: tuple[int, ...] = ()


class DamagedCheckpoint(Exception):
    """A checkpoint whose content does not fit its digest, its image or its format."""


def build_image(memory: bytes | memoryview, handles: Handles, *, pages_max: int) -> bytes:
    """The image module of `memory` (a whole number of 64 KiB pages)."""
    meta = leb128(len(_SECTION_NAME)) + _SECTION_NAME + msgspec.json.encode(handles)
    pages = len(memory) // WASM_PAGE_BYTES
    runs = list(_runs(memory))
    data = bytearray(leb128(len(runs)))
    for start, end in runs:
        data += b"\0\x41" + _signed_leb128(start) + b"\x0b" + leb128(end - start)
        data += memory[start:end]
    return b"".join(
        (
            _HEADER,
            _section(0, meta),
            _section(5, b"\x01\x01" + leb128(pages) + leb128(pages_max)),
            _section(7, b"\x01\x06memory\x02\0"),
            _section(11, bytes(data)),
        )
    )


def read_handles(image: bytes) -> Handles:
    """The custom section of an image that `build_image` made.

    Raises `ValueError` for anything else.
    """
    if not image.startswith(_HEADER + b"\0"):
        raise ValueError("not an image")
    size, at = read_leb128(image, len(_HEADER) + 1)
    length, name_at = read_leb128(image, at)
    if image[name_at : name_at + length] != _SECTION_NAME:
        raise ValueError("not an image")
    return msgspec.json.decode(image[name_at + length : at + size], type=Handles)


def encode_checkpoint(
    image: bytes, memory: memoryview, *, dead: Iterable[range], beside: tuple[int, ...] = ()
) -> bytes:
    """What `memory` has that `image` has not. What is dead is left as the image has it.

    `beside` is kept with it.
    """
    current = bytearray(memory)
    for area in dead:
        current[area.start : area.stop] = image[area.start : area.stop]
    changed: list[int] = []
    was, now = bytearray(), bytearray()
    for at in range(0, len(current), WASM_PAGE_BYTES):  # most of these are as they were
        if current[at : at + WASM_PAGE_BYTES] != image[at : at + WASM_PAGE_BYTES]:
            for start in range(at, at + WASM_PAGE_BYTES, PAGE_BYTES):
                before = image[start : start + PAGE_BYTES] or _ZERO_PAGE
                after = current[start : start + PAGE_BYTES]
                if after != before:
                    changed.append(start // PAGE_BYTES)
                    was += before
                    now += after
    xored = (int.from_bytes(was, "little") ^ int.from_bytes(now, "little")).to_bytes(
        len(now), "little"
    )
    body = msgspec.msgpack.encode((len(memory), changed, xored, *((beside,) if beside else ())))
    return hashlib.sha256(body).digest()[:16] + _compressor.compress(body)


def apply_checkpoint(
    checkpoint: bytes, image: memoryview, *, bytes_max: int
) -> tuple[int, Iterator[tuple[int, bytes]], tuple[int, ...]]:
    """The size of the memory that was frozen, its changed pages as (address, content), and what was
    kept beside it.

    Raises `DamagedCheckpoint` when what comes out is not what was written, or more than a memory of
    `bytes_max` can have.
    """
    try:
        body = unpack(checkpoint[16:], bytes_max=2 * bytes_max)  # pages, and their numbers
        if hashlib.sha256(body).digest()[:16] != checkpoint[:16]:
            raise DamagedCheckpoint("the digest does not fit")
        read = msgspec.msgpack.decode(body, type=_CheckpointBody)
    except (ValueError, msgspec.MsgspecError) as error:
        raise DamagedCheckpoint(str(error)) from error
    return read.size, _pages(read.changed, read.xored, image), read.beside


def _pages(changed: list[int], xored: bytes, image: memoryview) -> Iterator[tuple[int, bytes]]:
    for index, page in enumerate(changed):
        at = page * PAGE_BYTES
        before = bytes(image[at : at + PAGE_BYTES]) or _ZERO_PAGE
        difference = xored[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
        mixed = int.from_bytes(before, "little") ^ int.from_bytes(difference, "little")
        yield at, mixed.to_bytes(PAGE_BYTES, "little")


def pack(data: bytes) -> bytes:
    """zstd, as images and code are sent and stored."""
    return zstandard.ZstdCompressor(level=1).compress(data)


def unpack(packed: bytes, *, bytes_max: int) -> bytes:
    """What `pack` was given.

    Raises `ValueError` for what it did not write, or for more than `bytes_max`.

    The size that a frame announces is believed by the decompressor, which allocates it: so it is
    looked at first.
    """
    try:
        size = zstandard.get_frame_parameters(packed).content_size
        if size > bytes_max:  # an unknown size counts as the largest of all
            raise ValueError(f"it holds {size} bytes, and may hold {bytes_max}")
        return _decompressor.decompress(packed)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


_compressor = zstandard.ZstdCompressor(level=3)
_decompressor = zstandard.ZstdDecompressor()


def _runs(memory: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Maximal runs of pages that are not all zero, as (start, end)."""
    start = None
    for at in range(0, len(memory), PAGE_BYTES):
        empty = memory[at : at + PAGE_BYTES] == _ZERO_PAGE
        if empty and start is not None:
            yield start, at
            start = None
        elif not empty and start is None:
            start = at
    if start is not None:
        yield start, len(memory)


def _section(number: int, content: bytes) -> bytes:
    return bytes([number]) + leb128(len(content)) + content


def read_leb128(data: bytes, at: int) -> tuple[int, int]:
    """The integer at `at` and the position behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def find_section(module: bytes, number: int) -> tuple[int, int]:
    """Where the content of a module's section begins, and its size. Raises `ValueError`."""
    at = len(_HEADER)
    while at < len(module):
        found = module[at]
        size, at = read_leb128(module, at + 1)
        if found == number:
            return at, size
        at += size
    raise ValueError(f"the module has no section {number}")


def _signed_leb128(value: int) -> bytes:
    """Signed LEB128 of a number that is not negative."""
    out = bytearray()
    while True:
        byte, value = value & 0x7F, value >> 7
        more = value or byte & 0x40
        out.append(byte | (0x80 if more else 0))
        if not more:
            return bytes(out)
