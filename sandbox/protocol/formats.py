"""Versions of what is kept for ever, and of what is sent between programs that may differ in age.

A number goes up when the meaning of what is already written changes, or when something is written
that earlier code would misread. What carries no number was written before there were any, and is
version 1.

| format | where the number stands |
| --- | --- |
| image | `format` in the image's custom section |
| checkpoint | the byte behind `CHECKPOINT_MAGIC`; without it, 1 |
| input | the journal line's `format`; an image's `inputs` is the newest that its guest reads |
| outbox | the first element of the list |
| frames | `Ready.frames` |

A hub notes in its database which formats it writes (`store/schema.py`), and does not start on newer
ones.
"""

from __future__ import annotations

from typing import Final

IMAGE: Final = 2
"""2: an image says its format, and which inputs its guest reads."""
CHECKPOINT: Final = 2
"""2: with a header; what follows it is a checkpoint of version 1."""
INPUT: Final = 2
"""2: answers to requests."""
OUTBOX: Final = 3
"""2: the second element has flags, of which one says that no transition took the event; the last
says what a timer was; 3: behind it are requests, and those that were withdrawn.
"""
FRAMES: Final = 5
"""2: `Ready` says the version; 3: images are compressed against a template; 4: who may send and see
what is asked of workers; 5: what is frozen into an image says whether its machine may reach out.
"""

CHECKPOINT_MAGIC: Final = b"\x89mhcheck"
"""No checkpoint of version 1 begins so: they begin with a digest, of 128 bits."""
DIGEST_BYTES: Final = 16


class UnknownFormat(ValueError):
    """It was written by newer code: this one would misread it."""


def with_header(body: bytes) -> bytes:
    """A checkpoint as it is kept, from its digest and content."""
    return CHECKPOINT_MAGIC + bytes([CHECKPOINT]) + body


def without_header(checkpoint: bytes) -> bytes:
    """Digest and content of a checkpoint of any version. Raises `UnknownFormat`."""
    if not checkpoint.startswith(CHECKPOINT_MAGIC):
        return checkpoint
    start = len(CHECKPOINT_MAGIC) + 1
    version = checkpoint[start - 1 : start]
    if version != bytes([CHECKPOINT]):
        raise UnknownFormat(f"a checkpoint of format {version.hex()}, which this hub does not know")
    return checkpoint[start:]


def checkpoint_digest(checkpoint: bytes) -> str:
    """The digest of the memory that was frozen, in hexadecimal. Raises `UnknownFormat`."""
    return without_header(checkpoint)[:DIGEST_BYTES].hex()
