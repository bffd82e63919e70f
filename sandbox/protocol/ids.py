"""Numbers that must not be mistaken for one another."""

from __future__ import annotations

from typing import Final, NewType

Slot = NewType("Slot", int)
"""What a hub calls a session towards a worker. A new one for each stay there: whatever is still
said of an earlier one is about nobody.
"""
Ticket = NewType("Ticket", int)
"""What a hub calls one question to a worker, which the answer repeats."""
TimerId = NewType("TimerId", int)
"""A timer of one session, as its guest counts them."""

MODULE_ENGINE_PREFIX: Final = "module-"
"""Before the digest of an engine that is the code of a stranger's WASM module: such code is never
under another image (sandbox/foreign.py).
"""
