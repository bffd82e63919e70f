"""What a per-machine URL means: `/{machine}[@version][/{session}[/{action}]]`, and
`/{machine}/-/...`.

Read from the raw path, since a session's id may hold an encoded slash. What stands below `/-/`
belongs to the machine: no session's id begins with a dash.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from machinehub.errors import BadRequest, NotFound
from machinehub.ids import MachineId, SessionId
from machinehub.session.port import Address

MACHINE_LEVEL: Final = "-"
_MACHINE: Final = re.compile(r"([A-Za-z0-9]{6,32})(?:@([0-9]{1,9}))?")
_PARTS_MAX: Final = 3


@dataclass(frozen=True, slots=True)
class MachineUrl:
    machine: MachineId
    version: int | None = None
    session: SessionId | None = None
    action: str | None = None

    @property
    def address(self) -> Address:
        """Of the session that is named. Raises `BadRequest` when none is."""
        if self.session is None:
            raise BadRequest("no_session", "events go to /{machine}/{session}")
        return Address(self.machine, self.session, self.version)


def read_url(raw_path: bytes, *, session_chars_max: int) -> MachineUrl:
    """Raises `NotFound` for a path that names no machine, `BadRequest` for a session id that cannot
    be.
    """
    before, *parts = raw_path.split(b"/")
    found = None if before or not parts else _MACHINE.fullmatch(decode_part(parts[0]))
    if found is None:
        raise NotFound("no_such_machine", "no machine has this URL")
    machine = MachineId(found[1])
    version = int(found[2]) if found[2] else None
    if len(parts) == 1:
        return MachineUrl(machine, version)
    first = decode_part(parts[1])
    if first == MACHINE_LEVEL:
        raise NotFound("not_found", "the machine has nothing of its own at this URL")
    if len(parts) > _PARTS_MAX:
        raise NotFound("no_such_machine", "no machine has this URL")
    session = check_session_id(first, chars_max=session_chars_max)
    action = decode_part(parts[2]) if len(parts) == _PARTS_MAX else None
    return MachineUrl(machine, version, session, action)


def check_session_id(text: str, *, chars_max: int) -> SessionId:
    """The id that a session may be given. Raises `BadRequest`."""
    if not 1 <= len(text) <= chars_max:
        raise BadRequest(
            "invalid_session_id",
            f"a session id is 1 to {chars_max} characters of any text, percent-encoded",
        )
    if text.startswith(MACHINE_LEVEL):
        raise BadRequest("invalid_session_id", "a session id does not begin with a dash")
    return SessionId(text)


def decode_part(part: bytes) -> str:
    """One segment of a raw path. Raises `BadRequest`."""
    try:
        return unquote_to_bytes(part).decode()
    except UnicodeDecodeError:
        raise BadRequest("invalid_session_id", "the path is not percent-encoded UTF-8") from None
