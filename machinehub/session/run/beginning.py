"""What sessions that begin have in common, whether they are new or started anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from machinehub.errors import TooLarge
from machinehub.model import SessionRecord

if TYPE_CHECKING:
    from machinehub.clock import Entropy
    from machinehub.ids import MachineId, SessionId
    from machinehub.session.versions import VersionTarget


def check_given(given: bytes | None, target: VersionTarget) -> None:
    """Raises `TooLarge` for an input, in bytes of JSON, that the version does not allow."""
    bytes_max = target.terms.limits.input_bytes
    if given is not None and len(given) > bytes_max:
        raise TooLarge("input_too_large", f"a session's input has at most {bytes_max} bytes here")


def beginning_record(
    machine_id: MachineId,
    session_id: SessionId,
    target: VersionTarget,
    *,
    entropy: Entropy,
    now_ms: int,
) -> SessionRecord:
    """The record, with a key of its own, of a session that begins now on the version `target`."""
    return SessionRecord(
        key=entropy.session_key(now_ms),
        machine_id=machine_id,
        session_id=session_id,
        version=target.number,
        digest=target.digest,
        hears_presence=target.hears_presence,
        created_at_ms=now_ms,
    )
