"""The members of a session, and the changes to that list which its listeners have to be told.

This module does no I/O. It counts all connections of one member as one, keeps a member that may
reconnect until the caller gives it up, and produces the full list for a new listener and the
changes for all others. It uses no sockets and no clock (the caller decides when to give a member
up); what the machine itself is told is in `run/presence_events.py`.

A member's life:

    absent --arrive--> here --last connection departs--> (cannot come back) absent
                        ^                     \\-------> awaited --arrive--> here
                        \\------------------------------/  \\--give_up--> absent
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.clock import BASE62
from machinehub.errors import BadRequest
from machinehub.ids import EventId, MemberId
from machinehub.session.port import Member, Presence, PresenceNews

if TYPE_CHECKING:
    from machinehub import principal
    from machinehub.ids import MachineId, SessionId

OWNED: Final = "\0"
"""Stands before and behind the member in ids that are a user's own."""
CLIENT_KEY_CHARS: Final = (16, 128)
LISTED_MAX: Final = 100
"""Members that are listed; `count` is always the true number."""


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

    @property
    def member(self) -> MemberId:
        return MemberId(self.id)

    def own(self, event_id: EventId | None) -> EventId | None:
        """The id of an event as it is kept: a user's ids are theirs alone, so that nobody can use
        one up for somebody else. All who came without a connect token share theirs, as they always
        did.
        """
        if event_id is None:
            return None
        if self.user is not None:
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
    """The id of an event that is kept so, as its sender wrote it."""
    if event_id is None or not event_id.startswith(OWNED):
        return event_id
    return EventId(event_id.split(OWNED, 2)[2])


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


class Members:
    """The members of one session, in the order of their coming."""

    def __init__(self) -> None:
        self._there: dict[MemberId, Member] = {}
        self._connections: dict[MemberId, int] = {}
        self._told: dict[MemberId, Member] = {}
        """Who was there when `news` was last asked for."""

    def __len__(self) -> int:
        return len(self._there)

    def __contains__(self, member: object) -> bool:
        return member in self._there

    def arrive(self, who: Identity, joined_at: str) -> bool:
        """One connection more; whether it is a new member's."""
        new = who.member not in self._there
        if new:
            roles = msgspec.UNSET if who.roles is None else who.roles
            self._there[who.member] = Member(
                id=who.member, user=who.user, joined_at=joined_at, roles=roles
            )
        self._connections[who.member] = self._connections.get(who.member, 0) + 1
        return new

    def depart(self, who: Identity) -> bool:
        """One connection less; whether the member should be waited for."""
        self._connections[who.member] -= 1
        if self._connections[who.member]:
            return False
        return who.returns or not self.give_up(who.member)

    def give_up(self, member: MemberId) -> bool:
        """The member is gone, unless it came back; whether it is gone."""
        if self._connections.get(member, 1):
            return False
        del self._there[member], self._connections[member]
        return True

    def is_connected(self, member: MemberId) -> bool:
        return bool(self._connections.get(member))

    def describe(self, member: MemberId, metadata: bytes) -> None:
        """What a member says of itself, as JSON; null is nothing."""
        said = msgspec.UNSET if metadata == b"null" else msgspec.Raw(metadata)
        self._there[member] = msgspec.structs.replace(self._there[member], metadata=said)

    def listing(self) -> Presence:
        """Who is there, whole."""
        return Presence(len(self._there), self._listed())

    def news(self) -> Presence | None:
        """What changed since this was last asked, if anything did; whole where that is shorter."""
        now, before, self._told = self._there, self._told, dict(self._there)
        joined = [member for name, member in now.items() if name not in before]
        changed = [
            member for name, member in now.items() if name in before and before[name] is not member
        ]
        left: list[str] = [name for name in before if name not in now]
        if not (joined or changed or left):
            return None
        if len(joined) + len(changed) + len(left) > LISTED_MAX:
            return self.listing()
        if left and len(before) > LISTED_MAX:
            return self.listing()  # others move up into a list that had no room for them
        return Presence(len(now), self._listed(), PresenceNews(joined, left, changed))

    def _listed(self) -> list[Member]:
        return list(self._there.values())[:LISTED_MAX]
