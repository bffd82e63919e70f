"""Who is there: connections come and go, the machine and the others hear of it, not too often and not at too great length."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final, Protocol

from machinehub.errors import HubError, NotFound, Unavailable
from machinehub.session.core import Kind
from machinehub.session.event import sender_json
from machinehub.session.frames import presence_frame
from machinehub.session.publish import snapshot_frame

if TYPE_CHECKING:
    from machinehub.clock import Entropy
    from machinehub.limits import Limits
    from machinehub.session.live import Connection, LiveSession

DELAY_S: Final = 0.05
DELAY_PER_CONNECTION_S: Final = 0.002
"""Joins and leaves that come together are told together, in a large crowd less often: n arrivals would cost n^2 frames."""
MEMBERS_MAX: Final = 100
"""Members listed in a frame; `count` is always the true number."""


class Send(Protocol):
    def __call__(self, session: LiveSession, event: bytes, sender: bytes, *, event_id: None, then: None, kind: Kind) -> None: ...


class People:
    def __init__(self, send: Send, entropy: Entropy, limits: Limits) -> None:
        self._send = send
        self._entropy = entropy
        self._limits = limits

    def sender(self, user: str | None = None) -> tuple[str, bytes]:
        """A new connection's id, and its `sender` as JSON."""
        connection_id = self._entropy.connection_id()
        return connection_id, sender_json(connection_id, user)

    def attach(self, session: LiveSession, connection: Connection) -> None:
        """Adds a watcher: it gets the snapshot first, then everything that follows. Raises `Unavailable` when full."""
        if session.gone:
            raise NotFound("no_such_session", "the session was deleted")
        if len(session.connections) >= self._limits.connections_per_session:
            raise Unavailable("connections_exceeded", f"a session has at most {self._limits.connections_per_session} connections")
        session.connections[connection.id] = connection
        connection.send(snapshot_frame(session, connection.id))
        self._tell_machine(session, b"presence.joined", connection)

    def detach(self, session: LiveSession, connection: Connection) -> None:
        if session.connections.pop(connection.id, None) is not None:
            self._tell_machine(session, b"presence.left", connection)

    def _tell_machine(self, session: LiveSession, kind: bytes, connection: Connection) -> None:
        if session.gone:
            return
        if session.record.hears_presence and not session.finished:
            event = b'{"type":"%b","count":%d}' % (kind, len(session.connections))
            with contextlib.suppress(HubError):
                self._send(session, event, connection.sender, event_id=None, then=None, kind=Kind.PRESENCE)
        tell_soon(session)


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
