"""The messages between the hub and a sandbox worker.

The hub numbers slots and tickets; a worker answers every message that has a ticket exactly once.
Both sides check sizes and types: the hub must assume that a worker has been taken over.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from sandbox.protocol.access import Rule
from sandbox.protocol.ids import Slot, Ticket, TimerId
from sandbox.protocol.limits import GuestLimits, OwnLimits

_Few = msgspec.Meta(max_length=256)
_Many = msgspec.Meta(max_length=100_000)
_Code = Annotated[str, msgspec.Meta(max_length=100)]
_Text = Annotated[str, msgspec.Meta(max_length=8_192)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""What a worker may say at most. Lengths are looked at before their content is read."""


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages; on the wire an array whose first element is the tag."""


class Cost(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a turn took: CPU of the worker's thread, the guest's memory after it, and wasmtime's
    fuel where the hub counts it (else 0).
    """

    cpu_us: _Count
    memory_bytes: _Count
    fuel: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0

    def as_json(self) -> dict[str, int]:
        """What clients and logs are told: fuel only where the hub counts it."""
        shown = {"cpu_us": self.cpu_us, "memory_bytes": self.memory_bytes}
        return shown | ({"fuel": self.fuel} if self.fuel else {})


NO_COST: Final = Cost(0, 0)


# --- hub to worker --------------------------------------------------------------------------------


class LoadImage(Message, tag=0, frozen=True):
    """Keep this image (zstd-compressed) under its digest. `template` is the digest of what it was
    compressed against, "" for nothing: the worker's own, or one of a `LoadTemplate` before.
    """

    digest: str
    image: bytes
    template: str = ""


class Open(Message, tag=1, frozen=True):
    """Thaw a session: image, then checkpoint if there is one. `Replay` brings it on from there."""

    session: Slot
    ticket: Ticket
    digest: str
    memory_bytes_max: int
    snapshot_bytes_max: int
    emitted_bytes_max: int
    checkpoint: bytes | None
    snapshot: bytes = b"null"
    """The public snapshot (JSON) of that moment, by which it is decided who may send what; null
    where the session has not begun.
    """


class Step(Message, tag=2, frozen=True):
    """One input (JSON text) for a session, with a budget of `cpu_ms`."""

    session: Slot
    ticket: Ticket
    input: bytes
    now_ms: int
    cpu_ms: int


class Checkpoint(Message, tag=3, frozen=True):
    """Freeze the session as it is now; the answer is a `Done` with the checkpoint, or `Failed`."""

    session: Slot
    ticket: Ticket


class Close(Message, tag=4, frozen=True):
    session: Slot


class Build(Message, tag=5, frozen=True):
    """Bundle and freeze an upload.

    `on_error` is "reject" or "stop": what an action that throws does. `transitions` is "compiled"
    or "library": whether events run from tables or through XState's own functions.
    """

    ticket: Ticket
    entry: str
    files: dict[str, str]
    on_error: str
    transitions: str
    cpu_ms: int
    memory_bytes_max: int
    bundle_bytes_max: int
    limits: GuestLimits = GuestLimits()
    own: OwnLimits = OwnLimits()
    rules: list[Rule] = []


class Inputs(Message, tag=6, frozen=True):
    """Which files below `root` make up a bundle of `entry`?

    Asked by the CLI of a worker of its own, never by a hub.
    """

    ticket: Ticket
    root: str
    entry: str


class Forget(Message, tag=7, frozen=True):
    """Drop an image that no session here needs."""

    digest: str


class Replay(Message, tag=8, frozen=True):
    """Inputs that were accepted before, as (input, now_ms): the session goes through them again,
    and nobody is told.

    It stops once it has taken `cpu_us`; 0 for all of them.
    """

    session: Slot
    ticket: Ticket
    inputs: list[tuple[bytes, int]]
    cpu_us: int


class LoadEngine(Message, tag=9, frozen=True):
    """An engine (zstd-compressed WASM) other than the worker's own, for images that were frozen
    under it.

    For a worker of modules it is a module's machine code, as a compiler made it (`ModuleBuilt`,
    `Compiled`).
    """

    digest: str
    engine: bytes


class LoadTemplate(Message, tag=14, frozen=True):
    """A template (zstd-compressed) other than the worker's own, for images that were compressed
    against it.
    """

    digest: str
    template: bytes


class GiveEngine(Message, tag=10, frozen=True):
    """Which engine and which template are new images' own? The hub keeps each for as long as there
    are images of it.
    """

    ticket: Ticket


class BuildModule(Message, tag=11, frozen=True):
    """Check, compile and freeze a stranger's module (docs/guest-abi.md).

    `name` is what its definition is called when it has none.
    """

    ticket: Ticket
    module: bytes
    name: str
    cpu_ms: int
    memory_bytes_max: int
    limits: GuestLimits = GuestLimits()
    own: OwnLimits = OwnLimits()
    module_bytes_max: int = 1024 * 1024
    rules: list[Rule] = []


class View(Message, tag=15, frozen=True):
    """What do members see of a snapshot? `question` is text (guest/prelude/judge.ts), asked of an
    instance of the image that no session has. `session` only names the question.
    """

    session: Slot
    ticket: Ticket
    digest: str
    question: bytes
    now_ms: int
    cpu_ms: int
    memory_bytes_max: int


