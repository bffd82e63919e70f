"""What Stately's clients call things, and what that is here.

A client connects to the room `<actorId>-<sessionId>`. Its `actorId` comes from a generated file
(`config.py` answers it), and is opaque to it: here it is `<machine>@<version>`, so that a client
runs the code of the version that its session runs. Clients do not encode a room's name in the URL,
so only its machine is read there; which session is meant says the first frame.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from machinehub.errors import BadRequest, NotFound
from machinehub.ids import MachineId
from machinehub.session.port import Address

if TYPE_CHECKING:
    from machinehub.ids import SessionId

PARTY: Final = "main"
_ACTOR: Final = re.compile(r"([A-Za-z0-9]{6,32})(?:@([1-9][0-9]{0,8}))?")
_ROOM: Final = re.compile(
    rb"/(?:party|parties/([^/]+))/([A-Za-z0-9]{6,32})(?:(?:@|%40)[1-9][0-9]{0,8})?-(.*)", re.DOTALL
)


class Actor(NamedTuple):
    """What a generated file is about."""

    machine: MachineId
    version: int | None
    """None in one that was written by hand: the active one."""

    def address(self, session: SessionId) -> Address:
        return Address(self.machine, session, self.version)


def actor_id(machine: MachineId, version: int) -> str:
    return f"{machine}@{version}"


def read_actor(text: str) -> Actor:
    """Raises `BadRequest`."""
    found = _ACTOR.fullmatch(text)
    if found is None:
        raise BadRequest(
            "bad_actor_id",
            "the actorId is none of this hub's: generate the file again (xstate sky --refetch)",
        )
    return Actor(MachineId(found[1]), int(found[2]) if found[2] else None)


def is_room(path: bytes) -> bool:
    """Whether a path is one that PartySocket makes."""
    return path.startswith((b"/party/", b"/parties/"))


def machine_of(path: bytes) -> MachineId:
    """The machine in a room's path. Raises `NotFound`."""
    found = _ROOM.fullmatch(path)
    if found is None or found[1] not in (None, PARTY.encode()):
        raise NotFound("not_found", "a room is at /party/{actorId}-{sessionId}")
    return MachineId(found[2].decode())


def is_early(path: bytes) -> bool:
    """Whether it is the path that only early clients use, whose XState may be 5.0.0-beta.37."""
    return path.startswith(b"/party/")
