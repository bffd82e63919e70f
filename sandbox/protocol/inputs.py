"""Inputs of a guest: the JSON text of one thing that happens to a session. The only place that
spells or reads it.

    [0, seed]  or  [0, seed, input]   the session starts, with XState's `input` if there is one
    [1, seed, event, sender]          somebody's event; presence is an event too
    [2, seed, timer]                  a timer has come due
    [3, seed]                         what XState would persist is asked for; never journaled
    [4, seed, request, answer]        what became of a request (`effects.Answer`)

`seed` is what the turn's randomness is drawn from. The text is journaled as it is and is never
spelled anew: a replay must give the guest the same bytes. `guest/prelude/session.ts` reads the same
form.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec

from sandbox.protocol.ids import EffectId, TimerId


class Shape(IntEnum):
    """The first element. A guest refuses one that it does not know."""

    START = 0
    EVENT = 1
    TIMER = 2
    PERSIST = 3
    ANSWER = 4


class Input(msgspec.Struct, frozen=True, array_like=True):
    """An input, taken apart. `subject` is XState's input, the event, the timer or the request."""

    shape: Shape
    seed: int
    subject: msgspec.Raw = msgspec.Raw(b"null")
    sender: msgspec.Raw = msgspec.Raw(b"null")
    """Who sent the event, as JSON; of a `Shape.ANSWER` the answer."""

    @property
    def timer(self) -> TimerId:
        """The timer of a `Shape.TIMER`."""
        return TimerId(int(bytes(self.subject)))

    @property
    def effect(self) -> EffectId:
        """The request of a `Shape.ANSWER`."""
        return EffectId(int(bytes(self.subject)))


_decode: Final = msgspec.json.Decoder(Input).decode


def start_input(seed: int, given: bytes | None) -> bytes:
    """`given` is XState's `input` as JSON; None for none."""
    return b"[0,%d,%b]" % (seed, given) if given is not None else b"[0,%d]" % seed


def given_of(data: bytes) -> bytes | None:
    """XState's input of a `Shape.START`, None for none. Raises `msgspec.MsgspecError`."""
    return bytes(_decode(data).subject) if data.count(b",") > 1 else None


def event_input(seed: int, event: bytes | msgspec.Raw, sender: bytes) -> bytes:
    """`event` is JSON as its sender wrote it, `sender` is JSON of the hub's."""
    return b"[1,%d,%b,%b]" % (seed, event, sender)


def timer_input(seed: int, timer: TimerId) -> bytes:
    return b"[2,%d,%d]" % (seed, timer)


def answer_input(seed: int, effect: EffectId, answer: bytes) -> bytes:
    """`answer` is JSON of the hub's (`effects.Answer`)."""
    return b"[4,%d,%d,%b]" % (seed, effect, answer)


PERSIST_INPUT: Final = b"[3,0]"
"""For a replica, which is thrown away: the answer is in the place of the outbox's snapshot."""


def read_input(data: bytes) -> Input:
    """Raises `msgspec.MsgspecError` for what none of these functions wrote."""
    return _decode(data)


def is_start(data: bytes) -> bool:
    """Whether it starts a session."""
    return data.startswith(b"[0,")


def is_event(data: bytes) -> bool:
    """Whether it is somebody's event, or one of presence."""
    return data.startswith(b"[1,")


def shape_of(data: bytes) -> Shape:
    """The same for the shape alone, without reading the rest. Raises `ValueError`."""
    return Shape(int(data[1 : data.index(b",")]))


def timer_of(data: bytes) -> TimerId:
    """The timer of a `Shape.TIMER`."""
    return TimerId(int(data[data.rindex(b",") + 1 : -1]))
