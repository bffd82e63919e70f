"""Landlock: which folders a process may read or change, and that it may neither connect nor signal.

Source: landlock(7) and Linux's `include/uapi/linux/landlock.h`. The system calls have one number on
all processors.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_EXECUTE, _IOCTL_DEVICE = 1 << 0, 1 << 15
_RIGHTS_BY_ABI: Final = ((5, 16), (3, 15), (2, 14), (1, 13))
"""From which version on how many rights over files exist."""
_NETWORK_ABI, _SCOPE_ABI = 4, 6
_BIND_AND_CONNECT: Final = 0b11
_ABSTRACT_SOCKETS_AND_SIGNALS: Final = 0b11

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """The kernel's version of Landlock; 0 without."""
    found: int = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    return max(0, found)


def restrict(*, readable: Iterable[Path], writable: Iterable[Path]) -> int:
    """From now on the calling thread, and those that it starts, may do nothing else with files.

    Returns the kernel's version.

    Needs `no_new_privs`. Raises `OSError` when the kernel refuses.
    """
    abi = version()
    if not abi:
        raise OSError(95, "the kernel has no Landlock")
    rights = (1 << next(count for since, count in _RIGHTS_BY_ABI if abi >= since)) - 1
    attributes = struct.pack("<QQQ", rights, _BIND_AND_CONNECT, _ABSTRACT_SOCKETS_AND_SIGNALS)
    size = 24 if abi >= _SCOPE_ABI else 16 if abi >= _NETWORK_ABI else 8
    ruleset = _call(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    try:
        for folders, allowed in (
            (readable, _READ_FILE | _READ_DIR),
            (writable, rights & ~(_EXECUTE | _IOCTL_DEVICE)),
        ):
            for folder in folders:
                opened = os.open(folder, os.O_PATH | os.O_CLOEXEC)
                try:
                    _call(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("<Qi", allowed, opened), 0)
                finally:
                    os.close(opened)
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return abi


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
