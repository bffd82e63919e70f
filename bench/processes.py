"""What a process tree costs, read from /proc: CPU seconds and private memory."""

from __future__ import annotations

import os
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """`pid` and all its descendants."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split() if int(child) not in found]
    return found


def cpu_s(pid: int) -> dict[int, float]:
    """CPU seconds, user and system, of each process of the tree."""
    seconds = {}
    for process in tree(pid):
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        seconds[process] = (int(fields[11]) + int(fields[12])) / TICKS
    return seconds


def private_kb(pid: int) -> int:
    """KB that nobody else shares, of the whole tree."""
    total = 0
    for process in tree(pid):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Private_Clean", "Private_Dirty")):
                total += int(line.split()[1])
    return total
