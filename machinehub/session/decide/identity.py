"""Who somebody is in a session: what the machine calls them, and how their events' ids are kept."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.clock import BASE62
from machinehub.errors import BadRequest
from machinehub.ids import EventId, MemberId

if TYPE_CHECKING:
    from machinehub import principal
    from machinehub.ids import MachineId, SessionId

OWNED: Final = "\0"
"""Stands before and behind the member in ids that are a user's own."""
CLIENT_KEY_CHARS: Final = (16, 128)
UNSHOWN: Final = f"{OWNED * 3}hub-"
"""Begins the ids that hubs give to events whose senders gave none."""


class _Sender(msgspec.Struct, omit_defaults=True):
    """What a machine is told of whoever sent an event."""

    id: str
    user: str | None = None
    roles: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    claims: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_decode_sender: Final = msgspec.json.Decoder(_Sender).decode


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is behind a connection or a request."""

    id: str
    """What `sender.id` says: the same for all connections of one user, or with one client key."""
    user: str | None = None
    """The subject of their connect token."""
    returns: bool = False
    """Whether a later connection can be known to be the same one's."""
    roles: tuple[str, ...] | None = None
    """Those that a connect token gives; None without one."""
    claims: bytes | None = None
    """What else the token says, as JSON."""
    is_hub: bool = False
    """Whether it is the hub itself, by one of its own names."""
    depth: int = 0
    """Of a machine that calls another: how many called each other, one because of the other."""

    @property
    def member(self) -> MemberId:
        return MemberId(self.id)

    def own(self, event_id: EventId | None) -> EventId | None:
        """The id of an event as it is kept: a user's ids are theirs alone, and the hub's its own,
        so that nobody can use one up for somebody else. All who came without a connect token share
        theirs, as they always did.
        """
        if event_id is None:
            return None
        if self.user is not None or self.is_hub:
            return EventId(f"{OWNED}{self.id}{OWNED}{event_id}")
        return EventId(OWNED * 2 + event_id) if event_id.startswith(OWNED) else event_id

    @property
    def sender(self) -> bytes:
        """The `sender` that the hub puts into each of their events, as JSON. The machine's `access`
        and `view` are given the same.
        """
        roles = msgspec.UNSET if self.roles is None else self.roles
        claims = msgspec.UNSET if self.claims is None else msgspec.Raw(self.claims)
        return msgspec.json.encode(_Sender(self.id, self.user, roles, claims))


def shown_id(event_id: EventId | None) -> EventId | None:
    """The id of an event that is kept so, as its sender wrote it; None where they wrote none."""
    if event_id is None or not event_id.startswith(OWNED):
        return event_id
    shown = event_id.split(OWNED, 2)[2]
    return None if shown.startswith(UNSHOWN) else EventId(shown)


def read_sender(sender: bytes) -> Identity:
    """Who is named by a `sender` that this hub wrote."""
    said = _decode_sender(sender)
    return Identity(
        said.id,
        said.user,
        roles=None if said.roles is msgspec.UNSET else said.roles,
        claims=None if said.claims is msgspec.UNSET else bytes(said.claims),
    )


def identity_of(user: principal.Member, machine_id: MachineId, session_id: SessionId) -> Identity:
    """Who the holder of a connect token is in a session: the same on all devices."""
    known = _public_id(f"{machine_id}\0{session_id}\0user\0{user.sub}")
    return Identity(known, user.sub, returns=True, roles=user.roles, claims=user.claims)


def id_of_key(key: str, machine_id: MachineId, session_id: SessionId) -> str:
    """The public id of whoever holds a client key: the key cannot be found from it, and nobody is
    recognised in another session.

    Raises `BadRequest` for a key that could be guessed.
    """
    least, most = CLIENT_KEY_CHARS
    if not least <= len(key) <= most:
        raise BadRequest(
            "invalid_client_key",
            f"a client key has {least} to {most} characters, made up at random",
        )
    try:
        return _public_id(f"{machine_id}\0{session_id}\0{key}")
    except UnicodeEncodeError:
        raise BadRequest("invalid_client_key", "a client key is text") from None


def _public_id(secret: str) -> str:
    """16 base62 digits of a SHA-256."""
    number = int.from_bytes(hashlib.sha256(secret.encode()).digest())
    digits = []
    for _ in range(16):
        number, digit = divmod(number, len(BASE62))
        digits.append(BASE62[digit])
    return "".join(digits)
