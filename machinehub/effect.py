"""What machines ask of the world, as it is kept: a request, and how it ended."""

from __future__ import annotations

from typing import Final

import msgspec

from machinehub.ids import Seq, SessionKey
from sandbox.protocol.ids import EffectId


class Effect(msgspec.Struct, frozen=True, gc=False):
    """What a machine asked of the world in one of its turns."""

    id: EffectId
    seq: Seq
    """Of the turn."""
    ordinal: int
    """Which of the turn's requests it is, from 0."""
    request: bytes
    """JSON, as the guest wrote it (`sandbox.protocol.effects.Request`)."""
    at_ms: int
    depth: int = 0
    """How many machines called each other, one because of the other, before this was asked."""


class Conclusion(msgspec.Struct, frozen=True, gc=False):
    """How a request ended."""

    outcome: str
    """`answered`, or a code of docs/errors.md, or `withdrawn` by the machine itself."""
    status: int | None = None
    """Of the response, if there was one."""
    tries: int = 0
    ms: int = 0
    """From the first try on."""


WITHDRAWN: Final = Conclusion("withdrawn")


class EffectRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a request."""

    key: SessionKey
    effect: Effect
    tries: int = 0
    """Of those that failed and were noted."""
    tried_at_ms: int | None = None
    """When it was first tried, once a try has failed."""
    due_at_ms: int | None = None
    """When it is to be tried next; None for one that ended, or is held (`is_held`)."""
    trouble: str = ""
    """Why the last try failed."""
    ended_at_ms: int | None = None
    ended_seq: Seq | None = None
    """Of the turn that the answer was the input of, or that withdrew the request."""
    conclusion: Conclusion | None = None

    @property
    def is_held(self) -> bool:
        """Whether nobody sends it, since its session was forked from one that asked: only a person
        may answer it.
        """
        return self.ended_at_ms is None and self.due_at_ms is None
