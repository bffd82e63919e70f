"""What a container allows is what the hub takes for its computer's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from machinehub import capacity
from machinehub.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.core
GIB = 2**30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cgroup"
    (folder / "a" / "b").mkdir(parents=True)
    (tmp_path / "own").write_text("0::/a/b\n")
    (tmp_path / "meminfo").write_text("MemFree: 1 kB\nMemTotal:  16777216 kB\n")
    monkeypatch.setattr(capacity, "CGROUPS", folder)
    monkeypatch.setattr(capacity, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(capacity, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr("resource.getrlimit", lambda _which: (-1, -1))
    return folder


def test_without_limits_it_is_the_computers(groups: Path) -> None:
    assert groups.exists()
    assert (capacity.cores(), capacity.memory_bytes()) == (8, 16 * GIB)
    assert Settings().worker_count == 8
    assert Settings().resident_bytes == 16 * GIB * 2 // 3


@pytest.mark.parametrize("where", [".", "a", "a/b"])
def test_a_group_and_those_around_it_count(groups: Path, where: str) -> None:
    (groups / where / "cpu.max").write_text("250000 100000\n")
    (groups / where / "memory.max").write_text(f"{2 * GIB}\n")
    assert (capacity.cores(), capacity.memory_bytes()) == (3, 2 * GIB)


def test_what_says_nothing_limits_nothing(groups: Path) -> None:
    (groups / "cpu.max").write_text("max 100000\n")
    (groups / "memory.max").write_text("max\n")
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    (groups / "a" / "cpu.max").write_text("nonsense\n")
    assert (capacity.cores(), capacity.memory_bytes()) == (8, 16 * GIB)


def test_version_1_and_rlimit(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text(f"{4 * GIB}\n")
    assert capacity.memory_bytes() == 4 * GIB
    monkeypatch.setattr("resource.getrlimit", lambda _which: (GIB, GIB))
    assert capacity.memory_bytes() == GIB
