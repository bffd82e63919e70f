"""The pool of workers: what happens to those that cannot start."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

from tests.support import COUNTER, running_hub

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_a_worker_that_dies_while_starting_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub waited for it for ever."""
    from machinehub.workers.process import WorkerProcess

    start = WorkerProcess.start
    killed: list[int] = []

    async def start_and_die(self: WorkerProcess, how: Any) -> None:
        await start(self, how)
        if not killed and self.process is not None:
            killed.append(self.process.pid)
            self.process.kill()

    monkeypatch.setattr(WorkerProcess, "start", start_and_die)
    async with asyncio.timeout(30), running_hub(tmp_path, workers=1) as client:
        assert killed
        await client.deploy(COUNTER)


async def test_a_worker_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failed restart, for want of descriptors, was the last."""
    from machinehub.workers.process import WorkerProcess

    async with running_hub(tmp_path, workers=1) as client:
        machine_id = await client.deploy(COUNTER)
        await client.http.post(f"/{machine_id}/s", json={"type": "increment"})
        start = WorkerProcess.start
        failures: list[int] = []

        async def fail_twice(self: WorkerProcess, how: Any) -> None:
            if len(failures) < 2:
                failures.append(1)
                raise OSError(24, "Too many open files")
            await start(self, how)

        monkeypatch.setattr(WorkerProcess, "start", fail_twice)
        os.kill(client.worker_pids()[0], signal.SIGKILL)
        answer = await client.http.post(f"/{machine_id}/s", json={"type": "increment"})
        assert answer.json()["snapshot"]["context"] == {"count": 2}
        assert len(failures) == 2
