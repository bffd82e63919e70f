"""zstd, as images, engines and checkpoints are sent and stored."""

from __future__ import annotations

import zstandard


def pack(data: bytes, *, level: int = 1) -> bytes:
    """`data` as one zstd frame that says how large it is."""
    return zstandard.ZstdCompressor(level=level).compress(data)


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


_decompressor = zstandard.ZstdDecompressor()
