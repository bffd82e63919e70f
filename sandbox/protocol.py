"""The frames between the hub and a sandbox worker.

The only module of `sandbox` that `machinehub` imports.

A frame is a four-byte little-endian length and a MessagePack list of messages: batches in both
directions, so that one system call carries the turns of many sessions. The hub numbers sessions and
tickets; a worker answers every message that has a ticket exactly once. Both sides check sizes and
types: the hub must assume that a worker has been taken over.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, Generic, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

FRAME_BYTES_WISH: Final = 8 * 1024 * 1024
"""A batch above it is sent in parts: a hundred sessions that are thawed at once bring their
checkpoints along.
"""
MESSAGES_MAX: Final = 4_096
"""Of one frame to the hub; a worker sends a few dozen at most."""
FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
"""Above this a peer is broken or hostile. An image is about 1.5 MiB, an upload at most a few."""


_Few = msgspec.Meta(max_length=256)
_Many = msgspec.Meta(max_length=100_000)
_Code = Annotated[str, msgspec.Meta(max_length=100)]
_Text = Annotated[str, msgspec.Meta(max_length=8_192)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
"""What a worker may say at most. Lengths are looked at before their content is read."""


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Base of all messages; on the wire an array whose first element is the tag."""


class Outbox(msgspec.Struct, array_like=True, gc=False):
    """What a turn leaves behind, as guest/prelude/session.ts writes it in JSON.

    Both sides of the wall check it.
    """

    ok: int
    finished: int
    snapshot: msgspec.Raw
    emitted: list[msgspec.Raw] = []
    timers_set: list[tuple[int, int]] = []
    timers_cancelled: list[int] = []
    logs: list[tuple[str, str]] = []


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


class OwnLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a version says of itself, frozen into its image: a turn gets this or what the hub
    allows, whichever is less.
    """

    event_cpu_ms: int | None = None
    start_cpu_ms: int | None = None
    snapshot_bytes: int | None = None
    emitted_bytes: int | None = None


class Cost(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a turn took: CPU of the worker's thread, the guest's memory after it, and wasmtime's
    fuel where the hub counts it (else 0).
    """

    cpu_us: _Count
    memory_bytes: _Count
    fuel: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0


NO_COST: Final = Cost(0, 0)

_decode_outbox = msgspec.json.Decoder(Outbox).decode

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, or what began as one and never ends: whatever the text, each byte is looked at once."""
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"{}[]"))


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


def depth_of(data: bytes, *, limit: int | None = None) -> int:
    """How deep the brackets of a text nest that may be JSON, without recursion; with a `limit`, no
    further than one beyond it.
    """
    depth = deepest = 0
    for char in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
        if char in b"{[":
            depth += 1
            if depth > deepest:
                deepest = depth
                if limit is not None and deepest > limit:
                    break
        else:
            depth -= 1
    return deepest


def is_deeper_than(data: bytes, limit: int) -> bool:
    """The same question, answered at once for texts that have few brackets."""
    return data.count(b"{") + data.count(b"[") > limit and depth_of(data, limit=limit) > limit


# --- hub to worker --------------------------------------------------------------------------------


class LoadImage(Message, tag=0, frozen=True):
    """Keep this image (zstd-compressed) under its digest."""

    digest: str
    image: bytes


class Open(Message, tag=1, frozen=True):
    """Thaw a session: image, then checkpoint if there is one. `Replay` brings it on from there."""

    session: int
    ticket: int
    digest: str
    memory_bytes_max: int
    snapshot_bytes_max: int
    emitted_bytes_max: int
    checkpoint: bytes | None


class Step(Message, tag=2, frozen=True):
    """One input (JSON text) for a session, with a budget of `cpu_ms`."""

    session: int
    ticket: int
    input: bytes
    now_ms: int
    cpu_ms: int


class Checkpoint(Message, tag=3, frozen=True):
    session: int
    ticket: int


class Close(Message, tag=4, frozen=True):
    session: int


class Build(Message, tag=5, frozen=True):
    """Bundle and freeze an upload.

    `on_error` is "reject" or "stop": what an action that throws does.
    """

    ticket: int
    entry: str
    files: dict[str, str]
    on_error: str
    cpu_ms: int
    memory_bytes_max: int
    bundle_bytes_max: int
    limits: GuestLimits = GuestLimits()
    own: OwnLimits = OwnLimits()


class Inputs(Message, tag=6, frozen=True):
    """Which files below `root` make up a bundle of `entry`?

    Asked by the CLI of a worker of its own, never by a hub.
    """

    ticket: int
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

    session: int
    ticket: int
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


class GiveEngine(Message, tag=10, frozen=True):
    """Which engine is new images' own? The hub keeps each for as long as there are images of it."""

    ticket: int


class BuildModule(Message, tag=11, frozen=True):
    """Check, compile and freeze a stranger's module (docs/guest-abi.md).

    `name` is what its definition is called when it has none.
    """

    ticket: int
    module: bytes
    name: str
    cpu_ms: int
    memory_bytes_max: int
    limits: GuestLimits = GuestLimits()
    own: OwnLimits = OwnLimits()


