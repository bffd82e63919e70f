"""What this computer, or the container, has for the hub: cores and memory.

Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max, memory.max), and
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUPS: Final = Path("/sys/fs/cgroup")
OWN_CGROUP: Final = Path("/proc/self/cgroup")
MEMORY: Final = Path("/proc/meminfo")
_UNLIMITED: Final = 2**60
"""Version 1 says so by a number of this size."""


def cores() -> int:
    """Cores that this process may use, at least 1: by its affinity and by its control groups."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    for text in _limits("cpu.max"):
        quota, _, period = text.partition(" ")
        with contextlib.suppress(ValueError, ZeroDivisionError):
            count = min(count, math.ceil(int(quota) / int(period)))
    return max(1, count)


def memory_bytes() -> int:
    """Memory that may be used: the computer's, or less by a control group or RLIMIT_AS."""
    found = [size for size in (_of_computer(), _of_process()) if size]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        for text in _limits(name):
            with contextlib.suppress(ValueError):
                found.append(int(text))
    return min((size for size in found if 0 < size < _UNLIMITED), default=0)


def _of_computer() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in MEMORY.read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    return 0


def _of_process() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return 0 if soft == resource.RLIM_INFINITY else soft


def _limits(name: str) -> Iterator[str]:
    """What the files of this name say in this process's control group and those around it."""
    folder = CGROUPS
    folders = [folder]
    with contextlib.suppress(OSError):
        for line in OWN_CGROUP.read_text().splitlines():
            if line.startswith("0::"):
                for part in Path(line[3:]).parts[1:]:
                    folder /= part
                    folders.append(folder)
    for each in folders:
        with contextlib.suppress(OSError):
            yield (each / name).read_text().strip()
