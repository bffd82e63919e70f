"""What forges of a hub that was killed left in the temporary folder goes at the next start."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import TYPE_CHECKING

from machinehub.workers import scratch
from tests.support import running_hub, until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_leftovers_of_processes_that_are_no_more_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await ended.wait()
    gone = tmp_path / f"machinehub-forge-{ended.pid}-abc"
    (gone / "deep" / "er").mkdir(parents=True)
    kept = [
        tmp_path / f"machinehub-forge-{os.getpid()}-mine",
        tmp_path / "machinehub-forge-another",
        tmp_path / "something else",
    ]
    for folder in kept:
        folder.mkdir()
    (tmp_path / f"machinehub-forge-{ended.pid}-link").symlink_to(kept[2])
    async with running_hub(tmp_path / "data"):
        own = list(tmp_path.glob(f"machinehub-forge-{os.getpid()}-*"))
        assert len(own) == 2
        await until(lambda: not gone.exists())
    assert all(folder.exists() for folder in kept)
    assert (tmp_path / f"machinehub-forge-{ended.pid}-link").is_symlink()
    assert not scratch.left_behind()
