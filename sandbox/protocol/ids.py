"""Numbers that must not be mistaken for one another."""

from __future__ import annotations

from typing import Final, NewType

Slot = NewType("Slot", int)
"""The number of a session in the messages to its worker. Each time a session is opened on a worker
it gets a new slot, so late answers for an earlier slot can be told apart and dropped.
"""
Ticket = NewType("Ticket", int)
"""A request id: the hub numbers its requests to a worker, and the answer repeats the number."""
TimerId = NewType("TimerId", int)
"""A timer of one session, as its guest counts them."""
EffectId = NewType("EffectId", int)
"""A request of one session to the world, as its guest counts them."""

MODULE_ENGINE_PREFIX: Final = "module-"
"""Before the digest of an engine that is the code of a stranger's WASM module: such code is never
under another image (sandbox/foreign.py).
"""