class Compile(Message, tag=12, frozen=True):
    """Compile the code of a module that was built before (`ModuleBuilt.code`)."""

    ticket: int
    code: bytes


# --- worker to hub --------------------------------------------------------------------------------


class Ready(Message, tag=32, frozen=True):
    """The worker has loaded its engine and the base image, of these digests."""

    engine: str
    base: str
    walls: Annotated[list[tuple[_Code, bool, _Text]], _Few] = []
    """What stands around the worker (sandbox/walls.py): name, whether it stands, what it is."""


class Progress(Message, tag=33, frozen=True):
    """The worker is about to compile this part; it is ready when all are."""

    what: _Code


class Done(Message, tag=34, frozen=True):
    """A ticket's result: an outbox (JSON text), a checkpoint, or nothing for `Open`."""

    session: int
    ticket: int
    result: bytes
    cost: Cost = NO_COST


class Failed(Message, tag=35, frozen=True):
    """A ticket that came to nothing.

    After a failed `Step` the session is as it was before it, unless the code is `session_lost`:
    then it is gone from this worker and must be opened again.
    """

    session: int
    ticket: int
    code: _Code
    message: _Text
    at: _Text | None
    cost: Cost = NO_COST


class Frozen(Message, tag=39, frozen=True):
    """A checkpoint that the worker took by itself, of the session as it was after its last `Done`."""

    session: int
    checkpoint: bytes


class Replayed(Message, tag=40, frozen=True):
    """What a `Replay` came to. `snapshot` is JSON, null when none of the inputs changed it."""

    session: int
    ticket: int
    snapshot: bytes
    finished: bool
    timers: Annotated[
        list[tuple[int, Annotated[list[tuple[int, int]], _Many], Annotated[list[int], _Many]]],
        _Many,
    ]
    """(position of the input, timers_set, timers_cancelled), where there were any"""
    count: int
    """How many of the inputs were replayed."""


class EngineGiven(Message, tag=41, frozen=True):
    ticket: int
    digest: str
    engine: bytes
    """zstd-compressed"""


class BuildMessage(msgspec.Struct, frozen=True):
    message: _Text
    file: _Text | None = None
    line: int | None = None
    column: int | None = None


class Built(Message, tag=36, frozen=True):
    ticket: int
    image: bytes
    """zstd-compressed"""
    definition: bytes
    """JSON"""
    warnings: Annotated[list[_Text], _Few]
    bundle_us: int
    freeze_us: int


class ModuleBuilt(Message, tag=43, frozen=True):
    """What became of a module. All three parts are zstd-compressed."""

    ticket: int
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
    ticket: int
    compiled: bytes


class BuildFailed(Message, tag=37, frozen=True):
    ticket: int
    code: _Code
    errors: Annotated[list[BuildMessage], _Few]


class InputsFound(Message, tag=38, frozen=True):
    ticket: int
    files: Annotated[list[_Text], _Many]


class Said(Message, tag=42, frozen=True):
    """Why the worker ends: it has nowhere else to say it."""

    text: _Text


ToWorker = (
    LoadImage
    | LoadEngine
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


Question = Open | Replay | Step | Checkpoint | Build | Inputs | GiveEngine | BuildModule | Compile
_ANSWERS: Final[dict[type, tuple[type, ...]]] = {
    Open: (Done, Failed),
    Step: (Done, Failed),
    Checkpoint: (Done, Failed),
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


T = TypeVar("T")


class BadFrame(Exception):
    """The peer sent something that is no frame of this protocol."""


class FrameReader(Generic[T]):
    """Takes bytes as they arrive, gives whole batches. Raises `BadFrame`."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[list[T]]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[T]]:
        self._buffer += data
        batches: list[list[T]] = []
        at = 0
        while len(self._buffer) - at >= 4:
            size = int.from_bytes(self._buffer[at : at + 4], "little")
            if size > FRAME_BYTES_MAX:
                raise BadFrame(f"a frame of {size} bytes")
            if len(self._buffer) - at - 4 < size:
                break
            try:
                batches.append(
                    self._decoder.decode(memoryview(self._buffer)[at + 4 : at + 4 + size])
                )
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise BadFrame(str(error)) from error
            at += 4 + size
        if at:
            del self._buffer[:at]
        return batches


def to_worker_reader() -> FrameReader[ToWorker]:
    return FrameReader(msgspec.msgpack.Decoder(list[ToWorker]))


def to_hub_reader() -> FrameReader[ToHub]:
    return FrameReader(
        msgspec.msgpack.Decoder(Annotated[list[ToHub], msgspec.Meta(max_length=MESSAGES_MAX)])
    )


_encoder = msgspec.msgpack.Encoder()


def encode(messages: Sequence[ToWorker | ToHub]) -> bytes:
    """All of `messages`, in order, in one frame, or in several when it would be a large one."""
    body = _encoder.encode(messages)
    if len(body) > FRAME_BYTES_WISH and len(messages) > 1:
        half = len(messages) // 2
        return encode(messages[:half]) + encode(messages[half:])
    return len(body).to_bytes(4, "little") + body
