"""Limits that both sides keep: those that are frozen into an image hold for as long as its version
lives.
"""

from __future__ import annotations

from typing import Final

import msgspec

HEAVY_US: Final = 1_000
"""A turn counts as heavy from this CPU time on, in microseconds (a counter's turn takes about a
fifteenth of it). The hub sends a worker one turn at a time that it expects to be heavy, and the
worker flushes its answers before it begins one.
"""


class GuestLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Limits that are frozen into an image and kept inside the guest.

    The defaults are the prelude's own (guest/prelude/turn.ts).
    """

    timers: int = 1_000
    actors: int = 1_000
    jobs: int = 10_000
    log_lines: int = 64
    log_line_bytes: int = 4 * 1024
    snapshot_bytes: int = 256 * 1024
    emitted_bytes: int = 256 * 1024
    effects: int = 100
    effect_bytes: int = 512 * 1024
    egress: int = 0
    """1 when the machine's egress rules let something out; else `fetch` rejects at once."""


class OwnLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a version says of itself, frozen into its image: a turn gets this or what the hub
    allows, whichever is less.
    """

    event_cpu_ms: int | None = None
    start_cpu_ms: int | None = None
    snapshot_bytes: int | None = None
    emitted_bytes: int | None = None
