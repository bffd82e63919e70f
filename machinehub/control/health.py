"""Whether a hub can do its work, and why not: what `/readyz` says.

A database that can be read may be one that cannot be written. So it is written, though not for each
of those who ask. Disk space is looked at before it is out.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import TYPE_CHECKING, Final, Protocol

from machinehub.errors import HubError
from machinehub.tasks import Tasks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from machinehub.metrics import Metrics

log = logging.getLogger("machinehub.health")

PROBE_S: Final = 2.0
"""The database is written at most so often, and when somebody asks."""
ANSWER_S: Final = 5.0
DISK_S: Final = 10.0
LOW_BYTES: Final = 512 * 1024 * 1024
LOW_SHARE: Final = 0.05
"""Less free space than this, of both, is said in the log."""


class Writable(Protocol):
    """The session store, as it is needed here."""

    async def ping(self) -> None: ...


class Damageable(Protocol):
    @property
    def damaged(self) -> bool: ...


class Health:
    def __init__(
        self,
        store: Writable,
        database: Damageable,
        metrics: Metrics,
        *,
        folder: Path | None,
        refused: Callable[[], HubError | None] = lambda: None,
    ) -> None:
        """`folder` is where a database of files stands; None when it is elsewhere. `refused` is why
        events could not be written lately.
        """
        self._refused = refused
        self._store = store
        self._database = database
        self._metrics = metrics
        self._folder = folder
        self._asked_at_s = float("-inf")
        self._trouble: str | None = None
        self._asking = asyncio.Lock()
        self._is_low = False
        self._tasks = Tasks()

    def start(self) -> None:
        if self._folder is not None:
            self._tasks.spawn(self._watch_disk(self._folder))

    def stop(self) -> None:
        self._tasks.stop()

    async def trouble(self) -> str | None:
        """Why the database cannot be used: a cause of `store/trouble.py`; None when it can."""
        async with self._asking:
            now_s = asyncio.get_running_loop().time()
            if now_s - self._asked_at_s >= PROBE_S or self._trouble is not None:
                self._trouble = await self._probe()
                self._asked_at_s = asyncio.get_running_loop().time()
        return "damaged" if self._database.damaged else self._trouble

    async def _probe(self) -> str | None:
        try:
            if (error := self._refused()) is not None:
                return _reason(error)
            async with asyncio.timeout(ANSWER_S):
                await self._store.ping()
        except HubError as error:
            return _reason(error)
        except TimeoutError:
            return "unreachable"
        return None

    async def _watch_disk(self, folder: Path) -> None:
        while True:
            self.look_at_disk(folder)
            await asyncio.sleep(DISK_S)

    def look_at_disk(self, folder: Path) -> None:
        """Says once that space is low, and once that it is not any more."""
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            return
        self._metrics.disk_free.set(usage.free)
        is_low = usage.free < LOW_BYTES and usage.free < usage.total * LOW_SHARE
        if is_low and not self._is_low:
            log.warning(
                "%d MiB are free on the disk of %s: events are refused when it is full",
                usage.free // 2**20,
                folder,
            )
        elif self._is_low and not is_low:
            log.info("%d MiB are free on the disk of %s again", usage.free // 2**20, folder)
        self._is_low = is_low


def _reason(error: HubError) -> str:
    return str(error.more.get("reason", "unreachable"))
