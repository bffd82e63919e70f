"""The bytes of messages: a frame is a four-byte little-endian length and a MessagePack list of
messages.

Batches in both directions, so that one system call carries the turns of many sessions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Generic, TypeVar

import msgspec

from sandbox.protocol.messages import ToHub, ToWorker

if TYPE_CHECKING:
    from collections.abc import Sequence

FRAME_BYTES_WISH: Final = 8 * 1024 * 1024
"""A batch above it is sent in parts: a hundred sessions that are thawed at once bring their
checkpoints along.
"""
MESSAGES_MAX: Final = 4_096
"""Of one frame to the hub; a worker sends a few dozen at most."""
FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
"""Above this a peer is broken or hostile. An image is about 1.5 MiB, an upload at most a few."""

T = TypeVar("T")


class BadFrame(Exception):
    """The peer sent something that is no frame of this protocol."""


class FrameReader(Generic[T]):
    """Takes bytes as they arrive, gives whole batches. Raises `BadFrame`."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[list[T]]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[T]]:
        """Adds received bytes; returns the batches that are now complete, one per frame. Raises
        `BadFrame`, after which the reader must not be used any more.
        """
        self._buffer += data
        batches: list[list[T]] = []
        at = 0
        while len(self._buffer) - at >= 4:
            size = int.from_bytes(self._buffer[at : at + 4], "little")
            if size > FRAME_BYTES_MAX:
                raise BadFrame(f"a frame of {size} bytes")
            if len(self._buffer) - at - 4 < size:
                break
            try:
                batches.append(
                    self._decoder.decode(memoryview(self._buffer)[at + 4 : at + 4 + size])
                )
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise BadFrame(str(error)) from error
            at += 4 + size
        if at:
            del self._buffer[:at]
        return batches


def to_worker_reader() -> FrameReader[ToWorker]:
    return FrameReader(msgspec.msgpack.Decoder(list[ToWorker]))


def to_hub_reader() -> FrameReader[ToHub]:
    return FrameReader(
        msgspec.msgpack.Decoder(Annotated[list[ToHub], msgspec.Meta(max_length=MESSAGES_MAX)])
    )


_encoder = msgspec.msgpack.Encoder()


def encode(messages: Sequence[ToWorker | ToHub]) -> bytes:
    """All of `messages`, in order, in one frame, or in several when it would be a large one."""
    body = _encoder.encode(messages)
    if len(body) > FRAME_BYTES_WISH and len(messages) > 1:
        half = len(messages) // 2
        return encode(messages[:half]) + encode(messages[half:])
    return len(body).to_bytes(4, "little") + body
