"""An event loop whose time is a number: it never waits, and the same seed gives the same run."""

from __future__ import annotations

import asyncio
import selectors
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


class _NoFiles(selectors.BaseSelector):
    """Nothing is ever ready; what would be a wait moves the time on."""

    def __init__(self) -> None:
        self.loop: VirtualLoop | None = None
        self._files: dict[Any, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self._files[fileobj] = key = selectors.SelectorKey(fileobj, 0, events, data)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._files.pop(fileobj)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert self.loop is not None
        if timeout is None:
            raise AssertionError("everybody waits for something that nobody will do")
        self.loop.now_s += max(0.0, timeout)
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._files

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._files[fileobj]


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        files = _NoFiles()
        self.now_s = 1000.0
        super().__init__(files)
        files.loop = self

    def time(self) -> float:
        return self.now_s
