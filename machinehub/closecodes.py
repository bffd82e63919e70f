"""WebSocket close codes: what a hub means by them. The one table; docs/protocol.md shows it to
clients.
"""

from __future__ import annotations

from enum import IntEnum


class CloseCode(IntEnum):
    """Below 4000 as RFC 6455 (section 7.4) and its registry define them, above as this protocol
    does.
    """

    GOING_AWAY = 1001
    """The hub stops: connect again, a little later."""
    UNSUPPORTED_DATA = 1003
    """A binary frame."""
    INVALID_DATA = 1007
    """Text that is not UTF-8."""
    POLICY_VIOLATION = 1008
    """A request that cannot be served; the same one fails again."""
    INTERNAL_ERROR = 1011
    """A ping was not answered in time."""
    TRY_AGAIN_LATER = 1013
    """The session cannot be had just now."""
    UNAUTHORISED = 4001
    """The token that it was opened with is not valid any more: come with another one."""
    FORBIDDEN = 4003
    """What was shown does not allow this session: do not connect again with the same. (A page of a
    site that may not use this hub is refused before the handshake.)
    """
    NO_SUCH_SESSION = 4004
    """The machine or the session is not there, or was deleted: do not connect again."""
    LIMIT_EXCEEDED = 4008
    """Too fast, too many, or too slow to read. A client may connect again after a while."""
    MOVED = 4010
    """The session was started anew: connect again at once."""
    VIEW_FAILED = 4011
    """The machine says what each member sees, and failed at that: nothing is shown. A client may
    connect again after a while.
    """
    SKY_UNAUTHORISED = 4401
    """To Stately's clients: the key is not valid."""
