"""What a per-machine URL means: `/{machine}[@version][/{session}[/wait or /presence]]`.

Read from the raw path, since a session's name may hold an encoded slash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from machinehub.errors import BadRequest, NotFound

_MACHINE: Final = re.compile(r"([A-Za-z0-9]{6,32})(?:@([0-9]{1,9}))?")


@dataclass(frozen=True, slots=True)
class Address:
    machine: str
    version: int | None = None
    session: str | None = None
    action: str | None = None


def read_address(raw_path: bytes, *, session_chars_max: int) -> Address:
    """Raises `NotFound` for a path that names no machine, `BadRequest` for a session id that cannot
    be.
    """
    before, *parts = raw_path.split(b"/")
    found = None if before or not parts else _MACHINE.fullmatch(decode_part(parts[0]))
    if found is None or len(parts) > 3:
        raise NotFound("no_such_machine", "no machine has this URL")
    version = int(found[2]) if found[2] else None
    if len(parts) == 1:
        return Address(found[1], version)
    session = decode_part(parts[1])
    check_session_id(session, chars_max=session_chars_max)
    return Address(found[1], version, session, decode_part(parts[2]) if len(parts) == 3 else None)


def check_session_id(session: str, *, chars_max: int) -> None:
    """Raises `BadRequest`."""
    if not 1 <= len(session) <= chars_max:
        raise BadRequest(
            "invalid_session_id",
            f"a session id is 1 to {chars_max} characters of any text, percent-encoded",
        )


def decode_part(part: bytes) -> str:
    """One segment of a raw path. Raises `BadRequest`."""
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise BadRequest("invalid_session_id", "the path is not percent-encoded UTF-8") from None
