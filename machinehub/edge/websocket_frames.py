"""WebSocket frames as bytes."""

from __future__ import annotations


def text_frame(json: bytes) -> bytes:
    """A WebSocket text frame, as a server sends it."""
    size = len(json)
    if size < 126:
        return bytes((0x81, size)) + json
    if size < 65536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + json
    return b"\x81\x7f" + size.to_bytes(8, "big") + json
