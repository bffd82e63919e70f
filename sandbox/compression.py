"""zstd, as images, engines and checkpoints are sent and stored."""

from __future__ import annotations

import hashlib
from typing import Final

import zstandard

_LEVEL: Final = 6
"""Below it zstd does not look far enough back to find most of a template (8 KB of a counter's
image are left, 40 KB at level 3).
"""
_WINDOW_LOG: Final = 23
"""8 MiB: an image and a template, with room to spare."""


def pack(data: bytes, *, level: int = 1) -> bytes:
    """`data` as one zstd frame that says how large it is."""
    return zstandard.ZstdCompressor(level=level).compress(data)


def unpack(packed: bytes, *, bytes_max: int) -> bytes:
    """What `pack` was given.

    Raises `ValueError` for what it did not write, or for more than `bytes_max`.
    """
    return _unpack(_decompressor, packed, bytes_max)


class Template:
    """What all images of one guest have in common: packed against it, one is a fortieth of itself.

    It is the image of a machine that does nothing, and serves as zstd's dictionary (RFC 8878, 5,
    "raw content").
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.digest = hashlib.sha256(data).hexdigest()[:32]
        content = zstandard.ZstdCompressionDict(data, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        self._parameters = zstandard.ZstdCompressionParameters.from_level(
            _LEVEL, source_size=len(data), dict_size=len(data), window_log=_WINDOW_LOG
        )
        self._content = content
        self._compressor: zstandard.ZstdCompressor | None = None
        self._decompressor = zstandard.ZstdDecompressor(dict_data=content)

    def pack(self, data: bytes) -> bytes:
        if self._compressor is None:  # most processes only unpack
            self._content.precompute_compress(compression_params=self._parameters)
            self._compressor = zstandard.ZstdCompressor(
                dict_data=self._content, compression_params=self._parameters
            )
        return self._compressor.compress(data)

    def unpack(self, packed: bytes, *, bytes_max: int) -> bytes:
        """As the function of this name."""
        return _unpack(self._decompressor, packed, bytes_max)


def _unpack(decompressor: zstandard.ZstdDecompressor, packed: bytes, bytes_max: int) -> bytes:
    """The size that a frame announces is believed by the decompressor, which allocates it: so it is
    looked at first.
    """
    try:
        size = zstandard.get_frame_parameters(packed).content_size
        if size > bytes_max:  # an unknown size counts as the largest of all
            raise ValueError(f"it holds {size} bytes, and may hold {bytes_max}")
        return decompressor.decompress(packed)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


_decompressor = zstandard.ZstdDecompressor()
