"""Tasks that somebody started and nobody awaits: kept, so that they are not collected, and ended
together; and work that is done again and again.
"""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING

from machinehub.errors import HubError

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Coroutine


class Tasks:
    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def stop(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    def __len__(self) -> int:
        return len(self._tasks)


async def look_on(
    what: str,
    every_s: float,
    look: Callable[[], Awaitable[object] | None],
    log: logging.Logger,
    level: int,
) -> None:
    """Calls `look` for ever, each time after `every_s` seconds. What it raises goes to `log`, the
    hub's own errors (the database is away) at `level`: else one failure would be the last look.
    """
    while True:
        await asyncio.sleep(every_s)
        try:
            looking = look()
            if inspect.isawaitable(looking):
                await looking
        except HubError as error:
            log.log(level, "%s are looked at later: %s", what, error.detail)
        except Exception:
            log.exception("%s could not be looked at", what)
