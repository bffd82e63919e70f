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

from typing import TYPE_CHECKING, Final

import msgspec

from machinehub.session.messages import Member, Presence, PresenceNews

if TYPE_CHECKING:
    from machinehub.ids import MemberId
    from machinehub.session.decide.identity import Identity

LISTED_MAX: Final = 100
"""Members that are listed; `count` is always the true number."""


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