class Compile(Message, tag=12, frozen=True):
    """Compile the code of a module that was built before (`ModuleBuilt.code`)."""

    ticket: Ticket
    code: bytes


# --- worker to hub --------------------------------------------------------------------------------


class Ready(Message, tag=32, frozen=True):
    """The worker has loaded its engine, the base image and its template, of these digests."""

    engine: str
    base: str
    walls: Annotated[list[tuple[_Code, bool, _Text]], _Few] = []
    """What stands around the worker (sandbox/walls.py): name, whether it stands, what it is."""
    frames: int = 1
    """Which version of these messages it speaks (`formats.FRAMES`): a hub takes its own alone."""
    template: str = ""


class Progress(Message, tag=33, frozen=True):
    """The worker is about to compile this part; it is ready when all are."""

    what: _Code


class Done(Message, tag=34, frozen=True):
    """A ticket's result: an outbox, a checkpoint, what is seen (JSON), or nothing for `Open`."""

    session: Slot
    ticket: Ticket
    result: bytes
    cost: Cost = NO_COST


class Failed(Message, tag=35, frozen=True):
    """A ticket that came to nothing.

    After a failed `Step` the session is as it was before it, unless the code is `session_lost`:
    then it is gone from this worker and must be opened again.
    """

    session: Slot
    ticket: Ticket
    code: _Code
    message: _Text
    at: _Text | None
    cost: Cost = NO_COST


class Frozen(Message, tag=39, frozen=True):
    """A checkpoint that the worker took by itself, of the session as it was after its last
    `Done`.
    """

    session: Slot
    checkpoint: bytes


class Replayed(Message, tag=40, frozen=True):
    """What a `Replay` came to. `snapshot` is JSON, null when none of the inputs changed it."""

    session: Slot
    ticket: Ticket
    snapshot: bytes
    finished: bool
    timers: Annotated[
        list[
            tuple[int, Annotated[list[tuple[TimerId, int]], _Many], Annotated[list[TimerId], _Many]]
        ],
        _Many,
    ]
    """(position of the input, timers_set, timers_cancelled), where there were any"""
    count: int
    """How many of the inputs were replayed."""


class EngineGiven(Message, tag=41, frozen=True):
    ticket: Ticket
    digest: str
    engine: bytes
    """zstd-compressed"""
    template_digest: str = ""
    template: bytes = b""
    """zstd-compressed"""


class BuildMessage(msgspec.Struct, frozen=True):
    message: _Text
    file: _Text | None = None
    line: int | None = None
    column: int | None = None


class Built(Message, tag=36, frozen=True):
    ticket: Ticket
    image: bytes
    """zstd-compressed, against the forge's own template"""
    definition: bytes
    """JSON"""
    warnings: Annotated[list[BuildMessage], _Few]
    bundle_us: int
    freeze_us: int


class ModuleBuilt(Message, tag=43, frozen=True):
    """What became of a module. All three parts are zstd-compressed."""

    ticket: Ticket
    image: bytes
    code: bytes
    """The module without its data: WASM"""
    compiled: bytes
    """Machine code, for `LoadEngine`"""
    engine: str
    """Digest of the code."""
    definition: bytes
    """JSON"""
    check_us: int
    compile_us: int


class Compiled(Message, tag=44, frozen=True):
    ticket: Ticket
    compiled: bytes


class BuildFailed(Message, tag=37, frozen=True):
    ticket: Ticket
    code: _Code
    errors: Annotated[list[BuildMessage], _Few]


class InputsFound(Message, tag=38, frozen=True):
    ticket: Ticket
    files: Annotated[list[_Text], _Many]


class Said(Message, tag=42, frozen=True):
    """Why the worker ends: it has nowhere else to say it."""

    text: _Text


ToWorker = (
    LoadImage
    | LoadEngine
    | LoadTemplate
    | Open
    | Replay
    | Step
    | Checkpoint
    | Close
    | Build
    | Inputs
    | Forget
    | GiveEngine
    | BuildModule
    | Compile
    | View
)
ToHub = (
    Ready
    | Progress
    | Said
    | Done
    | Failed
    | Frozen
    | Replayed
    | Built
    | BuildFailed
    | InputsFound
    | EngineGiven
    | ModuleBuilt
    | Compiled
)


Question = (
    Open | Replay | Step | Checkpoint | View | Build | Inputs | GiveEngine | BuildModule | Compile
)
_ANSWERS: Final[dict[type, tuple[type, ...]]] = {
    Open: (Done, Failed),
    Step: (Done, Failed),
    Checkpoint: (Done, Failed),
    View: (Done, Failed),
    Replay: (Replayed, Failed),
    Build: (Built, BuildFailed),
    Inputs: (InputsFound, BuildFailed),
    GiveEngine: (EngineGiven,),
    BuildModule: (ModuleBuilt, BuildFailed),
    Compile: (Compiled, BuildFailed),
}


def answers(question: Question, message: ToHub) -> bool:
    """Whether `message` is an answer to that very question, by kind, ticket and session."""
    if not isinstance(message, _ANSWERS[type(question)]):
        return False
    return getattr(message, "ticket", None) == question.ticket and getattr(
        message, "session", None
    ) == getattr(question, "session", None)
