"""How deep JSON nests, found without recursion: parsers recurse, and strangers know it."""

from __future__ import annotations

import re
from typing import Final

_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, or what began as one and never ends: whatever the text, each byte is looked at once."""
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"{}[]"))


def depth_of(data: bytes, *, limit: int | None = None) -> int:
    """How deep the brackets of a text nest that may be JSON, without recursion; with a `limit`, no
    further than one beyond it.
    """
    depth = deepest = 0
    for char in _STRING.sub(b"", data).translate(None, _NO_BRACKETS):
        if char in b"{[":
            depth += 1
            if depth > deepest:
                deepest = depth
                if limit is not None and deepest > limit:
                    break
        else:
            depth -= 1
    return deepest


def is_deeper_than(data: bytes, limit: int) -> bool:
    """The same question, answered at once for texts that have few brackets."""
    return data.count(b"{") + data.count(b"[") > limit and depth_of(data, limit=limit) > limit
