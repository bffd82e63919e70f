"""Checks what a worker says about a session.

A worker may have been taken over, so every answer is untrusted. Form and size are checked here;
whether the answer fits the question is checked in `workers/process.py` and `session.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.model import Kind
from sandbox.protocol.formats import OUTBOX
from sandbox.protocol.outbox import decode_outbox

if TYPE_CHECKING:
    from collections.abc import Collection

    from sandbox.protocol.ids import EffectId
    from sandbox.protocol.outbox import Outbox

UNCHANGED: Final = b"null"
OUR_FAULTS: Final = frozenset({"unavailable", "session_damaged", "image_damaged"})
REFUSALS: Final = OUR_FAULTS | {
    "machine_error",
    "cpu_exceeded",
    "memory_exceeded",
    "stack_exceeded",
    "jobs_exceeded",
    "timers_exceeded",
    "actors_exceeded",
    "emitted_exceeded",
    "effects_exceeded",
    "snapshot_not_json",
    "snapshot_too_large",
    "snapshot_too_deep",
    "invalid_event",
    "unknown_input",
    "event_too_large",
    "forbidden",
    "access_failed",
}
"""Why a worker may say that it undid a turn: each is in the docs, and the label of a metric."""
OUTBOX_BYTES_MAX: Final = 2 * 1024 * 1024
"""The largest outbox of a turn, and the largest snapshot after a replay, in bytes.

The outbox of a script fits into the guest's I/O area of 1 MiB. The worker encodes the outbox of a
module again (`sandbox/module.py`), which may make it larger.
"""
CHECKPOINT_SLACK_BYTES: Final = 64 * 1024
"""What a checkpoint may take beside the memory, where nothing of it can be compressed."""
TIMERS_OF_ANY_VERSION: Final = 100_000
"""What the highest limit that a hub ever had is believed to be below."""
AWAITED: Final = (Kind.TIMER, Kind.ANSWER)
"""What a machine waited for."""
CAUSE_CHARS_MAX: Final = 300
"""Of the type of the event that it got of it: what is over is cut."""
EFFECTS_OF_ANY_VERSION: Final = 10_000
"""The same of requests."""
NUMBER_MAX: Final = 2**53
"""Above it a guest's numbers are not whole ones, and a database may not take them."""

_check_json = msgspec.json.Decoder(msgspec.Raw).decode


class BrokenWorker(Exception):
    """A worker answered what nobody asked, or not in the protocol's words."""


def read_outbox(result: bytes, *, snapshot_bytes_max: int, begins: bool) -> Outbox:
    """The outbox of a turn; the first one of a session has a snapshot. Raises `BrokenWorker`."""
    if len(result) > OUTBOX_BYTES_MAX:
        raise BrokenWorker("more than a turn may leave behind")
    try:
        outbox = decode_outbox(result)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise BrokenWorker(str(error)) from error
    if not 1 <= outbox.format <= OUTBOX:
        raise BrokenWorker(f"an outbox of format {outbox.format}")
    snapshot = bytes(outbox.snapshot)
    if not snapshot.startswith(b"{") and (snapshot != UNCHANGED or begins):
        raise BrokenWorker("a snapshot that is no object")
    if len(snapshot) > snapshot_bytes_max:
        raise BrokenWorker("more than a turn may leave behind")
    return outbox


def fate_of(outbox: Outbox, kind: Kind) -> tuple[bool | None, str]:
    """`taken` and `cause` of a journal's line (`model.Entry`), where the input can have them."""
    taken = outbox.taken if kind in (Kind.EVENT, Kind.PRESENCE) else None
    return taken, outbox.cause[:CAUSE_CHARS_MAX] if kind in AWAITED else ""


def check_timers(outbox: Outbox, *, waiting: int, timers_max: int) -> None:
    """`waiting` are those that the session has; `timers_max` is the hub's limit. A version that was
    deployed under a higher one keeps that, which the hub does not know: it only notices what no
    guest would do. Raises `BrokenWorker`.
    """
    if not (outbox.timers_set or outbox.timers_cancelled):
        return
    if waiting + len(outbox.timers_set) - len(outbox.timers_cancelled) > max(
        timers_max * 2, TIMERS_OF_ANY_VERSION
    ):
        raise BrokenWorker("more timers than a guest can set")
    numbers = [*outbox.timers_cancelled, *(number for pair in outbox.timers_set for number in pair)]
    if not 0 <= min(numbers) <= max(numbers) <= NUMBER_MAX:
        raise BrokenWorker("a timer with a number that a guest cannot count to")


def check_effects(outbox: Outbox, *, waiting: Collection[EffectId], effects_max: int) -> None:
    """`waiting` are the requests that the session has; `effects_max` is the hub's limit. As
    `check_timers`: raises `BrokenWorker` for what no guest would do.
    """
    if not (outbox.requests or outbox.withdrawn):
        return
    asked = [effect for effect, _ in outbox.requests]
    if len(waiting) + len(asked) - len(outbox.withdrawn) > max(
        effects_max * 2, EFFECTS_OF_ANY_VERSION
    ):
        raise BrokenWorker("more requests than a guest can make")
    numbers = [*asked, *outbox.withdrawn]
    if not 0 <= min(numbers) <= max(numbers) <= NUMBER_MAX:
        raise BrokenWorker("a request with a number that a guest cannot count to")
    if len(set(asked)) < len(asked) or not set(asked).isdisjoint(waiting):
        raise BrokenWorker("two requests of one number")


def check_replayed(snapshot: bytes) -> None:
    """What a replay came to is a snapshot, or null. Raises `BrokenWorker`."""
    try:
        _check_json(snapshot)
        snapshot.decode()
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BrokenWorker(str(error)) from error
    if len(snapshot) > OUTBOX_BYTES_MAX or (
        snapshot != UNCHANGED and not snapshot.startswith(b"{")
    ):
        raise BrokenWorker("a snapshot that is no object, or too large")


def check_checkpoint(checkpoint: bytes, *, memory_bytes_max: int) -> None:
    """Raises `BrokenWorker`."""
    if len(checkpoint) > memory_bytes_max + CHECKPOINT_SLACK_BYTES:
        raise BrokenWorker("a checkpoint that is larger than the session may be")
