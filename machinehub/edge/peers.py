"""Whose process is at the other end of a connection from this computer: Linux says it.

An open hub is for whoever started it. A proxy on this computer, which passes strangers on, runs as
a user of its own; what it sends may look like what a local client sends.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST: Final = 1
NLMSG_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBxI")
_PORTS: Final = struct.Struct("!HH")
_ANY_COOKIE: Final = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
"""Any interface, any cookie."""
_OWNER: Final = struct.Struct("=II")
_OWNER_AT: Final = _HEADER.size + 4 + 48 + 12
"""Behind the message's head, four bytes of state, the socket's id, and three numbers: user and
inode.
"""
NOBODY: Final = -1
"""Of a socket that its process has closed. (The system says root of those.)"""
ANSWER_S: Final = 0.2

Address = tuple[str, int | None]
"""Of one end of a connection, as uvicorn has it."""


def is_mine(peer: Address, ours: Address) -> bool:
    """Whether the process at `peer`, an address of this computer, belongs to this process's user or
    to root. True where the system cannot be asked; not for a process that has gone already.
    """
    uid = uid_of(peer, ours)
    return uid is None or uid in (0, os.getuid())


def uid_of(peer: Address, ours: Address) -> int | None:
    """The user whose TCP socket is bound to `peer` and connected to `ours`; `NOBODY` where there is
    none any more, None where there is nobody to ask.

    Source: sock_diag(7).
    """
    if not hasattr(socket, "AF_NETLINK"):
        return None
    family = socket.AF_INET6 if ":" in peer[0] else socket.AF_INET
    try:
        addresses = b"".join(
            socket.inet_pton(family, host).ljust(16, b"\0") for host in (peer[0], ours[0])
        )
        request = (
            _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0xFFFFFFFF)
            + _PORTS.pack(peer[1] or 0, ours[1] or 0)
            + addresses
            + _ANY_COOKIE
        )
        head = _HEADER.pack(_HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0)
        with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG) as asking:
            asking.settimeout(ANSWER_S)
            asking.sendto(head + request, (0, 0))
            answer = asking.recv(1024)
    except (OSError, ValueError):
        return None
    kind = _HEADER.unpack_from(answer)[1]
    if kind != SOCK_DIAG_BY_FAMILY or len(answer) < _OWNER_AT + _OWNER.size:
        return NOBODY if kind == NLMSG_ERROR and _error_in(answer) == errno.ENOENT else None
    uid, inode = _OWNER.unpack_from(answer, _OWNER_AT)
    return int(uid) if inode else NOBODY


def _error_in(answer: bytes) -> int:
    return -int(struct.unpack_from("=i", answer, _HEADER.size)[0])
