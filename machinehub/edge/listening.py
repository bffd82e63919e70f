"""Listening sockets, and how many connections there may be for the descriptors that a process may
have.

A process that runs out of descriptors can neither accept nor refuse: what it is sent is reset, and
files cannot be opened any more. So accepting pauses before that; who connects meanwhile waits in
the kernel's queue.
"""

from __future__ import annotations

import errno
import resource
import socket
from pathlib import Path
from typing import Final

RESERVED: Final = 128
"""Descriptors beside those of connections: the database's, files of the page, workers that are
started.
"""
SOFT_MAX: Final = 1_048_576
"""The soft limit where the hard one is unlimited."""


def raise_descriptor_limit() -> int:
    """Raises this process's soft limit of open files to its hard one; what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = SOFT_MAX if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return descriptor_limit()


def descriptor_limit() -> int:
    """How many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return SOFT_MAX if soft == resource.RLIM_INFINITY else soft


def connections_allowed() -> int:
    """For how many more connections there are descriptors."""
    try:
        there = sum(1 for _ in Path("/proc/self/fd").iterdir())
    except OSError:  # no Linux
        there = RESERVED
    return max(1, descriptor_limit() - there - RESERVED)


def inherited(descriptors: str) -> list[socket.socket]:
    """Sockets that somebody else opened, by their descriptors. Raises `OSError`."""
    found = [socket.socket(fileno=int(each)) for each in descriptors.split()]
    for each in found:
        each.setblocking(False)
        each.set_inheritable(False)
    return found


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that are bound to every address of `host`. Raises `OSError` where there is none, or
    another process has one.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listening.bind(address)
            listening.setblocking(False)
        except OSError as error:
            listening.close()
            # `localhost` has an address of IPv6 where the computer may have none.
            if error.errno == errno.EADDRNOTAVAIL and address != found[0][4]:
                continue
            for other in bound:
                other.close()
            raise
        bound.append(listening)
    return bound
