"""What one turn leaves behind, as the guest writes it in JSON. Both sides of the wall check it."""

from __future__ import annotations

from typing import Final

import msgspec

from sandbox.protocol.ids import EffectId, TimerId

SAYS_TAKEN: Final = 2
"""The first format that says whether an event was taken."""


class Outbox(msgspec.Struct, array_like=True, gc=False):
    """The JSON array `[format, flags, snapshot, emitted, timers_set, timers_cancelled, logs,
    cause, requests, withdrawn]`, from which empty elements at the end are left out. The array
    `[0, fault]` is no outbox: with it the guest reports that the turn has to be undone.
    """

    format: int
    """Which version of this list it is (`formats.OUTBOX`)."""
    flags: int
    """The sum of 1 when the machine has ended and, from format 2 on, of 2 when no transition of it
    took the event that was sent.
    """
    snapshot: msgspec.Raw
    """JSON; null when nothing that others see has changed."""
    emitted: list[msgspec.Raw] = []
    timers_set: list[tuple[TimerId, int]] = []
    """Timers, and when they are due in milliseconds since 1970."""
    timers_cancelled: list[TimerId] = []
    logs: list[tuple[str, str]] = []
    """Level and text of each line."""
    cause: str = ""
    """Of the turn of a timer or an answer: the type of the event that the machine got of it."""
    requests: list[tuple[EffectId, msgspec.Raw]] = []
    """From format 3 on, what the turn asks of the world (`effects.Request`)."""
    withdrawn: list[EffectId] = []
    """Requests, of this turn or an earlier one, whose answers nobody waits for any more."""

    @property
    def finished(self) -> bool:
        return bool(self.flags & 1)

    @property
    def taken(self) -> bool | None:
        """Whether a transition took the event; None where the guest does not say. Means nothing of
        an input that is no event.
        """
        return None if self.format < SAYS_TAKEN else not self.flags & 2


_decode_outbox = msgspec.json.Decoder(Outbox).decode


def decode_outbox(data: bytes) -> Outbox:
    """Raises `msgspec.MsgspecError` or `RecursionError` for what is no outbox, or no UTF-8: the
    parts that stay raw are not looked at otherwise.
    """
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise msgspec.DecodeError(str(error)) from None
    return _decode_outbox(data)
