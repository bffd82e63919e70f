"""Members: who is in a session, and what of that is news to those who watch.

Decides without I/O: that all connections of one member are one, that somebody who may come back is
waited for, and how a crowd is told: whole to a newcomer, afterwards what changed. Does not know:
sockets, clocks (the shell says when somebody was waited for long enough), or what a machine is told
(`presence.py`).

A member's life:

    absent --arrive--> here --last connection departs--> (cannot come back) absent
                        ^                     \\-------> awaited --arrive--> here
                        \\------------------------------/  \\--give_up--> absent
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import msgspec

from machinehub.clock import BASE62
from machinehub.errors import BadRequest
from machinehub.session.event import sender_json
from machinehub.session.frames import Frame

CLIENT_KEY_CHARS: Final = (16, 128)
MEMBERS_MAX: Final = 100
"""Members that are listed; `count` is always the true number."""
WHOLE_BYTES_MAX: Final = 2048
"""As long as the whole list is this short it goes along with what changed, for whoever keeps no
list.
"""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who is behind a connection."""

    id: str
    """What `sender.id` says: the same for all connections with one client key."""
    user: str | None = None
    """The subject of the connection's token."""
    returns: bool = False
    """Whether a later connection can be known to be the same one's."""

    @property
    def member(self) -> str:
        return self.user if self.user is not None else self.id

    @property
    def sender(self) -> bytes:
        return sender_json(self.id, self.user)


def id_of_key(key: str, machine_id: str, session_id: str) -> str:
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
        secret = f"{machine_id}\0{session_id}\0{key}".encode()
    except UnicodeEncodeError:
        raise BadRequest("invalid_client_key", "a client key is text") from None
    number = int.from_bytes(hashlib.sha256(secret).digest())
    digits = []
    for _ in range(16):
        number, digit = divmod(number, len(BASE62))
        digits.append(BASE62[digit])
    return "".join(digits)


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """As others see one."""

    id: str
    user: str | None
    joined_at: str
    metadata: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_encode = msgspec.json.Encoder().encode


class Members:
    """Of one session, in the order of their coming."""

    def __init__(self) -> None:
        self._there: dict[str, Member] = {}
        self._connections: dict[str, int] = {}
        self._told: dict[str, Member] = {}

    def __len__(self) -> int:
        return len(self._there)

    def __contains__(self, member: object) -> bool:
        return member in self._there

    def arrive(self, who: Identity, joined_at: str) -> bool:
        """One connection more; whether it is a new member's."""
        new = who.member not in self._there
        if new:
            self._there[who.member] = Member(id=who.member, user=who.user, joined_at=joined_at)
        self._connections[who.member] = self._connections.get(who.member, 0) + 1
        return new

    def depart(self, who: Identity) -> bool:
        """One connection less; whether the member should be waited for."""
        self._connections[who.member] -= 1
        return not self._connections[who.member] and (who.returns or not self.give_up(who.member))

    def give_up(self, member: str) -> bool:
        """The member is gone, unless it came back; whether it is gone."""
        if self._connections.get(member, 1):
            return False
        del self._there[member], self._connections[member]
        return True

    def is_connected(self, member: str) -> bool:
        return bool(self._connections.get(member))

    def describe(self, member: str, metadata: bytes) -> None:
        """What a member says of itself, as JSON; null is nothing."""
        said = msgspec.UNSET if metadata == b"null" else msgspec.Raw(metadata)
        self._there[member] = msgspec.structs.replace(self._there[member], metadata=said)

    def listing(self) -> bytes:
        """`{"count", "members"}`"""
        return b'{"count":%d,"members":%b}' % (
            len(self._there),
            _encode(list(self._there.values())[:MEMBERS_MAX]),
        )

    def whole(self) -> Frame:
        return Frame(b'{"type":"presence",' + self.listing()[1:])

    def news(self) -> Frame | None:
        """What changed since this was last asked; the whole list when that is no longer."""
        now, before, self._told = self._there, self._told, dict(self._there)
        joined = [member for name, member in now.items() if name not in before]
        changed = [
            member for name, member in now.items() if name in before and before[name] is not member
        ]
        left = [name for name in before if name not in now]
        if not (joined or changed or left):
            return None
        if len(joined) + len(changed) + len(left) > MEMBERS_MAX or (
            left and len(before) > MEMBERS_MAX
        ):
            return (
                self.whole()
            )  # there, too, when others move up into a list that had no room for them
        said = b'"joined":%b,"left":%b%b' % (
            _encode(joined),
            _encode(left),
            b',"changed":' + _encode(changed) if changed else b"",
        )
        listing = self.listing()
        head = listing[1:-1] if len(listing) <= WHOLE_BYTES_MAX else b'"count":%d' % len(now)
        return Frame(b'{"type":"presence",%b,%b}' % (head, said))
