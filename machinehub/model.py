"""The words everybody uses: machines, versions, sessions and what is kept of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import msgspec

from machinehub.effect import Conclusion, Effect
from machinehub.ids import (
    Digest,
    EventId,
    MachineId,
    MemberId,
    ProjectId,
    Seq,
    SessionId,
    SessionKey,
)
from machinehub.limits import PAYLOAD_EVENTS_MAX, PAYLOAD_FIELDS_MAX, PAYLOAD_TEXT_CHARS_MAX
from sandbox.protocol.formats import INPUT
from sandbox.protocol.ids import MODULE_ENGINE_PREFIX, EffectId, TimerId

DEFAULT_PROJECT: Final = ProjectId("default")
"""What a hub begins with."""
SCOPES: Final = ("deploy", "read", "operate", "admin")
"""What a token may be for: deploying and activating versions; looking at machines, sessions, their
past and their logs; changing and deleting those; projects and their tokens.
"""


class Quotas(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a project may have at most; None for as much as the hub allows."""

    machines: Annotated[int, msgspec.Meta(ge=0, le=10**9)] | None = None
    versions: Annotated[int, msgspec.Meta(ge=0, le=10**9)] | None = None
    """Of all its machines together."""
    sessions: Annotated[int, msgspec.Meta(ge=0, le=10**12)] | None = None
    live_sessions: Annotated[int, msgspec.Meta(ge=0, le=10**9)] | None = None
    """In memory at once."""
    database_bytes: Annotated[int, msgspec.Meta(ge=0, le=10**15)] | None = None
    events_per_s: Annotated[int, msgspec.Meta(ge=1, le=10**9)] | None = None
    deployments_per_s: Annotated[float, msgspec.Meta(gt=0, le=10**6)] | None = None
    connections: Annotated[int, msgspec.Meta(ge=0, le=10**9)] | None = None
    egress: (
        Annotated[list[Annotated[str, msgspec.Meta(max_length=500)]], msgspec.Meta(max_length=100)]
        | None
    ) = None
    """Where its machines may send requests, as in their own rules (`egress/rules.py`)."""


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """How many of each a project has in the database."""

    machines: int
    versions: int
    sessions: int


class Project(msgspec.Struct, frozen=True, kw_only=True):
    """What machines and tokens belong to."""

    id: ProjectId
    name: str
    created_at_ms: int
    quotas: Quotas = Quotas()


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    id: MachineId
    name: str
    created_at_ms: int
    active_version: int
    """The version that new sessions get; 0 before the first activation."""
    project: ProjectId = DEFAULT_PROJECT
    private: bool = False
    """Whether its sessions are for holders of connect tokens alone."""


class MachineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What belongs to a version besides its files: the table `[machine]` of machinehub.toml."""

    on_error: Literal["reject", "stop"] = "reject"
    """What an action that throws does: undo its turn, or end the session in an error as XState
    does.
    """
    transitions: Literal["compiled", "library"] = "compiled"
    """How events are turned into states: by tables that are made when the machine is deployed, or
    by XState's own functions, which compute it for each event. Both do the same.
    """


PayloadText = Annotated[str, msgspec.Meta(max_length=PAYLOAD_TEXT_CHARS_MAX)]


class PayloadField(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A member of an event's payload, for the page's forms."""

    name: PayloadText
    kind: Literal["text", "number", "boolean", "choice", "json"]
    optional: bool = False
    values: Annotated[
        list[PayloadText | int | float | bool | None], msgspec.Meta(max_length=PAYLOAD_FIELDS_MAX)
    ] = []
    """Of a choice."""


Payloads = Annotated[
    dict[PayloadText, Annotated[list[PayloadField], msgspec.Meta(max_length=PAYLOAD_FIELDS_MAX)]],
    msgspec.Meta(max_length=PAYLOAD_EVENTS_MAX),
]
"""By the event's type."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """Immutable: the same number is the same content for ever."""

    machine_id: MachineId
    number: int
    digest: Digest
    engine: str
    entry: str
    message: str
    created_at_ms: int
    definition: dict[str, Any]
    """States, transitions, events (guest/prelude/machine.ts says the shape), the version's own
    limits, and the warnings of its build.
    """

    @property
    def shown(self) -> dict[str, Any]:
        """The definition, as everybody who may use the machine may see it: with what sessions begin
        with only where no view says who sees what of them.
        """
        hidden = {"warnings", "cron", "egress", "webhooks"} | (
            {"context"} if self.definition.get("view") else set()
        )
        return {key: value for key, value in self.definition.items() if key not in hidden}

    @property
    def warnings(self) -> list[str]:
        """What the build had to say, for who deployed it: the files are theirs."""
        return [place_and_text(each) for each in self.definition.get("warnings", [])]


def place_and_text(said: dict[str, Any]) -> str:
    """`file:line:column: message` of a build's error or warning, as far as the place is known."""
    keys = ("file", "line", "column")
    place = ":".join(str(said[key]) for key in keys if said.get(key) is not None)
    return f"{place}: {said['message']}" if place else said["message"]


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """A version's image, as workers take it. Both contents are zstd-compressed."""

    image: bytes
    engine: str
    """Digest of the engine that it was frozen under."""
    engine_code: bytes = b""
    """That engine, when it is not the one that workers have anyway; of a module its machine code.
    """
    template: str = ""
    """Digest of what it is compressed against; "" for nothing."""
    template_code: bytes = b""
    """That template, when it is not the one that workers have anyway."""

    @property
    def is_module(self) -> bool:
        """Whether the machine came as a WASM module (docs/guest-abi.md): it lives on workers of its
        own kind.
        """
        return self.engine.startswith(MODULE_ENGINE_PREFIX)


