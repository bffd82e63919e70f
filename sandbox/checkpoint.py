"""Encodes the difference between a session's memory and its image as a checkpoint, and applies it
again.

A checkpoint holds the changed pages, XOR'd with the image's (most bytes of a changed page are the
same, so zeros) and compressed, and a digest that is checked when it is thawed.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec
import zstandard

from sandbox.compression import unpack
from sandbox.engine import WASM_PAGE_BYTES
from sandbox.image import PAGE_BYTES, ZERO_PAGE
from sandbox.protocol.formats import DIGEST_BYTES, with_header, without_header

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_compress: Final = zstandard.ZstdCompressor(level=3).compress


class _CheckpointBody(msgspec.Struct, array_like=True):
    size: int
    changed: list[int]
    """Numbers of pages"""
    xored: bytes
    extras: tuple[int, ...] = ()


class DamagedCheckpoint(Exception):
    """A checkpoint whose content does not fit its digest, its image or its format."""


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:DIGEST_BYTES]


def encode_checkpoint(
    image: bytes, memory: memoryview, *, scratch: Iterable[range], extras: tuple[int, ...] = ()
) -> bytes:
    """Encodes the pages of `memory` that differ from `image` as a checkpoint (see the module).

    The address ranges in `scratch` are treated as unchanged. `extras` are integers that are stored
    with the pages, and that `apply_checkpoint` returns.
    """
    current = bytearray(memory)
    for area in scratch:
        current[area.start : area.stop] = image[area.start : area.stop]
    changed: list[int] = []
    was, now = bytearray(), bytearray()
    for at in range(0, len(current), WASM_PAGE_BYTES):  # most of these are as they were
        if current[at : at + WASM_PAGE_BYTES] != image[at : at + WASM_PAGE_BYTES]:
            for start in range(at, at + WASM_PAGE_BYTES, PAGE_BYTES):
                before = image[start : start + PAGE_BYTES] or ZERO_PAGE
                after = current[start : start + PAGE_BYTES]
                if after != before:
                    changed.append(start // PAGE_BYTES)
                    was += before
                    now += after
    xored = (int.from_bytes(was, "little") ^ int.from_bytes(now, "little")).to_bytes(
        len(now), "little"
    )
    body = msgspec.msgpack.encode((len(memory), changed, xored, *((extras,) if extras else ())))
    return with_header(_digest(body) + _compress(body))


def apply_checkpoint(
    checkpoint: bytes, image: memoryview, *, bytes_max: int
) -> tuple[int, Iterator[tuple[int, bytes]], tuple[int, ...]]:
    """The size of the memory that was frozen, its changed pages as (address, content), and what was
    kept with it.

    Raises `DamagedCheckpoint` when what comes out is not what was written, is of a newer format, or
    more than a memory of `bytes_max` can have.
    """
    try:
        kept = without_header(checkpoint)
        body = unpack(kept[DIGEST_BYTES:], bytes_max=2 * bytes_max)  # pages, and their numbers
        if _digest(body) != kept[:DIGEST_BYTES]:
            raise DamagedCheckpoint("the digest does not fit")
        read = msgspec.msgpack.decode(body, type=_CheckpointBody)
    except (ValueError, msgspec.MsgspecError) as error:
        raise DamagedCheckpoint(str(error)) from error
    return read.size, _pages(read.changed, read.xored, image), read.extras


def _pages(changed: list[int], xored: bytes, image: memoryview) -> Iterator[tuple[int, bytes]]:
    for index, page in enumerate(changed):
        at = page * PAGE_BYTES
        before = bytes(image[at : at + PAGE_BYTES]) or ZERO_PAGE
        difference = xored[index * PAGE_BYTES : (index + 1) * PAGE_BYTES]
        mixed = int.from_bytes(before, "little") ^ int.from_bytes(difference, "little")
        yield at, mixed.to_bytes(PAGE_BYTES, "little")
