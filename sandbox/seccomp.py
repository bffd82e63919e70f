"""The system calls that a worker may make: a filter in classic BPF, installed for all threads of
the process.

Decides: which calls exist for a worker. Everything that is not listed answers `EPERM`; what no
honest worker ever tries (starting programs, opening sockets, looking into other processes) ends the
process at once, which the hub notices.

Source: seccomp(2); the numbers are those of Linux's system call tables for the two processors that
we know.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final

_TABLES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""The column of `_NUMBERS`, and the name that the kernel gives the architecture (AUDIT_ARCH_*)."""

_NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    # What every turn needs, so that it is found first.
    "futex": (202, 98),
    "recvfrom": (45, 207),
    "sendto": (44, 206),
    "clock_gettime": (228, 113),
    "mprotect": (10, 226),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "madvise": (28, 233),
    "clock_nanosleep": (230, 115),
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "dup": (32, 23),
    "nanosleep": (35, 101),
    "getpid": (39, 172),
    "clone": (56, 220),
    "clone3": (435, 435),
    "exit": (60, 93),
    "uname": (63, 160),
    "fcntl": (72, 25),
    "ftruncate": (77, 46),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "sched_getaffinity": (204, 123),
    "clock_getres": (229, 114),
    "exit_group": (231, 94),
    "set_robust_list": (273, 99),
    "poll": (7, None),
    "ppoll": (271, 73),
    "select": (23, None),
    "pselect6": (270, 72),
    "getrandom": (318, 278),
    "memfd_create": (319, 279),
    "membarrier": (324, 283),
    "rseq": (334, 293),
    "gettimeofday": (96, 169),
    "time": (201, None),
    "restart_syscall": (219, 128),
    "getcpu": (309, 168),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "prlimit64": (302, 261),
    "tgkill": (234, 131),
    # Files, and what wasmtime's WASI waits for them with.
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "openat": (257, 56),
    "openat2": (437, 437),
    "open": (2, None),
    "stat": (4, None),
    "lstat": (6, None),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "getdents64": (217, 61),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "fchmod": (91, 52),
    "chmod": (90, None),
    "fchmodat": (268, 53),
    "getcwd": (79, 17),
    "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21),
    "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "eventfd2": (290, 19),
    "socketpair": (53, 199),
    "dup3": (292, 24),
    # What ends the process.
    "execve": (59, 221),
    "execveat": (322, 281),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "socket": (41, 198),
    "connect": (42, 203),
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
}
_NAMES: Final = list(_NUMBERS)
_ALWAYS: Final = tuple(_NAMES[: _NAMES.index("newfstatat")])
_READING: Final = ("newfstatat", "statx")
_FILES: Final = tuple(_NAMES[_NAMES.index("newfstatat") : _NAMES.index("execve")])
_DEADLY: Final = tuple(_NAMES[_NAMES.index("execve") :])

_KILL: Final = 0x80000000
_ERRNO: Final = 0x00050000
_ALLOW: Final = 0x7FFF0000
_LOAD, _JUMP_IF, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
"""ld [k]; jeq #k, jt, jf; and #k; ret #k"""
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_WRITE_AND_EXECUTE: Final = 0x2 | 0x4
_THREAD: Final = 0x00010000 | 0x00000100
"""CLONE_THREAD and CLONE_VM: a thread of this process, no process of its own."""
_FCNTL: Final = (1, 2, 3, 4, 0, 1030, 1033, 1034)
"""Flags, copies of descriptors, seals.

Not who gets a signal when a socket has something to read (F_SETOWN, F_SETSIG), nor leases.
"""
_SET_MODE_FILTER, _TSYNC = 1, 1
_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}

Instruction = tuple[int, int, int, int]


def install(*, files: str) -> None:
    """Filters the calls of all threads, for ever.

    `files`: "none", "read" (open for reading only) or "all".

    Needs `no_new_privs`. Raises `OSError` where the kernel or the processor is not known to do it.
    """
    if platform.machine() not in _TABLES:
        raise OSError(errno.ENOSYS, f"no table of system calls for {platform.machine()}")
    program = b"".join(
        struct.pack("<HBBI", *instruction) for instruction in _program(platform.machine(), files)
    )
    buffer = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("<H6xQ", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_SECCOMP[platform.machine()], _SET_MODE_FILTER, _TSYNC, head) != 0:
        raise OSError(ctypes.get_errno() or errno.EAGAIN, os.strerror(ctypes.get_errno()))


def _program(machine: str, files: str) -> list[Instruction]:
    column, arch = _TABLES[machine]

    def on(name: str, *then: Instruction) -> list[Instruction]:
        number = _NUMBERS[name][column]
        return [] if number is None else [(_JUMP_IF, 0, len(then), number), *then]

    def argument(
        index: int, mask: int, equals: int, *, same: int, other: int
    ) -> tuple[Instruction, ...]:
        """Looks at the low half of an argument.

        What follows ends the program, so the number need not be loaded again.
        """
        return (
            (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index),
            (_AND, 0, 0, mask),
            (_JUMP_IF, 0, 1, equals),
            (_RETURN, 0, 0, same),
            (_RETURN, 0, 0, other),
        )

    def one_of(index: int, values: tuple[int, ...]) -> tuple[Instruction, ...]:
        """Allows those values of an argument."""
        tests = [(_JUMP_IF, len(values) - at, 0, value) for at, value in enumerate(values)]
        return (
            (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index),
            *tests,
            (_RETURN, 0, 0, refuse),
            (_RETURN, 0, 0, _ALLOW),
        )

    allow, refuse = (_RETURN, 0, 0, _ALLOW), _ERRNO | errno.EPERM
    reading = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    special = {
        "clone": argument(0, _THREAD, _THREAD, same=_ALLOW, other=refuse),
        # Its flags lie behind a pointer; the C library then uses `clone`.
        "clone3": ((_RETURN, 0, 0, _ERRNO | errno.ENOSYS),),
        "mmap": argument(2, _WRITE_AND_EXECUTE, _WRITE_AND_EXECUTE, same=refuse, other=_ALLOW),
        "mprotect": argument(2, _WRITE_AND_EXECUTE, _WRITE_AND_EXECUTE, same=refuse, other=_ALLOW),
        "fcntl": one_of(1, _FCNTL),
        # A thread of its own: abort().
        "tgkill": argument(0, 0xFFFFFFFF, os.getpid(), same=_ALLOW, other=refuse),
        # Reading limits, not setting them.
        "prlimit64": argument(2, 0xFFFFFFFF, 0, same=_ALLOW, other=refuse),
    }
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_JUMP_IF, 1, 0, arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for name in (*_ALWAYS, *{"none": (), "read": _READING, "all": _FILES}[files]):
        program += on(name, *special.get(name, (allow,)))
    if files == "read":
        program += on("openat", *argument(2, reading, 0, same=_ALLOW, other=refuse))
    for name in _DEADLY:
        program += on(name, (_RETURN, 0, 0, _KILL))
    return [*program, (_RETURN, 0, 0, refuse)]
