"""The words everybody uses: machines, versions, and what is known of them."""

from __future__ import annotations

from typing import Any

import msgspec


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """6 or more base62 characters: the first part of its URLs."""
    name: str
    created_at_ms: int
    active_version: int
    """The version that new sessions get; 0 before the first activation."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable: the same number is the same content for ever."""

    machine_id: str
    number: int
    digest: str
    engine: str
    entry: str
    message: str
    created_at_ms: int
    definition: dict[str, Any]
    """States, transitions, events (guest/prelude/machine.ts says the shape)."""


class Token(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    name: str
    created_at_ms: int
    revoked_at_ms: int | None