class Token(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    name: str
    created_at_ms: int
    revoked_at_ms: int | None
    project: ProjectId | None = None
    """None for the whole hub."""
    scopes: frozenset[str] = frozenset(SCOPES)
    expires_at_ms: int | None = None
    used_at_ms: int | None = None
    """When it was last shown, to a minute or so."""
    publishable: str | None = None
    """The key itself, of one for browsers (`mhp_...`), which opens and uses sessions and does
    nothing else.
    """
    origins: tuple[str, ...] = ()
    """Of a publishable one: the sites whose pages may show it; none for all."""


class JwtKey(msgspec.Struct, frozen=True, kw_only=True):
    """By which a project believes connect tokens: a secret for HS256, or the URL of public keys."""

    kid: str
    project: ProjectId
    name: str
    created_at_ms: int
    secret: bytes | None = None
    jwks_url: str | None = None
    issuer: str | None = None
    audience: str | None = None
    revoked_at_ms: int | None = None


class Revocation(msgspec.Struct, frozen=True, kw_only=True):
    """Connect tokens that were issued before then are not valid for this user, or this session."""

    id: int
    project: ProjectId
    at_ms: int
    sub: str | None = None
    machine_id: MachineId | None = None
    session_id: SessionId | None = None


class AuditLine(msgspec.Struct, frozen=True, kw_only=True):
    """Who did what."""

    id: int
    at_ms: int
    who: str
    what: str
    project: ProjectId | None
    """None for what concerns the whole hub."""


class SessionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What never changes about a session, but for the day it finished."""

    key: SessionKey
    machine_id: MachineId
    session_id: SessionId
    version: int
    digest: Digest
    """Of its image: a session stays on the version, and so on the engine, that it started on."""
    hears_presence: bool
    """Whether its machine handles `presence.joined` or `presence.left`."""
    created_at_ms: int
    finished_at_ms: int | None = None
    parent: SessionId | None = None
    """The session that this one was forked from, at `forked_at`."""
    forked_at: Seq | None = None
    compacted_to: Seq | None = None
    """Inputs up to this one may be missing from the journal: they were pruned or compacted."""


class Kind(StrEnum):
    """Why an input came."""

    START = "start"
    EVENT = "event"
    PRESENCE = "presence"
    TIMER = "timer"
    ANSWER = "answer"
    """To a request of the machine."""


class Fault(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Why an input was undone or refused: a code of docs/errors.md, and a sentence for a person.
    `reason` is what is wrong with the database, where that is why.
    """

    code: str
    detail: str
    reason: str | None = None


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A line of a session's journal: one input, and what became of it.

    `seq` counts the inputs that were applied. One that was undone has the seq it was tried at, and
    in `attempt` how many were tried there (from 1); an applied one has attempt 0. (seq, attempt)
    orders a journal, and nothing is ever written twice there.
    """

    seq: Seq
    attempt: int
    kind: Kind
    input: bytes
    """JSON text, as the guest got it (`sandbox/protocol/inputs.py`)."""
    now_ms: int
    """The session's time when it came: milliseconds since 1970."""
    event_id: EventId | None = None
    changed: bool = False
    """Whether the public snapshot changed."""
    error: Fault | None = None
    """Why the input was undone or refused; None for an input that was applied."""
    format: int = INPUT
    """Which version of `input` it is (`sandbox/protocol/formats.py`)."""
    taken: bool | None = None
    """Whether a transition of the machine took the event; None for what is no event, and where the
    guest did not say.
    """
    cause: str = ""
    """Of a timer or an answer: the type of the event that the machine got of it (`xstate.after...`,
    or one that it raised with a delay), where the guest says that.
    """


class Armed(msgspec.Struct, frozen=True, gc=False):
    """A timer that waits."""

    due_at_ms: int
    tries: int = 0
    """How often its turn was undone."""


class MemberChange(msgspec.Struct, frozen=True, gc=False):
    """Somebody of whose coming (with their `sender` as JSON) or leaving (None) a machine was
    told.
    """

    member: MemberId
    sender: bytes | None


class Changes(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one turn changes of a session besides its memory, and what the database must therefore
    store: pending timers, one member that the machine was told of, requests to the world, and the
    end of the session.

    `apply_to` applies the timers in memory and in replays; `_write_changes` in
    `machinehub/store/sessions.py` writes the same changes to the database.
    """

    timers: dict[TimerId, Armed | None] = {}
    """What each timer that the turn touched is now; None for gone."""
    member: MemberChange | None = None
    effects: dict[EffectId, Effect | Conclusion] = {}
    """What the turn asks of the world, and how requests ended that were asked before."""
    finished: bool = False
    """Whether the machine ended with this turn: all its timers and members go, and nothing that it
    asked for is waited for.
    """

    @property
    def armed(self) -> list[tuple[TimerId, int]]:
        """(timer, due_at_ms) of what waits from now on."""
        return [
            (timer, armed.due_at_ms) for timer, armed in self.timers.items() if armed is not None
        ]

    def apply_to(self, timers: dict[TimerId, Armed]) -> None:
        """Folds the turn into a session's pending timers."""
        for timer, armed in self.timers.items():
            if armed is None:
                timers.pop(timer, None)
            else:
                timers[timer] = armed
        if self.finished:
            timers.clear()


NO_CHANGES: Final = Changes()


class SavedCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A session as it was after `seq` inputs: its memory, and what the hub knew of it."""

    seq: Seq
    data: bytes
    """See sandbox/checkpoint.py; `sandbox.protocol.formats.checkpoint_digest` reads its digest."""
    snapshot: bytes
    """The public snapshot, as JSON."""
    finished: bool
    timers: dict[TimerId, int]
    """Pending timers and when they are due."""
    at_ms: int


class TurnWrite(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one turn writes into the database."""

    key: SessionKey
    entry: Entry
    changes: Changes = NO_CHANGES
    created: SessionRecord | None = None
    """With the first entry of a session."""


class CheckpointWrite(msgspec.Struct, frozen=True):
    """A checkpoint of one session, to be kept."""

    key: SessionKey
    checkpoint: SavedCheckpoint
    compacts: bool = False
    """Whether inputs of timers behind the checkpoint before it are not kept any longer."""


class Successor(msgspec.Struct, frozen=True):
    """A session that takes another's place and name: as it is after its first input."""

    record: SessionRecord
    entry: Entry
    checkpoint: SavedCheckpoint
    effects: list[Effect] = []
    """What it asked for in that input."""


class SessionDelete(msgspec.Struct, frozen=True):
    """All that is kept of one session goes; in the same transaction its successor comes, if there
    is one.
    """

    key: SessionKey
    successor: Successor | None = None


class Release(msgspec.Struct, frozen=True):
    """A node lets go of a session: any other may claim it. One that was claimed again since then,
    by whomever, stays as it is.
    """

    key: SessionKey
    claim: int


Write = TurnWrite | CheckpointWrite | SessionDelete | Release


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a session's history is kept."""

    checkpoints: int = 3
    """The newest ones."""
    checkpoint_every: int = 1_000
    """And one for every so many inputs; 0 for none."""
    journal: int = 0
    """Inputs, at least, before which entries are forgotten; 0 for none."""


class StoredSession(msgspec.Struct, frozen=True, kw_only=True):
    """What the database knows of a session: enough to go on with it."""

    record: SessionRecord
    seq: Seq
    attempts: int
    """Inputs that were undone since the last one that was applied."""
    checkpoint: SavedCheckpoint | None
    tail: list[Entry]
    """What was applied since the checkpoint."""
    timers: dict[TimerId, Armed]
    receipts: list[Entry]
    """The last entries that have an event id, oldest first."""
    members: dict[MemberId, bytes] = {}
    """Who its machine was told is there, and their `sender`."""
    effects: dict[EffectId, int] = {}
    """Requests that wait for their answers, and their depths."""
    claim: int = 0
    """How often it was claimed, by this node the last time; 0 where a database is one hub's."""
    is_taken_over: bool = False
    """Whether another node had it before."""

    @property
    def last_ms(self) -> int:
        """When its last input came, as far as that is known."""
        since = self.checkpoint.at_ms if self.checkpoint else self.record.created_at_ms
        return self.tail[-1].now_ms if self.tail else since
