"""Operating-system sandboxing of a worker process, as the second layer of defence behind wasmtime.

Each measure is called a *wall*: namespaces, resource limits, Landlock, dropped capabilities,
seccomp. This module applies them in order, and reports each one that the kernel refuses and which
other wall makes up for it. All are in place before a worker reads any untrusted byte.

`raise_first` applies those that hold only for the calling thread and the threads it starts; it
runs while there is one thread. `raise_rest` runs after everything that the worker needs was read.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandbox import landlock, seccomp

if TYPE_CHECKING:
    from collections.abc import Callable

Wall = tuple[str, bool, str]
"""Its name, whether it stands, and what it is; or what the kernel said and what stands in for it.
"""

_NEW_USER, _NEW_NET, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_NAME = 1, 4, 38, 15
_CAPABILITY_VERSION: Final = 0x20080522
_CAPSET: Final = {"x86_64": 126, "aarch64": 91}
FIRST_UID: Final = 61_184
"""systemd's range for users that exist only as long as a service (systemd.exec(5), DynamicUser)."""
UIDS: Final = 4_336
FILE_BYTES_MAX: Final = 512 * 1024 * 1024
"""Of one file or memory file; an image's memory is one."""
DESCRIPTORS_MAX: Final = 8_192
"""Each loaded image keeps one."""
THREADS_MAX: Final = 64
OOM_SCORE: Final = 500
"""Out of memory, the kernel ends a worker and not the hub."""

_libc = ctypes.CDLL(None, use_errno=True)


def raise_first(
    *,
    parent: int,
    keep: int,
    readable: list[Path],
    writable: list[Path],
    memory_bytes_max: int,
    cpu_s_max: int,
    own_user: bool,
) -> list[Wall]:
    """What must stand before there is a second thread.

    `writable` folders are handed to the worker's own user.

    `keep` is the one descriptor beside the standard ones that stays open.
    """
    if sys.platform != "linux":
        return [
            (
                "walls",
                False,
                (
                    f"not built for {sys.platform}: only wasmtime stands between a machine and "
                    "this user"
                ),
            )
        ]
    if os.getppid() != parent:
        sys.exit("the hub is gone")
    os.environ.clear()  # Python puts its locale there
    if own_user and os.geteuid() == 0:
        for folder in writable:
            with contextlib.suppress(OSError):
                os.chown(folder, _own_uid(), _own_uid())
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")
    return [
        ("environment", True, "empty"),
        _try("descriptors", lambda: _close_descriptors(keep), otherwise="nothing"),
        _try("own network", _leave_network, otherwise="seccomp refuses sockets"),
        _try("limits", lambda: _limit(memory_bytes_max, cpu_s_max), otherwise="nothing"),
        _try("no new privileges", lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1), otherwise="nothing"),
        _try(
            "files",
            lambda: _landlock(readable, writable),
            otherwise="seccomp refuses to open files" if not writable else "the worker's own user",
        ),
    ]


def raise_rest(
    *, stood: list[Wall], reads_files: bool, writes_files: bool, own_user: bool
) -> list[Wall]:
    """The rest, given what `raise_first` said. From here on nothing can be imported."""
    if sys.platform != "linux":
        return []
    walls = [
        _try(
            "own user",
            lambda: _become_nobody(own_user=own_user),
            otherwise="the other walls; start the hub as a user of its own",
        ),
        _try("no capabilities", _drop_capabilities, otherwise="nothing"),
        _try(
            "parent's death",
            lambda: _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, "the worker ends with its hub"),
            otherwise="the worker ends when its socket does",
        ),
        _try(
            "not dumpable",
            lambda: _prctl(_PR_SET_DUMPABLE, 0, "nobody of the same user may look in"),
            otherwise="nothing",
        ),
        _try("output", _silence, otherwise="nothing"),
    ]
    files = (
        "all"
        if writes_files
        else "read"
        if reads_files and ("files", True) in [wall[:2] for wall in stood]
        else "none"
    )
    walls.append(_try("system calls", lambda: _filter(files), otherwise="nothing"))
    return walls


def _try(name: str, build: Callable[[], str], *, otherwise: str) -> Wall:
    try:
        return name, True, build()
    except OSError as error:
        return name, False, f"{error.strerror or error}; instead: {otherwise}"


def _prctl(option: int, value: int, detail: str = "set") -> str:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        _fail()
    return detail


def _fail() -> None:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _leave_network() -> str:
    """A network of its own, in which nothing is up.

    Those who are not root need a user namespace for it, where the kernel lets them.
    """
    if os.geteuid() == 0 and _libc.unshare(_NEW_NET | _NEW_IPC) == 0:
        return "a network namespace with nothing in it"
    if _libc.unshare(_NEW_USER | _NEW_NET | _NEW_IPC) != 0:
        _fail()
    return "a network namespace with nothing in it, in a user namespace"


def _limit(memory_bytes_max: int, cpu_s_max: int) -> str:
    wanted = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, FILE_BYTES_MAX),
        (resource.RLIMIT_NOFILE, DESCRIPTORS_MAX),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ]
    if memory_bytes_max:
        wanted.append((resource.RLIMIT_DATA, memory_bytes_max))
    if cpu_s_max:
        wanted.append((resource.RLIMIT_CPU, cpu_s_max))
    if (
        os.geteuid() == 0
    ):  # it counts what its own user has; else it would count all that the hub's user runs
        wanted.append((resource.RLIMIT_NPROC, THREADS_MAX))
    for limit, value in wanted:
        hard = resource.getrlimit(limit)[1]
        at_most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (at_most, at_most))
    said = [
        "no core dumps",
        *([f"{memory_bytes_max // 2**20} MiB of memory"] if memory_bytes_max else []),
        *([f"{cpu_s_max} s of CPU"] if cpu_s_max else []),
    ]
    return ", ".join(said)


def _landlock(readable: list[Path], writable: list[Path]) -> str:
    abi = landlock.restrict(
        readable=[folder for folder in readable if folder.is_dir()], writable=writable
    )
    may = "changes one folder, no more" if writable else "reads the cache, no more"
    return f"Landlock {abi}: {may if readable or writable else 'none'}"


def _become_nobody(*, own_user: bool) -> str:
    if not own_user:
        return "the caller's, over the caller's own files"
    if os.geteuid() != 0:
        raise OSError(1, "the hub does not run as root")
    uid = _own_uid()
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    return f"user {uid}"


def _drop_capabilities() -> str:
    if platform.machine() not in _CAPSET:
        raise OSError(38, f"no number of capset for {platform.machine()}")
    head, data = struct.pack("<Ii", _CAPABILITY_VERSION, 0), bytes(24)
    if _libc.syscall(_CAPSET[platform.machine()], head, data) != 0:
        _fail()
    return "none"


def _own_uid() -> int:
    return FIRST_UID + os.getpid() % UIDS


def _close_descriptors(keep: int) -> str:
    os.closerange(3, keep)
    os.closerange(keep + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return "the socket to the hub alone"


def _silence() -> str:
    """Standard output and error lead nowhere from now on, as the input does: a terminal takes
    commands from what is written to it.
    """
    for standard in (1, 2):
        os.dup2(0, standard)
    return "leads nowhere"


def _filter(files: str) -> str:
    seccomp.install(files=files)
    return {"none": "no files", "read": "files for reading", "all": "files"}[
        files
    ] + ", no sockets, no programs, no other processes"
