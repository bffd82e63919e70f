"""Images: freezing a memory into a WASM module, of which every session begins as a copy.

An *image* is a WASM module that has a memory and no code: a custom section with what the host must
know to call into it, one exported memory, and a data segment for each run of pages that are not
zero. The runtime maps it copy-on-write. What one session has that its image has not is in
`checkpoint.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from sandbox.engine import WASM_PAGE_BYTES
from sandbox.leb128 import decode_unsigned, encode_signed, encode_unsigned
from sandbox.protocol import formats
from sandbox.protocol.access import Rule
from sandbox.protocol.limits import GuestLimits, OwnLimits
from sandbox.sourcemap import SourceMap

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE_BYTES: Final = 4096
_HEADER: Final = b"\0asm\x01\0\0\0"
_SECTION_NAME: Final = b"machinehub"
ZERO_PAGE: Final = bytes(PAGE_BYTES)


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
    format: int = 1
    """Of the image (`protocol/formats.py`)."""
    inputs: int = 1
    """The newest format of inputs that the guest in this memory reads."""
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
    judge: int = 0
    judged: int = 0
    asks_access: bool = False
    """Whether the author's file exports `access`, which `judge` asks."""
    rules: list[Rule] = []
    """Who may send what."""
    module: ModuleHandles | None = None
    """Of a machine that is no script for QuickJS: the fields before it mean nothing then."""

    @property
    def scratch(self) -> tuple[range, range]:
        """Addresses whose content means nothing between turns: the stack, and the I/O area."""
        return range(self.stack_bytes), range(self.io, self.io + self.io_bytes)


def build_image(memory: bytes | memoryview, handles: Handles, *, pages_max: int) -> bytes:
    """The image module of `memory` (a whole number of 64 KiB pages)."""
    meta = encode_unsigned(len(_SECTION_NAME)) + _SECTION_NAME + msgspec.json.encode(handles)
    pages = len(memory) // WASM_PAGE_BYTES
    runs = list(_runs(memory))
    data = bytearray(encode_unsigned(len(runs)))
    for start, end in runs:
        data += b"\0\x41" + encode_signed(start) + b"\x0b" + encode_unsigned(end - start)
        data += memory[start:end]
    return b"".join(
        (
            _HEADER,
            _section(0, meta),
            _section(5, b"\x01\x01" + encode_unsigned(pages) + encode_unsigned(pages_max)),
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
    size, at = decode_unsigned(image, len(_HEADER) + 1)
    length, name_at = decode_unsigned(image, at)
    if image[name_at : name_at + length] != _SECTION_NAME:
        raise ValueError("not an image")
    handles = msgspec.json.decode(image[name_at + length : at + size], type=Handles)
    if handles.format > formats.IMAGE:
        raise formats.UnknownFormat(f"an image of format {handles.format}")
    return handles


def _runs(memory: bytes | memoryview) -> Iterator[tuple[int, int]]:
    """Maximal runs of pages that are not all zero, as (start, end)."""
    start = None
    for at in range(0, len(memory), PAGE_BYTES):
        empty = memory[at : at + PAGE_BYTES] == ZERO_PAGE
        if empty and start is not None:
            yield start, at
            start = None
        elif not empty and start is None:
            start = at
    if start is not None:
        yield start, len(memory)


def _section(number: int, content: bytes) -> bytes:
    return bytes([number]) + encode_unsigned(len(content)) + content


def find_section(module: bytes, number: int) -> tuple[int, int]:
    """Where the content of a module's section begins, and its size. Raises `ValueError`."""
    at = len(_HEADER)
    while at < len(module):
        found = module[at]
        size, at = decode_unsigned(module, at + 1)
        if found == number:
            return at, size
        at += size
    raise ValueError(f"the module has no section {number}")
