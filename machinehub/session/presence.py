"""Who is there: telling a session's connections about joins and leaves, not too often and not at too great length."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from machinehub.session.frames import presence_frame

if TYPE_CHECKING:
    from machinehub.session.live import LiveSession

DELAY_S: Final = 0.05
DELAY_PER_CONNECTION_S: Final = 0.002
"""Joins and leaves that come together are told together, in a large crowd less often: n arrivals would cost n^2 frames."""
MEMBERS_MAX: Final = 100
"""Members listed in a frame; `count` is always the true number."""


def tell_soon(session: LiveSession) -> None:
    if session.presence_due is None:
        delay_s = DELAY_S + DELAY_PER_CONNECTION_S * len(session.connections)
        session.presence_due = asyncio.get_running_loop().call_later(delay_s, _tell, session)


def _tell(session: LiveSession) -> None:
    session.presence_due = None
    connections = list(session.connections.values())
    members: list[dict[str, object]] = [{"id": there.id, "user": there.user, "joined_at": there.joined_at} for there in connections[:MEMBERS_MAX]]
    frame = presence_frame(len(connections), members)
    for connection in connections:
        connection.send(frame)
