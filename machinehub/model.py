"""The words everybody uses: machines, versions, sessions and what is kept of them."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    """6 or more base62 characters: the first part of its URLs."""
    name: str
    created_at_ms: int
    active_version: int
    """The version that new sessions get; 0 before the first activation."""


class MachineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What belongs to a version besides its files: the table `[machine]` of machinehub.toml."""

    on_error: Literal["reject", "stop"] = "reject"
    """What an action that throws does: undo its turn, or end the session in an error as XState
    does.
    """


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


MODULE_PREFIX: Final = "module-"
"""What the digest of an engine begins with that is a module's own code (sandbox/foreign.py)."""


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A version's image, as workers take it. Both contents are zstd-compressed."""

    image: bytes
    engine: str
    """Digest of the engine that it was frozen under."""
    engine_code: bytes = b""
    """That engine, when it is not the one that workers have anyway; of a module its machine code.
    """

    @property
    def is_module(self) -> bool:
        """Whether the machine came as a WASM module (docs/guest-abi.md): it lives on workers of its
        own kind.
        """
        return self.engine.startswith(MODULE_PREFIX)


class Token(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    name: str
    created_at_ms: int
    revoked_at_ms: int | None


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What never changes about a session, but for the day it finished."""

    key: int
    """Names the session in the journal.

    Never used again, when a session of the same id is created after this one was deleted.
    """
    machine_id: str
    session_id: str
    version: int
    digest: str
    """Of its image: a session stays on the version, and so on the engine, that it started on."""
    hears_presence: bool
    created_at_ms: int
    finished_at_ms: int | None = None
    parent: str | None = None
    """The session that this one was forked from, at `forked_at`."""
    forked_at: int | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A line of a session's journal: one input, and what became of it.

    `seq` counts the inputs that were applied. One that was undone has the seq it was tried at, and
    in `attempt` how many were tried there (from 1); an applied one has attempt 0. (seq, attempt)
    orders a journal, and nothing is ever written twice there.
    """

    seq: int
    attempt: int
    kind: str
    """start, event, presence or timer"""
    input: bytes
    """JSON text, as the guest got it; it begins with [kind, seed"""
    now_ms: int
    event_id: str | None = None
    changed: bool = False
    error: tuple[str, str] | None = None
    """Code and detail. An applied input has one too when the session had finished just before it.
    """


class SavedCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A session as it was after `seq` inputs: its memory (sandbox/image.py), and what the hub knew
    of it.
    """

    seq: int
    data: bytes
    """16 bytes of digest, then zstd"""
    snapshot: bytes
    finished: bool
    timers: dict[int, int]
    """Pending timers and when they are due."""
    at_ms: int


class Settled(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one input leaves in the database."""

    key: int
    entry: Entry
    created: SessionRecord | None = None
    """With the first entry of a session."""
    timers_set: list[tuple[int, int]] = []
    tries: int = 0
    """With a timer that is set again because its turn was undone: how often that was so."""
    timers_gone: list[int] = []
    finished: bool = False
    member: tuple[str, bytes | None] | None = None
    """Who the machine was told came (with their `sender` as JSON), or left."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a session's past is kept."""

    checkpoints: int = 3
    """The newest ones."""
    checkpoint_every: int = 1_000
    """And one for every so many inputs; 0 for none."""
    journal: int = 0
    """Inputs, at least, before which entries are forgotten; 0 for none."""


class StoredSession(msgspec.Struct, frozen=True, kw_only=True):
    """What the database knows of a session: enough to go on with it."""

    record: SessionRecord
    seq: int
    attempts: int
    """Inputs that were undone since the last one that was applied."""
    checkpoint: SavedCheckpoint | None
    tail: list[Entry]
    """What was applied since the checkpoint."""
    timers: dict[int, int]
    tries: dict[int, int]
    """Of timers whose turn was undone before."""
    receipts: list[Entry]
    """The last entries that have an event id, oldest first."""
    members: dict[str, bytes] = {}
    """Whom its machine believes to be there, and their `sender`."""
